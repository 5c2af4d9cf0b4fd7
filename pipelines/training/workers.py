"""Training by several workers of Ray Train: each reads a part, gradients are averaged (DDP).

After every epoch the leader's state is a checkpoint of the run. When a worker dies, Ray Train
starts all of them again, and they go on from it; so does the same command after its driver died.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqmodel.checkpoint import CARD, read_card
from eqmodel.errors import OrbitError, Refused, TrainingError
from eqmodel.training import EpochReport, TrainConfig, train
from pipelines.pool import ray_session
from pipelines.training.reading import Part, read_images

if TYPE_CHECKING:
    from ray.train import Checkpoint
    from ray.util.queue import Queue

    from pipelines.batch import Progress

MIN_IMAGES = 32
MAX_FAILURES = 5
"""Deaths of workers, in all, after which a training is given up."""


@dataclass(frozen=True)
class Training:
    """What is trained, and by whom. ``shared``: a folder or URL that all machines reach."""

    source: str
    out: Path
    config: TrainConfig
    workers: int
    cpus_per_worker: float = 1.0
    ray: str = "local"
    shared: str | None = None
    limit: int | None = None
    largest_side: int = 512

    @property
    def name(self) -> str:
        """The same for the same training, so that it is taken up again."""
        told = json.dumps([self.source, asdict(self.config), self.workers, self.limit], default=str)
        return f"orbit-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

    @property
    def place(self) -> Path:
        """The folder beside the model that is there while it is trained."""
        return Path(f"{self.out}.training")


def train_on_workers(
    training: Training, progress: Progress, epochs: Callable[[EpochReport], None]
) -> dict[str, Any]:
    """Train, write the checkpoint to ``out``; its card, with num_images of all workers.

    Raises Refused for images that do not fit, TrainingError when the workers failed too often.
    """
    import ray.train
    from ray.util.queue import Queue

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    needed = int(training.workers * training.cpus_per_worker + 0.999)
    progress("starting workers", 0, training.workers)
    with ray_session(training.ray, needed):
        heard = _Ears(Queue(actor_options={"num_cpus": 0}), progress, epochs)
        with heard:
            try:
                result = _trainer(training, heard.queue).fit()
            except ray.train.TrainingFailedError as error:
                raise heard.refusal or _failed(error) from error
        if heard.refusal is not None:
            raise heard.refusal
        if result.checkpoint is None:
            raise TrainingError("the workers left no model; run again to go on")
        _fetch(result.checkpoint, training.out)
    shutil.rmtree(training.place, ignore_errors=True)
    document = read_card(training.out)
    card: dict[str, Any] = document["card"] | {"model_id": document["model_id"]}
    return card | {"num_images": heard.num_images or card["num_train_images"]}


def _trainer(training: Training, queue: Queue) -> Any:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpu = training.config.device == "cuda"
    resources = {"CPU": training.cpus_per_worker} | ({"GPU": 1.0} if gpu else {})
    return TorchTrainer(
        _work,
        train_loop_config={"training": training, "queue": queue},
        scaling_config=ScalingConfig(
            num_workers=training.workers, use_gpu=gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=training.name,
            storage_path=training.shared or str(training.place / "runs"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )


def _work(told: dict[str, Any]) -> None:
    """What each worker does; the same in all of them, in step."""
    import ray.train
    import torch
    from ray.train import Checkpoint

    from eqmodel.peers import Peers

    training, queue = told["training"], told["queue"]
    torch.set_num_threads(max(1, int(training.cpus_per_worker)))
    peers = Peers.here()
    images = _own_images(training, Part(peers.rank, peers.size), queue)
    all_images = round(peers.mean(len(images)) * peers.size)
    with tempfile.TemporaryDirectory(prefix="orbit-train-") as scratch:
        model, state = Path(scratch, "model"), Path(scratch, "model.training")
        before = ray.train.get_checkpoint()
        if before is not None:
            with before.as_directory() as found:
                shutil.copytree(found, state)
        if (state / CARD).exists():  # it was finished, and its driver died
            return

        def report(epoch: EpochReport) -> None:
            kept = Checkpoint.from_directory(str(state)) if peers.leads else None
            ray.train.report(asdict(epoch), checkpoint=kept)
            if peers.leads:
                queue.put(("epoch", asdict(epoch)))

        if peers.fewest(len(images)) < MIN_IMAGES:
            if peers.leads:
                reason = (
                    f"{training.source} gave {all_images} readable images for {peers.size} "
                    f"workers, expected {MIN_IMAGES} for each at least"
                )
                queue.put(("refused", reason))
            return
        try:
            train(images, model, training.config, progress=report,
                  source=training.source, peers=peers)  # fmt: skip
        except Refused as error:
            queue.put(("refused", str(error)))
            return
        if peers.leads:
            queue.put(("images", all_images))
        ray.train.report({}, Checkpoint.from_directory(str(model)) if peers.leads else None)


def _own_images(training: Training, part: Part, queue: Queue) -> Any:
    """This worker's part, stored on its own machine."""

    def told(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        if part.number == 0:
            queue.put(("reading", (stage, done, total, note)))

    near = training.place.parent.is_dir()
    base = training.place if near else Path(tempfile.gettempdir(), training.name)
    return read_images(
        training.source,
        base / f"images-{part.number}-of-{part.of}",
        told,
        limit=training.limit,
        seed=training.config.seed,
        largest_side=training.largest_side,
        part=part,
    )


def _fetch(checkpoint: Checkpoint, out: Path) -> None:
    """The finished model, whole or not there."""
    fresh = Path(f"{out}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    with checkpoint.as_directory() as found:
        shutil.copytree(found, fresh)
    if not (fresh / CARD).exists():
        shutil.rmtree(fresh)
        raise TrainingError("the workers ended without a model; run again to go on")
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)


def _failed(error: BaseException) -> OrbitError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return TrainingError(
        f"training was given up after {MAX_FAILURES} failures of workers "
        f"({(lines or ['no reason told'])[-1].strip()[:200]}); run again to go on from the last "
        "epoch"
    )


class _Ears:
    """Hears what the leader tells while the driver waits for the end."""

    def __init__(
        self, queue: Queue, progress: Progress, epochs: Callable[[EpochReport], None]
    ) -> None:
        self.queue, self.num_images = queue, 0
        self.refusal: OrbitError | None = None
        self._progress, self._epochs = progress, epochs
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Ears:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(10)
        with suppress(Exception):
            self._hear()
            self.queue.shutdown()

    def _listen(self) -> None:
        while not self._over.wait(0.5):
            with suppress(Exception):  # the queue's actor may not be there yet, or no longer
                self._hear()

    def _hear(self) -> None:
        for kind, value in self.queue.get_nowait_batch(self.queue.qsize()):
            if kind == "epoch":
                self._epochs(EpochReport(**value))
            elif kind == "reading":
                self._progress(*value)
            elif kind == "refused":
                self.refusal = Refused(value)
            elif kind == "images":
                self.num_images = value
