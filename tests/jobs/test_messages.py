"""Every refusal, word for word: one line on standard error, its exit code, nothing changed."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from eqmodel.checkpoint import resolve
from jobs.cli import app
from jobs.console import known_verbs
from jobs.sample import QUERIES
from tests.jobs.conftest import SHIPPED, Orbit, snapshot

PICTURE = QUERIES / "00-coat.png"
VERBS = ", ".join(known_verbs(app))
RUN = "orbit run s3://bucket/images --model d4-28-grey --out s3://bucket/store"

WRONG_COMMAND_LINES = [
    ("rnu", f"no such verb 'rnu', did you mean 'run'?: expected one of {VERBS}"),
    ("frobnicate", f"no such verb 'frobnicate': expected one of {VERBS}"),
    ("--jsn", "no such flag '--jsn': orbit --help lists them"),
    (
        "run in --modle m",
        "no such flag '--modle', did you mean '--model'?: orbit run --help lists them",
    ),
    ("run", f"missing INPUT, --model, --out, expected for example: {RUN}"),
    ("run in --model m", f"missing --out, expected for example: {RUN}"),
    (
        "embed --model m --out s",
        f"missing INPUT, expected for example: {RUN}",
    ),
    (
        "query",
        "missing argument 'STORE', expected for example: orbit query STORE photo.png "
        "(orbit query --help tells more)",
    ),
    ("query s", "nothing to search for: name image files after STORE, or a key with --key"),
    (
        "query s -k 0 x.png",
        "invalid value for '-k': Input should be greater than or equal to 1, expected for "
        "example: orbit query STORE photo.png (orbit query --help tells more)",
    ),
    (
        "query s no.png",
        "no image 'no.png': expected a file, a URL, or - for standard input",
    ),
    ("query s - -", "found - twice, expected once: standard input holds one image"),
    (
        "train in",
        "missing option '--out', expected for example: orbit train s3://bucket/images "
        "--out model/ (orbit train --help tells more)",
    ),
    (
        "run in --model m --out s --ray foo",
        "--ray foo: expected local, auto or an address such as ray://host:10001",
    ),
    (
        "run in --model m --out s --max-reject-share 2",
        "--max-reject-share 2.0: expected a share between 0 and 1",
    ),
    (
        "run in --model m --out s --workers 2:1",
        "--workers 2:1: expected MIN or MIN:MAX, such as 2 or 2:8",
    ),
    (
        "run bogus://x --model m --out s",
        "'bogus://x' has the unknown scheme bogus://; use a local path, s3://, gs://, "
        "az://, abfs://, abfss://, http:// or another scheme of fsspec",
    ),
]


@pytest.mark.parametrize(("line", "message"), WRONG_COMMAND_LINES)
def test_a_wrong_command_line(
    orbit: Orbit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = orbit(*line.split())
    assert (outcome.code, outcome.stdout, outcome.stderr) == (2, "", f"orbit: {message}\n")
    assert snapshot(tmp_path) == {}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Inputs and models that do not fit, each in a folder of its own."""
    for name in ("empty", "words", "unreadable", "five"):
        (tmp_path / name).mkdir()
    (tmp_path / "words" / "readme.txt").write_text("no image")
    (tmp_path / "unreadable" / "model.json").write_text("{")
    for name in ("altered", "other"):
        shutil.copytree(resolve(SHIPPED), tmp_path / name)
    with (tmp_path / "altered" / "model.safetensors").open("r+b") as tensors:
        tensors.seek(5000)
        tensors.write(b"x")
    card = tmp_path / "other" / "model.json"
    card.write_text(card.read_text().replace(model_id(), "0123456789abcdef"))
    pixels = np.random.default_rng(0).integers(0, 255, (5, 40, 40), np.uint8)
    tifffile.imwrite(
        tmp_path / "five" / "a.tif", pixels, photometric="minisblack", planarconfig="separate"
    )
    return tmp_path


def model_id() -> str:
    from eqmodel.checkpoint import read_card

    return str(read_card(resolve(SHIPPED))["model_id"])


