"""Inverted lists (Jégou et al., 2011): rows around centroids, of which the lists of the nearest are scanned by their codes.

The codes of eight bits (see :mod:`retrievers.indexes.sieve`) lie list by list, so that a list is read in one go, at a quarter
of what its vectors take; the vectors themselves score the best of what was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes import kernels
from retrievers.indexes._dense_numpy import NO_ROW
from retrievers.indexes.arrays import load_array, touch
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.sieve import Sieve

_CHUNK = 1 << 14  # vectors whose lists are looked up at a time
_ROWS, _STARTS = "rows.npy", "starts.npy"
_LISTS, _CENTROIDS = "lists", "centroids"


@dataclass(frozen=True, eq=False)
class Lists:
    """Codes of the centroids; those of the rows, list by list; which rows they are, int32 ``[n]``; and where each list starts.

    ``starts`` is int64 ``[lists + 1]``.
    """

    centroids: Sieve
    sieve: Sieve
    rows: NDArray[np.int32]
    starts: NDArray[np.int64]
    place: str = "the lists"

    @classmethod
    def build(cls, values: NDArray[np.float32], sieve: Sieve, coarse: Any) -> Self:
        """The lists of vectors, float32 ``[n, dim]``, around the centroids that a trained FAISS quantiser holds."""
        lists = np.empty(len(values), np.int64)
        for first in range(0, len(values), _CHUNK):
            lists[first : first + _CHUNK] = coarse.search(values[first : first + _CHUNK], 1)[1][:, 0]
        return cls._of(coarse, sieve, lists, "the lists")

    @classmethod
    def of_faiss(cls, index: Any, sieve: Sieve, place: str) -> Self:
        """Those of an IndexIVFFlat. Raises IndexDamagedError where they do not hold each row once."""
        from faiss import rev_swig_ptr

        n, inverted = len(sieve.codes), index.invlists
        sizes = [inverted.list_size(number) for number in range(index.nlist)]
        lists = np.full(n, -1, np.int64)
        sound = sum(sizes) == n
        for number, size in enumerate(sizes if sound else []):
            rows = rev_swig_ptr(inverted.get_ids(number), size)
            sound = sound and 0 <= rows.min(initial=0) <= rows.max(initial=0) < n
            if sound:
                lists[rows] = number
        if not sound or lists.min(initial=0) < 0:
            raise IndexDamagedError(
                f"{place} holds lists that are not those of {n} vectors: restore it from a backup, or build the index again"
            )
        return cls._of(index.quantizer, sieve, lists, place)

    @classmethod
    def _of(cls, coarse: Any, sieve: Sieve, lists: NDArray[np.int64], place: str) -> Self:
        rows = np.argsort(lists, kind="stable")
        starts = np.searchsorted(lists[rows], np.arange(coarse.ntotal + 1))
        codes = Sieve(sieve.codes[rows], np.ascontiguousarray(sieve.bounds[:, rows]), sieve.spread)
        centroids = Sieve.of(coarse.reconstruct_n(0, coarse.ntotal))
        return cls(centroids, codes, rows.astype(np.int32), starts.astype(np.int64), place)

    def propose(self, queries: NDArray[np.float32], count: int, live: Bitmap | None, probes: int) -> NDArray[np.int64]:
        """The ``count`` best rows of ``probes`` lists for each query, int64 ``[queries, count]``; -1 where there are fewer.

        Raises IndexDamagedError where a list is out of bounds.
        """
        found = np.empty((len(queries), count), np.int64)
        outcome = kernels.lists_search(
            queries.shape[1],
            *self.sieve.parts(),
            *self.centroids.parts(),
            self.rows,
            self.starts,
            queries,
            None if live is None else np.ascontiguousarray(live),
            probes,
            found,
        )
        if outcome == NO_ROW:
            raise IndexDamagedError(
                f"{self.place} holds rows that there are not: restore it from a backup, or build the index again"
            )
        return found

    def save(self, folder: Path) -> None:
        for name, sieve in ((_LISTS, self.sieve), (_CENTROIDS, self.centroids)):
            (folder / name).mkdir()
            sieve.save(folder / name)
        np.save(folder / _LISTS / _ROWS, self.rows)
        np.save(folder / _LISTS / _STARTS, self.starts)

    @classmethod
    def load(cls, folder: Path, n: int, dimension: int, lists: int) -> Self:
        """Map what :meth:`save` wrote. Raises IndexDamagedError."""
        place = folder / _LISTS
        sieve, centroids = Sieve.load(place, n, dimension), Sieve.load(folder / _CENTROIDS, lists, dimension)
        rows, starts = load_array(place / _ROWS, np.int32, (n,)), load_array(place / _STARTS, np.int64, (lists + 1,))
        touch(centroids.codes, rows, sieve.codes, sieve.bounds)
        return cls(centroids, sieve, rows, starts, str(place))
