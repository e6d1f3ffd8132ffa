"""Token vectors as a centroid and the codes of what is left: training, encoding and decoding.

PLAID (Santhanam et al., 2022) gives the number of centroids, k-means in four rounds, and codes shared by the dimensions.
Three things differ from it, since each was measured to keep more of the ranking than it costs: the levels that codes stand
for are those of least squared error (Lloyd, 1957), a residual has a scale of its own, and the sum is brought back to the length
that the vector had; scale and length take a byte each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes import kernels

MOST_CENTROIDS = 1 << 16
LEAST_CENTROIDS = 32
PER_CENTROID = 32  # vectors that training looks at, for each centroid
MOST_SAMPLED = 1 << 20  # vectors that training looks at, in all
_ROUNDS = 4
_FITTED = 1 << 16  # vectors from which levels and tables are found
_LEVEL_ROUNDS = 30
_LEVEL_SAMPLE = 1 << 19  # numbers from which levels are found
_BLOCK = 1 << 14  # vectors at a time
_STEP = 32  # what dimensions are padded to
_TAIL = 0.0005  # of scales, at either end, which the table does not reach


@dataclass(frozen=True, eq=False)
class Codes:
    """Token vectors, encoded: centroids, uint16 ``[n]``; levels, uint8 ``[n, width]``; places in tables, uint8 ``[n, 2]``."""

    centroids: NDArray[np.uint16]
    residuals: NDArray[np.uint8]
    steps: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Codec:
    """What codes stand for.

    ``centroids`` bfloat16 in uint16 ``[count, padded dimension]``, a power of two of them; ``tables`` float32 ``[2, 256]``, the
    scales of residuals and those of sums; ``levels`` float32 ``[2 ** bits]``, ascending.
    """

    dimension: int
    bits: int
    centroids: NDArray[np.uint16]
    tables: NDArray[np.float32]
    levels: NDArray[np.float32]

    @property
    def width(self) -> int:
        """The bytes that the residual of a token takes."""
        return -(-self.dimension * self.bits // 8)

    @cached_property
    def wide(self) -> NDArray[np.float32]:
        """The centroids, float32 ``[count, dimension]``."""
        return widen(self.centroids[:, : self.dimension])

    @classmethod
    def train(cls, sample: NDArray[np.float32], tokens: int, bits: int, seed: int = 0) -> Codec:
        """From some of ``tokens`` vectors, float32 ``[n, dimension]``."""
        rng = np.random.default_rng(seed)
        count = number_of_centroids(tokens, len(sample))
        dimension = sample.shape[1]
        centroids = _padded(sample[rng.choice(len(sample), count, replace=len(sample) < count)])
        for _ in range(_ROUNDS):
            centroids = _means(sample, nearest(sample, centroids), widen(centroids)[:, :dimension])
        codec = cls(dimension, bits, centroids, np.ones((2, 256), np.float32), np.zeros(2**bits, np.float32))
        some = sample[rng.choice(len(sample), min(len(sample), _FITTED), replace=False)]
        rests = some - codec.wide[nearest(some, centroids)]
        scales = np.sqrt((rests * rests).mean(axis=1)) + np.float32(1e-12)
        levels = _least_squares((rests / scales[:, None]).ravel()[:_LEVEL_SAMPLE], 2**bits)
        codec = cls(dimension, bits, centroids, codec.tables, levels)
        steps, _, sums = codec._fit(some, rests)
        wholes = (_lengths(some) / np.maximum(_lengths(sums), 1e-12)).astype(np.float32)
        tables = np.stack([_table(steps), _table(wholes)])
        return cls(dimension, bits, centroids, tables, levels)

    def encode(self, vectors: NDArray[np.float32]) -> Codes:
        """Codes of float32 ``[n, dimension]``."""
        found = Codes(
            np.empty(len(vectors), np.uint16),
            np.empty((len(vectors), self.width), np.uint8),
            np.empty((len(vectors), 2), np.uint8),
        )
        for first in range(0, len(vectors), _BLOCK):
            at = slice(first, first + _BLOCK)
            some = vectors[at]
            mine = nearest(some, self.centroids)
            rests = some - self.wide[mine]
            steps, numbers, _ = self._fit(some, rests)
            found.centroids[at] = mine
            found.residuals[at] = _pack(numbers, self.bits)
            places = _places(self.tables[0], steps)
            sums = self.wide[mine] + self.tables[0][places][:, None] * self.levels[numbers]
            wholes = (_lengths(some) / np.maximum(_lengths(sums), 1e-12)).astype(np.float32)
            found.steps[at] = np.stack([places, _places(self.tables[1], wholes)], axis=1)
        return found

    def rest(self, vectors: NDArray[np.float32], codes: Codes) -> float:
        """The mean squared length of what centroids leave of vectors, float32 ``[n, dimension]``."""
        total = 0.0
        for first in range(0, len(vectors), _BLOCK):
            at = slice(first, first + _BLOCK)
            rests = vectors[at] - self.wide[codes.centroids[at]]
            total += float((rests * rests).sum(dtype=np.float64))
        return total / max(1, len(vectors))

    def _fit(
        self, vectors: NDArray[np.float32], rests: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.float32]]:
        """For residuals the scale of least squared error, the level of each number, and the sums that they make."""
        scales = np.sqrt((rests * rests).mean(axis=1)) + np.float32(1e-12)
        edges = ((self.levels[1:] + self.levels[:-1]) / 2).astype(np.float32)
        numbers = np.zeros(rests.shape, np.uint8)
        for edge in edges:
            numbers += rests >= edge * scales[:, None]
        chosen = self.levels[numbers]
        steps = (rests * chosen).sum(axis=1) / np.maximum((chosen * chosen).sum(axis=1), np.float32(1e-12))
        steps = np.maximum(steps, np.float32(1e-12)).astype(np.float32)
        return steps, numbers, vectors - rests + steps[:, None] * chosen


def number_of_centroids(tokens: int, sampled: int) -> int:
    """16 times the root of the tokens, rounded down to a power of two; 4 vectors of the sample or more for each."""
    wanted = min(16 * tokens**0.5, MOST_CENTROIDS, sampled / 4)
    return max(LEAST_CENTROIDS, 1 << int(np.log2(max(wanted, 1))))


def sample_size(tokens: int) -> int:
    """How many of so many vectors training wants to see."""
    return min(tokens, PER_CENTROID * number_of_centroids(tokens, tokens), MOST_SAMPLED)


def nearest(vectors: NDArray[np.float32], centroids: NDArray[np.uint16]) -> NDArray[np.int32]:
    """The centroid of the highest inner product with each vector, int32 ``[n]``."""
    found = np.zeros(len(vectors), np.int32)
    level = kernels.maxsim_level()
    if not level and kernels.bytes_level() and vectors.shape[1] <= kernels.MOST_INT16:
        level = kernels.INT16
    if level:
        kernels.plaid_assign(level, vectors.shape[1], np.ascontiguousarray(vectors, np.float32), centroids, found)
        return found
    wide = np.ascontiguousarray(widen(centroids)[:, : vectors.shape[1]].T)
    step = max(1, (1 << 23) // wide.shape[1])
    for first in range(0, len(vectors), step):
        found[first : first + step] = (vectors[first : first + step] @ wide).argmax(axis=1)
    return found


def narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of finite numbers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return rounded


def widen(values: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16 as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def _padded(vectors: NDArray[np.float32]) -> NDArray[np.uint16]:
    full = np.zeros((len(vectors), -(-vectors.shape[1] // _STEP) * _STEP), np.float32)
    full[:, : vectors.shape[1]] = vectors
    return narrow(full)


def _means(vectors: NDArray[np.float32], owners: NDArray[np.int32], before: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Centroids as the means of their vectors, as long as those are in the mean; one without vectors stays."""
    import scipy.sparse  # takes a while to import, and searches do without

    n, count = len(vectors), len(before)
    sizes = np.bincount(owners, minlength=count)
    shares: Any = scipy.sparse.csr_matrix(
        (np.ones(n, np.float32), np.argsort(owners, kind="stable"), np.concatenate([[0], np.cumsum(sizes)])), (count, n)
    )
    sums = np.asarray(shares @ vectors, np.float32)
    lengths = np.bincount(owners, _lengths(vectors), count) / np.maximum(sizes, 1)
    means = sums * (lengths / np.maximum(_lengths(sums), 1e-12)).astype(np.float32)[:, None]
    return _padded(np.where((sizes > 0)[:, None] & (_lengths(sums) > 1e-9)[:, None], means, before))


