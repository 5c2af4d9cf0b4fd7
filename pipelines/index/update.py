"""Last night's index brought to tonight's table: what changed goes into a delta segment.

The base stays as it is, and so do its files. Its rows that are no more, or that changed, become
tombstones; what is new or changed is a delta segment over the same centroids, so that base and
delta together answer as one index of both would. When the change passes a tenth they are folded
into a new base; when the centroids no longer fit, a new index is trained (``decide``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.index.answers import Answers, truth_after
from pipelines.index.build import ADD_CHUNK, Asked, fit_of, measured
from pipelines.index.kinds import choose_kind
from pipelines.index.recall import Truth
from pipelines.index.rows import Rows, plain, write_array, write_table
from pipelines.index.searching import OrbitIndex
from pipelines.index.segment import Segment, Stacked
from pipelines.index.sidecar import Sidecar
from pipelines.index.spec import ANSWERS, TOMBSTONES, TRAINED, IndexSpec
from pipelines.index.storing import read_index

Numbers = NDArray[np.int64]

FOLD_FROM = 0.10
"""Share of the collection in delta and tombstones from which on they are folded in."""
GROWN = 2.0
DRIFTED = 1.10
"""A new index is trained when there are so many times the images of the training, or when their
mean 1 - score with the nearest centroid is so many times what it was then."""
MORE_PROBES = 2
"""Before recall counts as fallen, so many times the lists may be probed."""

_COMPARED = ("key", "source", "label", "digest", "item_etag", "offset", "length")


@dataclass(frozen=True)
class Previous:
    """The publication before, in local files that were checked: ``digests`` by file name."""

    spec: IndexSpec
    rows: Sidecar
    folder: Path
    digests: Mapping[str, str]

    def base(self, mapped: bool = True) -> Any:
        """The base of the index; one that is not mapped may be changed."""
        return read_index(self.folder / "index.faiss", None, self.spec, self.spec.base_num, mapped)

    @property
    def has_answers(self) -> bool:
        """Whether it keeps the exact answers of its base; an earlier Orbit's did not."""
        return ANSWERS in self.digests

    def answers(self) -> Answers:
        """The exact answers of its base."""
        return Answers.load(self.folder / ANSWERS)

    def trained(self) -> Any:
        """The same centroids without a vector."""
        return read_index(self.folder / TRAINED, None, self.spec, 0)


@dataclass(frozen=True)
class Change:
    """Rows ``added`` of ``fresh`` are new or differ; live rows ``gone`` of the previous sidecar are
    no more, or have their successor among the added."""

    fresh: Rows
    added: Numbers
    gone: Numbers


@dataclass(frozen=True)
class Decision:
    """``how``: updated, folded or retrained; and why."""

    how: str
    why: str


def touched_sources(before: Mapping[str, Any], now: Mapping[str, Any]) -> set[str]:
    """Sources whose file in the table is another than it was, or that are in one alone."""
    return {
        source
        for source in before.keys() | now.keys()
        if getattr(before.get(source), "path", None) != getattr(now.get(source), "path", None)
    }


def find_change(before: Sidecar, touched: Collection[str], fresh: Rows) -> Change | None:
    """What ``fresh``, all rows of the ``touched`` sources as they are now, changes.

    None when it cannot be told by image_id: two images share one (``salt``), here or before.
    """
    if _salted(fresh.table) or any(_salted(segment.table) for segment in before.segments):
        return None
    mine = np.flatnonzero(_of_sources(before, touched) & before.alive())
    known = before.rows_of(fresh.ids)
    here = np.flatnonzero(known >= 0)
    if not np.isin(known[here], mine).all():
        return None  # an image of another source has this id
    same = np.zeros(len(fresh), bool)
    for start in range(0, len(here), ADD_CHUNK):
        part = here[start : start + ADD_CHUNK]
        same[part] = _equal_rows(before, known[part], fresh, part)
    gone = np.setdiff1d(mine, known[same], assume_unique=True)
    return Change(fresh, np.flatnonzero(~same), gone)


