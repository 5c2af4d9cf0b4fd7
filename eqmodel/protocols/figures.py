"""The paper's two figures: the manifold by PCA and t-SNE, and the explained variance.

Needs matplotlib (the extra ``evaluate``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from eqmodel.protocols.results import BASELINE, CEILING, Row

POINTS = 3000
INK, QUIET, GRID = "#1f2430", "#6b7280", "#e5e7eb"
# Ten hues of even lightness that stay apart for the common kinds of colour blindness as well as
# ten can; the names are written on the groups, so colour is never the only key.
HUES = (
    "#4269d0", "#e8a33d", "#d6455d", "#57a9a1", "#3f9152",
    "#f28cb1", "#a463c4", "#75c0ee", "#8f6443", "#8b8f99",
)  # fmt: skip
NAMED = 12  # classes whose names are written into the picture; more would hide it


def manifold(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    path: Path,
    title: str,
) -> None:
    """Write a PNG: at most 3,000 test embeddings by PCA and by t-SNE, coloured by label."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    part, kept = embeddings[:POINTS], labels[:POINTS]
    reduced = PCA(min(32, *part.shape), random_state=0).fit_transform(part)
    perplexity = min(30.0, (len(part) - 1) / 4)
    near = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(reduced)
    figure = Figure(figsize=(11, 5.6), dpi=160, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    scatter(left, reduced[:, :2], kept, classes, "PCA")
    scatter(right, near, kept, classes, "t-SNE")
    figure.suptitle(f"{title}: {len(part):,} test images", color=INK, x=0.01, ha="left")
    save(figure, path)


def scatter(
    axes: Axes,
    points: NDArray[Any],
    labels: NDArray[np.int64],
    classes: Sequence[str],
    name: str,
) -> None:
    """Points (N, 2) coloured by label, each label's name at the median of its points."""
    colours = np.array(HUES)[labels % len(HUES)]
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    axes.scatter(x, y, c=colours[order], s=7, alpha=0.75, linewidths=0)
    present = np.unique(labels)
    for label in present if len(present) <= NAMED else ():
        x, y = np.median(points[labels == label], axis=0)
        axes.text(
            x,
            y,
            classes[label],
            ha="center",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=HUES[label % len(HUES)],
            path_effects=[withStroke(linewidth=3.5, foreground="white")],
        )
    axes.set_title(name, loc="left", color=QUIET, fontsize=10)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_color(GRID)


def explained_variance(rows: Sequence[Row], path: Path, protocol: str) -> None:
    """Write a PNG: cumulative explained variance of the readout (of the pixels where there is
    none), and of the embedding, one line per recipe, the number of components for 90% at each.
    """
    figure = Figure(figsize=(11, 4.8), dpi=160, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, sharey=True)
    curves(left, rows, "readout", "invariant readout, before the projection")
    curves(right, rows, "embedding", "embedding, as stored")
    left.set_ylabel("explained variance, %", color=INK)
    figure.suptitle(f"Principal components on {protocol}", color=INK, x=0.01, ha="left")
    save(figure, path)


def curves(axes: Axes, rows: Sequence[Row], curve: str, name: str) -> None:
    """One line per recipe that has the curve; raw pixels stand in both pictures."""
    drawn = [(i, row, mean_curve(row, curve)) for i, row in enumerate(rows)]
    shown = [(i, row, shares) for i, row, shares in drawn if shares is not None]
    shown.sort(key=lambda line: int(np.searchsorted(line[2], 0.9)))
    for number, row, shares in shown:
        count = int(np.searchsorted(shares, 0.9 - 1e-9)) + 1
        needed = f"{count}" if count <= len(shares) else f"over {len(shares)}"
        axes.plot(
            np.arange(1, len(shares) + 1),
            100 * shares,
            color=QUIET if row.kind == BASELINE else HUES[number % len(HUES)],
            linestyle={BASELINE: ":", CEILING: "--"}.get(row.kind, "-"),
            linewidth=1.8,
            label=f"{row.recipe}: {needed}",
        )
    axes.axhline(90, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xscale("log", base=2)
    axes.set(xticks=[1, 2, 4, 8, 16, 32, 64, 128], xlim=(1, 128), ylim=(0, 101))
    axes.set_xticklabels(["1", "2", "4", "8", "16", "32", "64", "128"])
    axes.set_xlabel("components", color=INK)
    axes.set_title(name, loc="left", color=QUIET, fontsize=10)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        axes.legend(frameon=False, fontsize=8, title="components for 90%", title_fontsize=8)


def mean_curve(row: Row, curve: str) -> NDArray[np.float64] | None:
    """The mean over seeds; pixels have no readout but themselves."""
    name = "embedding" if row.kind == BASELINE else curve
    found = [result.curves[name] for result in row.results if name in result.curves]
    if not found:
        return None
    length = min(len(c) for c in found)
    return np.asarray(np.mean([c[:length] for c in found], axis=0))


def save(figure: Figure, path: Path) -> None:
    """Write the PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(temporary)
    temporary.replace(path)
