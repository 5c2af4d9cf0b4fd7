"""k-means on a GPU where faiss-gpu is installed and there is one.

Only the clustering moves: codes are made and searched on the CPU, so an index file is the same kind
of file everywhere. What the GPU found is compared with the CPU before it is believed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("orbit.index")

AGREEMENT, COMPARED = 0.999, 1_000
TIE = 1e-4


def is_there() -> bool:
    """Whether this FAISS knows GPUs and sees one."""
    return hasattr(faiss, "StandardGpuResources") and int(faiss.get_num_gpus()) > 0


@contextmanager
def clustering(index: Any) -> Iterator[None]:
    """While this is open, training the index finds its centroids on all GPUs.

    Without a GPU nothing is different. One that fails, or that assigns otherwise than the CPU, is
    told in the log, and the CPU does it.
    """
    if not is_there() or not hasattr(index, "quantizer"):
        yield
        return
    try:
        flat = faiss.IndexFlat(int(index.d), index.metric_type)
        device = faiss.index_cpu_to_all_gpus(flat)
        agree = same_assignment(device, int(index.d), index.metric_type)
    except RuntimeError as error:
        log.warning("the GPU cannot be used for clustering, the CPU is: %s", error)
        agree = False
    if agree:
        index.clustering_index = device
    yield
    index.clustering_index = None


def same_assignment(device: Any, dim: int, metric: int) -> bool:
    """Whether the index on the device answers as one on the CPU does: by score, ties allowed."""
    chance = np.random.default_rng(0)
    points, queries = _unit(chance, 256, dim), _unit(chance, COMPARED, dim)
    host = faiss.IndexFlat(dim, metric)
    host.add(points)
    device.add(points)
    expected, _ = host.search(queries, 1)
    _, found = device.search(queries, 1)
    device.reset()
    scores = np.einsum("qd,qd->q", points[found[:, 0]], queries)
    share = float((scores >= expected[:, 0] - TIE).mean())
    if share < AGREEMENT:
        log.warning("the GPU agrees with the CPU on %.4f of the assignments; not used", share)
    return share >= AGREEMENT


def _unit(chance: np.random.Generator, num: int, dim: int) -> NDArray[np.float32]:
    made = chance.normal(size=(num, dim))
    unit: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype("f4")
    return unit
