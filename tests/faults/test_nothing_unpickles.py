"""Nothing in the project unpickles, or runs what it reads: files are untrusted input."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal",
           "jsonpickle", "code", "imp"}  # fmt: skip
CALLS = {"torch.load", "pandas.read_pickle", "pd.read_pickle", "torch.jit.load", "yaml.load",
         "yaml.unsafe_load", "yaml.full_load", "ray.cloudpickle.loads"}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}


def sources() -> list[Path]:
    return [file for part in ("jobs", "eqmodel", "pipelines", "infra")
            for file in sorted((ROOT / part).rglob("*.py"))]  # fmt: skip


def dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([*([node.id] if isinstance(node, ast.Name) else []), *reversed(parts)])


def offences(code: str) -> Iterator[str]:
    """What in a program reads in a way that can run what it reads."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] in MODULES or module.endswith("cloudpickle"):
                yield module
            yield from (
                f"{module}.{name.name}"
                for name in node.names
                if f"{module}.{name.name}" in CALLS or name.name in MODULES
            )
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            options = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in CALLS or (name in BUILTINS and isinstance(node.func, ast.Name)):
                yield name
            if name in ("np.load", "numpy.load") and "allow_pickle" not in options:
                yield "np.load without allow_pickle=False"
            if (value := options.get("allow_pickle")) is not None and not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield "allow_pickle"


def test_there_is_something_to_look_at() -> None:
    assert len(sources()) > 100


def test_no_source_file_unpickles() -> None:
    found = {str(file): list(offences(file.read_text("utf-8"))) for file in sources()}
    assert {file: what for file, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from cloudpickle import loads",
        "from ray import cloudpickle",
        "from torch import load",
        "import torch; torch.load('x', weights_only=True)",
        "import numpy as np; np.load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "eval('1')",
        "import yaml; yaml.load('x', Loader=yaml.Loader)",
    ],
)
def test_what_would_is_seen(code: str) -> None:
    assert list(offences(code))
