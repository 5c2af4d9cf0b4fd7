"""The program's own code as a folder to send: without data, tests, samples and caches."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eqmodel.checkpoint import shipped
from pipelines.errors import SettingsError

PACKAGES = ("eqmodel", "pipelines", "jobs")
LEFT_OUT = frozenset(["__pycache__", "sample", "sample_queries"])
SUFFIXES = frozenset(
    [".py", ".json", ".safetensors", ".css", ".html", ".js", ".j2", ".svg", ".txt", ".yaml"]
)
MAX_BYTES = 32 << 20
"""A third of what Ray takes: the code is 3 MB, so more than this is data by mistake."""
LAUNCHER = "orbit"
_SCRIPT = """\
#!/bin/sh
# Runs a verb of Orbit with the Python of this Ray cluster.
for python in python3 python {here}; do
  "$python" -c 'import importlib.util as u, sys
sys.exit(not all(map(u.find_spec, ("ray", "torch", "deltalake"))))' 2>/dev/null \\
    && exec "$python" -m jobs.cli "$@"
done
echo "orbit: no Python on the PATH of the head node has ray, torch and deltalake" >&2
exit 1
"""


@dataclass(frozen=True)
class Code:
    """A folder with the code, its size in bytes, and ``digest``: 12 hex digits of its content."""

    folder: Path
    size: int
    digest: str


def pack_code(place: Path, words: Sequence[str] = ()) -> Code:
    """Copy the packages' code to ``place``, with a launcher; the same code, the same digest.

    Of the checkpoints that ship, those go along that ``words``, a command's, name; if none, the
    recommended one. SettingsError when it is larger than code can be.
    """
    digest, size, left = hashlib.sha256(), 0, _unneeded(words)
    for root, path in _files():
        if path.parent in left:
            continue
        content = path.read_bytes()
        size += len(content)
        if size > MAX_BYTES:
            raise SettingsError(
                f"the program's folders hold more than {MAX_BYTES >> 20} MiB (at {path}); only "
                "code is sent to a cluster: put data and models elsewhere"
            )
        relative = path.relative_to(root.parent)
        digest.update(f"{relative.as_posix()}\0{len(content)}\0".encode() + content)
        target = place / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (place / LAUNCHER).write_text(_SCRIPT.format(here=sys.executable or "python3"))
    return Code(place, size, digest.hexdigest()[:12])


def _unneeded(words: Sequence[str]) -> set[Path]:
    """Folders of shipped checkpoints that a command has no use for."""
    found = shipped()
    needed = [model for model in found if {model["name"], model["short_name"]} & set(words)]
    needed = needed or [model for model in found if model["recommended"]]
    return {Path(model["folder"]) for model in found if model not in needed}


def _files() -> Iterator[tuple[Path, Path]]:
    """(package's folder, file) of everything that is sent, in a fixed order."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SettingsError(f"the package {package} cannot be found; install Orbit again")
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            parts = path.relative_to(root).parts
            wanted = path.suffix in SUFFIXES and path.is_file()
            if wanted and not LEFT_OUT & set(parts) and not any(p.startswith(".") for p in parts):
                yield root, path
