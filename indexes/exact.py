"""Exhaustive inner-product search over stored vectors, whose outcome is a function of the vectors alone.

Matrix products round differently from batch to batch, from machine to machine and from one thread count to another.
They are therefore only trusted to within their rounding error (Higham, "Accuracy and Stability of Numerical
Algorithms", 2002, section 3.1): rows whose fast score comes within that of the ``k``-th best are scored again, each
pair on its own in float64, and ranked by that score, rounded to float32, and by ascending row. Few queries are not worth
a product of matrices: a kernel compares row by row, and does the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, MissingDependencyError, QueryError, VectorError
from retrievers.indexes import bitmaps, kernels
from retrievers.indexes._dense_numpy import NO_ROW, NO_SCORE
from retrievers.indexes.arrays import load_array
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.protocol import Found
from retrievers.indexes.sieve import Sieve
from retrievers.indexes.threads import pieces, shared
from retrievers.vectors import Vectors, check

Score = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""The scores of pairs, each for itself alone: query ``numbers[i]`` and row ``rows[i]``."""

Scored = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Some rows, and their fast scores, ``[queries, rows]``."""

UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the relative rounding error of one operation."""

_FILE = "vectors.npy"
_LONGEST_SCORE = 1e37  # far enough below the end of float32 that no sum on the way overflows
_PAIRS = 1 << 22  # candidates that are held at a time
_CHUNK = 1 << 15  # rows that are copied at a time
_MULTIPLIED = 4  # queries from which multiplying matrices is quicker than comparing row by row without codes
_COMPARED = 256  # queries that a thread compares row by row at a time, by codes,
_SHARE = 16  # and those of a batch that it has at least
_TOGETHER = 4096  # rows that are multiplied at a time,
_CELLS = 1 << 22  # as long as there are no more products than this
_MOST_QUERIES = 4096  # that are searched at a time
_MANY = 256  # queries for which vectors in memory are worth a copy
_MOST_RESIDENT = 1 << 30  # bytes of vectors up to which large batches copy them into memory
_SIFTED = 32  # queries that are sifted together


