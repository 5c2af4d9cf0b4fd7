"""Duplicates: byte-equal by digest, near ones by embedding, turned and mirrored copies among them.

A near pair is proposed by the index (score above a threshold) and confirmed on pixels: the two
thumbnails, one turned by each element of the group, must agree down to their fine detail. Cost
follows the number of proposals, never all pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, rotate

from eqmodel.actions import best_pose
from eqmodel.groups import FiniteGroup
from pipelines.index import Neighbours, Rows
from pipelines.pictures import Pose, fit, open_picture, poses_of

Ints = NDArray[np.int64]
Thumbnails = Callable[[Collection[int]], Mapping[int, bytes]]
"""image_ids -> thumbnails of those that have one."""

SIDE, BATCH = 32, 2048
DETAIL, NOISE = 1.0, 8.0
"""Fine detail is what a blur of ``DETAIL`` pixels removes; below ``NOISE`` grey levels (root
mean square) it is what compression left."""
POSE_BONUS = 0.002
"""By which the pose that the pose codes prefer wins over one that fits the pixels no better."""


@dataclass(frozen=True)
class DuplicateOptions:
    """A score of ``threshold`` proposes a pair, ``agreement`` of the aligned thumbnails confirms.

    Where an image has no thumbnail only a score of ``certain`` counts. At most ``max_pairs`` of
    the best-scoring proposals are looked at.
    """

    threshold: float = 0.93
    agreement: float = 0.96
    certain: float = 0.9999
    max_pairs: int = 200_000


@dataclass(frozen=True)
class Member:
    """A row in a group; its pose is the element with reference = g(this image)."""

    row: int
    pose: Pose
    agreement: float | None


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that are the same; ``members[0]`` is the reference. ``kind``: bytes or near."""

    kind: str
    members: tuple[Member, ...]

    @property
    def turned(self) -> bool:
        """Whether some member had to be turned or mirrored to match."""
        return any(not member.pose.identity for member in self.members)


@dataclass(frozen=True)
class Duplicates:
    """Groups, largest first; ``num_proposed`` pairs by score, ``num_unseen`` past max_pairs."""

    groups: tuple[DuplicateGroup, ...]
    num_proposed: int
    num_unseen: int
    options: DuplicateOptions


def find_duplicates(
    rows: Rows,
    near: Neighbours,
    thumbnails: Thumbnails,
    group: FiniteGroup,
    options: DuplicateOptions | None = None,
) -> Duplicates:
    """The groups of duplicates among ``rows``, given every row's nearest others."""
    options = options or DuplicateOptions()
    same = _first_with_digest(rows)
    pairs, num_proposed = _proposals(near, same, options)
    looks = Looks(rows, group, thumbnails, np.unique(pairs))
    confirmed = pairs[looks.agree(pairs, options)]
    twins: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(same != np.arange(len(same))).tolist():
        twins[int(same[row])].append(row)
    groups = [
        _group(parts, twins, rows)
        for component in _components(confirmed)
        for parts in _stars(component, confirmed, looks, options)
    ]
    near_rows = {member.row for found in groups for member in found.members}
    alone = [row for row in twins if row not in near_rows]
    groups += [_group([Member(row, Pose(), None)], twins, rows) for row in alone]
    groups.sort(key=lambda found: (-len(found.members), found.members[0].row))
    return Duplicates(tuple(groups), num_proposed, num_proposed - len(pairs), options)


def _first_with_digest(rows: Rows) -> Ints:
    """(N,): the first row with the same bytes as each row."""
    codes = rows.table["digest"].combine_chunks().dictionary_encode().indices
    numbers = codes.fill_null(-1).to_numpy()
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    found: Ints = np.where(numbers < 0, np.arange(len(numbers)), first[inverse]).astype(np.int64)
    return found


def _proposals(near: Neighbours, same: Ints, options: DuplicateOptions) -> tuple[Ints, int]:
    """(P, 2) pairs of rows, best score first, each once; the first of byte-equal rows stands."""
    mine, place = np.nonzero(near.scores >= options.threshold)
    scores = near.scores[mine, place]
    left, right = same[mine], same[near.rows[mine, place]]
    pairs = np.stack([np.minimum(left, right), np.maximum(left, right)], 1)
    kept = left != right
    pairs, scores = pairs[kept], scores[kept]
    pairs = pairs[np.argsort(-scores, kind="stable")]
    _, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.sort(first)][: options.max_pairs], len(first)


