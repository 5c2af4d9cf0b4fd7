"""Results as Markdown: one table per protocol, the figures beside the published marks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eqmodel.protocols.draws import PROTOCOLS
from eqmodel.protocols.marks import ORDER as PAPER_ORDER
from eqmodel.protocols.marks import OTHERS, PUBLISHED, TARGETS, Mark
from eqmodel.protocols.recipes import RECIPES
from eqmodel.protocols.results import BASELINE, CEILING, MODEL, Row

BEGIN, END = "<!-- tables: orbit evaluate --table -->", "<!-- end of tables -->"
NAMES = {
    "logistic_regression": "logistic regression",
    "neural_network": "neural network",
    "nearest_neighbours_5": "5-NN",
    "kmeans_purity": "K-means purity",
    "kmeans64_purity": "K-means 64",
    "gmm_purity": "GMM purity",
    "kmeans_hungarian": "K-means Hungarian",
    "kmeans_nmi": "K-means NMI",
    "kmeans_ari": "K-means ARI",
    "gmm_hungarian": "GMM Hungarian",
    "gmm_nmi": "GMM NMI",
    "gmm_ari": "GMM ARI",
}
CLASSIFIERS = ("logistic_regression", "neural_network", "nearest_neighbours_5")
CLUSTERS = tuple(name for name in NAMES if name not in CLASSIFIERS)
RANK = {BASELINE: 0, "label-free": 1, MODEL: 2, CEILING: 3}


def percent(row: Row, reading: str) -> str:
    """Mean in percent, and the standard deviation over seeds where there are several."""
    mean, std = row.mean(reading), row.std(reading)
    if mean is None:
        return ""
    return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")


def error(row: Row, reading: str) -> str:
    """A relative error."""
    mean = row.mean(reading)
    if mean is None:
        return ""
    return f"{mean:.1e}" if mean < 1e-3 else f"{mean:.3f}"


def grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|" + "---|" * len(header)
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Pixels, recipes as listed, checkpoints, ceilings."""
    order = list(RECIPES)
    return sorted(
        rows,
        key=lambda row: (
            RANK.get(row.kind, 9),
            order.index(row.recipe) if row.recipe in order else len(order),
            row.recipe,
            row.limit or 0,
        ),
    )


def title(row: Row) -> str:
    """The row's name: a ceiling and a part of the data say what they are."""
    name = row.recipe.removesuffix("-ceiling") if row.kind == CEILING else row.recipe
    marks = ["**trained with labels**"] if row.kind == CEILING else []
    marks += ["checkpoint"] if row.kind == MODEL else []
    marks += [f"first {row.limit} images only"] if row.limit is not None else []
    return f"{name} ({', '.join(marks)})" if marks else name


def row_of(rows: Sequence[Row], protocol: str, recipe: str) -> Row | None:
    """The row of a recipe over the whole data set."""
    return next(
        (r for r in rows if (r.protocol, r.recipe, r.limit) == (protocol, recipe, None)), None
    )


def verdict(rows: Sequence[Row], mark: Mark) -> dict[str, Any]:
    """Whether a mark is reached: by the mean, and by two seeds at least where there are several."""
    row = row_of(rows, mark.protocol, mark.recipe)
    found: dict[str, Any] = {
        "protocol": mark.protocol,
        "recipe": mark.recipe,
        "reading": " or ".join(mark.readings),
        "mark": mark.figure,
        "source": mark.source,
        "figure": None,
        "seeds": 0,
        "reached": None,
    }
    best = None
    for reading in mark.readings if row is not None else ():
        values = [100 * value for value in row.values(reading)] if row is not None else []
        if values and (best is None or sum(values) / len(values) > best[0]):
            best = (sum(values) / len(values), reading, values)
    if best is None:
        return found
    mean, reading, values = best
    above = sum(value >= mark.figure for value in values)
    found |= {"reading": reading, "figure": round(mean, 2), "seeds": len(values)}
    return found | {"reached": mean >= mark.figure and above >= min(2, len(values))}


