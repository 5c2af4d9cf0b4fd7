"""Progress: bars on a terminal, few plain lines elsewhere, none before the work has begun."""

import io

import pytest

from jobs import progress as module
from jobs.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress sees: set clock[0]."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_the_first_stage_is_quiet_until_the_second_begins(clock: list[float]) -> None:
    stream = io.StringIO()
    show = Progress(stream)
    show("listing", 0, None, "s3://bucket")
    show("listing", 3, 3, "shards found")
    assert stream.getvalue() == ""
    show("embedding", 0, 3)
    assert stream.getvalue() == (
        "listing: s3://bucket\nlisting: 3 of 3, shards found\nembedding: 0 of 3\n"
    )


def test_a_long_first_stage_is_shown(clock: list[float]) -> None:
    stream = io.StringIO()
    show = Progress(stream)
    show("listing", 0)
    clock[0] += 11
    show("listing", 5000)
    assert stream.getvalue() == "listing\nlisting: 5,000\n"


def test_lines_come_now_and_then_and_the_last_one_once(clock: list[float]) -> None:
    stream = io.StringIO()
    show = Progress(stream)
    show("listing", 1, 1)
    for done in range(100):
        clock[0] += 0.125
        show("embedding", done, 99, f"{done} images")
    show("embedding", 99, 99)
    lines = stream.getvalue().splitlines()[1:]
    assert lines == [
        "embedding: 0 of 99, 0 images",
        "embedding: 40 of 99, 40 images",
        "embedding: 80 of 99, 80 images",
        "embedding: 99 of 99, 99 images",
    ]


def test_a_terminal_gets_bars_and_is_left_clean() -> None:
    stream = Terminal()
    show = Progress(stream)
    show("listing", 0, None, "s3://bucket")
    show("embedding", 1, 3, "400 images")
    show.say("half [of] it")
    show("embedding", 3, 3)
    show.close()
    text = stream.getvalue()
    assert "embedding" in text
    assert "3/3" in text
    assert "half [of] it" in text
    assert text.endswith("\x1b[?25h")
