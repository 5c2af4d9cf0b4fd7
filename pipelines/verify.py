"""``orbit verify``: the store against itself, and a sample of it against INPUT.

| compared | with |
|---|---|
| table, as its log tells it | the files: there, size, digest in the name, rows, counts |
| rows | what a row must be: distinct, an embedding of unit length or a reason |
| publications | their artifacts: there, size, digest |
| live sidecar | the rows of the table version that was published |
| live index | the sidecar: same image_ids, equal vectors |
| store's model | its own digest and golden images |
| a sample of INPUT's images | their turned and mirrored copies, and the stored embeddings |

Every difference is one ``Finding``; a check that cannot be made is one too. Nothing is changed,
unless repair is asked for: then one commit drops the damaged files' rows from the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from eqmodel.errors import OrbitError
from pipelines import scratch
from pipelines.errors import DamagedStoreError, StoreError
from pipelines.index import CLUSTERS, IndexSpec, Sidecar, file_sha256, open_index
from pipelines.index.contents import contents
from pipelines.models import checkpoint_of_store
from pipelines.report import audit_sample
from pipelines.shards import ReadOptions
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, KnownFile, PublicationLog, PublicationRow, live_model
from pipelines.verify_index import REPUBLISH, compare_index, compare_sidecar
from pipelines.verify_rows import check_file

if TYPE_CHECKING:
    from eqmodel import Embedder
    from pipelines.batch import Progress

MAX_INVARIANCE_ERROR = 1e-3


CANNOT_BE_READ = (
    OrbitError, OSError, ValueError, LookupError, RuntimeError, pa.ArrowException
)  # fmt: skip
"""What a reader of damaged files raises."""


@dataclass(frozen=True)
class Finding:
    """One thing that is off: ``where`` relative to the store, ``what`` in one line."""

    where: str
    what: str


@dataclass(frozen=True)
class VerifyOptions:
    """``audit_images`` of INPUT are turned and compared; ``every`` reads old artifacts too;
    ``repair`` drops damaged files from the table, so that the next run embeds them again."""

    audit_images: int = 64
    every: bool = False
    repair: bool = False
    read: ReadOptions = field(default_factory=ReadOptions)
    seed: int = 0


@dataclass
class Verdict:
    """What was looked at, and what was off."""

    store: str
    findings: list[Finding] = field(default_factory=list)
    num_files: int = 0
    num_rows: int = 0
    num_artifacts: int = 0
    num_vectors: int = 0
    num_audited: int = 0
    invariance_error: float | None = None
    skipped: str | None = None
    broken: list[str] = field(default_factory=list)
    num_repaired: int = 0

    def add(self, where: str, found: Iterable[str]) -> None:
        """Take findings about one place."""
        self.findings += [Finding(where, " ".join(what.split())) for what in found]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"ok": not self.findings, "num_findings": len(self.findings)} | asdict(self)

    def failure(self) -> DamagedStoreError | None:
        """The error to exit with, None when nothing is off."""
        if not self.findings:
            return None
        return DamagedStoreError(
            f"{self.store}: {len(self.findings)} findings, none expected; the first: "
            f"{self.findings[0].where}: {self.findings[0].what}"
        )


def verify(store: Folder, options: VerifyOptions, progress: Progress) -> Verdict:
    """Look at everything. StoreError when it is no store; what is damaged is a finding."""
    return _Verification(store, options, progress).run()


class _Verification:
    """One look at a store."""

    def __init__(self, store: Folder, options: VerifyOptions, progress: Progress) -> None:
        self.store, self.options, self.progress = store, options, progress
        self.verdict = Verdict(store.url)
        self._checked: set[str] = set()

    def run(self) -> Verdict:
        """Every check; one that cannot be made does not keep the others from being made."""
        model_id = live_model(self.store)
        if model_id is None:
            raise StoreError(
                f"{self.store.url} is not a store: no embeddings are there; make one with "
                f"'orbit run INPUT --model MODEL --out {self.store.url}'"
            )
        with scratch.folder() as place:
            self._guarded(f"embeddings/{model_id}", lambda: self._table(model_id, Path(place)))
            self._guarded("publications", lambda: self._publications(model_id, Path(place)))
        return self.verdict

    def _guarded(self, where: str, check: Callable[[], None]) -> None:
        try:
            check()
        except CANNOT_BE_READ as error:
            self.verdict.add(where, [f"cannot be checked: {error}"])

    # -- the table ----------------------------------------------------------------------------

    def _table(self, model_id: str, place: Path) -> None:
        table = EmbeddingTable.open(self.store, model_id)
        if table is None:
            self.verdict.add(f"embeddings/{model_id}", ["the table is gone; run 'orbit run'"])
            return
        self._files(table, place)
        self._find_broken(table)
        if self.options.repair and self.verdict.broken:
            committed = table.commit([], self.verdict.broken)
            self.verdict.num_repaired = len(committed.removed)

    def _find_broken(self, table: EmbeddingTable) -> None:
        wrong = {finding.where for finding in self.verdict.findings}
        name = f"embeddings/{table.identity.model_id}"
        known = table.known().items()
        self.verdict.broken = [s for s, file in known if f"{name}/{file.path}" in wrong]

    def _files(self, table: EmbeddingTable, place: Path) -> None:
        model_id, dim = table.identity.model_id, table.identity.dim
        files = list(table.known().values())
        for number, file in enumerate(files, 1):
            self.progress("reading", number, len(files), "files")
            if file.path not in self._checked:
                self._checked.add(file.path)
                where = f"embeddings/{model_id}/{file.path}"
                check = partial(self._file, table.folder, file, dim, where, place)
                self._guarded(where, check)

    def _file(self, folder: Folder, file: KnownFile, dim: int, where: str, place: Path) -> None:
        entry = folder.stat(file.path)
        self.verdict.num_files += 1
        if entry is None:
            self.verdict.add(where, [f"is gone: the rows of {file.source} are lost; embed again"])
            return
        local = place / "file.parquet"
        folder.download(file.path, local)
        self.verdict.add(where, check_file(local, file, dim))
        self.verdict.num_rows += file.num_rows

    # -- the publications ---------------------------------------------------------------------

    def _publications(self, model_id: str, place: Path) -> None:
        log = PublicationLog.open(self.store)
        rows = [] if log is None else log.rows()
        if not rows:
            self.verdict.skipped = "nothing is published"
            return
        live, seen = rows[-1], set[str]()
        for row in reversed(rows):
            if row.id not in seen:
                seen.add(row.id)
                self._artifacts(row, deep=row.id == live.id or self.options.every, place=place)
        table = EmbeddingTable.open(self.store, live.model_id, live.table_version)
        if table is None:
            self.verdict.add(f"embeddings/{live.model_id}", ["the published table is gone"])
            return
        self._files(table, place)
        self._guarded(f"artifacts/{live.id}", lambda: self._live(live, table, place))

    def _artifacts(self, row: PublicationRow, deep: bool, place: Path) -> None:
        for number, file in enumerate(row.files, 1):
            self.progress("artifacts", number, len(row.files), row.id)
            self.verdict.num_artifacts += 1
            entry = self.store.stat(file.path)
            if entry is None or entry.size != file.size:
                found = "is gone" if entry is None else f"has {entry.size} bytes"
                what = f"{found}, {file.size} bytes were published; {REPUBLISH}"
                self.verdict.add(file.path, [what])
            elif deep:
                local = place / file.path.rpartition("/")[2]
                self.store.download(file.path, local)
                found = file_sha256(local)
                if found != file.sha256:
                    what = f"has sha256 {found[:12]}, {file.sha256[:12]} was published"
                    self.verdict.add(file.path, [f"{what}; {REPUBLISH}"])

    def _live(self, row: PublicationRow, table: EmbeddingTable, place: Path) -> None:
        files = {file.path.rpartition("/")[2]: file for file in row.files}
        self.store.download(files["index.json"].path, place / "index.json")
        spec = IndexSpec.from_dict(json.loads((place / "index.json").read_bytes()))
        for name in (*spec.files, *({CLUSTERS} & files.keys())):
            self.store.download(files[name].path, place / name)
        sidecar = Sidecar.open(place, spec)
        where = f"artifacts/{row.id}"
        expected = (row.model_id, row.table_version)
        if (spec.model_id, spec.table_version) != expected:
            found = (spec.model_id, spec.table_version)
            self.verdict.add(where, [f"the index is of {found}, the publication of {expected}"])
        rows, index = files["ids.arrow"].path, files["index.faiss"].path
        self._guarded(
            rows, lambda: self.verdict.add(rows, compare_sidecar(sidecar, table, self.progress))
        )
        self._guarded(
            index,
            lambda: self._index(
                sidecar, spec, place, {name: file.sha256 for name, file in files.items()}, index
            ),
        )
        self._guarded(where, lambda: self._audit(row, table, sidecar, place))

    def _index(
        self,
        sidecar: Sidecar,
        spec: IndexSpec,
        place: Path,
        digests: Mapping[str, str],
        where: str,
    ) -> None:
        index = open_index(place, digests, spec, sidecar)
        self.progress("index", 0, len(index), "vectors")
        self.verdict.num_vectors = len(index)
        self.verdict.add(where, compare_index(sidecar, contents(index)))

    def _audit(
        self, row: PublicationRow, table: EmbeddingTable, sidecar: Sidecar, place: Path
    ) -> None:
        where = f"models/{row.model_id}"
        embedder = self._model(row.model_id, place)
        if embedder.model_id != row.model_id:
            self.verdict.add(where, [f"is model {embedder.model_id}"])
            return
        options = self.options
        (place / "rows").mkdir()
        etags = {source: file.etag for source, file in table.known().items()}
        rows = sidecar.gather(place / "rows", etags)
        wanted = min(options.audit_images, len(rows))
        self.progress("auditing", 0, wanted, "images turned")
        found = audit_sample(
            embedder, rows, table.identity, wanted, options.read, options.seed
        ).section
        self.verdict.skipped = found["skipped"]
        if found["skipped"] is None:
            self.verdict.num_audited = found["num_images"]
            self.verdict.invariance_error = found["invariance_error"]
            self.verdict.add(where, judge_audit(found))

    def _model(self, model_id: str, place: Path) -> Embedder:
        from eqmodel import Embedder

        copy = place / "model"
        copy.mkdir()
        return Embedder.load(checkpoint_of_store(self.store, model_id, copy))


def judge_audit(section: Mapping[str, Any]) -> Iterator[str]:
    """What an audit's figures say against the store."""
    error, differ = section["invariance_error"], section["num_differ_from_stored"]
    if error > MAX_INVARIANCE_ERROR:
        yield f"invariance error {error:.1e} on INPUT's images, {MAX_INVARIANCE_ERROR} allowed"
    if differ:
        yield (
            f"{differ} of {section['num_images']} images embed otherwise than stored "
            f"(up to {section['stored_error']:.1e}); embed them again"
        )
