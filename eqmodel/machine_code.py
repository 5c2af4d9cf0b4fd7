"""What functions of machine code are written with: see machine.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir


class Writer:
    """One function ``run``: addresses and numbers are 64-bit words, values come in vectors of
    ``lanes`` float32.
    """

    def __init__(self, arguments: Sequence[str], lanes: int, vectors: int) -> None:
        """``vectors`` are loaded and stored side by side."""
        self.lanes, self.vectors = lanes, vectors
        self.word, self.short, self.real = ir.IntType(64), ir.IntType(32), ir.FloatType()
        self.vector = ir.VectorType(self.real, lanes)
        self.zero = ir.Constant(self.vector, [0.0] * lanes)
        self.module = ir.Module()
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        self._multiply_add = ir.Function(self.module, kind, f"llvm.fma.v{lanes}f32")
        kind = ir.FunctionType(ir.VoidType(), [self.word] * len(arguments))
        self.function = ir.Function(self.module, kind, "run")
        self.given: dict[str, Any] = dict(zip(arguments, self.function.args, strict=True))
        self.build = ir.IRBuilder(self.function.append_basic_block())

    def text(self) -> str:
        """The module in the language of LLVM."""
        self.build.ret_void()
        bits = 32 * self.lanes  # LLVM would rather take shorter vectors than the processor has
        wide = f'"min-legal-vector-width"="{bits}" "prefer-vector-width"="{bits}"'
        return re.sub(r'(define void @"run"\([^)]*\))', rf"\1 {wide}", str(self.module))

    def number(self, value: int) -> Any:
        return ir.Constant(self.word, value)

    def plus(self, address: Any, index: Any, size: int) -> Any:
        """address + index * size bytes."""
        return self.build.add(address, self.build.mul(index, self.number(size)))

    def entry(self, table: Any, index: Any) -> Any:
        """table[index], of int32."""
        place = self.build.inttoptr(self.plus(table, index, 4), self.short.as_pointer())
        return self.build.sext(self.build.load(place), self.word)

    def place(self, base: Any, table: Any, index: Any) -> Any:
        """base + table[index] values."""
        return self.plus(base, self.entry(table, index), 4)

    def multiply_add(self, left: Any, right: Any, total: Any) -> Any:
        return self.build.call(self._multiply_add, [left, right, total])

    def load_vectors(self, address: Any) -> list[Any]:
        return [self.build.load(at, align=4) for at in self._vectors(address)]

    def store_vectors(self, address: Any, values: Sequence[Any]) -> None:
        for at, value in zip(self._vectors(address), values, strict=True):
            self.build.store(value, at, align=4)

    def _vectors(self, address: Any) -> list[Any]:
        kind = self.vector.as_pointer()
        places = [self.plus(address, self.number(i), 4 * self.lanes) for i in range(self.vectors)]
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
