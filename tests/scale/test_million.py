"""A million embeddings: the index in bounded memory, and its parts filled by Ray tasks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.scale
NUM = 1_000_000
NAME_BYTES = 700
"""At most, of each image while its names are sorted; embeddings are never in memory."""
FIXED_BYTES = 400 << 20


def test_an_index_of_a_million_is_built_in_bounded_memory(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tests.scale.million", str(NUM), str(tmp_path)]
    told = json.loads(subprocess.run(line, capture_output=True, check=True, text=True).stdout)
    print(json.dumps(told))
    assert told["kind"] == "IVF4000,SQ8"
    assert told["recall"] >= 0.99
    assert told["collect_bytes"] <= NUM * NAME_BYTES + FIXED_BYTES
    # Names stay while the index is built; beside them codes, and the sample that trains it.
    assert told["build_bytes"] <= NUM * NAME_BYTES + 3 * told["index_bytes"] + FIXED_BYTES
