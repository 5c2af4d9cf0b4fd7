"""The second part of an embedding: a small network that gathers neighbours into kinds. No label.

Nearest neighbours and clusters like different embeddings: what tells one image from all others
spreads a kind out. So a head of two layers is trained on frozen invariants to give an image and
its nearest neighbours the same direction, and images at large others: a contrast over the graph of
neighbours, whose optimum is the graph's spectral embedding (HaoChen et al., NeurIPS 2021).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqmodel.losses import contrast

UNDECIDED = 0.3  # c: length of an output, as a share of the median, that comes to 1 / sqrt(2)
HIDDEN, NEIGHBOURS, TEMPERATURE = 512, 10, 1.0
FEWEST = 200  # images below which neighbours say nothing of kinds
PASSES, BATCH = 50, 1024
BLOCK = 2048


class KindsHead(nn.Module):
    """Coordinates (B, K) -> (B, d) of length below 1: linear, ReLU, linear, x / sqrt(x^2 + c^2).

    Most outputs come near length 1; one that is undecided between kinds stays short, for dividing
    it by its length would blow up its rounding.
    """

    def __init__(self, coordinates: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        for name, shape in (
            ("first", (coordinates, HIDDEN)),
            ("first_bias", (HIDDEN,)),
            ("second", (HIDDEN, dim)),
            ("second_bias", (dim,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float16))

    def forward(self, coordinates: Tensor) -> Tensor:
        first, first_bias, second, second_bias = (
            self.get_buffer(name).to(coordinates.dtype)
            for name in ("first", "first_bias", "second", "second_bias")
        )
        hidden = F.relu(torch.addmm(first_bias, coordinates, first))
        found = torch.addmm(second_bias, hidden, second)
        return found / (found.square().sum(1, keepdim=True) + UNDECIDED**2).sqrt()


def neighbour_graph(embeddings: Tensor, count: int) -> Tensor:
    """L2-normalised (N, d) -> (N, count) int64: the nearest others of each row, by cosine."""
    found = []
    for start in range(0, len(embeddings), BLOCK):
        scores = embeddings[start : start + BLOCK] @ embeddings.T
        own = torch.arange(len(scores), device=scores.device)
        scores[own, own + start] = -2.0
        found.append(scores.topk(count, 1).indices)
    return torch.cat(found)


def fit_kinds(coordinates: Tensor, dim: int) -> KindsHead:
    """Train a head of ``dim`` outputs on coordinates (N, K) float32 of N >= FEWEST images, on
    their device; the head comes back on the CPU.
    """
    count, device = len(coordinates), coordinates.device
    graph = neighbour_graph(F.normalize(coordinates, dim=1), min(NEIGHBOURS, count // 20))
    scale = float(coordinates.std())
    layers = Layers(coordinates.shape[1], dim).to(device)
    optimiser = torch.optim.AdamW(layers.parameters(), weight_decay=1e-2)
    size = min(BATCH, count // 2)
    steps = PASSES * count // size
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        images = torch.randperm(count)[:size].to(device)
        others = graph[images, torch.randint(graph.shape[1], (size,)).to(device)]
        pair = layers(coordinates[torch.cat([images, others])] / scale)
        first, second = pair.chunk(2)
        loss = contrast(first, second, TEMPERATURE)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    layers.eval()
    with torch.no_grad():
        length = float(layers(coordinates / scale).norm(dim=1).median())
    return without_norm(layers, scale, length)


class Layers(nn.Module):
    """The head in training: its first layer normalised, part of the hidden one dropped."""

    def __init__(self, coordinates: int, dim: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(coordinates, HIDDEN), nn.BatchNorm1d(HIDDEN)
        self.second = nn.Linear(HIDDEN, dim)

    def forward(self, coordinates: Tensor) -> Tensor:
        hidden = F.relu(self.norm(self.first(coordinates)))
        found: Tensor = self.second(F.dropout(hidden, 0.2, self.training))
        return found


@torch.no_grad()
def without_norm(layers: Layers, scale: float, length: float) -> KindsHead:
    """The trained layers as a head: the norm and the scale of the input folded into the first, the
    median length of the outputs into the second.
    """
    first, norm, second = layers.first, layers.norm, layers.second
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch-norm without running statistics cannot be folded")
    gain = norm.weight / torch.sqrt(variance + norm.eps)
    head = KindsHead(first.in_features, second.out_features)
    head.get_buffer("first").copy_((first.weight * gain[:, None]).T / scale)
    head.get_buffer("first_bias").copy_((first.bias - mean) * gain + norm.bias)
    head.get_buffer("second").copy_(second.weight.T / length)
    head.get_buffer("second_bias").copy_(second.bias / length)
    return head
