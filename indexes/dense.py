"""The ``flat`` kind: every dense vector is compared, and the outcome is exact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes.arrays import load_meta
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import StoredVectors, check_search
from retrievers.indexes.parameters import AnyParameter, check_parameters
from retrievers.indexes.protocol import Found
from retrievers.specs import Spec
from retrievers.vectors import Vectors

_META = "dense.json"


class FlatIndex:
    """Dense vectors, float32, by inner product: ``flat``, without parameters."""

    PARAMETERS: Mapping[str, Mapping[str, AnyParameter]] = {"flat": {}}

    def __init__(self, stored: StoredVectors, spec: Spec) -> None:
        self.spec = spec
        self.size, self.dimension = stored.values.shape
        self._stored = stored

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors, float32 ``[size, dimension]``; memory-mapped in an index that was loaded."""
        return self._stored.values

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index float32 ``[n, dim]``; the array is kept, not copied. Raises VectorError, SpecError."""
        check_parameters(spec, cls.PARAMETERS)
        return cls(StoredVectors.of(vectors), spec)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`; nothing is lost."""
        check_parameters(spec, cls.PARAMETERS)
        return cls(StoredVectors.gathered([(part._stored, rows) for part, rows in parts]), spec)

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        save_stored(folder, self._stored, {})

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote, memory-mapped. Raises IndexDamagedError, naming the file."""
        check_parameters(spec, cls.PARAMETERS)
        stored, _ = load_stored(folder)
        return cls(stored, spec)

    def search(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None, live: Bitmap | None = None) -> Found:
        """The best ``k`` rows by inner product for each query (float32 ``[queries, dim]``).

        Raises VectorError for queries of another shape or type, QueryError for a ``k`` below 1 or bitmaps of another
        size, IndexDamagedError where the stored vectors turn out to hold what was never written.
        """
        return self._stored.scan(queries, k, check_search(k, self.size, allowed, live))


def save_stored(folder: Path, stored: StoredVectors, more: Mapping[str, Any]) -> None:
    """Write vectors, and a description of them with whatever else is to be remembered."""
    rows, dimension = stored.values.shape
    sieved = int(stored.sieve is not None)
    meta = {"rows": rows, "dimension": dimension, "longest": stored.longest, "sieved": sieved, **more}
    stored.save(folder)
    (folder / _META).write_text(json.dumps(meta) + "\n")


def load_stored(folder: Path) -> tuple[StoredVectors, dict[str, Any]]:
    """The vectors that :func:`save_stored` wrote, memory-mapped, and the description. Raises IndexDamagedError."""
    meta = load_meta(folder / _META, {"rows": int, "dimension": int, "longest": float})
    sieved = meta.get("sieved", 0)  # which indexes of older versions do not tell: they have no codes
    if sieved not in (0, 1):
        raise IndexDamagedError(f"{folder / _META} gives sieved as {sieved!r}: restore it, or build the index again")
    return StoredVectors.load(folder, meta["rows"], meta["dimension"], meta["longest"], bool(sieved)), meta
