"""The text of the function that products.py has compiled, in the language of LLVM."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from eqmodel.machine import lanes
from eqmodel.machine_code import Writer
from eqmodel.products import ARGUMENTS, vectors_of

ESTIMATED = ("afn", "arcp")  # 1 / sqrt may be an estimate and one step of Newton's: 1e-7 of it


def text_of(order: int) -> str:
    """See ``products.compiled``."""
    function = _Function(order)
    function.loop(function.given["num_runs"], 1, function.run_of_products)
    return function.text()


class _Function(Writer):
    def __init__(self, order: int) -> None:
        super().__init__(ARGUMENTS, lanes(), vectors_of(order))
        self.order = order
        kind = ir.FunctionType(self.vector, [self.vector])
        self.sqrt, self.fabs = (
            ir.Function(self.module, kind, f"llvm.{name}.v{self.lanes}f32")
            for name in ("sqrt", "fabs")
        )
        self.one = ir.Constant(self.vector, [1.0] * self.lanes)

    def run_of_products(self, index: Any) -> None:
        """The products of one column, which is held in registers, with others."""
        given, build = self.given, self.build
        codes, first = given["codes"], build.mul(index, self.number(self.order))
        rows = [build.add(first, self.number(g)) for g in range(self.order)]
        lefts = [self.load_vectors(self.place(codes, given["lefts"], row)) for row in rows]
        rights = [self.place(codes, given["rights"], row) for row in rows]
        start = self.entry(given["starts"], index)
        end = self.entry(given["starts"], build.add(index, self.number(1)))

        def product(step: Any) -> None:
            coordinate = build.add(start, step)
            column = build.mul(self.entry(given["columns"], coordinate), self.number(4))
            totals = [self.zero] * self.vectors
            for left, right in zip(lefts, rights, strict=True):
                values = self.load_vectors(build.add(right, column))
                terms = zip(left, values, totals, strict=True)
                totals = [self.multiply_add(*term) for term in terms]
            eps = self.spread(self.plus(given["eps"], coordinate, 4))
            row = build.mul(coordinate, given["num_images"])
            roots = [self.root(total, eps) for total in totals]
            self.store_vectors(self.plus(given["out"], row, 4), roots)

        self.loop(build.sub(end, start), 1, product)

    def root(self, x: Any, eps: Any) -> Any:
        """x / sqrt(|x| + eps)."""
        build = self.build
        square = build.fadd(build.call(self.fabs, [x]), eps)
        size = build.call(self.sqrt, [square], fastmath=ESTIMATED)
        return build.fmul(x, build.fdiv(self.one, size, flags=ESTIMATED))
