"""A run's metrics for Prometheus: as a text file, or pushed to a gateway.

A run ends and takes its process along, so it leaves gauges of itself: in ``--metrics-file``, which
node_exporter's textfile collector reads, or at a Pushgateway. Workers count in Ray's own metrics
while they work (``pool/meters.py``).
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqmodel.errors import OrbitError
from pipelines.errors import SettingsError
from pipelines.secrets import redacted
from pipelines.telemetry.logs import log

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from pipelines.summary import EmbedSummary
    from pipelines.table import PublicationRow

FILE, GATEWAY = "ORBIT_METRICS_FILE", "ORBIT_PUSHGATEWAY"
TIMEOUT_S = 10.0
SECONDS = ("startup_s", "steady_s", "commit_s", "elapsed_s")
IMAGES = ("seen", "embedded", "rejected", "added", "removed", "encoded")


@dataclass(frozen=True)
class MetricsPlace:
    """Where a run's metrics go: a file, a gateway, both, or nowhere."""

    file: Path | None = None
    gateway: str | None = None

    @classmethod
    def of(
        cls, file: str | Path | None, environment: Mapping[str, str] = os.environ
    ) -> MetricsPlace:
        """``file``, else ORBIT_METRICS_FILE; and ORBIT_PUSHGATEWAY. SettingsError for a file that
        cannot be written: asked for before any work."""
        named = file or environment.get(FILE) or None
        place = cls(None if named is None else Path(named), environment.get(GATEWAY) or None)
        folder = None if place.file is None else place.file.absolute().parent
        if folder is not None and not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise SettingsError(
                f"--metrics-file {place.file}: {folder} is no folder that can be written; "
                "name a file in one"
            )
        return place

    @property
    def wanted(self) -> bool:
        """Whether anybody asks for metrics."""
        return self.file is not None or self.gateway is not None

    def give(self, registry: CollectorRegistry, job: str) -> None:
        """Write the file whole, and push. A place that fails costs a line, not the run."""
        from prometheus_client import push_to_gateway, write_to_textfile

        try:
            if self.file is not None:
                write_to_textfile(str(self.file), registry)
            if self.gateway is not None:
                push_to_gateway(self.gateway, job, registry, timeout=TIMEOUT_S)
        except (OSError, ValueError) as error:
            log().line("metrics", "warning", message=f"metrics were not given: {error}")


def run_metrics(
    verb: str, store: str, summary: EmbedSummary | None, error: BaseException | None, began: float
) -> CollectorRegistry:
    """Gauges of one run that has ended, with the labels ``verb`` and ``store``.

    ``began``: seconds since 1970. A run that was refused has no summary and tells its exit code.
    """
    from prometheus_client import CollectorRegistry

    told = _Gauges(CollectorRegistry(), {"verb": verb, "store": redacted(store)})
    failure = error or (None if summary is None else summary.failure)
    told("start_timestamp_seconds", "When the run began.", began)
    told("end_timestamp_seconds", "When the run ended.", time.time())
    told("exit_code", "Exit code of the run.", _code(failure))
    told("success", "1 after a run that did all of its work.", failure is None)
    if summary is not None:
        _of_summary(told, summary)
    return told.registry


def publication_metrics(registry: CollectorRegistry, row: PublicationRow, store: str) -> None:
    """The gauges of the live publication, under the names the server gives them."""
    from prometheus_client import Gauge

    from pipelines.server.published import published_gauges

    for name, _, words, value in published_gauges(row):
        gauge = Gauge(name, words, ["store"], registry=registry)
        gauge.labels(store=redacted(store)).set(value)


class _Gauges:
    """Makes gauges orbit_run_<name>."""

    def __init__(self, registry: CollectorRegistry, labels: dict[str, str]) -> None:
        self.registry, self._labels = registry, labels

    def __call__(self, name: str, words: str, value: float | None, **labels: str) -> None:
        if value is not None:
            self.each(name, words, {tuple(labels.values()): value}, tuple(labels))

    def each(
        self, name: str, words: str, values: Mapping[tuple[str, ...], float], names: tuple[str, ...]
    ) -> None:
        """One gauge with a value for each combination of labels."""
        from prometheus_client import Gauge

        gauge = Gauge(f"orbit_run_{name}", words, [*self._labels, *names], registry=self.registry)
        for labels, value in values.items():
            gauge.labels(*self._labels.values(), *labels).set(float(value))


def _of_summary(told: _Gauges, summary: EmbedSummary) -> None:
    facts = summary.as_dict()
    words = "Images: seen, embedded, rejected are of the table, the others of the run."
    told.each("images", words, {(name,): facts[f"num_{name}"] for name in IMAGES}, ("kind",))
    told("read_bytes", "Bytes of the shards read.", sum(r.in_bytes for r in summary.landed))
    told("shards", "Shards embedded and committed.", len(summary.landed))
    told("damaged_shards", "Damaged shards in the table.", facts["num_damaged_shards"])
    rejected = sum(r.num_rejected for r in summary.landed)
    told("reject_share", "Rejected images of those the run saw.",
         rejected / summary.num_added if summary.num_added else None)  # fmt: skip
    told.each("seconds", "Seconds of the run, by part.",
              {(name.removesuffix("_s"),): facts[name] for name in SECONDS}, ("part",))  # fmt: skip
    phases: Counter[str] = Counter()
    for receipt in summary.landed:
        phases.update(receipt.seconds)
    told.each("shard_seconds", "Seconds in the workers, by phase, all shards together.",
              {(phase,): value for phase, value in phases.items()}, ("phase",))  # fmt: skip
    told("images_per_second", "Images encoded per second.", facts["images_per_s"])
    told("efficiency", "Share of what the machine can do.", facts["efficiency"])
    told("efficiency_total", "The same, of all the run's time.", facts["efficiency_total"])
    told("table_version", "Version of the embeddings table.", facts["table_version"])


def _code(failure: BaseException | None) -> int:
    if failure is None:
        return 0
    if isinstance(failure, KeyboardInterrupt):
        return 130
    return failure.exit_code if isinstance(failure, OrbitError) else 1


def live_row(store: Any) -> PublicationRow | None:
    """The live publication of a store, None when there is none or it cannot be read."""
    from pipelines.table import PublicationLog

    try:
        found = PublicationLog.open(store)
        return None if found is None else found.live()
    except OrbitError:
        return None
