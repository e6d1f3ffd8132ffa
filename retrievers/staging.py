"""Vectors that a build has encoded and not yet committed, kept on disk so that no stop costs their encoding again."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
import zlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.vectors import TokenVectors, Vectors, concatenate, csr, take


class Staging:
    """A folder of ``.npz`` files, one a batch of documents; a file that a crash has spoilt is ignored.

    A vector is known by the document's id and the digest of what the encoder saw. A file is removed once the last of its
    documents is committed, so that those of a segment that is still filled stay when the one before is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._known: dict[tuple[str, str], tuple[Path, int]] = {}  # what an earlier process has left
        self._left: dict[Path, set[str]] = {}  # the ids of each file's documents that are not committed
        self._count = 0
        self._last: tuple[Path, Vectors] | None = None
        for path in sorted(folder.glob("*.npz")):
            self._count = int(path.stem) + 1
            batch = _read(path)
            if batch is None:
                path.unlink()
                continue
            for row, key in enumerate(batch[0]):
                self._known[key] = path, row
            self._left[path] = {id for id, _ in batch[0]}

    def __len__(self) -> int:
        """How many documents' vectors are kept."""
        return sum(map(len, self._left.values()))

    def __contains__(self, document: Document) -> bool:
        return bool(self._known) and _key(document) in self._known

    def get(self, documents: Sequence[Document]) -> Vectors:
        """The staged vectors of documents that are all here."""
        places = [self._known[_key(document)] for document in documents]
        parts, order = [], []
        for path in dict.fromkeys(path for path, _ in places):
            mine = [number for number, place in enumerate(places) if place[0] == path]
            parts.append(take(self._load(path), np.array([places[number][1] for number in mine], np.int64)))
            order += mine
        return take(concatenate(parts), np.argsort(np.array(order, np.int64)))

    def put(self, documents: Sequence[Document], vectors: Vectors) -> None:
        """Keep the vectors of a batch."""
        keys = np.frombuffer(json.dumps([_key(document) for document in documents]).encode(), np.uint8)
        path = self._folder / f"{self._count:08d}.npz"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, keys=keys, **_to_arrays(vectors))
        temporary.replace(path)
        self._left[path] = {document.id for document in documents}
        self._count += 1

    def forget(self, ids: Set[str]) -> None:
        """The documents of these ids are committed: remove the files that hold no others."""
        for path, left in list(self._left.items()):
            self._left[path] = left - ids
            if not self._left[path]:
                del self._left[path]
                path.unlink()
        if self._last is not None and self._last[0] not in self._left:
            self._last = None
        self._known = {key: place for key, place in self._known.items() if place[0] in self._left}

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder)

    def _load(self, path: Path) -> Vectors:
        if self._last is None or self._last[0] != path:
            batch = _read(path)
            if batch is None:
                raise OSError(f"{path} could be read a moment ago, and cannot be now")
            self._last = path, batch[1]
        return self._last[1]


def _key(document: Document) -> tuple[str, str]:
    return document.id, hashlib.blake2b(document.content.encode(), digest_size=16).hexdigest()


def _read(path: Path) -> tuple[list[tuple[str, str]], Vectors] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [(str(id), str(digest)) for id, digest in json.loads(file["keys"].tobytes())]
            return keys, _from_arrays({name: file[name] for name in file.files})
    except (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError):
        return None


def _to_arrays(vectors: Any) -> dict[str, Any]:
    if isinstance(vectors, TokenVectors):
        return {"values": vectors.values, "offsets": vectors.offsets}
    if isinstance(vectors, np.ndarray):
        return {"values": vectors}
    return {
        "data": vectors.data,
        "indices": vectors.indices,
        "lengths": np.diff(vectors.indptr),
        "columns": np.array([vectors.shape[1]], np.int64),
    }


def _from_arrays(arrays: dict[str, Any]) -> Vectors:
    if "data" in arrays:
        return csr(arrays["data"], arrays["indices"], arrays["lengths"], int(arrays["columns"][0]))
    if "offsets" in arrays:
        return TokenVectors(arrays["values"], arrays["offsets"])
    values: NDArray[np.float32] = arrays["values"]
    return values
