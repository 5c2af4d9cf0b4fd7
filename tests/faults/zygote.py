"""A process that has loaded everything once and forks a fresh one for each scenario.

Commands come as JSON lines: ``start`` forks a scenario and answers with its pid, ``wait`` with how
it ended (its exit code, or minus the signal). Workers run inside the driver here, without Ray: what
is tested is what is committed when, and a case takes a second instead of ten.
"""

import itertools
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import torch

from eqmodel import Embedder
from eqmodel.errors import OrbitError
from pipelines import addresses, embed, embedding_run
from pipelines.batch import run_input, silent
from pipelines.config import EmbedSettings
from pipelines.embed import ShardEmbedder
from pipelines.failures import Failure, failure_of
from pipelines.publication import PublishOptions, publish
from pipelines.signals import ended_in_time
from pipelines.storage import Folder
from pipelines.warm_up import warm_up

MODEL = "d4-28-grey"
QUICK = PublishOptions(audit_images=4, map_points=20, threads=1, clusters=3)


class InlinePool:
    """The pool's interface with one worker in this process."""

    def __init__(self, settings: Any, on_receipt: Any, on_tick: Any, stop: Any) -> None:
        self._settings, self._on_receipt, self._on_tick = settings, on_receipt, on_tick
        self._stop = stop
        self.first_handed_out: float | None = None
        self.num_restarts = 0

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def calibrate(self) -> None:
        return None

    def run(self, dispatch: Any) -> Failure | None:
        self._on_tick()
        try:
            worker = ShardEmbedder(self._settings.worker)
        except Exception as error:
            return failure_of(error)
        while not dispatch.finished and not self._stop():
            now = time.monotonic()
            work = dispatch.next(now)
            if work is None:
                time.sleep(0.05)
                continue
            self.first_handed_out = self.first_handed_out or now
            source = work.shard.source
            try:
                receipt = worker.embed(work)
            except Exception as error:
                failure = failure_of(error)
                if failure.action == "refused":
                    fatal = dispatch.refuse(failure, source)
                    if fatal is not None:
                        return fatal
                elif failure.action == "fatal":
                    dispatch.give_back(source)
                    return failure
                else:
                    dispatch.fail(source, failure.message, now)
            else:
                if self._on_receipt(receipt):
                    dispatch.finish(source)
                else:
                    dispatch.fail(source, "its file was not found", now)
            time.sleep(0.1)  # so that each shard has a commit of its own
            self._on_tick()
        return None


@contextmanager
def no_ray(mode: str, least: int) -> Iterator[tuple[float, float]]:
    yield 1.0, 0.0


def run(source: str, store: str, model: str = MODEL, **settings: Any) -> None:
    chosen = {"commit_every_s": 0.1, "buckets": 4, "max_attempts": 3} | settings
    summary = run_input(EmbedSettings(source, model, store, **chosen), QUICK)
    print(json.dumps(summary.as_dict()), flush=True)
    if summary.failure is not None:
        raise summary.failure


def index(store: str) -> None:
    from pipelines.store import open_store

    opened = open_store(store)
    publish(opened.folder, opened.model_id, QUICK)


def gc(store: str, keep: int = 30, grace_s: float = 7 * 86_400, dry_run: bool = False) -> None:
    from pipelines.retention import RetentionOptions, collect_garbage

    cleaned = collect_garbage(Folder(store), RetentionOptions(keep, grace_s, dry_run), silent)
    print(json.dumps(cleaned.as_dict()), flush=True)


def erase(store: str, keys: list[str]) -> None:
    from pipelines import erasure, publication

    publication.PublishOptions = lambda **given: QUICK.__class__(  # type: ignore[misc,assignment]
        **{**vars(QUICK), **given}
    )
    erased = erasure.erase(Folder(store), keys, False, silent)
    print(json.dumps(erased.as_dict()), flush=True)


SCENARIOS: dict[str, Callable[..., None]] = {"run": run, "index": index, "gc": gc, "erase": erase}


def set_clock(setting: str) -> None:
    """Shift the wall clock of this process by so many seconds; ``back``: each look at it finds it
    an hour earlier than the one before."""
    real, looks = time.time, itertools.count(1)

    def shifted() -> float:
        return real() + (-3600.0 * next(looks) if setting == "back" else float(setting))

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(shifted(), tz)

    time.time = shifted
    for name, module in list(sys.modules.items()):
        if name.startswith("pipelines") and getattr(module, "datetime", None) is datetime:
            module.datetime = Shifted  # type: ignore[attr-defined]


def scenario(order: dict[str, Any]) -> int:
    """In the forked process: its exit code, as the command would have it."""
    from jobs.console import sigterm_raises

    os.environ.update(order.get("env", {}))
    addresses.READ_S = int(os.environ.get("ORBIT_TEST_READ_S", addresses.READ_S))
    output = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if "ORBIT_TEST_CLOCK" in os.environ:
        set_clock(os.environ["ORBIT_TEST_CLOCK"])
    if "largest_file" in order:
        limit = order["largest_file"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with sigterm_raises(), ended_in_time():
            SCENARIOS[order["scenario"]](**order["arguments"])
    except OrbitError as error:
        print(f"orbit: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    torch.set_num_threads(1)
    loaded = Embedder.load(MODEL)  # once; every fork has it
    pace = warm_up(loaded, 1, None)
    embed.load_embedder, embed.warm_up = _loaded(loaded), lambda *_: pace
    embedding_run.Pool, embedding_run.ray_session = InlinePool, no_ray  # type: ignore[misc,assignment]
    embedding_run.memory_there = embedding_run.largest_node = lambda: 1e9
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "start":
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = scenario(order)
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            print(pid, flush=True)
        else:
            _, status = os.waitpid(order["pid"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)


def _loaded(embedder: Embedder) -> Callable[..., Embedder]:
    from pipelines.faults import faultpoint

    def load(settings: Any, place: Any) -> Embedder:
        if settings.model_id != embedder.model_id:
            return Embedder.load(settings.model_folder)
        faultpoint("worker.load")
        return embedder

    return load


if __name__ == "__main__":
    main()
