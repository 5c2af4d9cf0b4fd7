"""Thumbnails packed into few pictures, so that a page with 20,000 of them stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pipelines.pictures import data_uri, fit, webp

MAX_BYTES = 9_000_000
"""Of all sheets of one page, as they stand in it."""
SHEET_SIDE = 1_920
"""Pixels: phones refuse to draw from much larger pictures."""
STEPS = ((40, 60), (40, 40), (32, 40), (24, 40), (24, 20), (16, 20), (12, 10))
"""(side, WebP quality) of sprites, tried in turn until all fit into MAX_BYTES."""

Pictures = Callable[[], Iterator[Image.Image | None]]


@dataclass(frozen=True)
class Sprites:
    """Sprite number i lies in sheet i // per_sheet; there its place is j = i % per_sheet, in row
    j // columns and column j % columns, each ``side`` pixels."""

    uris: Sequence[str]
    side: int
    columns: int

    @property
    def num_bytes(self) -> int:
        """Of all sheets together, in the page."""
        return sum(map(len, self.uris))

    def as_dict(self) -> dict[str, Any]:
        """For the page's script."""
        per_sheet = self.columns * self.columns
        return {
            "uris": list(self.uris),
            "side": self.side,
            "columns": self.columns,
            "per_sheet": per_sheet,
        }


def pack(pictures: Pictures, max_bytes: int = MAX_BYTES) -> Sprites | None:
    """Pictures in their order, a gap where there is none, as large and fine as ``max_bytes`` allow;
    None where no sheets that small can be made. ``pictures`` is called once for each try."""
    for side, quality in STEPS:
        made: list[str] = []
        for sheet in _sheets(pictures(), side):
            made.append(data_uri(webp(sheet, quality)))
            if sum(map(len, made)) > max_bytes:
                break
        else:
            return Sprites(made, side, SHEET_SIDE // side)
    return None


def _sheets(pictures: Iterator[Image.Image | None], side: int) -> Iterator[Image.Image]:
    columns = SHEET_SIDE // side
    sheet, used = None, 0
    for number, picture in enumerate(pictures):
        place = number % (columns * columns)
        if sheet is None or not place:
            if sheet is not None:
                yield sheet
            sheet = Image.new("RGB", (columns * side, columns * side))
        if picture is not None:
            sheet.paste(fit(picture, side), (place % columns * side, place // columns * side))
        used = place
    if sheet is not None:
        yield sheet.crop((0, 0, columns * side, (used // columns + 1) * side))
