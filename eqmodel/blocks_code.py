"""The text of the function that blocks.py has compiled, in the language of LLVM."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from llvmlite import ir

from eqmodel.blocks import ARGUMENTS, VECTORS, Signs, lanes

Steps = list[tuple[int, int, int]]


def text_of(signs: Signs, lines: int, copies: int, block: int, relu: bool) -> str:
    """See ``blocks.compiled``."""
    text = str(_Function(signs, lines, copies, block, relu).module)
    bits = 32 * lanes()  # LLVM would rather take shorter vectors than the processor has
    wide = f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}"'
    return re.sub(r'(define void @"run"\([^)]*\))', rf"\1 {wide}", text)


def shared_sums(rows: Signs) -> tuple[Steps, list[dict[int, int]]]:
    """Rows of 0, 1, -1 as sums of sums: (steps, rows), each step (a, b, sign) a new term a + sign
    b.

    What two rows have in common is summed once, the most common pair first: 20 additions in place
    of 36 for D4.
    """
    left = [{k: sign for k, sign in enumerate(row) if sign} for row in rows]
    steps, terms = Steps(), len(rows[0])
    while True:
        pairs = Counter(
            (a, b, row[a] * row[b]) for row in left for a, b in combinations(sorted(row), 2)
        )
        pair, times = max(pairs.items(), key=lambda found: (found[1], found[0]), default=(None, 0))
        if pair is None or times < 2:
            return steps, left
        a, b, sign = pair
        for row in left:
            if a in row and b in row and row[a] * row[b] == sign:
                row[terms] = row.pop(a)
                del row[b]
        steps.append(pair)
        terms += 1


class _Function:
    """The function as LLVM reads it: addresses and numbers are words, values come in vectors."""

    def __init__(self, signs: Signs, lines: int, copies: int, block: int, relu: bool) -> None:
        self.lanes, self.block = lanes(), block
        self.word, self.short, self.real = ir.IntType(64), ir.IntType(32), ir.FloatType()
        self.vector = ir.VectorType(self.real, self.lanes)
        self.zero = ir.Constant(self.vector, [0.0] * self.lanes)
        self.row_bytes = 4 * VECTORS * self.lanes
        self.module = ir.Module()
        fma = ir.FunctionType(self.vector, [self.vector] * 3)
        self.fma = ir.Function(self.module, fma, f"llvm.fma.v{self.lanes}f32")
        kind = ir.FunctionType(ir.VoidType(), [self.word] * len(ARGUMENTS))
        self.function = ir.Function(self.module, kind, "run")
        self.given = dict(zip(ARGUMENTS, self.function.args, strict=True))
        self.build = ir.IRBuilder(self.function.append_basic_block())
        self.signs, self.lines, self.copies, self.relu = signs, lines, copies, relu
        self.order = len(signs)
        self.loop(self.given["num_places"], 1, self.at_place)
        self.build.ret_void()

    # -- what is computed ---------------------------------------------------------------------

    def at_place(self, index: Any) -> None:
        """All fields at one place of the output."""
        given, build = self.given, self.build
        source = self.place(given["x"], given["places"], index)
        target = self.place(given["out"], given["targets"], index)
        rows = build.mul(given["padded"], self.number(self.order))
        self.loop(rows, 1, lambda row: self.store_row(given["products"], row, [self.zero] * 2))

        def some(first: Any) -> None:
            left = build.sub(given["depth"], first)
            fewer = build.icmp_signed("<", left, given["at_once"])
            rows = build.select(fewer, left, given["at_once"])
            self.loop(rows, 1, lambda row: self.patch_row(source, first, row))
            self.multiply(first, rows)

        self.loop(given["depth"], given["at_once"], some)
        self.loop(given["fields"], 1, lambda field: self.field(target, field))

    def patch_row(self, source: Any, first: Any, row: Any) -> None:
        """One value of the patch under every element, to its parts in the basis."""
        given, build = self.given, self.build
        index = build.mul(build.add(first, row), self.number(self.order))
        places = [
            self.place(source, given["inputs"], build.add(index, self.number(g)))
            for g in range(self.order)
        ]
        loaded = [self.load_vectors(place) for place in places]
        parts = [self.sums(self.signs, list(terms)) for terms in zip(*loaded, strict=True)]
        for part, vectors in enumerate(zip(*parts, strict=True)):
            place = build.add(build.mul(given["at_once"], self.number(part)), row)
            self.store_row(given["patches"], place, vectors)

    def multiply(self, first: Any, rows: Any) -> None:
        """Add the products of some rows of the patches with their blocks."""
        given, build, step = self.given, self.build, self.number(self.block)
        padded = given["padded"]
        per_row = build.mul(padded, self.number(self.lines + (4 if self.copies else 0)))
        weights = self.plus(given["weights"], build.mul(first, per_row), 4)
        size = build.mul(rows, step)

        def line(part: Any) -> None:
            def block(at: Any) -> None:
                row = build.add(build.mul(part, padded), at)
                of_it = self.plus(weights, build.mul(row, rows), 4)
                self.add_products(row, [(part, of_it)], rows)

            self.loop(padded, self.block, block)

        self.loop(self.number(self.lines), 1, line)
        if not self.copies:
            return
        lines = build.mul(padded, self.number(self.lines))
        of_plane = self.plus(weights, build.mul(lines, rows), 4)
        both = build.mul(padded, self.number(2))

        def copy(index: Any) -> None:
            def block(at: Any) -> None:
                row = build.add(lines, build.add(build.mul(index, both), at))
                of_it = self.plus(of_plane, build.mul(build.mul(at, self.number(2)), rows), 4)
                first_part = build.add(index, self.number(self.lines))
                second_part = build.add(first_part, self.number(self.copies))
                pieces = [(first_part, of_it), (second_part, self.plus(of_it, size, 4))]
                self.add_products(row, pieces, rows)

            self.loop(both, self.block, block)

        self.loop(self.number(self.copies), 1, copy)

    def add_products(self, row: Any, pieces: Sequence[tuple[Any, Any]], rows: Any) -> None:
        """To ``block`` rows of the products from ``row`` on, kept in registers: for each (part,
        weights) the weights (rows, block) times the part's rows.
        """
        given, build = self.given, self.build
        place = self.plus(given["products"], row, self.row_bytes)
        at = [self.plus(place, self.number(i), self.row_bytes) for i in range(self.block)]
        sums = [vector for each in at for vector in self.load_vectors(each)]
        for part, weights in pieces:
            start = build.mul(part, given["at_once"])

            def step(index: Any, sums: Any, start: Any = start, weights: Any = weights) -> Any:
                patch = self.plus(given["patches"], build.add(start, index), self.row_bytes)
                values = self.load_vectors(patch)
                of_row = self.plus(weights, build.mul(index, self.number(self.block)), 4)
                out = []
                for i in range(self.block):
                    weight = self.spread(self.plus(of_row, self.number(i), 4))
                    out += [
                        build.call(self.fma, [weight, value, sums[i * VECTORS + j]])
                        for j, value in enumerate(values)
                    ]
                return out

            sums = self.loop(rows, 1, step, sums)
        for i, each in enumerate(at):
            self.store_vectors(each, sums[i * VECTORS : (i + 1) * VECTORS])

    def field(self, target: Any, field: Any) -> None:
        """One field, from its parts back to its values under every element."""
        given, build = self.given, self.build
        padded, products = given["padded"], given["products"]
        rows = [build.mul(padded, self.number(line)) for line in range(self.lines)]
        for component in range(2 if self.copies else 0):
            for copy in range(self.copies):
                rows.append(build.mul(padded, self.number(self.lines + 2 * copy + component)))
        loaded = [
            self.load_vectors(self.plus(products, build.add(row, field), self.row_bytes))
            for row in rows
        ]
        bias = self.spread(self.plus(given["bias"], field, 4))
        back = tuple(zip(*self.signs, strict=True))
        found = []
        for terms in zip(*loaded, strict=True):
            summed = self.sums(back, [build.fadd(terms[0], bias), *terms[1:]])
            found.append([self.rectified(value) for value in summed] if self.relu else summed)
        index = build.mul(field, self.number(self.order))
        for g, vectors in enumerate(zip(*found, strict=True)):
            place = self.place(target, given["outputs"], build.add(index, self.number(g)))
            self.store_vectors(place, vectors)

    def sums(self, signs: Signs, terms: list[Any]) -> list[Any]:
        build = self.build
        steps, rows = shared_sums(signs)
        terms = list(terms)
        for a, b, sign in steps:
            terms.append((build.fadd if sign > 0 else build.fsub)(terms[a], terms[b]))
        found = []
        for row in rows:
            first = next((k for k, sign in row.items() if sign > 0), min(row))
            total = terms[first] if row[first] > 0 else build.fneg(terms[first])
            for k, sign in row.items():
                if k != first:
                    total = (build.fadd if sign > 0 else build.fsub)(total, terms[k])
            found.append(total)
        return found

    def rectified(self, value: Any) -> Any:
        """ReLU; what is not a number stays so."""
        negative = self.build.fcmp_ordered("<", value, self.zero)
        return self.build.select(negative, self.zero, value)

    # -- how it is written --------------------------------------------------------------------

    def number(self, value: int) -> Any:
        return ir.Constant(self.word, value)

    def plus(self, address: Any, index: Any, size: int) -> Any:
        return self.build.add(address, self.build.mul(index, self.number(size)))

    def place(self, base: Any, table: Any, index: Any) -> Any:
        """base + table[index] values."""
        entry = self.build.inttoptr(self.plus(table, index, 4), self.short.as_pointer())
        return self.plus(base, self.build.sext(self.build.load(entry), self.word), 4)

    def load_vectors(self, address: Any) -> list[Any]:
        return [self.build.load(at, align=4) for at in self._vectors(address)]

    def store_vectors(self, address: Any, values: Sequence[Any]) -> None:
        for at, value in zip(self._vectors(address), values, strict=True):
            self.build.store(value, at, align=4)

    def store_row(self, base: Any, row: Any, values: Sequence[Any]) -> None:
        self.store_vectors(self.plus(base, row, self.row_bytes), values)

    def _vectors(self, address: Any) -> list[Any]:
        kind = self.vector.as_pointer()
        places = [self.plus(address, self.number(i), 4 * self.lanes) for i in range(VECTORS)]
        return [self.build.inttoptr(place, kind) for place in places]

    def spread(self, address: Any) -> Any:
        """One value in all places of a vector."""
        build, undefined = self.build, ir.Constant(self.vector, ir.Undefined)
        value = build.load(build.inttoptr(address, self.real.as_pointer()))
        single = build.insert_element(undefined, value, ir.Constant(self.short, 0))
        mask = ir.Constant(ir.VectorType(self.short, self.lanes), [0] * self.lanes)
        return build.shuffle_vector(single, undefined, mask)

    def loop(
        self, limit: Any, step: Any, body: Callable[..., Any], carried: Sequence[Any] = ()
    ) -> Any:
        """body(index, carried) for 0, step, 2 step, ... below ``limit``; what it carries on."""
        build = self.build
        before = build.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        build.branch(head)
        build.position_at_end(head)
        index, values = build.phi(self.word), [build.phi(value.type) for value in carried]
        index.add_incoming(self.number(0), before)
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        build.cbranch(build.icmp_signed("<", index, limit), inside, after)
        build.position_at_end(inside)
        new = body(index, values) if carried else body(index)
        step = self.number(step) if isinstance(step, int) else step
        index.add_incoming(build.add(index, step), build.block)
        for phi, value in zip(values, new or (), strict=True):
            phi.add_incoming(value, build.block)
        build.branch(head)
        build.position_at_end(after)
        return values
