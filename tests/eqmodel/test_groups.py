"""The algebra: axioms, the convention of design, and its action on pixels."""

import numpy as np
import pytest

from eqmodel.actions import best_pose, best_poses, turn
from eqmodel.errors import GroupError
from eqmodel.groups import FiniteGroup, check_axioms, group

NAMES = ["c1", "c2", "c4", "d1", "d2", "d4", "c12", "d12"]


@pytest.mark.parametrize("name", NAMES)
def test_inverse_and_order(name: str) -> None:
    g = group(name)
    assert g.order == len(g.elements) == g.n * (2 if name[0] == "d" else 1)
    assert (g.cayley[np.arange(g.order), g.inverse] == 0).all()


@pytest.mark.parametrize("name", ["c4", "d4", "c2", "d2", "d1"])
def test_cayley_table_is_composition_on_pixels(name: str) -> None:
    g = group(name)
    image = np.arange(35).reshape(5, 7)
    for a in range(g.order):
        for b in range(g.order):
            one_by_one = turn(turn(image, g.elements[b], g.n), g.elements[a], g.n)
            at_once = turn(image, g.elements[g.cayley[a, b]], g.n)
            assert np.array_equal(one_by_one, at_once), (a, b)


def test_convention_is_mirror_first_then_counter_clockwise() -> None:
    image = np.array([[1, 2], [3, 4]])
    assert turn(image, (0, 1)).tolist() == [[2, 4], [1, 3]]
    assert turn(image, (1, 0)).tolist() == [[2, 1], [4, 3]]
    assert turn(image, (1, 1)).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize("name", NAMES)
def test_regular_representation_is_a_homomorphism(name: str) -> None:
    g = group(name)
    for a in range(g.order):
        for b in range(g.order):
            product = g.regular(a) @ g.regular(b)
            assert np.array_equal(product, g.regular(int(g.cayley[a, b])))


def test_a_table_that_is_no_group_is_refused() -> None:
    table = FiniteGroup(4, True).cayley.copy()
    table[[1, 2]] = table[[2, 1]]
    with pytest.raises(GroupError, match="identity"):
        check_axioms(table)
    loop = np.array(  # a Latin square with identity that is not associative
        [[0, 1, 2, 3, 4], [1, 0, 3, 4, 2], [2, 4, 0, 1, 3], [3, 2, 4, 0, 1], [4, 3, 1, 2, 0]]
    )
    with pytest.raises(GroupError, match="associative"):
        check_axioms(loop)


@pytest.mark.parametrize("name", ["e8", "d0", "c", "", "d4x"])
def test_unknown_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(GroupError, match="not a group"):
        group(name)


@pytest.mark.parametrize("name", ["c4", "d4", "d12"])
def test_best_pose_gives_the_element_that_turns_the_hit_onto_the_query(name: str) -> None:
    g = group(name)
    hit = np.random.default_rng(0).integers(-127, 128, (g.order, 8), dtype=np.int8)
    for t in range(g.order):
        query = hit[g.left[t]]  # query = t(hit)
        assert best_pose(query.ravel(), hit.ravel()[None], g).tolist() == [t]
    queries = np.stack([hit[g.left[t]].ravel() for t in range(g.order)])
    hits = np.repeat(hit.ravel()[None], g.order, 0)
    assert best_poses(queries, hits, g).tolist() == list(range(g.order))
