"""The numpy twin of ``_lists.c``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes._dense_numpy import NO_ROW, SOUND
from retrievers.indexes._sieve_numpy import code_scores, shorts_of


def lists_search(
    dimension: int,
    codes: NDArray[np.int8],
    bounds: NDArray[np.float32],
    spread: NDArray[np.float32],
    centroid_codes: NDArray[np.int8],
    centroid_bounds: NDArray[np.float32],
    centroid_spread: NDArray[np.float32],
    rows: NDArray[np.int32],
    starts: NDArray[np.int64],
    queries: NDArray[np.float32],
    mask: NDArray[np.uint8] | None,
    probes: int,
    found: NDArray[np.int64],
) -> int:
    """The best rows of the ``probes`` lists with the best centroids, by their codes, best first, equal ones by ascending row.

    The codes are those of two :class:`retrievers.indexes.sieve.Sieve`: of the rows, list by list, and of the centroids.
    ``rows`` (``[n]``) tells which they are; list ``i`` is from ``starts[i]`` to ``starts[i + 1]``. The best that are in the
    bitmap ``mask`` (None for all) are written into ``found``, ``[queries, any]``; -1 where there are fewer. Returns SOUND,
    or NO_ROW where a row or a list is out of bounds.

    Raises ValueError where sizes do not fit together or a number is out of bounds.
    """
    n, lists = len(rows), len(starts) - 1
    fits = dimension >= 1 and lists >= 1 and probes >= 1 and queries.size % dimension == 0
    fits = fits and [codes.size, bounds.size, spread.size] == [n * dimension, 2 * n, 2 * dimension]
    centroids = centroid_codes, centroid_bounds, centroid_spread
    fits = fits and [part.size for part in centroids] == [lists * dimension, 2 * lists, 2 * dimension]
    count = queries.size // dimension if fits else 0
    fits = fits and (found.size % count == 0 and found.size > 0 if count else found.size == 0)
    if not fits or (mask is not None and len(mask) != -(-n // 8)):
        raise ValueError("the sizes of the buffers do not fit together, or a number is out of bounds")
    codes, steps = codes.reshape(n, dimension), bounds.reshape(2, n)[0]
    centroid_codes, centroid_steps = centroid_codes.reshape(lists, dimension), centroid_bounds.reshape(2, lists)[0]
    written = found.reshape(count, found.size // max(1, count))
    for number, query in enumerate(queries.reshape(count, dimension).astype(np.float64)):
        of_centroids = shorts_of(query * centroid_spread.reshape(2, dimension)[1])
        nearness = code_scores(centroid_codes, centroid_steps, *of_centroids, np.arange(lists))
        chosen = np.lexsort((np.arange(lists), -nearness))[:probes]
        begins, ends = starts[chosen], starts[chosen + 1]
        if ((begins < 0) | (ends < begins) | (ends > n)).any():
            return NO_ROW
        places = np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)])
        if len(places) and not 0 <= rows[places].min() <= rows[places].max() < n:
            return NO_ROW
        if mask is not None:
            places = places[(mask[rows[places] >> 3] >> (rows[places] & 7) & 1).astype(np.bool_)]
        scores = code_scores(codes, steps, *shorts_of(query * spread.reshape(2, dimension)[1]), places)
        best = rows[places][np.lexsort((rows[places], -scores))[: written.shape[1]]]
        written[number] = -1
        written[number, : len(best)] = best
    return SOUND
