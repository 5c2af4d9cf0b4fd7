"""Duplicates: byte-equal, turned and mirrored copies, their poses, and look-alikes left apart."""

import io
from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from eqmodel.groups import group
from pipelines.duplicates import DuplicateOptions, Duplicates, find_duplicates, report_section
from pipelines.index import ROWS_SCHEMA, Neighbours, Rows, exact_top
from pipelines.pictures import Pose, apply_pose, open_picture, poses_of

D4 = group("d4")


def picture(seed: int) -> Image.Image:
    """A smooth picture without symmetry."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    return Image.fromarray(noise).resize((48, 48), Image.Resampling.BICUBIC)


def webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def found_among(
    pictures: list[Image.Image | None],
    scores: NDArray[np.float32],
    digests: list[str] | None = None,
    options: DuplicateOptions | None = None,
) -> tuple[Duplicates, Rows]:
    """Duplicates among pictures whose embeddings have the given inner products."""
    num = len(pictures)
    values, vectors = np.linalg.eigh(scores.astype(np.float64))
    rows = vectors * np.sqrt(np.maximum(values, 0))
    embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    columns = {
        "image_id": np.arange(num) + 100,
        "key": [f"k{i}" for i in range(num)],
        "source": ["a.tar"] * num,
        "digest": digests or [f"d{i}" for i in range(num)],
    }
    table = pa.table(
        [pa.array(columns.get(f.name, [None] * num)).cast(f.type) for f in ROWS_SCHEMA],
        schema=ROWS_SCHEMA,
    )
    made = Rows(table, embeddings, np.zeros((num, 64), np.int8))
    near_scores, near = exact_top(embeddings, embeddings, min(4, num - 1), np.arange(num))

    def thumbnails(ids: Collection[int]) -> Mapping[int, bytes]:
        shown = {100 + i: p for i, p in enumerate(pictures) if p is not None}
        return {i: webp(shown[i]) for i in ids if i in shown}

    return find_duplicates(made, Neighbours(near, near_scores), thumbnails, D4, options), made


def alike(num: int, *pairs: tuple[int, int]) -> NDArray[np.float32]:
    scores = np.eye(num, dtype=np.float32)
    for left, right in pairs:
        scores[left, right] = scores[right, left] = 0.999
    return scores


@pytest.mark.parametrize("pose", poses_of(D4), ids=lambda pose: pose.words)
def test_a_turned_copy_is_found_with_the_pose_that_turns_it_back(pose: Pose) -> None:
    original = picture(1)
    # The copy is stored so that reference = g(copy) with g = pose.
    back = next(p for p in poses_of(D4) if apply_pose(apply_pose(original, p), pose) == original)
    found, _ = found_among([original, apply_pose(original, back), picture(2)], alike(3, (0, 1)))
    assert len(found.groups) == 1
    first, copy = found.groups[0].members
    assert (first.row, first.pose, copy.row, copy.pose) == (0, Pose(), 1, pose)
    assert copy.agreement is not None
    assert copy.agreement > 0.98
    assert found.groups[0].turned is not pose.identity


def test_byte_equal_images_are_one_group_and_stand_in_near_groups_together() -> None:
    image = picture(1)
    turned = apply_pose(image, Pose(90))
    found, rows = found_among(
        [image, turned, image, picture(3), picture(4), picture(3)],
        alike(6, (0, 1), (0, 2), (1, 2)),
        ["x", "y", "x", "p", "q", "p"],
    )
    members = [[m.row for m in group.members] for group in found.groups]
    assert members == [[0, 2, 1], [3, 5]]
    assert [group.kind for group in found.groups] == ["near", "bytes"]
    section = report_section(found, rows)
    assert section["num_byte_equal_groups"] == 1
    assert section["num_redundant"] == 3
    assert section["groups"][0]["members"][2] == {
        "source": "a.tar",
        "key": "k1",
        "image_id": "101",
        "pose": {"angle_degrees": 270.0, "mirror": False},
        "agreement": pytest.approx(1, abs=0.02),
    }


def test_what_only_scores_alike_is_no_duplicate() -> None:
    found, _ = found_among([picture(1), picture(2)], alike(2, (0, 1)))
    assert found.num_proposed == 1
    assert found.groups == ()


def test_one_outline_with_other_detail_is_no_duplicate() -> None:
    outline = np.zeros((48, 48))
    outline[8:40, 14:34] = 190
    marks = [np.random.default_rng(s).integers(-30, 31, (24, 24)).repeat(2, 0) for s in (1, 2)]
    shirts: list[Image.Image | None] = [
        Image.fromarray(np.clip(outline + mark.repeat(2, 1), 0, 255).astype(np.uint8))
        for mark in (marks[0], marks[1], marks[0])
    ]
    found, _ = found_among(shirts, np.full((3, 3), 0.99, np.float32) + 0.01 * np.eye(3))
    assert [[m.row for m in g.members] for g in found.groups] == [[0, 2]]


def test_a_chain_of_look_alikes_is_not_one_group() -> None:
    a, z = np.asarray(picture(1), np.float32), np.asarray(picture(2), np.float32)
    steps = [Image.fromarray((a + (z - a) * t).astype(np.uint8)) for t in (0, 0.06, 0.12, 0.18)]
    options = DuplicateOptions(least_cost=0.2)
    scores = np.full((4, 4), 0.995, np.float32) + 0.005 * np.eye(4, dtype=np.float32)
    found, _ = found_among(steps, scores, options=options)
    assert found.groups
    for group_ in found.groups:
        assert all((m.agreement or 1) >= 0.99 for m in group_.members)
        assert len(group_.members) < 4


def test_without_thumbnails_only_a_certain_score_counts() -> None:
    certain = alike(4, (0, 1))
    certain[2, 3] = certain[3, 2] = 1.0
    found, _ = found_among([None] * 4, certain)
    assert [[m.row for m in g.members] for g in found.groups] == [[2, 3]]
    assert found.groups[0].members[1].agreement is None


def test_no_more_pairs_are_looked_at_than_allowed() -> None:
    images = [picture(1), picture(1), picture(2), picture(2)]
    found, rows = found_among(
        images, alike(4, (0, 1), (2, 3)), options=DuplicateOptions(max_pairs=1, rings=1.1)
    )
    assert len(found.groups) == 1
    assert report_section(found, rows)["num_pairs_not_looked_at"] == 1


def test_pictures_without_contrast_are_alike() -> None:
    grey = Image.new("L", (48, 48), 90)
    found, _ = found_among([grey, Image.new("L", (48, 48), 92)], alike(2, (0, 1)))
    assert len(found.groups) == 1


def test_pose_and_css_say_the_same() -> None:
    assert Pose(90, True).css == "rotate(-90deg) scaleX(-1)"
    assert Pose(90, True).words == "mirrored, then turned 90°"
    image = open_picture(webp(picture(1)))
    assert image is not None
    pixels = np.asarray(image)
    turned = np.asarray(apply_pose(image, Pose(90, True)))
    np.testing.assert_array_equal(turned, np.rot90(pixels[:, ::-1], 1))
