"""Late interaction over compressed token vectors where no compiler was at hand: what ``_plaid.c`` computes at level 0."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 8192


def plaid_decode(
    dimension: int,
    bits: int,
    centroids: NDArray[np.uint16],
    codes: NDArray[np.uint16],
    residuals: NDArray[np.uint8],
    steps: NDArray[np.uint8],
    tables: NDArray[np.float32],
    levels: NDArray[np.float32],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """The vectors that the codes of some rows' tokens stand for, one row after the other: ``out`` ``[tokens, dimension]``.

    See :class:`retrievers.indexes.residuals.Codec` for the arrays; ``starts`` and ``sizes`` tell the tokens of each row.
    """
    spans = [np.arange(start, start + size) for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)]
    at = np.concatenate([np.empty(0, np.int64), *spans])
    shifts = bits * np.arange(8 // bits, dtype=np.uint8)
    width = residuals.shape[1] * len(shifts)  # not -1, which means nothing where there are no tokens
    numbers = (residuals[at][:, :, None] >> shifts & (2**bits - 1)).reshape(len(at), width)[:, :dimension]
    chosen = centroids[codes[at] & (len(centroids) - 1), :dimension]
    wide = (chosen.astype(np.uint32) << 16).view(np.float32)
    scaled = tables[0, steps[at, 0], None] * levels[numbers]
    out[:] = tables[1, steps[at, 1], None] * (wide + scaled)


def plaid_search(
    level: int,
    dimension: int,
    bits: int,
    centroids: NDArray[np.uint16],
    codes: NDArray[np.uint16],
    residuals: NDArray[np.uint8],
    steps: NDArray[np.uint8],
    tables: NDArray[np.float32],
    levels: NDArray[np.float32],
    query: NDArray[np.float32],
    panels: NDArray[np.uint16] | None,
    scale: float,
    lists: NDArray[np.int64],
    list_rows: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    live: NDArray[np.uint8] | None,
    probes: int,
    shortlist: int,
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    room: NDArray[np.uint8] | None,
) -> int:
    """Documents that may be among the best of one query, and what their codes score.

    - ``level`` as in :func:`retrievers.indexes.kernels.maxsim_scores`, or 0; ``query`` ``[asked, dimension]``, and for bfloat16
      the same in ``panels``, up to a multiple of 32 tokens; ``scale`` makes whole numbers up to 255 of scores.
    - The codec's arrays and codes: see :mod:`retrievers.indexes.residuals`.
    - ``list_rows`` holds for each centroid, ``lists[c]`` to ``lists[c + 1]``, the documents with a token of it.
    - ``offsets`` ``[documents + 1]`` tells the tokens of documents, ``live`` which of them are permitted.
    - ``probes`` lists of every query token are visited, ``shortlist`` documents scored by centroids, and ``len(rows)`` of
      them by codes. ``rows`` and ``scores`` are written, rows in ascending order; how many is returned.
    - ``room``: bytes that the compiled loop works in, aligned to 64; without it that returns how many it wants.
    """
    wide = (centroids[:, :dimension].astype(np.uint32) << 16).view(np.float32)
    similarities = _products(query, wide)  # [centroids, asked]
    table = np.clip(similarities * np.float32(scale) + np.float32(0.5), 0, 255).astype(np.uint8)
    documents = len(offsets) - 1
    sums = np.zeros(documents, np.int64)
    for token in range(len(query)):
        best = np.argsort(-similarities[:, token], kind="stable")[:probes]
        least = int(table[best[-1], token])
        seen = np.zeros(documents, np.bool_)
        for centroid in best.tolist():
            found = list_rows[lists[centroid] : lists[centroid + 1]].astype(np.int64)
            found = np.unique(found[found < documents])
            found = found[~seen[found]]
            seen[found] = True
            sums[found] += int(table[centroid, token]) - least + 1
    if live is not None:
        sums[np.unpackbits(live, count=documents, bitorder="little") == 0] = 0
    listed = _highest_of(sums, shortlist)
    again = np.empty(len(listed), np.int64)
    for at, row in enumerate(listed.tolist()):
        mine = table[codes[offsets[row] : offsets[row + 1]] & (len(centroids) - 1)]
        again[at] = int(mine.max(axis=0, initial=0).sum(dtype=np.int64)) + 1
    kept = listed[_highest_of(again, len(rows))]
    for at, row in enumerate(kept.tolist()):
        size = offsets[row + 1 : row + 2] - offsets[row]
        decoded = np.empty((int(size[0]), dimension), np.float32)
        plaid_decode(
            dimension, bits, centroids, codes, residuals, steps, tables, levels, offsets[row : row + 1], size, decoded
        )
        rows[at] = row
        scores[at] = np.cumsum(_products(query, decoded).max(axis=0, initial=-np.inf), dtype=np.float32)[-1]
    return len(kept)


def _products(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner products, float32 ``[vectors, query tokens]``, summed over the dimensions in their order."""
    sums: Any = np.zeros((len(vectors), len(query)), np.float32)
    for dimension in range(vectors.shape[1]):
        sums += vectors[:, dimension, None] * query[:, dimension]
    return sums  # type: ignore[no-any-return]


def _highest_of(numbers: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The places of the ``most`` highest numbers above 0, ascending; of those that equal the least, the first."""
    shift = 0
    while int(numbers.max(initial=0)) >> shift >= _BINS:
        shift += 1
    places = np.flatnonzero(numbers)
    order = np.argsort(-(numbers[places] >> shift), kind="stable")[:most]
    return np.sort(places[order])
