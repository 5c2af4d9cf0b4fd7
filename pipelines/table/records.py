"""What the embeddings table is made of: its columns, and the values that pass in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipelines.shards import Shard

FORMAT_VERSION = 1
INPUTS = "orbit.inputs"
MARKER = "!"
"""Keys that begin with this are ours (``!empty``, ``!damaged``): no image, in no count."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_etag", pa.string(), nullable=False),
        pa.field("item_etag", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("digest", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("label", pa.string()),
        pa.field("embedding", pa.list_(pa.field("element", pa.float32()))),
        pa.field("pose_code", pa.binary()),
        pa.field("thumbnail", pa.binary()),
        pa.field("error", pa.string()),
    ]
)
"""One row per image seen. ``digest`` is null on our own marker rows and on no other."""


@dataclass(frozen=True)
class TableIdentity:
    """What never changes in one embeddings table; written into its configuration at creation."""

    model_id: str
    input_url: str
    buckets: int
    dim: int
    group: str
    format_version: int = FORMAT_VERSION
    inputs: tuple[tuple[str, str], ...] = ()
    """Further inputs (name, URL): their sources begin with the name and a slash."""

    def configuration(self) -> dict[str, str]:
        """As Delta table properties: every value a string, every key ``orbit.*``."""
        facts = {f"orbit.{name}": str(value) for name, value in vars(self).items()}
        del facts["orbit.inputs"]
        return facts | ({INPUTS: json.dumps(dict(self.inputs))} if self.inputs else {})

    def name_of(self, url: str) -> str | None:
        """The name of an input, "" of the first one; None when it is none of the table's."""
        names = [name for name, known in self.inputs if known == url]
        return "" if url == self.input_url else names[0] if names else None

    def owner(self, source: str) -> str:
        """The name of the input that a source is of, "" for the first one."""
        name, slash, _ = source.partition("/")
        return name if slash and name in dict(self.inputs) else ""

    def of_inputs(self) -> dict[str, str]:
        """URL by name, the first input under ""."""
        return {"": self.input_url} | dict(self.inputs)

    @classmethod
    def from_configuration(cls, configuration: Mapping[str, str | None]) -> TableIdentity:
        """The reverse; KeyError or ValueError when the table is not one of ours."""
        found = {k[len("orbit.") :]: v for k, v in configuration.items() if v is not None}
        return cls(
            model_id=found["model_id"],
            input_url=found["input_url"],
            buckets=int(found["buckets"]),
            dim=int(found["dim"]),
            group=found["group"],
            format_version=int(found["format_version"]),
            inputs=tuple(json.loads(found.get("inputs", "{}")).items()),
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """A worker's word that one shard's Parquet file lies in the store.

    ``num_rows`` are the file's rows, marker rows included; ``num_embedded`` and
    ``num_rejected`` count images; ``num_encoded`` of them went through the network, the rest
    was carried over. ``seconds`` are per phase (fetch, decode, encode, write, upload); ``core_s``
    the same in time on cores, and ``whole`` all that the worker took since its last receipt.
    Believed only once the file it names is seen with this size and digest
    (``EmbeddingTable.holds``); ``md5`` spares reading it where the storage tells that.
    """

    source: str
    etag: str
    path: str
    size: int
    sha256: str
    num_rows: int
    num_embedded: int
    num_rejected: int
    num_encoded: int
    damaged: bool
    stats: str
    worker: str
    pid: int
    in_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    core_s: Mapping[str, float] = field(default_factory=dict)
    md5: str = ""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One shard version in the table, as the log alone tells it."""

    source: str
    etag: str
    path: str
    size: int
    num_rows: int
    num_embedded: int
    num_rejected: int
    damaged: bool

    @property
    def num_seen(self) -> int:
        """Images in it: embedded and rejected, markers left out."""
        return self.num_embedded + self.num_rejected


@dataclass(frozen=True)
class Plan:
    """The difference between a listing and the table."""

    added: tuple[Shard, ...]
    changed: tuple[Shard, ...]
    vanished: tuple[KnownFile, ...]
    unchanged: tuple[KnownFile, ...]

    @property
    def work(self) -> tuple[Shard, ...]:
        """The shards to embed."""
        return self.added + self.changed

    @property
    def empty(self) -> bool:
        """True when the table already says what the listing says."""
        return not (self.added or self.changed or self.vanished)


@dataclass(frozen=True)
class Counts:
    """The whole table: ``num_seen`` = ``num_embedded`` + ``num_rejected``, always."""

    num_seen: int
    num_embedded: int
    num_rejected: int
    num_damaged_shards: int
    num_shards: int


@dataclass(frozen=True)
class Committed:
    """What one call of ``commit`` did: ``dropped`` sources were another writer's by then."""

    version: int
    landed: tuple[Receipt, ...]
    removed: tuple[KnownFile, ...]
    dropped: tuple[str, ...]


def shard_folder(source: str) -> str:
    """The folder inside the table in which the files of one source lie."""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def file_statistics(
    source: str, etag: str, num_rows: int, num_embedded: int, num_rejected: int, damaged: bool
) -> str:
    """Delta statistics (JSON) of one shard's file, from which the log alone gives every count.

    Marker rows are the ones without a digest, rejected rows have a digest and no embedding,
    and only rejected and ``!damaged`` rows have an error.
    """
    bound = {"source": source, "source_etag": etag}
    nulls = {
        "source": 0,
        "source_etag": 0,
        "digest": num_rows - num_embedded - num_rejected,
        "embedding": num_rows - num_embedded,
        "error": num_rows - num_rejected - int(damaged),
    }
    return json.dumps(
        {"numRecords": num_rows, "minValues": bound, "maxValues": bound, "nullCount": nulls}
    )
