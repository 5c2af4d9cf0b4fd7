"""A contact sheet: each query and its neighbours, turned to match, as one PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipelines.pictures import Pose, apply_pose, fit, from_pixels, open_picture
from pipelines.search import Hit

Query = tuple[NDArray[Any] | Image.Image | None, Sequence[Hit]]
Colour = tuple[int, int, int]

PAPER: Colour = (251, 250, 247)
INK: Colour = (29, 28, 26)
QUIET: Colour = (118, 113, 104)
LINE: Colour = (226, 221, 211)
PIT: Colour = (238, 235, 228)
ACCENT: Colour = (47, 95, 168)

SCALE = 2  # drawn at twice the size, so that type is crisp on today's screens
MARGIN, GAP, CORNER = 32 * SCALE, 14 * SCALE, 7 * SCALE
QUERY, HIT, CAPTION, GUTTER = 132 * SCALE, 104 * SCALE, 64 * SCALE, 34 * SCALE
COLUMNS, MAX_ROWS, MAX_PIXELS = 10, 60, 60_000_000


def write_sheet(
    path: str | os.PathLike[str],
    queries: Sequence[Query],
    thumbnails: Mapping[str, bytes],
    *,
    turn: bool = True,
) -> None:
    """Write a PNG with a row for each query: its image, then its hits, best first.

    queries: (pixels (H, W) or (H, W, C), or a picture, or None; hits). thumbnails: by image_id, as
    ``Searcher.thumbnails`` gives them. With ``turn`` a hit that has a pose is shown as g(hit).
    What is past 60 queries or 60 megapixels is not drawn, and the sheet says so.
    """
    columns = min(COLUMNS, max((len(hits) for _, hits in queries), default=1) or 1)
    width = 2 * MARGIN + QUERY + GUTTER + columns * HIT + (columns - 1) * GAP
    counts = [len(hits) for _, hits in queries[:MAX_ROWS]]
    heights = _heights(counts, columns, MAX_PIXELS // width)
    shown = queries[: len(heights)]
    left_out = len(queries) - len(shown)
    height = 2 * MARGIN + sum(heights) + GAP * max(0, len(shown) - 1)
    height += 24 * SCALE if left_out else 0
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = _Pen(sheet)
    top = MARGIN
    for number, ((picture, hits), tall) in enumerate(zip(shown, heights, strict=True)):
        if number:
            pen.rule(MARGIN, top - GAP, width - MARGIN)
        _draw_row(pen, top, _as_picture(picture), hits, thumbnails, columns, turn)
        top += tall + GAP
    if left_out:
        words = f"and {left_out} more quer{'y' if left_out == 1 else 'ies'}, not drawn"
        pen.text(MARGIN, height - MARGIN - 8 * SCALE, words, 13, QUIET, width)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    Path(path).write_bytes(buffer.getvalue())


def _heights(nums_hits: Sequence[int], columns: int, room: int) -> list[int]:
    """The heights of as many rows as there is room for; the first is always drawn."""
    heights: list[int] = []
    for num_hits in nums_hits:
        tall = _row_height(num_hits, columns)
        if heights and sum(heights) + tall + GAP * (len(heights) + 2) + 2 * MARGIN > room:
            break
        heights.append(tall)
    return heights


def _row_height(num_hits: int, columns: int) -> int:
    lines = max(1, -(-num_hits // columns))
    hits = lines * (HIT + CAPTION) + (lines - 1) * GAP
    return max(QUERY + 26 * SCALE, hits) + GAP


def _as_picture(image: NDArray[Any] | Image.Image | None) -> Image.Image | None:
    if image is None:
        return None
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    return from_pixels(np.asarray(image))


def _draw_row(
    pen: _Pen,
    top: int,
    query: Image.Image | None,
    hits: Sequence[Hit],
    thumbnails: Mapping[str, bytes],
    columns: int,
    turn: bool,
) -> None:
    pen.picture(MARGIN, top, QUERY, query)
    pen.text(MARGIN, top + QUERY + 8 * SCALE, "query", 13, QUIET, QUERY)
    if not hits:
        pen.text(MARGIN + QUERY + GUTTER, top + 8 * SCALE, "no neighbours", 14, QUIET, HIT * 3)
    for place, hit in enumerate(hits):
        line, column = divmod(place, columns)
        x = MARGIN + QUERY + GUTTER + column * (HIT + GAP)
        y = top + line * (HIT + CAPTION + GAP)
        pose = None if hit.pose is None else Pose(hit.pose["angle_degrees"], hit.pose["mirror"])
        picture = open_picture(thumbnails.get(hit.image_id))
        if picture is not None and pose is not None and turn:
            picture = apply_pose(picture, pose)
        pen.picture(x, y, HIT, picture)
        _draw_caption(pen, x, y + HIT, hit, pose)


def _draw_caption(pen: _Pen, x: int, y: int, hit: Hit, pose: Pose | None) -> None:
    pen.text(x, y + 6 * SCALE, f"{hit.score:.3f}", 14, INK, HIT, strong=True)
    if pose is not None and not pose.identity:
        pen.turn(x + HIT, y + 6 * SCALE, pose)
    named = hit.label if hit.label else hit.source
    pen.text(x, y + 25 * SCALE, named, 12, INK, HIT)
    pen.text(x, y + 42 * SCALE, hit.key, 12, QUIET, HIT, from_end=True)


class _Pen:
    """Draws on one sheet; lengths are in the sheet's own pixels, type sizes before scaling."""

    def __init__(self, sheet: Image.Image) -> None:
        self._sheet, self._draw = sheet, ImageDraw.Draw(sheet)
        self._fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def picture(self, x: int, y: int, side: int, picture: Image.Image | None) -> None:
        """A picture in a square with rounded corners; a quiet square when there is none."""
        if picture is None:
            self._draw.rounded_rectangle((x, y, x + side, y + side), CORNER, fill=PIT)
            self.text(x + 10 * SCALE, y + side // 2 - 8 * SCALE, "no thumbnail", 12, QUIET, side)
            return
        mask = Image.new("L", (side, side), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), CORNER, fill=255)
        self._sheet.paste(fit(picture, side, PIT), (x, y), mask)

    def rule(self, left: int, y: int, right: int) -> None:
        """A thin line."""
        self._draw.line((left, y, right, y), fill=LINE, width=SCALE)

    def text(
        self,
        x: int,
        y: int,
        words: str,
        size: int,
        colour: Colour,
        width: int,
        *,
        strong: bool = False,
        from_end: bool = False,
    ) -> None:
        """One line of at most ``width``; an ellipsis stands for the rest (``from_end``: before)."""
        font = self._font(size)
        printable = "".join(letter if letter.isprintable() else "?" for letter in words)
        line = _shortened(printable, font, width, from_end)
        # The font has one weight: a stroke of one pixel makes it strong.
        self._draw.text((x, y), line, font=font, fill=colour, stroke_width=int(strong))

    def turn(self, right: int, y: int, pose: Pose) -> None:
        """The turn, to a degree, at the right, with signs for turn and mirror before it: beside the
        score there is room for no more."""
        font = self._font(12)
        degrees = round(pose.angle_degrees) % 360
        words = f"{degrees}°" if degrees else ""
        x = right - font.getlength(words)
        self._draw.text((x, y + SCALE), words, font=font, fill=ACCENT)
        if words:
            x -= 15 * SCALE
            self._arc(x, y + 3 * SCALE, 10 * SCALE)
        if pose.mirror:
            self._mirror(x - 17 * SCALE, y + 3 * SCALE, 12 * SCALE)

    def _arc(self, x: float, y: float, side: int) -> None:
        # Counter-clockwise, from the right over the top to the lower left.
        self._draw.arc((x, y, x + side, y + side), 150, 390, fill=ACCENT, width=round(1.5 * SCALE))
        tip, head = (x + side * 0.07, y + side * 0.78), 3.4 * SCALE
        points = [(tip[0] - head, tip[1] - head * 0.7), (tip[0] + head, tip[1] - head * 0.5)]
        self._draw.polygon([*points, (tip[0] + head * 0.2, tip[1] + head * 0.9)], fill=ACCENT)

    def _mirror(self, x: float, y: float, side: int) -> None:
        middle, half = x + side / 2, side * 0.34
        self._draw.line((middle, y, middle, y + side * 0.84), fill=ACCENT, width=SCALE)
        for sign in (-1, 1):
            outer, inner = middle + sign * side * 0.52, middle + sign * side * 0.14
            centre = y + side * 0.42
            self._draw.polygon(
                [(outer, centre), (inner, centre - half), (inner, centre + half)], fill=ACCENT
            )

    def _font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        if size not in self._fonts:
            self._fonts[size] = ImageFont.load_default(size=size * SCALE)
        return self._fonts[size]


def _shortened(
    words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, from_end: bool
) -> str:
    words = words[:400] if not from_end else words[-400:]
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}…") > width:
        words = words[1:] if from_end else words[:-1]
    return f"…{words}" if from_end else f"{words}…"
