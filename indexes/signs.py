"""Binary codes: one bit a dimension, compared by Hamming distance.

A bit tells on which side of the mean of all vectors a vector lies. The codes propose candidates, which are then scored by
the vectors themselves: the two-stage search of Grzegorczyk and Kurdziel, "Binary Paragraph Vectors", 2017, with codes
that are taken from the vectors, not learned. Every code is compared: at 48 bytes for 384 dimensions, FAISS' scan over
100,000 of them is as quick as its graph over binary codes, and needs no building.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes.arrays import load_array
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import import_faiss

_CENTRE = "centre.npy"
_ENCODED = 1 << 14  # vectors that are encoded at a time


class SignCodes:
    """The codes of ``ntotal`` vectors, and the centre, float32 ``[dimension]``, that they were taken around."""

    def __init__(self, centre: NDArray[np.float32], codes: Any) -> None:
        self._centre = centre
        self._codes = codes  # a FAISS IndexBinaryFlat
        self._codes.use_heap = False  # counting distances is quicker, and the time hardly grows with the candidates
        self.ntotal = int(codes.ntotal)

    @classmethod
    def build(cls, values: NDArray[np.float32]) -> Self:
        """Encode vectors, float32 ``[n, dimension]``."""
        centre = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        codes = import_faiss().IndexBinaryFlat(_bits(values.shape[1]))
        for first in range(0, len(values), _ENCODED):
            codes.add(_encode(values[first : first + _ENCODED], centre))
        return cls(centre, codes)

    def propose(self, queries: NDArray[np.float32], count: int, live: Bitmap | None) -> NDArray[np.int64]:
        """The ``count`` rows with the nearest codes for each query, int64 ``[queries, count]``; -1 where there are fewer."""
        parameters = None
        if live is not None:
            faiss = import_faiss()
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.ascontiguousarray(live)))
        return nearest(self._codes, _encode(queries, self._centre), count, np.int32, parameters)

    def write(self, path: Path) -> None:
        """Write the codes to ``path``, and the centre beside it."""
        import_faiss().write_index_binary(self._codes, str(path))
        np.save(path.with_name(_CENTRE), self._centre)

    @classmethod
    def read(cls, path: Path, n: int, dimension: int) -> Self:
        """Read what :meth:`write` wrote for ``n`` vectors. Raises IndexDamagedError, naming the file."""
        faiss = import_faiss()
        try:
            codes = faiss.read_index_binary(str(path))
        except RuntimeError as error:
            message = (
                f"{path} is no FAISS index ({str(error).splitlines()[-1]:.200}): restore it, or build the index again"
            )
            raise IndexDamagedError(message) from error
        held, wanted = (type(codes).__name__, codes.ntotal, codes.d), ("IndexBinaryFlat", n, _bits(dimension))
        if held != wanted:
            raise IndexDamagedError(
                f"{path} holds {held} (type, vectors, bits) where {wanted} belong: restore it, or build the index again"
            )
        centre = np.array(load_array(path.with_name(_CENTRE), np.float32, (dimension,)))
        if not np.isfinite(centre).all():
            raise IndexDamagedError(
                f"{path.with_name(_CENTRE)} holds NaN or infinity: restore it, or build the index again"
            )
        return cls(centre, codes)


def nearest(
    index: Any, queries: NDArray[Any], count: int, distance: type[np.generic], parameters: Any
) -> NDArray[np.int64]:
    """The rows that a FAISS index finds for contiguous queries, int64 ``[queries, count]``; -1 where there are fewer."""
    pointer, distances = import_faiss().swig_ptr, np.empty((len(queries), count), distance)
    rows = np.empty((len(queries), count), np.int64)
    # What index.search checks and copies first is known to be in order.
    index.search_c(len(queries), pointer(queries), count, pointer(distances), pointer(rows), parameters)
    return rows


def _bits(dimension: int) -> int:
    return -(-dimension // 8) * 8


def _encode(values: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.packbits(values > centre, axis=1)
