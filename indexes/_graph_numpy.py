"""The numpy twin of ``_graph.c``."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes._dense_numpy import NO_ROW, SOUND
from retrievers.indexes._sieve_numpy import code_scores, shorts_of

_WIDEST, _HIGHEST = 1 << 20, 64


_Score = Callable[[NDArray[np.int32]], list[float]]


class _NoRowError(Exception):
    pass


def graph_search(
    dimension: int,
    codes: NDArray[np.int8],
    bounds: NDArray[np.float32],
    spread: NDArray[np.float32],
    links: NDArray[np.int32],
    starts: NDArray[np.int32],
    upper: NDArray[np.int32],
    upper_width: int,
    entry: int,
    levels: int,
    queries: NDArray[np.float32],
    mask: NDArray[np.uint8] | None,
    effort: int,
    rows: NDArray[np.int64],
) -> int:
    """The best nodes that a walk over a graph (HNSW) meets, by their codes, best first, equal ones by ascending row.

    ``codes``, ``bounds`` and ``spread`` are those of a :class:`retrievers.indexes.sieve.Sieve` of ``n`` rows. ``links`` is
    ``[n, any]``, -1 after the last of a node; ``starts`` is ``[n]``, the first row of each node in ``upper``
    (``[any, upper_width]``), where its links of each of the ``levels`` above the bottom lie, or -1. A walk starts at
    ``entry`` and keeps the ``effort`` best. Of those the best that are in the bitmap ``mask`` (None for all) are written into
    ``rows``, ``[queries, any]``; -1 where there are fewer.

    Raises ValueError where sizes do not fit together or a number is out of bounds.
    """
    n = len(starts)
    fits = n >= 1 and dimension >= 1 and [codes.size, bounds.size, spread.size] == [n * dimension, 2 * n, 2 * dimension]
    fits = fits and links.size % n == 0 and links.size // n <= _WIDEST and 1 <= upper_width <= _WIDEST
    fits = fits and upper.size % upper_width == 0 and queries.size % dimension == 0
    fits = fits and 1 <= effort < 1 << 31 and 0 <= entry < n and 0 <= levels <= _HIGHEST
    count = queries.size // dimension if fits else 0
    if not fits or (rows.size % count if count else rows.size) or (mask is not None and len(mask) != -(-n // 8)):
        raise ValueError("the sizes of the buffers do not fit together, or a number is out of bounds")
    codes, steps = codes.reshape(n, dimension), bounds.reshape(2, n)[0]
    links, upper = links.reshape(n, links.size // n), upper.reshape(upper.size // upper_width, upper_width)
    written = rows.reshape(count, rows.size // max(1, count))
    for number, query in enumerate(queries.reshape(count, dimension)):
        scaled = query.astype(np.float64) * spread.reshape(2, dimension)[1]
        unit, shorts = shorts_of(scaled)

        score = partial(_listed, codes, steps, unit, shorts)
        try:
            first = _descend(n, starts, upper, entry, levels, score)
            found = _walk(n, links, first, effort, score)
        except _NoRowError:
            return NO_ROW
        best = np.array(found, np.int64)
        if mask is not None:
            best = best[(mask[best >> 3] >> (best & 7) & 1).astype(np.bool_)]
        best = best[: written.shape[1]]
        written[number] = -1
        written[number, : len(best)] = best
    return SOUND


def _listed(*arguments: Any) -> list[float]:
    scores: list[float] = code_scores(*arguments).tolist()
    return scores


def _linked(links: NDArray[np.int32], n: int) -> NDArray[np.int32]:
    """The nodes before the first -1."""
    ends = np.flatnonzero(links < 0)
    to = links[: ends[0]] if len(ends) else links
    if to.max(initial=0) >= n:
        raise _NoRowError
    return to


def _descend(
    n: int, starts: NDArray[np.int32], upper: NDArray[np.int32], entry: int, levels: int, score: _Score
) -> tuple[float, int]:
    """The best node that is reached from level to level, above the bottom, and its score."""
    row = entry
    best = score(np.array([row], np.int32))[0]
    for level in range(levels, 0, -1):
        moved = True
        while moved:
            moved = False
            at = int(starts[row]) + level - 1
            if starts[row] < 0 or at >= len(upper):
                raise _NoRowError
            to = _linked(upper[at], n)
            for other, value in zip(to.tolist(), score(to), strict=True):
                if value > best:
                    row, best, moved = other, value, True
    return best, row


def _walk(n: int, links: NDArray[np.int32], first: tuple[float, int], effort: int, score: _Score) -> list[int]:
    """The best ``effort`` nodes, best first."""
    found, followed, seen = [(-first[0], first[1])], set[int](), np.zeros(n, np.bool_)
    seen[first[1]] = True
    at = 0
    while at < len(found):
        row = found[at][1]
        followed.add(row)
        to = _linked(links[row], n)
        to = to[np.sort(np.unique(to, return_index=True)[1])]
        to = to[~seen[to]]
        seen[to] = True
        for other, value in zip(to.tolist(), score(to), strict=True):
            place = bisect_left(found, (-value, other))
            if place < effort:
                found.insert(place, (-value, other))
                del found[effort:]
                at = min(at, place)
        while at < len(found) and found[at][1] in followed:
            at += 1
    return [row for _, row in found]
