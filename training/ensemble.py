"""Heterogeneous ensemble distillation: one target per candidate from teachers whose scores have nothing in common.

A cross-encoder gives logits, BM25 sums of weights, a cosine model numbers near 0.7: their plain mean is the teacher with
the widest range. Normalised within each query's list they weigh alike. Source: Geng, Ru, Zhai and Yang, "Towards
Competitive Search Relevance For Inference-Free Learned Sparse Retrievers" (2024), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError

Normalise = Literal["min-max", "z", "none"]
Floats = NDArray[np.float64]

_EPSILON = 1e-6  # of the paper: a list whose scores are all equal divides by this, not by nothing


@dataclass(frozen=True)
class EnsembleReport:
    """What an ensemble met: numbers of lists, and of candidates.

    ``empty`` lists hold no candidate, in ``single`` ones no teacher scored more than one. ``flat`` and ``unscored`` tell by
    teacher the lists of which it scored two candidates or more, all of them alike, and those of which it scored
    nothing. ``partial`` are candidates that some teachers did not score, ``missing`` those that none did.
    """

    lists: int
    candidates: int
    empty: int
    single: int
    flat: dict[str, int]
    unscored: dict[str, int]
    partial: int
    missing: int

    def __str__(self) -> str:
        parts = [f"{self.candidates:,} candidates in {self.lists:,} lists"]
        for number, what in (
            (self.empty, "empty lists"),
            (self.single, "lists with one scored candidate at most"),
            (self.partial, "candidates that some teachers did not score"),
            (self.missing, "candidates that no teacher scored"),
        ):
            parts += [f"{number:,} {what}"] if number else []
        for counts, what in ((self.flat, "lists of equal scores"), (self.unscored, "lists without a score")):
            parts += [f"{number:,} {what} by {teacher}" for teacher, number in counts.items() if number]
        return ", ".join(parts)


@dataclass(frozen=True)
class Combined:
    """Targets, float32 ``[candidates]``, NaN where no teacher scored, and what was met on the way."""

    targets: NDArray[np.float32]
    report: EnsembleReport


@dataclass(frozen=True)
class Ensemble:
    """The weighted mean of the teachers' normalised scores, times ``scale``.

    ``weights`` names the teachers and tells how much each counts (they are scaled to the sum 1); without it, all
    teachers that are given count alike. ``normalise`` works within a query's list, over the candidates that the teacher
    scored: ``"min-max"`` is ``(t - min) / (max - min + 1e-6)``, as in the paper, ``"z"`` is
    ``(t - mean) / (deviation + 1e-6)`` (of the population), ``"none"`` leaves scores as they are. ``scale`` is the paper's
    S, 30: with targets between 0 and 1 the softmax of the loss is nearly flat.

    Degenerate rows:

    - A candidate without a score (NaN) takes no part in that teacher's normalisation, and its target is the mean over the
      teachers that did score it, with their weights scaled to the sum 1. One that no teacher scored is NaN in the
      target: the losses leave it out.
    - All scores of a list equal, or a single scored candidate: min-max and z give 0, as their formulas do. The constant
      itself means nothing to a softmax or a margin; that it is counted in, rather than the teacher left out, keeps
      the target as flat as it should be where one of the teachers sees no difference.
    - An empty list has no targets.

    Raises TrainingDataError for weights that are not positive numbers, an unknown ``normalise``, or a ``scale`` that is
    not above 0.
    """

    weights: Mapping[str, float] | None = None
    normalise: Normalise = "min-max"
    scale: float = 30.0

    def __post_init__(self) -> None:
        if self.normalise not in get_args(Normalise):
            raise TrainingDataError(f"normalise is {self.normalise!r}: choose one of {', '.join(get_args(Normalise))}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise TrainingDataError(f"the scale of the ensemble is {self.scale!r}: give a number above 0")
        if self.weights is None:
            return
        if not self.weights:
            raise TrainingDataError("the ensemble has no teacher: give weights for one or more, or leave them out")
        for teacher, weight in self.weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise TrainingDataError(
                    f"the weight of {teacher} is {weight!r}: give a number above 0, or leave it out"
                )

    def targets(self, scores: Mapping[str, NDArray[Any]], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        """The targets alone, float32 ``[candidates]``; see :meth:`combine`."""
        return self.combine(scores, offsets).targets

    def combine(self, scores: Mapping[str, NDArray[Any]], offsets: NDArray[np.int64]) -> Combined:
        """Targets and a report.

        ``scores`` are the teachers' for all candidates, float32 ``[candidates]``, NaN for none; the list of query ``i`` is
        ``offsets[i]`` to ``offsets[i + 1]`` (int64 ``[queries + 1]``), as in :class:`retrievers.training.sets.Lists`.

        Raises TrainingDataError for a teacher that is missing, infinite scores, and shapes that do not fit.
        """
        weights = self._weights(scores)
        bounds = np.asarray(offsets, np.int64)
        if bounds.ndim != 1 or not len(bounds) or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
            raise TrainingDataError("the offsets of candidate lists must rise from 0")
        total = int(bounds[-1])
        lengths = np.diff(bounds)
        full = lengths > 0  # reduceat takes an empty part for one of a single element
        owners = np.repeat(np.arange(int(full.sum())), lengths[full])
        starts = bounds[:-1][full]
        sums, weighed = np.zeros(total), np.zeros(total)
        scored_by = np.zeros(total, np.int64)
        most = np.zeros(len(starts), np.int64)
        flat: dict[str, int] = {}
        unscored: dict[str, int] = {}
        for teacher, weight in weights.items():
            values = _checked(teacher, scores[teacher], total)
            known = ~np.isnan(values)
            parts = _Parts(values, known, starts, owners)
            sums[known] += weight * parts.normalised(self.normalise)[known]
            weighed[known] += weight
            scored_by += known
            most = np.maximum(most, parts.counts)
            flat[teacher] = int(np.sum((parts.counts > 1) & (parts.largest == parts.smallest)))
            unscored[teacher] = int(np.sum(parts.counts == 0))
        with np.errstate(invalid="ignore"):
            targets = (self.scale * (sums / weighed)).astype(np.float32)  # 0 / 0 is NaN: no teacher scored it
        report = EnsembleReport(
            lists=len(lengths),
            candidates=total,
            empty=int(np.sum(~full)),
            single=int(np.sum(most <= 1)),
            flat=flat,
            unscored=unscored,
            partial=int(np.sum((scored_by > 0) & (scored_by < len(weights)))),
            missing=int(np.sum(scored_by == 0)),
        )
        return Combined(targets, report)

    def _weights(self, scores: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        weights = dict.fromkeys(scores, 1.0) if self.weights is None else dict(self.weights)
        if not weights:
            raise TrainingDataError("there are no scores of any teacher: run `retrievers score` first")
        missing = [teacher for teacher in weights if teacher not in scores]
        if missing:
            raise TrainingDataError(
                f"there are no scores of {', '.join(missing)}: there are those of {', '.join(scores) or 'no teacher'}"
            )
        total = sum(weights.values())
        return {teacher: weight / total for teacher, weight in weights.items()}


class _Parts:
    """The lists of one teacher: how many are scored, the smallest and largest, and what normalising makes of them."""

    def __init__(
        self, values: Floats, known: NDArray[np.bool_], starts: NDArray[np.int64], owners: NDArray[np.int64]
    ) -> None:
        self._values, self._known, self._starts, self._owners = values, known, starts, owners
        self.counts: NDArray[np.int64] = self._reduce(np.add, known.astype(np.int64))
        self.smallest: Floats = self._reduce(np.minimum, np.where(known, values, np.inf))
        self.largest: Floats = self._reduce(np.maximum, np.where(known, values, -np.inf))

    def normalised(self, how: Normalise) -> Floats:
        """The scores within each list, float64, NaN where there is none."""
        if how == "none":
            return self._values
        if how == "min-max":
            low, width = self.smallest, self.largest - self.smallest
        else:
            counts = np.maximum(self.counts, 1)
            low = self._reduce(np.add, np.where(self._known, self._values, 0.0)) / counts
            # The mean of equal numbers can differ from them by rounding, which would pass for a deviation.
            low = np.where(self.largest == self.smallest, self.smallest, low)
            apart = np.where(self._known, self._values - low[self._owners], 0.0)
            width = np.sqrt(self._reduce(np.add, apart**2) / counts)
        return np.asarray((self._values - low[self._owners]) / (width[self._owners] + _EPSILON))

    def _reduce(self, operation: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        if not len(self._starts):
            return values[:0]
        return np.asarray(operation.reduceat(values, self._starts))


def _checked(teacher: str, scores: NDArray[Any], total: int) -> Floats:
    values = np.asarray(scores, np.float64)
    if values.shape != (total,):
        raise TrainingDataError(
            f"the scores of {teacher} have shape {list(values.shape)}, and the lists hold {total} candidates"
        )
    if np.isinf(values).any():
        raise TrainingDataError(f"{teacher} gave {int(np.isinf(values).sum()):,} infinite scores: NaN stands for none")
    return values
