"""The numpy twin of ``_inverted.c``: the same float32 operations in the same order, so the same rows and scores."""

from __future__ import annotations

import heapq
import time
from typing import Any, NamedTuple

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


class Prepared(NamedTuple):
    """Postings that are searched again and again."""

    kind: int
    n: int
    ids: NDArray[np.uint16]
    payload: NDArray[Any]
    term_blocks: NDArray[np.int64]
    block_start: NDArray[np.int64]
    block_range: NDArray[np.uint32]
    terms: NDArray[np.int64]
    scales: NDArray[np.float32] | None
    block_max: NDArray[Any] | None
    norms: NDArray[np.float32] | None


def inverted_prepare(
    kind: int,
    n: int,
    ids: NDArray[np.uint16],
    payload: NDArray[Any],
    term_blocks: NDArray[np.int64],
    block_start: NDArray[np.int64],
    block_range: NDArray[np.uint32],
    terms: NDArray[np.int64],
    scales: NDArray[np.float32] | None,
    block_max: NDArray[Any] | None,
    norms: NDArray[np.float32] | None,
    coarse: bool = True,
) -> Any:
    """What searches want of these postings, checked and held; also room for what they keep of them, unless ``coarse`` is false.

    The postings are described in :mod:`retrievers.indexes.postings`; ``kind`` is a
    :class:`retrievers.indexes.kernels.Payload`. ``norms`` (float32 ``[n]``) belongs to frequencies, ``block_max`` (the
    highest code of each block) to impacts. ``scales``, float32 as many as terms or None, multiply the weights of queries.
    Raises ValueError where sizes do not fit together.
    """
    fit = len(block_start) == len(block_range) + 1 and len(payload) == len(ids) and len(terms) == len(term_blocks) - 1
    if not fit or (norms is not None and len(norms) != n) or (scales is not None and len(scales) != len(terms)):
        raise ValueError("the sizes of the buffers do not fit together")
    return Prepared(kind, n, ids, payload, term_blocks, block_start, block_range, terms, scales, block_max, norms)


