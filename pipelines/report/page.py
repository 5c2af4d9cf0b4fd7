"""The page: the document of facts, the pictures, the plots, one template; nothing is loaded from
anywhere else."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup

from pipelines.drift import FEWEST, draws_worse
from pipelines.pictures import Pose, data_uri, from_pixels, kind_of, open_picture, webp
from pipelines.report.findings import Findings
from pipelines.report.palette import FAINT, PALETTE, colour_of
from pipelines.sprites import pack

GROUPS_SHOWN, MEMBERS_SHOWN, CARDS_SHOWN = 32, 8, 60
PLOT_WIDTH, PLOT_HEIGHT = 640, 220


def render_page(document: Mapping[str, Any], found: Findings) -> str:
    """The HTML page of a document (facts.build_document). Every text in it is escaped."""
    pictures = dict(_pictures(document, found))
    script, style = _template("report.js"), _template("report.css")
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template("report.html.j2")
    return page.render(
        doc=document,
        pictures=pictures,
        worst=_worst(document, found),
        redrawn=_redrawn(document, found),
        map=_map(found),
        curve=_curve(document["invariance"]),
        variance=_variance(found.map.variance),
        groups_shown=GROUPS_SHOWN,
        members_shown=MEMBERS_SHOWN,
        cards_shown=CARDS_SHOWN,
        fewest=FEWEST,
        draws_worse=_draws_worse(document["invariance"]),
        script=Markup(script),
        style=Markup(style),
        script_sha256=policy,
    )


def _environment() -> Environment:
    names = ("report.html.j2", "report_macros.html.j2")
    made = Environment(
        loader=DictLoader({name: _template(name) for name in names}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"num": number, "share": share, "small": small}
    made.filters |= {"pose": _pose, "colour": colour_of}
    return made


def _template(name: str) -> str:
    return (files("pipelines") / "templates" / name).read_text("utf-8")


def number(value: float | None, digits: int = 0) -> str:
    """1234567 -> '1,234,567'; None -> an en dash."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001


def share(value: float | None, digits: int = 1) -> str:
    """0.1234 -> '12.3%'; never '100%' unless it is all, never '0%' unless it is none."""
    if value is None:
        return "–"  # noqa: RUF001
    text = f"{100 * value:.{digits}f}"
    step = 10.0**-digits
    if value < 1 and float(text) >= 100:
        text = f"{100 - step:.{digits}f}"
    if value > 0 and float(text) == 0:
        return f"<{step:g}%"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}%"


def small(value: float | None) -> Markup | str:
    """0.0000012 -> 1.2 x 10 to the -6, set properly."""
    if value is None:
        return "–"  # noqa: RUF001
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.4g}"
    power = math.floor(math.log10(abs(value)))
    return Markup("{}\u202f×\u202f10<sup>−{}</sup>").format(  # noqa: RUF001
        f"{value / 10.0**power:.1f}", -power
    )


def _pose(pose: Mapping[str, Any]) -> Pose:
    return Pose(float(pose["angle_degrees"]), bool(pose["mirror"]))


def _pictures(document: Mapping[str, Any], found: Findings) -> Iterator[tuple[str, str]]:
    """image_id -> data URI of the thumbnail, for every image the page shows by itself."""
    wanted = {int(image["image_id"]) for image in _shown(document)}
    for image_id, data in found.thumbnails(wanted).items():
        if open_picture(data) is not None:
            yield str(image_id), data_uri(data, kind_of(data))


