"""Codes of eight bits of dense vectors, by which a scan passes over most rows without reading their numbers.

A row ``x`` is written as ``m + w (s c + r)``: ``m`` is the mean of all rows, ``w`` the standard deviation of each dimension,
``c`` the row's codes of -127 to 127, ``s`` its step, and of the rest ``r`` only an upper bound of the length is kept, ``e``. By
Cauchy and Schwarz its inner product with a query ``q`` is ``m.q + s c.(w q) + e |w q|`` at most, and where that is below what the
best rows have, the row is none of them. Such a bound is read in a quarter of the time, and changes nothing in what is found.
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
_SPREAD = "spread.npy"
_MOST = 127
_CHUNK = 4096  # rows that are coded at a time
_LEAST = 1e-30  # deviations below this are no scale: float32 hardly holds what they divide


@dataclass(frozen=True, eq=False)
class Sieve:
    """Codes, int8 ``[n, dim]``; steps and errors, float32 ``[2, n]``; the mean and the deviations, float32 ``[2, dim]``."""

    codes: NDArray[np.int8]
    bounds: NDArray[np.float32]
    spread: NDArray[np.float32]

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Self:
        """The codes of vectors, float32 ``[n, dim]``; those of any that are not finite mean nothing."""
        with np.errstate(over="ignore", invalid="ignore"):
            return cls._of(values)

    @classmethod
    def _of(cls, values: NDArray[np.float32]) -> Self:
        n, dimension = values.shape
        spread = _spread(values)
        sieve = cls(np.empty((n, dimension), np.int8), np.empty((2, n), np.float32), spread)
        mean, deviations = spread.astype(np.float64)
        for first in range(0, n, _CHUNK):
            scaled = (values[first : first + _CHUNK] - mean) / deviations
            steps = (np.abs(scaled).max(axis=1) / _MOST).astype(np.float32)
            steps[steps < np.finfo(np.float32).tiny] = 0  # all of the row is error
            inverse = np.divide(1, steps, out=np.zeros(len(steps)), where=steps > 0)
            codes = np.rint(scaled * inverse[:, None])
            np.clip(codes, -_MOST, _MOST, out=codes)
            sieve.codes[first : first + _CHUNK] = codes
            scaled -= np.multiply(codes, steps[:, None], out=codes)
            errors = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))
            sieve.bounds[0, first : first + _CHUNK] = steps
            sieve.bounds[1, first : first + _CHUNK] = errors * (1 + 2.0**-20) + 2.0**-126
        return sieve

    def parts(self) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
        """As the kernels take them."""
        return self.codes, self.bounds, self.spread

    def save(self, folder: Path) -> None:
        np.save(folder / _CODES, self.codes)
        np.save(folder / _BOUNDS, self.bounds)
        np.save(folder / _SPREAD, self.spread)

    @classmethod
    def load(cls, folder: Path, n: int, dimension: int) -> Self:
        """Map what :meth:`save` wrote. Raises IndexDamagedError."""
        codes = load_array(folder / _CODES, np.int8, (n, dimension))
        bounds = load_array(folder / _BOUNDS, np.float32, (2, n))
        return cls(codes, bounds, load_array(folder / _SPREAD, np.float32, (2, dimension)))


def _spread(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean and the standard deviation of each dimension; of no dimension is it less than a thousandth of the largest."""
    n, dimension = values.shape
    sums, squares = np.zeros(dimension), np.zeros(dimension)
    for first in range(0, n, _CHUNK):
        block = values[first : first + _CHUNK].astype(np.float64)
        sums += block.sum(axis=0)
        squares += np.einsum("ij,ij->j", block, block)
    mean = (sums / max(1, n)).astype(np.float32)
    deviations = np.sqrt(np.maximum(0, squares / max(1, n) - np.square(mean, dtype=np.float64)))
    most = deviations.max(initial=0)
    if not most > _LEAST:
        return np.stack([mean, np.ones(dimension, np.float32)])
    return np.stack([mean, np.maximum(deviations, most / 1000).astype(np.float32)])
