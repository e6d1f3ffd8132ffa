"""Vectors of a training set's texts, kept by row on disk, so that what scores a text again does not encode it again.

Candidate lists name a document many times, and batches meet it in every epoch: a teacher that is an encoder needs its vector
once. The vectors lie below ``vectors/`` of the set's folder, for each encoder (by fingerprint) and side. Processes share them.
The folder may be deleted when nothing runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.encoders import Encoder
from retrievers.encoders.model import Task
from retrievers.errors import TrainingDataError, VectorError
from retrievers.indexes.files import sync_folder
from retrievers.training.blocks import locked
from retrievers.training.sets import TrainingSet
from retrievers.training.texts import Texts
from retrievers.vectors import Vectors, check, dimension

FOLDER = "vectors"
_TEXTS = 2048  # that are encoded at a time

Rows = NDArray[np.int64]


class KeptVectors:
    """The vectors that a dense or sparse encoder gives the queries (``side`` ``"query"``) or documents of a training set.

    A dense vector is kept as its float32 numbers, a sparse one as int32 columns and float32 weights. Another process may
    add vectors meanwhile: they go to the end of one file under a lock, and are named in a second one when they are on the disk.
    """

    def __init__(self, training_set: TrainingSet, encoder: Encoder, side: Task) -> None:
        self._encoder, self._side = encoder, side
        self._texts: Texts = training_set.queries if side == "query" else training_set.documents
        self._folder = training_set.path / FOLDER / f"{encoder.kind}-{encoder.fingerprint[:24]}-{side}"
        self._lock = self._folder / ".lock"
        with locked(self._lock, f"opening {self._folder}", wait=True):
            self._places = _opened(self._folder / "places.npy", len(self._texts))
            self._data = os.open(self._folder / "data.bin", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync_folder(self._folder)

    def __del__(self) -> None:
        if hasattr(self, "_data"):
            os.close(self._data)

    def of(self, rows: Sequence[int] | Rows) -> Vectors:
        """The vectors of these rows, in order; those that are not kept yet are encoded, 2,048 at a time, the longest first.

        Dense float32 ``[rows, dim]``, or a CSR matrix of float32 with as many columns as its rows need.
        """
        wanted = np.asarray(rows, np.int64)
        missing = np.unique(wanted[~self._held(wanted)])
        if len(missing):
            texts = self._texts.texts(missing)
            order = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
            for first in range(0, len(order), _TEXTS):
                chosen = order[first : first + _TEXTS]
                self._add(missing[chosen], self._encoded([texts[at] for at in chosen]))
        if not len(wanted):
            return self._encoded([])
        parts = [os.pread(self._data, length, start - 1) for start, length in self._places[wanted].tolist()]
        return self._dense(parts) if self._encoder.kind == "dense" else self._sparse(parts)

    def _held(self, rows: Rows) -> NDArray[np.bool_]:
        places = self._places[rows]
        size = os.fstat(self._data).st_size
        kept: NDArray[np.bool_] = (places[:, 0] > 0) & (places.sum(axis=1) - 1 <= size)
        return kept

    def _encoded(self, texts: list[str]) -> Vectors:
        encode = self._encoder.encode_query if self._side == "query" else self._encoder.encode_document
        vectors = encode(texts)
        check(vectors, self._encoder.kind, len(texts))
        if self._encoder.kind != "dense" and dimension(vectors) > np.iinfo(np.int32).max:
            raise VectorError(f"sparse vectors of {dimension(vectors):,} columns: at most 2**31 - 1 can be kept")
        return vectors

    def _add(self, rows: Rows, vectors: Any) -> None:
        if self._encoder.kind == "dense":
            parts = [row.tobytes() for row in np.ascontiguousarray(vectors, np.float32)]
        else:
            bounds = zip(vectors.indptr[:-1].tolist(), vectors.indptr[1:].tolist(), strict=True)
            parts = [
                vectors.indices[first:last].astype(np.int32).tobytes()
                + vectors.data[first:last].astype(np.float32).tobytes()
                for first, last in bounds
            ]
        lengths = np.array([len(part) for part in parts], np.int64)
        with locked(self._lock, f"writing {self._folder}", wait=True):
            begin = os.fstat(self._data).st_size
            with open(self._data, "ab", closefd=False) as file:
                file.writelines(parts)
            os.fsync(self._data)
            # The place counts from 1: 0 stands for a vector that is not kept.
            self._places[rows] = np.stack([1 + begin + np.cumsum(lengths) - lengths, lengths], axis=1)

    def _dense(self, parts: list[bytes]) -> Vectors:
        lengths = {len(part) for part in parts}
        if len(lengths) > 1:
            raise TrainingDataError(f"{self._folder} holds vectors of several lengths: delete the folder")
        return np.frombuffer(b"".join(parts), np.float32).reshape(len(parts), -1)

    def _sparse(self, parts: list[bytes]) -> Vectors:
        from scipy.sparse import csr_matrix

        numbers = [np.frombuffer(part, np.int32) for part in parts]
        counts = np.array([len(part) // 2 for part in numbers], np.int64)
        columns = np.concatenate([part[: len(part) // 2] for part in numbers])
        weights = np.concatenate([part[len(part) // 2 :] for part in numbers]).view(np.float32)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return csr_matrix((weights, columns, offsets), shape=(len(parts), int(columns.max(initial=0)) + 1))


def _opened(path: Path, rows: int) -> NDArray[np.int64]:
    """Where each row's vector lies and how many bytes it has, int64 ``[rows, 2]``, mapped for all processes."""
    if not path.exists():
        new = path.with_suffix(".new.npy")
        np.lib.format.open_memmap(new, mode="w+", dtype=np.int64, shape=(rows, 2)).flush()
        new.replace(path)
    places: NDArray[np.int64] = np.load(path, mmap_mode="r+")
    if places.shape != (rows, 2) or places.dtype != np.int64:
        raise TrainingDataError(f"{path} is not that of a set with {rows:,} rows: delete its folder")
    return places