def import_faiss() -> Any:
    """The faiss module. Raises MissingDependencyError, which says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "indexes of dense vectors need faiss: pip install faiss-cpu, or pip install 'tri-retrievers[neural]'"
        ) from error
    return faiss


def check_search(k: int, size: int, *masks: Bitmap | None) -> Bitmap | None:
    """The rows that are in all bitmaps, None for all; QueryError for a ``k`` below 1 and bitmaps of another size."""
    if k < 1:
        raise QueryError(f"k={k}: ask for 1 hit or more")
    both: Bitmap | None = None
    for mask in masks:
        if mask is None:
            continue
        if mask.dtype != np.uint8 or mask.shape != (-(-size // 8),):
            raise QueryError(f"a bitmap of {size} rows has {-(-size // 8)} bytes; got {mask.dtype} {list(mask.shape)}")
        both = mask if both is None else both & mask
    return both


def ranked(
    queries: int, numbers: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> Found:
    """The best ``k`` of scored pairs for each query: pair ``i`` is query ``numbers[i]`` and row ``rows[i]``."""
    order = np.lexsort((rows, -scores, numbers))
    rows, scores = rows[order], scores[order]
    ends = np.cumsum(np.bincount(numbers, minlength=queries)).tolist()
    spans = [(start, min(end, start + k)) for start, end in zip([0, *ends], ends, strict=False)]
    return Found([rows[start:end] for start, end in spans], [scores[start:end] for start, end in spans])


def merge_candidates(
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    more_scores: NDArray[np.float32],
    more_rows: NDArray[np.int64],
    fetch: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best ``fetch`` of two sets of candidates (``[queries, any]`` each), best first."""
    scores, rows = np.concatenate([scores, more_scores], axis=1), np.concatenate([rows, more_rows], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :fetch]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def fetched(k: int, permitted: int) -> int:
    """How many candidates to fetch for ``k`` hits, so that seldom another comes within rounding of the ``k``-th."""
    return min(permitted, k + 8 + k // 8)


def longest(blocks: Iterator[NDArray[np.float32]], dimension: int) -> float:
    """An upper bound of the lengths of the vectors in ``blocks``; infinite where any is not finite."""
    most = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks:
            squares = np.einsum("ij,ij->i", block, block)
            if not squares.max(initial=0) < 1e37:  # too long for a square in float32, or not finite
                wide = block.astype(np.float64)
                squares = np.einsum("ij,ij->i", wide, wide)
            found = float(squares.max(initial=0))
            most = max(most, found) if found < np.inf else np.inf  # also where found is NaN
    # Squares too small for float32 may have vanished.
    return float(np.sqrt(most * (1 + (dimension + 8) * UNIT) + dimension * 1e-37))


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """Vectors, float32 ``[n, dim]``, an upper bound of their lengths, their codes, and where they lie, for messages.

    Those of older indexes have no codes.
    """

    values: NDArray[np.float32]
    longest: float
    sieve: Sieve | None = None
    place: str = "the vectors"

    @classmethod
    def of(cls, vectors: Vectors) -> Self:
        """Take float32 ``[n, dim]`` as they are. Raises VectorError for another type or shape, NaN or infinity."""
        values = _dense(vectors)
        if values.shape[1] == 0:
            raise VectorError("vectors need 1 dimension or more; got 0")
        return cls(values, longest(_blocks(values), values.shape[1]), Sieve.of(values))

    @classmethod
    def gathered(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]]) -> Self:
        """One from several; each comes with the row that each of its rows takes in the result, or -1."""
        dimensions = sorted({part.values.shape[1] for part, _ in parts})
        if len(dimensions) != 1:
            raise VectorError(f"indexes of one dimension can be merged, and these have {dimensions or 'none'}")
        n = sum(int(np.count_nonzero(rows >= 0)) for _, rows in parts)
        values = np.empty((n, dimensions[0]), np.float32)
        for part, rows in parts:
            for first in range(0, len(rows), _CHUNK):
                some = rows[first : first + _CHUNK]
                values[some[some >= 0]] = part.values[first : first + _CHUNK][some >= 0]
        return cls.of(values)

    def save(self, folder: Path) -> None:
        np.save(folder / _FILE, self.values)
        if self.sieve is not None:
            self.sieve.save(folder)

    @classmethod
    def load(cls, folder: Path, n: int, dimension: int, longest: float, sieved: bool) -> Self:
        """Map what :meth:`save` wrote, codes where there are any. Raises IndexDamagedError."""
        values = load_array(folder / _FILE, np.float32, (n, dimension))
        sieve = Sieve.load(folder, n, dimension) if sieved else None
        return cls(values, longest, sieve, str(folder / _FILE))

    @cached_property
    def _resident(self) -> NDArray[np.float32]:
        """The vectors in memory of their own, copied when large batches first ask for them.

        Multiplying matrices goes over them again and again, and the small pages of a mapped file make that 5% slower.
        """
        return np.array(self.values)

    @property
    def _quickest(self) -> NDArray[np.float32]:
        """The vectors where they are read quickest: in memory, once they have been copied there."""
        return self._resident if "_resident" in self.__dict__ else self.values

    @property
    def _codes(self) -> tuple[NDArray[Any] | None, ...]:
        return (None, None, None) if self.sieve is None else self.sieve.parts()

    def check_queries(self, queries: Vectors) -> NDArray[np.float32]:
        """The queries, contiguous; VectorError for those that no search could answer."""
        dimension = self.values.shape[1]
        if isinstance(queries, np.ndarray) and queries.shape == (1, dimension) and queries.dtype == np.float32:
            alone: NDArray[np.float32] = np.ascontiguousarray(queries)
            # Neither NaN nor infinity gets through, nor anything so long that its square is beyond float32.
            if float(np.vdot(alone, alone)) * self.longest < _LONGEST_SCORE > self.longest:
                return alone
        values = _dense(queries)
        if values.shape[1] != dimension:
            raise VectorError(
                f"the queries have {values.shape[1]} dimensions, and the index holds {dimension}: "
                "search with the encoder that the index was built with"
            )
        most = float(_lengths(values).max(initial=0))
        if not most * self.longest < _LONGEST_SCORE:
            raise VectorError(
                f"a query of length {most:.3g} and vectors of up to {self.longest:.3g} have inner products "
                "that float32 cannot hold: normalise the vectors"
            )
        return values

    def scan(self, queries: Vectors, k: int, mask: Bitmap | None = None) -> Found:
        """The best ``k`` of all rows, or of those in ``mask``, for queries float32 ``[queries, dim]``."""
        values = self.check_queries(queries)
        permitted = len(self.values) if mask is None else bitmaps.cardinality(mask)
        if permitted == len(self.values):
            mask = None
        k = min(k, permitted)
        if not k:
            return nothing(len(values))
        mask = None if mask is None else np.ascontiguousarray(mask)
        if len(values) < _MULTIPLIED:
            return self._compare(values, k, mask)
        found = Found([], [])
        if self.sieve is not None and kernels.compiled():
            for some in shared(
                lambda piece: self._compare(values[piece], k, mask), pieces(len(values), _COMPARED, _SHARE, each=1)
            ):
                found.rows.extend(some.rows)
                found.scores.extend(some.scores)
            return found
        step = max(1, min(_MOST_QUERIES, _PAIRS // fetched(k, permitted)))
        for first in range(0, len(values), step):
            best_of_some = self._scan(values[first : first + step], k, permitted, mask)
            found.rows.extend(best_of_some.rows)
            found.scores.extend(best_of_some.scores)
        return found

    def _compare(self, queries: NDArray[np.float32], k: int, mask: Bitmap | None) -> Found:
        """:meth:`scan`, row by row."""
        best = _room(len(queries), k)
        dimension, values = self.values.shape[1], self._quickest
        self._expect(kernels.dense_scan(dimension, values, self.longest, *self._codes, queries, mask, *best))
        return _found(*best)

    def best(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Found:
        """The best ``k`` of the rows proposed for each query, int64 ``[queries, proposed]``, of which -1 stands for none."""
        best = _room(len(queries), k)
        self._expect(kernels.dense_best(self.values.shape[1], self._quickest, *self._codes, queries, rows, *best))
        return _found(*best)

    def _scores(
        self, queries: NDArray[np.float32], numbers: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """The score of each pair, computed for itself alone."""
        scores = np.empty(len(rows), np.float32)
        numbers, rows = np.ascontiguousarray(numbers), np.ascontiguousarray(rows)
        self._expect(kernels.dense_scores(self.values.shape[1], self._quickest, queries, numbers, rows, scores))
        return scores

    def _expect(self, outcome: int) -> None:
        if outcome == NO_ROW:
            raise self._damaged("fewer vectors than its index names")
        if outcome == NO_SCORE:
            raise self._damaged("NaN, infinity or a number that was not written there")

    def _scan(self, queries: NDArray[np.float32], k: int, permitted: int, mask: Bitmap | None) -> Found:
        fetch = fetched(k, permitted)
        scores, rows = self._nearest(queries, fetch, permitted, mask)
        if rows.min(initial=0) < 0 or not np.isfinite(scores).all():
            raise self._damaged("NaN")
        dimension = self.values.shape[1]
        error = (dimension + 8) * UNIT * _lengths(queries) * self.longest + dimension * 2.0**-126

        def score(numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return self._scores(queries, numbers, rows)

        found, bounds, open_ = settle(scores, rows, error, k, permitted, score)
        for first in range(0, len(open_), _SIFTED):
            some = open_[first : first + _SIFTED]
            place(found, some.tolist(), self._sift(queries[some], bounds[some], k, mask))
        return found

    def _nearest(
        self, queries: NDArray[np.float32], fetch: int, permitted: int, mask: Bitmap | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The ``fetch`` best rows by fast score, best first; -1 for what could not be compared."""
        if len(queries) >= _MANY and self.values.nbytes <= _MOST_RESIDENT:
            _ = self._resident
        if mask is not None and 2 * permitted < len(self.values):
            return highest(self._fast_scores(queries, mask), len(self.values), len(queries), fetch, None)
        return highest(self._fast_scores(queries, None), len(self.values), len(queries), fetch, mask)

    def _sift(self, queries: NDArray[np.float32], bounds: NDArray[np.float64], k: int, mask: Bitmap | None) -> Found:
        return sift(
            self._fast_scores(queries, mask), bounds, k, lambda numbers, rows: self._scores(queries, numbers, rows)
        )

    def _fast_scores(self, queries: NDArray[np.float32], mask: Bitmap | None) -> Iterator[Scored]:
        """Scores in float32 of all rows, or of those in ``mask``, some at a time; the next ones overwrite the last."""
        values, n = self._quickest, len(self.values)
        kept = np.arange(n, dtype=np.int64) if mask is None else bitmaps.rows(mask, n)
        step = max(1, min(_TOGETHER, _CELLS // len(queries), len(kept)))
        products = np.empty((step, len(queries)), np.float32)
        for first in range(0, len(kept), step):
            rows = kept[first : first + step]
            whole = int(rows[-1] - rows[0]) + 1 == len(rows)
            block = values[rows[0] : rows[-1] + 1] if whole else values[rows]
            with np.errstate(over="ignore", invalid="ignore"):
                yield rows, np.matmul(block, queries.T, out=products[: len(rows)]).T

    def _damaged(self, what: str) -> IndexDamagedError:
        return IndexDamagedError(f"{self.place} holds {what}: restore it from a backup, or build the index again")


def settle(
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    error: NDArray[np.float64],
    k: int,
    permitted: int,
    score: Score,
    floor: NDArray[np.float32] | None = None,
) -> tuple[Found, NDArray[np.float64], NDArray[np.int64]]:
    """The best ``k`` of candidates (``[queries, fetched]``, best first) whose scores are off by at most ``error``.

    Rows below ``floor`` (one a query) may be left out.
    Also returned are a bound for each query, below which no row can be among its best, and the queries for which rows
    that were not fetched reach it: what was found for those has to come from :func:`sift`.
    """
    # Each of the first k scores at least its fast score less the error; so nothing below that by one more error does.
    bounds = scores[:, k - 1] - 2 * error
    if floor is not None:
        bounds = np.maximum(bounds, np.nextafter(floor, np.float32(-np.inf)) - error)
    near = scores >= bounds[:, None]
    numbers, near_rows = np.nonzero(near)[0], rows[near]
    found = ranked(len(scores), numbers, near_rows, score(numbers, near_rows), k)
    open_ = np.flatnonzero(near[:, -1]) if scores.shape[1] < permitted else np.empty(0, np.int64)
    return found, bounds, open_


def highest(
    blocks: Iterable[Scored], n: int, queries: int, fetch: int, mask: Bitmap | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The ``fetch`` permitted rows of ``n`` with the highest fast scores for each of ``queries`` queries, best first.

    Rows come in ascending order. Where there are fewer, -1 follows; NaN is passed over.
    """
    scores, rows = np.full((queries, fetch), -np.inf, np.float32), np.full((queries, fetch), -1, np.int64)
    counts = np.zeros(queries, np.int64)
    for some, fast in blocks:
        kernels.dense_offer(n, fast.T, some, mask, scores, rows, counts)
    return merge_candidates(scores, rows, scores[:, :0], rows[:, :0], fetch)


def sift(blocks: Iterable[Scored], bounds: NDArray[np.float64], k: int, score: Score) -> Found:
    """The best ``k`` among all rows with a fast score of ``bounds`` (one a query) or more, however many they are."""
    queries = len(bounds)
    numbers, rows, scores = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    found = nothing(queries)
    for block_rows, fast in blocks:
        more_numbers, at = np.nonzero(fast >= bounds[:, None])
        if not len(at):
            continue
        more_rows = block_rows[at]
        more_scores = score(more_numbers, more_rows)
        numbers, rows = np.concatenate([numbers, more_numbers]), np.concatenate([rows, more_rows])
        found = ranked(queries, numbers, rows, np.concatenate([scores, more_scores]), k)
        numbers = np.repeat(np.arange(queries), [len(some) for some in found.rows])
        rows, scores = np.concatenate(found.rows), np.concatenate(found.scores)
    return found


def place(found: Found, numbers: Iterable[int], others: Found) -> None:
    """Put what was found for the queries ``numbers`` in the place of what is there."""
    for at, number in enumerate(numbers):
        found.rows[number], found.scores[number] = others.rows[at], others.scores[at]


def nothing(queries: int) -> Found:
    """No hits for any of ``queries`` queries."""
    rows, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    return Found([rows] * queries, [scores] * queries)


def _dense(vectors: Vectors) -> NDArray[np.float32]:
    if not isinstance(vectors, np.ndarray):
        raise VectorError(f"dense vectors must be a float32 array [n, dim]; got {type(vectors).__name__}")
    check(vectors, "dense", vectors.shape[0] if vectors.ndim else 0)
    return np.ascontiguousarray(vectors)


def _lengths(values: NDArray[np.float32]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.sqrt(np.multiply(values, values, dtype=np.float64).sum(axis=1))
    return lengths


def _room(queries: int, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Where the kernels write what they find: rows and scores, ``[queries, k]``, and how many, ``[queries]``."""
    return np.empty((queries, k), np.int64), np.empty((queries, k), np.float32), np.empty(queries, np.int64)


def _found(rows: NDArray[np.int64], scores: NDArray[np.float32], counts: NDArray[np.int64]) -> Found:
    if len(counts) == 1:
        count = int(counts[0])
        return Found([rows[0, :count]], [scores[0, :count]])
    ends = counts.tolist()
    return Found(
        [some[:end] for some, end in zip(rows, ends, strict=True)],
        [some[:end] for some, end in zip(scores, ends, strict=True)],
    )


def _blocks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(values), _CHUNK // 8):
        yield values[first : first + _CHUNK // 8]
