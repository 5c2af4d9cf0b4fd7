"""`orbit demo`: the whole road on the sample that ships with the program."""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from numpy.typing import NDArray

from eqmodel.errors import OrbitError, Refused
from jobs.console import Answer, Json, run_alone, verb
from jobs.progress import Progress, progress
from jobs.query import neighbours
from jobs.sample import FOLDER, QUERIES

if TYPE_CHECKING:
    from pipelines.search import Hit, Searcher

MARK = ".orbit-demo"
"""A file in a folder that an earlier demo made and a later one may clear."""

MODEL = "d4-28-grey"
OWN_IMAGE = "0402"
"""Key of the image of the first two queries; one of those with a known copy."""
STRANGER = "09-sneaker.png"
TRAIN_MINUTES = 1.5
SHOWN = 5

Image = NDArray[Any]


@dataclass(frozen=True)
class Query:
    """One of the three queries that are shown: what it is, its pixels, its neighbours."""

    title: str
    pixels: Image
    hits: "list[Hit]"


@dataclass(frozen=True)
class Findings:
    """All that the demo found out."""

    model: str
    summary: dict[str, Any]
    free_angle_rank1: float
    num_copies: int
    num_found_first: int
    queries: list[Query]
    sheet: Path
    elapsed_s: float

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.summary,
            "model": self.model,
            "free_angle_rank1": self.free_angle_rank1,
            "num_copies": self.num_copies,
            "num_copies_found_first": self.num_found_first,
            "results": [
                {"query": query.title, "neighbours": [hit.as_dict() for hit in query.hits]}
                for query in self.queries
            ],
            "sheet": str(self.sheet),
            "demo_s": self.elapsed_s,
        }


