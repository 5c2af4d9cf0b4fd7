"""The index over the embeddings: its kinds, its measured recall, and the rows beside it.

The only package that imports faiss. An index answers with image_ids; the sidecar turns an
image_id into the row of ``ids.arrow`` and ``vectors.npy`` in which everything else lies.
"""

from pipelines.index.kinds import (
    EXACT_UP_TO,
    IndexSpec,
    OrbitIndex,
    build_index,
    choose_kind,
    kmeans,
    load_index,
)
from pipelines.index.neighbours import Neighbours, nearest_others
from pipelines.index.recall import Recall, exact_top, held_out_rows, measure_recall
from pipelines.index.sidecar import (
    ROWS_SCHEMA,
    Rows,
    Sidecar,
    collect,
    collected_columns,
    file_sha256,
)

__all__ = [
    "EXACT_UP_TO",
    "ROWS_SCHEMA",
    "IndexSpec",
    "Neighbours",
    "OrbitIndex",
    "Recall",
    "Rows",
    "Sidecar",
    "build_index",
    "choose_kind",
    "collect",
    "collected_columns",
    "exact_top",
    "file_sha256",
    "held_out_rows",
    "kmeans",
    "load_index",
    "measure_recall",
    "nearest_others",
]