def _least_squares(numbers: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The levels of least squared error, ascending (Lloyd's rounds, from quantiles)."""
    levels = np.quantile(numbers, (np.arange(count) + 0.5) / count)
    for _ in range(_LEVEL_ROUNDS):
        at = np.searchsorted((levels[1:] + levels[:-1]) / 2, numbers, side="right")
        sizes = np.bincount(at, minlength=count)
        levels = np.where(sizes > 0, np.bincount(at, numbers, count) / np.maximum(sizes, 1), levels)
    return np.sort(levels).astype(np.float32)


def _table(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """256 numbers, each the same part above the last, from the least to the greatest but for the tails."""
    low, high = np.quantile(np.log(numbers), [_TAIL, 1 - _TAIL])
    return np.exp(np.linspace(low, high, 256)).astype(np.float32)


def _places(table: NDArray[np.float32], numbers: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Which number of an ascending table is nearest."""
    return np.searchsorted((table[1:] + table[:-1]) / 2, numbers).astype(np.uint8)


def _pack(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers of some bits side by side, the first in the lowest bits of the first byte."""
    each = 8 // bits
    full = np.zeros((len(numbers), -(-numbers.shape[1] // each) * each), np.uint8)
    full[:, : numbers.shape[1]] = numbers
    parts = full.reshape(len(numbers), -1, each) << (bits * np.arange(each, dtype=np.uint8))
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(parts, axis=2).astype(np.uint8)
    return packed


def _lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return lengths