def fresh_folder(out: Path) -> Path:
    """The folder of a demo, empty but for its mark. Refused when something else lies there."""
    if out.exists() and not (out / MARK).is_file() and any(out.iterdir()):
        raise Refused(f"{out} holds other things than an earlier demo: name another with --out")
    for part in ("store", "model", "model.training"):
        shutil.rmtree(out / part, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    return out


def sample_images() -> dict[str, Image]:
    """Every image of the sample by its key."""
    from pipelines.decode import decode
    from pipelines.shards import Damage, ReadOptions, list_shards, read_shard
    from pipelines.storage import Folder

    folder = Folder(str(FOLDER))
    return {
        sample.key: decode(sample.data)
        for shard in list_shards(folder, buckets=1)
        for sample in read_shard(folder, shard, ReadOptions())
        if not isinstance(sample, Damage)
    }


def copies_found_first(searcher: "Searcher", images: dict[str, Image]) -> tuple[int, int]:
    """How many of the known copies find their original first, themselves left out; and of all."""
    copies = json.loads((FOLDER / "copies.json").read_text())
    answers = searcher.search([images[copy["copy"]] for copy in copies], 2)
    found = 0
    for copy, hits in zip(copies, answers, strict=True):
        others = [hit.key for hit in hits if hit.key != copy["copy"]]
        found += others[:1] == [copy["original"]]
    return found, len(copies)


def three_queries(searcher: "Searcher", images: dict[str, Image]) -> list[Query]:
    """An image of the sample, the same mirrored and turned, and one the store has never seen."""
    import numpy as np

    from pipelines.decode import decode

    own = images[OWN_IMAGE]
    titles = (
        f"image {OWN_IMAGE} of the sample",
        "the same image, mirrored and turned by 90 degrees",
        f"an image that is not in the store ({STRANGER})",
    )
    pixels = (
        own,
        np.ascontiguousarray(np.rot90(own[:, ::-1])),
        decode((QUERIES / STRANGER).read_bytes()),
    )
    answers = searcher.search(list(pixels), SHOWN, align=True)
    return [Query(*parts) for parts in zip(titles, pixels, answers, strict=True)]


def train_on(images: Sequence[Image], folder: Path, show: Progress) -> str:
    """Train a checkpoint on the sample, from scratch; its folder."""
    from eqmodel.training import TrainConfig, train
    from jobs.train import epochs_shown

    config = TrainConfig(max_minutes=TRAIN_MINUTES, epochs=40, name="demo")
    train(images, folder, config, progress=epochs_shown(show), source="the sample")
    return str(folder)


@contextmanager
def step(show: Progress, what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    started = time.monotonic()
    show.say(f"- {what}")
    yield
    show.say(f"  done in {time.monotonic() - started:.1f} s")


def walk(out: Path, train_first: bool, show: Progress) -> Findings:
    """Every step, in order."""
    from pipelines.batch import run_input
    from pipelines.config import EmbedSettings
    from pipelines.search import Searcher
    from pipelines.sheet import write_sheet

    started = time.monotonic()
    store, model = out / "store", MODEL
    images = sample_images()
    if train_first:
        with step(show, f"train a D4 model on the sample, {TRAIN_MINUTES:g} minutes at most"):
            model = train_on(list(images.values()), out / "model", show)
    with step(show, f"orbit run {FOLDER} --model {model} --out {store}"):
        done = run_input(EmbedSettings(str(FOLDER), model, str(store)), progress=show)
        if done.failure is not None:
            raise done.failure
    with step(show, "look up the known copies, and three images"):
        searcher = Searcher.open(str(store))
        found, num_copies = copies_found_first(searcher, images)
        queries = three_queries(searcher, images)
        sheet = out / "queries.png"
        thumbnails = searcher.thumbnails([hit for query in queries for hit in query.hits])
        write_sheet(sheet, [(query.pixels, query.hits) for query in queries], thumbnails)
    return Findings(
        model=model,
        summary=done.as_dict(),
        free_angle_rank1=free_angle_rank1(store),
        num_copies=num_copies,
        num_found_first=found,
        queries=queries,
        sheet=sheet,
        elapsed_s=round(time.monotonic() - started, 1),
    )


def free_angle_rank1(store: Path) -> float:
    """As the report measured it on the sample's own images."""
    reports = sorted(store.glob("artifacts/*/report.json"))
    return float(json.loads(reports[-1].read_text())["invariance"]["free_angle_rank1"])


def as_text(found: Findings, store: Path) -> str:
    """The figures, then the three queries."""
    run = found.summary
    figures = [
        ("sample", "2,000 images of clothes, turned and mirrored at random, in 5 tar shards"),
        ("model", f"{found.model} ({run['model_id']})"),
        (
            "embedded",
            f"{run['num_embedded']:,} of {run['num_seen']:,} seen, {run['num_rejected']} rejected",
        ),
        (
            "speed",
            f"{run['images_per_s']:,.0f} images/s, efficiency {run['efficiency']:.2f} "
            f"(limit: {run['limit']})",
        ),
        ("recall@10", f"{run['recall_at_10']:.3f}"),
        ("copies", f"{found.num_found_first} of {found.num_copies} known copies found first"),
        (
            "any angle",
            f"{found.free_angle_rank1:.1%} of images found first from a copy at a "
            "random angle (free-angle rank-1)",
        ),
        ("report", f"{store}/report.html"),
        ("sheet", str(found.sheet)),
    ]
    lines = [f"{name:<10} {value}" for name, value in figures]
    for number, query in enumerate(found.queries, start=1):
        lines += ["", f"Query {number}: {query.title}", neighbours(query.hits)]
    lines += [
        "",
        f"Next: orbit query {store} IMAGE, or your own bucket: "
        f"orbit run INPUT --model {MODEL} --out STORE",
    ]
    return "\n".join(lines)


def failure(found: Findings) -> OrbitError | None:
    """A copy that is not found first is a failure: quarter turns and mirrors are exact."""
    missed = found.num_copies - found.num_found_first
    if missed == 0:
        return None
    return OrbitError(f"{missed} of {found.num_copies} known copies were not found first")


@verb("orbit demo --out orbit-demo")
def demo(
    out: Annotated[Path, typer.Option(help="folder for the store and the contact sheet")] = Path(
        "orbit-demo"
    ),
    train: Annotated[
        bool, typer.Option("--train", help="train the model from scratch first, 3 minutes at most")
    ] = False,
    as_json: Json = False,
) -> Answer:
    """The whole road on 2,000 images that ship with the program: embed, index, report, query."""
    folder = fresh_folder(out)
    with progress() as show:
        found = walk(folder, train, show)
    return Answer(found.as_dict(), as_text(found, folder / "store"), failure(found))


if __name__ == "__main__":
    run_alone(demo)
