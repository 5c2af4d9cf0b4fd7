"""The turn of the first hit, from pixels to pose, for images of every size, shape and colour."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.decode import decode
from pipelines.publication import publish
from pipelines.search import Searcher
from tests.conftest import png
from tests.pipelines.conftest import QUICK, MakeTar, embed_here, sample_members

SIZES = ((28, 28), (29, 29), (31, 40), (64, 65), (57, 28))
"""Height and width: even, odd, not square either way."""
ELEMENTS = [(mirror, quarters) for mirror in (False, True) for quarters in range(4)]


def acted(image: NDArray[np.uint8], mirror: bool, quarters: int) -> NDArray[np.uint8]:
    """Mirrored left-right, then turned counter-clockwise by quarters, as numpy does it."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirror else image, quarters))


def pictures() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Clothes of each size, grey and in colours that differ from place to place."""
    members = [data for name, data in sample_members(10).items() if name.endswith(".png")]
    for number, (height, width) in enumerate(SIZES):
        for colour in (False, True):
            grey = Image.fromarray(decode(members[2 * number + colour]))
            pixels = np.asarray(grey.resize((width, height), Image.Resampling.BICUBIC))
            if colour:
                ramp = np.linspace(0.4, 1, height)[:, None]
                tinted = [pixels * ramp, pixels * ramp[::-1], pixels * 0.9]
                pixels = np.stack(tinted, -1).round().astype(np.uint8)
            yield f"{height}x{width}-{'colour' if colour else 'grey'}", pixels


@pytest.fixture(scope="module")
def images() -> dict[str, NDArray[np.uint8]]:
    return dict(pictures())


@pytest.fixture(scope="module")
def searcher(
    images: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, make_tar: MakeTar
) -> Searcher:
    place = tmp_path_factory.mktemp("poses")
    (place / "input").mkdir()
    members = {f"{name}.png": png(pixels) for name, pixels in images.items()}
    (place / "input" / "a.tar").write_bytes(make_tar(members))
    store, model_id = embed_here(str(place / "input"), str(place / "store"))
    publish(store, model_id, QUICK)
    return Searcher.open(store.url, Path(place, "cache"))


@pytest.mark.parametrize("seen", [True, False], ids=["pixels and codes", "codes alone"])
def test_the_pose_makes_the_hit_the_query(
    searcher: Searcher,
    images: dict[str, NDArray[np.uint8]],
    seen: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not seen:
        monkeypatch.setattr(searcher.gallery, "looks", lambda rows: [None] * len(rows))
    for name, image in images.items():
        queries = [acted(image, *element) for element in ELEMENTS]
        answers = searcher.search(queries, 1, align=True)
        for (mirror, quarters), (hit,) in zip(ELEMENTS, answers, strict=True):
            assert hit.key == name
            assert hit.score == pytest.approx(1, abs=1e-5)
            expected = {"angle_degrees": 90.0 * quarters, "mirror": mirror}
            assert hit.pose == expected, name


def test_a_free_turn_of_any_shape_and_colour_has_its_sign(
    searcher: Searcher, images: dict[str, NDArray[np.uint8]]
) -> None:
    right = asked = 0
    for name, image in images.items():
        for mirror in (False, True):
            side = max(image.shape[:2])
            whole = np.zeros((side, side, *image.shape[2:]), np.uint8)
            top, left = ((side - length) // 2 for length in image.shape[:2])
            whole[top : top + image.shape[0], left : left + image.shape[1]] = image
            turned = Image.fromarray(acted(whole, mirror, 0)).rotate(25, Image.Resampling.BICUBIC)
            (hits,) = searcher.search([np.asarray(turned)], 10, align=True)
            (hit,) = (one for one in hits if one.key == name)
            assert hit.pose is not None
            asked += 1
            near = abs(hit.pose["angle_degrees"] - 25) <= 4
            right += near and hit.pose["mirror"] == mirror
    assert asked == 2 * len(images)
    assert right >= 0.8 * asked, f"{right} of {asked}"
