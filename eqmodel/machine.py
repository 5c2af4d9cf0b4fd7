"""Functions of machine code, made when they are first wanted, for the processor at hand.

By LLVM (llvmlite, the extra ``fast``), in some 0.1 s; no compiler is needed. What is written so
(blocks.py, products.py, weighted_rows.py, and thumbnails) has a slower form beside it for where
this cannot be.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def lanes() -> int:
    """Values of float32 in one vector of this processor; 0 where nothing is known to be gained, or
    llvmlite is not installed.
    """
    try:
        from llvmlite import binding as llvm

        features = llvm.get_host_cpu_features()
    except (ImportError, OSError, RuntimeError):  # no extra "fast"; nothing known of the processor
        return 0
    if features.get("avx512f"):
        return 16
    return 8 if features.get("fma") or platform.machine() in ("aarch64", "arm64") else 0


def function_of(text: str, num_arguments: int) -> Callable[..., None]:
    """The function ``run`` of a module in the language of LLVM, called with 64-bit numbers.

    Other threads go on while it runs.
    """
    from llvmlite import binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_arguments)
    run: Any = kind(engine.get_function_address("run"))
    run.engine = engine  # which holds the code
    return run  # type: ignore[no-any-return]