class Looks:
    """How images look, seen as thumbnails of one size, and which turn makes two look alike."""

    def __init__(
        self, rows: Rows, group: FiniteGroup, thumbnails: Thumbnails, wanted: Ints
    ) -> None:
        self.rows, self.group, self.poses = rows, group, poses_of(group)
        ids = rows.ids
        found = thumbnails({int(ids[row]) for row in wanted})
        self._place = np.full(len(rows), -1, np.int64)
        seen: list[NDArray[np.uint8]] = []
        for row in wanted.tolist():
            picture = open_picture(found.get(int(ids[row])))
            if picture is not None:
                self._place[row] = len(seen)
                seen.append(np.asarray(fit(picture, SIDE).convert("L")))
        self._seen = np.array(seen, np.uint8).reshape(len(seen), SIDE, SIDE)

    def agreements(self, pairs: Ints) -> NDArray[np.float32]:
        """(P, 2) pairs of rows -> (P, order): how well the left equals g(right), -1 unseen."""
        found = np.full((len(pairs), self.group.order), -1.0, np.float32)
        places = self._place[pairs]
        both = np.flatnonzero((places >= 0).all(1))
        for start in range(0, len(both), BATCH):
            part = both[start : start + BATCH]
            left, right = (self._seen[places[part, side]] for side in (0, 1))
            found[part] = agreement_under(left, right, self.poses)
        return found

    def compare(self, reference: int, others: list[int]) -> list[tuple[Pose, float | None]]:
        """For each other row the pose with reference = g(other), and how well it fits."""
        pairs = np.array([(reference, other) for other in others], np.int64)
        fits = self.agreements(pairs)
        found: list[tuple[Pose, float | None]] = []
        for other, fit_of in zip(others, fits, strict=True):
            preferred = self._by_codes(reference, other)
            if fit_of[0] < -0.999:
                found.append((self.poses[preferred], None))
                continue
            biased = fit_of.copy()
            biased[preferred] += POSE_BONUS
            best = int(biased.argmax())
            found.append((self.poses[best], round(float(fit_of[best]), 4)))
        return found

    def agree(self, pairs: Ints, options: DuplicateOptions) -> NDArray[np.bool_]:
        """(P, 2) pairs of rows -> (P,): whether each holds on pixels, or by a certain score."""
        if not len(pairs):
            return np.zeros(0, bool)
        unseen = (self._place[pairs] < 0).any(1)
        agreed: NDArray[np.bool_] = self.agreements(pairs).max(1) >= options.agreement
        left, right = (self.rows.vectors[pairs[unseen, side]] for side in (0, 1))
        agreed[unseen] = np.einsum("pd,pd->p", left, right) >= options.certain
        return agreed

    def _by_codes(self, reference: int, other: int) -> int:
        poses = self.rows.poses
        if poses.shape[1] != self.group.order * 8:
            return 0
        return int(best_pose(poses[reference], poses[other][None], self.group)[0])


def agreement_under(
    left: NDArray[np.uint8], right: NDArray[np.uint8], poses: Sequence[Pose]
) -> NDArray[np.float32]:
    """Grey pictures (P, S, S) -> (P, len(poses)): how well each left equals its turned right.

    The smaller of two correlations, of the pictures and of their fine detail: two trousers have
    one outline, but not the same folds. Measured on clothes of 28 x 28 pixels, with thumbnails
    as stored: of 300 copies each, turned, re-encoded (JPEG 90) or enlarged, all reach 0.97; of the
    three nearest other images of 4,000, nine reach 0.96.
    """
    first = [_normal(part, floor) for part, floor in _looks(left)]
    second = _looks(right)
    found = np.empty((len(left), len(poses)), np.float32)
    for number, pose in enumerate(poses):
        turned = [_normal(_turned(part, pose), floor) for part, floor in second]
        fits = [
            np.einsum("pf,pf->p", a, b) + common_a * common_b
            for (a, common_a), (b, common_b) in zip(first, turned, strict=True)
        ]
        found[:, number] = np.minimum(fits[0], fits[1])
    return found


def _looks(pictures: NDArray[np.uint8]) -> list[tuple[NDArray[np.float32], float]]:
    """The pictures and their fine detail, each with the contrast below which it is noise."""
    values = pictures.astype(np.float32)
    detail = values - gaussian_filter(values, (0, DETAIL, DETAIL))
    return [(values - values.mean((1, 2), keepdims=True), 1.0), (detail, NOISE)]


