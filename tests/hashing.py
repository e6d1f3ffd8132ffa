"""Encoders for tests: real functions of the text, made of word hashes, that need no model and run in microseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrievers.vectors import Kind, TokenVectors, Vectors, csr

DIMENSION = 16


@lru_cache(maxsize=100_000)
def word_vector(word: str) -> NDArray[np.float32]:
    """Multiples of 1/128: sums of them are exact, and so the same on every machine."""
    digest = hashlib.blake2b(word.encode(), digest_size=DIMENSION).digest()
    return (np.frombuffer(digest, np.uint8).astype(np.float32) - 128) / 128


class HashEncoder:
    """Words hashed to vectors: their sum (dense), their weights (sparse), or one each (multi-vector).

    ``encoded`` counts the documents that it has encoded.
    """

    def __init__(self, kind: Kind, salt: str = "") -> None:
        self.kind = kind
        self.salt = salt
        self.encoded = 0

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.kind} {self.salt}".encode()).hexdigest()

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        self.encoded += len(texts)
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Vectors:
        words = [(self.salt + text.lower()).split() for text in texts]
        if self.kind == "dense":
            rows = [np.sum([word_vector(w) for w in ws], axis=0) if ws else np.zeros(DIMENSION) for ws in words]
            return np.array(rows, np.float32).reshape(len(texts), DIMENSION)
        if self.kind == "multi-vector":
            values = [word_vector(w) for ws in words for w in ws]
            offsets = np.cumsum([0, *(len(ws) for ws in words)], dtype=np.int64)
            return TokenVectors(np.array(values, np.float32).reshape(-1, DIMENSION), offsets)
        data, columns, lengths = [], [], []
        for ws in words:
            found = sorted({int(hashlib.blake2b(w.encode(), digest_size=2).hexdigest(), 16): w for w in ws}.items())
            columns += [column for column, _ in found]
            data += [1 + len(w) / 7 for _, w in found]
            lengths.append(len(found))
        return csr(np.array(data, np.float32), np.array(columns, np.int64), np.array(lengths, np.int64), 1 << 16)
