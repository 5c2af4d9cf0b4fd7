"""From every row's nearest others to groups of duplicates.

A near pair is proposed by an index, of embeddings or of ring spectra, and confirmed on pixels: two
thumbnails, laid over each other by the turn, scale and shift that fit best, must agree down to
their detail. Cost follows the number of proposals, never all pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eqmodel.actions import best_poses
from eqmodel.groups import FiniteGroup
from pipelines.duplicates.agreeing import Agreeing
from pipelines.duplicates.looks import Ints, Looks, Plane, Thumbnails
from pipelines.duplicates.rings import ring_spectra
from pipelines.duplicates.stars import Bond, Bonds, Member, stars
from pipelines.index import Neighbours, Rows, nearest_vectors
from pipelines.pictures import Pose, poses_of

CODES = 8_192
"""Pairs whose pose codes are compared at a time."""
STEP, VALLEY = 1.1, 1.25
"""Limits are tried a tenth apart, and pairs counted that cost up to a quarter more or less."""


@dataclass(frozen=True)
class DuplicateOptions:
    """What proposes a pair, and what confirms it.

    Proposed are the ``nearest`` of each image by embedding that score ``threshold`` or more, all
    ten that score ``close``, and its two nearest by ring spectrum from ``rings`` on. Confirmed is
    what costs (agreeing.py) ``least_cost`` at most, and up to ``most_cost`` until the crowd of
    look-alikes begins. Where an image has no thumbnail only a score of ``certain`` counts.
    At most ``max_pairs`` of the nearest proposals are looked at; of more than ``max_rings``
    images no ring spectra are made.
    """

    threshold: float = 0.6
    nearest: int = 4
    close: float = 0.97
    rings: float = 0.85
    least_cost: float = 0.05
    most_cost: float = 0.25
    certain: float = 0.9999
    max_pairs: int = 150_000
    max_rings: int = 200_000


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
    """Groups, largest first; ``num_proposed`` pairs by score, ``num_unseen`` past max_pairs; those
    were confirmed that cost at most ``cost``."""

    groups: tuple[DuplicateGroup, ...]
    num_proposed: int
    num_unseen: int
    cost: float
    options: DuplicateOptions


def find_duplicates(
    rows: Rows,
    near: Neighbours,
    thumbnails: Thumbnails,
    group: FiniteGroup,
    options: DuplicateOptions | None = None,
    threads: int = 1,
) -> Duplicates:
    """The groups of duplicates among ``rows``, given every row's nearest others."""
    options = options or DuplicateOptions()
    same = _first_with_digest(rows)
    firsts = np.flatnonzero(same == np.arange(len(same)))
    everything = len(firsts) <= options.max_rings
    proposals = [_by_embedding(near, same, options)]
    proposed = proposals[0].pairs
    looks = Looks.of(firsts if everything else np.unique(proposed), rows.ids, thumbnails, threads)
    if everything:
        proposals.append(_by_rings(looks, options))
    pairs = _best_first(proposals)
    compare = _Comparing(rows, looks, group, options, threads)
    looked_at = pairs[: options.max_pairs]
    bonds = compare(looked_at)
    known: Bonds = {
        (left, right): b for (left, right), b in zip(looked_at.tolist(), bonds, strict=True)
    }
    groups = _with_twins(stars(known, compare), same)
    unseen = len(pairs) - len(looked_at)
    return Duplicates(tuple(groups), len(pairs), unseen, compare.limit or 0.0, options)


def _first_with_digest(rows: Rows) -> Ints:
    """(N,): the first row with the same bytes as each row."""
    codes = rows.table["digest"].combine_chunks().dictionary_encode().indices
    numbers = codes.fill_null(-1).to_numpy()
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    found: Ints = np.where(numbers < 0, np.arange(len(numbers)), first[inverse]).astype(np.int64)
    return found


@dataclass(frozen=True)
class _Proposals:
    """Pairs of rows (P, 2), each with the place (P,) among the neighbours of one, and its score."""

    pairs: Ints
    places: Ints
    scores: Plane


def _by_embedding(near: Neighbours, same: Ints, options: DuplicateOptions) -> _Proposals:
    """By embedding; the first of byte-equal rows stands for all."""
    rank = np.arange(near.scores.shape[1])
    wanted = (near.scores >= options.threshold) & (rank < options.nearest)
    mine, place = np.nonzero(wanted | (near.scores >= options.close))
    pairs = np.stack([same[mine], same[near.rows[mine, place]]], 1)
    apart = pairs[:, 0] != pairs[:, 1]
    return _Proposals(pairs[apart], place[apart], near.scores[mine, place][apart])


