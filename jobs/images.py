"""The images a person names on the command line: files, URLs, or standard input."""

import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from eqmodel.errors import Refused

STDIN = "-"


def expand(names: Sequence[str]) -> tuple[list[str], set[str]]:
    """The images named, in order, each folder replaced by the images in it and below by name; and
    those that were found in a folder. Refused for a folder without one."""
    from pipelines.shards.types import is_image

    found: list[str] = []
    inside: set[str] = set()
    for name in names:
        if name == STDIN or "://" in name or not Path(name).is_dir():
            found.append(name)
            continue
        files = sorted(file for file in Path(name).rglob("*") if file.is_file())
        images = [str(file) for file in files if is_image(file.name)]
        if not images:
            raise Refused(f"no image in the folder '{name}': expected files such as .png or .jpg")
        found += images
        inside |= set(images)
    return found, inside


def check_named(names: Sequence[str]) -> None:
    """Refuse before any work when a local file is not there."""
    for name in names:
        if name == STDIN or "://" in name:
            continue
        if not Path(name).is_file():
            raise Refused(f"no image '{name}': expected a file, a URL, or - for standard input")
    if list(names).count(STDIN) > 1:
        raise Refused("found - twice, expected once: standard input holds one image")


def read_bytes(name: str) -> bytes:
    """The bytes behind one name. Refused when there are none."""
    from pipelines.storage import Folder

    if name == STDIN:
        content = _whole(sys.stdin.buffer)
    elif "://" in name:
        parent, _, file = name.rpartition("/")
        content = Folder(parent).read(file)
    else:
        content = Path(name).read_bytes()
    if not content:
        where = "standard input" if name == STDIN else f"'{name}'"
        raise Refused(f"{where} is empty, expected the bytes of one image")
    return content


@cache
def _whole(stream: BinaryIO) -> bytes:
    """A stream that can be read once, and is asked for again by the contact sheet."""
    return stream.read()


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
