"""The boundary between a verb and the shell: streams, exit codes, one line per error."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer

from eqmodel.errors import OrbitError, Refused
from jobs.console import Answer, Json, Verbs, add, one_line, run, verb


@dataclass(frozen=True)
class Pair:
    """Two flags that belong together."""

    left: Annotated[int, typer.Option(help="one")]
    right: Annotated[int, typer.Option(help="the other")] = 2


def refuse() -> None:
    raise Refused("found red,\n expected blue: paint it")


def fail() -> None:
    raise OrbitError("half is missing")


def break_down() -> None:
    raise KeyError("nothing")


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


BEHAVIOURS: dict[str, Callable[[], None]] = {
    "refuse": refuse,
    "fail": fail,
    "break": break_down,
    "interrupt": interrupt,
    "terminate": terminate,
}


@verb("orbit act well")
def act(
    how: Annotated[str, typer.Argument(metavar="HOW", help="what to do")],
    pair: Pair,
    as_json: Json = False,
) -> Answer:
    """Do what the test wants."""
    print("working")
    if how in BEHAVIOURS:
        BEHAVIOURS[how]()
    failure = OrbitError("one shard is missing") if how == "half" else None
    return Answer({"sum": pair.left + pair.right}, f"sum {pair.left + pair.right}", failure)


@verb("orbit other")
def other() -> Answer:
    """Another verb, so that there is a group."""
    return Answer({})


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None)
    add(app, act)
    add(app, other)

    def run_line(line: str) -> tuple[int, str, str]:
        code = run(app, "orbit", line.split())
        return code, *capsys.readouterr()

    return run_line


Call = Callable[[str], tuple[int, str, str]]


def test_text_goes_to_stdout_and_the_rest_to_stderr(call: Call) -> None:
    assert call("act well --left 3") == (0, "sum 5\n", "working\n")


def test_json_is_exactly_one_object(call: Call) -> None:
    assert call("act well --left 3 --right 4 --json") == (0, '{"sum": 7}\n', "working\n")


def test_a_partial_success_answers_and_then_fails(call: Call) -> None:
    code, stdout, stderr = call("act half --left 1 --json")
    assert (code, stdout) == (1, '{"sum": 3}\n')
    assert stderr == "working\norbit: one shard is missing\n"


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("refuse", 2, "orbit: found red, expected blue: paint it"),
        ("fail", 1, "orbit: half is missing"),
        ("break", 1, "orbit: KeyError: 'nothing' (the traceback is shown with --debug)"),
        ("interrupt", 130, "orbit: stopped by SIGINT"),
        ("terminate", 143, "orbit: stopped by SIGTERM"),
    ],
)
def test_an_error_is_one_line(call: Call, how: str, code: int, message: str) -> None:
    assert call(f"act {how} --left 1") == (code, "", f"working\n{message}\n")


def test_debug_shows_the_traceback_before_the_line(call: Call) -> None:
    code, _, stderr = call("act refuse --left 1 --debug")
    assert code == 2
    assert "Traceback" in stderr
    assert stderr.endswith("\norbit: found red, expected blue: paint it\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("atc", "no such verb 'atc', did you mean 'act'?: expected one of act, other"),
        ("xyz", "no such verb 'xyz': expected one of act, other"),
        (
            "act x --lefft 3",
            "no such flag '--lefft', did you mean '--left'?: orbit act --help lists them",
        ),
        ("act x -q", "no such flag '-q': orbit act --help lists them"),
        (
            "act --left 1",
            "missing argument 'HOW', expected for example: orbit act well "
            "(orbit act --help tells more)",
        ),
        (
            "act x",
            "missing option '--left', expected for example: orbit act well "
            "(orbit act --help tells more)",
        ),
        (
            "act x --left y",
            "invalid value for '--left': Input should be a valid integer, unable to parse string "
            "as an integer, expected for example: orbit act well (orbit act --help tells more)",
        ),
        (
            "act x y --left 1",
            "got unexpected extra argument(s) (y), expected for example: orbit act well "
            "(orbit act --help tells more)",
        ),
    ],
)
def test_a_wrong_command_line_is_refused(call: Call, line: str, message: str) -> None:
    assert call(line) == (2, "", f"orbit: {message}\n")


def test_help_unfolds_the_flags_and_shows_the_example(call: Call) -> None:
    code, stdout, _ = call("act --help")
    assert code == 0
    for expected in ("--left", "--right", "[default: 2]", "--json", "--debug", "orbit act well"):
        assert expected in stdout


def test_nan_never_reaches_json() -> None:
    from jobs.console import tell

    with pytest.raises(ValueError, match="not JSON compliant"):
        tell(Answer({"share": float("nan")}), as_json=True, stdout=None)


@pytest.mark.parametrize("error", [OrbitError("a\r\n b\tc"), OSError(2, "no\nsuch file")])
def test_line_breaks_in_a_message_are_removed(error: Any) -> None:
    assert len(one_line(error).splitlines()) == 1


def test_sigterm_is_put_back_as_it_was(call: Call) -> None:
    before = signal.getsignal(signal.SIGTERM)
    call("act terminate --left 1")
    assert signal.getsignal(signal.SIGTERM) is before
