"""The kernels over postings, as indexes call them: best rows of many queries, or of one within limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import QueryError
from retrievers.indexes import kernels
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.kernels import Payload
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


def search_postings(
    postings: Postings,
    kind: Payload,
    places: NDArray[np.int64],
    weights: NDArray[np.float32],
    offsets: NDArray[np.int64],
    k: int,
    mask: Bitmap | None,
    block_max: NDArray[Any] | None,
    norms: NDArray[np.float32] | None,
    prepared: Any,
) -> Found:
    """Call the kernel, for so many queries at a time that their results stay small."""
    if k < 1:
        raise QueryError(f"k={k}: ask for 1 hit or more")
    queries = len(offsets) - 1
    blocks = postings.term_blocks
    k = max(1, min(k, postings.n))
    if k > _LARGE:  # no query finds more rows than its terms have postings
        reached = np.zeros(len(places) + 1, np.int64)
        np.cumsum(postings.block_start[blocks[places + 1]] - postings.block_start[blocks[places]], out=reached[1:])
        k = max(_LARGE, min(k, int(np.diff(reached[offsets]).max()) if queries else 0))

    def answer(piece: slice) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        some = offsets[piece.start : piece.stop + 1]
        batch = len(some) - 1
        rows, scores = np.empty(batch * k, np.int64), np.empty(batch * k, np.float32)
        counts = np.zeros(batch, np.int64)
        kernels.inverted_search(
            int(kind), postings.n, k, postings.ids, postings.payload, blocks, postings.block_start,
            postings.block_range, block_max, norms, mask, places, weights, some, rows, scores, counts, prepared,
        )  # fmt: skip
        ends = [(at, at + size) for at, size in zip(range(0, batch * k, k), counts.tolist(), strict=True)]
        return [(rows[at:end].copy(), scores[at:end].copy()) for at, end in ends]

    answered = shared(answer, pieces(queries, _BATCH // k, _SHARE))
    found = [one for some in answered for one in some]
    return Found([rows for rows, _ in found], [scores for _, scores in found])


def search_postings_within(
    postings: Postings,
    kind: Payload,
    places: NDArray[np.int64],
    weights: NDArray[np.float32],
    k: int,
    mask: Bitmap | None,
    block_max: NDArray[Any] | None,
    norms: NDArray[np.float32] | None,
    sliced: Any,
    limits: tuple[float, float, float],
) -> tuple[Found, Looked]:
    """Call the kernel for one query."""
    if k < 1:
        raise QueryError(f"k={k}: ask for 1 hit or more")
    blocks = postings.term_blocks
    reached = int((postings.block_start[blocks[places + 1]] - postings.block_start[blocks[places]]).sum())
    k = max(1, min(k, postings.n, reached))  # no query finds more rows than its terms have postings
    rows, scores, counts = np.empty(k, np.int64), np.empty(k, np.float32), np.zeros(1, np.int64)
    slices, slices_read, documents, documents_read, read, ceiling = kernels.inverted_within(
        int(kind), postings.n, k, postings.ids, postings.payload, blocks, postings.block_start, postings.block_range,
        block_max, norms, mask, places, weights, np.array([0, len(places)]), rows, scores, counts, *limits, sliced,
    )  # fmt: skip
    found = Found([rows[: counts[0]]], [scores[: counts[0]]])
    return found, Looked(slices, slices_read, documents, documents_read, reached, read, ceiling)
