"""Paired tests, corrections and ranks: against enumeration, and numbers worked by hand."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.errors import ComparisonError
from retrievers.significance import (
    PValues,
    bootstrap_interval,
    borda,
    differences,
    effect_size,
    holm,
    paired_tests,
)


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def enumerated(numbers: list[Fraction]) -> float:
    """The share of all sign flips whose sum is at least as far from 0, in exact arithmetic."""
    observed = abs(sum(numbers))
    flips = list(itertools.product((1, -1), repeat=len(numbers)))
    return sum(abs(sum(s * d for s, d in zip(signs, numbers, strict=True))) >= observed for signs in flips) / len(flips)


def enumerated_ranks(numbers: list[Fraction]) -> float:
    """The same for signed ranks, equal sizes sharing their mean rank and differences of 0 dropped."""
    kept = [d for d in numbers if d]
    sizes = [abs(d) for d in kept]
    ranks = [Fraction(2 * sum(o < s for o in sizes) + sum(o == s for o in sizes) + 1, 2) for s in sizes]
    return enumerated([rank if d > 0 else -rank for rank, d in zip(ranks, kept, strict=True)])


tenths = st.integers(0, 10)
pairs = st.lists(st.tuples(tenths, tenths), min_size=2, max_size=10)


@settings(deadline=None, max_examples=30)
@given(pairs)
def test_few_queries_are_tested_exactly(made: list[tuple[int, int]]) -> None:
    exact = [Fraction(a - b) for a, b in made]
    found = paired_tests([a / 10 for a, _ in made], [b / 10 for _, b in made])
    assert found.randomisation == pytest.approx(enumerated(exact), abs=1e-12)
    if any(exact):
        assert found.wilcoxon == pytest.approx(enumerated_ranks(exact), abs=1e-12)


def test_twelve_queries_are_tested_exactly() -> None:
    a = [Fraction(n, 7) for n in (3, 5, 0, 7, 6, 2, 4, 4, 1, 7, 6, 5)]
    b = [Fraction(n, 7) for n in (2, 5, 1, 3, 6, 1, 1, 5, 0, 4, 2, 4)]
    exact = [x - y for x, y in zip(a, b, strict=True)]
    found = paired_tests([float(x) for x in a], [float(x) for x in b])
    assert 0 < enumerated(exact) < 0.1
    assert found.randomisation == pytest.approx(enumerated(exact), abs=1e-12)
    assert found.wilcoxon == pytest.approx(enumerated_ranks(exact), abs=1e-12)


def test_ties_are_seen_through_rounding() -> None:
    # 0.1 + 0.2 - 0.3 is not 0 in floats; it is the observed sum, and every way of flipping is as far from 0.
    assert paired_tests([0.1, 0.2, 0.0], [0.0, 0.0, 0.3]).randomisation == 1.0
    assert differences([0.1 + 0.2, 1.0], [0.3, 0.0]).tolist() == [0.0, 1.0]


def test_many_queries_are_sampled_near_the_exact_p_and_alike_for_a_seed() -> None:
    random = np.random.default_rng(5)
    apart = random.integers(-3, 6, 40)
    # The distribution of the sum of flipped integers, counted in full by dynamic programming.
    ways = {0: 1}
    for size in map(int, apart):
        grown: dict[int, int] = {}
        for total, count in ways.items():
            for sign in (size, -size):
                grown[total + sign] = grown.get(total + sign, 0) + count
        ways = grown
    exact = sum(count for total, count in ways.items() if abs(total) >= abs(int(apart.sum()))) / 2 ** len(apart)
    values, zeros = (apart / 10).tolist(), [0.0] * len(apart)
    first = paired_tests(values, zeros, seed=1)
    assert 0.0005 < exact < 0.3
    # Four standard errors of 10,000 draws, twice over since both tails are taken from the smaller one.
    assert first.randomisation == pytest.approx(exact, abs=8 * math.sqrt(exact / 10_000))
    assert paired_tests(values, zeros, seed=1) == first
    assert paired_tests(values, zeros, seed=2).randomisation != first.randomisation
    assert paired_tests(values, zeros, seed=1, resamples=100).randomisation * 101 == pytest.approx(
        round(paired_tests(values, zeros, seed=1, resamples=100).randomisation * 101)
    )


def test_t_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 * sqrt(3); with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    t = 2 * math.sqrt(3)
    assert paired_tests([2, 4, 6], [1, 2, 3]).t == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert effect_size([2, 4, 6], [1, 2, 3]) == pytest.approx(2.0)
    assert effect_size([1, 2, 3], [2, 4, 6]) == pytest.approx(-2.0)


def test_wilcoxon_by_hand() -> None:
    # Ranks 1 to 5, all but the smallest positive: the negative ranks sum to 1 or less in 2 of 32 ways, on both sides 4.
    assert paired_tests([0, 2, 3, 4, 5], [1, 0, 0, 0, 0]).wilcoxon == pytest.approx(4 / 32)
    # Queries without a difference are dropped.
    assert paired_tests([0, 2, 3, 4, 5, 7, 7], [1, 0, 0, 0, 0, 7, 7]).wilcoxon == pytest.approx(4 / 32)


@pytest.mark.parametrize("values", [[0.0, 0.0], [0.3] * 50, [0.1, 0.7, 1e300]])
def test_equal_systems_have_p_1_no_effect_and_an_interval_of_nothing(values: list[float]) -> None:
    assert paired_tests(values, values) == PValues(1.0, 1.0, 1.0)
    assert effect_size(values, values) == 0
    assert bootstrap_interval(values, values) == (0.0, 0.0)


def test_the_same_difference_everywhere_is_certain_to_t_and_without_warning() -> None:
    found = paired_tests([0.4, 0.5, 0.6], [0.3, 0.4, 0.5])
    assert found == PValues(0.25, 0.0, 0.25)
    assert effect_size([0.4, 0.5, 0.6], [0.3, 0.4, 0.5]) == math.inf
    assert effect_size([0.3, 0.4, 0.5], [0.4, 0.5, 0.6]) == -math.inf


def test_thousands_of_queries_take_bounded_memory() -> None:
    import tracemalloc

    random = np.random.default_rng(1)
    one, other = random.random((2, 2500))
    paired_tests([1.0, 2.0, 3.0], [0.0, 3.0, 1.0])  # imports
    tracemalloc.start()
    paired_tests(one.tolist(), other.tolist())
    bootstrap_interval(one.tolist(), other.tolist())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"peak: {peak / 1e6:.0f} MB")
    assert peak < 120e6  # 10,000 draws of 2,500 numbers at once would take 200 MB, and their places as much


def test_the_interval_is_that_of_the_mean() -> None:
    random = np.random.default_rng(7)
    apart = random.normal(0.1, 0.3, 400)
    low, high = bootstrap_interval(apart.tolist(), [0.0] * 400)
    width = 1.96 * apart.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((apart.mean() - width, apart.mean() + width), abs=0.1 * width)
    narrow = bootstrap_interval(apart.tolist(), [0.0] * 400, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval(apart.tolist(), [0.0] * 400, seed=3) != (low, high)
    # Two queries, by hand: both draws the lower in a quarter of cases, both the higher in another.
    assert bootstrap_interval([1.0, 3.0], [0.0, 0.0]) == (1.0, 3.0)
    assert bootstrap_interval([1.0, 3.0], [0.0, 0.0], level=0.3) == (2.0, 2.0)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), min_size=2, max_size=30),
    st.sampled_from([0.25, 3.0, 1000.0]),
)
def test_p_values_are_symmetric_free_of_scale_and_probabilities(made: list[tuple[float, float]], scale: float) -> None:
    one, other = [a for a, _ in made], [b for _, b in made]
    found = paired_tests(one, other, resamples=500)
    assert paired_tests(other, one, resamples=500) == found
    scaled = paired_tests([scale * a for a in one], [scale * b for b in other], resamples=500)
    for test in ("randomisation", "t", "wilcoxon"):
        assert getattr(scaled, test) == pytest.approx(getattr(found, test), rel=1e-6, abs=1e-12)
        assert 0 <= getattr(found, test) <= 1
    assert effect_size(other, one) == -effect_size(one, other)


def test_holm_by_hand() -> None:
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_raises_and_stays_within_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    by_size = sorted(zip(p, corrected, strict=True))
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(by_size))
    assert all(raw <= new <= min(1.0, len(p) * raw) for raw, new in zip(p, corrected, strict=True))
    assert min(corrected) == min(1.0, len(p) * min(p))


def test_borda_by_hand_with_ties() -> None:
    scores = {
        "first": {"a": 0.9, "b": 0.5, "c": 0.1},  # ranks 1, 2, 3
        "second": {"c": 0.4, "a": 0.4, "b": 0.2},  # ranks of a and c 1.5, of b 3
        "third": {"a": 0.3, "b": 0.3, "c": 0.3},  # all 2
    }
    assert borda(scores) == {"a": 2 + 1.5 + 1, "b": 1 + 0 + 1, "c": 0 + 1.5 + 1}
    assert list(borda(scores)) == ["a", "b", "c"]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 3), min_size=3), min_size=1, max_size=5))
def test_borda_shares_out_the_same_sum(made: list[dict[str, int]]) -> None:
    counts = borda({str(at): dict(found) for at, found in enumerate(made)})
    assert sum(counts.values()) == 3 * len(made)
    assert all(0 <= count <= 2 * len(made) for count in counts.values())


@pytest.mark.parametrize(
    ("values", "baseline", "complaint"),
    [
        ([1.0], [0.0], "two judged queries or more, got 1"),
        ([], [], "two judged queries or more, got 0"),
        ([1.0, 2.0], [1.0], r"\(2,\) and \(1,\)"),
        ([1.0, math.nan], [1.0, 2.0], "NaN or infinite"),
        ([1.0, 1.0], [1.0, math.inf], "NaN or infinite"),
    ],
)
def test_what_cannot_be_paired_is_refused(values: list[float], baseline: list[float], complaint: str) -> None:
    for test in (paired_tests, effect_size, bootstrap_interval, differences):
        with pytest.raises(ComparisonError, match=complaint):
            test(values, baseline)  # type: ignore[operator]


def test_bad_options_and_bad_ranks_are_refused() -> None:
    with pytest.raises(ComparisonError, match="resamples must be 1 or more, got 0"):
        paired_tests([1, 2], [0, 0], resamples=0)
    with pytest.raises(ComparisonError, match="resamples must be 1 or more, got -1"):
        bootstrap_interval([1, 2], [0, 0], resamples=-1)
    with pytest.raises(ComparisonError, match=r"between 0 and 1, such as 0\.95, got 95"):
        bootstrap_interval([1, 2], [0, 0], level=95)
    with pytest.raises(ComparisonError, match=r"got 1\.5"):
        holm([0.1, 1.5])
    with pytest.raises(ComparisonError, match="got nan"):
        holm([math.nan])
    with pytest.raises(ComparisonError, match="nothing to rank"):
        borda({})
    with pytest.raises(ComparisonError, match="'two' has no score for 'b'"):
        borda({"one": {"a": 1.0, "b": 2.0}, "two": {"a": 1.0}})
    with pytest.raises(ComparisonError, match="'one' has no score for 'c'"):
        borda({"one": {"a": 1.0}, "two": {"a": 1.0, "c": 2.0}})
    with pytest.raises(ComparisonError, match="'a' on collection 'one' is NaN"):
        borda({"one": {"a": math.nan}})
