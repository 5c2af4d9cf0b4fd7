"""The frozen octic encoder against a plain CNN of equal width and against the dense encoder.

The plain CNN has the same layers without a group: 8 c channels where D4 has c fields, depthwise and
pointwise, the same strides, folded alike. One thread, float32, medians of turns taken by all in
one run; each is given the batch that suits it best, by plain operators, by torch.compile, and ours
by machine code, as they are used. ORBIT_BENCH_ROUNDS and ORBIT_BENCH_WIDTHS try it small.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from eqmodel.autoencoder import AutoencoderConfig, network_of
from eqmodel.compiled import CompiledEncoder
from eqmodel.frozen import frozen
from eqmodel.groups import group
from eqmodel.octic_frozen import AT_ONCE, FrozenOctic, channels_last
from tests.bench.results import keep, number_of

ROUNDS = number_of("ORBIT_BENCH_ROUNDS", 15)
WIDTHS = [int(width) for width in os.environ.get("ORBIT_BENCH_WIDTHS", "6,12,16").split(",")]
BATCHES = (32, 128)
DENSE_WIDTH = 6  # of the shipped d4-28-grey
FEATURES = 32
TOLD = 7  # operations in a profile

STARTS = """
import sys, time, torch
from eqmodel.compiled import AT_ONCE, CompiledEncoder
from tests.bench.bench_octic import DENSE_WIDTH, encoder
torch.set_num_threads(1)
frozen, images = encoder(sys.argv[1], DENSE_WIDTH), torch.rand(AT_ONCE, 1, 28, 28)
with torch.inference_mode():
    began = time.perf_counter()
    CompiledEncoder(frozen)(images)
    print(time.perf_counter() - began)
"""
"""Seconds until an encoder is compiled, in a process of its own."""

Encode = Callable[[Tensor], Tensor]


class Plain(nn.Module):
    """Images -> (B, 8 m): the layers of a frozen octic encoder, each pointwise map a full one."""

    def __init__(self, octic: FrozenOctic) -> None:
        super().__init__()
        self.octic, order = octic, octic.order
        for index, stage in enumerate(octic.stages):
            c_in, c_out = (order * n for n in stage.lines.shape[1:])
            weight = torch.randn(c_out, c_in, 1, 1) * (2.0 / c_in) ** 0.5
            self.register_buffer(f"weight{index}", channels_last(weight))
            self.register_buffer(f"bias{index}", torch.randn(c_out))

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or len(x) <= AT_ONCE:
            return self.codes(x)
        return torch.cat([self.codes(part) for part in x.split(AT_ONCE)])

    def codes(self, x: Tensor) -> Tensor:
        lift = self.octic
        x = F.conv2d(channels_last(x), lift.lift, lift.shift, 2, lift.padding).relu_()
        for index, stage in enumerate(lift.stages):
            weight, bias = self.get_buffer(f"weight{index}"), self.get_buffer(f"bias{index}")
            x = F.conv2d(stage.depthwise(x, stage.filters), weight, bias)
            x = x.relu_() if stage.relu else x
        return x.flatten(1)


@dataclass(frozen=True)
class Contender:
    name: str
    encode: Encode


def encoder(arch: str, width: int) -> nn.Module:
    """A frozen D4 encoder of 28x28 grey images; its speed does not depend on its weights."""
    config = AutoencoderConfig("d4", width=width, features=FEATURES, arch=arch)
    return frozen(network_of(config, group("d4"))[0].eval())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def microseconds(contenders: list[Contender]) -> dict[str, float]:
    """Median microseconds per image of each, taking turns, at the batch that suits it best."""
    found: dict[str, float] = {}
    for batch in BATCHES:
        images = torch.rand(batch, 1, 28, 28)
        taken: dict[str, list[float]] = {c.name: [] for c in contenders}
        for turn in range(ROUNDS + 2):
            for contender in contenders:
                began = time.perf_counter()
                contender.encode(images)
                if turn >= 2:
                    taken[contender.name].append((time.perf_counter() - began) * 1e6 / batch)
        for name, times in taken.items():
            found[name] = min(median(times), found.get(name, float("inf")))
    return found


def operations(encode: Encode, batch: int = AT_ONCE) -> str:
    """The share of each operation in the time of one pass, largest first."""
    images = torch.rand(batch, 1, 28, 28)
    encode(images)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(20):
            encode(images)
    events = sorted(found.key_averages(), key=lambda e: -e.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    shares = [(e.key.removeprefix("aten::"), e.self_cpu_time_total / whole) for e in events[:TOLD]]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares)


def compiled(module: nn.Module) -> Encode:
    """The module under torch.compile, its weights constants."""
    encode: Encode = torch.compile(module, dynamic=False, options={"freezing": True})
    for batch in BATCHES:
        encode(torch.rand(batch, 1, 28, 28))
    return encode


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_octic_against_plain_and_dense(one_thread: None) -> None:
    ours = {f"dense, width {DENSE_WIDTH}": encoder("dense", DENSE_WIDTH)}
    forms: dict[str, Encode] = {}
    for width in WIDTHS:
        ours[f"octic, width {width}"] = encoder("octic", width)
        plain = Plain(ours[f"octic, width {width}"].base)
        forms |= {
            f"plain, width {width}, operators": plain,
            f"plain, width {width}, compiled": compiled(plain),
        }
    for name, module in ours.items():
        forms |= {
            f"{name}, operators": module.base,
            f"{name}, compiled": compiled(module.base),
            f"{name}, machine code": module,
        }
    found = microseconds([Contender(name, form) for name, form in forms.items()])
    figures: dict[str, object] = {f"{name}: us per image": each for name, each in found.items()}
    for width in WIDTHS:
        plain_us, dense_us = (
            found[f"plain, width {width}, compiled"],
            found[f"dense, width {DENSE_WIDTH}, machine code"],
        )
        for form in ("compiled", "machine code"):
            each = found[f"octic, width {width}, {form}"]
            figures[
                f"octic, width {width}, {form}: times as fast as plain compiled, as dense by "
                "machine code"
            ] = f"{plain_us / each:.2f}, {dense_us / each:.2f}"
    for name, form in forms.items():
        if "machine code" not in name:
            figures[f"{name}: where the time goes"] = operations(form)
    keep("Octic encoder (D4, 28x28, float32, one thread)", figures)


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_after_how_many_images_compiling_pays(one_thread: None, tmp_path: Path) -> None:
    """`--compile` as a worker has it: its start without and with what an earlier one left."""
    figures: dict[str, object] = {}
    for arch in ("dense", "octic"):
        cache = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / arch)}
        words = [sys.executable, "-c", STARTS, arch]
        cold, warm = (
            float(subprocess.run(words, env=cache, check=True, capture_output=True).stdout)
            for _ in range(2)
        )
        plain = encoder(arch, DENSE_WIDTH)
        pair = {"frozen": plain, "compiled": CompiledEncoder(encoder(arch, DENSE_WIDTH))}
        found = microseconds([Contender(name, module) for name, module in pair.items()])
        saved = found["frozen"] - found["compiled"]
        figures |= {f"{arch}, {name}: us per image": each for name, each in found.items()}
        figures[f"{arch}: seconds to compile, cold and warm"] = f"{cold:.1f}, {warm:.1f}"
        figures[f"{arch}: pays after so many images of a worker, cold and warm"] = (
            f"{1e6 * cold / saved:,.0f}, {1e6 * warm / saved:,.0f}" if saved > 0 else "never"
        )
    keep(f"torch.compile as an option (D4, 28x28, width {DENSE_WIDTH}, one thread)", figures)
