"""The text of the function that shrinks pixels for thumbnails.py, in the language of LLVM."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from eqmodel.machine import lanes
from eqmodel.machine_code import Writer

ARGUMENTS = ("image", "rows", "values", "height", "width", "out")


def text_of(points: int) -> str:
    """``image`` uint8; ``rows`` (points, height) and ``values`` (points, width) int32: where rows
    begin and values lie in them, in bytes; ``out`` (height, width) uint8: the means of points *
    points values each, rounded.
    """
    function = _Function(points)
    function.loop(function.given["height"], 1, function.row)
    return function.text()


class _Function(Writer):
    def __init__(self, points: int) -> None:
        super().__init__(ARGUMENTS, lanes(), 1)
        self.points = points

    def row(self, row: Any) -> None:
        given, build = self.given, self.build
        starts = [
            build.add(given["image"], self.entry(given["rows"], index))
            for index in self.of_all_points(row, given["height"])
        ]
        target = build.add(given["out"], build.mul(row, given["width"]))

        def mean(value: Any) -> None:
            total = ir.Constant(self.short, self.points**2 // 2)
            for index in self.of_all_points(value, given["width"]):
                place = self.entry(given["values"], index)
                for start in starts:
                    total = build.add(total, self.byte(build.add(start, place)))
            found = build.udiv(total, ir.Constant(self.short, self.points**2))
            place = build.inttoptr(build.add(target, value), ir.IntType(8).as_pointer())
            build.store(build.trunc(found, ir.IntType(8)), place)

        self.loop(given["width"], 1, mean)

    def of_all_points(self, index: Any, length: Any) -> list[Any]:
        """The entries of a row, or value, in its table."""
        steps = [self.build.mul(length, self.number(point)) for point in range(self.points)]
        return [self.build.add(index, step) for step in steps]

    def byte(self, address: Any) -> Any:
        place = self.build.inttoptr(address, ir.IntType(8).as_pointer())
        return self.build.zext(self.build.load(place), self.short)
