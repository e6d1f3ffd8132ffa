"""The numpy twin of ``_dense.c``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
