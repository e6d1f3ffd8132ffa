"""The kernels over postings, as indexes call them: best rows of many queries, or of one within limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import QueryError
from retrievers.indexes import kernels
from retrievers.indexes.arrays import rises
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.postings import Postings
from retrievers.indexes.protocol import Found
from retrievers.indexes.threads import pieces, shared

_LARGE = 1 << 12
_BATCH = 1 << 22  # results that one call of a kernel may hold
_SHARE = 16  # queries that a thread has at least: it takes a tenth of a millisecond to start


@dataclass(frozen=True)
class Looked:
    """What a search that may give up a part has looked at.

    The rows of a segment are read, or not, by slices of eight. Those that hold a term of the query and a permitted row are
    counted, those that were read, and the permitted rows of both; of postings all that the query's terms have.
    """

    slices: int
    slices_read: int
    documents: int
    documents_read: int
    postings: int
    postings_read: int
    ceiling: float
    """The most that a row can score that was not read, 0 where there is none."""


def search_postings(postings: Postings, prepared: Any, queries: Any, k: int, mask: Bitmap | None) -> Found:
    """The best ``k`` rows of every query (csr_matrix), for so many queries at a time that their results stay small."""
    if k < 1:
        raise QueryError(f"k={k}: ask for 1 hit or more")
    columns, weights, offsets = _buffers(queries)
    k = _most_found(postings, k, columns, offsets)

    def answer(piece: slice) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]] | None:
        some = offsets[piece.start : piece.stop + 1]
        batch = len(some) - 1
        rows, scores = np.empty(batch * k, np.int64), np.empty(batch * k, np.float32)
        counts = np.zeros(batch, np.int64)
        if not kernels.inverted_search(prepared, k, mask, columns, weights, some, rows, scores, counts):
            return None
        ends = [(at, at + size) for at, size in zip(range(0, batch * k, k), counts.tolist(), strict=True)]
        return [(rows[at:end].copy(), scores[at:end].copy()) for at, end in ends]

    found = []
    for some in shared(answer, pieces(len(offsets) - 1, _BATCH // k, _SHARE)):
        if some is None:
            return search_postings(postings, prepared, ascending(queries), k, mask)
        found += some
    return Found([rows for rows, _ in found], [scores for _, scores in found])


def search_postings_within(
    postings: Postings,
    prepared: Any,
    query: Any,
    k: int,
    mask: Bitmap | None,
    sliced: Any,
    limits: tuple[float, float, float],
) -> tuple[Found, Looked]:
    """The same for one query (csr_matrix of one row), within limits: the least score, the share given up, and seconds."""
    if k < 1:
        raise QueryError(f"k={k}: ask for 1 hit or more")
    if not rises(query.indices):
        query = ascending(query)
    columns, weights, offsets = _buffers(query)
    k = _most_found(postings, k, columns, offsets)
    rows, scores, counts = np.empty(k, np.int64), np.empty(k, np.float32), np.zeros(1, np.int64)
    slices, slices_read, documents, documents_read, reached, read, ceiling = kernels.inverted_within(
        prepared, k, mask, columns, weights, offsets, rows, scores, counts, *limits, sliced
    )
    found = Found([rows[: counts[0]]], [scores[: counts[0]]])
    return found, Looked(slices, slices_read, documents, documents_read, reached, read, ceiling)


def _buffers(queries: Any) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Columns, weights and offsets of queries as the kernel takes them."""
    columns, offsets = (np.ascontiguousarray(part, np.int64) for part in (queries.indices, queries.indptr))
    return columns, np.ascontiguousarray(queries.data), offsets


def _most_found(postings: Postings, k: int, columns: NDArray[np.int64], offsets: NDArray[np.int64]) -> int:
    """How many rows there must be room for where ``k`` are asked for, 1 or more."""
    k = max(1, min(k, postings.n))
    if k <= _LARGE or not len(postings.terms):
        return min(k, _LARGE)
    places, known = postings.find(columns)  # no query finds more rows than its terms have postings
    reached = np.zeros(len(columns) + 1, np.int64)
    blocks, starts = postings.term_blocks, postings.block_start
    np.cumsum(np.where(known, starts[blocks[places + 1]] - starts[blocks[places]], 0), out=reached[1:])
    return max(_LARGE, min(k, int(np.diff(reached[offsets]).max(initial=0))))


def ascending(queries: Any) -> Any:
    """The same queries (csr_matrix) with columns that ascend, and come once, in each."""
    parts = queries.data.copy(), queries.indices.copy(), queries.indptr.copy()
    queries = type(queries)(parts, shape=queries.shape)  # without what the other believes of its columns
    queries.sum_duplicates()
    return queries
