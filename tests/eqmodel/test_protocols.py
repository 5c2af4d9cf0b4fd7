"""Draws, recipes, results: what a protocol trains on, and that no label gets there."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from eqmodel import Embedder
from eqmodel.errors import CheckpointError, Refused
from eqmodel.protocols import results
from eqmodel.protocols.draws import PROTOCOLS, Labelled, Source, draw, protocol_of
from eqmodel.protocols.marks import PUBLISHED, TABLE_1, Mark
from eqmodel.protocols.recipes import RECIPES, Recipe, recipe_of
from eqmodel.protocols.results import Result, Row
from eqmodel.protocols.runner import Job, run
from eqmodel.protocols.tables import insert, markdown, verdict
from eqmodel.training import TrainConfig

SAMPLE = Path(__file__).parents[2] / "jobs" / "sample"
TINY = TrainConfig(width=2, features=6, dim=16, epochs=1, consistency=0.0)


def quiet(stage: str, done: int, total: int | None, note: str) -> None:
    """Shows nothing."""


def sample() -> Labelled:
    """The 2,000 images of the sample with the numbers of their classes."""
    images, labels = [], []
    for shard in sorted(SAMPLE.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".png"):
                    images.append(np.asarray(Image.open(io.BytesIO(content.read()))))
                else:
                    labels.append(content.read().decode())
    _, numbers = np.unique(labels, return_inverse=True)
    return Labelled(np.stack(images), numbers.astype(np.int64))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices: many threads only wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def source() -> Source:
    whole = sample()
    train = Labelled(whole.images[:1500], whole.labels[:1500])
    test = Labelled(whole.images[1500:], whole.labels[1500:])
    return Source(train, test, tuple("abcdefghij"))


def test_a_draw_is_a_function_of_protocol_and_seed(source: Source) -> None:
    protocol = protocol_of("augmented-fashion")
    first, again, other = (draw(protocol, source, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256
    assert np.array_equal(first.train.images, again.train.images)
    assert first.train.images.dtype == np.uint8
    assert np.array_equal(first.train.labels, source.train.labels)
    part = draw(protocol, source, 0, limit=100)
    assert np.array_equal(part.train.images, first.train.images[:100])
    assert np.array_equal(part.test.images, first.test.images[:100])


def test_the_cluster_protocol_draws_the_images_of_the_augmented_one(source: Source) -> None:
    drawn = [draw(protocol_of(n), source, 3).sha256 for n in ("augmented-mnist", "o2-mnist")]
    assert drawn[0] == drawn[1]
    rotated = draw(protocol_of("mnist-rot"), source, 3)
    assert len(rotated.train) == 2000 * 12 // 62
    assert len(rotated.test) == 2000 - len(rotated.train)
    assert rotated.sha256 != drawn[0]


def test_angles_are_uniform_and_half_are_mirrored() -> None:
    """An image of one dot right of the centre and a fainter one above it tells both."""
    image = np.zeros((29, 29), np.uint8)
    image[13:16, 23:26], image[4:6, 14] = 250, 120
    many = Labelled(np.stack([image] * 800), np.zeros(800, np.int64))
    for name, mirrored in (("augmented-mnist", 0.5), ("mnist-rot", 0.0)):
        drawn = draw(protocol_of(name), Source(many, many, ("a",)), 0).test.images.astype(float)
        rows, columns = np.mgrid[14:-15:-1, -14:15]  # y up, x right
        strong = np.where(drawn > 130, drawn, 0.0)
        angle = np.arctan2((strong * rows).sum((1, 2)), (strong * columns).sum((1, 2)))
        faint = np.where((drawn <= 130), drawn, 0.0) * (np.hypot(rows, columns) < 11)
        up = np.arctan2((faint * rows).sum((1, 2)), (faint * columns).sum((1, 2)))
        turned = np.sin(up - angle) < 0  # the faint dot clockwise of the strong one
        assert abs(turned.mean() - mirrored) < 0.06
        counts, _ = np.histogram(angle, 8, (-np.pi, np.pi))
        expected = len(drawn) / 8
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_half_of_the_plankton_is_not_drawn_twice(source: Source) -> None:
    nothing = Labelled(source.test.images[:0], source.test.labels[:0])
    whole = Source(source.train, nothing, source.classes)
    drawn = draw(protocol_of("plankton"), whole, 0)
    assert (len(drawn.train), len(drawn.test)) == (1200, 300)
    both = np.concatenate([drawn.train.images, drawn.test.images]).reshape(1500, -1)
    given = source.train.images.reshape(1500, -1)
    assert np.array_equal(np.unique(both, axis=0), np.unique(given, axis=0))


def test_every_published_row_has_its_recipe() -> None:
    assert set(TABLE_1) < set(RECIPES)
    assert len(PUBLISHED) == 28
    for name in TABLE_1:
        config = recipe_of(name).config
        assert config is not None
        assert config.consistency == 0.0
        assert config.max_minutes is None  # a row is the same on a busy machine
        assert config.images_seen is not None
        assert config.images_seen <= (60_000 if config.group == "d12" else 200_000)
    for protocol in PROTOCOLS.values():
        config = recipe_of("recommended").config_for(protocol, 5)
        assert config is not None
        assert config.group[0] == ("d" if protocol.mirrored else "c")
        assert config.seed == 5
        on_gpu = recipe_of("recommended").config_for(protocol, 5, device="cuda")
        assert on_gpu is not None
        assert (on_gpu.width > config.width) == (not protocol.mirrored)
        assert on_gpu.max_minutes == config.max_minutes == 8.5


def test_minutes_can_only_be_shortened() -> None:
    protocol, config = protocol_of("mnist-rot"), replace(TINY, max_minutes=10.0)
    recipe = Recipe("short", "ten minutes at most", config)
    for asked, got in ((3.0, 3.0), (30.0, 10.0), (None, 10.0)):
        found = recipe.config_for(protocol, 0, max_minutes=asked)
        assert found is not None
        assert found.max_minutes == got


def job(tmp_path: Path, **changes: Any) -> Job:
    whole = Job(protocol_of("augmented-fashion"), "tiny", 0, tmp_path, config=TINY, limit=150)
    return replace(whole, **changes)


@pytest.fixture(scope="module")
def trained(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("evaluation")
    return out, run(job(out), source, quiet)


def test_a_result_holds_every_reading(trained: tuple[Path, Result]) -> None:
    _, result = trained
    assert set(result.readings) >= {
        "logistic_regression",
        "neural_network",
        "nearest_neighbours_5",
        *(f"{m}_{r}" for m in ("kmeans", "gmm") for r in ("purity", "hungarian", "nmi", "ari")),
        "kmeans64_purity",
        "reconstruction_error",
        "turn_90_error",
        "turn_30_error",
        "readout_components_90",
        "embedding_components_90",
    }
    assert result.readings["turn_90_error"] < 1e-5
    assert result.readings["mirror_error"] < 1e-5
    assert 1e-3 < result.readings["turn_30_error"] < 2.0
    assert result.readings["logistic_regression"] > 0.2
    assert result.kind == "label-free"
    assert result.seconds["train_s"] > 0
    assert result.curves["embedding"][-1] == pytest.approx(1.0)
    assert set(result.versions) >= {"torch", "scikit-learn"}


def test_labels_do_not_reach_the_training(
    source: Source, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    _, result = trained
    order = np.random.default_rng(0).permutation(len(source.train))
    shuffled = Labelled(source.train.images, source.train.labels[order])
    other = run(job(tmp_path), Source(shuffled, source.test, source.classes), quiet)
    assert other.model_id == result.model_id
    assert other.draw_sha256 != result.draw_sha256
    assert other.readings["logistic_regression"] < result.readings["logistic_regression"]
    assert other.readings["kmeans_nmi"] == result.readings["kmeans_nmi"]


def test_the_same_result_is_not_made_twice(source: Source, trained: tuple[Path, Result]) -> None:
    out, result = trained
    said: list[str] = []
    again = run(job(out), source, lambda stage, done, total, note: said.append(note))
    assert again == result
    assert said == ["read from an earlier run"]
    checkpoints = sorted((out / "checkpoints").iterdir())
    alike = job(out, protocol=protocol_of("o2-fashion"))
    said.clear()
    other = run(alike, source, lambda stage, done, total, note: said.append(note))
    assert said == ["read from an earlier run"]  # of the protocol that draws the same images
    assert other == replace(result, protocol="o2-fashion")
    assert alike.path.is_file()
    assert sorted((out / "checkpoints").iterdir()) == checkpoints
    assert run(job(out, config=replace(TINY, seed=1)), source, quiet).model_id != result.model_id


def test_a_checkpoint_is_read_as_it_is(
    source: Source, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    out, result = trained
    [model] = (f for f in (out / "checkpoints").iterdir() if result_of(f) == result.model_id)
    read = run(job(tmp_path, config=None, model=model, recipe="mine"), source, quiet)
    assert read.kind == "checkpoint"
    assert read.readings == result.readings
    assert not (tmp_path / "checkpoints").exists()


def result_of(folder: Path) -> str:
    return str(json.loads((folder / "model.json").read_text())["model_id"])


def test_pixels_are_a_baseline_that_turns(source: Source, tmp_path: Path) -> None:
    result = run(job(tmp_path, config=None, recipe="raw-pixels"), source, quiet)
    assert result.kind == "baseline"
    assert result.readings["turn_90_error"] > 0.5
    assert "reconstruction_error" not in result.readings


def test_the_ceiling_is_marked_and_is_no_checkpoint(source: Source, tmp_path: Path) -> None:
    config = replace(TINY, epochs=8, batch_size=32)
    result = run(job(tmp_path, config=config, ceiling=True, limit=300), source, quiet)
    assert result.kind == "supervised ceiling"
    assert result.recipe == "tiny-ceiling"
    assert result.readings["classifier_accuracy"] > 0.2
    assert result.readings["turn_90_error"] < 1e-4
    assert not (tmp_path / "checkpoints").exists()
    [state] = (tmp_path / "ceilings").iterdir()
    with pytest.raises(CheckpointError):
        Embedder.load(state)
    job(tmp_path, ceiling=True, limit=300).path.unlink()
    again = run(job(tmp_path, config=config, ceiling=True, limit=300), source, quiet)
    assert again.readings == result.readings  # from its state: it is not trained again
    assert again.seconds["train_s"] == result.seconds["train_s"]


def made(protocol: str, recipe: str, figures: dict[int, float], reading: str) -> Row:
    """A row with one reading for each seed."""
    return Row(
        tuple(
            Result(
                protocol, recipe, "label-free", seed, None, "x", 60000, 10000, "y", None, None,
                {reading: figure}, {}, {"train_s": 60.0},
            )
            for seed, figure in figures.items()
        )
    )  # fmt: skip


def test_mean_and_deviation_over_seeds() -> None:
    row = made("mnist-rot", "recommended", {0: 0.97, 1: 0.98, 2: 0.99}, "nearest_neighbours_5")
    assert row.mean("nearest_neighbours_5") == pytest.approx(0.98)
    assert row.std("nearest_neighbours_5") == pytest.approx(0.01)
    assert made("mnist-rot", "a", {0: 0.5}, "gmm_ari").std("gmm_ari") is None
    assert row.mean("gmm_ari") is None


@pytest.mark.parametrize(
    ("figures", "reached"),
    [
        ({0: 0.981, 1: 0.982, 2: 0.979}, True),
        ({0: 0.999, 1: 0.975, 2: 0.975}, False),  # the mean of one lucky seed
        ({0: 0.97, 1: 0.98, 2: 0.97}, False),
        ({0: 0.985}, True),
    ],
)
def test_a_mark_is_reached_by_the_mean_and_not_by_one_seed(
    figures: dict[int, float], reached: bool
) -> None:
    mark = Mark("mnist-rot", "recommended", ("nearest_neighbours_5",), 98.0, "target")
    row = made("mnist-rot", "recommended", figures, "nearest_neighbours_5")
    found = verdict([row], mark)
    assert (found["reached"], found["seeds"]) == (reached, len(figures))
    assert verdict([], mark)["reached"] is None


def test_tables_stand_between_their_markers(tmp_path: Path) -> None:
    row = made("augmented-mnist", "gram-d12", {0: 0.9, 1: 0.92}, "logistic_regression")
    written = markdown([row])
    assert "| augmented-mnist | gram-d12 | logistic regression | 87.9 |" in written
    assert "91.00 ± 1.41" in written
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nWords.\n")
    insert(path, "one")
    path.write_text(path.read_text() + "\nAfter.\n")
    insert(path, "two")
    content = path.read_text()
    assert content.startswith("# Results\n\nWords.\n\n<!-- ")
    assert content.endswith("\nAfter.\n")
    assert "two" in content
    assert "one" not in content


def test_other_files_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("no JSON")
    with pytest.raises(Refused, match="holds no result of an evaluation"):
        results.read_all(tmp_path)
