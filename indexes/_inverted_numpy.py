"""The numpy twin of ``_inverted.c``: the same float32 operations in the same order, so the same rows and scores."""

from __future__ import annotations

import heapq
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes.impacts import decode16

RANGE = 1 << 16
"""How many rows a range has: what the 16 bits of an id can name."""

SLICE = 8
"""How many rows are read or given up together."""


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
    _check_sizes(n, k, ids, payload, block_start, block_range, norms, mask, rows, scores, counts)
    for query in range(len(counts)):
        mine = slice(int(offsets[query]), int(offsets[query + 1]))
        by_range: dict[int, list[tuple[int, int, np.float32]]] = {}
        for spans, weight in zip(
            _spans(n, ids, term_blocks, block_start, block_range, slots[mine]), weights[mine], strict=True
        ):
            for number, start, stop in spans:
                by_range.setdefault(number, []).append((start, stop, weight))
        best_rows, best_scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for number in sorted(by_range):
            base = number * RANGE
            accumulator = np.zeros(RANGE, np.float32)
            for start, stop, weight in by_range[number]:
                at = ids[start:stop].astype(np.int64)
                near = None if norms is None else norms[np.minimum(base + at, n - 1)]
                accumulator[at] += contributions(kind, payload[start:stop], weight, near)
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


def _in_steps(highest: NDArray[np.float32], kind: int, unit: float) -> NDArray[np.float32]:
    """The most that a term adds in each slice, rounded up to so many 255ths of ``unit``, the most it may add at all."""
    # A little more, so that 255 steps, whatever is rounded, are no less than the unit.
    step = np.float32(1) if kind == 1 else np.float32(unit) / np.float32(255) * np.float32(1.000001)
    codes = np.trunc(np.minimum(highest / step, np.float32(255)))
    codes += codes * step < highest
    return np.asarray(step * np.minimum(np.maximum(codes, highest > 0), np.float32(255)))


