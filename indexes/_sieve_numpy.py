"""The numpy twin of ``_dense_sieve.c``, as far as its outcome matters to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def shorts_of(scaled: NDArray[np.float64]) -> tuple[np.float32, NDArray[np.int64]]:
    """A query times the deviations as whole numbers of a unit, as ``sieve_query`` rounds them."""
    root = float(np.sqrt(len(scaled)))
    limit = (0x7FFFFFFF / (128 * root) - root / 2 - 1) / root
    unit = np.float32(np.abs(scaled).max() / min(32767, limit) * (1 + 2.0**-20))
    if not unit >= np.finfo(np.float32).tiny:
        return unit, np.zeros(len(scaled), np.int64)
    return unit, np.rint(scaled / np.float64(unit)).astype(np.int64)


def code_scores(
    codes: NDArray[np.int8],
    steps: NDArray[np.float32],
    unit: np.float32,
    shorts: NDArray[np.int64],
    rows: NDArray[Any],
) -> NDArray[np.float32]:
    """Inner products of a query and some rows as far as codes tell them, less that with the mean: ``sieve_scores``."""
    with np.errstate(invalid="ignore", over="ignore"):
        scores: NDArray[np.float32] = (codes[rows] @ shorts).astype(np.float32) * (steps[rows] * unit)
    return scores
