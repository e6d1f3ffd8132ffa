"""Vectors into files, batch by batch: what is written was never all in memory.

Dense vectors become a ``.npy`` file, float32 ``[n, dim]``; sparse ones an ``.npz`` file that ``scipy.sparse.load_npz``
reads; token vectors an ``.npz`` file of ``values`` and ``offsets`` (see :class:`retrievers.vectors.TokenVectors`).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes.arrays import GrowingArray
from retrievers.vectors import Kind, TokenVectors, Vectors

SUFFIXES: dict[Kind, str] = {"dense": ".npy", "multi-vector": ".npz", "sparse": ".npz", "lexical": ".npz"}


class VectorFile:
    """Writes vectors to ``path`` and their ids to ``ids`` (a JSON string a line); both appear whole, or not at all.

    A context manager: leaving it without :meth:`finish` leaves nothing behind.
    """

    def __init__(self, path: Path, ids: Path, kind: Kind) -> None:
        self._path, self._ids_path, self._kind = path, ids, kind
        path.parent.mkdir(parents=True, exist_ok=True)
        self._folder = path.parent / f".{path.name}.{os.getpid()}.tmp"
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir()
        self._ids = (self._folder / "ids").open("w", encoding="utf-8", newline="\n")
        self._arrays: dict[str, GrowingArray] = {}
        self._lengths = [np.zeros(1, np.int64)]
        self._columns = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        files: list[IO[str] | GrowingArray] = [self._ids, *self._arrays.values()]
        for file in files:
            with suppress(OSError):  # where the disk is full, closing fails once more
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def append(self, ids: list[str], vectors: Vectors) -> None:
        """Write the vectors of some more texts."""
        for id in ids:
            self._ids.write(json.dumps(id, ensure_ascii=False) + "\n")
        if isinstance(vectors, TokenVectors):
            self._append("values", vectors.values)
            self._lengths.append(np.diff(vectors.offsets))
        elif isinstance(vectors, np.ndarray):
            self._append("values", vectors)
        else:
            self._columns = int(vectors.shape[1])
            wide = self._columns > np.iinfo(np.int32).max
            self._append("data", vectors.data)
            self._append("indices", vectors.indices.astype(np.int64 if wide else np.int32, copy=False))
            self._lengths.append(np.diff(vectors.indptr).astype(np.int64))

    def finish(self) -> int:
        """Put the files in their places; returns the size of the vectors' file in bytes."""
        self._ids.close()
        for array in self._arrays.values():
            array.finish()
        done = self._folder / "done"
        if self._kind == "dense":
            self._empty("values").rename(done)
        else:
            self._zip(done)
        (self._folder / "ids").replace(self._ids_path)
        done.replace(self._path)
        return self._path.stat().st_size

    def _append(self, name: str, values: NDArray[Any]) -> None:
        if name not in self._arrays:
            self._arrays[name] = GrowingArray(self._folder / f"{name}.npy", values.dtype, values.shape[1:])
        self._arrays[name].append(values)

    def _empty(self, name: str) -> Path:
        """The file of an array, which is made here where there was nothing to write."""
        path = self._folder / f"{name}.npy"
        if not path.exists():
            shape = (0,) if name in ("data", "indices") else (0, 0)
            np.save(path, np.empty(shape, np.int32 if name == "indices" else np.float32))
        return path

    def _zip(self, path: Path) -> None:
        offsets = np.cumsum(np.concatenate(self._lengths), dtype=np.int64)
        small: dict[str, NDArray[Any]] = {"offsets": offsets}
        large = ["values"]
        if self._kind != "multi-vector":
            fits = offsets[-1] <= np.iinfo(np.int32).max and self._columns <= np.iinfo(np.int32).max
            small = {
                "indptr": offsets.astype(np.int32) if fits else offsets,
                "shape": np.array([len(offsets) - 1, self._columns], np.int64),
                "format": np.array(b"csr"),
            }
            large = ["data", "indices"]
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for name in large:
                with (
                    self._empty(name).open("rb") as source,
                    archive.open(f"{name}.npy", "w", force_zip64=True) as target,
                ):
                    shutil.copyfileobj(source, target, 1 << 20)
            for name, values in small.items():
                buffer = io.BytesIO()
                np.save(buffer, values)
                archive.writestr(f"{name}.npy", buffer.getvalue())
