"""The index over the embeddings: its kinds, its measured recall, and the rows beside it.

The only package that imports faiss. An index answers with image_ids; the sidecar turns an
image_id into a row number, by which everything else is found.
"""

from pipelines.index.build import Asked, Parts, build_index
from pipelines.index.digests import file_sha256, files_sha256, known_sha256
from pipelines.index.kinds import EXACT_UP_TO, choose_kind
from pipelines.index.kmeans import kmeans
from pipelines.index.neighbours import Neighbours, nearest_others, nearest_vectors
from pipelines.index.recall import Recall, exact_top, held_out_rows, measure_recall
from pipelines.index.rows import (
    ROWS_SCHEMA,
    Rows,
    collect,
    collected_columns,
    with_etags,
)
from pipelines.index.searching import OrbitIndex
from pipelines.index.segment import Segment
from pipelines.index.sidecar import Sidecar
from pipelines.index.spec import ANSWERS, CLUSTERS, TRAINED, IndexSpec
from pipelines.index.storing import open_index
from pipelines.index.update import (
    Change,
    Decision,
    Previous,
    decide,
    find_change,
    fold_index,
    touched_sources,
    update_index,
    with_change,
)

__all__ = [
    "ANSWERS",
    "CLUSTERS",
    "EXACT_UP_TO",
    "ROWS_SCHEMA",
    "TRAINED",
    "Asked",
    "Change",
    "Decision",
    "IndexSpec",
    "Neighbours",
    "OrbitIndex",
    "Parts",
    "Previous",
    "Recall",
    "Rows",
    "Segment",
    "Sidecar",
    "build_index",
    "choose_kind",
    "collect",
    "collected_columns",
    "decide",
    "exact_top",
    "file_sha256",
    "files_sha256",
    "find_change",
    "fold_index",
    "held_out_rows",
    "kmeans",
    "known_sha256",
    "measure_recall",
    "nearest_others",
    "nearest_vectors",
    "open_index",
    "touched_sources",
    "update_index",
    "with_change",
    "with_etags",
]