def reached(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The verdict on every mark, published and asked."""
    return [verdict(rows, mark) for mark in (*PUBLISHED, *OTHERS, *TARGETS)]


def judged(rows: Sequence[Row], marks: Sequence[Mark]) -> str:
    """A table of verdicts; marks that nothing was run for are said so."""
    words = {None: "not run", True: "reached", False: "**not reached**"}
    lines = []
    for mark in marks:
        v = verdict(rows, mark)
        word = words[v["reached"]]
        if v["reached"] and v["seeds"] == 1:
            word = "reached by the one seed run"
        figure = "" if v["figure"] is None else f"{v['figure']:.2f}"
        reading = " or ".join(NAMES[name] for name in mark.readings)
        lines.append(
            [
                mark.protocol,
                mark.recipe,
                reading,
                f"{mark.figure:g}",
                mark.source,
                figure,
                str(v["seeds"]),
                word,
            ]
        )
    header = ["protocol", "recipe", "reading", "mark", "of", "here", "seeds", "verdict"]
    return grid(header, lines)


def paper_order(rows: Sequence[Row]) -> str:
    """Whether the paper's order holds here, by logistic regression."""
    found = [row_of(rows, "augmented-mnist", recipe) for recipe in PAPER_ORDER]
    means = [row.mean("logistic_regression") if row is not None else None for row in found]
    listed = " > ".join(
        f"{name} {100 * mean:.2f}" if mean is not None else f"{name} (not run)"
        for name, mean in zip(PAPER_ORDER, means, strict=True)
    )
    values = [mean for mean in means if mean is not None]
    if len(values) < len(PAPER_ORDER):
        return f"The paper's order: {listed}."
    holds = all(a > b for a, b in itertools.pairwise(values))
    return f"The paper's order {'holds' if holds else '**does not hold**'}: {listed}."


def of_protocol(rows: Sequence[Row]) -> str:
    """The tables of one protocol: classifiers, clusters, and what turning does."""
    protocol = PROTOCOLS[rows[0].protocol]
    first = max((row.results[0] for row in rows), key=lambda r: r.num_train)
    parts = [
        f"### {protocol.name}\n\n{protocol.description}: probes fitted on "
        f"{first.num_train:,} images, tested on {first.num_test:,}.",
    ]
    lines = [
        [
            title(row),
            str(len(row.seeds)),
            *(percent(row, name) for name in CLASSIFIERS),
            percent(row, "classifier_accuracy"),
            minutes(row),
        ]
        for row in rows
    ]
    header = ["recipe", "seeds", *(NAMES[name] for name in CLASSIFIERS)]
    parts.append(grid([*header, "own classifier", "training, min a seed"], lines))
    clusters = [[title(row), *(percent(row, name) for name in CLUSTERS)] for row in rows]
    parts.append(grid(["recipe", *(NAMES[name] for name in CLUSTERS)], clusters))
    parts.append(grid(TURN_HEADER, [turn_line(row) for row in rows]))
    return "\n\n".join(parts)


TURN_HEADER = (
    "recipe",
    "90 degrees, largest",
    "mirror, largest",
    "30 degrees, mean",
    "reconstruction",
    "components for 90%: readout",
    "embedding",
)


def turn_line(row: Row) -> list[str]:
    """Errors and components of a row."""
    names = ("turn_90_error", "mirror_error", "turn_30_error", "reconstruction_error")
    counts = [row.mean(f"{name}_components_90") for name in ("readout", "embedding")]
    numbers = ["" if count is None else f"{count:.0f}" for count in counts]
    return [title(row), *(error(row, name) for name in names), *numbers]


def minutes(row: Row) -> str:
    """Minutes of training of a seed, and where."""
    mean = sum(result.seconds["train_s"] for result in row.results) / len(row.results)
    return f"{mean / 60:.1f} on {row.results[0].device}" if mean else ""


def markdown(rows: Sequence[Row]) -> str:
    """All tables, verdicts first."""
    parts = ["## Marks", judged(rows, (*TARGETS, *OTHERS))]
    parts += ["### The paper's rows", judged(rows, PUBLISHED), paper_order(rows)]
    parts.append("## Protocols")
    for name in PROTOCOLS:
        found = [row for row in rows if row.protocol == name]
        if found:
            parts.append(of_protocol(ordered(found)))
    versions = sorted(
        {
            ", ".join(f"{name} {number}" for name, number in result.versions.items())
            for row in rows
            for result in row.results
        }
    )
    parts.append("Computed with " + "; ".join(versions) + ".")
    return "\n\n".join(parts)


def insert(path: Path, tables: str) -> None:
    """Put the tables between the markers of a Markdown file, or make the file."""
    block = f"{BEGIN}\n\n{tables}\n\n{END}\n"
    before, after = "# Results\n\n", ""
    if path.is_file():
        content = path.read_text()
        before, marker, rest = content.partition(BEGIN)
        if marker:
            after = rest.partition(END)[2].removeprefix("\n")
        else:
            before = content.rstrip("\n") + "\n\n"
    path.write_text(before + block + after)
