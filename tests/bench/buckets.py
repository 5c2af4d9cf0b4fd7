"""Buckets of images for the benchmarks, made once: tars of clothes as PNG, of textures as JPEG."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench.results import BUILD
from tests.bench.views import clothes

PER_SHARD = {28: 2000, 256: 400, 1024: 40}


def bucket(side: int, shards: int) -> Path:
    """A folder of so many tars: PNG of 28 pixels a side, JPEG of 256 or 1024."""
    per, folder = PER_SHARD[side], BUILD / f"images-{side}-{shards}"
    images = None
    for shard in range(shards):
        path = folder / f"part-{shard:05d}.tar"
        if path.exists():
            continue
        images = clothes() if images is None else images
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with tarfile.open(part, "w") as tar:
            for index in range(shard * per, (shard + 1) * per):
                data = _png(images, index) if side == 28 else _jpeg(images, index, side)
                facts = tarfile.TarInfo(f"{index:07d}.{'png' if side == 28 else 'jpg'}")
                facts.size = len(data)
                tar.addfile(facts, io.BytesIO(data))
        os.replace(part, path)
    return folder


def _png(images: np.ndarray, index: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(images[index % len(images)]).save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(images: np.ndarray, index: int, side: int) -> bytes:
    """Three clothes as the colours, a quarter of smooth noise: as large as a photograph's file."""
    bicubic, chance = Image.Resampling.BICUBIC, np.random.default_rng(index)
    colours = np.stack([images[(3 * index + band) % len(images)] for band in range(3)], -1)
    noise = chance.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    large = [Image.fromarray(a).resize((side, side), bicubic) for a in (colours, noise)]
    buffer = io.BytesIO()
    Image.blend(*large, 0.25).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
