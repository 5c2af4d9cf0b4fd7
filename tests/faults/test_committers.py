"""Eight processes that each commit 25 times to one table: 200 contiguous versions, nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.child import die_with_parent
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, TableIdentity

from .conftest import log_entries

pytestmark = [pytest.mark.faults_slow, pytest.mark.timeout(1800)]
WRITERS, COMMITS = 8, 25
MODEL = "m" * 16

WRITER = """
import sys
from pipelines.errors import ConflictError
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, Receipt, file_statistics, shard_folder
store, model, name, commits = Folder(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
table = EmbeddingTable.open(store, model)
for turn in range(commits):
    source = f"{name}-{turn}.tar"
    path = f"{shard_folder(source)}/run-1-1-{name}.parquet"
    entry = table.folder.write(path, b"rows")
    receipt = Receipt(
        source=source, etag="1", path=path, size=entry.size, sha256="", num_rows=1, num_embedded=1,
        num_rejected=0, num_encoded=1, damaged=False, worker="w", pid=1, in_bytes=1,
        stats=file_statistics(source, "1", 1, 1, 0, False),
    )
    while True:
        try:
            landed = table.commit([receipt]).landed
        except ConflictError:
            continue
        if landed != (receipt,):
            sys.exit(f"{source} was dropped")
        break
"""


@pytest.mark.parametrize("storage", ["local", "s3"])
def test_many_commits_of_many_processes(
    request: pytest.FixtureRequest, tmp_path: Path, storage: str
) -> None:
    url = str(tmp_path) if storage == "local" else request.getfixturevalue("s3_url")
    store = Folder(f"{url}/store")
    EmbeddingTable.create(store, TableIdentity(MODEL, "/in", 4, 2, "d4"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, store.url, MODEL, f"writer{n}", str(COMMITS)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=die_with_parent,
        )
        for n in range(WRITERS)
    ]
    told = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * WRITERS, told
    entries = log_entries(store, f"embeddings/{MODEL}")  # contiguous, or it raises
    added = [[a["add"]["path"] for a in actions if "add" in a] for actions in entries]
    assert len(entries) == 1 + WRITERS * COMMITS
    assert all(len(paths) == 1 for paths in added[1:])
    assert len({path for paths in added for path in paths}) == WRITERS * COMMITS
