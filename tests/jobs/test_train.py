"""`orbit train` reads what `orbit run` reads, and writes what `--model` takes."""

from pathlib import Path

import numpy as np
import pytest

from eqmodel.training import TrainConfig
from jobs.progress import Progress
from jobs.sample import FOLDER
from jobs.train import TrainFlags, decoded, read_collection
from tests.jobs.conftest import Orbit


def test_the_flags_are_those_of_the_config() -> None:
    assert TrainFlags().config() == TrainConfig()


def test_a_limit_is_spread_over_the_shards() -> None:
    images = read_collection(str(FOLDER), 50, 0, Progress())
    assert len(images) == 50
    assert {image.shape for image in images} == {(28, 28)}
    again = read_collection(str(FOLDER), 50, 0, Progress())
    other = read_collection(str(FOLDER), 50, 1, Progress())
    assert all(np.array_equal(one, two) for one, two in zip(images, again, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(images, other, strict=True))
    assert len(read_collection(str(FOLDER), 5000, 0, Progress())) == 2000


def test_images_stop_where_memory_would(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jobs.train.MAX_PIXEL_BYTES", 10 * 28 * 28)
    assert len(read_collection(str(FOLDER), 500, 0, Progress())) == 10
    assert "10 images fill 0.0 GB: training on these\n" in capsys.readouterr().err


def test_rejects_are_left_out_and_damage_ends_a_shard(tmp_path: Path) -> None:
    from pipelines.shards import list_shards
    from pipelines.storage import Folder

    content = bytearray((FOLDER / "clothes-0.tar").read_bytes())
    (tmp_path / "cut.tar").write_bytes(content[: 512 * 101])
    folder = Folder(str(tmp_path))
    [shard] = list_shards(folder, buckets=1)
    found = len(list(decoded(folder, shard)))
    assert 10 < found < 40


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
