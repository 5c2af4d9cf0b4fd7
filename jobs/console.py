"""What every verb shares: the answer it gives, and the boundary where errors become one line.

A verb is a function from flags to an `Answer`. It prints nothing itself: the boundary writes the
answer to standard output, as text or (with --json) as exactly one JSON object, and everything
else to standard error.
"""

import contextlib
import functools
import inspect
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import FrameType
from typing import Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from eqmodel.errors import OrbitError, Refused
from pipelines.secrets import redacted
from pipelines.signals import ended_in_time
from pipelines.telemetry import flush_traces, log, span, use_log

INTERRUPTED = 130
EXAMPLE = "Example: "

Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
LogFormat = Annotated[
    str | None,
    typer.Option(metavar="text|json", help="of the lines on standard error [default: text]"),
]


@dataclass(frozen=True)
class Answer:
    """What a verb found.

    `failure` is the error of a verb that did part of its work: it is told after the answer,
    and its exit code is the command's.
    """

    document: dict[str, Any]
    text: str = ""
    failure: OrbitError | None = field(default=None)


class Stopped(OrbitError):
    """A signal ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def verb(
    example: str, own_flags_first: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a command of a function that returns an `Answer`, several one by one, or nothing.

    With `own_flags_first`, everything after the first argument is taken verbatim: the flags there
    are those of another verb.

    A parameter of the function that is a dataclass stands for one flag per field. Adds --debug
    and --log-format, keeps standard output for the answer alone, and remembers `example`, which
    the help and the messages about wrong flags show.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        groups = flag_groups(function)

        @functools.wraps(function)
        def command(*, debug: bool = False, log_format: str | None = None, **flags: Any) -> None:
            stdout = sys.stdout
            use_log(log_format)
            try:
                with contextlib.redirect_stdout(sys.stderr), span(function.__name__):
                    answer = function(**gather(groups, flags))
                for part in answer if isinstance(answer, Iterator) else [answer]:
                    tell(part, as_json=bool(flags.get("as_json")), stdout=stdout)
            except Exception:
                if debug:
                    print(redacted(traceback.format_exc()), file=sys.stderr)
                raise
            finally:
                flush_traces()

        declare(command, function, groups)
        command.__dict__["example"] = example
        command.__dict__["context"] = {"allow_interspersed_args": not own_flags_first}
        return command

    return decorate


def flag_groups(function: Callable[..., Any]) -> dict[str, type]:
    """The parameters of a function that are dataclasses."""
    hints = get_type_hints(function)
    return {
        name: kind
        for name, kind in hints.items()
        if name != "return" and isinstance(kind, type) and is_dataclass(kind)
    }


def gather(groups: dict[str, type], flags: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the function: the fields of each dataclass put together."""
    rest = dict(flags)
    for name, group in groups.items():
        rest[name] = group(**{part.name: rest.pop(part.name) for part in fields(group)})
    return rest


def declare(
    command: Callable[..., None], function: Callable[..., Any], groups: dict[str, type]
) -> None:
    """Let Typer see the flags: those of `function`, its dataclasses unfolded, --debug and
    --log-format."""
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.name in groups:
            parameters.extend(unfold(groups[parameter.name]))
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    for name, default, kind in (("log_format", None, LogFormat), ("debug", False, Debug)):
        parameters.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
            )
        )
    command.__dict__["__signature__"] = inspect.Signature(parameters)
    command.__dict__.pop("__wrapped__")
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def unfold(group: type) -> list[inspect.Parameter]:
    """One keyword parameter per field of a dataclass."""
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            part.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if part.default is MISSING else part.default,
            annotation=hints[part.name],
        )
        for part in fields(group)
    ]


def tell(answer: Answer | None, *, as_json: bool, stdout: Any) -> None:
    """Write an answer where it belongs, then raise its failure if it has one."""
    if answer is None:
        return
    if as_json:
        print(json.dumps(answer.document, allow_nan=False), file=stdout)
    elif answer.text:
        print(answer.text, file=stdout)
    stdout.flush()
    if answer.failure is not None:
        raise answer.failure


class Verbs(TyperGroup):
    """The group of verbs; an unknown one is refused with the nearest that exists."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            known = list(self.commands)
            raise Refused(
                f"no such verb '{args[0]}'{nearest(args[0], known)}: "
                f"expected one of {', '.join(known)}"
            )
        return super().resolve_command(ctx, args)


def nearest(word: str, known: Sequence[str]) -> str:
    """A suggestion, or nothing when no known word is like it."""
    from difflib import get_close_matches

    found = get_close_matches(word, known, 1)
    return f", did you mean '{found[0]}'?" if found else ""


def usage_message(error: TyperException) -> str:
    """One line for a command line that does not parse: what was wrong, and where to look."""
    context = getattr(error, "ctx", None)
    message = error.format_message().strip().rstrip(".")
    message = message[:1].lower() + message[1:]
    if context is None:
        return message
    option = getattr(error, "option_name", None)
    if option and message.startswith("no such option"):
        flags = [flag for parameter in context.command.params for flag in parameter.opts]
        return (
            f"no such flag '{option}'{nearest(option, flags)}: "
            f"{context.command_path} --help lists them"
        )
    example = (context.command.epilog or "").removeprefix(EXAMPLE)
    wanted = f", expected for example: {example}" if example else ""
    return f"{message}{wanted} ({context.command_path} --help tells more)"


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks; its class too when it is not ours."""
    if isinstance(error, TyperException):
        message = usage_message(error)
    elif isinstance(error, OrbitError):
        message = str(error) or type(error).__name__
    else:
        message = f"{type(error).__name__}: {error} (the traceback is shown with --debug)"
    return " ".join(message.split())


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds like ctrl-C does, so that what was begun is put away."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever runs us takes the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code, having told an error in one line."""
    command = typer.main.get_command(app)
    try:
        with sigterm_raises(), ended_in_time():
            code = command.main(arguments, prog_name=name, standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        complain(one_line(error), exit_code(error))
        return exit_code(error)
    if code == INTERRUPTED:
        complain("stopped by SIGINT", code)
    return code if isinstance(code, int) else 0


def exit_code(error: Exception) -> int:
    """The exit code an error stands for: its own, else 1."""
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1


def complain(message: str, code: int | None = None) -> None:
    """One line on standard error, without secrets; with ``code``, of the error that ends it."""
    if not log().as_json:
        print(redacted(f"orbit: {message}"), file=sys.stderr)
    elif code is None:
        log().line("note", message=message)
    else:
        log().line("error", "error", message=message, exit_code=code)


def add(app: typer.Typer, command: Callable[..., None]) -> None:
    """Add a verb to an app, under its function's name."""
    example = getattr(command, "example", None)
    app.command(
        command.__name__,
        epilog=f"{EXAMPLE}{example}" if example else None,
        context_settings=getattr(command, "context", None),
    )(command)


def known_verbs(app: typer.Typer) -> list[str]:
    """The verbs of an app, in the order of its help."""
    return [command.name or "" for command in app.registered_commands]


def run_alone(function: Callable[..., None]) -> NoReturn:
    """Run one verb as the whole program: `python -m jobs.<verb>`."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    add(app, function)
    sys.exit(run(app, f"orbit {function.__name__}"))
