"""The text of the function that weighted_rows.py has compiled, in the language of LLVM."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from eqmodel.machine import lanes
from eqmodel.machine_code import Writer
from eqmodel.weighted_rows import ARGUMENTS, VECTORS

AHEAD = 128  # bytes


def text() -> str:
    """``images`` (num_images,) int64, the addresses of images (H, length) uint8; ``firsts`` and
    ``counts`` (rows,) int32, ``weights`` (rows, most); ``out`` (num_images, rows, length) float32.
    """
    function = _Function()
    function.loop(function.given["num_images"], 1, function.image)
    return function.text()


class _Function(Writer):
    def __init__(self) -> None:
        super().__init__(ARGUMENTS, lanes(), VECTORS)
        self.bytes = ir.VectorType(ir.IntType(8), self.lanes)
        self.address = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [self.address, *[self.short] * 3])
        self.prefetch = ir.Function(self.module, kind, "llvm.prefetch.p0")

    def image(self, index: Any) -> None:
        build, rows = self.build, self.given["rows"]
        entry = self.plus(self.given["images"], index, 8)
        image = build.load(build.inttoptr(entry, self.word.as_pointer()))
        size = build.mul(rows, self.given["length"])
        out = self.plus(self.given["out"], build.mul(index, size), 4)
        self.loop(rows, 1, lambda row: self.row(image, out, row))

    def row(self, image: Any, out: Any, row: Any) -> None:
        """One row of the result, some vectors at a time; the last ones may overlap others."""
        given, build, step = self.given, self.build, self.vectors * self.lanes
        first, count = (self.entry(given[name], row) for name in ("firsts", "counts"))
        source = build.add(image, build.mul(first, given["length"]))
        weights = self.plus(given["weights"], build.mul(row, given["most"]), 4)
        target = self.plus(out, build.mul(row, given["length"]), 4)
        last = build.sub(given["length"], self.number(step))

        def columns(index: Any) -> None:
            fits = build.icmp_signed("<", index, last)
            column = build.select(fits, index, last)
            start = build.add(source, column)

            def add(line: Any, totals: Any) -> Any:
                weight = self.spread(self.plus(weights, line, 4))
                place = build.add(start, build.mul(line, given["length"]))
                self.fetch_ahead(build.add(place, self.number(AHEAD)))
                values = self.values(place)
                pairs = zip(values, totals, strict=True)
                return [self.multiply_add(weight, value, total) for value, total in pairs]

            totals = self.loop(count, 1, add, [self.zero] * self.vectors)
            self.store_vectors(self.plus(target, column, 4), totals)

        self.loop(given["length"], step, columns)

    def fetch_ahead(self, address: Any) -> None:
        """To be read, kept in all caches, data: the columns after the next on the same line, which
        the processor does not foresee.
        """
        how = [ir.Constant(self.short, value) for value in (0, 3, 1)]
        self.build.call(self.prefetch, [self.build.inttoptr(address, self.address), *how])

    def values(self, address: Any) -> list[Any]:
        """Vectors of bytes as float32."""
        build, kind = self.build, self.bytes.as_pointer()
        found = []
        for i in range(self.vectors):
            place = build.inttoptr(self.plus(address, self.number(i), self.lanes), kind)
            found.append(build.uitofp(build.load(place, align=1), self.vector))
        return found
