"""The tables of a store: the only package that imports deltalake.

``EmbeddingTable`` holds one row per image seen, one Parquet file per shard version;
``PublicationLog`` holds one row per publication. Both are Delta tables, changed by one
atomic commit at a time and read at any version.
"""

from pipelines.table.data_files import RowGroups
from pipelines.table.embeddings import EmbeddingTable, live_model, models
from pipelines.table.publications import CANDIDATE, PublicationLog, PublicationRow, PublishedFile
from pipelines.table.records import (
    FORMAT_VERSION,
    MARKER,
    SCHEMA,
    Committed,
    Counts,
    KnownFile,
    Plan,
    Receipt,
    TableIdentity,
    file_statistics,
    shard_folder,
)

__all__ = [
    "CANDIDATE",
    "FORMAT_VERSION",
    "MARKER",
    "SCHEMA",
    "Committed",
    "Counts",
    "EmbeddingTable",
    "KnownFile",
    "Plan",
    "PublicationLog",
    "PublicationRow",
    "PublishedFile",
    "Receipt",
    "RowGroups",
    "TableIdentity",
    "file_statistics",
    "live_model",
    "models",
    "shard_folder",
]
