"""One training of the octic comparison.

`python -m tests.bench.octic_trained ARCH WIDTH MINUTES [cuda]`: the recommended recipe on mnist-rot
with D12, whose network of one copy is the D4 encoder of bench_octic.py. The minutes are one core's
own, whatever else the machine does; on a GPU they are the clock's, so the trainings to compare run
side by side. Prints the readings as one JSON object. Data: ORBIT_DATA, else ./data. Takes up again
what was stopped.
"""

import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import torch

from eqmodel import training
from eqmodel.protocols import probes, runner
from eqmodel.protocols.draws import draw, protocol_of
from eqmodel.protocols.recipes import recipe_of
from jobs.sources import data_folder, read_source
from tests.bench.results import BUILD

SEED = 0


def config_of(arch: str, width: int, minutes: float, device: str) -> training.TrainConfig:
    """The recipe as it is, but for architecture and width, until the minutes are over."""
    config = recipe_of("recommended").config
    if config is None:
        raise ValueError("the recommended recipe trains nothing")
    return replace(
        config, arch=arch, width=width, image_size=28, channels=1, images_seen=None, epochs=10_000,
        max_minutes=minutes, bfloat16=device != "cpu", seed=SEED, name=f"{arch}-{width}",
        device=device,
    )  # fmt: skip


def told(epoch: training.EpochReport) -> None:
    """A line on standard error."""
    words = f"epoch {epoch.epoch}, {epoch.share:.2f} done, loss {epoch.loss:.3f}, "
    print(f"{words}{epoch.images_per_s:.0f} images a second", file=sys.stderr, flush=True)


def trained(arch: str, width: int, minutes: float, device: str = "cpu") -> dict[str, float]:
    """What the training is worth, by the probes of the protocol."""
    if device == "cpu":
        torch.set_num_threads(1)
        clock = SimpleNamespace(monotonic=time.process_time)
        training.time = clock  # type: ignore[attr-defined,assignment]
    protocol = protocol_of("mnist-rot")
    drawn = draw(protocol, read_source(protocol, data_folder(None)), SEED)
    folder = BUILD / "octic-trained" / f"{arch}-{width}-{minutes:g}-{device}"
    if not runner.measured(folder):
        images = list(drawn.train.images)
        config = config_of(arch, width, minutes, device)
        training.train(images, folder, config, progress=told, source=protocol.drawn)
    found = runner.of_checkpoint(folder, device)
    halves = [
        (runner.stored(found.embed, half.images, lambda *_: None, ""), half.labels)
        for half in (drawn.train, drawn.test)
    ]
    arguments = (*halves[0], *halves[1])
    card = {} if found.embedder is None else found.embedder.card
    return {
        "train_s": found.train_s,
        "epochs": card["epochs"],
        "invariance_error": card["invariance_error"],
        "nearest_neighbours_5": probes.nearest_neighbours(*arguments),
    }


if __name__ == "__main__":
    print(json.dumps(trained(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])))
