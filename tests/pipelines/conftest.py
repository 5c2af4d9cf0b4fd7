"""Stores made in-process, without Ray: real images, the shipped model, a real table."""

import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from eqmodel.checkpoint import resolve
from pipelines.embed import ShardEmbedder, ShardWork, WorkerSettings
from pipelines.models import keep_copy, model_id_of
from pipelines.publication import PublishOptions
from pipelines.shards import list_shards
from pipelines.storage import Folder
from pipelines.table import EmbeddingTable, TableIdentity

SAMPLE = Path(__file__).parents[2] / "jobs" / "sample"
MODEL = "d4-28-grey"
QUICK = PublishOptions(audit_images=8, map_points=60, threads=1)
"""Options with which a publication takes about a second."""

MakeTar = Callable[[dict[str, bytes]], bytes]


def sample_members(num: int, shard: int = 0) -> dict[str, bytes]:
    """The first ``num`` images, with their labels, of a shard of the sample, by member name."""
    members: dict[str, bytes] = {}
    with tarfile.open(SAMPLE / f"clothes-{shard}.tar") as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None and len(members) < 2 * num:
                members[member.name] = content.read()
    return members


def embed_here(input_url: str, store_url: str) -> tuple[Folder, str]:
    """Bring a store's table to what INPUT holds; the store and its model's id."""
    store, folder = Folder(store_url), resolve(MODEL)
    model_id = model_id_of(folder)
    keep_copy(store, model_id, folder)
    worker = ShardEmbedder(
        WorkerSettings(Folder(input_url).url, store.url, model_id, str(folder), batch_size=16)
    )
    made = TableIdentity(model_id, Folder(input_url).url, 4, worker.embedder.dim, "d4")
    table = EmbeddingTable.open(store, model_id) or EmbeddingTable.create(store, made)
    plan, known = table.plan(list_shards(Folder(input_url), buckets=4)), table.known()
    receipts = [
        worker.embed(ShardWork(shard, "run", 1, previous=known.get(shard.source)))
        for shard in plan.work
    ]
    if receipts or plan.vanished:
        table.commit(receipts, [file.source for file in plan.vanished])
    return store, model_id


@dataclass(frozen=True)
class Made:
    """A store with its input; ``images`` by key as decoded pixels."""

    input: Path
    store: Folder
    model_id: str
    images: Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar) -> Made:
    """80 images in two shards, embedded and not published: copy it before changing it.

    Image 'turned' is a quarter turn of the first, 'equal' the first byte for byte, and 'broken'
    is no image.
    """
    import io

    from PIL import Image

    from pipelines.decode import decode

    place = tmp_path_factory.mktemp("embedded")
    (place / "input").mkdir()
    first, second = sample_members(40), sample_members(36, shard=1)
    name = next(member for member in first if member.endswith(".png"))
    pixels = decode(first[name])
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels[:, ::-1], 1))).save(buffer, "PNG")
    second |= {"turned.png": buffer.getvalue(), "equal.png": first[name], "broken.png": b"text"}
    (place / "input" / "a.tar").write_bytes(make_tar(first))
    (place / "input" / "b.tar").write_bytes(make_tar(second))
    store, model_id = embed_here(str(place / "input"), str(place / "store"))
    images = {
        member.rpartition(".")[0]: decode(data)
        for member, data in (first | second).items()
        if member.endswith(".png") and member != "broken.png"
    }
    return Made(place / "input", store, model_id, images)
