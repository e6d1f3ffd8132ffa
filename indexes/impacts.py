"""Impacts as unsigned 16-bit floats: 5 bits of exponent, 11 of mantissa, for weights from 2**-16 to 2**16.

A code is a function of the weight alone, so a document scores the same in whichever segment it stands. The relative
error is at most 2**-12. Codes order as their weights do, and 0 is no code: it stands for a weight that is not there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import VectorError

_LOWEST = 111 << 23  # the bits of 2**-16
_HIGHEST = 0xFFFF


def encode16(weights: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Codes (uint16, same shape) of weights of 0 or more, rounded to nearest, ties to even; 0 for those below 2**-16.

    Raises VectorError for a weight that rounds to 2**16 or more.
    """
    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32).astype(np.int64) - _LOWEST
    codes = (bits + 0x7FF + ((bits >> 12) & 1)) >> 12
    if codes.size and int(codes.max()) > _HIGHEST:
        raise VectorError(f"a weight of {weights.max()} is too high for an inverted index: weights must be below 65520")
    kept: NDArray[np.uint16] = np.maximum(codes, 0).astype(np.uint16)
    return kept


def decode16(codes: NDArray[Any]) -> NDArray[np.float32]:
    """Weights (float32, same shape) of codes from 1 to 65,535."""
    bits: NDArray[np.uint32] = (codes.astype(np.uint32) << np.uint32(12)) + np.uint32(_LOWEST)
    return bits.view(np.float32)
