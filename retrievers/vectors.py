"""Vectors: where encoders and indexes meet.

========================  ==============================================================
kind of encoder           vectors of ``n`` texts
========================  ==============================================================
``dense``                 ``numpy.ndarray`` float32 ``[n, dim]``
``sparse``, ``lexical``   ``scipy.sparse.csr_matrix`` float32 ``[n, vocabulary]``
``multi-vector``          :class:`TokenVectors`
========================  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import VectorError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Kind = Literal["dense", "sparse", "lexical", "multi-vector"]
_SHORT = 64  # weights of a query up to which Python is quicker than numpy

KINDS: tuple[Kind, ...] = ("dense", "sparse", "lexical", "multi-vector")


@dataclass(frozen=True, eq=False)
class TokenVectors:
    """The token vectors of several texts, end to end.

    ``values`` is float32 ``[total tokens, dim]``; text ``i`` owns rows ``offsets[i]`` to ``offsets[i + 1]`` of it, and
    ``offsets`` is int64 ``[n + 1]``.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.float32]:
        """The vectors of one text, float32 ``[tokens, dim]``."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} texts")
        return self.values[self.offsets[row] : self.offsets[row + 1]]


Vectors = NDArray[np.float32] | TokenVectors | Any  # Any: csr_matrix, whose module takes 0.1 s to import


def count(vectors: Vectors) -> int:
    """How many texts these vectors stand for."""
    return len(vectors) if isinstance(vectors, TokenVectors) else int(vectors.shape[0])


def dimension(vectors: Vectors) -> int:
    """The number of dimensions; for sparse vectors the size of the vocabulary."""
    return int(vectors.values.shape[1]) if isinstance(vectors, TokenVectors) else int(vectors.shape[1])


def nbytes(vectors: Vectors) -> int:
    """The memory that the vectors take."""
    if isinstance(vectors, TokenVectors):
        return int(vectors.values.nbytes + vectors.offsets.nbytes)
    if isinstance(vectors, np.ndarray):
        return int(vectors.nbytes)
    return int(vectors.data.nbytes + vectors.indices.nbytes + vectors.indptr.nbytes)


def take(vectors: Vectors, rows: NDArray[np.int64]) -> Vectors:
    """The vectors of the texts ``rows``, in that order."""
    if isinstance(vectors, TokenVectors):
        starts, lengths = vectors.offsets[rows], np.diff(vectors.offsets)[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        inside = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
        return TokenVectors(vectors.values[np.repeat(starts, lengths) + inside], offsets)
    return vectors[rows]


def concatenate(parts: Sequence[Any]) -> Vectors:
    """Several batches of vectors of one kind, end to end."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if isinstance(first, TokenVectors):
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        return TokenVectors(np.concatenate([part.values for part in parts]), offsets)
    if isinstance(first, np.ndarray):
        return np.concatenate(parts)
    data = np.concatenate([part.data for part in parts])
    indices = np.concatenate([part.indices.astype(np.int64, copy=False) for part in parts])
    lengths = np.concatenate([np.diff(part.indptr) for part in parts])
    return csr(data, indices, lengths, first.shape[1])


def csr(
    data: NDArray[np.float32], indices: NDArray[np.int64], lengths: NDArray[np.int64], vocabulary: int
) -> csr_matrix[np.float32]:
    """A sparse matrix from its non-zeros row by row: values, columns, and the number of non-zeros of each row."""
    if len(lengths) == 1 and len(data) == len(indices) == lengths[0]:
        # A single query: what scipy's constructor looks at takes as long as a search of a small index.
        matrix = shallow(_empty_row(vocabulary))
        dtype = matrix.indices.dtype
        matrix.data, matrix.indices = data, indices.astype(dtype, copy=False)
        matrix.indptr = np.array([0, len(data)], dtype)
        return matrix
    from scipy.sparse import csr_matrix

    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return csr_matrix((data, indices, indptr), shape=(len(lengths), vocabulary))


def shallow(matrix: csr_matrix[np.float32]) -> csr_matrix[np.float32]:
    """A sparse matrix that shares the arrays of another: what copy.copy gives, at a fifth of the time."""
    other = object.__new__(type(matrix))
    other.__dict__.update(matrix.__dict__)
    return other


@lru_cache(maxsize=16)
def _empty_row(vocabulary: int) -> csr_matrix[np.float32]:
    from scipy.sparse import csr_matrix

    nothing = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(2, np.int64)
    return csr_matrix(nothing, shape=(1, vocabulary))


def check(vectors: Any, kind: Kind, n: int) -> None:
    """Refuse vectors that are not ``n`` vectors of ``kind``, or that hold values that no search could order.

    Raises VectorError, which names what was found and what was wanted.
    """
    if kind == "dense":
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype != np.float32:
            raise VectorError(f"dense vectors must be a float32 array [n, dim]; got {_describe(vectors)}")
        values: NDArray[np.float32] = vectors
    elif kind == "multi-vector":
        if not isinstance(vectors, TokenVectors) or vectors.values.ndim != 2 or vectors.values.dtype != np.float32:
            raise VectorError(f"multi-vector encoders give TokenVectors of float32 values; got {_describe(vectors)}")
        offsets = vectors.offsets
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(vectors.values) or np.any(np.diff(offsets) < 0):
            raise VectorError("the offsets of TokenVectors must rise from 0 to the number of token vectors")
        values = vectors.values
    else:
        if getattr(vectors, "format", None) != "csr" or vectors.dtype != np.float32:
            raise VectorError(f"{kind} vectors must be a float32 scipy csr_matrix; got {_describe(vectors)}")
        values = vectors.data
        if len(values) <= _SHORT and vectors.shape[0] == n and _sound(values.tolist()):
            return
        if values.size and values.min() < 0:
            raise VectorError(f"{kind} vectors hold a negative weight, {values.min()}: weights must be 0 or more")
    if count(vectors) != n:
        raise VectorError(f"the encoder gave {count(vectors)} vectors for {n} texts")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
        raise VectorError(f"{kind} vectors hold NaN or infinity (first at stored row {row}): the encoder is broken")


def _sound(weights: list[float]) -> bool:
    """Whether no weight is negative, NaN or infinite: for a few, sooner than numpy has begun. NaN shows in the sum."""
    return not weights or (min(weights) >= 0 and sum(weights) < math.inf)


def _describe(value: object) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    return f"{type(value).__name__}" + (f" of {dtype} {list(shape)}" if shape is not None else "")
