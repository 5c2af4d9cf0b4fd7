"""Copies at free angles, cropped, resized, in colour: what is confirmed, and in which pose."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from eqmodel.groups import group
from pipelines.duplicates.agreeing import Agreeing, Fits
from pipelines.duplicates.finding import DuplicateOptions, before_the_crowd
from pipelines.duplicates.looks import SIDE, Looks
from pipelines.duplicates.polar import STEP, correlations
from pipelines.duplicates.rings import ring_spectra
from pipelines.duplicates.stars import Bond, Bonds, inverse, stars
from pipelines.index import nearest_vectors
from pipelines.pictures import Pose, apply_pose, open_picture, poses_of
from pipelines.thumbnails import encode_thumbnail

D12 = group("d12")
LIMIT = DuplicateOptions().most_cost
Pixels = NDArray[np.uint8]


def texture(seed: int, height: int = 91, width: int = 74) -> Pixels:
    """A picture that fills its frame, of an odd size, not square."""
    chance = np.random.default_rng(seed)
    plane = gaussian_filter(chance.normal(size=(height, width)), 2.5)
    plane += 2 * gaussian_filter(chance.normal(size=(height, width)), 8)
    return (128 + 45 * plane / plane.std()).clip(0, 255).astype(np.uint8)


def looks(*pictures: Pixels) -> Looks:
    thumbnails = {n: encode_thumbnail(pixels) for n, pixels in enumerate(pictures)}
    numbers = np.arange(len(pictures))
    return Looks.of(numbers, numbers, lambda ids: {n: thumbnails[n] for n in ids})


def fits(left: Pixels, right: Pixels) -> Fits:
    return Agreeing(looks(left, right), D12).fits(np.array([[0, 1]]), np.zeros(1, np.int64))


def turned(pixels: Pixels, angle: float, mirror: bool, fill: int = 0) -> Pixels:
    """Mirrored if asked, then turned counter-clockwise, as Pillow turns."""
    picture = Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if mirror else pixels))
    return np.asarray(picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=fill))


def apart(left: float, right: float) -> float:
    return abs((left - right + 180) % 360 - 180)


@pytest.mark.parametrize("angle", [0, 17, 30, 74, 133, 180, 211, 318])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_copy_at_a_free_angle_is_told_with_the_turn_that_undoes_it(
    angle: int, mirror: bool
) -> None:
    original = texture(1)
    copy = turned(original, angle, mirror)
    found = fits(original, copy)
    pose = Agreeing(looks(original, copy), D12).pose(float(found.angle[0]), bool(found.mirror[0]))
    told = inverse(Pose(angle, mirror))
    assert found.cost[0] < LIMIT
    assert pose.mirror == told.mirror
    assert apart(pose.angle_degrees, told.angle_degrees) <= 1
    # Applied as everything else applies a pose, it makes the copy the original.
    again = np.asarray(apply_pose(Image.fromarray(copy), pose), float)
    middle = slice(30, 45), slice(30, 45)
    assert np.abs(again[middle] - original[middle]).mean() < 12


@pytest.mark.parametrize("pose", poses_of(group("d4")), ids=lambda pose: pose.words)
def test_quarter_turns_and_mirrors_of_odd_sizes_are_exact(pose: Pose) -> None:
    original = texture(2, 61, 47)
    copy = np.asarray(apply_pose(Image.fromarray(original), pose))
    found = fits(copy, original)
    assert (found.angle[0], found.mirror[0]) == (pose.angle_degrees, pose.mirror)
    assert found.cost[0] < 0.05


def test_cropped_and_resized_copies_are_confirmed_and_others_are_not() -> None:
    original, other = texture(3), texture(4)
    cropped = original[3:, 2:-3]
    smaller = np.asarray(Image.fromarray(original).resize((51, 63), Image.Resampling.LANCZOS))
    assert fits(original, cropped).cost[0] < LIMIT
    assert fits(original, np.rot90(cropped, 3)).cost[0] < LIMIT
    assert fits(original, smaller).cost[0] < LIMIT
    assert fits(original, other).cost[0] > 2 * LIMIT


def test_another_colour_or_another_grey_is_another_picture() -> None:
    grey = texture(5)
    red = np.stack([grey, grey // 2, grey // 2], 2)
    blue = red[..., ::-1]
    assert fits(red, np.rot90(red)).cost[0] < LIMIT
    assert fits(red, blue).cost[0] > LIMIT
    flat = [np.full((40, 40), level, np.uint8) for level in (90, 93, 200)]
    assert fits(flat[0], flat[1]).cost[0] < LIMIT
    assert fits(flat[0], flat[2]).cost[0] > LIMIT


def test_all_angles_are_compared_at_once() -> None:
    original = texture(6, 80, 80)
    left, right = torch.from_numpy(looks(original, turned(original, 45, True)).smooth).float()
    found = correlations(right[None], left[None], torch.tensor([SIDE / 2]))[0].numpy()
    mirror, place = np.unravel_index(found.argmax(), found.shape)
    assert (mirror, place * STEP) == (1, 45)
    assert found.max() > 0.97


def test_ring_spectra_stay_at_any_angle_and_part_what_differs() -> None:
    pictures = [texture(seed, 66, 80) for seed in range(6)]
    copies = [turned(one, 23 + 40 * n, n % 2 == 0, 255) for n, one in enumerate(pictures)]
    spectra = ring_spectra(looks(*pictures, *copies))
    assert np.linalg.norm(spectra, axis=1) == pytest.approx(1, abs=1e-5)
    near = nearest_vectors(spectra, 1)
    assert near.rows[:, 0].tolist() == [*range(6, 12), *range(6)]
    assert near.scores.min() > 0.95
    assert not ring_spectra(looks(np.full((30, 30), 60, np.uint8))).any()


def test_vectors_of_their_own_index_find_themselves_elsewhere() -> None:
    chance = np.random.default_rng(0)
    vectors = chance.normal(size=(21_000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[1::2] = vectors[::2]  # above 20,000 an inverted file
    near = nearest_vectors(vectors, 1)
    assert (near.rows[:, 0] == np.arange(21_000) ^ 1).mean() > 0.999
    assert nearest_vectors(vectors[:1], 3).rows.shape == (1, 0)
    assert nearest_vectors(vectors[:0], 3).rows.shape == (0, 0)


def test_the_limit_lies_between_the_copies_and_the_crowd() -> None:
    chance = np.random.default_rng(1)
    options = DuplicateOptions()
    near, far = chance.uniform(0.01, 0.04, 500), chance.uniform(0.09, 1, 5_000)
    limit = before_the_crowd(np.concatenate([near, far]).astype(np.float32), options)
    assert 0.05 <= limit <= 0.09
    wide = np.concatenate([chance.uniform(0.01, 0.18, 500), chance.uniform(0.4, 1, 5_000)])
    assert 0.18 <= before_the_crowd(wide.astype(np.float32), options) <= 0.4
    only_crowd = chance.uniform(0.02, 1, 50_000).astype(np.float32)
    assert before_the_crowd(only_crowd, options) == options.least_cost
    assert before_the_crowd(np.zeros(0, np.float32), options) <= options.most_cost


def test_a_bond_reversed_undoes_the_pose() -> None:
    picture = open_picture(encode_thumbnail(texture(7, 48, 48)))
    assert picture is not None
    for pose in poses_of(group("d4")):
        back = Bond(pose, None).reversed.pose
        assert apply_pose(apply_pose(picture, pose), back) == picture
    assert inverse(Pose(30.0)) == Pose(330.0)


def test_stars_compare_what_was_never_proposed_and_nothing_else() -> None:
    same = {0: "a", 1: "a", 2: "a", 3: "b", 4: "b", 5: "a"}
    asked: list[tuple[int, int]] = []

    def compare(pairs: NDArray[np.int64]) -> list[Bond | None]:
        asked.extend(map(tuple, pairs.tolist()))
        return [Bond(Pose(), 1.0) if same[a] == same[b] else None for a, b in pairs.tolist()]

    known: Bonds = {(0, 1): Bond(Pose(90.0), 1.0), (1, 2): Bond(Pose(90.0), 1.0)}
    known |= {(2, 5): Bond(Pose(), 1.0), (2, 3): Bond(Pose(), 0.9), (3, 4): Bond(Pose(), 1.0)}
    found = stars(known, compare)
    assert [[member.row for member in members] for members in found] == [[2, 1, 3, 5, 0]]
    assert asked == [(2, 0), (2, 4)]
    # 1 is 2 turned by 90 degrees, so 2 is 1 turned by 270.
    assert [member.pose.angle_degrees for member in found[0]] == [0, 270, 0, 0, 0]


def test_many_equal_pictures_are_one_group_at_a_cost_that_follows_the_pairs() -> None:
    """Each knows its next three alone, as where neighbours are few and copies many."""
    num = 400
    calls = []

    def compare(pairs: NDArray[np.int64]) -> list[Bond | None]:
        calls.append(len(pairs))
        return [Bond(Pose(), 1.0) for _ in pairs]

    known: Bonds = {(n, n + d): Bond(Pose(), 1.0) for n in range(num - 3) for d in (1, 2, 3)}
    found = stars(known, compare)
    assert [len(members) for members in found] == [num]
    assert sum(calls) < num
