"""Codes of eight bits of dense vectors, by which an exhaustive scan passes over most rows without reading their numbers.

A row ``x`` is written as a step times codes of -127 to 127, ``s c``, with an upper bound of how far it lies from that,
``e >= |x - s c|``. By Cauchy and Schwarz its inner product with a query ``q`` is ``s c.q + e |q|`` at most, and where that
is below what the best rows have, the row is none of them. Such a bound takes a quarter of the memory's time, and changes
nothing in what is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes.arrays import load_array

_CODES = "codes.npy"
_BOUNDS = "bounds.npy"
_MOST = 127
_CHUNK = 4096  # rows that are coded at a time


@dataclass(frozen=True, eq=False)
class Sieve:
    """Codes, int8 ``[n, dim]``, and float32 ``[2, n]``: the step of each row, and by what length it may be off."""

    codes: NDArray[np.int8]
    bounds: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Self:
        """The codes of finite vectors, float32 ``[n, dim]``."""
        n, dimension = values.shape
        sieve = cls(np.empty((n, dimension), np.int8), np.empty((2, n), np.float32))
        for first in range(0, n, _CHUNK):
            block = values[first : first + _CHUNK]
            steps = np.abs(block).max(axis=1) / np.float32(_MOST)
            steps[steps < np.finfo(np.float32).tiny] = 0  # whose inverse float32 does not hold: all of the row is error
            inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps > 0)
            codes = np.rint(block * inverse[:, None])
            np.clip(codes, -_MOST, _MOST, out=codes)
            rest = np.subtract(block, codes.astype(np.float64) * steps[:, None])
            errors = np.sqrt(np.einsum("ij,ij->i", rest, rest))
            sieve.codes[first : first + _CHUNK] = codes
            sieve.bounds[0, first : first + _CHUNK] = steps
            sieve.bounds[1, first : first + _CHUNK] = errors * (1 + 2.0**-20) + 2.0**-126
        return sieve

    def save(self, folder: Path) -> None:
        np.save(folder / _CODES, self.codes)
        np.save(folder / _BOUNDS, self.bounds)

    @classmethod
    def load(cls, folder: Path, n: int, dimension: int) -> Self:
        """Map what :meth:`save` wrote. Raises IndexDamagedError."""
        return cls(
            load_array(folder / _CODES, np.int8, (n, dimension)), load_array(folder / _BOUNDS, np.float32, (2, n))
        )
