"""`orbit evaluate`: the published protocols, read from a recipe's or a checkpoint's embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eqmodel.errors import Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.progress import progress
from jobs.table import table

if TYPE_CHECKING:
    from eqmodel.protocols.draws import Protocol
    from eqmodel.protocols.results import Row
    from eqmodel.protocols.runner import Job

READINGS = {
    "logistic_regression": "LR",
    "neural_network": "NN",
    "nearest_neighbours_5": "5-NN",
    "kmeans_purity": "K-means",
    "kmeans64_purity": "K-means 64",
    "gmm_purity": "GMM",
}
MORE = {
    "kmeans_hungarian": "Hungarian",
    "kmeans_nmi": "NMI",
    "kmeans_ari": "ARI",
    "gmm_hungarian": "GMM Hungarian",
    "turn_90_error": "90 degrees",
    "turn_30_error": "30 degrees",
    "reconstruction_error": "rebuilt",
}
ERRORS = ("turn_90_error", "turn_30_error", "reconstruction_error")


@dataclass(frozen=True)
class EvaluateFlags:
    """What is evaluated, on what, and where to."""

    protocol: Annotated[
        str | None,
        typer.Argument(
            metavar="PROTOCOL",
            help="augmented-mnist, mnist-rot, o2-mnist, augmented-fashion, fashion-rot, "
            "o2-fashion or plankton",
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="recipes, with commas between: recommended, gram-d12, mean-d12, attention-d12, "
            "gram-d4, mean-d4, attention-d4, autoencoder, raw-pixels [default: recommended]",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(metavar="CHECKPOINT", help="read a checkpoint as it is; nothing is trained"),
    ] = None
    seeds: Annotated[
        str, typer.Option(help="how many (3), or which (0,1,2; a single one as 7,)")
    ] = "1"
    data: Annotated[
        Path | None,
        typer.Option(help="folder of the data set [default: ORBIT_DATA, else ./data]"),
    ] = None
    out: Annotated[
        Path, typer.Option(help="folder for checkpoints, results and figures; resumes from it")
    ] = Path("orbit-evaluation")
    limit: Annotated[
        int | None, typer.Option(min=100, help="so many training and test images at most")
    ] = None
    ceiling: Annotated[
        bool, typer.Option("--ceiling", help="also the same encoder trained with labels")
    ] = False
    max_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="shorten the training of each seed")
    ] = None
    figures: Annotated[
        bool | None,
        typer.Option("--figures/--no-figures", help="[default: where matplotlib is installed]"),
    ] = None
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu"


def seeds_of(text: str) -> list[int]:
    """A count N: the seeds 0..N-1. With commas: these seeds. Raises Refused for anything else."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise Refused(f"--seeds {text}: expected a count such as 3, or seeds such as 0,1,2")
    numbers = [int(part) for part in parts]
    if "," in text:
        return sorted(set(numbers))
    if not 1 <= numbers[0] <= 100:
        raise Refused(f"--seeds {text}: expected 1 to 100 seeds; name a single one as {text},")
    return list(range(numbers[0]))


