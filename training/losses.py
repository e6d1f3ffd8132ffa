"""Losses over scores, the same for every kind of encoder.

The functions take tensors. The frozen dataclasses hold their settings, and take a :class:`BatchScores` and the
:class:`Targets` of the batch. A ``reduction`` of ``"none"`` gives one value a query, ``[B]``, and ``"mean"`` the mean over
*all* queries: one that has nothing to learn from counts with 0, so that the mean over processes, or over accumulated
batches of one size, is that of one large batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from retrievers.errors import TrainingError
from retrievers.training.scores import BatchScores

Reduction = Literal["mean", "none"]


@dataclass(frozen=True)
class Targets:
    """What a batch learns from.

    ``teacher`` ``[B, c]`` scores each query's own candidates, NaN where it has no score: that candidate is left out.
    ``guide`` ``[B, N, c]`` scores every query with all candidates of the batch (a live teacher), NaN where unknown.
    ``drop`` ``[B, N, c]`` is true for what is no negative of that query, see :func:`known_positives`.
    """

    teacher: Tensor | None = None
    guide: Tensor | None = None
    drop: Tensor | None = None


class Loss(Protocol):
    """``in_batch``: whether the loss reads ``BatchScores.every``; ``cosine``: whether scores must be cosines."""

    @property
    def in_batch(self) -> bool: ...

    @property
    def cosine(self) -> bool: ...

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor: ...


def reduce(rows: Tensor, reduction: Reduction) -> Tensor:
    """One value a query, or their mean."""
    if reduction == "none":
        return rows
    if reduction == "mean":
        return rows.mean()
    raise TrainingError(f"reduction is {reduction!r}: it is 'mean' or 'none'")


def known_positives(documents: Tensor, positives: Sequence[Collection[int]], *, first: int = 0) -> Tensor:
    """The mask ``drop`` ``[B, N, c]``: which documents of the batch answer a query although they are not its target.

    ``documents`` ``[N, c]`` are row numbers in the corpus, ``positives`` all known positives of each of ``B`` queries.
    The query's own target, ``[first + i, 0]``, is never dropped, its copies are.
    """
    drop = torch.stack(
        [torch.isin(documents, torch.tensor(sorted(known), dtype=documents.dtype).to(documents)) for known in positives]
    )
    rows = torch.arange(len(positives), device=documents.device)
    drop |= documents.unsqueeze(0) == documents[first + rows, 0][:, None, None]
    drop[rows, first + rows, 0] = False
    return drop


def near_positives(guide: Tensor, target: Tensor, epsilon: float) -> Tensor:
    """The false-negative filter: ``[B, n]``, true where the guide's score is above the positive's less ``epsilon``.

    ``guide`` ``[B, n]``, ``target`` ``[B]`` the positive's column. A score that is NaN, on either side, drops nothing.
    """
    positive = guide.gather(1, target.unsqueeze(1))
    near = guide > positive - epsilon
    return near.scatter(1, target.unsqueeze(1), False)


def infonce(
    scores: Tensor,
    target: Tensor,
    *,
    scale: float = 1.0,
    drop: Tensor | None = None,
    guide: Tensor | None = None,
    epsilon: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """``-log softmax(scale * scores)[target]`` over the passages of a batch (van den Oord et al., 2018).

    ``scores`` ``[B, n]``, ``target`` ``[B]`` the column of the positive, ``scale`` the inverse of the temperature.
    Columns in the mask ``drop``, and with ``guide`` ``[B, n]`` those of :func:`near_positives`, leave the sum, the
    target never.
    """
    out = torch.zeros_like(scores, dtype=torch.bool) if drop is None else drop.bool()
    if guide is not None:
        out = out | near_positives(guide, target, epsilon)
    out = out.scatter(1, target.unsqueeze(1), False)
    logits = (scale * scores).masked_fill(out, -torch.inf)
    return reduce(torch.nn.functional.cross_entropy(logits, target, reduction="none"), reduction)


def margin_mse(scores: Tensor, teacher: Tensor, *, scale: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    """``mean of ((scale * (s+ - s-)) - (t+ - t-))^2`` (Hofstätter et al., 2020), over each query's negatives.

    Both ``[B, c]``, the positive first. It pulls the student onto the teacher's scale: a cosine student, whose margins
    are at most 2, needs a ``scale``. A negative whose teacher score is NaN is left out, a query without positive too.
    """
    _same(scores, teacher)
    student = scale * (scores[:, :1] - scores[:, 1:])
    return reduce(_mean_square(student, teacher[:, :1] - teacher[:, 1:], None), reduction)


def listwise_kl(
    scores: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """``KL(softmax(teacher / teacher_temperature) || softmax(scores / temperature))`` over each list ``[B, c]``.

    Raw student scores, as in Geng et al. (2024), section 5. ``mask`` is true for the candidates of a ragged list; those
    whose teacher score is NaN are left out as well. A list of fewer than two gives 0.
    """
    _same(scores, teacher)
    kept = ~teacher.isnan()
    if mask is not None:
        kept = kept & mask.bool()
    kept = kept & (kept.sum(dim=1, keepdim=True) > 1)
    # Lists of which nothing is left would be 0/0: they run as if full, and their terms are cut below.
    out = ~(kept | ~kept.any(dim=1, keepdim=True))
    wanted = (teacher.masked_fill(~kept, 0.0) / teacher_temperature).masked_fill(out, -torch.inf).log_softmax(dim=1)
    found = (scores.masked_fill(~kept, 0.0) / temperature).masked_fill(out, -torch.inf).log_softmax(dim=1)
    wanted, found = wanted.masked_fill(~kept, 0.0), found.masked_fill(~kept, 0.0)
    terms = (wanted.exp() * (wanted - found)).masked_fill(~kept, 0.0)
    return reduce(terms.sum(dim=1), reduction)


def in_batch_margin_mse(
    scores: BatchScores, guide: Tensor, *, scale: float = 1.0, reduction: Reduction = "mean"
) -> Tensor:
    """The second half of TAS-Balanced's loss (Hofstätter et al., 2021, section 3.2).

    ``1/2 [MSE of s(q_i, d_i+) - s(q_i, d_j+) against the in-batch teacher's same margin, and the same with d_j-]``, both
    over ``j != i``: a query's own pair is in neither. ``guide`` ``[B, N, c]``. A margin with a NaN is left out; a batch
    of one query gives 0.
    """
    every = scores.required()
    _same(every, guide)
    if every.shape[2] < 2:
        raise TrainingError("the dual-teacher loss needs a negative for each query, and the batch has none")
    others = ~scores.own_places()
    positive = BatchScores.of(guide, scores.first).own[:, 0]
    student = scale * (scores.own[:, 0, None, None] - every)
    wanted = positive[:, None, None] - guide
    with_positives = _mean_square(student[..., 0], wanted[..., 0], others)
    kept = others.unsqueeze(2).expand(-1, -1, every.shape[2] - 1)
    with_negatives = _mean_square(student[..., 1:].flatten(1), wanted[..., 1:].flatten(1), kept.flatten(1))
    return reduce((with_positives + with_negatives) / 2, reduction)


def orthogonal_projection(cosines: Tensor, labels: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """``MSE(cos(q, d), y)``, ``y`` 1 for a positive and 0 for a negative (Saad-Falcon et al., 2024); both ``[B, c]``.

    A pair needs no other row of the batch, so that batches of 1 and gradient accumulation are exact. A label that is
    NaN leaves its pair out.
    """
    _same(cosines, labels)
    return reduce(_mean_square(cosines, labels, None), reduction)


def _mean_square(found: Tensor, wanted: Tensor, kept: Tensor | None) -> Tensor:
    """The mean square of each row over what is kept and wanted, ``[B]``; 0 where that is nothing."""
    known = ~wanted.isnan() if kept is None else ~wanted.isnan() & kept
    # Masked before the square: a NaN times a gradient of 0 would still be NaN.
    difference = (found - wanted.masked_fill(~known, 0.0)).masked_fill(~known, 0.0)
    return difference.square().sum(dim=1) / known.sum(dim=1).clamp(min=1)


def _same(scores: Tensor, targets: Tensor) -> None:
    if scores.shape != targets.shape:
        raise TrainingError(
            f"the student's scores have the shape {list(scores.shape)} and the targets {list(targets.shape)}: give one "
            "target for each score"
        )
