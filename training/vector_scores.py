"""Inner products of dense, sparse and lexical vectors: of pairs, and of all with all."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.encoders import Encoder
from retrievers.training.sets import TrainingSet

_PAIRS = 2048  # whose vectors are copied at a time
_TEXTS = 8192  # documents that are counted at a time


class Collection:
    """What BM25 knows of the documents of a training set: how many hold a term, and how long they are.

    They are read and tokenized once, in blocks. See :mod:`retrievers.bm25` for the formula.
    """

    def __init__(self, encoder: Encoder, bm25: Bm25, training_set: TrainingSet) -> None:
        self._bm25 = bm25
        self.documents = len(training_set.documents)
        self.total_length = 0.0
        self._columns, self._frequencies = np.empty(0, np.int64), np.empty(0, np.int64)
        for first in range(0, self.documents, _TEXTS):
            rows = np.arange(first, min(first + _TEXTS, self.documents))
            vectors: Any = encoder.encode_document(training_set.documents.texts(rows))
            self.total_length += float(vectors.data.sum(dtype=np.float64))
            new, counts = np.unique(vectors.indices.astype(np.int64, copy=False), return_counts=True)
            self._columns, places = np.unique(np.concatenate([self._columns, new]), return_inverse=True)
            both = np.concatenate([self._frequencies, counts])
            self._frequencies = np.zeros(len(self._columns), np.int64)
            np.add.at(self._frequencies, places, both)

    def weigh_queries(self, vectors: Any) -> Any:
        """Term frequencies times inverse document frequency."""
        places = np.searchsorted(self._columns, vectors.indices)
        known = np.append(self._columns, -1)[places] == vectors.indices
        frequencies = np.where(known, np.append(self._frequencies, 0)[places], 0)
        weighed = vectors.astype(np.float64)
        weighed.data = vectors.data * self._bm25.idf(frequencies, self.documents)
        return weighed

    def weigh_documents(self, vectors: Any) -> Any:
        """Term frequencies, saturated and normalised by length."""
        counts = np.diff(vectors.indptr)
        rows = np.repeat(np.arange(len(counts)), counts)
        lengths = np.bincount(rows, weights=vectors.data, minlength=len(counts))
        norms = self._bm25.norms(lengths, self.total_length, self.documents)
        weighed = vectors.astype(np.float64)
        weighed.data = vectors.data / (vectors.data + norms[rows])
        return weighed


def product(queries: Any, documents: Any) -> NDArray[np.float32]:
    """Every query with every document, float32 ``[queries, documents]``."""
    if isinstance(queries, np.ndarray):
        return np.asarray(queries @ documents.T, np.float32)
    left, right = _compact(queries, documents)
    return np.asarray((left @ right.T).toarray(), np.float32)


def paired(queries: Any, documents: Any, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float64]:
    """The inner product of query ``left[i]`` and document ``right[i]``, float64 ``[pairs]``."""
    parts: list[NDArray[np.float64]] = [np.empty(0)]
    sides: tuple[Any, Any] = (queries, documents) if isinstance(queries, np.ndarray) else _compact(queries, documents)
    for first in range(0, len(left), _PAIRS):
        chosen = slice(first, first + _PAIRS)
        one, other = sides[0][left[chosen]], sides[1][right[chosen]]
        if isinstance(queries, np.ndarray):
            parts.append(np.einsum("ij,ij->i", one, other, dtype=np.float64))
        else:
            cells = one.multiply(other).tocsr()
            rows = np.repeat(np.arange(cells.shape[0]), np.diff(cells.indptr))
            parts.append(np.asarray(np.bincount(rows, weights=cells.data, minlength=cells.shape[0]), np.float64))
    return np.concatenate(parts)


def _compact(queries: Any, documents: Any) -> tuple[Any, Any]:
    """Sparse vectors over the columns that any query has, float64: lexical ones have 2**62 columns to begin with."""
    from scipy.sparse import csr_matrix

    columns = np.unique(queries.indices)

    def over(vectors: Any) -> Any:
        places = np.searchsorted(columns, vectors.indices)
        kept = np.append(columns, -1)[places] == vectors.indices
        rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))[kept]
        shape = (vectors.shape[0], max(1, len(columns)))
        return csr_matrix((vectors.data[kept].astype(np.float64), (rows, places[kept])), shape=shape)

    return over(queries), over(documents)
