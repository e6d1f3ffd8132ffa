"""A graph of near neighbours (HNSW, Malkov and Yashunin, 2018): built by FAISS, walked by its vectors' codes.

A walk compares a query with some thousand vectors that lie anywhere in memory. It reads their codes of eight bits (see
:mod:`retrievers.indexes.sieve`), a quarter of what the vectors take, and meets the same neighbours; the vectors themselves
score the best of what it found. So nothing of the vectors has to be in memory, and the links are memory-mapped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes import bitmaps, kernels
from retrievers.indexes._dense_numpy import NO_ROW
from retrievers.indexes.arrays import load_array, load_meta, touch
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import import_faiss
from retrievers.indexes.sieve import Sieve

_CHUNK = 1 << 14  # nodes whose links are copied at a time
_META, _LINKS, _STARTS, _UPPER = "graph.json", "links.npy", "starts.npy", "upper.npy"


@dataclass(frozen=True, eq=False)
class Graph:
    """The links of each node, all of them int32.

    Those on the bottom are ``links``, ``[n, 2 m]``. The ones above are rows of ``upper``, ``[any, m]``: those of a node lie
    level by level from ``starts[node]`` on, -1 where it is on the bottom alone. After the last link of a list comes -1. A walk
    starts at ``entry``, on the highest of ``levels`` levels above the bottom.
    """

    sieve: Sieve
    links: NDArray[np.int32]
    starts: NDArray[np.int32]
    upper: NDArray[np.int32]
    entry: int
    levels: int
    place: str = "the graph"

    @classmethod
    def build(cls, values: NDArray[np.float32], sieve: Sieve, m: int, effort: int) -> Self:
        """The graph of vectors, float32 ``[n, dim]``, of ``m`` links, by an ``efConstruction`` of ``effort``."""
        faiss = import_faiss()
        index = faiss.IndexHNSWFlat(values.shape[1], m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = effort
        index.add(values)
        return cls.of_faiss(index.hnsw, sieve, "the graph")

    @classmethod
    def of_faiss(cls, graph: Any, sieve: Sieve, place: str) -> Self:
        """That of an HNSW structure of FAISS. Raises IndexDamagedError where it is not one of as many vectors."""
        faiss = import_faiss()

        links, offsets, levels = (
            faiss.rev_swig_ptr(vector.data(), vector.size())
            for vector in (graph.neighbors, graph.offsets, graph.levels)
        )
        offsets, above = offsets.astype(np.int64), levels.astype(np.int64) - 1
        n, entry, highest = len(sieve.codes), int(graph.entry_point), int(graph.max_level)
        width, upper_width = graph.nb_neighbors(0), graph.nb_neighbors(1)
        sound = len(offsets) == n + 1 and len(above) == n and above.min(initial=0) >= 0 and 0 <= entry < n
        sound = sound and bool((np.diff(offsets) == width + upper_width * above).all())
        sound = sound and offsets[0] == 0 and offsets[-1] == len(links) and above[entry] == highest
        if not sound or not -1 <= links.min() <= links.max() < n:
            raise IndexDamagedError(
                f"{place} holds a graph that is not one of {n} vectors: restore it from a backup, or build the index again"
            )
        bottom = np.empty((n, width), np.int32)
        for first in range(0, n, _CHUNK):
            bottom[first : first + _CHUNK] = links[offsets[first : min(first + _CHUNK, n), None] + np.arange(width)]
        starts = np.where(above > 0, np.cumsum(above) - above, -1).astype(np.int32)
        nodes = np.repeat(np.flatnonzero(above), above[above > 0])
        level = np.arange(len(nodes)) - starts[nodes]
        upper = links[(offsets[nodes] + width + level * upper_width)[:, None] + np.arange(upper_width)]
        return cls(sieve, bottom, starts, upper, entry, highest, place)

    def propose(self, queries: NDArray[np.float32], count: int, live: Bitmap | None, effort: int) -> NDArray[np.int64]:
        """The ``count`` best rows that a walk meets for each query, int64 ``[queries, count]``; -1 where there are fewer.

        It keeps the ``effort`` best (``efSearch``). Raises IndexDamagedError where a link leads nowhere.
        """
        rows = np.empty((len(queries), count), np.int64)
        effort = max(effort, count)
        if live is not None:  # the deleted are visited as well
            live = np.ascontiguousarray(live)
            effort = effort * len(self.links) // max(1, bitmaps.cardinality(live))
        outcome = kernels.graph_search(
            queries.shape[1],
            *self.sieve.parts(),
            self.links,
            self.starts,
            self.upper,
            self.upper.shape[1],
            self.entry,
            self.levels,
            queries,
            live,
            min(effort, len(self.links)),
            rows,
        )
        if outcome == NO_ROW:
            raise IndexDamagedError(
                f"{self.place} holds links that lead nowhere: restore it from a backup, or build the index again"
            )
        return rows

    def without(self, left_out: NDArray[np.bool_]) -> Self:
        """The same without any link to some of its nodes (not its entry point).

        What is asked for as if it were new must not be met in the graph: whoever finds it stands amid its neighbours.
        """
        return replace(self, links=_closed_up(self.links, left_out), upper=_closed_up(self.upper, left_out))

    def save(self, folder: Path) -> None:
        np.save(folder / _LINKS, self.links)
        np.save(folder / _STARTS, self.starts)
        np.save(folder / _UPPER, self.upper)
        meta = {"entry": self.entry, "levels": self.levels, "uppers": len(self.upper), "m": self.upper.shape[1]}
        (folder / _META).write_text(json.dumps(meta) + "\n")

    @classmethod
    def load(cls, folder: Path, sieve: Sieve) -> Self:
        """Map what :meth:`save` wrote. Raises IndexDamagedError."""
        n = len(sieve.codes)
        meta = load_meta(folder / _META, {"entry": int, "levels": int, "uppers": int, "m": int})
        entry, levels, uppers, m = (meta[name] for name in ("entry", "levels", "uppers", "m"))
        if entry >= n or levels > uppers or m < 1:
            raise IndexDamagedError(
                f"{folder / _META} tells of no graph of {n} vectors: restore it from a backup, or build the index again"
            )
        links = load_array(folder / _LINKS, np.int32, (n, 2 * m))
        starts = load_array(folder / _STARTS, np.int32, (n,))
        upper = load_array(folder / _UPPER, np.int32, (uppers, m))
        touch(upper, starts, links, sieve.codes, sieve.bounds)
        return cls(sieve, links, starts, upper, entry, levels, str(folder / _LINKS))


def _closed_up(links: NDArray[np.int32], left_out: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Lists of links without those to some nodes: a list ends at its first -1."""
    gone = (links < 0) | left_out[links]
    order = np.argsort(gone, axis=1, kind="stable")
    return np.take_along_axis(np.where(gone, np.int32(-1), links), order, axis=1)