def _salted(table: pa.Table) -> bool:
    return bool(pc.any(pc.not_equal(table["salt"], 0)).as_py())


def _of_sources(before: Sidecar, sources: Collection[str]) -> NDArray[np.bool_]:
    """(N,): whether a row is of one of the sources, looked up once for each name."""
    wanted = pa.array(sorted(sources), pa.string())
    parts = [np.zeros(0, bool)]
    for segment in before.segments:
        for chunk in segment.table["source"].chunks:
            named = pc.is_in(chunk.dictionary, value_set=wanted).to_numpy(zero_copy_only=False)
            parts.append(named[chunk.indices.to_numpy()])
    return np.concatenate(parts)


def _equal_rows(before: Sidecar, known: Numbers, fresh: Rows, here: Numbers) -> NDArray[np.bool_]:
    """Whether rows ``known`` are still what rows ``here`` of fresh are, embedding included."""
    same: NDArray[np.bool_] = (
        np.asarray(before.vectors[known]) == np.asarray(fresh.vectors[here])
    ).all(1)
    old = before.columns(known, _COMPARED)
    new = plain(fresh.table.select(list(_COMPARED)).take(pa.array(here)))
    for name in _COMPARED:
        alike = pc.fill_null(pc.equal(old[name], new[name]), False)
        both_null = pc.and_(pc.is_null(old[name]), pc.is_null(new[name]))
        same &= pc.or_(alike, both_null).to_numpy()
    return same


def decide(
    previous: Previous, change: Change, memory: int | None = None, kind: str | None = None
) -> Decision:
    """Whether the change becomes a delta, is folded in, or asks for a new index; ``kind`` is the
    factory string asked for, else it follows from count and ``memory``."""
    spec, added, gone = previous.spec, len(change.added), len(change.gone)
    num = len(previous.rows) - gone + added
    wanted = kind or choose_kind(num, spec.dim, memory)
    if _codes(wanted) != _codes(spec.kind):
        return Decision("retrained", f"{wanted} fits {num:,} images, {spec.kind} was built")
    if not spec.nlist:
        return Decision("retrained", "an exact index is made anew")
    if TRAINED not in previous.digests:
        return Decision("retrained", "an earlier Orbit made the index before")
    if num >= GROWN * spec.trained_num:
        return Decision(
            "retrained", f"{num:,} images, trained when there were {spec.trained_num:,}"
        )
    moved = len(previous.rows.dead) + spec.delta_num + added + gone
    if moved > FOLD_FROM * num:
        return Decision("folded", f"{moved:,} changes since the base was made, {num:,} images")
    return Decision("updated", f"{added:,} rows added, {gone:,} removed")


def _codes(factory: str) -> str:
    return factory.rpartition(",")[2] if factory.startswith("IVF") else factory


def with_change(previous: Sidecar, change: Change, folder: Path) -> Sidecar:
    """The rows after the change; writes the delta's rows and the tombstones to ``folder``."""
    num_base, num_fresh = len(previous.base), len(change.fresh)
    dead = np.union1d(previous.dead, change.gone[change.gone < num_base])
    old = previous.delta or previous.base.emptied()
    gone = change.gone[change.gone >= num_base] - num_base
    kept = np.setdiff1d(np.arange(len(old)), gone, assume_unique=True)
    rows = np.concatenate([change.added, num_fresh + kept])
    table = pa.concat_tables([change.fresh.table, old.table]).unify_dictionaries()
    table = table.take(pa.array(rows))
    order = np.argsort(table["image_id"].to_numpy(), kind="stable")
    write_table(folder / "delta.arrow", table.take(pa.array(order)))
    for name, arrays in (
        ("delta-vectors.npy", (change.fresh.vectors, old.vectors)),
        ("delta-poses.npy", (change.fresh.poses, old.poses)),
    ):
        write_array(folder / name, Stacked(arrays), rows[order])
    np.save(folder / TOMBSTONES, dead)
    delta = Segment.open(folder, ("delta.arrow", "delta-vectors.npy", "delta-poses.npy"))
    return Sidecar(previous.base, delta, dead)


