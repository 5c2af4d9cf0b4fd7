"""What ``index.json`` says of an index, and what a loaded one must agree with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.errors import ArtifactError

BASE_FILES = ("index.faiss", "ids.arrow", "vectors.npy", "poses.npy")
"""The base segment: shared by every publication until the next fold."""
DELTA_FILES = ("delta.faiss", "delta.arrow", "delta-vectors.npy", "delta-poses.npy")
TRAINED = "trained.faiss"
"""The centroids of the base without a vector; an exact index has none."""
ANSWERS = "answers.npz"
"""The exact answers in the base that recall is measured by; an exact index has none."""
TOMBSTONES = "tombstones.npy"
CLUSTERS = "clusters.npy"
"""int32, the cluster of each row of the base and then of the delta; where it is missing, the
column ``cluster`` of ``ids.arrow`` says it."""


@dataclass(frozen=True)
class IndexSpec:
    """One index: a base segment, and since its last fold a delta segment and tombstones.

    ``num`` live vectors of ``dim`` values = ``base_num`` - ``num_dead`` + ``delta_num``.
    ``nprobe`` lists are probed; ``factor`` times k candidates of a compressed kind are compared
    again by their stored embeddings. ``curve`` is recall against time while both were tuned; empty
    for an exact index. ``trained_num`` vectors were there when it was trained, and ``fit`` was
    then the mean of 1 - score with the nearest centroid. ``how`` and ``why`` tell what the last
    publication did: built, updated, folded or retrained.
    """

    kind: str
    num: int
    dim: int
    model_id: str
    table_version: int
    metric: str = "inner_product"
    nlist: int = 0
    nprobe: int = 0
    factor: int = 1
    recall: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None
    curve: tuple[Mapping[str, float], ...] = ()
    trained_num: int = 0
    fit: float = 0.0
    base_num: int = 0
    delta_num: int = 0
    num_dead: int = 0
    how: str = "built"
    why: str = ""
    index_bytes: int = 0
    format_version: int = 2

    @property
    def has_delta(self) -> bool:
        """Whether something was changed since the base was made."""
        return bool(self.delta_num or self.num_dead)

    @property
    def files(self) -> tuple[str, ...]:
        """The files, by name, that the index and its rows are read from."""
        changed = (*DELTA_FILES, TOMBSTONES) if self.has_delta else ()
        return (*BASE_FILES, *changed)

    @property
    def base_files(self) -> tuple[str, ...]:
        """The files that a later publication may name again."""
        return (*BASE_FILES, TRAINED, ANSWERS) if self.nlist else BASE_FILES

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"curve": [dict(point) for point in self.curve]}

    def facts(self) -> dict[str, Any]:
        """What ``orbit status`` tells of the index."""
        names = ("kind", "nlist", "nprobe", "factor", "target", "how", "why", "index_bytes")
        counted = ("base_num", "delta_num", "num_dead")
        return {
            **{name: getattr(self, name) for name in (*names, *counted)},
            "recall": self.recall.get("recall"),
            "num_queries": self.recall.get("num_queries"),
            "curve": [dict(point) for point in self.curve],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> IndexSpec:
        """The reverse. ArtifactError when fields are missing or of a newer format."""
        newest = cls.format_version
        if isinstance(found := stored.get("format_version"), int) and found > newest:
            raise ArtifactError(
                f"index.json has format {found}, this Orbit knows up to {newest}; use a newer Orbit"
            )
        try:
            spec = cls(
                **{
                    "base_num": stored.get("num", 0),  # format 1 had a base alone
                    **stored,
                    "curve": tuple(stored.get("curve", ())),
                }
            )
        except TypeError as error:
            raise ArtifactError(
                f"index.json is not one of this Orbit's ({error}); publish again"
            ) from error
        return spec
