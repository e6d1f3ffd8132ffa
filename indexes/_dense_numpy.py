"""The numpy twin of ``_dense.c`` and ``_dense_exact.c``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SOUND, NO_ROW, NO_SCORE = range(3)
"""What the functions return that compute in float64: whether there was a row, or a score, that cannot be."""

_LANES = 32  # running sums
_HELD = 1 << 16  # numbers that are multiplied at a time: they stay in the cache
_TOGETHER = 4096  # rows of a scan that are multiplied at a time


def dense_offer(
    n: int,
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    mask: NDArray[np.uint8] | None,
    best_scores: NDArray[np.float32],
    best_rows: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> None:
    """Take the scores of some rows into the best ``k`` of every query.

    ``scores`` is ``[rows, queries]``, ``rows`` (0 to ``n`` - 1) tells which they are, ``mask`` is a bitmap of permitted
    rows or None for all. ``best_scores`` and ``best_rows`` (``[queries, k]``) hold the best so far in the first
    ``counts`` (``[queries]``) places, in any order, as an earlier call left them: by score, and of equal scores those of
    the lowest rows. NaN and negative infinity are passed over.

    Raises ValueError where sizes do not fit together or a row is out of bounds.
    """
    queries = len(counts)
    if scores.shape != (len(rows), queries) or best_scores.shape != best_rows.shape or len(best_rows) != queries:
        raise ValueError("the sizes of the buffers do not fit together")
    k = best_rows.shape[1]
    if (queries and (k < 1 or counts.min() < 0 or counts.max() > k)) or (mask is not None and len(mask) != -(-n // 8)):
        raise ValueError("the sizes of the buffers do not fit together")
    if len(rows) and not 0 <= rows.min() <= rows.max() < n:
        raise ValueError("a row is out of bounds")
    if mask is not None:
        permitted = (mask[rows >> 3] >> (rows & 7) & 1).astype(np.bool_)
        scores, rows = scores[permitted], rows[permitted]
    low = np.where(counts == k, best_scores.min(axis=1, initial=np.inf), -np.inf).astype(np.float32)
    for query in np.flatnonzero((scores > low).any(axis=0)).tolist():
        passed = scores[:, query] > low[query]
        count = int(counts[query])
        mine = np.concatenate([best_scores[query, :count], scores[passed, query]])
        mine_rows = np.concatenate([best_rows[query, :count], rows[passed]])
        order = np.lexsort((mine_rows, -mine))[:k]
        counts[query] = len(order)
        best_scores[query, : len(order)], best_rows[query, : len(order)] = mine[order], mine_rows[order]


def dense_scores(
    dimension: int,
    values: NDArray[np.float32],
    queries: NDArray[np.float32],
    numbers: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> int:
    """The inner product, summed in float64 and rounded to float32, of each pair: query ``numbers[i]`` and ``rows[i]``.

    ``values`` is ``[n, dimension]``, ``queries`` ``[queries, dimension]``; ``scores`` (``[pairs]``) is written. Returns
    SOUND, NO_ROW where a row is not from 0 to ``n`` - 1, NO_SCORE where a score is beyond float32; then ``scores`` says
    nothing. Raises ValueError where sizes do not fit together or a number is out of bounds.
    """
    _check(dimension, values, queries)
    if not len(numbers) == len(rows) == len(scores) or (
        len(numbers) and not 0 <= numbers.min() <= numbers.max() < queries.size // dimension
    ):
        raise ValueError("the sizes of the buffers do not fit together, or a query is out of bounds")
    if len(rows) and not 0 <= rows.min() <= rows.max() < values.size // dimension:
        return NO_ROW
    values, queries = values.reshape(-1, dimension), queries.reshape(-1, dimension)
    step = max(1, _HELD // dimension)
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            scores[some] = _products(values[rows[some]], queries[numbers[some]])
    return SOUND if np.isfinite(scores).all() else NO_SCORE


def dense_best(
    dimension: int,
    values: NDArray[np.float32],
    codes: NDArray[np.int8] | None,
    bounds: NDArray[np.float32] | None,
    spread: NDArray[np.float32] | None,
    queries: NDArray[np.float32],
    rows: NDArray[np.int64],
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> int:
    """The best ``k`` of the rows proposed for each query, ``[queries, proposed]``, of which -1 stands for none.

    Scores and outcomes are those of :func:`dense_scores`. ``best_rows`` and ``best_scores`` (``[queries, k]``) get the best
    in their first ``counts`` (``[queries]``) places, by descending score and ascending row. ``codes``, ``bounds`` and
    ``spread`` are those of a :class:`retrievers.indexes.sieve.Sieve`, or all None: the compiled twin passes over rows by them.
    """
    _check_best(dimension, values, queries, best_rows, best_scores, counts)
    _check_codes(dimension, values, codes, bounds, spread)
    if rows.size % len(counts) if len(counts) else rows.size:
        raise ValueError("the sizes of the buffers do not fit together")
    counts[:] = 0
    for query, proposed in enumerate(rows.reshape(len(counts), -1) if len(counts) else []):
        mine = proposed[proposed != -1]
        scores = np.empty(len(mine), np.float32)
        outcome = dense_scores(dimension, values, queries, np.full(len(mine), query), mine, scores)
        if outcome != SOUND:
            return outcome
        _take(query, mine, scores, best_rows, best_scores, counts)
    return SOUND


def dense_scan(
    dimension: int,
    values: NDArray[np.float32],
    longest: float,
    codes: NDArray[np.int8] | None,
    bounds: NDArray[np.float32] | None,
    spread: NDArray[np.float32] | None,
    queries: NDArray[np.float32],
    mask: NDArray[np.uint8] | None,
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> int:
    """The best ``k`` of all rows, or of those in a bitmap, as :func:`dense_best` gives them.

    ``longest`` is an upper bound of the lengths of the rows.
    """
    _check_best(dimension, values, queries, best_rows, best_scores, counts)
    n, k = values.size // dimension, best_rows.shape[1]
    _check_codes(dimension, values, codes, bounds, spread)
    if mask is not None and len(mask) != -(-n // 8):
        raise ValueError("the sizes of the buffers do not fit together")
    values, queries = values.reshape(-1, dimension), queries.reshape(-1, dimension)
    lengths = np.sqrt(np.square(queries, dtype=np.float64).sum(axis=1))
    slack = (dimension + 8) * 2.0**-24 * lengths * longest + dimension * 2.0**-126
    counts[:] = 0
    for first in range(0, n, _TOGETHER):
        block = values[first : first + _TOGETHER]
        permitted = np.ones(len(block), np.bool_)
        if mask is not None:
            permitted = np.unpackbits(
                mask[first // 8 : (first + _TOGETHER) // 8], count=len(block), bitorder="little"
            ).view(np.bool_)
        with np.errstate(over="ignore", invalid="ignore"):
            rough = queries @ block.T + slack[:, None]
        for query in range(len(queries)):
            passed = permitted
            if counts[query] == k:
                below = rough[query] < best_scores[query, k - 1]
                passed = permitted & ~(below & np.isfinite(rough[query]))  # what is no number stays, to be found
            rows = first + np.flatnonzero(passed)
            scores = np.empty(len(rows), np.float32)
            outcome = dense_scores(dimension, values, queries, np.full(len(rows), query), rows, scores)
            if outcome != SOUND:
                return outcome
            _take(query, rows, scores, best_rows, best_scores, counts)
    return SOUND


def _products(values: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inner products of rows and queries, side by side."""
    pairs, dimension = values.shape
    products = np.zeros((pairs, -(-dimension // _LANES) * _LANES))
    np.multiply(values, queries, out=products[:, :dimension], dtype=np.float64)
    sums = np.zeros((pairs, _LANES))
    for first in range(0, dimension, _LANES):
        sums += products[:, first : first + _LANES]
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return sums[:, 0].astype(np.float32)


def _take(
    query: int,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    """Take more rows into the best of a query."""
    count = int(counts[query])
    rows = np.concatenate([best_rows[query, :count], rows])
    scores = np.concatenate([best_scores[query, :count], scores])
    order = np.lexsort((rows, -scores))[: best_rows.shape[1]]
    counts[query] = len(order)
    best_rows[query, : len(order)], best_scores[query, : len(order)] = rows[order], scores[order]


def _check(dimension: int, values: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    if dimension < 1 or values.size % dimension or queries.size % dimension:
        raise ValueError("the sizes of the buffers do not fit together")


def _check_codes(dimension: int, values: NDArray[np.float32], *parts: NDArray[np.generic] | None) -> None:
    given = [part.size for part in parts if part is not None]
    if given and given != [values.size, 2 * (values.size // dimension), 2 * dimension]:
        raise ValueError("the sizes of the buffers do not fit together")


def _check_best(
    dimension: int,
    values: NDArray[np.float32],
    queries: NDArray[np.float32],
    best_rows: NDArray[np.int64],
    best_scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    _check(dimension, values, queries)
    sound = queries.size == len(counts) * dimension and best_rows.shape == best_scores.shape
    if not sound or len(best_rows) != len(counts) or (len(counts) and best_rows.shape[1] < 1):
        raise ValueError("the sizes of the buffers do not fit together")
