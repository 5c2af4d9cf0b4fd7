"""The exact answers kept beside a base: after a change they are those of a pass over everything."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ArtifactError
from pipelines.index import ANSWERS, Sidecar, with_change
from pipelines.index.answers import KEPT, Answers, truth_after
from pipelines.index.recall import find_truth
from tests.pipelines.test_index_update import Collection, a_night, built, change_of


def after(collection: Collection, touched: set[int], folder: Path, base: Path) -> Sidecar:
    """The rows of ``base`` brought to the collection."""
    folder.mkdir()
    previous = built(Collection(), base)
    return with_change(previous.rows, change_of(previous, collection, touched, folder), folder)


def exact(answers: Answers, rows: Sidecar) -> int:
    """Compare with a pass over everything; how many queries are images that came."""
    truth = truth_after(answers, rows)
    assert truth is not None
    whole = find_truth(rows.vectors, truth.queries, truth.own, alive=rows.alive())
    np.testing.assert_allclose(truth.kth, whole.kth, atol=1e-6)
    assert not rows.is_dead(truth.own).any()
    fresh = truth.own >= len(rows.base)
    assert np.array_equal(truth.queries[fresh], np.asarray(rows.vectors[truth.own[fresh]]))
    return int(fresh.sum())


def test_a_change_moves_the_answers_as_a_pass_over_everything_does(tmp_path: Path) -> None:
    collection = Collection()
    rows = after(collection, a_night(collection), tmp_path / "night", tmp_path / "base")
    assert exact(Answers.load(tmp_path / "base" / ANSWERS), rows) >= 1


def test_queries_that_lost_their_neighbours_are_asked_anew(tmp_path: Path) -> None:
    base = built(Collection(), tmp_path / "first").rows
    answers = Answers.load(tmp_path / "first" / ANSWERS)
    place = int(np.flatnonzero(answers.own >= 0)[0])
    lost = [int(one["key"][1:]) for one in base.records(answers.rows[place], ["key"])]
    collection = Collection()
    for number in lost:
        del collection.vectors[number]
    assert len(lost) == KEPT
    rows = after(collection, set(lost), tmp_path / "night", tmp_path / "base")
    exact(answers, rows)


def test_with_few_queries_left_all_are_chosen_anew(tmp_path: Path) -> None:
    built(Collection(), tmp_path / "first")
    answers = Answers.load(tmp_path / "first" / ANSWERS)
    base = built(Collection(), tmp_path / "base").rows
    assert truth_after(answers, Sidecar(base.base, None, answers.own[answers.own >= 0])) is None


def test_a_file_that_holds_no_answers_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / ANSWERS).write_bytes(b"no archive")
    with pytest.raises(ArtifactError, match="publish again"):
        Answers.load(tmp_path / ANSWERS)
