"""What a run says of itself at the end, under the names of the command's JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from eqmodel.errors import OrbitError
from pipelines.efficiency import Ideal, core_us, ratio
from pipelines.table import Counts, Receipt


@dataclass
class Clock:
    """Seconds of a run, each part apart: filled in while it runs."""

    startup_s: float = 0.0
    steady_s: float = 0.0
    commit_s: float = 0.0
    elapsed_s: float = 0.0


@dataclass(frozen=True)
class Planned:
    """How many shards are new, changed, gone and unchanged, and the bytes of the first two."""

    num_added: int
    num_changed: int
    num_vanished: int
    num_unchanged: int
    num_bytes: int

    @property
    def nothing(self) -> bool:
        """True when the table already says what the listing says."""
        return not (self.num_added or self.num_changed or self.num_vanished)


@dataclass(frozen=True)
class EmbedSummary:
    """The end of ``embed_input``.

    ``counts`` are of the whole table after the run; ``landed`` are the receipts that this run
    committed. ``failure`` is the error to exit with although what is good was committed.
    """

    model_id: str
    table_version: int | None
    counts: Counts
    planned: Planned
    landed: tuple[Receipt, ...] = ()
    num_removed: int = 0
    clock: Clock = field(default_factory=Clock)
    ideal: Ideal | None = None
    cores: float = 0.0
    dry_run: bool = False
    failure: OrbitError | None = None

    @property
    def num_added(self) -> int:
        """Images in the rows that this run added."""
        return sum(r.num_embedded + r.num_rejected for r in self.landed)

    @property
    def num_encoded(self) -> int:
        """Of them, those that went through the network."""
        return sum(r.num_encoded for r in self.landed)

    @property
    def images_per_s(self) -> float | None:
        """Encoded images per second between the first shard handed out and the last receipt."""
        encoded = self.num_encoded
        return encoded / self.clock.steady_s if encoded and self.clock.steady_s > 0 else None

    def _core_us(self) -> dict[str, float] | None:
        spent = [receipt.core_s for receipt in self.landed]
        return core_us(spent, self.num_encoded, self.cores, self.clock.steady_s)

    def as_dict(self) -> dict[str, Any]:
        """The fields of ``orbit embed --json``."""
        best = self.ideal if self.num_encoded else None
        ideal_s = None if best is None else best.ideal_s
        fields: dict[str, Any] = {
            "num_seen": self.counts.num_seen,
            "num_embedded": self.counts.num_embedded,
            "num_rejected": self.counts.num_rejected,
            "num_added": self.num_added,
            "num_removed": self.num_removed,
            "num_encoded": self.num_encoded,
            "num_damaged_shards": self.counts.num_damaged_shards,
            "images_per_s": self.images_per_s,
            "efficiency": ratio(ideal_s, self.clock.steady_s),
            "efficiency_total": ratio(ideal_s, self.clock.elapsed_s),
            "startup_s": self.clock.startup_s,
            "steady_s": self.clock.steady_s,
            "commit_s": self.clock.commit_s,
            "elapsed_s": self.clock.elapsed_s,
            "limit": None if best is None else best.limit,
            "fetch_per_s": None if best is None else best.fetch_per_s,
            "decode_per_s": None if best is None else best.decode_per_s,
            "model_per_s": None if best is None else best.model_per_s,
            "core_us": self._core_us(),
            "model_id": self.model_id,
            "table_version": self.table_version,
        }
        if self.dry_run:
            fields["dry_run"] = True
            fields["plan"] = {**vars(self.planned)}
        return fields


@dataclass(frozen=True)
class RunSummary:
    """The end of ``run_input``: the embedding and the publication that is live after it.

    ``live`` is false for one of a new model that waits to be made live.
    """

    embed: EmbedSummary
    recall_at_10: float | None = None
    publication: str | None = None
    report: str | None = None
    live: bool = True

    @property
    def failure(self) -> OrbitError | None:
        """The error to exit with, after what is good was committed and published."""
        return self.embed.failure

    def as_dict(self) -> dict[str, Any]:
        """The fields of ``orbit run --json``; ``live`` only where it is false."""
        return self.embed.as_dict() | {
            "recall_at_10": self.recall_at_10,
            "publication": self.publication,
            "report": self.report,
            **({} if self.live else {"live": False}),
        }
