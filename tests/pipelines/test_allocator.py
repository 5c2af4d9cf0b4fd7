"""Memory that was freed is there for the next batch, in whichever thread that is."""

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from concurrent.futures import ThreadPoolExecutor
from pipelines.allocator import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]


def use(size):
    blocks = [libc.malloc(size) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)


def faults():
    use(40 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use(40 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


if sys.argv[1] == "kept":
    keep_freed_memory()
print(faults(), ThreadPoolExecutor(1).submit(faults).result())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_not_faulted_in_again_in_any_thread() -> None:
    pages = 2 * (40 << 20) // 4096
    words = [sys.executable, "-c", FAULTS]
    for mode in ("kept", "as it is"):
        done = subprocess.run([*words, mode], capture_output=True, text=True, check=True)
        found = [int(number) for number in done.stdout.split()]
        if mode == "kept":
            assert max(found) < pages // 20
        else:
            assert min(found) > pages // 2, "nothing is gained here any more"