def check_device(name: str) -> None:
    """Raises Refused for a device that is not here."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"--device {name}: not here; expected cpu, or cuda with a GPU") from error


def jobs_of(flags: EvaluateFlags, protocol: "Protocol") -> list["Job"]:
    """One job per recipe (or checkpoint) and seed, seeds innermost."""
    from eqmodel.checkpoint import read_card, resolve
    from eqmodel.protocols.recipes import recipe_of
    from eqmodel.protocols.runner import Job

    seeds = seeds_of(flags.seeds)
    common: dict[str, Any] = {
        "protocol": protocol,
        "out": flags.out,
        "limit": flags.limit,
        "device": flags.device,
    }
    if flags.model is not None:
        folder = resolve(flags.model)
        name = str(read_card(folder)["card"].get("name") or folder.name).replace("/", "-")
        return [Job(recipe=name, seed=seed, model=folder, **common) for seed in seeds]
    found = []
    for name in dict.fromkeys(n.strip() for n in (flags.recipe or "recommended").split(",")):
        recipe = recipe_of(name)
        for ceiling in (False, True) if flags.ceiling and recipe.config else (False,):
            for seed in seeds:
                config = recipe.config_for(
                    protocol, seed, max_minutes=flags.max_minutes, device=flags.device
                )
                found.append(Job(recipe=name, seed=seed, config=config, ceiling=ceiling, **common))
    return found


def figure_maker(wanted: bool | None) -> Any:
    """The module that draws, or None; Refused where it is asked for and matplotlib is missing."""
    if wanted is False:
        return None
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        if wanted:
            raise Refused(
                "--figures needs matplotlib, which is not installed: "
                "pip install 'orbit-embeddings[evaluate]', or --no-figures"
            )
        return None
    from eqmodel.protocols import figures

    return figures


@verb("orbit evaluate mnist-rot --recipe recommended --seeds 3 --data data/")
def evaluate(
    flags: EvaluateFlags,
    table_of: Annotated[
        Path | None,
        typer.Option("--table", metavar="DIR", help="only write the tables of earlier results"),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="with --table: put them into this Markdown file"),
    ] = None,
    as_json: Json = False,
) -> Answer:
    """Train by a recipe without labels, or take a checkpoint, and read what it is worth."""
    if table_of is not None:
        return tables_of(table_of, into)
    if flags.protocol is None:
        raise Refused("missing PROTOCOL, expected for example: orbit evaluate mnist-rot")
    if flags.recipe is not None and flags.model is not None:
        raise Refused("found --recipe and --model, expected one of them")
    from eqmodel.protocols.draws import protocol_of
    from eqmodel.protocols.results import rows
    from eqmodel.protocols.runner import run
    from jobs.sources import data_folder, read_source

    protocol = protocol_of(flags.protocol)
    jobs = jobs_of(flags, protocol)
    check_device(flags.device)
    maker = figure_maker(flags.figures)
    source = read_source(protocol, data_folder(flags.data))
    drawn: list[str] = []
    with progress() as show:
        look = looker(maker, drawn, jobs[0].seed)
        found = rows([run(job, source, show, look) for job in jobs])
    if maker is not None:
        drawn.extend(variance_figure(maker, flags, protocol))
    return Answer(document(flags, protocol, found, drawn), text(protocol, found, flags.out, drawn))


def looker(maker: Any, drawn: list[str], seed: int) -> Callable[..., None]:
    """What draws the manifold of the first seed of each new result."""

    def look(job: "Job", draw: Any, embedded: Any) -> None:
        if maker is not None and job.seed == seed:
            path = job.path.with_name("manifold.png")
            title = f"{job.path.parent.name} on {job.protocol.name}"
            maker.manifold(embedded.test, draw.test.labels, draw.classes, path, title)
            drawn.append(str(path))

    return look


def variance_figure(maker: Any, flags: EvaluateFlags, protocol: "Protocol") -> list[str]:
    """Explained variance of all recipes whose results lie in --out."""
    from eqmodel.protocols.results import read_all

    known = [row for row in read_all(flags.out / protocol.name) if row.limit == flags.limit]
    path = flags.out / protocol.name / "explained-variance.png"
    maker.explained_variance(known, path, protocol.name)
    return [str(path)]


def document(
    flags: EvaluateFlags, protocol: "Protocol", found: Sequence["Row"], drawn: list[str]
) -> dict[str, Any]:
    """What --json tells."""
    from eqmodel.protocols.results import versions

    return {
        "protocol": protocol.name,
        "description": protocol.description,
        "limit": flags.limit,
        "seeds": seeds_of(flags.seeds),
        "rows": [row.as_dict() for row in found],
        "figures": drawn,
        "out": str(flags.out),
        "versions": versions(),
    }


def text(protocol: "Protocol", found: Sequence["Row"], out: Path, drawn: list[str]) -> str:
    """The tables on the terminal: percent, mean over seeds and their standard deviation."""
    first = found[0].results[0]
    note = (
        f"{protocol.description}: {first.num_train:,} images to train on and to fit probes, "
        f"{first.num_test:,} to test; percent, clusters by purity"
    )
    trained = [sum(r.seconds["train_s"] for r in row.results) / len(row.results) for row in found]
    readings = table(
        ["recipe", "seeds", *READINGS.values(), "training"],
        [
            [name_of(row), str(len(row.seeds)), *(cell(row, r) for r in READINGS), f"{s:.0f} s"]
            for row, s in zip(found, trained, strict=True)
        ],
    )
    more = table(
        ["K-means, and relative errors", *MORE.values()],
        [[name_of(row), *(cell(row, reading) for reading in MORE)] for row in found],
    )
    files = "\n".join([*drawn, str(out / protocol.name)])
    return f"{note}\n\n{readings}\n\n{more}\n\n{files}"


def name_of(row: "Row") -> str:
    """The recipe; one that saw labels says so."""
    return f"{row.recipe} (with labels)" if row.kind == "supervised ceiling" else row.recipe


def cell(row: "Row", reading: str) -> str:
    """A mean, with its standard deviation where there are several seeds."""
    mean, std = row.mean(reading), row.std(reading)
    if mean is None:
        return "-"
    if reading in ERRORS:
        return f"{mean:.1e}" if mean < 1e-3 else f"{mean:.3f}"
    return f"{100 * mean:.1f}" + (f" ±{100 * std:.1f}" if std is not None else "")


def tables_of(folder: Path, into: Path | None) -> Answer:
    """The Markdown tables of earlier results, beside the published figures."""
    from eqmodel.protocols.results import read_all
    from eqmodel.protocols.tables import insert, markdown, reached

    known = read_all(folder)
    written = markdown(known)
    if into is not None:
        insert(into, written)
    found = {"rows": [row.as_dict() for row in known], "reached": reached(known)}
    return Answer(found, written if into is None else f"{into}: tables of {len(known)} rows")


if __name__ == "__main__":
    run_alone(evaluate)
