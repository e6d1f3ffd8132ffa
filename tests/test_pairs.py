"""Pairs and negatives by the teacher's scores: bins by hand, draws as often as they should, and what is refused."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from retrievers.errors import TrainingDataError
from retrievers.training import pairs as pairs_module
from retrievers.training.pairs import (
    Candidates,
    PairReport,
    draw_negatives,
    draw_pairs,
    drawable,
    margin_bins,
    quantile_bins,
)
from retrievers.training.sets import Lists

NAN = float("nan")
LIKELY = 1e-3  # a p-value below which draws do not follow the distribution; seeds are fixed
#: Margins 0, 1, 1.5, 9 (twice) and 10: in tenths of their range bins 0, 1, 1, 9, 9 and 9.
ONE = Candidates.of([7], [10.0], [1, 2, 3, 4, 5, 6], [10.0, 9.0, 8.5, 1.0, 1.0, 0.0])


def drawn(scheme: Any, steps: int = 3000, **options: Any) -> Counter[int]:
    found = Counter[int]()
    for step in range(steps):
        pairs = draw_pairs([ONE], [4], step, scheme=scheme, **options)
        assert pairs.positives.tolist() == [7]
        found[int(pairs.negatives[0])] += 1
    return found


def expect(found: Counter[int], wanted: dict[int, float]) -> None:
    assert set(found) == set(wanted)
    if len(wanted) == 1:
        return
    total = sum(found.values())
    assert chisquare([found[row] for row in wanted], [share * total for share in wanted.values()]).pvalue > LIKELY


def test_margin_bins_by_hand() -> None:
    assert margin_bins(np.array([0.0, 1, 1.5, 9, 9, 10])).tolist() == [0, 1, 1, 9, 9, 9]
    assert margin_bins(np.array([-5.0, 5, 0, 4.99]), 2).tolist() == [0, 1, 1, 1]
    assert margin_bins(np.array([3.0, 3, 3])).tolist() == [0, 0, 0]  # all equal: one bin, and no division by 0
    assert margin_bins(np.array([0.0, 5e-324])).tolist() == [0, 9]


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=50), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_bins_are_in_range_and_in_order(values: list[float], bins: int) -> None:
    given = np.array(values)
    for cut in (margin_bins, quantile_bins):
        places = cut(given, bins)
        assert places.dtype == np.int64
        assert 0 <= places.min() <= places.max() < bins
        assert (np.diff(places[np.argsort(given)]) >= 0).all()
    if given.max() > given.min():
        assert margin_bins(given, bins)[given.argmax()] == bins - 1


def test_quantile_bins_by_hand() -> None:
    assert quantile_bins(np.array([9.0, 1, 100, 2, 3, 4]), 3).tolist() == [2, 0, 2, 0, 1, 1]
    assert quantile_bins(np.array([1.0, 1, 1, 2]), 2).tolist() == [0, 0, 0, 1]


def test_balanced_pairs_are_even_over_bins() -> None:
    expect(drawn("balanced"), {1: 1 / 3, 2: 1 / 6, 3: 1 / 6, 4: 1 / 9, 5: 1 / 9, 6: 1 / 9})
    expect(drawn("balanced", bins=2), {1: 1 / 6, 2: 1 / 6, 3: 1 / 6, 4: 1 / 6, 5: 1 / 6, 6: 1 / 6})


def test_other_schemes() -> None:
    expect(drawn("random"), dict.fromkeys(range(1, 7), 1 / 6))
    expect(drawn("hardest", 20), {1: 1.0})
    # Thirds by number: margins 0 and 1; 1.5 and both 9s, since equal ones share a bin; 10.
    expect(drawn("quantile", bins=3), {1: 1 / 6, 2: 1 / 6, 3: 1 / 9, 4: 1 / 9, 5: 1 / 9, 6: 1 / 3})


def test_several_positives_make_pairs_of_all() -> None:
    two = Candidates.of([8, 9], [5.0, 3.0], [1, 2], [1.0, 2.0])  # margins 4, 3, 2, 1
    found = Counter()
    for step in range(2000):
        pairs = draw_pairs([two], [0], step)
        row = int(pairs.positives[0]), int(pairs.negatives[0])
        assert pairs.margins[0] == {(8, 1): 4, (8, 2): 3, (9, 1): 2, (9, 2): 1}[row]
        found[row] += 1
    assert chisquare(list(found.values())).pvalue > LIKELY
    assert len(found) == 4
    assert draw_pairs([two], [0], 0, scheme="hardest").margins.tolist() == [1]


@pytest.mark.parametrize("scheme", ["balanced", "quantile", "random", "hardest"])
def test_draws_depend_on_seed_step_and_query_alone(scheme: Any) -> None:
    many = [ONE] * 40
    whole = draw_pairs(many, range(40), 5, scheme=scheme, seed=1)
    part = draw_pairs(many[:10], np.arange(30, 40), 5, scheme=scheme, seed=1)
    np.testing.assert_array_equal(part.negatives, whole.negatives[30:])
    lists = draw_negatives(many, range(40), 5, 4, scheme=scheme, seed=1)
    alone = draw_negatives(many[:1], [39], 5, 4, scheme=scheme, seed=1)
    np.testing.assert_array_equal(alone.rows[0], lists.rows[39])
    if scheme != "hardest":
        for other in (
            draw_pairs(many, range(40), 6, scheme=scheme, seed=1),
            draw_pairs(many, range(40), 5, scheme=scheme, seed=2),
            draw_pairs(many, range(1, 41), 5, scheme=scheme, seed=1),
        ):
            assert (other.negatives != whole.negatives).any()


def test_negatives_are_spread_over_the_scores() -> None:
    # Scores 10, 9, 8.5 | 1, 1, 0 over 0 to 10 in two bins: half of four from either.
    for step in range(50):
        found = draw_negatives([ONE], [0], step, 4, bins=2)
        rows = set(found.rows[0].tolist())
        assert len(rows) == 4
        assert len(rows & {1, 2, 3}) == 2
        scores = dict(zip(ONE.negatives.tolist(), ONE.negative_scores.tolist(), strict=True))
        assert found.scores[0].tolist() == [scores[row] for row in found.rows[0].tolist()]
    assert draw_negatives([ONE], [0], 0, 3, scheme="hardest").rows.tolist() == [[1, 2, 3]]
    first = Counter(int(draw_negatives([ONE], [0], step, 1).rows[0, 0]) for step in range(3000))
    # By score in tenths: 10, 9 in bin 9, 8.5 in 8, 1s in 1, 0 in 0.
    expect(first, {1: 1 / 8, 2: 1 / 8, 3: 1 / 4, 4: 1 / 8, 5: 1 / 8, 6: 1 / 4})


def test_what_cannot_be_drawn_is_counted() -> None:
    none = Candidates.of([1], [1.0], [], [])
    unscored = Candidates.of([1], [NAN], [2, 3], [1.0, 2.0])
    single = Candidates.of([1], [5.0], [2, 3], [1.0, NAN])
    equal = Candidates.of([1], [5.0], [2, 3], [1.0, 1.0])
    every = [none, unscored, single, equal, ONE]
    pairs = draw_pairs(every, range(5), 0)
    assert pairs.positives.tolist() == [-1, -1, 1, 1, 7]
    assert pairs.negatives[:3].tolist() == [-1, -1, 2]
    assert pairs.negatives[3] in (2, 3)
    assert np.isnan(pairs.margins[:2]).all()
    assert pairs.margins[2:4].tolist() == [4, 4]
    assert pairs.report == PairReport(queries=5, none=2, single=1, equal=1, short=0, unscored=2)
    assert pairs.report.fewer_than_two == 3
    assert PairReport.of(every, negatives=2) == PairReport(5, 2, 1, 1, 2, 2)
    at_random = draw_pairs([unscored], [0], 0, scheme="random")
    assert at_random.negatives[0] in (2, 3)
    assert np.isnan(at_random.margins[0])
    lists = draw_negatives(every, range(5), 0, 2)
    assert lists.rows[0].tolist() == [-1, -1]
    assert lists.rows[2].tolist() == [2, -1]
    np.testing.assert_array_equal(lists.scores[2], [1.0, NAN])
    assert lists.report.short == 2
    assert "2 without a pair, 1 with only one, 1 with equal margins" in str(pairs.report)


#: For each query its positives, and its candidates with their scores: documents of ten, scores of four or none.
queries = st.lists(
    st.tuples(
        st.lists(st.integers(0, 9), max_size=3, unique=True),
        st.dictionaries(st.integers(0, 9), st.sampled_from([0.0, 1.0, 2.5, -1.0, NAN]), max_size=6),
    ),
    max_size=12,
)


def lists_of(rows: list[list[int]]) -> Lists:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Lists(offsets, np.array([row for one in rows for row in one], np.int64))


@given(
    queries,
    st.sampled_from(["balanced", "quantile", "random", "hardest"]),
    st.integers(0, 4),
    st.sampled_from([1, 7, 99]),
)
@settings(max_examples=300, deadline=None)
def test_what_can_be_drawn_is_the_same_in_blocks_and_one_by_one(
    given: list[tuple[list[int], dict[int, float]]], scheme: Any, negatives: int, entries: int
) -> None:
    positives, candidates = lists_of([good for good, _ in given]), lists_of([list(listed) for _, listed in given])
    scores = np.array([score for _, listed in given for score in listed.values()], np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_module, "_ENTRIES", entries)
        able, report = drawable(positives, candidates, scores, scheme=scheme, negatives=negatives)
        plain, unscored = drawable(positives, candidates, scheme=scheme, negatives=negatives)
    every = [Candidates.split(good, list(listed), list(listed.values())) for good, listed in given]
    assert report == PairReport.of(every, scheme=scheme, negatives=negatives)
    alone = [PairReport.of([one], scheme=scheme) for one in every]
    assert able.tolist() == [not one.none for one in alone]
    every = [
        Candidates(one.positives, np.zeros(len(one.positives)), one.negatives, np.zeros(len(one.negatives)))
        for one in every
    ]
    assert unscored == PairReport.of(every, scheme=scheme, negatives=negatives)
    assert plain.tolist() == [bool(len(one.positives) and len(one.negatives)) for one in every]


def test_candidate_lists_are_split() -> None:
    found = Candidates.split([4, 9, 4], [3, 9, 5], [1.0, 2.0, NAN])
    assert (found.positives.tolist(), found.negatives.tolist()) == ([4, 9], [3, 5])
    np.testing.assert_array_equal(found.positive_scores, [NAN, 2.0])
    np.testing.assert_array_equal(found.negative_scores, [1.0, NAN])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Candidates.of([1], [1.0, 2.0], [], []), "positives of shape [1] have scores of shape [2]"),
        (lambda: Candidates.of([1], [1.0], [2], [np.inf]), "the scores of the negatives hold infinity"),
        (lambda: Candidates.of([1], [1e39], [2], [0.0]), "the scores of the positives hold infinity, or more than"),
        (lambda: Candidates.of([1, 2], [1, 2], [2], [0]), "documents [2] are positives and negatives of one query"),
        (lambda: Candidates.split([1], [1, 2], [0.0]), "[2] candidates have [1] scores"),
        (lambda: draw_pairs([ONE], [0], 0, scheme="best"), "there is no scheme 'best': give one of balanced"),  # type: ignore[arg-type]
        (lambda: draw_pairs([ONE], [0], 0, bins=0), "0 bins: give 1 or more"),
        (lambda: draw_pairs([ONE], [0, 1], 0), "1 candidate lists for 2 queries"),
        (lambda: draw_pairs([ONE], [0], -1), "0 or more"),
        (
            lambda: drawable(lists_of([[1]]), lists_of([[2]]), np.array([np.inf])),
            "the scores of candidates hold infinity, or more than",
        ),
        (lambda: draw_negatives([ONE], [0], 0, -1), "-1 negatives: give 0 or more"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    with pytest.raises(TrainingDataError, match=re.escape(message)):
        make()
