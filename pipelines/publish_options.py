"""How a publication is made: what `orbit run`, `orbit index` and `orbit report` can choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.clusters import METHODS
from pipelines.duplicates import DuplicateOptions
from pipelines.errors import SettingsError
from pipelines.indexing import IndexOptions
from pipelines.report.map import MAX_POINTS, POINTS
from pipelines.shards import ReadOptions


@dataclass(frozen=True)
class PublishOptions:
    """How to publish. ``clusters`` None: chosen; ``clustering``: kmeans or density; ``recall``
    asked for at 10; ``map_points`` at most MAX_POINTS; ``threads`` 0: all. SettingsError for what
    does not go together.

    ``force`` publishes a version that is live already, and builds its index anew. Without
    ``go_live`` another model's publication stays live, and this one is a candidate. For
    ``index_memory`` (bytes), ``index_kind`` and ``index_ray`` see IndexOptions. ``run`` is the
    summary of the run that embedded (``EmbedSummary.as_dict``), for throughput and efficiency;
    ``read`` how INPUT's columns are called, for the audit of ``audit_images`` originals.
    """

    clusters: int | None = None
    clustering: str = "kmeans"
    recall: float = 0.99
    allow_low_recall: bool = False
    index_memory: int | None = None
    index_kind: str | None = None
    index_ray: str | None = None
    duplicates: DuplicateOptions = field(default_factory=DuplicateOptions)
    audit_images: int = 256
    map_points: int = POINTS
    threads: int = 0
    seed: int = 0
    device: str = "cpu"
    force: bool = False
    go_live: bool = True
    read: ReadOptions = field(default_factory=ReadOptions)
    run: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clustering not in METHODS:
            raise SettingsError(f"clustering '{self.clustering}': expected {' or '.join(METHODS)}")
        if self.clustering == "density" and self.clusters is not None:
            raise SettingsError(
                f"found {self.clusters} clusters with clustering by density, which finds their "
                "number itself; expected one of the two"
            )
        if not 0 <= self.map_points <= MAX_POINTS:
            raise SettingsError(
                f"found {self.map_points:,} points for the map, expected {MAX_POINTS:,} at most"
            )

    @property
    def index(self) -> IndexOptions:
        """What the index is told."""
        return IndexOptions(
            recall=self.recall,
            allow_low_recall=self.allow_low_recall,
            memory=self.index_memory,
            kind=self.index_kind,
            rebuild=self.force,
            ray=self.index_ray,
            threads=self.threads,
            seed=self.seed,
        )
