"""What `orbit query` writes to a file: Parquet, or one line of JSON for each query."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from eqmodel.errors import Refused

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.search import Hit

SUFFIXES = (".parquet", ".jsonl", ".ndjson")


def check_out(path: Path) -> None:
    """Refuse before any work a file of another kind, or in a folder that is not there."""
    if path.suffix.lower() not in SUFFIXES:
        raise Refused(f"--out '{path}': a name that ends in .parquet or .jsonl is expected")
    if not path.absolute().parent.is_dir():
        raise Refused(f"--out '{path}': there is no folder '{path.absolute().parent}'")


class Writer:
    """Writes answers as they come; the file has its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, path.with_name(f".{path.name}.part")
        self._lines: IO[str] | None = None
        self._rows: Any = None
        self.num_queries = self.num_neighbours = self.num_failed = 0

    def __enter__(self) -> "Writer":
        if self.path.suffix.lower() == ".parquet":
            import pyarrow.parquet as pq

            self._rows = pq.ParquetWriter(self._part, schema(), compression="zstd")
        else:
            self._lines = self._part.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for open_file in (self._lines, self._rows):
            if open_file is not None:
                open_file.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)

    def write(self, found: "Iterable[tuple[str, list[Hit] | str]]") -> None:
        """Queries with their neighbours, best first, or with the reason why there are none."""
        answers = list(found)
        self.num_queries += len(answers)
        self.num_failed += sum(isinstance(hits, str) for _, hits in answers)
        self.num_neighbours += sum(len(hits) for _, hits in answers if not isinstance(hits, str))
        if self._lines is not None:
            for query, hits in answers:
                told: dict[str, Any] = {"query": query}
                if isinstance(hits, str):
                    told |= {"neighbours": [], "error": hits}
                else:
                    told["neighbours"] = [hit.as_dict() for hit in hits]
                self._lines.write(json.dumps(told) + "\n")
            return
        import pyarrow as pa

        rows = [row for query, hits in answers for row in _rows(query, hits)]
        self._rows.write_table(pa.Table.from_pylist(rows, schema()))

    def as_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "out": str(self.path),
            "num_queries": self.num_queries,
            "num_neighbours": self.num_neighbours,
            "num_failed": self.num_failed,
        }


def _rows(query: str, hits: "list[Hit] | str") -> list[dict[str, Any]]:
    if isinstance(hits, str):
        return [{"query": query, "error": hits}]
    return [
        {"query": query, "rank": rank, **hit.as_dict(), **(hit.pose or {})}
        for rank, hit in enumerate(hits, start=1)
    ]


def schema() -> "pa.Schema":
    """One row for each neighbour; a query that cannot be read has one with ``error`` alone."""
    import pyarrow as pa

    return pa.schema(
        [
            ("query", pa.string()),
            ("rank", pa.int32()),
            ("key", pa.string()),
            ("source", pa.string()),
            ("label", pa.string()),
            ("score", pa.float64()),
            ("image_id", pa.string()),
            ("cluster", pa.int32()),
            ("angle_degrees", pa.float64()),
            ("mirror", pa.bool_()),
            ("error", pa.string()),
        ]
    )
