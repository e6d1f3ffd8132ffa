"""What every kind of index gives: one protocol, met by the classes that ``retrievers.indexes.kinds`` lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes.bitmaps import Bitmap
from retrievers.specs import Spec
from retrievers.vectors import Vectors


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found, query by query.

    ``rows[i]`` (int64) and ``scores[i]`` (float32) belong to query ``i``, best first, equal scores by ascending row.
    Where fewer than ``k`` rows are permitted (or, in an inverted index, match at all), they are shorter than ``k``.
    """

    rows: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]


class Index(Protocol):
    """The vectors of one segment, in the order of its rows, immutable."""

    spec: Spec
    size: int

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index ``vectors`` (one row each, in order)."""
        ...

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """One index from several.

        Each part is an index and, int64 ``[its size]``, the row that each of its rows takes in the result, or -1 for a
        row that is dropped; together the parts fill rows 0 to n - 1 once each.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        ...

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote, large arrays memory-mapped.

        Raises IndexDamagedError, naming the file, for anything that a search could trip over: sizes, types, headers and
        offsets are checked here, so that no search reads or writes outside its arrays whatever the payload holds.
        """
        ...

    def search(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None, live: Bitmap | None = None) -> Found:
        """The best ``k`` rows of every query.

        ``live`` leaves out deleted rows. ``allowed`` is the outcome of a filter (deleted rows already left out of it):
        with it every kind, approximate ones too, returns exactly what an exhaustive search over those rows returns.
        """
        ...
