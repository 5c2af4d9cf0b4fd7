"""`python -m jobs.health`: whether the container it runs in does its work.

A container whose command is `orbit serve` has to answer /healthz; others are healthy while they
run.
"""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from pathlib import Path

COMMAND = Path("/proc/1/cmdline")
TIMEOUT_S = 4.0


def port_served(words: list[str]) -> int | None:
    """The port that a command line serves on; None when it is no `orbit serve`."""
    if "serve" not in words:
        return None
    for place, word in enumerate(words):
        if word.startswith("--port="):
            return int(word.partition("=")[2])
        if word == "--port":
            return int(words[place + 1])
    return 8000


def healthy(words: list[str]) -> bool:
    """Whether the command of this container answers, if it should."""
    port = port_served(words)
    if port is None:
        return True
    try:
        url = f"http://127.0.0.1:{port}/healthz"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


if __name__ == "__main__":
    sys.exit(0 if healthy(COMMAND.read_bytes().decode().split("\0")) else 1)
