"""Make the sample that ships with the project, from the test half of Fashion-MNIST.

    python -m jobs.sample.make_sample [--from FOLDER] [--out FOLDER]

1,900 images of clothes, each mirrored or not and turned by a quarter or by any angle, and 100
known copies of as many of them: mirrored or turned by quarters once more, pixel for pixel.
Shuffled into five tar shards. The folder beside it, sample_queries, gets images that are in no
shard (outside the sample's own folder, so that the sample can be given as INPUT as it lies).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from eqmodel.errors import OrbitError
from jobs.console import run_alone
from jobs.datasets import FASHION_MNIST, Pixels, Split, load, png, write_tar
from jobs.sample import FOLDER

NUM_IMAGES = 2000
NUM_COPIES = 100
NUM_SHARDS = 5
NUM_QUERIES = 20
SEED = 20180930
QUARTER_SHARE = 0.4
MIN_POSE_DIFFERENCE = 4.0
"""Grey levels, mean over the pixels, between any two of the eight poses of an image that is
copied: below it the image is its own mirror or half-turn, and its pose a matter of taste."""

Element = tuple[int, int]
ELEMENTS: tuple[Element, ...] = tuple((m, k) for m in (0, 1) for k in range(4))


@dataclass(frozen=True)
class Picture:
    """One image of the sample: its pixels, its class, and which picture it copies, how."""

    pixels: Pixels
    label: str
    original: int | None = None
    element: Element = (0, 0)


def act(pixels: Pixels, element: Element) -> Pixels:
    """Mirror left-right if m, then turn k quarters counter-clockwise: exact, pixel for pixel."""
    mirror, quarters = element
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirror else pixels, quarters))


def orbit_key(pixels: Pixels) -> bytes:
    """The same bytes for every turned or mirrored copy of an image, others for other images."""
    return min(act(pixels, element).tobytes() for element in ELEMENTS)


def has_clear_pose(pixels: Pixels) -> bool:
    """Whether all eight poses of the image look different."""
    poses = [act(pixels, element).astype(np.float32) for element in ELEMENTS]
    differences = [np.abs(poses[0] - pose).mean() for pose in poses[1:]]
    return bool(min(differences) >= MIN_POSE_DIFFERENCE)


def pose_at_random(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The image mirrored or not, and turned by a quarter or by any angle in its own frame."""
    mirror = int(rng.integers(2))
    if rng.random() < QUARTER_SHARE:
        return act(pixels, (mirror, int(rng.integers(4))))
    turned = Image.fromarray(act(pixels, (mirror, 0))).rotate(
        float(rng.uniform(0, 360)), resample=Image.Resampling.BILINEAR, fillcolor=0
    )
    return np.asarray(turned)


def choose(images: Pixels, labels: Pixels, rng: np.random.Generator) -> list[Picture]:
    """Originals, then images for queries: posed at random, no two of one orbit."""
    chosen: list[Picture] = []
    seen: set[bytes] = set()
    for number in rng.permutation(len(images)):
        pixels = pose_at_random(images[number], rng)
        key = orbit_key(pixels)
        if key not in seen:
            seen.add(key)
            chosen.append(Picture(pixels, FASHION_MNIST.classes[labels[number]]))
        if len(chosen) == NUM_IMAGES - NUM_COPIES + NUM_QUERIES:
            return chosen
    raise OrbitError(f"found {len(chosen)} different images, expected {NUM_IMAGES} and more")


def add_copies(originals: list[Picture], rng: np.random.Generator) -> list[Picture]:
    """The originals and, after them, the copies of some: each by an element that is not the
    identity, the seven of them as often as can be."""
    clear = [n for n, picture in enumerate(originals) if has_clear_pose(picture.pixels)]
    copied = rng.choice(clear, NUM_COPIES, replace=False)
    elements = [ELEMENTS[1 + n % 7] for n in range(NUM_COPIES)]
    copies = [
        Picture(act(originals[n].pixels, element), originals[n].label, int(n), element)
        for n, element in zip(copied, elements, strict=True)
    ]
    return originals + copies


@dataclass(frozen=True)
class Layout:
    """Which picture stands where in the shuffled sample; gives each its key and its shard."""

    order: tuple[int, ...]

    @property
    def per_shard(self) -> int:
        return len(self.order) // NUM_SHARDS

    def key(self, picture: int) -> str:
        return f"{self.order.index(picture):04d}"

    def source(self, picture: int) -> str:
        return shard_name(self.order.index(picture) // self.per_shard)

    def shard(self, number: int) -> tuple[int, ...]:
        return self.order[number * self.per_shard : (number + 1) * self.per_shard]


def shard_name(number: int) -> str:
    return f"clothes-{number}.tar"


def write_shards(pictures: list[Picture], layout: Layout, out: Path) -> None:
    """The tars: per image a .cls with its class and a .png with its pixels."""
    out.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_SHARDS):
        members: list[tuple[str, bytes]] = []
        for n in layout.shard(number):
            members.append((f"{layout.key(n)}.cls", pictures[n].label.encode()))
            members.append((f"{layout.key(n)}.png", png(pictures[n].pixels)))
        write_tar(out / shard_name(number), members)


def write_copies(pictures: list[Picture], layout: Layout, path: Path) -> None:
    """One JSON object per copy: copy = the element (mirror, then turn) applied to original."""
    copies: list[dict[str, Any]] = [
        {
            "copy": layout.key(n),
            "original": layout.key(picture.original),
            "source_copy": layout.source(n),
            "source_original": layout.source(picture.original),
            "angle_degrees": 90 * picture.element[1],
            "mirror": bool(picture.element[0]),
        }
        for n, picture in enumerate(pictures)
        if picture.original is not None
    ]
    copies.sort(key=lambda copy: str(copy["copy"]))
    lines = ",\n".join(json.dumps(copy) for copy in copies)
    path.write_text(f"[\n{lines}\n]\n")


def write_queries(queries: list[Picture], out: Path) -> None:
    """PNG files named after their number and class."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    for number, picture in enumerate(queries):
        name = picture.label.lower().replace(" ", "-")
        (out / f"{number:02d}-{name}.png").write_bytes(png(picture.pixels))


def make_sample(
    source: Annotated[
        Path | None, typer.Option("--from", help="folder with the IDX files, instead of a mirror")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="folder for the shards; OUT_queries gets the rest")
    ] = FOLDER,
    seed: Annotated[int, typer.Option(help="of the choice and of the poses")] = SEED,
) -> None:
    """Make the sample: five tar shards, copies.json, and images to query with."""
    images, labels = load(FASHION_MNIST, Split.test, source)
    rng = np.random.default_rng(seed)
    chosen = choose(images, labels, rng)
    originals, queries = chosen[:-NUM_QUERIES], chosen[-NUM_QUERIES:]
    pictures = add_copies(originals, rng)
    layout = Layout(tuple(int(n) for n in rng.permutation(len(pictures))))
    write_queries(queries, out.with_name(f"{out.name}_queries"))
    write_shards(pictures, layout, out)
    write_copies(pictures, layout, out / "copies.json")
    size = sum(path.stat().st_size for path in out.glob("*.tar"))
    print(f"{len(pictures)} images in {NUM_SHARDS} shards, {size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    run_alone(make_sample)