def _check_sizes(
    n: int,
    k: int,
    ids: NDArray[np.uint16],
    payload: NDArray[Any],
    block_start: NDArray[np.int64],
    block_range: NDArray[np.uint32],
    norms: NDArray[np.float32] | None,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    fit = len(block_start) == len(block_range) + 1 and len(payload) == len(ids) and (norms is None or len(norms) == n)
    fit = (
        fit and (mask is None or len(mask) == -(-n // 8)) and len(rows) == len(scores) and len(rows) >= k * len(counts)
    )
    if not fit:
        raise ValueError("the sizes of the buffers do not fit together")


def _spans(
    n: int,
    ids: NDArray[np.uint16],
    term_blocks: NDArray[np.int64],
    block_start: NDArray[np.int64],
    block_range: NDArray[np.uint32],
    slots: NDArray[np.int64],
) -> list[list[tuple[int, int, int]]]:
    """For each of the terms at ``slots`` its blocks: range, first posting and end."""
    found = []
    for slot in slots.tolist():
        if not 0 <= slot < len(term_blocks) - 1:
            raise ValueError("a slot, block or range of the postings is out of bounds")
        first, last = int(term_blocks[slot]), int(term_blocks[slot + 1])
        if not 0 <= first <= last <= len(block_range):
            raise ValueError("a slot, block or range of the postings is out of bounds")
        spans = [
            (int(block_range[block]), int(block_start[block]), int(block_start[block + 1]))
            for block in range(first, last)
        ]
        if not all(0 <= start <= stop <= len(ids) and number * RANGE < n for number, start, stop in spans):
            raise ValueError("a slot, block or range of the postings is out of bounds")
        found.append(spans)
    return found


def inverted_slices(n: int, terms: int, postings: int) -> Any:
    """Room for what the compiled :func:`inverted_within` keeps of so many terms; this one keeps nothing."""
    return None


def inverted_within(
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
    least: float,
    give_up: float,
    seconds: float,
    prepared: Any = None,
) -> tuple[int, int, int, int, int, float]:
    """The best ``k`` permitted rows of one query among those that are read: slices of 8 rows, by descending bound.

    A slice's bound is the float32 sum, by ascending terms, of the most that each adds to one of its rows, which is rounded
    up to one of 255 steps. Reading ends where the highest bound that is left, less
    its share ``give_up`` (0 to below 1), is below the ``k``-th best score or below ``least``; or after so many seconds,
    but not before the first slice. The other arguments are those of :func:`inverted_search`, ``prepared`` what
    :func:`inverted_slices` gave for these postings and norms.

    Returns how many slices hold a term of the query and a permitted row, and how many of them were read; how many
    permitted rows those and these hold; how many postings were read; and the highest bound of a slice that was not, or 0.
    Raises ValueError where sizes do not fit together or a slot, block or range is out of bounds.
    """
    start = time.monotonic()
    if len(counts) != 1 or not 0 <= give_up < 1:
        raise ValueError("one query is searched, with what was made for these sizes, giving up less than all")
    _check_sizes(n, k, ids, payload, block_start, block_range, norms, mask, rows, scores, counts)
    bounds = np.zeros(-(-n // SLICE), np.float32)
    postings = np.zeros(len(bounds), np.int64)
    exact = np.zeros(len(bounds) * SLICE, np.float32)
    mine = slice(int(offsets[0]), int(offsets[1]))
    found = _spans(n, ids, term_blocks, block_start, block_range, slots[mine])
    for slot, spans, weight in zip(slots[mine].tolist(), found, weights[mine], strict=True):
        at = np.concatenate([np.arange(start, stop) for _, start, stop in spans])
        held = np.concatenate([number * RANGE + ids[start:stop].astype(np.int64) for number, start, stop in spans])
        near = None if norms is None else norms[np.minimum(held, n - 1)]
        highest = np.zeros(len(bounds), np.float32)
        np.maximum.at(highest, held // SLICE, contributions(kind, payload[at], np.float32(1), near))
        unit = 1.0
        if kind == 0 and block_max is not None:
            unit = float(decode16(block_max[term_blocks[slot] : term_blocks[slot + 1]]).max())
        bounds += weight * _in_steps(highest, kind, unit)
        exact[held] += contributions(kind, payload[at], weight, near)
        postings += np.bincount(held // SLICE, minlength=len(bounds))
    if mask is not None:
        bounds[mask == 0] = 0
        exact[~np.unpackbits(mask, count=len(exact), bitorder="little").view(np.bool_)] = 0
    permitted = np.full(len(bounds), SLICE) if mask is None else np.bitwise_count(mask).astype(np.int64)
    if mask is None and n % SLICE:
        permitted[-1] = n % SLICE
    matching = np.flatnonzero(bounds > 0)
    order = matching[np.lexsort((matching, -bounds[matching]))]
    best: list[tuple[float, int]] = []  # a heap of scores and negative rows, the worst first
    read = 0
    for number in order.tolist():
        kth = best[0][0] if len(best) == k else 0.0
        if float(bounds[number]) * (1.0 - give_up) < max(kth, float(np.float32(least))):
            break
        for row, score in enumerate(exact[number * SLICE : number * SLICE + SLICE].tolist(), number * SLICE):
            if score > 0 and len(best) < k:
                heapq.heappush(best, (score, -row))
            elif score > 0:
                heapq.heappushpop(best, (score, -row))
        read += 1
        if time.monotonic() - start >= seconds:
            break
    best.sort(reverse=True)
    counts[0] = len(best)
    rows[: len(best)], scores[: len(best)] = [-row for _, row in best], [score for score, _ in best]
    done = order[:read]
    return (
        len(order), read, int(permitted[order].sum()), int(permitted[done].sum()), int(postings[done].sum()),
        float(bounds[order[read]]) if read < len(order) else 0.0,
    )  # fmt: skip


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
