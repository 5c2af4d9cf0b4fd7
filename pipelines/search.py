"""``Searcher``: the live publication of a store, opened here and asked for neighbours."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.errors import CheckpointError, Refused
from eqmodel.groups import group
from pipelines.artifacts import ArtifactCache
from pipelines.errors import KeyNotFoundError, ModelMismatchError, NotPublishedError
from pipelines.gallery import Gallery
from pipelines.hits import ANY, Hit, Only
from pipelines.index import CLUSTERS, IndexSpec, Sidecar, open_index
from pipelines.models import checkpoint_of_store
from pipelines.pictures import Pose, from_pixels, poses_of
from pipelines.storage import Folder
from pipelines.table import PublicationLog, PublicationRow
from pipelines.turning import Look, look_of, refined

if TYPE_CHECKING:
    from PIL import Image

    from eqmodel import Embedder

__all__ = ["ANY", "MAX_K", "Hit", "Only", "Searcher"]

MAX_K = 10_000
CHUNK = 65_536
DIGITS = 6  # of a score
_TOLD = ("image_id", "key", "source", "label", "cluster")
REFINED = 64
"""Of so many hits the turn is looked for on pixels; that of the others is the group's element."""


class Searcher:
    """Neighbours from one publication; the model is loaded when the first image is asked."""

    def __init__(self, cache: ArtifactCache, publication: PublicationRow, device: str) -> None:
        """Use ``Searcher.open``. ArtifactError when a file is not what was published."""
        self.store, self.publication, self._cache = cache.store, publication, cache
        self.device = device
        folder = cache.fetch(publication, ["index.json"])
        self.spec = IndexSpec.from_dict(json.loads((folder / "index.json").read_bytes()))
        if self.spec.model_id != publication.model_id:
            raise ModelMismatchError(
                f"publication {publication.id} is of model {publication.model_id}, its index of "
                f"{self.spec.model_id}; publish again"
            )
        digests = {file.path.rpartition("/")[2]: file.sha256 for file in publication.files}
        cache.fetch(publication, [*self.spec.files, *({CLUSTERS} & digests.keys())])
        self.rows = Sidecar.open(folder, self.spec)
        self._index = open_index(folder, digests, self.spec, self.rows)
        self._embedder: Embedder | None = None
        self._poses: list[Pose] | None = None
        self.gallery = Gallery(self.store, publication, self.rows)

    @classmethod
    def open(
        cls,
        store_url: str,
        cache: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> Searcher:
        """Open the live publication of a store, by URL or path.

        NotPublishedError when there is none. Artifacts are copied to a local cache and checked.
        """
        store = Folder(str(store_url))
        log = PublicationLog.open(store)
        live = None if log is None else log.live()
        if live is None:
            raise NotPublishedError(
                f"{store.url} holds no publication; make one with 'orbit run INPUT --model MODEL "
                f"--out {store_url}'"
            )
        return cls(ArtifactCache(store, cache), live, device)

    @property
    def model_id(self) -> str:
        """The model whose embeddings are searched."""
        return self.publication.model_id

    @property
    def group_name(self) -> str:
        """The group under which an embedding does not change."""
        return self.gallery.table.identity.group

    @property
    def embedder(self) -> Embedder:
        """The store's own copy of its model, loaded and checked on first use."""
        if self._embedder is None:
            self._embedder = self._load_model()
        return self._embedder

    def use(self, embedder: Embedder) -> None:
        """Search with a model that is loaded already; ModelMismatchError for another."""
        if embedder.model_id != self.model_id:
            raise ModelMismatchError(
                f"model {embedder.model_id} was given, the store was embedded with "
                f"{self.model_id}; use that one, or embed into a new STORE"
            )
        self._embedder = embedder

    def search(
        self,
        images: Sequence[NDArray[Any]],
        k: int = 10,
        align: bool = False,
        only: Only = ANY,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """The k nearest images to each of ``images`` (pixels of any size), best first.

        With ``align`` each has the turn that makes it the query, found on pixels where there are
        any. Refused for a k outside 1 to 10,000; ChannelError when an image does not fit the model.
        """
        _check_k(k)
        if not len(images):
            return []
        for image in images:
            self.embedder.accepts(image)
        vectors, codes = self.embedder.encode(self.embedder.preprocess(images))
        if not align:
            return self.search_vectors(vectors, k, only=only, min_score=min_score)
        looks = [look_of(from_pixels(image)) for image in images]
        return self.search_vectors(vectors, k, codes, looks, only, min_score)

    def search_keys(
        self,
        keys: Sequence[str],
        k: int = 10,
        align: bool = False,
        only: Only = ANY,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """The k nearest images to images of the store itself, from their stored embeddings.

        A key is ``KEY`` or, where several sources have it, ``SOURCE/KEY``. KeyNotFoundError.
        """
        _check_k(k)
        if not keys:
            return []
        rows = np.array([self.row_of_key(key) for key in keys])
        codes = np.asarray(self.rows.poses[rows]) if align else None
        looks = self.gallery.looks(rows.tolist()) if align else None
        vectors = np.asarray(self.rows.vectors[rows])
        return self.search_vectors(vectors, k, codes, looks, only, min_score)

    def search_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int,
        codes: NDArray[np.int8] | None = None,
        looks: Sequence[Look | None] | None = None,
        only: Only = ANY,
        min_score: float | None = None,
    ) -> list[list[Hit]]:
        """The k nearest images to unit embeddings (Q, d); aligned when given pose codes (Q, p), on
        pixels when given looks. Where only some images count all of those are compared."""
        _check_k(k)
        if not len(self.rows):
            return [[] for _ in vectors]
        if only:
            passing = self.rows.passing(only.label, only.source, only.cluster)
            near = [passing] * len(vectors)
        else:
            _, ids = self._index.search(vectors, min(k, len(self.rows)))
            near = [self.rows.rows_of(found[found >= 0]) for found in ids]
        answers = []
        for number, (query, rows) in enumerate(zip(vectors, near, strict=True)):
            code = None if codes is None else codes[number]
            look = None if looks is None else looks[number]
            hits = self._ranked(query, rows, k, code, look)
            answers.append([hit for hit in hits if min_score is None or hit.score >= min_score])
        return answers

    def _ranked(
        self,
        query: NDArray[np.float32],
        rows: NDArray[np.int64],
        k: int,
        code: NDArray[np.int8] | None,
        look: Look | None,
    ) -> list[Hit]:
        """By exact score, as it is told; equal ones by image_id. The answer does not depend on the
        index, and hardly on rounding: embeddings of copies differ by 1e-7.
        """
        if len(rows) > CHUNK:
            parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
            rough = np.concatenate([self.rows.vectors[part] @ query for part in parts])
            rows = rows[np.argsort(-rough, kind="stable")[: k + 100]]
        scores = self.rows.vectors[rows].astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((self.rows.ids_of(rows), -np.round(scores, DIGITS)))[:k]
        poses = None if code is None else self._align(code, rows[order])
        if poses is not None and look is not None:
            poses = self._refined(look, rows[order], poses)
        return self._hits(rows[order], scores[order], poses)

    def _refined(self, look: Look, rows: NDArray[np.int64], poses: list[Pose]) -> list[Pose]:
        acting = group(self.group_name)
        looks = self.gallery.looks(rows[:REFINED].tolist())
        found = refined(look, looks, poses[:REFINED], 360 / acting.n, acting.mirrored)
        return found + poses[REFINED:]

    def row_of_key(self, key: str) -> int:
        """The row of an image of the store. KeyNotFoundError when there is none, or several."""
        rows = self.rows.find_key(key)
        if len(rows) == 1:
            return rows[0]
        if not rows:
            raise KeyNotFoundError(
                f"no image with the key '{key}' in the publication; a key is the name in its "
                "shard, or the path under INPUT"
            )
        sources = sorted({str(record["source"]) for record in self.rows.records(rows)})
        raise KeyNotFoundError(
            f"{len(rows)} images have the key '{key}' (in {', '.join(sources[:3])}"
            f"{', ...' if len(sources) > 3 else ''}); give SOURCE/KEY"
        )

    def thumbnails(self, hits: Iterable[Hit]) -> Mapping[str, bytes]:
        """Thumbnails by image_id of the hits that have one, from the published table version."""
        ids = [int(hit.image_id) for hit in hits]
        rows = self.rows.rows_of(np.array(ids, np.int64)).tolist()
        found = zip(ids, rows, strict=True)
        stored = {str(number): self.gallery.stored(row) for number, row in found if row >= 0}
        return {name: data for name, data in stored.items() if data}

    def picture_of_key(self, key: str) -> Image.Image | None:
        """The thumbnail of an image of the store; None when it has none. KeyNotFoundError."""
        return self.gallery.picture(self.row_of_key(key))

    def refresh(self) -> Searcher:
        """The searcher of the live publication: this one, or a new one when it has changed."""
        log = PublicationLog.open(self.store)
        live = None if log is None else log.live()
        if live is None or live.seq == self.publication.seq:
            return self
        fresh = Searcher(self._cache, live, self.device)
        if self._embedder is not None and fresh.model_id == self.model_id:
            fresh.use(self._embedder)
        return fresh

    def _hits(
        self, rows: NDArray[np.int64], scores: NDArray[np.float64], poses: list[Pose] | None
    ) -> list[Hit]:
        return [
            Hit(
                key=record["key"],
                source=record["source"],
                label=record["label"],
                score=round(float(score), DIGITS),
                image_id=str(record["image_id"]),
                cluster=record["cluster"] if record["cluster"] >= 0 else None,
                pose=None if poses is None else poses[place].as_dict(),
            )
            for place, (record, score) in enumerate(
                zip(self.rows.records(rows.tolist(), _TOLD), scores, strict=True)
            )
        ]

    def _align(self, code: NDArray[np.int8], rows: NDArray[np.int64]) -> list[Pose]:
        from eqmodel.actions import best_pose

        acting = group(self.group_name)
        if self._poses is None:
            self._poses = poses_of(acting)
        if not len(rows) or self.rows.poses.shape[1] != len(code):
            return [Pose()] * len(rows)
        best = best_pose(code, np.asarray(self.rows.poses[rows]), acting)
        return [self._poses[int(g)] for g in best]

    def _load_model(self) -> Embedder:
        from eqmodel import Embedder

        folder = self._cache.checkpoint_folder(self.model_id)
        try:
            found = Embedder.load(folder, device=self.device)
        except CheckpointError:
            # Not fetched yet, or damaged on this machine: the store's copy decides.
            shutil.rmtree(folder, ignore_errors=True)
            place = self._cache.checkpoint_folder(self.model_id)
            found = Embedder.load(
                checkpoint_of_store(self.store, self.model_id, place), device=self.device
            )
        if found.model_id != self.model_id:
            raise ModelMismatchError(
                f"the store's checkpoint is model {found.model_id}, its publication of "
                f"{self.model_id}; restore models/{self.model_id} in the store"
            )
        return found


def _check_k(k: int) -> None:
    if not 1 <= k <= MAX_K:
        raise Refused(f"k = {k}: a number of neighbours from 1 to {MAX_K:,} is expected")
