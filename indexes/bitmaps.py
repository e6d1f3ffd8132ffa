"""Bitmaps of rows: uint8 arrays of packed bits, row ``r`` being bit ``r % 8`` (from the lowest) of byte ``r // 8``.

This is the layout of FAISS' ``IDSelectorBitmap`` and of the C kernels; bits past the last row are zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bitmap = NDArray[np.uint8]


def pack(mask: NDArray[np.bool_]) -> Bitmap:
    """The bitmap of the rows where ``mask`` (bool ``[rows]``) is true."""
    return np.packbits(mask, bitorder="little")


def unpack(bitmap: Bitmap, size: int) -> NDArray[np.bool_]:
    """The mask, bool ``[size]``, of a bitmap of ``size`` rows."""
    return np.unpackbits(bitmap, count=size, bitorder="little").view(np.bool_)


def rows(bitmap: Bitmap, size: int) -> NDArray[np.int64]:
    """The rows of a bitmap, ascending."""
    return np.flatnonzero(unpack(bitmap, size))


def cardinality(bitmap: Bitmap) -> int:
    """How many rows are in the bitmap."""
    return int(np.bitwise_count(bitmap).sum(dtype=np.int64))
