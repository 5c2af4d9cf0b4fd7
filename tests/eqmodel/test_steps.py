"""Steps of training: the forms that GPUs run equal the plain ones."""

import copy
import math

import pytest
import torch
from torch import nn

from eqmodel.actions import filter_table
from eqmodel.autoencoder import Autoencoder, AutoencoderConfig
from eqmodel.errors import TrainingError
from eqmodel.groups import group
from eqmodel.layers import (
    FieldNorm,
    GroupConv2d,
    Turned,
    spread_norm,
    turned_at_once,
    turned_back_at_once,
)
from eqmodel.readouts import READOUTS, EquivariantAttention, readout
from eqmodel.steps import CHECKED_EVERY, Steps, adamw
from eqmodel.views import Jitter, random_views


class Mean(nn.Module):
    """A loss: the squared mean of a batch times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return (self.weight * batch.mean()).square()


def test_steps_are_those_of_plain_descent() -> None:
    module, plain = Mean(), Mean()
    steps = Steps(module, adamw(module, 0.1, 1e-3))
    optimiser = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=1e-3)
    losses = []
    for size in (3, 5, 4):
        batch = torch.arange(size) + 1.0
        steps.take(0.05, batch)
        optimiser.param_groups[0]["lr"] = 0.05
        loss = plain(batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 5.0)
        optimiser.step()
        losses += [float(loss.detach())] * size
    assert torch.equal(module.weight, plain.weight)
    assert math.isclose(steps.mean_loss(), sum(losses) / len(losses), rel_tol=1e-6)
    assert steps.mean_loss() == 0.0  # counted since the last call


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    module = Mean()
    steps = Steps(module, adamw(module, 0.1, 0.0))
    for _ in range(CHECKED_EVERY - 1):
        steps.take(0.1, torch.tensor([math.inf]))
    with pytest.raises(TrainingError, match="not a finite number"):
        steps.take(0.1, torch.tensor([math.inf]))


@pytest.mark.parametrize("shape", [(8, 6, 8, 5, 7), (3, 2, 4, 1, 1)])
def test_the_spread_norm_is_batch_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = FieldNorm(shape[1]).train()
    with torch.no_grad():
        norm.norm.weight.uniform_(0.5, 2.0)
        norm.norm.bias.uniform_(-1.0, 1.0)
    other = copy.deepcopy(norm)
    first = torch.randn(shape, requires_grad=True)
    second = first.detach().clone().requires_grad_()
    upstream = torch.randn(shape)
    (norm(first) * upstream).sum().backward()
    (spread_norm(second, other.norm) * upstream).sum().backward()
    found = [second.grad, other.norm.weight.grad, other.norm.bias.grad]
    expected = [first.grad, norm.norm.weight.grad, norm.norm.bias.grad]
    found += [other.norm.running_mean, other.norm.running_var]
    expected += [norm.norm.running_mean, norm.norm.running_var]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["c4", "d4"])
def test_filters_turned_at_once_are_those_turned_one_by_one(name: str) -> None:
    tables = GroupConv2d(group(name), 2, 3, 3).tables
    weight = torch.randn(6, tables.shape[1], requires_grad=True)
    turned = Turned.apply(weight, tables)
    assert torch.equal(turned, turned_at_once(weight, tables))
    upstream = torch.randn_like(turned)
    turned.backward(upstream)
    back = turned_back_at_once(upstream, tables.argsort(1))
    torch.testing.assert_close(back, weight.grad)


@pytest.mark.parametrize("name", READOUTS)
def test_tables_made_while_inferring_serve_training(name: str) -> None:
    of = group("d8")  # of which no other test has made tables
    attention = EquivariantAttention(of, 3, 5) if name == "attention" else None
    read = readout(name, of, attention)
    codes = torch.randn(2, of.order, 3, requires_grad=True)
    with torch.inference_mode():
        read(codes)
    read(codes).square().sum().backward()
    assert codes.grad is not None
    assert codes.grad.abs().sum() > 0


@pytest.mark.parametrize("arch", ["dense", "octic"])
def test_a_network_made_while_inferring_spoils_no_later_training(arch: str) -> None:
    config = AutoencoderConfig("d4", width=2, features=4, arch=arch)
    filter_table.cache_clear()
    with torch.inference_mode():
        Autoencoder(config)
    later = Autoencoder(config).encoder
    later(torch.rand(2, 1, 28, 28)).square().sum().backward()
    assert all(weight.grad is not None for weight in later.parameters())


def test_a_share_of_the_views_is_as_sharp_as_the_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 28, 28)
    kept = Jitter(contrast=0.0, stroke=0.0, still=0.25)
    views = random_views(images, True, kept)
    turns = [
        torch.rot90(images.flip(-1) if mirror else images, k, (-2, -1))
        for mirror in (False, True)
        for k in range(4)
    ]
    nearest = torch.stack([(views - turned).abs().amax((1, 2, 3)) for turned in turns]).amin(0)
    assert 0.15 < (nearest < 1e-4).float().mean() < 0.35
    assert nearest.max() > 0.1
