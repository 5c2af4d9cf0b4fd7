"""The text of the function that blocks.py has compiled, in the language of LLVM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from eqmodel.blocks import ARGUMENTS, VECTORS, Signs
from eqmodel.machine import lanes
from eqmodel.machine_code import Writer

Steps = list[tuple[int, int, int]]


def text_of(signs: Signs, lines: int, copies: int, block: int, relu: bool, depthwise: bool) -> str:
    """See ``blocks.compiled``."""
    function = _Function(signs, lines, copies, block, relu, depthwise)
    function.loop(function.given["num_places"], 1, function.at_place)
    return function.text()


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


class _Function(Writer):
    def __init__(
        self, signs: Signs, lines: int, copies: int, block: int, relu: bool, depthwise: bool
    ) -> None:
        super().__init__(ARGUMENTS, lanes(), VECTORS)
        self.signs, self.lines, self.copies = signs, lines, copies
        self.block, self.relu, self.order = block, relu, len(signs)
        self.depthwise = depthwise
        self.row_bytes = 4 * VECTORS * self.lanes

    def at_place(self, index: Any) -> None:
        """All fields at one place of the output."""
        given, build = self.given, self.build
        source = self.place(given["x"], given["places"], index)
        target = self.place(given["out"], given["targets"], index)
        rows = build.mul(given["padded"], self.number(self.order))
        zeros = [self.zero] * VECTORS
        self.loop(rows, 1, lambda row: self.store_row(given["products"], row, zeros))

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
        index = build.add(first, row)
        values = self.filtered(source, index) if self.depthwise else self.under_all(source, index)
        loaded = [values[i : i + VECTORS] for i in range(0, len(values), VECTORS)]
        parts = [self.sums(self.signs, list(terms)) for terms in zip(*loaded, strict=True)]
        for part, vectors in enumerate(zip(*parts, strict=True)):
            place = build.add(build.mul(given["at_once"], self.number(part)), row)
            self.store_row(given["patches"], place, vectors)

    def under_all(self, source: Any, index: Any) -> list[Any]:
        """The vectors at one entry of ``inputs``, under each element."""
        index = self.build.mul(index, self.number(self.order))
        entries = [self.build.add(index, self.number(g)) for g in range(self.order)]
        places = [self.place(source, self.given["inputs"], entry) for entry in entries]
        return [vector for place in places for vector in self.load_vectors(place)]

    def filtered(self, source: Any, row: Any) -> list[Any]:
        """The sums over a filter's taps, under each element."""
        given, build = self.given, self.build
        start = build.mul(row, given["taps"])

        def tap(index: Any, sums: Any) -> Any:
            entry = build.add(start, index)
            weight = self.spread(self.plus(given["filters"], entry, 4))
            pairs = zip(self.under_all(source, entry), sums, strict=True)
            return [self.multiply_add(weight, value, total) for value, total in pairs]

        zeros = [self.zero] * (self.order * VECTORS)
        return list(self.loop(given["taps"], 1, tap, zeros))

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
                        self.multiply_add(weight, value, sums[i * VECTORS + j])
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

    def store_row(self, base: Any, row: Any, values: Sequence[Any]) -> None:
        self.store_vectors(self.plus(base, row, self.row_bytes), values)
