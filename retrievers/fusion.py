"""Fusion: one ranking out of several for the same queries, by ranks or by normalised scores.

Every part gives each document of the union a value, the fused score is the weighted sum of these values, and documents
are in the order of fused scores, descending, and of ids, ascending. Sums that differ by rounding alone, by less than
2⁻⁴⁰ of the largest value, are equal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import RunError, SpecError
from retrievers.queries import check_count
from retrievers.runs import Run, decreasing, ranking
from retrievers.specs import Spec

Floats = NDArray[np.float64]

NORMALISERS = ("min-max", "z", "none")
"""How the scores of a part are made comparable with those of others."""

DEFAULT_K = 60  # of reciprocal ranks, as in the paper

_MOST_K = 1e6  # past this, the reciprocals of neighbouring ranks are equal but for rounding
_MOST_WEIGHT = 1e30
_MOST_SCORE = 1e38  # what a 32-bit float holds, with room for decreasing()
_BITS = 40  # what of a fused score counts: far more than ranks need, far less than rounding touches


@dataclass(frozen=True)
class Fusion(ABC):
    """A method of fusion: ``rrf``, ``rrf(k=60)``, ``convex(normalise=min-max)``; ``str()`` and :meth:`parse` are inverses."""

    @staticmethod
    def parse(text: str | Fusion) -> Fusion:
        """Read a specification: :class:`ReciprocalRanks` (``rrf``) or :class:`Convex` (``convex``).

        Raises SpecError, which tells what there is, for other names, parameters and values.
        """
        if isinstance(text, Fusion):
            return text
        if not isinstance(text, str):
            raise SpecError(f"{text!r:.80} is no fusion: write rrf, rrf(k=60) or convex(normalise=min-max)")
        spec = Spec.parse(text)
        if spec.name not in ("rrf", "convex"):
            raise SpecError(f"there is no fusion {spec.name!r}: there are rrf(k=60) and convex(normalise=min-max)")
        known = "k" if spec.name == "rrf" else "normalise"
        for name in spec.parameters:
            if name != known:
                raise SpecError(f"{spec}: {spec.name} has no parameter {name!r}: it has {known}")
        value = spec.parameters.get(known)
        if spec.name == "convex":
            return Convex() if value is None else Convex(str(value))
        if value is None:
            return ReciprocalRanks()
        if isinstance(value, bool | str):
            raise SpecError(f"{spec}: k is {value!r}, and must be a number from 0 to {_MOST_K:.0f}")
        return ReciprocalRanks(value)

    @abstractmethod
    def values(self, scores: Floats) -> tuple[Floats, float]:
        """The values of a part's documents, from their scores, best first; and of every document that the part lacks.

        ``scores`` has at least one element and is of finite 32-bit floats.
        """

    def weigh(self, weights: Sequence[float] | None, parts: int) -> Floats:
        """The factor of each part's values; equal where ``weights`` is None.

        Raises SpecError where there is not one weight a part, one is negative or no number, or all are 0.
        """
        if weights is None:
            return np.ones(parts)
        given = list(weights)
        if len(given) != parts:
            raise SpecError(
                f"{len(given)} {'weight' if len(given) == 1 else 'weights'} for {parts} parts: give one for each part"
            )
        for number, weight in enumerate(given):
            if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= weight <= _MOST_WEIGHT:
                raise SpecError(f"weight {number} is {weight!r}: weights are numbers from 0 to {_MOST_WEIGHT:g}")
        if not any(given):
            raise SpecError(f"all {parts} weights are 0: give at least one part a weight")
        return np.array(given, np.float64)


@dataclass(frozen=True)
class ReciprocalRanks(Fusion):
    """Reciprocal rank fusion: a part gives the document at rank r (from 1) the value 1 / (k + r), and others 0.

    Weights are factors of these, 1 by default. ``k`` is a number from 0 to 1,000,000; SpecError otherwise.

    Cormack, Clarke and Büttcher: Reciprocal rank fusion outperforms Condorcet and individual rank learning methods,
    SIGIR 2009, with k = 60.
    """

    k: float = DEFAULT_K

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int | float) or not 0 <= self.k <= _MOST_K:
            raise SpecError(f"rrf: k is {self.k!r}, and must be a number from 0 to {_MOST_K:.0f}")

    def __str__(self) -> str:
        return f"rrf(k={self.k})"

    def values(self, scores: Floats) -> tuple[Floats, float]:
        return 1.0 / (self.k + np.arange(1, len(scores) + 1, dtype=np.float64)), 0.0


@dataclass(frozen=True)
class Convex(Fusion):
    """Convex combination of scores, normalised for each query and part; weights are scaled to the sum 1.

    ``normalise`` is

    - ``min-max``: (score - minimum) / (maximum - minimum), over what the part found for the query;
    - ``z``: (score - mean) / standard deviation, of the population;
    - ``none``: the score itself, for parts whose scores are on one scale.

    A document that a part lacks gets the lowest normalised value that the part gave for the query: it is known to score no
    higher than that. Where all scores of a part are equal, as where it found a single document, min-max gives each found
    one 1, and those it lacks 0, min-max's lowest value: having found a document is then all that the part says, and with
    one value for found and lacking it would say nothing. z gives 0 to all then, and the part has no say. A part that found
    nothing gives 0 to every document.

    Scores one 32-bit step apart count as equal: that is how a run holds ties in order (:func:`retrievers.runs.decreasing`).

    Raises SpecError for another ``normalise``.

    Bruch, Gai and Ingber: An analysis of fusion functions for hybrid retrieval, ACM TOIS 42(1), 2023.
    """

    normalise: str = "min-max"

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISERS:
            raise SpecError(f"convex: normalise is {self.normalise!r}: there are {', '.join(NORMALISERS)}")

    def __str__(self) -> str:
        return f"convex(normalise={self.normalise})"

    def values(self, scores: Floats) -> tuple[Floats, float]:
        level = _with_ties(scores)
        if self.normalise == "none":
            return level, float(level[-1])
        lowest, highest = level[-1], level[0]
        if lowest == highest:
            return (np.ones(len(level)) if self.normalise == "min-max" else np.zeros(len(level))), 0.0
        if self.normalise == "min-max":
            normalised = (level - lowest) / (highest - lowest)
        else:
            normalised = (level - level.mean()) / level.std()
        return normalised, float(normalised[-1])

    def weigh(self, weights: Sequence[float] | None, parts: int) -> Floats:
        given = super().weigh(weights, parts)
        scaled: Floats = given / given.sum()
        return scaled


@dataclass(frozen=True)
class Table:
    """What the parts found for one query: ``values[row, part]`` of ``ids[row]``; the ids ascend."""

    ids: list[str]
    values: Floats

    @classmethod
    def of(cls, fusion: Fusion, parts: Sequence[Sequence[tuple[str, float]]]) -> Table:
        """The table of each part's documents and scores, best first."""
        ids = sorted({id for part in parts for id, _ in part})
        rows = {id: row for row, id in enumerate(ids)}
        values = np.zeros((len(ids), len(parts)))
        for at, part in enumerate(parts):
            if part:
                found, values[:, at] = fusion.values(np.array([score for _, score in part], np.float64))
                values[[rows[id] for id, _ in part], at] = found
        return cls(ids, values)

    def ranked(self, weights: Floats) -> list[tuple[str, float]]:
        """The documents and their fused scores, best first, equal ones by id."""
        if not self.ids:
            return []
        terms = self.values * weights
        _, exponent = math.frexp(float(np.abs(terms).max()))
        unit = math.ldexp(1.0, max(exponent - _BITS, -1000))
        scores = np.round(terms.sum(axis=1) / unit) * unit + 0.0  # + 0.0: never -0.0
        order = np.argsort(-scores, kind="stable")
        return list(zip(map(self.ids.__getitem__, order.tolist()), scores[order].tolist(), strict=True))


