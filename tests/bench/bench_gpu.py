"""The encoder on a GPU, float32 and bfloat16, beside what the card can do. Skipped without one."""

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from eqmodel import Embedder, checkpoint
from eqmodel.embedder import assemble
from eqmodel.frozen import FrozenEncoder
from eqmodel.irreps_frozen import IrrepEncoder
from tests.bench.results import keep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

HELD, ROUNDS = 65_536, 5


def rate(work: Callable[[], Any], count: int, rounds: int = 10) -> float:
    """How many of ``count`` a call get done per second, by the GPU's own clock."""
    for _ in range(3):
        work()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(rounds):
        work()
    last.record()
    torch.cuda.synchronize()
    return count * rounds / (first.elapsed_time(last) / 1e3)


def seconds(work: Callable[[], Any]) -> float:
    """The median of what a call takes that ends with its results in the host's memory."""
    work()
    taken = []
    for _ in range(ROUNDS):
        began = perf_counter()
        work()
        taken.append(perf_counter() - began)
    return median(taken)


def products_per_s(dtype: torch.dtype, side: int = 8192) -> float:
    """Floating-point operations per second of a large matrix product."""
    matrix = torch.randn(side, side, device="cuda", dtype=dtype)
    return rate(lambda: matrix @ matrix, 2 * side**3)


def operations(encoder: FrozenEncoder, side: int) -> int:
    """Floating-point operations of one image."""
    total = 2 * encoder.last.numel()
    for conv in encoder.convs:
        side //= conv.stride[0]
        total += 2 * conv.weight.numel() * side**2
    return total


@pytest.mark.parametrize("name", ["d4-28-grey", "d12-28-grey"])
@torch.inference_mode()
def test_encoder_on_a_gpu(name: str) -> None:
    folder = checkpoint.resolve(name)
    document = checkpoint.read_card(folder)
    tensors = load(checkpoint.checked_tensors(folder, document))
    golden = list(tensors["golden.images"].numpy())
    figures: dict[str, object] = {"card": torch.cuda.get_device_name()}
    for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        peak = products_per_s(dtype)
        figures[f"{precision}: matrix products, TFLOP/s"] = round(peak / 1e12)
        embedder = Embedder(*assemble(document, tensors), precision=precision).to("cuda")
        for count in (embedder.batch_size, 4 * embedder.batch_size):
            inputs = torch.rand(count, 1, 28, 28, device="cuda")

            def whole(inputs: torch.Tensor = inputs, embedder: Embedder = embedder) -> None:
                codes = embedder.codes_of(inputs)
                embedder.project(codes)
                embedder.quantised_pose(codes)

            alone = rate(lambda: embedder.codes_of(inputs), count)  # noqa: B023 - called at once
            figures[f"{precision}: encoder, {count:,} at once, images/s"] = round(alone)
            if isinstance(embedder.frozen, IrrepEncoder):
                share = alone * operations(embedder.frozen.base, 28) / peak
                figures[f"{precision}: of the matrix peak, {count:,} at once"] = share
            figures[f"{precision}: to embedding and pose, {count:,} at once, images/s"] = round(
                rate(whole, count)
            )
        held = torch.rand(HELD, 1, 28, 28)
        figures[f"{precision}: {HELD:,} inputs in the host's memory, images/s"] = round(
            HELD / seconds(lambda: embedder.encode(held))  # noqa: B023 - called at once
        )
        images = list((held[:, 0] * 255).byte().numpy())
        figures[f"{precision}: {HELD:,} decoded images in the host's memory, images/s"] = round(
            HELD / seconds(lambda: embedder.embed(images))  # noqa: B023 - called at once
        )
        turned = embedder.embed([np.rot90(image) for image in golden])
        error = float(np.linalg.norm(turned - embedder.embed(golden), axis=1).max())
        figures[f"{precision}: error of a quarter turn"] = error
    keep(f"Encoder on a GPU: {name}", figures)
