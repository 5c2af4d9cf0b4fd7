"""How the command is started: the script, `python -m jobs.<verb>`, and how light it stays."""

import subprocess
import sys

import pytest

from jobs.cli import app
from jobs.console import known_verbs

VERBS = known_verbs(app)
HEAVY = ("torch", "ray", "pyarrow", "deltalake", "faiss", "sklearn", "pandas", "fsspec", "rich")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_a_program(verb: str) -> None:
    done = python("-m", f"jobs.{verb}", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: orbit {verb} ")
    assert "--json" in done.stdout
    assert "--debug" in done.stdout
    assert done.stderr == ""


def test_without_a_verb_the_help_is_shown() -> None:
    done = python("-m", "jobs.cli")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"], ["nonsense"]])
def test_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    done = python(
        "-c",
        "import sys\n"
        "from jobs.cli import app\n"
        "from jobs.console import run\n"
        f"run(app, 'orbit', {arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)",
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_version_is_told() -> None:
    done = python("-m", "jobs.cli", "--version")
    assert done.stdout.startswith("orbit 0.")