def fuse(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    fusion: str | Fusion = "rrf",
    *,
    weights: Sequence[float] | None = None,
    depth: int | None = None,
) -> Run:
    """The run that several runs, the parts, fuse to; its scores strictly decrease.

    It has the queries that any part has, in the order in which they first come. ``weights`` are non-negative numbers, one a
    part, equal by default; ``depth`` the number of documents a query that are taken from each part, and given back at most.

    Raises SpecError for a fusion that is not known, weights that do not fit and where there is no run, QueryError for a
    depth below 1, RunError for a score that is no finite 32-bit float.
    """
    method = Fusion.parse(fusion)
    if not runs:
        raise SpecError("there is no run to fuse: give two or more")
    factors = method.weigh(weights, len(runs))
    if depth is not None:
        check_count("depth", depth)
    fused: Run = {}
    for query in dict.fromkeys(query for run in runs for query in run):
        ranked = tabulate(method, runs, query, depth).ranked(factors)[:depth]
        scores = decreasing(score for _, score in ranked)
        fused[query] = {id: score for (id, _), score in zip(ranked, scores, strict=True)}
    return fused


def tabulate(
    fusion: Fusion, runs: Sequence[Mapping[str, Mapping[str, float]]], query: str, depth: int | None = None
) -> Table:
    """The table of one query. Raises RunError for a score that is no finite 32-bit float."""
    parts = [ranking(run.get(query, {}))[:depth] for run in runs]
    for number, part in enumerate(parts):
        for id, score in part:
            if not -_MOST_SCORE <= score <= _MOST_SCORE:
                raise RunError(
                    f"run {number}, query {query!r}: document {id!r} has the score {score!r}, and scores are from "
                    f"-{_MOST_SCORE:g} to {_MOST_SCORE:g}"
                )
    return Table.of(fusion, parts)


def _with_ties(scores: Floats) -> Floats:
    """Scores, best first, where those of a chain of 32-bit neighbours have the score of the first of the chain."""
    narrow = scores.astype(np.float32)
    starts = np.concatenate([[True], narrow[1:] < np.nextafter(narrow[:-1], np.float32(-np.inf))])
    tied: Floats = scores[starts][np.cumsum(starts) - 1]
    return tied
