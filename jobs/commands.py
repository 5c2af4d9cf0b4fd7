"""A command line that is handed on to another machine: checked here, before anything is sent."""

from collections.abc import Sequence
from typing import Any

from jobs.console import known_verbs, nearest
from pipelines.errors import SettingsError
from pipelines.secrets import no_secrets


def check_command(command: Sequence[str], left_out: Sequence[str], doing: str) -> Any:
    """Refuse a verb or flags that there are not, and secrets; returns Typer's command."""
    from typer.main import get_command

    from jobs.cli import app

    no_secrets(command)
    known = [name for name in known_verbs(app) if name not in left_out]
    name, arguments = command[0], list(command[1:])
    if name not in known:
        raise SettingsError(
            f"no verb '{name}' to {doing}{nearest(name, known)}: expected one of {', '.join(known)}"
        )
    found = get_command(app).commands[name]  # type: ignore[attr-defined]
    found.make_context(f"orbit {name}", arguments)
    return found
