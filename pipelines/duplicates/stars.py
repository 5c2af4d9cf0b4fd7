"""Groups out of confirmed pairs: stars, in which every member matches the reference directly.

Without this a chain of look-alikes, each a little off the one before, would become one group. All
stars grow along confirmed pairs that start at their members, so that what is compared besides is
bounded by the number of pairs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.duplicates.looks import Ints
from pipelines.pictures import Pose


@dataclass(frozen=True)
class Bond:
    """One picture is another: ``pose`` with left = pose(right), and how well it fits (None: not
    looked at)."""

    pose: Pose
    agreement: float | None

    @property
    def reversed(self) -> Bond:
        """The same with right = pose(left)."""
        return self if self.pose.mirror else Bond(inverse(self.pose), self.agreement)


Bonds = dict[tuple[int, int], Bond | None]
"""(left, right) -> their bond, None where they were compared in vain."""
Beside = dict[int, list[int]]
"""A row -> the rows that it was confirmed with."""
Compare = Callable[[Ints], Sequence[Bond | None]]


@dataclass(frozen=True)
class Member:
    """A row in a group; its pose is the element with reference = g(this image)."""

    row: int
    pose: Pose
    agreement: float | None


def inverse(pose: Pose) -> Pose:
    """The pose that undoes a pose; a turn after a mirror undoes itself."""
    return pose if pose.mirror else Pose(-pose.angle_degrees % 360 or 0.0)


def stars(known: Bonds, compare: Compare) -> list[list[Member]]:
    """Groups of two and more, the reference first, from pairs compared already; pairs of rows
    (P, 2) that nobody has looked at yet are asked of ``compare``. ``known`` is added to."""
    beside: Beside = defaultdict(list)
    for (left, right), bond in known.items():
        if bond is not None:
            beside[left].append(right)
            beside[right].append(left)
    groups: list[list[Member]] = []
    waiting = _parts(set(beside), beside)
    while waiting:
        free = {_reference(part, beside): part for part in waiting}
        waiting = []
        for reference, members in _grow(free, beside, known, compare).items():
            rest = free[reference] - {reference, *(member.row for member in members)}
            groups.append([Member(reference, Pose(), None), *members])
            waiting += _parts(rest, beside)
    return groups


def _parts(rows: set[int], beside: Beside) -> list[set[int]]:
    """The connected parts of two and more among some rows."""
    left = set(rows)
    parts: list[set[int]] = []
    for row in sorted(rows):
        if row not in left:
            continue
        part, edge = {row}, [row]
        left.discard(row)
        while edge:
            edge = [other for at in edge for other in beside[at] if other in left]
            left.difference_update(edge)
            part.update(edge)
        if len(part) > 1:
            parts.append(part)
    return parts


def _reference(part: set[int], beside: Beside) -> int:
    """The row with the most others beside it."""
    return min(part, key=lambda row: (-sum(other in part for other in beside[row]), row))


def _grow(
    free: Mapping[int, set[int]], beside: Beside, known: Bonds, compare: Compare
) -> dict[int, list[Member]]:
    """For each reference those of its free rows that match it, found step by step along the pairs;
    all references at once, so that what is new is compared together."""
    found: dict[int, list[Member]] = {row: [] for row in free}
    seen = {row: {row} for row in free}
    edge = {row: [row] for row in free}
    while edge:
        asked = {
            reference: sorted(
                free[reference].intersection(other for row in rows for other in beside[row])
                - seen[reference]
            )
            for reference, rows in edge.items()
        }
        bonds = _bonds([(a, b) for a, others in asked.items() for b in others], known, compare)
        edge = {}
        for reference, others in asked.items():
            seen[reference].update(others)
            for row in others:
                bond = bonds[reference, row]
                if bond is not None:
                    found[reference].append(Member(row, bond.pose, bond.agreement))
                    edge.setdefault(reference, []).append(row)
    return found


def _bonds(pairs: list[tuple[int, int]], known: Bonds, compare: Compare) -> Bonds:
    """The bonds of (reference, other) pairs, from what is known in either direction, else new."""
    new = [pair for pair in pairs if pair not in known and pair[::-1] not in known]
    if new:
        known.update(zip(new, compare(np.array(new, np.int64)), strict=True))
    found: Bonds = {}
    for pair in pairs:
        if pair in known:
            found[pair] = known[pair]
        else:
            back = known[pair[::-1]]
            found[pair] = None if back is None else back.reversed
    return found
