"""The main plots as PNG files beside the report, for slides, mails and wikis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.findings import Findings
from pipelines.report.palette import colour_of

WIDTH, HEIGHT, DPI = 8.0, 5.0, 200
INK, QUIET, LINE, ACCENT = "#1d1c1a", "#6d6860", "#e6e2d9", "#2f5fa8"
MOST = 40
"""Clusters that are named on the map and drawn by size, the largest."""


def map_plot(found: Findings) -> Figure | None:
    """The map, coloured by cluster; None for fewer than three images."""
    layouts, shown = found.map.layouts, found.map.shown
    name = "tsne" if "tsne" in layouts else "pca"
    if name not in layouts:
        return None
    figure, axes = _empty(f"{len(shown):,} of {len(found.rows):,} images, {_CALLED[name]}", HEIGHT)
    assigned = found.clustering.assigned[shown]
    colours = [colour_of(int(cluster)) for cluster in assigned]
    points = layouts[name]
    size = max(1.5, min(24.0, 9_000 / max(1, len(shown))))
    axes.scatter(points[:, 0], -points[:, 1], s=size, c=colours, linewidths=0, alpha=0.85)
    axes.set_axis_off()
    # Each cluster's id where most of it lies.
    for cluster in found.clustering.clusters[:MOST]:
        mine = points[assigned == cluster.id]
        if len(mine) >= 3:
            x, y = np.median(mine, axis=0)
            mark = {"boxstyle": "round,pad=0.25", "fc": "white", "ec": LINE, "alpha": 0.85}
            axes.text(x, -y, str(cluster.id), ha="center", va="center", fontsize=9, bbox=mark)
    return figure


def variance_plot(found: Findings) -> Figure | None:
    """The share of the variance that the first components explain; None with fewer than two."""
    shares = [0.0, *found.map.variance]
    if len(shares) < 3:
        return None
    figure, axes = _empty("Variance explained by the first principal components")
    axes.plot(range(len(shares)), [100 * share for share in shares], color=ACCENT, linewidth=2)
    axes.fill_between(range(len(shares)), [100 * s for s in shares], color=ACCENT, alpha=0.1)
    axes.set(xlim=(0, len(shares) - 1), ylim=(0, 100), xlabel="components", ylabel="percent")
    return figure


def turns_plot(found: Findings) -> Figure | None:
    """How far embeddings move when images are turned; None where that was not measured."""
    curve = found.invariance.section.get("curve")
    if not curve:
        return None
    figure, axes = _empty("How far an embedding moves when its image is turned (median)")
    axes.plot(*zip(*curve, strict=True), color=ACCENT, linewidth=2, marker="o", markersize=3)
    axes.set(xlim=(0, 360), xlabel="degrees, counter-clockwise", ylabel="share of its length")
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(0, 361, 45))
    return figure


def sizes_plot(found: Findings) -> Figure | None:
    """The largest clusters by size; None where there is none."""
    clusters = found.clustering.clusters[:MOST]
    if not clusters:
        return None
    total = len(found.clustering.clusters)
    title = f"{total} clusters" if total <= MOST else f"The {MOST} largest of {total} clusters"
    figure, axes = _empty(f"{title}, by number of images" if total > 1 else "One cluster")
    names = [str(cluster.id) for cluster in clusters]
    axes.bar(names, [c.size for c in clusters], color=[colour_of(c.id) for c in clusters])
    axes.set(xlabel="cluster", ylabel="images")
    return figure


_CALLED = {"tsne": "t-SNE", "pca": "principal components"}
PLOTS: dict[str, Callable[[Findings], Figure | None]] = {
    "map.png": map_plot,
    "clusters.png": sizes_plot,
    "variance.png": variance_plot,
    "turns.png": turns_plot,
}


def write_plots(found: Findings, folder: Path) -> list[str]:
    """Write into ``folder`` every one of PLOTS that there is something to draw for; their names."""
    figures = {name: draw(found) for name, draw in PLOTS.items()}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=DPI, metadata={"Software": "orbit"})
    return list(drawn)


def _empty(title: str, height: float = 0.72 * HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, height), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=12, color=INK, pad=10)
    axes.grid(axis="y", color=LINE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=QUIET, length=0)
    axes.xaxis.label.set_color(QUIET)
    axes.yaxis.label.set_color(QUIET)
    return figure, axes
