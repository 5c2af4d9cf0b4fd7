"""`orbit evaluate` on small sets of real images, and each of its refusals word for word."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from threadpoolctl import threadpool_limits

from jobs.datasets import FASHION_MNIST, IMAGES, LABELS, MNIST, Split, datasets, write_idx
from jobs.evaluate import seeds_of
from jobs.sources import read_source
from tests.eqmodel.test_protocols import sample
from tests.jobs.conftest import SHIPPED, Orbit, snapshot


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small matrices: many threads only wait for each other."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IDX files of the sample's clothes, under the names of both data sets."""
    folder = tmp_path_factory.mktemp("data")
    whole = sample()
    for dataset in (MNIST, FASHION_MNIST):
        (folder / dataset.name).mkdir()
        for split, part in ((Split.train, slice(1500)), (Split.test, slice(1500, None))):
            for names, values in ((IMAGES, whole.images), (LABELS, whole.labels)):
                path = folder / dataset.name / f"{names[split]}.gz"
                write_idx(path, values[part].astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def plankton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class, as the National Data Science Bowl has it: ellipses and bars of any size
    on white, and a file that is no image."""
    folder = tmp_path_factory.mktemp("bowl") / "train"
    generator = np.random.default_rng(0)
    for kind in ("copepod", "diatom"):
        (folder / kind).mkdir(parents=True)
        for number in range(120):
            height, width = generator.integers(30, 90, 2)
            y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
            inside = x**2 + y**2 < 0.6 if kind == "copepod" else np.abs(x - y) < 0.3
            pixels = np.where(inside, generator.integers(20, 120), 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.jpg")
    (folder / "diatom" / "notes.txt").write_text("no image")
    return folder.parent


def test_rows_figures_and_json(orbit: Orbit, data: Path, tmp_path: Path) -> None:
    flags = f"--limit 150 --out {tmp_path} --max-minutes 0.02 --data {data} --seeds 2"
    outcome = orbit(
        "evaluate", "o2-fashion", "--recipe", "raw-pixels,mean-d4", *flags.split(), "--json"
    )
    assert outcome.code == 0, outcome.stderr
    found = outcome.json
    assert (found["protocol"], found["seeds"], found["limit"]) == ("o2-fashion", [0, 1], 150)
    pixels, pooled = found["rows"]
    assert (pixels["recipe"], pixels["kind"]) == ("raw-pixels", "baseline")
    assert (pooled["recipe"], pooled["kind"], pooled["seeds"]) == ("mean-d4", "label-free", [0, 1])
    for reading in ("logistic_regression", "kmeans_purity", "gmm_purity"):
        values = [run["readings"][reading] for run in pooled["runs"]]
        assert pooled["mean"][reading] == pytest.approx(np.mean(values))
        assert pooled["std"][reading] == pytest.approx(np.std(values, ddof=1))
    assert [run["config"]["seed"] for run in pooled["runs"]] == [0, 1]
    assert {Path(path).name for path in found["figures"]} == {
        "manifold.png",
        "explained-variance.png",
    }
    assert all(Path(path).is_file() for path in found["figures"])
    again = orbit("evaluate", "o2-fashion", "--recipe", "mean-d4", *flags.split())
    assert again.code == 0
    assert "mean-d4" in again.stdout
    assert "read from an earlier run" in again.stderr
    for word in ("LR", "K-means", "Hungarian", "30 degrees", "±"):
        assert word in again.stdout


def test_tables_of_earlier_results(orbit: Orbit, data: Path, tmp_path: Path) -> None:
    flags = f"--recipe raw-pixels --data {data} --out {tmp_path} --no-figures"
    for protocol in ("augmented-fashion", "mnist-rot"):
        assert orbit("evaluate", protocol, *flags.split()).code == 0
    page = tmp_path / "RESULTS.md"
    outcome = orbit("evaluate", "--table", tmp_path, "--into", page, "--json")
    assert outcome.code == 0
    assert {row["recipe"] for row in outcome.json["rows"]} == {"raw-pixels"}
    assert len(outcome.json["reached"]) == 40
    written = page.read_text()
    assert "### augmented-fashion" in written
    assert "### mnist-rot" in written
    assert "| recommended | 5-NN | 98 | target |  | 0 | not run |" in written
    assert written == page.read_text()
    assert orbit("evaluate", "--table", tmp_path).stdout.strip() in written


def test_a_shipped_checkpoint_is_read(orbit: Orbit, data: Path, tmp_path: Path) -> None:
    flags = f"--limit 300 --out {tmp_path} --data {data / 'fashion-mnist'} --no-figures --json"
    outcome = orbit("evaluate", "augmented-fashion", "--model", SHIPPED, *flags.split())
    assert outcome.code == 0, outcome.stderr
    [row] = outcome.json["rows"]
    assert row["kind"] == "checkpoint"
    assert row["recipe"].startswith(SHIPPED)
    assert row["mean"]["turn_90_error"] < 1e-5
    assert row["mean"]["nearest_neighbours_5"] > 0.6
    assert outcome.json["figures"] == []
    assert not (tmp_path / "checkpoints").exists()


def test_plankton_in_class_folders(orbit: Orbit, plankton: Path, tmp_path: Path) -> None:
    from eqmodel.protocols.draws import protocol_of

    source = read_source(protocol_of("plankton"), plankton)
    assert source.train.images.shape == (240, 32, 32)
    assert source.classes == ("copepod", "diatom")
    corners = source.train.images[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners[:120] > 200).all()  # padded with the border's white
    flags = f"--data {plankton} --out {tmp_path} --max-minutes 0.02 --no-figures --json"
    outcome = orbit("evaluate", "plankton", "--recipe", "mean-d4,raw-pixels", *flags.split())
    assert outcome.code == 0, outcome.stderr
    run = outcome.json["rows"][0]["runs"][0]
    assert (run["num_train"], run["num_test"]) == (192, 48)
    assert run["config"]["image_size"] == 32
    assert run["readings"]["logistic_regression"] > 0.9
    assert run["readings"]["kmeans_purity"] >= 0.5


def test_idx_files_are_what_evaluate_reads(data: Path, tmp_path: Path) -> None:
    datasets(["mnist"], tmp_path, source=data, check=False, idx=True)
    before, after = snapshot(data / "mnist"), snapshot(tmp_path / "mnist")
    assert before == after
    assert len(after) == 4


def test_seeds() -> None:
    assert seeds_of("3") == [0, 1, 2]
    assert seeds_of("2,0,2") == [0, 2]
    assert seeds_of("7,") == [7]


WRONG = [
    ("evaluate", "missing PROTOCOL, expected for example: orbit evaluate mnist-rot"),
    (
        "evaluate mnist",
        "no protocol 'mnist': expected one of augmented-mnist, mnist-rot, o2-mnist, "
        "augmented-fashion, fashion-rot, o2-fashion, plankton",
    ),
    (
        "evaluate mnist-rot --recipe best",
        "no recipe 'best': expected one of raw-pixels, autoencoder, mean-d4, mean-d12, "
        "attention-d4, attention-d12, gram-d4, gram-d12, recommended",
    ),
    (
        "evaluate mnist-rot --recipe gram-d4 --model d4-28-grey",
        "found --recipe and --model, expected one of them",
    ),
    (
        "evaluate mnist-rot --model nothing",
        "no model 'nothing': neither a path nor a shipped name "
        "(d12-28-grey, d4-28-grey, mnist-o2-28, mnist-rot-28)",
    ),
    (
        "evaluate mnist-rot --seeds some",
        "--seeds some: expected a count such as 3, or seeds such as 0,1,2",
    ),
    (
        "evaluate mnist-rot --seeds 0",
        "--seeds 0: expected 1 to 100 seeds; name a single one as 0,",
    ),
    (
        "evaluate mnist-rot --device gpu",
        "--device gpu: not here; expected cpu, or cuda with a GPU",
    ),
    (
        "evaluate mnist-rot --data none",
        "mnist-rot needs mnist: no train-images-idx3-ubyte.gz in none: expected "
        "none/mnist/train-images-idx3-ubyte.gz or none/train-images-idx3-ubyte.gz; fetch it with "
        "'python -m jobs.datasets mnist --idx --out none'",
    ),
    (
        "evaluate o2-fashion",
        "o2-fashion needs fashion-mnist: no train-images-idx3-ubyte.gz in data: expected "
        "data/fashion-mnist/train-images-idx3-ubyte.gz or data/train-images-idx3-ubyte.gz; fetch "
        "it with 'python -m jobs.datasets fashion-mnist --idx --out data'",
    ),
    (
        "evaluate plankton --data none",
        "plankton needs a folder of images per class: found 0 in none; fetch train.zip of the "
        "National Data Science Bowl (kaggle.com/c/datasciencebowl), unpack it and name its "
        "folder with --data",
    ),
    (
        "evaluate --table none",
        "none holds no result of an evaluation: expected the folder that was given to "
        "'orbit evaluate PROTOCOL --out'",
    ),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line for line, _ in WRONG])
def test_what_does_not_fit(
    orbit: Orbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORBIT_DATA", raising=False)
    outcome = orbit(*line.split())
    assert (outcome.code, outcome.stdout, outcome.stderr) == (2, "", f"orbit: {message}\n")
    assert snapshot(tmp_path) == {}


def test_the_other_data_set_is_not_taken_for_this_one(
    orbit: Orbit, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jobs import sources

    known = FASHION_MNIST.digests[IMAGES[Split.train]]
    monkeypatch.setattr(sources, "digest", lambda images: known)
    outcome = orbit("evaluate", "mnist-rot", "--data", data)
    assert outcome.code == 2
    assert f"mnist-rot needs mnist, but {data} holds fashion-mnist; fetch it with" in outcome.stderr


def test_figures_without_matplotlib(
    orbit: Orbit, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    flags = f"--recipe raw-pixels --limit 100 --data {data} --out {tmp_path}"
    outcome = orbit("evaluate", "augmented-mnist", *flags.split(), "--figures")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.stderr == (
        "orbit: --figures needs matplotlib, which is not installed: "
        "pip install 'orbit-embeddings[evaluate]', or --no-figures\n"
    )
    assert (
        json.loads(orbit("evaluate", "augmented-mnist", *flags.split(), "--json").stdout)["figures"]
        == []
    )
