"""Duplicates: byte-equal by digest, near ones by embedding, turned and mirrored copies among them.

A near pair is proposed by the index (score above a threshold) and confirmed on pixels: the two
thumbnails, one turned by each element of the group, must correlate. Cost follows the number of
proposals, never all pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqmodel.actions import best_pose
from eqmodel.groups import FiniteGroup
from pipelines.index import Neighbours, Rows
from pipelines.pictures import Pose, apply_pose, fit, open_picture, poses_of

Ints = NDArray[np.int64]
Thumbnails = Callable[[Collection[int]], Mapping[int, bytes]]
"""image_ids -> thumbnails of those that have one."""

SIDE = 32
POSE_BONUS = 0.002
"""By which the pose that the pose codes prefer wins over one that fits the pixels no better."""


@dataclass(frozen=True)
class DuplicateOptions:
    """``threshold`` on the score proposes a pair, ``agreement`` of aligned thumbnails confirms it.

    Where an image has no thumbnail only a score of ``certain`` counts. At most ``max_pairs`` of
    the best-scoring proposals are looked at.
    """

    threshold: float = 0.985
    agreement: float = 0.985
    certain: float = 0.9999
    max_pairs: int = 100_000


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
        self._place: dict[int, int] = {}
        seen: list[list[NDArray[np.float32]]] = []
        for row in wanted.tolist():
            picture = open_picture(found.get(int(ids[row])))
            if picture is not None:
                self._place[row] = len(seen)
                seen.append([_signature(apply_pose(picture, pose)) for pose in self.poses])
        self._seen = np.array(seen, np.float32).reshape(len(seen), group.order, SIDE * SIDE)

    def compare(self, reference: int, others: Iterable[int]) -> list[tuple[Pose, float | None]]:
        """For each other row the pose with reference = g(other), and the correlation after it."""
        found: list[tuple[Pose, float | None]] = []
        for other in others:
            preferred = self._by_codes(reference, other)
            if reference not in self._place or other not in self._place:
                found.append((self.poses[preferred], None))
                continue
            fits = self._seen[self._place[other]] @ self._seen[self._place[reference], 0]
            biased = fits.copy()
            biased[preferred] += POSE_BONUS
            best = int(biased.argmax())
            found.append((self.poses[best], round(float(fits[best]), 4)))
        return found

    def agree(self, pairs: Ints, options: DuplicateOptions) -> NDArray[np.bool_]:
        """(P, 2) pairs of rows -> (P,): whether each holds on pixels, or by a certain score."""
        agreed = np.zeros(len(pairs), bool)
        for number, (left, right) in enumerate(pairs.tolist()):
            if left in self._place and right in self._place:
                turned = self._seen[self._place[right]]
                best = float((turned @ self._seen[self._place[left], 0]).max())
                agreed[number] = best >= options.agreement
            else:
                score = float(self.rows.vectors[left] @ self.rows.vectors[right])
                agreed[number] = score >= options.certain
        return agreed

    def _by_codes(self, reference: int, other: int) -> int:
        poses = self.rows.poses
        if poses.shape[1] != self.group.order * 8:
            return 0
        return int(best_pose(poses[reference], poses[other][None], self.group)[0])


def _signature(picture: Any) -> NDArray[np.float32]:
    """Grey, SIDE x SIDE, zero mean, unit length: inner products are correlations."""
    grey = np.asarray(fit(picture, SIDE).convert("L"), np.float32).ravel()
    grey -= grey.mean()
    length = float(np.linalg.norm(grey))
    # A picture without any contrast looks like every other such picture.
    return grey / length if length > 1e-3 else np.full(SIDE * SIDE, 1.0 / SIDE, np.float32)


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


def _group(
    members: list[Member], twins: Mapping[int, list[int]], rows: Rows
) -> DuplicateGroup:
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
