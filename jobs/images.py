"""The images a person names on the command line: files, URLs, or standard input."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from eqmodel.errors import Refused

STDIN = "-"


def check_named(names: Sequence[str]) -> None:
    """Refuse before any work when a local file is not there, or is a folder."""
    for name in names:
        if name == STDIN or "://" in name:
            continue
        if Path(name).is_dir():
            raise Refused(f"'{name}' is a folder, expected an image file: name the files in it")
        if not Path(name).is_file():
            raise Refused(f"no image '{name}': expected a file, a URL, or - for standard input")
    if list(names).count(STDIN) > 1:
        raise Refused("found - twice, expected once: standard input holds one image")


def read_bytes(name: str) -> bytes:
    """The bytes behind one name. Refused when there are none."""
    from pipelines.storage import Folder

    if name == STDIN:
        content = sys.stdin.buffer.read()
    elif "://" in name:
        parent, _, file = name.rpartition("/")
        content = Folder(parent).read(file)
    else:
        content = Path(name).read_bytes()
    if not content:
        where = "standard input" if name == STDIN else f"'{name}'"
        raise Refused(f"{where} is empty, expected the bytes of one image")
    return content


def read_images(names: Sequence[str]) -> Iterator[NDArray[Any]]:
    """Each image decoded, in order. Refused for one that is no image."""
    from pipelines.decode import decode
    from pipelines.errors import Rejected

    for name in names:
        try:
            yield decode(read_bytes(name))
        except Rejected as error:
            where = "standard input" if name == STDIN else f"'{name}'"
            raise Refused(f"{where} cannot be read: {error}; give an image file") from error