def _normal(
    pictures: NDArray[np.float32], floor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors (P, S * S) with, as one more coordinate, the share that ``floor`` takes.

    So two pictures without contrast are alike, as they should be, and noise counts for nothing.
    """
    flat = pictures.reshape(len(pictures), -1)
    noise = floor * SIDE
    length = np.sqrt((flat * flat).sum(1) + noise * noise)
    return flat / length[:, None], noise / length


def _turned(pictures: NDArray[np.float32], pose: Pose) -> NDArray[np.float32]:
    if pose.mirror:
        pictures = pictures[:, :, ::-1]
    quarters, rest = divmod(pose.angle_degrees % 360, 90)
    if not rest:
        return np.rot90(pictures, int(quarters), (1, 2))
    turned: NDArray[np.float32] = rotate(
        pictures, pose.angle_degrees, (1, 2), reshape=False, order=1, mode="nearest"
    )
    return turned


def _components(pairs: Ints) -> Iterator[list[int]]:
    """Connected rows (union by the smaller root), each component in ascending order."""
    root: dict[int, int] = {}

    def find(row: int) -> int:
        while root.setdefault(row, row) != row:
            root[row] = row = root[root[row]]
        return row

    for left, right in pairs.tolist():
        low, high = sorted((find(left), find(right)))
        root[high] = low
    parts: dict[int, list[int]] = defaultdict(list)
    for row in sorted(root):
        parts[find(row)].append(row)
    yield from parts.values()


def _stars(
    component: list[int], pairs: Ints, looks: Looks, options: DuplicateOptions
) -> Iterator[list[Member]]:
    """Groups in which every member matches the reference directly.

    Without this a chain of look-alikes, each a little off the one before, would become one group.
    """
    within = pairs[np.isin(pairs[:, 0], component)] if len(component) > 2 else pairs[:0]
    rows, counts = np.unique(within, return_counts=True)
    degree = dict(zip(rows.tolist(), counts.tolist(), strict=True))
    left = sorted(component, key=lambda row: (-degree.get(row, 0), row))
    while len(left) > 1:
        reference, others = left[0], left[1:]
        members, missed = [Member(reference, Pose(), None)], []
        for row, (pose, agreement) in zip(others, looks.compare(reference, others), strict=True):
            if agreement is None or agreement >= options.agreement:
                members.append(Member(row, pose, agreement))
            else:
                missed.append(row)
        if len(members) > 1:
            yield members
        left = missed


def _group(members: list[Member], twins: Mapping[int, list[int]], rows: Rows) -> DuplicateGroup:
    """The group with each member's byte-equal twins beside it."""
    whole = [
        Member(row, member.pose, member.agreement if row == member.row else None)
        for member in members
        for row in (member.row, *twins.get(member.row, ()))
    ]
    kind = "near" if len(members) > 1 else "bytes"
    return DuplicateGroup(kind, tuple(whole))


def report_section(found: Duplicates, rows: Rows, max_groups: int = 10_000) -> dict[str, Any]:
    """The ``duplicates`` section of report.json."""
    ids = rows.ids
    shown = found.groups[:max_groups]
    named = list(dict.fromkeys(member.row for group in shown for member in group.members))
    records = dict(zip(named, rows.records(named, ["source", "key"]), strict=True))
    sizes = [len(group.members) for group in found.groups]
    return {
        "num_groups": len(found.groups),
        "num_images": sum(sizes),
        "num_redundant": sum(sizes) - len(sizes),
        "num_byte_equal_groups": sum(group.kind == "bytes" for group in found.groups),
        "num_turned_groups": sum(group.turned for group in found.groups),
        "num_proposed_pairs": found.num_proposed,
        "num_pairs_not_looked_at": found.num_unseen,
        "threshold": found.options.threshold,
        "agreement": found.options.agreement,
        "pose": "reference = g(member): mirror left-right if mirror, then turn counter-clockwise",
        "groups": [
            {
                "kind": group.kind,
                "members": [
                    {
                        **records[member.row],
                        "image_id": str(ids[member.row]),
                        "pose": member.pose.as_dict(),
                        "agreement": member.agreement,
                    }
                    for member in group.members
                ],
            }
            for group in shown
        ],
    }