def _shown(document: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for cluster in document["clusters"]["clusters"][:CARDS_SHOWN]:
        yield cluster["medoid"]
        yield from cluster["nearest"]
        yield from cluster["farthest"]
    for group in document["duplicates"]["groups"][:GROUPS_SHOWN]:
        yield from group["members"][:MEMBERS_SHOWN]
    yield from document["outliers"]["images"]


def _worst(document: Mapping[str, Any], found: Findings) -> list[dict[str, Any]]:
    """The images that move most, drawn from their own pixels."""
    named = document["invariance"].get("worst", ())
    shown = []
    for record, (_, pixels) in zip(named, found.invariance.worst, strict=True):
        shown.append({**record, "uri": _drawn(pixels)})
    return shown


def _redrawn(document: Mapping[str, Any], found: Findings) -> list[dict[str, Any]]:
    """What the model was given beside what it drew."""
    redrawn, told = found.invariance.redrawn, document["invariance"]["reconstruction"]
    if redrawn is None or told is None:
        return []
    return [
        {**record, "given": _drawn(given), "drawn": _drawn(drawn)}
        for record, (given, drawn) in zip(told["examples"], redrawn.pairs, strict=True)
    ]


def _drawn(pixels: Any) -> str:
    picture = from_pixels(pixels)
    picture.thumbnail((96, 96))
    return data_uri(webp(picture, 80))


def _draws_worse(invariance: Mapping[str, Any]) -> bool:
    redrawn = invariance["reconstruction"]
    return redrawn is not None and draws_worse(redrawn)


def _map(found: Findings) -> dict[str, Any] | None:
    """What the page's script draws: positions, categories and sprites of the points shown."""
    shown = found.map.shown
    if not found.map.layouts:
        return None
    rows = found.rows.table.take(pa.array(shown))
    ids = rows["image_id"].to_pylist()
    thumbnails = found.thumbnails(ids)
    sprites = pack(lambda: (open_picture(thumbnails.get(i)) for i in ids)) if thumbnails else None
    labels, sources = rows["label"].to_pylist(), rows["source"].to_pylist()
    return {
        "layouts": {name: points.ravel().tolist() for name, points in found.map.layouts.items()},
        "keys": rows["key"].to_pylist(),
        "cluster": found.clustering.assigned[shown].tolist(),
        "label": _coded(labels) if any(labels) else None,
        "source": _coded(sources),
        "outlier": [round(float(score), 4) for score in found.outlier[shown]],
        "palette": PALETTE,
        "faint": FAINT,
        "sprites": None if sprites is None else sprites.as_dict(),
    }


def _coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Names by falling count, and for each point the number of its name (-1: none)."""
    counts: dict[str, int] = {}
    for value in values:
        if value is not None:
            counts[value] = counts.get(value, 0) + 1
    names = sorted(counts, key=lambda name: (-counts[name], name))
    place = {name: number for number, name in enumerate(names)}
    return {"names": names, "codes": [-1 if v is None else place[v] for v in values]}


def _curve(invariance: Mapping[str, Any]) -> dict[str, Any] | None:
    points = invariance.get("curve")
    if not points:
        return None
    top = max(0.05, math.ceil(max(error for _, error in points) * 10) / 10)
    return _plot([(x / 360, y / top) for x, y in points]) | {
        "x_ticks": [(x / 360 * PLOT_WIDTH, f"{x}°") for x in range(0, 361, 90)],
        "y_ticks": _ticks(top),
    }


def _variance(variance: Sequence[float]) -> dict[str, Any] | None:
    if len(variance) < 2:
        return None
    last = len(variance)
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, last) if last / step <= 8)
    return _plot([(0.0, 0.0), *((i / last, v) for i, v in enumerate(variance, 1))]) | {
        "x_ticks": [(i / last * PLOT_WIDTH, str(i)) for i in range(0, last + 1, step)],
        "y_ticks": [((1 - v) * PLOT_HEIGHT, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1)],
    }


def _ticks(top: float) -> list[tuple[float, str]]:
    return [((1 - i / 4) * PLOT_HEIGHT, f"{top * i / 4:.3g}") for i in range(5)]


def _plot(points: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Points in the unit square -> SVG path data of the line and of the area under it."""
    placed = np.array(points) * (PLOT_WIDTH, -PLOT_HEIGHT) + (0, PLOT_HEIGHT)
    line = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    area = f"{line}L{placed[-1, 0]:.1f},{PLOT_HEIGHT}L{placed[0, 0]:.1f},{PLOT_HEIGHT}Z"
    return {
        "line": line,
        "area": area,
        "dots": [(round(float(x), 1), round(float(y), 1)) for x, y in placed],
        "width": PLOT_WIDTH,
        "height": PLOT_HEIGHT,
    }