def inverted_search(
    prepared: Prepared,
    k: int,
    mask: NDArray[np.uint8] | None,
    columns: NDArray[np.int64],
    weights: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> bool:
    """The best ``k`` permitted rows of each query, equal scores by ascending row; only scores above 0 are found.

    ``prepared`` is what :func:`inverted_prepare` gave, ``mask`` a bitmap of permitted rows or None for all. Query ``i`` has
    the terms ``columns[offsets[i] : offsets[i + 1]]``, ascending, with ``weights``; those that the index does not hold, and
    those that do not weigh more than 0, count for nothing. Its rows and scores are written at ``i * k`` of ``rows`` and
    ``scores``, their number to ``counts[i]``.

    Returns whether the columns of every query ascend; where not, the answers mean nothing. Raises ValueError where sizes do
    not fit together or a block or range is out of bounds.
    """
    _, n, ids, payload, _, _, _, _, _, _, norms = prepared
    _check_sizes(prepared, k, mask, rows, scores, counts)
    for query in range(len(counts)):
        mine = slice(int(offsets[query]), int(offsets[query + 1]))
        found = _look_up(prepared, columns[mine], weights[mine])
        if found is None:
            return False
        by_range: dict[int, list[tuple[int, int, np.float32]]] = {}
        for spans, weight in zip(_spans(prepared, found[0]), found[1], strict=True):
            for number, start, stop in spans:
                by_range.setdefault(number, []).append((start, stop, weight))
        best_rows, best_scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for number in sorted(by_range):
            base = number * RANGE
            accumulator = np.zeros(RANGE, np.float32)
            for start, stop, weight in by_range[number]:
                at = ids[start:stop].astype(np.int64)
                near = None if norms is None else norms[np.minimum(base + at, n - 1)]
                accumulator[at] += contributions(prepared.kind, payload[start:stop], weight, near)
            held = np.flatnonzero(accumulator[: n - base] > 0)
            if mask is not None:
                held = held[(mask[(base + held) >> 3] >> (held & 7) & 1).astype(np.bool_)]
            best_rows = np.concatenate([best_rows, base + held])
            best_scores = np.concatenate([best_scores, accumulator[held]])
            if len(best_scores) > k:
                order = np.lexsort((best_rows, -best_scores))[:k]
                best_rows, best_scores = best_rows[order], best_scores[order]
        order = np.lexsort((best_rows, -best_scores))
        counts[query] = len(order)
        rows[query * k : query * k + len(order)] = best_rows[order]
        scores[query * k : query * k + len(order)] = best_scores[order]
    return True


def _look_up(
    prepared: Prepared, columns: NDArray[np.int64], weights: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """The places of those of a query's terms that count, and their weights; None where its columns do not ascend."""
    if np.any(columns[1:] <= columns[:-1]):
        return None
    terms = prepared.terms
    places = np.searchsorted(terms, columns)
    if not len(terms):
        return places[:0], weights[:0]
    counting = (terms[np.minimum(places, len(terms) - 1)] == columns) & (weights > 0)
    places, weights = places[counting], weights[counting]
    return places, weights if prepared.scales is None else weights * prepared.scales[places]


def _in_steps(highest: NDArray[np.float32], kind: int, unit: float) -> NDArray[np.float32]:
    """The most that a term adds in each slice, rounded up to so many 255ths of ``unit``, the most it may add at all."""
    # A little more, so that 255 steps, whatever is rounded, are no less than the unit.
    step = np.float32(1) if kind == 1 else np.float32(unit) / np.float32(255) * np.float32(1.000001)
    codes = np.trunc(np.minimum(highest / step, np.float32(255)))
    codes += codes * step < highest
    return np.asarray(step * np.minimum(np.maximum(codes, highest > 0), np.float32(255)))


def _check_sizes(
    prepared: Prepared,
    k: int,
    mask: NDArray[np.uint8] | None,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
) -> None:
    fit = mask is None or len(mask) == -(-prepared.n // 8)
    if not fit or len(rows) != len(scores) or len(rows) < k * len(counts):
        raise ValueError("the sizes of the buffers do not fit together")


def _spans(prepared: Prepared, slots: NDArray[np.int64]) -> list[list[tuple[int, int, int]]]:
    """For each of the terms at ``slots`` its blocks: range, first posting and end."""
    _, n, ids, _, term_blocks, block_start, block_range, *_ = prepared
    found = []
    for slot in slots.tolist():
        first, last = int(term_blocks[slot]), int(term_blocks[slot + 1])
        if not 0 <= first <= last <= len(block_range):
            raise ValueError("a block or range of the postings is out of bounds")
        spans = [
            (int(block_range[block]), int(block_start[block]), int(block_start[block + 1]))
            for block in range(first, last)
        ]
        if not all(0 <= start <= stop <= len(ids) and number * RANGE < n for number, start, stop in spans):
            raise ValueError("a block or range of the postings is out of bounds")
        found.append(spans)
    return found


def inverted_slices(n: int, terms: int, postings: int) -> Any:
    """Room for what the compiled :func:`inverted_within` keeps of so many terms; this one keeps nothing."""
    return None


def inverted_within(
    prepared: Prepared,
    k: int,
    mask: NDArray[np.uint8] | None,
    columns: NDArray[np.int64],
    weights: NDArray[np.float32],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    counts: NDArray[np.int64],
    least: float,
    give_up: float,
    seconds: float,
    sliced: Any = None,
) -> tuple[int, int, int, int, int, int, float]:
    """The best ``k`` permitted rows of one query among those that are read: slices of 8 rows, by descending bound.

    A slice's bound is the float32 sum, by ascending terms, of the most that each adds to one of its rows, which is rounded
    up to one of 255 steps. Reading ends where the highest bound that is left, less
    its share ``give_up`` (0 to below 1), is below the ``k``-th best score or below ``least``; or after so many seconds,
    but not before the first slice. The other arguments are those of :func:`inverted_search`, ``sliced`` what
    :func:`inverted_slices` gave for these postings and norms.

    Returns how many slices hold a term of the query and a permitted row, and how many of them were read; how many
    permitted rows those and these hold; how many postings the query's terms have, and how many were read; and the highest
    bound of a slice that was not, or 0. Raises ValueError where sizes do not fit together, the columns do not ascend, or a
    block or range is out of bounds.
    """
    start = time.monotonic()
    if len(counts) != 1 or not 0 <= give_up < 1:
        raise ValueError("one query is searched, with what was made for these sizes, giving up less than all")
    kind, n, ids, payload, term_blocks, _, _, _, _, block_max, norms = prepared
    _check_sizes(prepared, k, mask, rows, scores, counts)
    mine = slice(int(offsets[0]), int(offsets[1]))
    looked_up = _look_up(prepared, columns[mine], weights[mine])
    if looked_up is None:
        raise ValueError("the columns of the query do not ascend")
    bounds = np.zeros(-(-n // SLICE), np.float32)
    postings = np.zeros(len(bounds), np.int64)
    exact = np.zeros(len(bounds) * SLICE, np.float32)
    reached = 0
    for slot, spans, weight in zip(looked_up[0].tolist(), _spans(prepared, looked_up[0]), looked_up[1], strict=True):
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
        reached += len(held)
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
        len(order), read, int(permitted[order].sum()), int(permitted[done].sum()), reached, int(postings[done].sum()),
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
