"""The dense encoder in escnn, the reference library of the field (Cesa et al., ICLR 2022).

It installs with --no-deps beside pymanopt and joblib; with today's NumPy and scikit-learn two
things of it need help, both while a network is built and neither while it runs: lie_learn, which
SO(3) alone needs, is not loaded, and matrices reach scikit-learn as arrays.
"""

import itertools
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from eqmodel.autoencoder import AutoencoderConfig, sides, widths

_LIE = "lie_learn.representations.SO3.wigner_d"


def escnn_modules() -> tuple[Any, Any]:
    """escnn's gspaces and nn; skips where it is not installed."""
    parts = _LIE.split(".")
    for count in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:count]))
        module.__path__ = []  # type: ignore[attr-defined]
        sys.modules.setdefault(module.__name__, module)
    sys.modules[_LIE].wigner_D_matrix = None  # type: ignore[attr-defined]
    pytest.importorskip("escnn", reason="escnn: pip install --no-deps escnn pymanopt joblib")
    from escnn import gspaces, nn
    from escnn.group import _numerical

    original = _numerical.randomized_svd
    _numerical.randomized_svd = lambda a, **options: original(np.asarray(a), **options)
    return gspaces, nn


def reference_encoder(config: AutoencoderConfig) -> torch.nn.Module:
    """Images (B, C, S, S) -> (B, m * 8): the layers of ``Encoder`` for d4, in evaluation mode.

    The same widths, filters, strides and norms; each filter expanded once, as escnn does by itself
    in evaluation mode.
    """
    gspaces, enn = escnn_modules()
    space = gspaces.flipRot2dOnR2(N=4)
    w, last = widths(config), sides(config.image_size)[-1]

    def fields(count: int) -> Any:
        return enn.FieldType(space, count * [space.regular_repr])

    layers: list[Any] = []

    def stage(source: Any, target: Any, size: int, stride: int, padding: int) -> None:
        layers.append(enn.R2Conv(source, target, size, stride=stride, padding=padding, bias=False))
        layers.append(enn.InnerBatchNorm(target))

    image = enn.FieldType(space, config.channels * [space.trivial_repr])
    stage(image, fields(w[0]), 6, 2, 2)
    layers.append(enn.ReLU(fields(w[0]), inplace=True))
    for a, b in itertools.pairwise(w[:-1]):
        stage(fields(a), fields(b), 4, 2, 1)
        layers.append(enn.ReLU(fields(b), inplace=True))
    stage(fields(w[-2]), fields(w[-1]), 3, 1, 1)
    layers.append(enn.ReLU(fields(w[-1]), inplace=True))
    stage(fields(w[-1]), fields(config.features), last, 1, 0)
    network = enn.SequentialModule(*layers).eval()

    class Reference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.network(enn.GeometricTensor(x, image)).tensor
            return out.flatten(1)

    return Reference().eval()
