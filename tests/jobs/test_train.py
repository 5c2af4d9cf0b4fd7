"""`orbit train` reads what `orbit run` reads, and writes what `--model` takes."""

from pathlib import Path

import numpy as np
import pytest

from eqmodel.training import TrainConfig
from jobs.sample import FOLDER
from jobs.train import TrainFlags
from tests.jobs.conftest import Orbit


def test_the_flags_are_those_of_the_config() -> None:
    assert TrainFlags().config() == TrainConfig()


@pytest.mark.integration
def test_a_trained_model_embeds(orbit: Orbit, tmp_path: Path) -> None:
    model = tmp_path / "model"
    flags = "--limit 96 --epochs 1 --width 2 --features 4 --dim 8 --batch-size 32 --name tiny"
    outcome = orbit("train", FOLDER, "--out", model, "--json", *flags.split())
    assert outcome.code == 0, outcome.stderr
    card = outcome.json
    assert (card["model"], card["num_images"]) == (str(model), 96)
    assert card["invariance_error"] <= 1e-5
    assert 0 <= card["free_angle_rank1"] <= 1
    assert {path.name for path in model.iterdir()} == {"model.safetensors", "model.json"}

    from eqmodel import Embedder

    embedder = Embedder.load(model)
    assert embedder.embed([np.zeros((28, 28), np.uint8)]).shape == (1, 8)
