"""The numpy twin of ``_inverted.c``: the same float32 operations in the same order, so the same rows and scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes.impacts import decode16

RANGE = 1 << 16
"""How many rows a range has: what the 16 bits of an id can name."""


def contributions(
    kind: int, payload: NDArray[Any], weight: Any, norms: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """What postings add to their rows, float32.

    ``weight`` is float32, one for all or one each; ``norms``, those of the postings' rows, is for frequencies alone.
    """
    if kind == 0:
        return np.asarray(weight * decode16(payload))
    values = payload.astype(np.float32)
    if kind == 1:
        return np.asarray(weight * values)
    if norms is None:
        raise ValueError("frequencies need the norms of their rows")
    return np.asarray(weight * (values / (values + norms)))


def inverted_search(
    kind: int,
    n: int,
    k: int,
    ids: NDArray[np.uint16],
    payload: NDArray[Any],
    term_blocks: NDArray[np.int64],
    block_start: NDArray[np.int64],
    block_range: NDArray[np.uint32],
    block_max: NDArray[Any] | None,
    norms: NDArray[np.float32] | None,
    mask: NDArray[np.uint8] | None,
    slots: NDArray[np.int64],
    weights: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
    prepared: Any = None,
) -> None:
    """The best ``k`` permitted rows of each query, equal scores by ascending row; only scores above 0 are found.

    The postings are described in :mod:`retrievers.indexes.postings`; ``kind`` is a
    :class:`retrievers.indexes.kernels.Payload`. ``norms`` (float32 ``[n]``) belongs to frequencies, ``block_max`` (the
    highest code of each block) to impacts, ``mask`` is a bitmap of permitted rows or None for all. Query ``i`` has the
    terms ``slots[offsets[i] : offsets[i + 1]]`` (positions among the terms, ascending) with ``weights`` above 0. Its
    rows and scores are written at ``i * k`` of ``rows`` and ``scores``, their number to ``counts[i]``. ``prepared`` is what
    :func:`inverted_prepare` gave for these postings and norms, or None; it changes no answer.

    Raises ValueError where sizes do not fit together or a slot, block or range is out of bounds.
    """
    terms, blocks = len(term_blocks) - 1, len(block_range)
    if len(block_start) != blocks + 1 or len(payload) != len(ids) or (norms is not None and len(norms) != n):
        raise ValueError("the sizes of the buffers do not fit together")
    if (mask is not None and len(mask) != -(-n // 8)) or len(rows) < k * len(counts) or len(rows) != len(scores):
        raise ValueError("the sizes of the buffers do not fit together")
    for query in range(len(counts)):
        mine = slots[offsets[query] : offsets[query + 1]]
        if len(mine) and (mine.min() < 0 or mine.max() >= terms):
            raise ValueError("a slot, block or range of the postings is out of bounds")
        by_range: dict[int, list[tuple[int, int, np.float32]]] = {}
        for slot, weight in zip(mine.tolist(), weights[offsets[query] : offsets[query + 1]], strict=True):
            first, last = int(term_blocks[slot]), int(term_blocks[slot + 1])
            if not 0 <= first <= last <= blocks:
                raise ValueError("a slot, block or range of the postings is out of bounds")
            for block in range(first, last):
                start, stop = int(block_start[block]), int(block_start[block + 1])
                if not 0 <= start <= stop <= len(ids) or int(block_range[block]) * RANGE >= n:
                    raise ValueError("a slot, block or range of the postings is out of bounds")
                by_range.setdefault(int(block_range[block]), []).append((start, stop, weight))
        best_rows, best_scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for number in sorted(by_range):
            base = number * RANGE
            accumulator = np.zeros(RANGE, np.float32)
            for start, stop, weight in by_range[number]:
                at = ids[start:stop].astype(np.int64)
                mine_norms = None if norms is None else norms[np.minimum(base + at, n - 1)]
                accumulator[at] += contributions(kind, payload[start:stop], weight, mine_norms)
            found = np.flatnonzero(accumulator[: n - base] > 0)
            if mask is not None:
                found = found[(mask[(base + found) >> 3] >> (found & 7) & 1).astype(np.bool_)]
            best_rows = np.concatenate([best_rows, base + found])
            best_scores = np.concatenate([best_scores, accumulator[found]])
            if len(best_scores) > k:
                order = np.lexsort((best_rows, -best_scores))[:k]
                best_rows, best_scores = best_rows[order], best_scores[order]
        order = np.lexsort((best_rows, -best_scores))
        counts[query] = len(order)
        rows[query * k : query * k + len(order)] = best_rows[order]
        scores[query * k : query * k + len(order)] = best_scores[order]


def inverted_prepare(
    n: int, ids: NDArray[np.uint16], term_blocks: NDArray[np.int64], block_start: NDArray[np.int64]
) -> Any:
    """Room for what the compiled search keeps of postings; this one keeps nothing."""
    return None


def inverted_count(
    n: int,
    ids: NDArray[np.uint16],
    block_start: NDArray[np.int64],
    block_range: NDArray[np.uint32],
    mask: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> None:
    """Write to ``counts`` (``[blocks]``) how many postings of each block are of rows in the bitmap ``mask``.

    Raises ValueError where sizes do not fit together or a block is out of bounds.
    """
    lengths = np.diff(block_start)
    if len(lengths) != len(block_range) or len(counts) != len(block_range) or len(mask) != -(-n // 8):
        raise ValueError("the sizes of the buffers do not fit together")
    if len(lengths) and (lengths.min() < 0 or block_start[0] < 0 or block_start[-1] > len(ids)):
        raise ValueError("a block of the postings is out of bounds")
    padded = np.zeros((-(-n // RANGE)) * RANGE // 8, np.uint8)
    padded[: len(mask)] = mask
    if n % 8:
        padded[n // 8] &= (1 << n % 8) - 1
    step = 1 << 12
    for low in range(0, len(counts), step):  # some blocks at a time: a block is at most 65,536 postings
        some = slice(low, low + step)
        first, last = int(block_start[some][0]), int(block_start[min(low + step, len(counts))])
        rows = np.repeat(block_range[some].astype(np.int64) * RANGE, lengths[some]) + ids[first:last]
        hits = np.zeros(len(rows) + 1, np.int64)
        inside = rows < n
        hits[1:][inside] = padded[rows[inside] >> 3] >> (rows[inside] & 7) & 1
        totals = np.cumsum(hits)
        counts[some] = (
            totals[block_start[low + 1 : low + step + 1] - first]
            - totals[block_start[some][: len(counts[some])] - first]
        )
