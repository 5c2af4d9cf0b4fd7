"""The frozen D4 encoder against escnn, torch.compile, ONNX Runtime and OpenVINO.

One run, turns taken by all, medians, the machine's threads as given by ORBIT_BENCH_THREADS (2);
the same network and widths, 256 images of 28 x 28. ORBIT_BENCH_ROUNDS tries it small. A contender
that is not installed is left out, and named.
"""

import io
import shutil
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eqmodel import Embedder
from eqmodel.autoencoder import AutoencoderConfig, network_of
from eqmodel.devices import computes_bfloat16
from eqmodel.frozen import frozen
from eqmodel.groups import group
from tests.bench.reference import reference_encoder
from tests.bench.results import keep, number_of

ROUNDS, THREADS = number_of("ORBIT_BENCH_ROUNDS", 15), number_of("ORBIT_BENCH_THREADS", 2)
BATCH = 256


def turns(contenders: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each over rounds in which all take their turn.

    Each runs once unmeasured in its turn: the threads of the one before it spin for a while.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS + 2):
        for name, act in contenders.items():
            act()
            began = time.perf_counter()
            act()
            taken[name].append(time.perf_counter() - began)
    return {name: median(times[2:]) for name, times in taken.items()}


def exported(module: torch.nn.Module, x: Tensor) -> bytes:
    buffer = io.BytesIO()
    torch.onnx.export(module, (x,), buffer, dynamo=False, input_names=["x"], output_names=["y"])
    return buffer.getvalue()


def alternatives(embedder: Embedder, x: Tensor, missing: list[str]) -> dict[str, Callable[[], Any]]:
    """The frozen encoder by other engines, where they are installed."""
    plain = Embedder.load("d4-28-grey").frozen.base
    for module in plain.modules():
        if hasattr(module, "packs"):
            module.packs = False
    found: dict[str, Callable[[], Any]] = {"plain operators": lambda: plain(x)}
    if shutil.which("gcc") or shutil.which("clang"):
        began = time.perf_counter()
        compiled = torch.compile(plain, dynamic=False, options={"freezing": True})
        compiled(x)
        print(f"torch.compile took {time.perf_counter() - began:.1f} s")
        found["torch.compile"] = lambda: compiled(x)
    else:
        missing.append("torch.compile (no compiler)")
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        missing.append(f"ONNX Runtime ({error})")
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(exported(plain, x), options)
        found["ONNX Runtime"] = lambda: session.run(None, {"x": x.numpy()})
    try:
        import openvino
    except ImportError as error:
        missing.append(f"OpenVINO ({error})")
    else:
        core = openvino.Core()
        model = openvino.convert_model(plain, example_input=x, input=list(x.shape))
        hints = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32"}
        ready = core.compile_model(model, "CPU", hints)
        found["OpenVINO"] = lambda: ready(x.numpy())
    return found


def in_bfloat16(embedder: Embedder, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The frozen encoder and escnn's with their weights and inputs in bfloat16."""
    parts = (embedder.model, embedder.spec, embedder.projection, embedder.pose)
    ours = Embedder(*parts, precision="bf16").frozen
    theirs, reduced = reference_encoder(embedder.model.config).bfloat16(), x.bfloat16()
    return {"frozen, bfloat16": lambda: ours(x), "escnn, bfloat16": lambda: theirs(reduced)}


@pytest.mark.filterwarnings("ignore")
def test_the_frozen_encoder_against_other_engines() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.inference_mode():
            embedder, x, missing = Embedder.load("d4-28-grey"), torch.rand(BATCH, 1, 28, 28), []
            contenders: dict[str, Callable[[], Any]] = {
                "frozen": lambda: embedder.frozen(x),
                "packed convolutions": lambda: embedder.frozen.base(x),
                "frozen, with readout and projection": lambda: embedder.encode(x),
                "readout and projection in float64": lambda: embedder.projection(
                    embedder.readout_of(embedder.frozen(x))
                ),
                "eager": lambda: embedder.model.encoder(x),
            }
            try:
                reference = reference_encoder(embedder.model.config)
                contenders["escnn"] = lambda: reference(x)
                if computes_bfloat16("cpu"):
                    contenders |= in_bfloat16(embedder, x)
                else:
                    missing.append("bfloat16 (not of this processor)")
            except pytest.skip.Exception as error:
                missing.append(str(error))
        with torch.no_grad():
            contenders |= alternatives(embedder, x, missing)
            expected = embedder.frozen(x).numpy()
            for name in ("plain operators", "torch.compile", "ONNX Runtime", "OpenVINO"):
                if name in contenders:
                    out = contenders[name]()
                    out = (
                        out
                        if isinstance(out, Tensor)
                        else next(iter(out if isinstance(out, list) else out.values()))
                    )
                    assert np.abs(np.asarray(out) - expected).max() < 1e-4
            taken = turns(contenders)
            turned = embedder.encode(torch.rot90(x, 1, (2, 3)))[0]
            error = float(np.linalg.norm(turned - embedder.encode(x)[0], axis=1).max())
    finally:
        torch.set_num_threads(before)
    figures: dict[str, object] = {
        f"{name}, images/s": BATCH / seconds for name, seconds in taken.items()
    }
    figures["frozen: error of a quarter turn, after projection"] = error
    for name in ("packed convolutions", "escnn"):
        if name in taken:
            figures[f"frozen against {name}"] = taken[name] / taken["frozen"]
    if "escnn, bfloat16" in taken:
        for name in ("escnn", "escnn, bfloat16"):
            figures[f"frozen in bfloat16 against {name}"] = taken[name] / taken["frozen, bfloat16"]
    figures["left out"] = "; ".join(missing) or "nothing"
    keep(f"The frozen encoder, d4-28-grey, {THREADS} threads", figures)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("width", "features"), [(12, 48), (16, 64)])
def test_wider_encoders(width: int, features: int) -> None:
    """The widths that the recipe without mirrors trains; weights as they are made."""
    before, missing = torch.get_num_threads(), []
    torch.set_num_threads(THREADS)
    config = AutoencoderConfig(width=width, features=features)
    encoder = network_of(config, group("d4"))[0].eval()
    try:
        with torch.inference_mode():
            x, ours = torch.rand(BATCH, 1, 28, 28), frozen(encoder)
            contenders = {"frozen": lambda: ours(x), "packed convolutions": lambda: ours.base(x)}
            try:
                reference = reference_encoder(config)
                contenders["escnn"] = lambda: reference(x)
            except pytest.skip.Exception as error:
                missing.append(str(error))
            taken = turns(contenders)
    finally:
        torch.set_num_threads(before)
    figures: dict[str, object] = {
        f"{name}, images/s": BATCH / seconds for name, seconds in taken.items()
    }
    for name in taken.keys() - {"frozen"}:
        figures[f"frozen against {name}"] = taken[name] / taken["frozen"]
    figures["left out"] = "; ".join(missing) or "nothing"
    keep(f"The frozen D4 encoder of width {width}, {THREADS} threads", figures)