def _by_rings(looks: Looks, options: DuplicateOptions) -> _Proposals:
    """By ring spectrum."""
    near = nearest_vectors(ring_spectra(looks), 2)
    mine, place = np.nonzero(near.scores >= options.rings)
    pairs = np.stack([looks.rows[mine], looks.rows[near.rows[mine, place]]], 1)
    return _Proposals(pairs, place, near.scores[mine, place])


def _best_first(proposals: Sequence[_Proposals]) -> Ints:
    """Each pair once, the lower row first: nearest neighbours before second ones, and so on, among
    each the best score first."""
    pairs = np.sort(np.concatenate([part.pairs for part in proposals]), axis=1)
    scores = np.concatenate([part.scores for part in proposals])
    places = np.concatenate([part.places for part in proposals])
    pairs = pairs[np.lexsort((-scores, places))]
    _, first = np.unique((pairs[:, 0] << 32) | pairs[:, 1], return_index=True)
    found: Ints = pairs[np.sort(first)]
    return found


class _Comparing:
    """Pairs of rows -> their bonds: on pixels, or by a certain score where there are none."""

    def __init__(
        self,
        rows: Rows,
        looks: Looks,
        group: FiniteGroup,
        options: DuplicateOptions,
        threads: int,
    ) -> None:
        self.rows, self.looks, self.group, self.options = rows, looks, group, options
        self.poses, self.agreeing = poses_of(group), Agreeing(looks, group, threads)
        self.limit: float | None = None

    def __call__(self, pairs: Ints) -> Sequence[Bond | None]:
        """A bond for each of the pairs (P, 2), None for those that are not one picture. The first
        pairs that are asked, the proposals, say how much the others may cost."""
        places = self.looks.places(pairs)
        seen = np.flatnonzero((places >= 0).all(1))
        told = self._by_codes(pairs)
        fits = self.agreeing.fits(places[seen], told[seen])
        if self.limit is None:
            self.limit = before_the_crowd(fits.cost, self.options)
        found: list[Bond | None] = [None] * len(pairs)
        for n in np.flatnonzero(fits.cost <= self.limit).tolist():
            pose = self.agreeing.pose(float(fits.angle[n]), bool(fits.mirror[n]))
            found[seen[n]] = Bond(pose, round(min(1.0, float(fits.picture[n])), 4))
        for n in np.flatnonzero((places < 0).any(1)).tolist():
            left, right = pairs[n].tolist()
            if float(self.rows.vectors[left] @ self.rows.vectors[right]) >= self.options.certain:
                found[n] = Bond(self.poses[int(told[n])], None)
        return found

    def _by_codes(self, pairs: Ints) -> Ints:
        """(P,): the elements with left = g(right), as the pose codes tell them."""
        codes, told = self.rows.poses, np.zeros(len(pairs), np.int64)
        if codes.shape[1] != self.group.order * 8:
            return told
        for start in range(0, len(pairs), CODES):
            left, right = (codes[side] for side in pairs[start : start + CODES].T)
            told[start : start + CODES] = best_poses(left, right, self.group)
        return told


def before_the_crowd(costs: Plane, options: DuplicateOptions) -> float:
    """The cost up to which pairs are confirmed.

    Copies cost little, look-alikes more; how much differs between digits, of which many are nearly
    one, and textures. The limit lies where fewest pairs cost about so much: in the valley between,
    at its far end, as well as such counts can tell.
    """
    steps = int(np.log(options.most_cost / options.least_cost) / np.log(STEP)) + 1
    limits = options.least_cost * STEP ** np.arange(max(1, steps))
    ordered = np.sort(costs)
    beyond, before = (np.searchsorted(ordered, limits * f) for f in (VALLEY, 1 / VALLEY))
    crowd = beyond - before
    first, least = int(crowd.argmin()), int(crowd.min())
    steep = np.flatnonzero(crowd[first:] > least + 1.5 * least**0.5)
    return float(limits[first + steep[0] - 1] if len(steep) else limits[-1])


def _with_twins(parts: Sequence[Sequence[Member]], same: Ints) -> list[DuplicateGroup]:
    """Groups with each member's byte-equal twins beside it, and those of twins alone."""
    twins: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(same != np.arange(len(same))).tolist():
        twins[int(same[row])].append(row)
    near = {member.row for part in parts for member in part}
    groups = [_group(part, twins) for part in parts]
    groups += [_group([Member(row, Pose(), None)], twins) for row in twins if row not in near]
    return sorted(groups, key=lambda found: (-len(found.members), found.members[0].row))


def _group(members: Sequence[Member], twins: Mapping[int, list[int]]) -> DuplicateGroup:
    whole = [
        Member(row, member.pose, member.agreement if row == member.row else None)
        for member in members
        for row in (member.row, *twins.get(member.row, ()))
    ]
    return DuplicateGroup("near" if len(members) > 1 else "bytes", tuple(whole))
