"""Drift: what changed between the publication before and this one, and what that means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.clusters import ALONE
from pipelines.sampling import steady_sample
from pipelines.two_sample import METHOD, energy_distance

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

SAMPLE, FEWEST = 2_000, 20
"""Embeddings compared at most of each side; fewer than FEWEST tell nothing."""
EXPECTED, MANY, FAR = 0.01, 0.2, 0.15
"""Share of unfamiliar images by construction; from where on it, and the share of the largest
possible distance, are a finding. 500 new images at 2,000 clothes of Fashion-MNIST, d4-28-grey:
other clothes 0.6% and 0.001, at half the brightness 0.8% and 0.02, digits 100% and 0.09, inverted
clothes 20% and 0.20, noise 0% and 0.42: either figure alone would miss something."""
WORSE = 1.5
"""Times the reconstruction error in training, from where on it is a finding."""


@dataclass(frozen=True)
class Snapshot:
    """One publication as drift sees it: ids (N,) ascending, clusters (N,), digests (N,).

    ``vectors`` are embeddings that take row numbers, of which that of image i is ``rows[i]`` (i
    where ``rows`` is None); ``mean`` (d,) is their mean; None where they are not known.
    """

    publication: str
    ids: Ints
    clusters: Ints
    digests: pa.ChunkedArray | pa.Array
    mean: NDArray[np.float64] | None = None
    vectors: Any = None
    rows: Ints | None = None

    def embeddings(self, places: Ints) -> Vectors:
        """Those of some images (K, d), by their place in ``ids``."""
        rows = places if self.rows is None else self.rows[places]
        return np.asarray(self.vectors[rows], np.float32)


def compare(before: Snapshot | None, now: Snapshot) -> dict[str, Any]:
    """The ``drift`` section of report.json; ``previous`` is None for a first publication.

    An image is known by its image_id, which it keeps when its content changes: added and removed
    are ids, changed is the same id with another digest. ``mean_shift`` is the length of the
    difference of the two mean embeddings, in units of an embedding's length.
    """
    if before is None:
        return {"previous": None}
    common, there, here = np.intersect1d(before.ids, now.ids, return_indices=True)
    same = pc.equal(before.digests.take(pa.array(there)), now.digests.take(pa.array(here)))
    kept = pc.fill_null(same, False).to_numpy(zero_copy_only=False)
    arrived = np.ones(len(now.ids), bool)
    arrived[here[kept]] = False
    sizes = _sizes(before.clusters, now.clusters)
    return {
        "previous": before.publication,
        "num_before": len(before.ids),
        "num_now": len(now.ids),
        "num_added": len(now.ids) - len(common),
        "num_removed": len(before.ids) - len(common),
        "num_changed": len(common) - int(kept.sum()),
        "num_unchanged": int(kept.sum()),
        "num_moved_cluster": int((before.clusters[there] != now.clusters[here]).sum()),
        "mean_shift": _mean_shift(before, now),
        "method": METHOD,
        "distribution": _distribution(before, now),
        "arrivals": _arrivals(before, now, np.flatnonzero(arrived)),
        "clusters": sizes,
        "new_clusters": [row["cluster"] for row in sizes if row["state"] == "new"],
        "gone_clusters": [row["cluster"] for row in sizes if row["state"] == "gone"],
    }


def _sizes(before: Ints, now: Ints) -> list[dict[str, Any]]:
    old = Counter(before[before != ALONE].tolist())
    new = Counter(now[now != ALONE].tolist())
    return [
        {
            "cluster": int(cluster),
            "before": old[cluster],
            "now": new[cluster],
            "changed": old[cluster] != new[cluster],
            "state": "new" if cluster not in old else "gone" if cluster not in new else "kept",
        }
        for cluster in sorted(old.keys() | new.keys())
    ]


def _mean_shift(before: Snapshot, now: Snapshot) -> float | None:
    if before.mean is None or now.mean is None:
        return None
    return round(float(np.linalg.norm(before.mean - now.mean)), 5)


def _distribution(before: Snapshot, now: Snapshot) -> dict[str, Any] | None:
    """The two collections against each other.

    Both samples hold the same images as far as both collections do, so that the distance of an
    unchanged collection is 0; that makes the threshold, meant for samples drawn apart, cautious.
    """
    if before.vectors is None or now.vectors is None:
        return None
    if min(len(before.ids), len(now.ids)) < FEWEST:
        return None
    first = before.embeddings(steady_sample(before.ids, SAMPLE))
    second = now.embeddings(steady_sample(now.ids, SAMPLE))
    return energy_distance(first, second).as_dict()


def _arrivals(before: Snapshot, now: Snapshot, arrived: Ints) -> dict[str, Any] | None:
    """What is new, by id or by content, against all that was there before.

    Unfamiliar is a new image whose nearest earlier one (of a sample) is farther than that of all
    but EXPECTED of the earlier images themselves.
    """
    if before.vectors is None or now.vectors is None:
        return None
    if min(len(before.ids), len(arrived)) < FEWEST:
        return None
    shown = arrived[steady_sample(now.ids[arrived], SAMPLE)]
    fresh, earlier = now.embeddings(shown), before.embeddings(steady_sample(before.ids, SAMPLE))
    among = earlier @ earlier.T
    np.fill_diagonal(among, -np.inf)
    limit = float(np.quantile(among.max(1), EXPECTED))
    unfamiliar = float(((fresh @ earlier.T).max(1) < limit - 1e-5).mean())
    return energy_distance(earlier, fresh).as_dict() | {
        "num_arrived": len(arrived),
        "unfamiliar_share": round(unfamiliar, 5),
        "unfamiliar_expected": EXPECTED,
        "unfamiliar_below": round(limit, 5),
    }


def judged(section: Mapping[str, Any], reconstruction: Mapping[str, Any] | None) -> dict[str, Any]:
    """The section with a ``verdict`` and a ``word`` on it, for people and for alerts.

    first, unchanged, alike, moved, or unfit: the model may no longer fit the data, as much of what
    is new is like nothing before, or as it draws these images much worse than those it was trained
    on.
    """
    reasons = _unfit(section.get("arrivals"), reconstruction)
    if reasons:
        word = f"The model may no longer fit: {'; '.join(reasons)}. Train one on these images."
        return {**section, "verdict": "unfit", "word": word}
    verdict, word = _moved(section)
    return {**section, "verdict": verdict, "word": word}


def _unfit(
    arrivals: Mapping[str, Any] | None, reconstruction: Mapping[str, Any] | None
) -> list[str]:
    reasons = []
    if arrivals is not None and arrivals["differs"]:
        if arrivals["unfamiliar_share"] >= MANY:
            reasons.append(
                f"{arrivals['unfamiliar_share']:.0%} of what is new is like nothing that was there "
                f"before ({EXPECTED:.0%} expected)"
            )
        elif arrivals["share"] >= FAR:
            reasons.append("what is new has little in common with what was there before")
    if reconstruction is not None and draws_worse(reconstruction):
        reasons.append(
            f"it redraws these images with an error of {reconstruction['error']:.2g}, those it was "
            f"trained on with {reconstruction['trained_error']:.2g}"
        )
    return reasons


def draws_worse(reconstruction: Mapping[str, Any]) -> bool:
    """Whether a model redraws enough images clearly worse than those it was trained on."""
    ratio = reconstruction["ratio"]
    return reconstruction["num_images"] >= FEWEST and ratio is not None and ratio > WORSE


def _moved(section: Mapping[str, Any]) -> tuple[str, str]:
    if section["previous"] is None:
        return "first", "The first publication of this model: nothing to compare with yet."
    if not any(section[f"num_{what}"] for what in ("added", "removed", "changed")):
        return "unchanged", "Nothing was added, removed or changed."
    whole, arrivals = section["distribution"], section["arrivals"]
    if arrivals is not None and arrivals["differs"]:
        return "moved", "What is new is distributed otherwise than what was there before."
    if whole is not None and whole["differs"]:
        return "moved", "The collection is distributed otherwise than before."
    if whole is None and arrivals is None:
        return "alike", "Too few images to say whether the distribution moved."
    return "alike", "The embeddings are distributed as before, as far as samples can tell."
