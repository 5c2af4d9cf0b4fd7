"""The invariance audit on a sample of the user's own images, read back from INPUT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import OrbitError
from pipelines.index import Rows
from pipelines.originals import read_originals, spread_sample
from pipelines.report.redrawn import Redrawn, redraw
from pipelines.shards import ReadOptions
from pipelines.table import TableIdentity

if TYPE_CHECKING:
    from eqmodel import Embedder

CHANGED = 1e-3
"""An embedding this far from the stored one: the source has changed, or another machine computes
otherwise."""


@dataclass(frozen=True)
class Invariance:
    """``section`` is report.json's; ``worst`` are row numbers and pixels of the images that move
    most; ``turned`` (M, d) embeddings of copies under free angles, no rows of the index;
    ``redrawn``: what the model makes of the images, None where none was looked at."""

    section: Mapping[str, Any]
    worst: tuple[tuple[int, NDArray[Any]], ...] = ()
    turned: NDArray[np.float32] | None = field(default=None, repr=False)
    redrawn: Redrawn | None = field(default=None, repr=False)


def audit_sample(
    embedder: Embedder,
    rows: Rows,
    identity: TableIdentity,
    wanted: int = 256,
    read: ReadOptions | None = None,
    seed: int = 0,
) -> Invariance:
    """Audit at most ``wanted`` images; ``skipped`` says why when none can be read."""
    if not wanted or not len(rows):
        return _skipped("no image to audit" if wanted else "not asked for", embedder)
    sample = spread_sample(rows.table, wanted, seed)
    names = ["source", "source_etag", "item_etag", "key", "offset", "length"]
    records = dict(zip(sample, rows.records(sample, names), strict=True))
    try:
        found = read_all_originals(identity, records, read)
    except (OrbitError, OSError) as error:
        return _skipped(f"the images cannot be read back from INPUT: {error}", embedder)
    if not found:
        return _skipped(f"none of {len(sample)} images is in INPUT any more", embedder)
    return _audited(embedder, rows, found, seed)


def read_all_originals(
    identity: TableIdentity, records: Mapping[int, Mapping[str, Any]], read: ReadOptions | None
) -> dict[int, NDArray[Any]]:
    """``read_originals`` of every INPUT of the table."""
    found: dict[int, NDArray[Any]] = {}
    for name, url in identity.of_inputs().items():
        prefix = f"{name}/" if name else ""
        own = {
            row: {**record, "source": record["source"].removeprefix(prefix)}
            for row, record in records.items()
            if identity.owner(record["source"]) == name
        }
        if own:
            found |= read_originals(url, own, read, identity.buckets)
    return found


def _audited(
    embedder: Embedder, rows: Rows, found: Mapping[int, NDArray[Any]], seed: int
) -> Invariance:
    import torch

    from eqmodel import audit
    from eqmodel.auditing import turned_inputs

    numbers, images = list(found), list(found.values())
    section = audit(embedder, images, seed).as_dict()
    worst = tuple((numbers[i], images[i]) for i in section.pop("worst"))
    stored = np.asarray(rows.vectors[numbers])
    drift = np.linalg.norm(embedder.embed(images) - stored, axis=1)
    named = rows.records([row for row, _ in worst], ["source", "key", "image_id"])
    section["worst"] = [record | {"image_id": str(record["image_id"])} for record in named]
    section["stored_error"] = float(drift.max())
    section["num_differ_from_stored"] = int((drift > CHANGED).sum())
    angles = torch.from_numpy(np.random.default_rng(seed + 1).uniform(0, 360, len(images)))
    turned = turned_inputs(embedder, embedder.preprocess(images), angles.float())
    section |= {"skipped": None, "model": _promised(embedder)}
    return Invariance(section, worst, turned, redraw(embedder, rows, found))


def _skipped(reason: str, embedder: Embedder) -> Invariance:
    return Invariance({"skipped": reason, "num_images": 0, "model": _promised(embedder)})


def _promised(embedder: Embedder) -> dict[str, Any]:
    """What the model's own card says of itself, on its training data."""
    card = embedder.card
    names = ("invariance_error", "free_angle_rank1", "error_curve")
    return {name: card.get(name) for name in names}
