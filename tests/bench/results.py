"""Where benchmarks keep what they measured: a section each of RESULTS.md."""

import os
import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import faiss

RESULTS = Path(__file__).with_name("RESULTS.md")
BUILD = Path(__file__).parents[2] / "build" / "bench"
HEAD = "# What was measured\n\nBy `make bench`; each section is written anew by its benchmark.\n"


def number_of(name: str, default: int) -> int:
    """A size from the environment, so that a benchmark can be tried small."""
    return int(os.environ.get(name, default))


def keep(title: str, figures: Mapping[str, object]) -> None:
    """Print the figures, and put them in the section of that title."""
    lines = [f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, faiss {faiss.__version__}.", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {told(value)} |" for name, value in figures.items()]
    section = "\n".join([f"## {title}", "", *lines, ""])
    print(f"\n{section}")
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else HEAD
    pattern = re.compile(rf"## {re.escape(title)}\n.*?(?=\n## |\Z)", re.S)
    if pattern.search(text):
        text = pattern.sub(lambda _: section.rstrip("\n") + "\n", text)
    else:
        text = f"{text.rstrip()}\n\n{section}"
    RESULTS.write_text(text, "utf-8")


def machine() -> str:
    """The processor, its cores and the memory of this machine."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text("utf-8") if facts.exists() else ""
    named = re.search(r"model name\s*:\s*(.+)", text)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({named[1].strip() if named else platform.machine()}), "
        f"{memory:.0f} GiB, {faiss.omp_get_max_threads()} threads"
    )


def told(value: object) -> str:
    """A figure for people."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
