"""Decodes every file of a folder in one process; prints the outcomes and how much it grew: what
stayed after an image, and the most at any moment where no image may have more than a megapixel.
"""

import json
import re
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pipelines.decode import Caps, decode
from pipelines.errors import Rejected
from pipelines.thumbnails import encode_thumbnail

MEGAPIXEL = Caps(max_pixels=1_000_000)


def peak() -> int:
    """The most bytes that this process held at one moment (getrusage tells its parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


def main() -> None:
    process = psutil.Process()
    warm, hostile = Path(sys.argv[1]), Path(sys.argv[2])
    for file in sorted(warm.iterdir()):
        encode_thumbnail(decode(file.read_bytes()))
    hostile_images = sorted(hostile.iterdir())
    before = process.memory_info().rss
    peak_before = peak()
    for file in hostile_images:  # some headers, once damaged, claim as much as the cap allows
        with suppress(Rejected):
            decode(file.read_bytes(), MEGAPIXEL)
    peak_grown = peak() - peak_before
    most = max(before, process.memory_info().rss)
    outcomes: dict[str, str] = {}
    slowest = 0.0
    for file in hostile_images:
        began = time.monotonic()
        try:
            pixels = decode(file.read_bytes())
            outcomes[file.name] = f"{pixels.dtype} {pixels.shape}"
            del pixels
        except Rejected as error:
            outcomes[file.name] = f"rejected: {error}"
        slowest = max(slowest, time.monotonic() - began)
        most = max(most, process.memory_info().rss)
    grown = {"grown": most - before, "peak": peak_grown, "slowest": slowest}
    print(json.dumps({"outcomes": outcomes} | grown))


if __name__ == "__main__":
    main()
