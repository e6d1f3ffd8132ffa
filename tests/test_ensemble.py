"""Ensembles of teachers: numbers worked by hand, rows that are degenerate, and what is refused."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from retrievers.errors import TrainingDataError
from retrievers.training.ensemble import Ensemble

NAN = float("nan")
OFFSETS = np.array([0, 3, 5])
#: Two lists, of three and two candidates.
SCORES = {"cross": np.array([8.0, 4.0, 0.0, -1.0, -3.0]), "bm25": np.array([10.0, 30.0, 20.0, 5.0, 6.0])}


def test_min_max_worked_by_hand() -> None:
    targets = Ensemble().targets(SCORES, OFFSETS)
    assert targets.dtype == np.float32
    # cross: 1, 1/2, 0 | 1, 0; bm25: 0, 1, 1/2 | 0, 1; the mean of both, times 30.
    np.testing.assert_allclose(targets, [15, 22.5, 7.5, 15, 15], atol=1e-4)


def test_the_denominator_is_that_of_the_paper() -> None:
    targets = Ensemble(scale=1.0).targets({"a": np.array([0.0, 1e-6])}, np.array([0, 2]))
    np.testing.assert_allclose(targets, [0, 0.5])  # 1e-6 / (1e-6 + 1e-6)


def test_z_worked_by_hand() -> None:
    # cross: mean 4, deviation sqrt(32 / 3); mean -2, deviation 1. bm25: mean 20, deviation sqrt(200 / 3); 5.5 and 0.5.
    one, two = 4 / np.sqrt(32 / 3), 10 / np.sqrt(200 / 3)
    wanted = 2 * np.array([(one - two) / 2, two / 2, -one / 2, 0, 0])
    np.testing.assert_allclose(Ensemble(normalise="z", scale=2.0).targets(SCORES, OFFSETS), wanted, atol=1e-5)


def test_no_normalisation_and_weights_worked_by_hand() -> None:
    ensemble = Ensemble({"cross": 3, "bm25": 1}, normalise="none", scale=1.0)
    np.testing.assert_allclose(ensemble.targets(SCORES, OFFSETS), [8.5, 10.5, 5, 0.5, -0.75])
    weighted = Ensemble({"cross": 0.3, "bm25": 0.1}).targets(SCORES, OFFSETS)  # 3/4 and 1/4
    np.testing.assert_allclose(weighted, [22.5, 18.75, 3.75, 22.5, 7.5], atol=1e-4)
    alone = Ensemble({"bm25": 7}).targets(SCORES, OFFSETS)  # what is not named takes no part
    np.testing.assert_allclose(alone, [0, 30, 15, 0, 30], atol=1e-4)


@pytest.mark.parametrize("normalise", ["min-max", "z"])
def test_flat_and_single_lists_give_nought_and_are_counted(normalise: Any) -> None:
    # Lists: all equal by "a"; a single candidate; none at all; of two candidates one scored by "a".
    offsets = np.array([0, 3, 4, 4, 6])
    scores = {"a": np.array([0.1, 0.1, 0.1, 5, NAN, 2]), "b": np.array([0, 1, 2, 9, NAN, NAN])}
    found = Ensemble(normalise=normalise, scale=1.0).combine(scores, offsets)
    spread = [0, 0.25, 0.5] if normalise == "min-max" else np.array([-1, 0, 1]) / np.sqrt(2 / 3) / 2
    np.testing.assert_allclose(found.targets[:3], spread, atol=1e-5)
    np.testing.assert_array_equal(found.targets[3:], [0, NAN, 0])
    report = found.report
    assert (report.lists, report.candidates, report.empty, report.single) == (4, 6, 1, 2)
    assert (report.flat, report.unscored) == ({"a": 1, "b": 0}, {"a": 0, "b": 1})
    assert (report.partial, report.missing) == (1, 1)
    assert str(report) == (
        "6 candidates in 4 lists, 1 empty lists, 2 lists with one scored candidate at most, 1 candidates that some "
        "teachers did not score, 1 candidates that no teacher scored, 1 lists of equal scores by a, 1 lists without a "
        "score by b"
    )


def test_candidates_without_a_score_stay_out_of_it() -> None:
    scores = {"a": np.array([2.0, NAN, 4.0, 3.0]), "b": np.array([1.0, 7.0, NAN, 4.0])}
    # a: 0, -, 1, 1/2; b: 0, 1, -, 1/2.
    found = Ensemble({"a": 3, "b": 1}, scale=1.0).combine(scores, np.array([0, 4]))
    np.testing.assert_allclose(found.targets, [0, 1, 1, 0.5], atol=1e-5)
    assert (found.report.partial, found.report.missing) == (2, 0)


def test_nothing_at_all() -> None:
    found = Ensemble().combine({"a": np.empty(0)}, np.array([0, 0, 0]))
    assert found.targets.shape == (0,)
    assert (found.report.lists, found.report.empty, found.report.single) == (2, 2, 0)


@given(
    arrays.arrays(
        np.float32, st.integers(1, 40), elements=st.one_of(st.just(NAN), st.floats(-(2.0**60), 2.0**60, width=32))
    ),
    st.lists(st.integers(0, 9), max_size=6),
    st.sampled_from(["min-max", "z"]),
)
@settings(max_examples=100, deadline=None)
def test_lists_do_not_touch_each_other(values: Any, lengths: list[int], normalise: Any) -> None:
    cuts = np.minimum(np.cumsum([0, *lengths]), len(values))
    offsets = np.append(cuts, len(values))
    ensemble = Ensemble(normalise=normalise)
    together = ensemble.targets({"a": values, "b": -values}, offsets)
    for first, last in pairwise(offsets):
        part = values[first:last]
        alone = ensemble.targets({"a": part, "b": -part}, np.array([0, last - first]))
        np.testing.assert_allclose(together[first:last], alone, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(np.isnan(alone), np.isnan(part))
    if normalise == "min-max":
        known = together[~np.isnan(together)]
        assert ((known >= 0) & (known <= 30)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalise": "max"}, "normalise is 'max': choose one of min-max, z, none"),
        ({"scale": 0.0}, "the scale of the ensemble is 0.0: give a number above 0"),
        ({"scale": NAN}, "scale of the ensemble is nan"),
        ({"weights": {}}, "the ensemble has no teacher"),
        ({"weights": {"a": 0.0}}, "the weight of a is 0.0: give a number above 0, or leave it out"),
        ({"weights": {"a": float("inf")}}, "the weight of a is inf"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingDataError, match=re.escape(message)):
        Ensemble(**settings)


@pytest.mark.parametrize(
    ("weights", "scores", "offsets", "message"),
    [
        ({"c": 1.0}, {"a": [1.0], "b": [1.0]}, [0, 1], "there are no scores of c: there are those of a, b"),
        (None, {}, [0, 1], "no scores of any teacher: run `retrievers score` first"),
        (None, {"a": [1.0, 2.0]}, [0, 3], "the scores of a have shape [2], and the lists hold 3 candidates"),
        (None, {"a": [1.0, np.inf, -np.inf]}, [0, 3], "a gave 2 infinite scores: NaN stands for none"),
        (None, {"a": [1.0]}, [1, 1], "the offsets of candidate lists must rise from 0"),
        (None, {"a": [1.0]}, [0, 2, 1], "must rise from 0"),
    ],
)
def test_scores_that_are_refused(weights: Any, scores: Any, offsets: list[int], message: str) -> None:
    given = {teacher: np.array(values) for teacher, values in scores.items()}
    with pytest.raises(TrainingDataError, match=re.escape(message)):
        Ensemble(weights).combine(given, np.array(offsets))
