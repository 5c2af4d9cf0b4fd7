"""Decodes every file of a folder in one process; prints the outcomes and how much it grew: what
stayed after an image, and the most at any moment.
"""

import json
import re
import sys
import time
from pathlib import Path

import psutil

from pipelines.decode import decode
from pipelines.errors import Rejected
from pipelines.thumbnails import encode_thumbnail


def peak() -> int:
    """The most bytes that this process held at one moment (getrusage tells its parent's too)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


def main() -> None:
    process = psutil.Process()
    warm, hostile = Path(sys.argv[1]), Path(sys.argv[2])
    for file in sorted(warm.iterdir()):
        encode_thumbnail(decode(file.read_bytes()))
    before = most = process.memory_info().rss
    peak_before = peak()
    outcomes: dict[str, str] = {}
    slowest = 0.0
    for file in sorted(hostile.iterdir()):
        began = time.monotonic()
        try:
            pixels = decode(file.read_bytes())
            outcomes[file.name] = f"{pixels.dtype} {pixels.shape}"
            del pixels
        except Rejected as error:
            outcomes[file.name] = f"rejected: {error}"
        slowest = max(slowest, time.monotonic() - began)
        most = max(most, process.memory_info().rss)
    grown = {"grown": most - before, "peak": peak() - peak_before, "slowest": slowest}
    print(json.dumps({"outcomes": outcomes} | grown))


if __name__ == "__main__":
    main()
