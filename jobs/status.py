"""`orbit status`: what a store holds, and which publication is live."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from eqmodel.errors import Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.flags import Store


@verb("orbit status s3://bucket/store")
def status(
    store: Store,
    watch: Annotated[
        bool, typer.Option("--watch", help="go on telling: the runs at work, and what they change")
    ] = False,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="with --watch: how often to look")
    ] = 5.0,
    as_json: Json = False,
) -> Any:
    """Tell what a store holds: models, counts, the live publication and its report."""
    from pipelines import open_store

    if watch:
        if as_json:
            raise Refused("found --watch with --json, which is one object; expected one of them")
        open_store(store)  # refused now rather than later
        return watched(store, every)
    found = open_store(store).status()
    return Answer(found, as_text(found))


def watched(store: str, every: float) -> Iterator[Answer]:
    """The status and the runs at work, each time they are other than before; until ctrl-C."""
    from pipelines import open_store

    told = None
    while True:
        opened = open_store(store)
        found = opened.status() | {"runs": [point(run) for run in opened.runs_at_work()]}
        if found != told:
            now = datetime.now(UTC).strftime("%F %T UTC")
            clear = "\033[2J\033[H" if sys.stdout.isatty() else ""
            yield Answer(found, f"{clear}{now}\n{as_text(found)}\n")
            told = found
        time.sleep(every)


def as_text(found: dict[str, Any]) -> str:
    """One fact per line; what is nested is told as `a.b`."""
    facts = flat(found)
    width = max((len(name) for name, _ in facts), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in facts)


def flat(found: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(name, value) pairs of nested objects, in their order."""
    pairs: list[tuple[str, str]] = []
    for name, value in found.items():
        if isinstance(value, dict):
            pairs += flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            pairs += [(prefix + name, point(entry)) for entry in value]
        elif isinstance(value, list):
            pairs.append((prefix + name, ", ".join(map(str, value)) or "none"))
        elif isinstance(value, float):
            pairs.append((prefix + name, f"{value:.4g}"))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs.append((prefix + name, f"{value:,}"))
        else:
            pairs.append((prefix + name, "-" if value is None else str(value)))
    return pairs


def point(entry: dict[str, Any]) -> str:
    """One point of a curve on a line."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in entry.items()
    )


if __name__ == "__main__":
    run_alone(status)
