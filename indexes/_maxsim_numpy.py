"""Late interaction in float64 where no compiler was at hand: what ``_maxsim_exact.c`` computes, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def maxsim_exact(
    dimension: int,
    values: NDArray[Any],
    scales: NDArray[np.float32] | None,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    queries: NDArray[np.float32],
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    scores: NDArray[np.float32],
) -> bool:
    """The score of each pair of a query and a row; False where a row holds what no sound row does.

    ``values`` float16 or int8 ``[tokens, dimension]``, the latter with ``scales`` ``[tokens]``; the tokens of a pair's row
    from ``starts`` on, ``sizes`` of them, those of its query in ``queries`` ``[query tokens, dimension]`` from ``first`` on,
    ``count`` of them; ``scores`` is written. Rows and queries have tokens.
    """
    sound = True
    for pair in range(len(starts)):
        at = slice(int(starts[pair]), int(starts[pair] + sizes[pair]))
        query = queries[int(first[pair]) : int(first[pair] + count[pair])].astype(np.float64)
        similarities = products(query, values[at], None if scales is None else scales[at])
        if not (np.abs(similarities) <= 1e37).all():
            sound = False
            continue
        scores[pair] = np.cumsum(similarities.max(axis=1))[-1]
    return sound


def products(
    query: NDArray[np.float64], values: NDArray[Any], scales: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    """Inner products, float64 ``[query tokens, tokens]``, summed over the dimensions in their order."""
    wide = values.astype(np.float64)
    sums = np.zeros((len(query), len(wide)))
    with np.errstate(over="ignore", invalid="ignore"):
        for dimension in range(wide.shape[1]):
            sums += query[:, dimension, None] * wide[:, dimension]
        if scales is not None:
            sums *= scales.astype(np.float64)
    return sums
