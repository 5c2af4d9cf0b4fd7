"""The nightly run with nothing to do: 100,000 shards known, 100,000 listed. ORBIT_BENCH_KNOWN."""

import os
import shutil
import sys
from statistics import median

from eqmodel.checkpoint import resolve
from pipelines.batch import list_input
from pipelines.models import keep_copy, model_id_of
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, Receipt, TableIdentity, file_statistics, shard_folder
from tests.bench.bench_embed import timed
from tests.bench.results import BUILD, keep, number_of

KNOWN, REPEATS = number_of("ORBIT_BENCH_KNOWN", 100_000), 3
PLACE, MODEL = BUILD / "nothing", "d4-28-grey"
ROWS = 100
SHARDS_PER_COMMIT = 10_000


def prepared() -> None:
    """INPUT with that many (empty) tars, and a table whose log names a file for each."""
    shutil.rmtree(PLACE, ignore_errors=True)
    for number in range(KNOWN):
        folder = PLACE / "in" / f"{number // 1000:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.close(os.open(folder / f"{number:06d}.tar", os.O_CREAT | os.O_WRONLY))
    store, model = Folder(str(PLACE / "store")), resolve(MODEL)
    model_id, url = model_id_of(model), Folder(str(PLACE / "in")).url
    keep_copy(store, model_id, model)
    table = EmbeddingTable.create(store, TableIdentity(model_id, url, 1024, 128, "d4"))
    shards = list_input(Folder(url), table, 1024)
    for start in range(0, len(shards), SHARDS_PER_COMMIT):
        receipts = []
        for shard in shards[start : start + SHARDS_PER_COMMIT]:
            sha = f"{len(receipts):064x}"
            receipts.append(Receipt(
                source=shard.source, etag=shard.etag, sha256=sha, size=100_000, num_rows=ROWS,
                path=f"{shard_folder(shard.source)}/run-1-{ROWS}-{sha}.parquet",
                num_embedded=ROWS, num_rejected=0, num_encoded=ROWS, damaged=False,
                stats=file_statistics(shard.source, shard.etag, ROWS, ROWS, 0, False),
                worker="w", pid=1, in_bytes=0,
            ))  # fmt: skip
        table.commit(receipts)


def test_nothing_to_do() -> None:
    prepared()
    command = [sys.executable, "-m", "jobs.cli", "embed", str(PLACE / "in"), "--model", MODEL]
    runs = [timed([*command, "--out", str(PLACE / "store"), "--json"]) for _ in range(REPEATS)]
    assert all(found["num_encoded"] == 0 for _, _, found in runs)
    assert all(found["num_seen"] == KNOWN * ROWS for _, _, found in runs)
    seconds, peak = median(run[0] for run in runs), max(run[1] for run in runs)
    keep("Nothing to do", {
        "shards known and listed": KNOWN,
        "orbit embed, s (10 asked at most)": seconds,
        "largest resident memory, MiB (1,024 asked at most)": peak >> 20,
    })  # fmt: skip
    shutil.rmtree(PLACE)
