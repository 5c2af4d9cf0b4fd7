"""The metrics that a run leaves behind: `--metrics-file`, and the gateway of the environment."""

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from eqmodel.errors import OrbitError

if TYPE_CHECKING:
    from pipelines.summary import EmbedSummary

MetricsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="write the run's metrics there, for node_exporter's textfile collector"
    ),
]


class Metered:
    """Tells a run's metrics when the ``with`` ends, whatever its end; ``note`` the summary."""

    def __init__(self, verb: str, store: str, file: Path | None) -> None:
        from pipelines.telemetry.metrics import MetricsPlace

        self._place = MetricsPlace.of(file)
        self._verb, self._store, self._began = verb, store, time.time()
        self._summary: EmbedSummary | None = None

    def __enter__(self) -> "Metered":
        return self

    def note(self, summary: "EmbedSummary") -> None:
        """What the run came to."""
        self._summary = summary

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self._place.wanted:
            return
        from pipelines.storage import Folder
        from pipelines.telemetry.metrics import live_row, publication_metrics, run_metrics

        registry = run_metrics(self._verb, self._store, self._summary, error, self._began)
        with suppress(OrbitError):
            row = live_row(Folder(self._store))
            if row is not None:
                publication_metrics(registry, row, self._store)
        self._place.give(registry, f"orbit-{self._verb}")
