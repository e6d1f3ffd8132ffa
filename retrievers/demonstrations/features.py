"""What strategies compare candidates by: their vectors, in the space of the bank's own encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.encoders import Encoder
from retrievers.encoders.lexical import LexicalEncoder
from retrievers.indexes.snapshot import Snapshot
from retrievers.vectors import TokenVectors, Vectors, csr, take

Floats = NDArray[np.float32]


class Features:
    """The candidates of some inputs, each encoded once; of a dense bank the stored vectors are taken.

    ``queries`` are the vectors of the inputs, weighed by the index.
    """

    def __init__(
        self,
        encoder: Encoder,
        snapshot: Snapshot,
        inputs: Sequence[str],
        queries: Vectors,
        documents: Mapping[str, Document],
    ) -> None:
        self._rows = {id: row for row, id in enumerate(documents)}
        texts = [document.content for document in documents.values()]
        self._inputs, self._texts = inputs, texts
        self._kind = snapshot.kind
        self._queries: Any
        self._documents: Any
        if self._kind == "dense":
            self._queries, self._documents = _unit(queries), _unit(_stored(snapshot, list(documents)))
        elif self._kind == "multi-vector":
            self._queries, self._documents = queries, encoder.encode_document(texts)
        else:
            self._queries, self._documents = _compact(queries, snapshot.weigh(encoder.encode_document(texts)))

    def likeness(self, number: int, ids: Sequence[str]) -> tuple[Floats, Floats]:
        """How like candidates are to an input, ``[c]``, and to each other, ``[c, c]``: cosines, or mean MaxSim."""
        rows = np.array([self._rows[id] for id in ids], np.int64)
        if self._kind == "multi-vector":
            found = self._tokens(rows)
            sims = np.stack([_best(found[place], found).mean(axis=1) for place in range(len(rows))])
            return _best(self._queries[number], found).mean(axis=1), (sims + sims.T) / 2
        if self._kind == "dense":
            some = self._documents[rows]
            return some @ self._queries[number], some @ some.T
        some = _unit_rows(self._documents[rows])
        return (some @ _unit_rows(self._queries[number]).T).toarray()[:, 0], (some @ some.T).toarray()

    def covered(self, number: int, ids: Sequence[str]) -> Floats:
        """By how much candidates cover the parts of an input, ``[c, parts]``.

        Parts are the tokens of multi-vector encoders (covered by the best similarity) and the terms of sparse and lexical ones
        (by their share of the score; in a lexical bank a term counts the same however often it stands there). A dense
        vector has no parts: the words of the texts stand in, stemmed and without stop words.
        """
        rows = np.array([self._rows[id] for id in ids], np.int64)
        if self._kind == "multi-vector":
            return _best(self._queries[number], self._tokens(rows))
        queries, documents = self._words if self._kind == "dense" else (self._queries, self._documents)
        query = queries[number]
        some = documents[rows][:, query.indices].toarray()
        if self._kind == "sparse":
            return np.asarray(some * query.data, np.float32)
        return np.asarray((some > 0) * (query.data if self._kind == "lexical" else 1.0), np.float32)

    def _tokens(self, rows: NDArray[np.int64]) -> TokenVectors:
        found = take(self._documents, rows)
        assert isinstance(found, TokenVectors)
        return found

    @cached_property
    def _words(self) -> tuple[Any, Any]:
        """The words of the inputs and of the candidates: those of a dense bank are not looked at otherwise."""
        encoder = LexicalEncoder()
        return _compact(encoder.encode_query(list(self._inputs)), encoder.encode_document(self._texts))


def _stored(snapshot: Snapshot, ids: Sequence[str]) -> Floats:
    found: dict[str, Floats] = {}
    for segment in snapshot.segments:
        index: Any = segment.index
        for id, known in segment.store.find(ids).items():
            if segment.is_live(known.row):
                found[id] = index.vectors[known.row]
    return np.array([found[id] for id in ids], np.float32)


def _compact(queries: Any, documents: Any) -> tuple[Any, Any]:
    """Two sparse matrices with the columns left out that neither uses: those of lexical vectors are hashes."""
    used, places = np.unique(np.concatenate([queries.indices, documents.indices]), return_inverse=True)
    split = len(queries.indices)
    return tuple(
        csr(matrix.data, part, np.diff(matrix.indptr), len(used))  # type: ignore[return-value]
        for matrix, part in ((queries, places[:split]), (documents, places[split:]))
    )


def _unit(vectors: Any) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def _unit_rows(matrix: Any) -> Any:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1))).ravel()
    scaled = matrix.copy()
    scaled.data = matrix.data / np.repeat(np.where(norms > 0, norms, 1), np.diff(matrix.indptr))
    return scaled


def _best(query: Floats, documents: TokenVectors) -> Floats:
    """The similarity of each token of a query to the most similar one of each document, float32 ``[documents, tokens]``.

    A document without tokens is like nothing: 0.
    """
    sizes = np.diff(documents.offsets)
    best = np.zeros((len(documents), len(query)), np.float32)
    if len(documents.values):
        full = sizes > 0
        best[full] = np.maximum.reduceat(documents.values @ query.T, documents.offsets[:-1][full], axis=0)
    return best
