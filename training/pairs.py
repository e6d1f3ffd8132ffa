"""Drawing what a query is trained on from its candidates and their teacher scores: a pair, or a list of negatives.

Every draw is a pure function of (seed, step, query row): fresh at every visit, the same on any number of processes, and the
same after a stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrievers.errors import TrainingDataError
from retrievers.training.batches import generator
from retrievers.training.sets import Lists

Scheme = Literal["balanced", "quantile", "random", "hardest"]
Rows = NDArray[np.int64]
Scores = NDArray[np.float64]

BINS = 10
_LARGEST = float(np.finfo(np.float32).max)
_PAIR, _LIST = 11, 12  # no two purposes of one seed share a stream
_ENTRIES = 1 << 20  # positives and candidates that are looked at together


@dataclass(frozen=True, eq=False)
class Candidates:
    """The positives and negatives of one query: document rows, int64, and a teacher's scores, float64, of the same length.

    NaN stands for a candidate that the teacher has not scored. The schemes ``balanced``, ``quantile`` and ``hardest`` do
    not draw it; ``random`` does, and the margin is NaN. Raises TrainingDataError for arrays that do not fit, infinite
    scores, and a document that is on both sides.
    """

    positives: Rows
    positive_scores: Scores
    negatives: Rows
    negative_scores: Scores

    def __post_init__(self) -> None:
        for rows, scores, what in (
            (self.positives, self.positive_scores, "positives"),
            (self.negatives, self.negative_scores, "negatives"),
        ):
            if np.ndim(rows) != 1 or np.shape(rows) != np.shape(scores):
                raise TrainingDataError(
                    f"{what} of shape {list(np.shape(rows))} have scores of shape {list(np.shape(scores))}: give one a "
                    "row, NaN for none"
                )
            if (np.abs(scores) > _LARGEST).any():
                raise TrainingDataError(
                    f"the scores of the {what} hold infinity, or more than float32 does: NaN stands for none"
                )
        # A query has few positives and perhaps many negatives.
        if any((self.negatives == row).any() for row in self.positives.tolist()):
            both = np.intersect1d(self.positives, self.negatives).tolist()
            raise TrainingDataError(f"documents {both[:5]} are positives and negatives of one query: leave one out")

    @classmethod
    def of(
        cls,
        positives: ArrayLike,
        positive_scores: ArrayLike,
        negatives: ArrayLike,
        negative_scores: ArrayLike,
    ) -> Self:
        """From sequences or arrays of any types of numbers."""
        return cls(
            np.asarray(positives, np.int64),
            np.asarray(positive_scores, np.float64),
            np.asarray(negatives, np.int64),
            np.asarray(negative_scores, np.float64),
        )

    @classmethod
    def split(cls, positives: ArrayLike, rows: ArrayLike, scores: ArrayLike) -> Self:
        """From a scored candidate list in which positives may stand: every candidate that is none is a negative.

        A positive that is not in the list has no score: NaN.
        """
        good = np.unique(np.asarray(positives, np.int64))
        listed, values = np.asarray(rows, np.int64), np.asarray(scores, np.float64)
        if listed.ndim != 1 or listed.shape != values.shape:
            raise TrainingDataError(f"{list(listed.shape)} candidates have {list(values.shape)} scores: give one each")
        theirs = np.full(len(good), np.nan)
        is_good = np.isin(listed, good)
        theirs[np.searchsorted(good, listed[is_good])] = values[is_good]
        return cls(good, theirs, listed[~is_good], values[~is_good])


@dataclass(frozen=True)
class PairReport:
    """How many queries could not be drawn for as the scheme has it, which is why each is counted.

    Of ``queries``, ``none`` have no pair to draw, ``single`` only one, which comes up at every visit, and ``equal`` have
    several, whose margins are all the same, so that any scheme draws at random. ``short`` have fewer negatives than were
    asked for. ``unscored`` are candidates, of all queries, that the teacher has not scored.
    """

    queries: int = 0
    none: int = 0
    single: int = 0
    equal: int = 0
    short: int = 0
    unscored: int = 0

    def __add__(self, other: PairReport) -> PairReport:
        return PairReport(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    @property
    def fewer_than_two(self) -> int:
        """Queries without a choice: ``none`` and ``single`` together."""
        return self.none + self.single

    def __str__(self) -> str:
        return (
            f"{self.queries:,} queries: {self.none:,} without a pair, {self.single:,} with only one, {self.equal:,} with "
            f"equal margins, {self.short:,} with too few negatives; {self.unscored:,} candidates without a score"
        )

    @classmethod
    def of(cls, candidates: Iterable[Candidates], *, scheme: Scheme = "balanced", negatives: int = 0) -> PairReport:
        """The report of whole training data, before training; with ``negatives`` also of lists of so many."""
        total = cls()
        for one in candidates:
            total += _report(one, scheme, negatives)
        return total


def drawable(
    positives: Lists,
    candidates: Lists,
    scores: NDArray[np.floating] | None = None,
    *,
    scheme: Scheme = "balanced",
    negatives: int = 0,
) -> tuple[NDArray[np.bool_], PairReport]:
    """Which queries of a training set have a pair to draw, bool ``[queries]``, and the report of all of them.

    It is what :meth:`PairReport.of` finds one query after the other, for millions of them: about a million entries of the
    lists are in memory at a time. ``scores`` ``[candidates]`` are those of the candidates, NaN for none; without them no
    scheme tells candidates apart. Raises TrainingDataError for infinite scores.
    """
    able = np.zeros(len(candidates), bool)
    report = PairReport()
    ends = positives.offsets + candidates.offsets
    first = 0
    while first < len(able):
        last = int(np.searchsorted(ends, ends[first] + _ENTRIES, side="right")) - 1
        last = max(last, first + 1)  # a query with more entries than that is looked at alone
        able[first:last], found = _survey(positives, candidates, scores, first, last, scheme, negatives)
        report += found
        first = last
    return able, report


@dataclass(frozen=True, eq=False)
class Pairs:
    """A pair for each query of a batch: document rows, int64 ``[queries]``, −1 where there is no pair.

    ``margins`` are float64 ``[queries]``: the teacher's score of the positive less that of the negative.
    """

    positives: Rows
    negatives: Rows
    margins: Scores
    report: PairReport


@dataclass(frozen=True, eq=False)
class Negatives:
    """``n`` negatives for each query of a batch: rows int64 and scores float64, both ``[queries, n]``.

    A query that has fewer is filled up with −1 and NaN, at the end, and counted as ``short``.
    """

    rows: Rows
    scores: Scores
    report: PairReport


def draw_pairs(
    candidates: Sequence[Candidates],
    queries: Rows | Sequence[int],
    step: int,
    *,
    scheme: Scheme = "balanced",
    bins: int = BINS,
    seed: int = 0,
) -> Pairs:
    """Draw a positive and a negative for each query of a batch; ``queries`` are the rows of the queries.

    ``scheme`` ``"balanced"`` splits the range of that query's own margins ``t(q, d+) − t(q, d−)`` into ``bins`` of equal
    width, draws one that is not empty, each alike, and a pair in it, each alike (Hofstätter et al., 2021,
    "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware Sampling", section 3.2). ``"quantile"``
    does so with bins of as equal a number of pairs as equal margins allow, ``"random"`` draws any pair, ``"hardest"`` one of
    the smallest margin. Raises TrainingDataError for another scheme, fewer bins than 1, and lists that are not parallel.
    """
    _check(candidates, queries, scheme, bins)
    positives, negatives = np.full(len(queries), -1, np.int64), np.full(len(queries), -1, np.int64)
    margins = np.full(len(queries), np.nan)
    report = PairReport()
    for at, (one, query) in enumerate(zip(candidates, queries, strict=True)):
        report += _report(one, scheme, 0)
        good, bad = _usable(one.positive_scores, scheme), _usable(one.negative_scores, scheme)
        if not len(good) or not len(bad):
            continue
        margin = np.subtract.outer(one.positive_scores[good], one.negative_scores[bad]).ravel()
        chosen = _draw(margin, scheme, bins, generator(seed, _PAIR, step, int(query)))
        up, down = divmod(chosen, len(bad))
        positives[at], negatives[at] = one.positives[good[up]], one.negatives[bad[down]]
        margins[at] = margin[chosen]
    return Pairs(positives, negatives, margins, report)


def draw_negatives(
    candidates: Sequence[Candidates],
    queries: Rows | Sequence[int],
    step: int,
    n: int,
    *,
    scheme: Scheme = "balanced",
    bins: int = BINS,
    seed: int = 0,
) -> Negatives:
    """Draw ``n`` different negatives for each query of a batch, for listwise losses.

    ``scheme`` ``"balanced"`` draws evenly over the range of the query's negative scores: ``bins`` of equal width, which in
    rounds, each in a fresh order, give one of theirs until there are ``n``. ``"quantile"`` does so with bins of equal
    numbers, ``"random"`` draws any, ``"hardest"`` takes those that the teacher scores highest, the first of them first.
    Raises TrainingDataError as :func:`draw_pairs` does, and for a negative ``n``.
    """
    _check(candidates, queries, scheme, bins)
    if n < 0:
        raise TrainingDataError(f"{n} negatives: give 0 or more")
    rows, scores = np.full((len(queries), n), -1, np.int64), np.full((len(queries), n), np.nan)
    report = PairReport()
    for at, (one, query) in enumerate(zip(candidates, queries, strict=True)):
        report += _report(one, scheme, n)
        usable = _usable(one.negative_scores, scheme)
        values = one.negative_scores[usable]
        order = _order(values, scheme, bins, generator(seed, _LIST, step, int(query)))[:n]
        rows[at, : len(order)] = one.negatives[usable[order]]
        scores[at, : len(order)] = values[order]
    return Negatives(rows, scores, report)


def margin_bins(values: Scores, bins: int = BINS) -> Rows:
    """The bin of each value, int64, 0 to ``bins - 1``: their range is split into bins of equal width.

    A bin holds its lower edge, and the last one its upper edge as well. All values are in bin 0 where they are equal.
    """
    low, high = values.min(), values.max()
    if not high > low:
        return np.zeros(len(values), np.int64)
    # A share of the range, not a count of steps: a step may be 0 where the range is not.
    return np.asarray(np.minimum((values - low) / (high - low) * bins, bins - 1), np.int64)


def quantile_bins(values: Scores, bins: int = BINS) -> Rows:
    """The bin of each value, int64, 0 to ``bins - 1``, as equal in number as can be; equal values share one."""
    below = np.searchsorted(np.sort(values), values, side="left")
    return np.asarray(below * bins // max(len(values), 1), np.int64)


def _draw(margins: Scores, scheme: Scheme, bins: int, draws: np.random.Generator) -> int:
    if scheme == "random":
        return int(draws.integers(len(margins)))
    if scheme == "hardest":
        pool = np.flatnonzero(margins == margins.min())
    else:
        places = margin_bins(margins, bins) if scheme == "balanced" else quantile_bins(margins, bins)
        pool = np.flatnonzero(places == draws.choice(np.unique(places)))
    return int(pool[draws.integers(len(pool))])


def _order(values: Scores, scheme: Scheme, bins: int, draws: np.random.Generator) -> Rows:
    """All values in the order in which they would be drawn."""
    shuffled = draws.permutation(len(values))
    if scheme == "random" or not len(values):
        return shuffled
    if scheme == "hardest":
        return shuffled[np.argsort(-values[shuffled], kind="stable")]
    places = (margin_bins(values, bins) if scheme == "balanced" else quantile_bins(values, bins))[shuffled]
    # The round in which a value's turn comes is the number of those of its bin before it; a fresh order within rounds.
    by_bin = np.argsort(places, kind="stable")
    first = np.searchsorted(places[by_bin], places[by_bin], side="left")
    rounds = np.empty(len(values), np.int64)
    rounds[by_bin] = np.arange(len(values)) - first
    return shuffled[np.lexsort((draws.random(len(values)), rounds))]


def _usable(scores: Scores, scheme: Scheme) -> Rows:
    return np.arange(len(scores)) if scheme == "random" else np.flatnonzero(~np.isnan(scores))


def _report(one: Candidates, scheme: Scheme, negatives: int) -> PairReport:
    good, bad = _usable(one.positive_scores, scheme), _usable(one.negative_scores, scheme)
    pairs = len(good) * len(bad)
    equal = False
    if pairs > 1:
        ups, downs = one.positive_scores[good], one.negative_scores[bad]
        equal = bool(ups.min() == ups.max() and downs.min() == downs.max())  # False where one is NaN
    unscored = int(np.isnan(one.positive_scores).sum() + np.isnan(one.negative_scores).sum())
    return PairReport(1, int(pairs == 0), int(pairs == 1), int(equal), int(len(bad) < negatives), unscored)


def _survey(
    positives: Lists,
    candidates: Lists,
    scores: NDArray[np.floating] | None,
    first: int,
    last: int,
    scheme: Scheme,
    negatives: int,
) -> tuple[NDArray[np.bool_], PairReport]:
    """:func:`drawable` of the queries from ``first`` to ``last``, all at once."""
    count = last - first
    asked, rows = _entries(positives, first, last)
    owner, listed = _entries(candidates, first, last)
    width = int(max(rows.max(initial=0), listed.max(initial=0))) + 1
    good = np.unique(asked * width + rows)  # a pair of query and document as one number
    keys = owner * width + listed
    places = np.searchsorted(good, keys)
    is_good = np.append(good, -1)[places] == keys
    if scores is None:
        ups, downs = np.zeros(len(good)), np.zeros(int((~is_good).sum()))
    else:
        values = np.asarray(scores[candidates.offsets[first] : candidates.offsets[last]], np.float64)
        if (np.abs(values) > _LARGEST).any():
            raise TrainingDataError(
                "the scores of candidates hold infinity, or more than float32 does: NaN stands for none"
            )
        ups, downs = np.full(len(good), np.nan), values[~is_good]
        ups[places[is_good]] = values[is_good]
    above, same_above = _alike(good // width, ups, count, scheme)
    below, same_below = _alike(owner[~is_good], downs, count, scheme)
    pairs = above * below
    return pairs > 0, PairReport(
        count,
        int((pairs == 0).sum()),
        int((pairs == 1).sum()),
        int(((pairs > 1) & same_above & same_below).sum()),
        int((below < negatives).sum()),
        int(np.isnan(ups).sum() + np.isnan(downs).sum()),
    )


def _entries(lists: Lists, first: int, last: int) -> tuple[Rows, Rows]:
    """The number of its query, from 0, and the row of each entry of the queries from ``first`` to ``last``."""
    bounds = lists.offsets[first : last + 1]
    return np.repeat(np.arange(last - first), np.diff(bounds)), np.asarray(lists.rows[bounds[0] : bounds[-1]])


def _alike(owner: Rows, values: Scores, count: int, scheme: Scheme) -> tuple[Rows, NDArray[np.bool_]]:
    """How many usable values each of ``count`` queries has, and whether they are all the same; ``owner`` ascends."""
    usable = _usable(values, scheme)
    owner, values = owner[usable], values[usable]
    counts = np.bincount(owner, minlength=count)
    starts = np.cumsum(counts) - counts
    as_first = values == values[starts[owner]]  # NaN is not like itself
    return counts, np.bincount(owner[as_first], minlength=count) == counts


def _check(candidates: Sequence[Candidates], queries: Rows | Sequence[int], scheme: Scheme, bins: int) -> None:
    if scheme not in get_args(Scheme):
        raise TrainingDataError(f"there is no scheme {scheme!r}: give one of {', '.join(get_args(Scheme))}")
    if bins < 1:
        raise TrainingDataError(f"{bins} bins: give 1 or more")
    if len(candidates) != len(queries):
        raise TrainingDataError(f"{len(candidates)} candidate lists for {len(queries)} queries: give one for each")
