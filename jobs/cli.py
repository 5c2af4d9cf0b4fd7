"""The `orbit` command: its verbs, one per file of this package."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from jobs.console import Verbs, add, run
from jobs.demo import demo
from jobs.embed import embed
from jobs.evaluate import evaluate
from jobs.export import export
from jobs.gc import gc
from jobs.index import index
from jobs.jobs import jobs as jobs_verb
from jobs.models import models
from jobs.publish import publish
from jobs.query import query
from jobs.report import report
from jobs.run import run as run_verb
from jobs.schedule import schedule
from jobs.serve import serve
from jobs.status import status
from jobs.submit import submit
from jobs.train import train
from jobs.verify import verify

app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    rich_markup_mode=None,
    help="One embedding per orbit: embed a bucket of images so that a picture and its turned and "
    "mirrored copies are found as one; index it, query it, report on it.",
    epilog="INPUT and STORE are local paths or URLs (s3://bucket/folder). "
    "`orbit VERB --help` tells the flags of a verb; start with `orbit demo`.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"orbit {version('orbit-embeddings')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def verbs(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="print the version"),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for command in (
    run_verb,
    query,
    serve,
    demo,
    train,
    embed,
    index,
    report,
    status,
    models,
    verify,
    gc,
    publish,
    evaluate,
    export,
    submit,
    jobs_verb,
    schedule,
):
    add(app, command)


def main() -> None:
    """The console script."""
    sys.exit(run(app, "orbit"))


if __name__ == "__main__":
    main()
