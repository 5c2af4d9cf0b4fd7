"""Training resumes, stops, and never leaves a model that does not hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import eqmodel.training as training
from eqmodel import Embedder
from eqmodel.errors import Refused, SizeError, TrainingError
from eqmodel.training import EpochReport, TrainConfig, train

SMALL = TrainConfig(width=2, features=6, dim=8, epochs=2, batch_size=64)


def test_progress_provenance_and_falling_loss(clothes: list[np.ndarray], tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    card = train(
        clothes[:600],
        tmp_path / "m",
        replace(SMALL, epochs=3),
        progress=reports.append,
        source="sample",
    )
    assert [r.epoch for r in reports] == [1, 2, 3]
    assert reports[-1].done
    assert reports[-1].loss < reports[0].loss
    assert card["trained_on"] == "sample"
    assert card["num_train_images"] == 588
    assert card["invariance_error"] <= 1e-5
    assert len(card["error_curve"]) == 37
    assert 0 < card["free_angle_rank1"] <= 1
    assert not (tmp_path / "m.training").exists()


def test_a_stopped_training_resumes_to_the_same_weights(
    clothes: list[np.ndarray], tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop_after_first(report: EpochReport) -> None:
        if report.epoch == 1:
            raise Stop

    with pytest.raises(Stop):
        train(clothes[:300], tmp_path / "a", SMALL, progress=stop_after_first)
    assert not (tmp_path / "a").exists()
    epochs: list[int] = []
    train(clothes[:300], tmp_path / "a", SMALL, progress=lambda r: epochs.append(r.epoch))
    assert epochs == [2]
    train(clothes[:300], tmp_path / "b", SMALL)
    a, b = Embedder.load(tmp_path / "a"), Embedder.load(tmp_path / "b")
    assert torch.equal(a.frozen.get_buffer("weight0"), b.frozen.get_buffer("weight0"))


def test_another_recipe_does_not_take_up_the_state(
    clothes: list[np.ndarray], tmp_path: Path
) -> None:
    def stop(report: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clothes[:300], tmp_path / "a", SMALL, progress=stop)
    epochs: list[int] = []
    train(
        clothes[:300],
        tmp_path / "a",
        replace(SMALL, width=3),
        progress=lambda r: epochs.append(r.epoch),
    )
    assert epochs == [1, 2]


def test_early_stop_on_held_out_reconstruction(clothes: list[np.ndarray], tmp_path: Path) -> None:
    config = replace(SMALL, epochs=30, patience=1, learning_rate=0.05)
    card = train(clothes[:200], tmp_path / "m", config)
    errors = card["reconstruction_error"]
    assert card["epochs"] < 30
    assert errors[-1] >= min(errors[:-1])


def test_a_model_that_does_not_hold_is_deleted(
    clothes: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MAX_INVARIANCE_ERROR", 1e-12)
    with pytest.raises(TrainingError, match=r"invariance error is .* it was deleted"):
        train(clothes[:300], tmp_path / "m", replace(SMALL, epochs=1))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_more_channels_and_larger_sizes(channels: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (31, 38, channels), dtype=np.uint8) for _ in range(40)]
    card = train(images, tmp_path / "m", replace(SMALL, epochs=1, batch_size=16))
    assert card["invariance_error"] <= 1e-5
    embedder = Embedder.load(tmp_path / "m")
    assert (embedder.image_size, embedder.channels) == (40, channels)


def test_what_cannot_be_trained_is_refused(clothes: list[np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(Refused, match="5 images are too few"):
        train(clothes[:5], tmp_path / "m", SMALL)
    with pytest.raises(SizeError, match="image size 30"):
        train(clothes[:50], tmp_path / "m", replace(SMALL, image_size=30))
    with pytest.raises(Refused, match="9 channels"):
        train([np.zeros((28, 28, 9), np.uint8)] * 40, tmp_path / "m", SMALL)