BAD_INPUT = [
    (
        f"run {{}}/absent --model {SHIPPED} --out {{}}/new",
        "INPUT {}/absent is not there; check the path or the bucket's name",
    ),
    (
        f"run {{}}/empty --model {SHIPPED} --out {{}}/new",
        "{}/empty: no tar, Parquet or image file found; check the URL and the access",
    ),
    (
        f"run {{}}/words --model {SHIPPED} --out {{}}/new",
        "{}/words: no tar, Parquet or image file found; check the URL and the access",
    ),
    (
        f"run {{}}/five --model {SHIPPED} --out {{}}/words",
        "{}/words: neither a store nor an empty folder (it holds readme.txt); choose another STORE",
    ),
    (
        f"run {{}}/five --model {SHIPPED} --out {{}}/five/store",
        "{}/five/store: lies inside INPUT, its files would be taken for images; "
        "choose a STORE outside INPUT",
    ),
    (
        "run {}/five --model nothing --out {}/new",
        "no model 'nothing': neither a path nor a shipped name "
        "(d12-28-grey, d4-28-grey, mnist-o2-28, mnist-rot-28)",
    ),
    (
        "run {}/five --model {}/empty --out {}/new",
        "'{}/empty' is not a checkpoint: a folder with model.json and model.safetensors is "
        "expected; train one, or use a shipped name "
        "(d12-28-grey, d4-28-grey, mnist-o2-28, mnist-rot-28)",
    ),
    (
        "run {}/five --model {}/unreadable --out {}/new",
        "{}/unreadable/model.json cannot be read as JSON; use a checkpoint made by 'orbit train'",
    ),
    (
        "run {}/five --model {}/altered --out {}/new",
        "{}/altered/model.safetensors does not have the digest that model.json records; "
        "copy the checkpoint again",
    ),
    (
        f"run {{}}/five --model {SHIPPED} --out {{}}/new",
        "the image has 5 channels, the model takes 1; use a model trained on such images",
    ),
    (
        f"query {{}}/empty {PICTURE}",
        "{}/empty holds no publication; make one with 'orbit run INPUT --model MODEL "
        "--out {}/empty'",
    ),
    *(
        (
            f"{verb} {{}}/empty",
            "{}/empty is not a store: no embeddings are there; make one with "
            "'orbit run INPUT --model MODEL --out {}/empty'",
        )
        for verb in ("index", "report", "status")
    ),
    (
        "query {}/empty {}/words",
        "no image in the folder '{}/words': expected files such as .png or .jpg",
    ),
    (
        "train {}/words --out {}/new",
        "{}/words holds no image, tar or Parquet file: nothing to train on",
    ),
    ("train {}/five --out {}/new", "{}/five gave 1 readable images, expected 32 at least"),
    (
        "demo --out {}/words",
        "{}/words holds other things than an earlier demo: name another with --out",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD_INPUT, ids=[line for line, _ in BAD_INPUT])
def test_input_model_or_store_that_does_not_fit(
    orbit: Orbit, places: Path, line: str, message: str
) -> None:
    before = snapshot(places)
    outcome = orbit(*line.replace("{}", str(places)).split())
    expected = f"orbit: {message}\n".replace("{}", str(places))
    assert (outcome.code, outcome.stdout, outcome.stderr) == (2, "", expected)
    assert snapshot(places) == before


WRONG_FOR_THE_STORE = [
    (
        f"run {{places}}/five --model {SHIPPED} --out {{store}}",
        2,
        "{places}/five: the store was made from {bucket}; use that INPUT or another STORE, "
        "or --add-input NAME to hold both",
    ),
    (
        "run {bucket} --model {places}/other --out {store}",
        2,
        "{store}: made with model {model_id}, 0123456789abcdef was given; use that model, "
        "or --new-model to embed everything again with this one",
    ),
    (
        "query {store} {places}/words/readme.txt",
        2,
        "'{places}/words/readme.txt' cannot be read: not an image of a known format "
        "(PNG, JPEG, WebP, BMP, GIF, TIFF, PNM, FITS); give an image file",
    ),
    (
        "query {store} {places}/five/a.tif",
        2,
        "'{places}/five/a.tif': the image has 5 channels, the model takes 1; "
        "use a model trained on such images",
    ),
    ("query {store} -", 2, "standard input is empty, expected the bytes of one image"),
    (
        "query {store} --key nothing",
        2,
        "no image with the key 'nothing' in the publication; a key is the name in its shard, "
        "or the path under INPUT",
    ),
]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("line", "code", "message"), WRONG_FOR_THE_STORE, ids=[line for line, *_ in WRONG_FOR_THE_STORE]
)
def test_what_does_not_fit_a_store_leaves_it_as_it_was(
    orbit: Orbit, places: Path, bucket: Path, store: Path, line: str, code: int, message: str
) -> None:
    names = {"places": places, "bucket": bucket, "store": store, "model_id": model_id()}
    before = snapshot(store)
    outcome = orbit(*line.format(**names).split())
    expected = f"orbit: {message}\n".format(**names)
    assert (outcome.code, outcome.stdout, outcome.stderr) == (code, "", expected)
    assert snapshot(store) == before


@pytest.mark.integration
def test_an_emptied_bucket_removes_nothing(
    orbit: Orbit, bucket: Path, store: Path, tmp_path: Path
) -> None:
    before = snapshot(store)
    moved = shutil.move(bucket / "clothes-0.tar", tmp_path)
    try:
        outcome = orbit("run", bucket, "--model", SHIPPED, "--out", store)
    finally:
        shutil.move(moved, bucket)
    assert (outcome.code, outcome.stdout) == (1, "")
    assert outcome.stderr == (
        f"orbit: {bucket}: 100% of what the store knows (1 shards) is no longer listed, at most "
        "20% expected; nothing was removed: check INPUT, or use --allow-vanish\n"
    )
    assert snapshot(store) == before
