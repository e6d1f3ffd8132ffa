"""Whether two systems differ by more than chance: paired tests on per-query values, and ranks over collections.

Every function takes the values of two systems for the same queries in the same order, ``[queries]`` floats each, and
looks at their differences. Differences that are rounding noise beside the values count as none, and differences that
are apart by no more than noise count as tied: measures are sums of fractions, whose last bits depend on the order of summing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import ComparisonError

TESTS = ("randomisation", "t", "wilcoxon")
"""The tests, by the names of the fields of :class:`PValues`."""

RESAMPLES = 10_000
"""How often differences are drawn again, where not every way is counted."""

_NOISE = 1e-12  # beside the largest value: a difference that is smaller is rounding
_DIGITS = 10  # of a difference in units of the largest one: closer ones are tied
_BLOCK = 1 << 20  # numbers drawn at once, which bounds the memory whatever the number of queries

_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PValues:
    """Two-sided p-values of a difference: randomisation test, paired t-test, Wilcoxon signed-rank test."""

    randomisation: float
    t: float
    wilcoxon: float


def differences(values: Sequence[float], baseline: Sequence[float]) -> _Floats:
    """``values - baseline``, ``[queries]`` float64, with rounding noise set to 0.

    Raises ComparisonError for fewer than two queries, unequal numbers of them, and values that are not finite.
    """
    one, other = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if one.ndim != 1 or one.shape != other.shape:
        raise ComparisonError(
            f"a paired test needs a value of both systems for each query, got {one.shape} and {other.shape}"
        )
    if len(one) < 2:
        raise ComparisonError(f"a paired test needs two judged queries or more, got {len(one)}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ComparisonError(
            "a value is NaN or infinite, which cannot be compared: look for it in the measure's values"
        )
    found: _Floats = one - other
    found[np.abs(found) <= _NOISE * max(np.abs(one).max(), np.abs(other).max())] = 0.0
    return found


def paired_tests(
    values: Sequence[float], baseline: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> PValues:
    """The p-values of three paired two-sided tests; 1 each where no query differs.

    The randomisation test flips the signs of differences: in every way where that takes no more than ``resamples``,
    which is exact, and else in ``resamples`` ways drawn with ``seed`` (Smucker, Allan and Carterette, 2007). The t-test is
    that of the mean difference; where every query differs by the same, its p-value is 0. Wilcoxon's test drops queries
    without a difference; it is exact for few queries, else by the normal distribution, as in ``scipy.stats.wilcoxon``.

    Raises ComparisonError as :func:`differences`, and for ``resamples`` below 1.
    """
    _check_resamples(resamples)
    found = differences(values, baseline)
    largest = np.abs(found).max()
    if largest == 0:
        return PValues(1.0, 1.0, 1.0)
    # In units of the largest: the p-values are those of the differences, and do not depend on their scale.
    scaled = found / largest
    return PValues(_randomisation(scaled, resamples, seed), _t(scaled), _wilcoxon(scaled))


def effect_size(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Cohen's d_z: the mean difference over the standard deviation of the differences (``n - 1``).

    0 where no query differs, and infinite, with the sign of the difference, where all differ by the same. Raises
    ComparisonError as :func:`differences`.
    """
    found = differences(values, baseline)
    largest = np.abs(found).max()
    if largest == 0:
        return 0.0
    scaled = found / largest
    return math.copysign(math.inf, scaled[0]) if _same(scaled) else float(scaled.mean() / scaled.std(ddof=1))


def bootstrap_interval(
    values: Sequence[float],
    baseline: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of the mean difference over ``resamples`` draws of as many queries, with replacement.

    Raises ComparisonError as :func:`differences`, for ``resamples`` below 1 and a ``level`` that is not between 0 and 1.
    """
    _check_resamples(resamples)
    if not 0 < level < 1:
        raise ComparisonError(f"the level of an interval is between 0 and 1, such as 0.95, got {level!r}")
    found = differences(values, baseline)
    count = len(found)
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK // count)
    means = np.concatenate(
        [
            found[random.integers(0, count, (min(block, resamples - first), count))].mean(axis=1)
            for first in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected so that the chance of *any* false alarm is bounded (Holm, 1979).

    In the order given. The smallest is multiplied by their number, the next by one less and so on, none falls below
    that of a smaller one, and none exceeds 1. Raises ComparisonError for what is no probability.
    """
    for value in p_values:
        if not 0 <= value <= 1:
            raise ComparisonError(f"a p-value is between 0 and 1, got {value!r}")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, at in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[at]))
        corrected[at] = highest
    return corrected


def borda(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The Borda count of each system over collections, higher is better; ``scores`` is ``{collection: {system: score}}``.

    On each collection a system gets the number of systems less its rank, where the best has rank 1 and equal ones share
    the mean of their ranks; these are summed (MMTEB, Enevoldsen et al., 2025). Systems come in the order of the first
    collection. Raises ComparisonError where there is no collection or no system, where a collection lacks a system that
    another has, and for NaN.
    """
    named = list(dict.fromkeys(system for found in scores.values() for system in found))
    if not named:
        raise ComparisonError(
            "there is nothing to rank: give one collection or more, each with the score of every system"
        )
    totals = dict.fromkeys(named, 0.0)
    for collection, found in scores.items():
        missing = [system for system in named if system not in found]
        if missing:
            raise ComparisonError(
                f"collection {collection!r} has no score for {', '.join(map(repr, missing))}, and another has: ranks "
                "need every system on every collection"
            )
        for system, score in found.items():
            if math.isnan(score):
                raise ComparisonError(f"the score of {system!r} on collection {collection!r} is NaN: it has no rank")
            better = sum(other > score for other in found.values())
            equal = sum(other == score for other in found.values())
            totals[system] += len(named) - (better + (equal + 1) / 2)
    return totals


def _check_resamples(resamples: int) -> None:
    if resamples < 1:
        raise ComparisonError(f"resamples must be 1 or more, got {resamples!r}")


def _randomisation(scaled: _Floats, resamples: int, seed: int) -> float:
    from scipy import stats

    # A difference of 0 keeps its sign: without those, more cases are few enough to count in full.
    flipped = scaled[scaled != 0]
    if len(flipped) == 1:
        return 1.0  # either sign is as large

    def total(sample: _Floats, axis: int) -> Any:
        return np.round(sample.sum(axis=axis), _DIGITS)

    outcome = stats.permutation_test(
        (flipped,),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BLOCK // len(flipped)),
        random_state=np.random.default_rng(seed),
    )
    return float(outcome.pvalue)


def _t(scaled: _Floats) -> float:
    from scipy import stats

    if _same(scaled):
        return 0.0  # the limit; scipy warns of it
    return float(stats.ttest_rel(scaled, np.zeros_like(scaled)).pvalue)


def _wilcoxon(scaled: _Floats) -> float:
    from scipy import stats

    ranked = np.round(scaled, _DIGITS)
    return float(stats.wilcoxon(ranked[ranked != 0]).pvalue)


def _same(scaled: _Floats) -> bool:
    return bool(np.ptp(scaled) <= 10.0**-_DIGITS)
