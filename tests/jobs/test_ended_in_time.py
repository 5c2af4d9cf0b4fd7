"""A command that was told to stop ends in time, whatever it is doing."""

import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import hashlib, sys, time
import typer
from jobs.console import add, run, verb
from pipelines import signals
signals.GRACE_S = 1.5

@verb("busy")
def busy() -> None:
    print("begun", file=sys.stderr, flush=True)
    {what}

app = typer.Typer(add_completion=False)
add(app, busy)
sys.exit(run(app, "orbit busy", []))
"""
DEAF = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
"""Foreign code that computes for minutes: Python hears no signal meanwhile."""
STUBBORN = """
    while True:
        try:
            time.sleep(60)
        except Exception:
            continue
"""
"""What swallows the error that a signal raises, as a storage client may."""


def stopped(what: str, number: int) -> tuple[int, list[str], float]:
    """Its exit code, the lines it said, and the seconds it took after the signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(what=what)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    time.sleep(0.2)
    began = time.monotonic()
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    return process.returncode, told.splitlines(), time.monotonic() - began


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_foreign_code_does_not_hold_it_up(number: int, code: int) -> None:
    exit_code, told, seconds = stopped(DEAF, number)
    assert exit_code == code
    name = signal.Signals(number).name
    assert told == [f"orbit: stopped by {name}, ended 2 s later; the next run goes on from there"]
    assert 1.4 < seconds < 15


def test_nor_does_code_that_swallows_the_error() -> None:
    exit_code, told, _ = stopped(STUBBORN, signal.SIGTERM)
    assert exit_code == 143
    assert len(told) == 1


def test_what_hears_the_signal_ends_by_itself() -> None:
    exit_code, told, _ = stopped("time.sleep(60)", signal.SIGTERM)
    assert (exit_code, told) == (143, ["orbit: stopped by SIGTERM"])
