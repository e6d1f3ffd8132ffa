"""A target for the recall: how thoroughly an index must search, found out on vectors of its own collection, or on questions.

A question is less like any document than documents are like each other, and so harder to answer: a graph of 10,000 vectors
of MiniLM found 96% of a left-out document's ten nearest by a single path, and 58% of a question's. Where no questions are
at hand, queries are therefore made of documents that are left out of what is searched: sums of three of them, near to each
and alike to none. The truth is an exhaustive scan, and the cheapest setting that finds at least the wanted share of the best
is taken. It is a function of the vectors and of the built index alone: costs are counted, never timed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes import accelerators, bitmaps
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import StoredVectors
from retrievers.indexes.graph import Graph
from retrievers.specs import Spec

DEPTH = 10
"""The recall is that of so many best rows."""

LEAST = 500
"""Fewer vectors than this are scanned: too few are left to draw queries from."""

_SAMPLE = 1000  # rows that are drawn, of ten times as many or more; else every tenth. The standard error is then .003
_SUMMED = 3  # rows that a query is made of: of two a graph finds .99 where binary codes find .91, of three .99 and .96
_TIED = 54  # more rows looked at for others that score what the last of the best scores
_SEED = 4321
_GROWTH = 1.19  # from one setting that is tried to the next: four steps double it
_MOST_EFFORT = 1 << 14
_CANDIDATES = 2000  # looked at for each number of probes; more only where all lists are searched
_RESCORING = 32  # codes that are compared in the time in which one candidate is scored exactly


@dataclass(frozen=True)
class Tuned:
    """What a target for the recall led to: the recall reached, by how many queries, and the parameters set for it."""

    recall: float
    queries: int
    values: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return {"recall": self.recall, "queries": self.queries, "values": self.values}

    @classmethod
    def from_json(cls, value: Any, spec: Spec, place: str) -> Self:
        """Read what :meth:`to_json` gave, for an index of ``spec``. Raises IndexDamagedError, naming the place."""
        known = [name for name in accelerators.TUNED if name in accelerators.PARAMETERS[spec.name]]
        if isinstance(value, dict) and sorted(value) == ["queries", "recall", "values"]:
            recall, queries, values = value["recall"], value["queries"], value["values"]
            sound = type(recall) is float and 0 <= recall <= 1 and type(queries) is int and queries > 0
            sound = sound and isinstance(values, dict) and sorted(values) == sorted(known)
            if sound and all(type(number) is int and 1 <= number < 1 << 31 for number in values.values()):
                return cls(recall, queries, values)
        raise IndexDamagedError(f"{place} does not tell how the index was tuned: build the index again")


def tune(stored: StoredVectors, index: Any, spec: Spec) -> Tuned:
    """The cheapest parameters of ``index`` that reach the recall of ``spec``, or the best ones where none does."""
    n, dimension = stored.values.shape
    wanted = float(spec.parameters["recall"])
    chosen = accelerators.settings(spec, n, dimension)
    barred = {index.entry} if isinstance(index, Graph) else set()
    random = np.random.default_rng(_SEED)
    sample = random.choice(n, min(_SAMPLE, n // 10), replace=False)
    sample = np.array(sorted(set(sample.tolist()) - barred), np.int64)
    others = np.ones(n, np.bool_)
    others[sample] = False
    packed = bitmaps.pack(others)
    queries = _sums(stored.values[sample], random)
    mask: Bitmap | None = packed
    if isinstance(index, Graph):  # what was left out of it cannot be met, and needs no bitmap
        index, mask = index.without(~others), None
    recall, values = _choose(_Trial(stored, index, chosen, queries, packed, mask, DEPTH), spec, chosen, wanted)
    return Tuned(round(recall, 4), len(sample), values)


def tune_for(
    stored: StoredVectors,
    index: Any,
    spec: Spec,
    queries: NDArray[np.float32],
    wanted: float,
    k: int,
    live: Bitmap | None,
) -> Tuned:
    """As :func:`tune`, for the ``k`` best of these queries, float32 ``[queries, dim]``, among the live rows."""
    n, dimension = stored.values.shape
    chosen = accelerators.settings(spec, n, dimension)
    everything = bitmaps.pack(np.ones(n, np.bool_)) if live is None else live
    trial = _Trial(stored, index, chosen, queries, everything, live, k)
    recall, values = _choose(trial, spec, chosen, wanted)
    return Tuned(round(recall, 4), len(queries), values)


def _sums(values: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Sums of three rows, each at length 1; the sum has the mean length of the rows."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    units = values / np.where(lengths > 0, lengths, 1)
    summed = sum((units[random.permutation(len(units))] for _ in range(_SUMMED - 1)), units)
    norms = np.linalg.norm(summed, axis=1, keepdims=True)
    return np.ascontiguousarray(summed * (lengths.mean() / np.where(norms > 0, norms, 1)), np.float32)


class _Trial:
    """Queries, and the rows that are right for each among the ``permitted``; ``mask`` is what a search must leave out."""

    def __init__(
        self,
        stored: StoredVectors,
        index: Any,
        chosen: Mapping[str, int],
        queries: NDArray[np.float32],
        permitted: Bitmap,
        mask: Bitmap | None,
        depth: int,
    ) -> None:
        self.index, self.chosen, self.queries, self.mask = index, chosen, queries, mask
        self.size = len(stored.values)
        self.kept = bitmaps.cardinality(permitted)
        self.depth = min(depth, self.kept)
        best = stored.scan(self.queries, depth + _TIED, permitted)
        right = [rows[scores >= scores[self.depth - 1]] for rows, scores in zip(best.rows, best.scores, strict=True)]
        self.right = np.concatenate([number * self.size + np.sort(rows) for number, rows in enumerate(right)])

    def curve(self, values: Mapping[str, int], count: int) -> NDArray[np.float64]:
        """The recall for 1 to ``count`` candidates, float64 ``[count]``."""
        count = min(count, self.kept)
        hits = np.zeros(count, np.int64)
        step = max(1, (1 << 20) // count)
        for first in range(0, len(self.queries), step):
            some = self.queries[first : first + step]
            rows = accelerators.propose(self.index, {**self.chosen, **values}, some, count, self.mask)
            keys = rows + self.size * np.arange(first, first + len(some))[:, None]
            at = np.minimum(np.searchsorted(self.right, keys), len(self.right) - 1)
            found = (self.right[at] == keys) & (rows >= 0)
            hits += np.minimum(found.cumsum(axis=1), self.depth).sum(axis=0)
        return hits / (self.depth * len(self.queries))


def _choose(trial: _Trial, spec: Spec, chosen: Mapping[str, int], wanted: float) -> tuple[float, dict[str, int]]:
    """The recall, and the values of the parameters that it takes."""
    probed = "nlist" in chosen
    if "candidates" not in accelerators.PARAMETERS[spec.name]:
        name, most = ("nprobe", chosen["nlist"]) if probed else ("ef_search", min(trial.kept, _MOST_EFFORT))
        return _effort(trial, name, most, wanted, accelerators.candidates({}, spec.name, trial.depth))
    if not probed:
        recall, count = _shortlist(trial, {}, wanted, trial.kept)
        return recall, {"candidates": count}
    best: tuple[float, float, dict[str, int]] | None = None
    found, probes = _effort(trial, "nprobe", chosen["nlist"], wanted, max(_CANDIDATES, trial.depth))
    for more in [value for value in _grid(chosen["nlist"]) if value >= probes["nprobe"] and found >= wanted]:
        scanned = more * trial.size / chosen["nlist"]
        if best is not None and scanned >= best[0]:
            break
        recall, count = _shortlist(trial, {"nprobe": more}, wanted, max(_CANDIDATES, trial.depth))
        cost = scanned + _RESCORING * count
        if recall >= wanted and (best is None or cost < best[0]):
            best = cost, recall, {"nprobe": more, "candidates": count}
    if best is not None:
        return best[1:]
    recall, count = _shortlist(trial, {"nprobe": chosen["nlist"]}, wanted, trial.kept)
    return recall, {"nprobe": chosen["nlist"], "candidates": count}


def _effort(trial: _Trial, name: str, most: int, wanted: float, count: int) -> tuple[float, dict[str, int]]:
    """The least value of a parameter, up to ``most``, by which ``count`` candidates hold the wanted share.

    More of it never finds less, but for chance.
    """
    tried, found = _grid(most), dict[int, float]()

    def reaches(at: int) -> bool:
        found[at] = float(trial.curve({name: tried[at]}, count)[-1])
        return found[at] >= wanted

    at = bisect_left(range(len(tried) - 1), True, key=reaches)
    if at not in found:
        reaches(at)
    return found[at], {name: tried[at]}


def _shortlist(trial: _Trial, values: dict[str, int], wanted: float, most: int) -> tuple[float, int]:
    """The least number of candidates, up to ``most``, that reaches the recall."""
    count = min(_CANDIDATES, most)
    while True:
        curve = trial.curve(values, count)
        reached = np.flatnonzero(curve >= wanted)
        if len(reached) or count >= min(most, trial.kept):
            at = max(int(reached[0]) if len(reached) else int(curve.argmax()), trial.depth - 1)
            return float(curve[at]), at + 1
        count = min(4 * count, most)


def _grid(most: int) -> list[int]:
    """The values that are tried, 1 to ``most``, ascending."""
    steps = int(np.log(most) / np.log(_GROWTH))
    return sorted({round(_GROWTH**step) for step in range(steps + 1)} | {most})
