"""The turn found on pixels: its sign, its size, what it leaves alone."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipelines.decode import decode
from pipelines.pictures import Pose, apply_pose, open_picture
from pipelines.thumbnails import encode_thumbnail
from pipelines.turning import Look, look_of, refined
from tests.pipelines.conftest import sample_members


def blob(seed: int = 0) -> Image.Image:
    """A smooth picture on black, without symmetry."""
    noise = np.random.default_rng(seed).normal(size=(64, 64))
    y, x = np.ogrid[-1:1:64j, -1:1:64j]
    smooth = gaussian_filter(noise, 5) * np.clip(1 - 1.2 * (x * x + y * y), 0, 1)
    smooth -= smooth.min() * np.clip(1 - 1.2 * (x * x + y * y), 0, 1)
    return Image.fromarray((255 * smooth / smooth.max()).clip(0, 255).astype(np.uint8))


def apart(left: float, right: float) -> float:
    return abs((left - right + 180) % 360 - 180)


@pytest.mark.parametrize("angle", [30, 75, 137, 200, 290, 345])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_query_turned_counter_clockwise_has_a_positive_angle(angle: int, mirror: bool) -> None:
    hit = blob()
    query = hit.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else hit
    query = query.rotate(angle, Image.Resampling.BICUBIC)  # PIL turns counter-clockwise
    told = Pose(round(angle / 90) * 90 % 360, mirror)  # what a pose code of D4 would say
    (found,) = refined(look_of(query), [look_of(hit)], [told], 90, True)
    assert found.mirror == mirror
    assert apart(found.angle_degrees, angle) <= 1.0
    # Applied as everything else applies a pose, it makes the hit the query.
    again = np.asarray(apply_pose(hit.convert("RGB"), found).convert("L"), np.float32)
    assert np.abs(again - np.asarray(query, np.float32)).mean() < 4


def test_a_quarter_turn_is_numpys() -> None:
    """With numpy's own turn, which is counter-clockwise as rows are drawn from the top."""
    pixels = np.asarray(blob(1))
    query = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    (found,) = refined(look_of(query), [look_of(blob(1))], [Pose(0.0, False)], 90, True)
    assert found == Pose(90.0, False)


def test_elements_of_the_group_are_left_as_the_codes_told_them() -> None:
    """Real clothes, as thumbnails are stored: compressed."""
    for name, data in list(sample_members(40).items()):
        if not name.endswith(".png"):
            continue
        pixels = decode(data)
        for mirror in (False, True):
            for k in range(4):
                turned = np.rot90(pixels[:, ::-1] if mirror else pixels, k)
                query = look_of(Image.fromarray(np.ascontiguousarray(turned)))
                hit = open_picture(encode_thumbnail(pixels))
                assert hit is not None
                told = Pose(90.0 * k, mirror)
                assert refined(query, [look_of(hit)], [told], 90, True) == [told], name


def test_most_free_angles_of_clothes_are_found_to_three_degrees() -> None:
    chance, good, tried = np.random.default_rng(0), 0, 0
    for name, data in sample_members(60).items():
        if not name.endswith(".png"):
            continue
        picture = Image.fromarray(decode(data))
        angle = float(chance.uniform(0, 360))
        ground = int(np.median(np.asarray(picture)[0]))
        query = picture.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
        hit = open_picture(encode_thumbnail(np.asarray(picture)))
        assert hit is not None
        told = Pose(round(angle / 90) * 90.0 % 360, False)
        (found,) = refined(look_of(query), [look_of(hit)], [told], 90, True)
        good += apart(found.angle_degrees, angle) <= 3 and not found.mirror
        tried += 1
    assert tried == 60
    assert good >= 54


def test_what_has_no_pixels_or_no_contrast_keeps_its_pose() -> None:
    flat: NDArray[np.uint8] = np.full((48, 48), 7, np.uint8)
    some: Look = look_of(blob())
    told = Pose(270.0, True)
    assert refined(some, [None, flat], [told, told], 90, True) == [told, told]
    assert refined(flat, [some], [told], 90, True) == [told]
    turned = look_of(blob().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    plain = refined(turned, [some], [Pose()], 90, False)
    assert not plain[0].mirror  # a group without mirrors has none


def test_pictures_that_are_not_square_are_carried_on_at_their_border() -> None:
    wide = Image.fromarray(np.full((10, 40), 200, np.uint8))
    assert look_of(wide).shape == (48, 48)
    assert (look_of(wide) == 200).all()
