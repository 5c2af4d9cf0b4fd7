"""The model without a compiler: with nothing on the path, as in an image without gcc."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOTHING = {"PATH": "", "CC": "/nothing", "CXX": "/nothing"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, and no compiler to be found."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT, env=NOTHING, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_embedding_needs_no_compiler() -> None:
    found = run(
        "-c",
        "import numpy as np; from eqmodel import Embedder; e = Embedder.load('d4-28-grey'); "
        "print(e.embed([np.zeros((28, 28), np.uint8)]).shape)",
    )
    assert found.stdout.strip() == "(1, 128)", found.stderr


def test_the_inference_form_equals_the_eager_model_without_a_compiler() -> None:
    """The tests of both architectures, of every group and readout, once more."""
    files = ["tests/eqmodel/test_frozen.py", "tests/eqmodel/test_octic.py"]
    chosen = "frozen or packed or gathered or embeddings_as_the_eager"
    found = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert found.returncode == 0, found.stdout[-2000:]
    assert " passed" in found.stdout
    assert "skipped" not in found.stdout