def update_index(
    previous: Previous, rows: Sidecar, asked: Asked, spec: IndexSpec
) -> tuple[OrbitIndex, IndexSpec, str | None]:
    """The index of base, delta and tombstones, with its recall; and why it will not do, or None.

    ``rows`` as ``with_change`` made them; ``spec`` has tonight's table version.
    """
    before, delta = previous.spec, _with_rows(previous.trained(), rows.delta)
    index = OrbitIndex(
        previous.base(), before.nprobe, before.factor, rows, delta, rows.base.ids[rows.dead]
    )
    spec = _carried_over(spec, before, rows)
    truth = truth_after(previous.answers(), rows, asked.seed) if previous.has_answers else None
    return _judged(index, rows, asked, spec, before, truth)


def fold_index(
    previous: Previous,
    rows: Sidecar,
    folded: Rows,
    asked: Asked,
    spec: IndexSpec,
    answers: Path | None = None,
) -> tuple[OrbitIndex, IndexSpec, str | None]:
    """One base of base, delta and tombstones, with the same centroids; as ``update_index``.

    ``folded`` are ``rows`` gathered into one segment; its exact answers are written to ``answers``.
    """
    base, before = previous.base(mapped=False), previous.spec
    if len(rows.dead):
        base.remove_ids(rows.base.ids[rows.dead])
    base.merge_from(_with_rows(previous.trained(), rows.delta), 0)
    index = OrbitIndex(base, before.nprobe, before.factor, folded)
    whole = Sidecar(Segment.of(folded))
    found = Answers.find(folded.vectors, *asked.measuring().queries(folded.vectors))
    if answers is not None:
        found.save(answers)
    truth = found.truth(len(folded))
    return _judged(index, whole, asked, _carried_over(spec, before, whole), before, truth)


def _with_rows(index: Any, segment: Segment | None) -> Any:
    if segment is None:
        return index
    for start in range(0, len(segment), ADD_CHUNK):
        part = slice(start, start + ADD_CHUNK)
        index.add_with_ids(
            np.ascontiguousarray(segment.vectors[part], np.float32), segment.ids[part]
        )
    return index


def _carried_over(spec: IndexSpec, before: IndexSpec, rows: Sidecar) -> IndexSpec:
    return replace(
        spec,
        kind=before.kind,
        num=len(rows),
        nlist=before.nlist,
        trained_num=before.trained_num,
        fit=before.fit,
        curve=before.curve,
        base_num=len(rows.base),
        delta_num=0 if rows.delta is None else len(rows.delta),
        num_dead=len(rows.dead),
    )


def _judged(
    index: OrbitIndex,
    rows: Sidecar,
    asked: Asked,
    spec: IndexSpec,
    before: IndexSpec,
    truth: Truth | None,
) -> tuple[OrbitIndex, IndexSpec, str | None]:
    """Whether the centroids still fit, and whether recall still holds with up to twice the lists
    that were probed before; without a ``truth`` it is found by a pass over all embeddings."""
    alive = rows.alive()
    fit = fit_of(index.base, rows, asked.seed, np.flatnonzero(alive))
    if before.fit and fit > DRIFTED * before.fit:
        why = f"1 - score with the centroids is {fit:.4f} on average, {before.fit:.4f} in training"
        return index, spec, why
    truth = truth or asked.measuring().truth(rows.vectors, alive)
    most = min(index.nlist, MORE_PROBES * before.nprobe)
    spec = measured(index, rows, spec, truth, asked, most)
    recall = float(spec.recall["recall"])
    if recall < asked.target:
        return index, spec, f"recall fell to {recall:.4f} with {most} of {index.nlist} lists"
    return index, spec, None
