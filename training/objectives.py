"""The losses with their settings, ready for a trainer, and the reweighting of queries by their loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrievers.errors import TrainingError
from retrievers.training.losses import (
    Reduction,
    Targets,
    in_batch_margin_mse,
    infonce,
    listwise_kl,
    margin_mse,
    orthogonal_projection,
    reduce,
)
from retrievers.training.processes import gather_rows, process_count, process_rank
from retrievers.training.scores import BatchScores


@dataclass(frozen=True)
class InfoNCE:
    """:func:`~retrievers.training.losses.infonce` over all candidates of the batch, positives and negatives.

    With a guide in the targets, passages that it scores within ``epsilon`` of the positive, or above, are no negatives.
    """

    scale: float = 20.0
    epsilon: float = 0.0

    in_batch = True
    cosine = False

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor:
        every = scores.required()
        first = scores.first + torch.arange(len(every), device=every.device)
        return infonce(
            every.flatten(1),
            first * every.shape[2],
            scale=self.scale,
            drop=None if targets.drop is None else targets.drop.flatten(1),
            guide=None if targets.guide is None else targets.guide.flatten(1),
            epsilon=self.epsilon,
            reduction=reduction,
        )


@dataclass(frozen=True)
class MarginMSE:
    """:func:`~retrievers.training.losses.margin_mse` over each query's own candidates."""

    scale: float = 1.0

    in_batch = False
    cosine = False

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor:
        return margin_mse(scores.own, _given(targets.teacher, self), scale=self.scale, reduction=reduction)


@dataclass(frozen=True)
class ListwiseKL:
    """:func:`~retrievers.training.losses.listwise_kl` over each query's own candidates.

    With ``in_batch`` the list is all candidates of the batch, and the guide their teacher. ``scale`` multiplies the
    student's scores, before the temperature divides them.
    """

    scale: float = 1.0
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    in_batch: bool = False

    cosine = False

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor:
        found, wanted = (scores.required(), targets.guide) if self.in_batch else (scores.own, targets.teacher)
        drop = targets.drop if self.in_batch else None
        return listwise_kl(
            self.scale * found.flatten(1),
            _given(wanted, self).flatten(1),
            temperature=self.temperature,
            teacher_temperature=self.teacher_temperature,
            mask=None if drop is None else ~drop.flatten(1),
            reduction=reduction,
        )


@dataclass(frozen=True)
class DualTeacher:
    """TAS-Balanced's loss: ``MarginMSE(pair) + in_batch_weight * in-batch half`` (Hofstätter et al., 2021)."""

    scale: float = 1.0
    in_batch_weight: float = 0.75

    in_batch = True
    cosine = False

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor:
        pair = margin_mse(scores.own, _given(targets.teacher, self), scale=self.scale, reduction=reduction)
        guide = _given(targets.guide, self)
        return pair + self.in_batch_weight * in_batch_margin_mse(scores, guide, scale=self.scale, reduction=reduction)


@dataclass(frozen=True)
class OrthogonalProjection:
    """:func:`~retrievers.training.losses.orthogonal_projection`; without targets the first candidate is the positive."""

    in_batch = False
    cosine = True

    def __call__(self, scores: BatchScores, targets: Targets, reduction: Reduction = "mean") -> Tensor:
        labels = targets.teacher
        if labels is None:
            labels = torch.zeros_like(scores.own)
            labels[:, 0] = 1.0
        return orthogonal_projection(scores.own, labels, reduction=reduction)


@dataclass(frozen=True)
class Reweighting:
    """Queries weighed by their loss: ``w = min(cap, 1 + strength * z)``, from the step ``warmup`` on; 1 before.

    ``z`` in [-1, 1] is the loss centred in the batch, over the largest distance from its mean. The weights grow linearly
    with the loss and are capped, because the highest losses in retrieval are often those of false negatives
    (Sow et al., 2025). They are a function of the losses and the global step alone, and take no gradient.
    """

    warmup: int = 0
    strength: float = 1.0
    cap: float = 1.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength <= 1.0 or self.cap < 1.0:
            raise TrainingError(
                f"strength is {self.strength} and cap {self.cap}: strength lies in [0, 1], so that no weight falls below "
                "0, and cap is 1 or more"
            )

    def weights(self, losses: Tensor, step: int) -> Tensor:
        """The weights ``[B]`` of losses ``[B]``."""
        losses = losses.detach()
        if step < self.warmup:
            return torch.ones_like(losses)
        centred = losses - losses.mean()
        largest = centred.abs().max().clamp(min=torch.finfo(losses.dtype).tiny)
        return (1.0 + self.strength * centred / largest).clamp(max=self.cap)

    def __call__(self, losses: Tensor, step: int) -> Tensor:
        """The weighted mean of losses ``[B]``; of several processes, whose mean is that of the batch of all."""
        weights = self.weights(gather_rows(losses.detach()), step)
        first = process_rank() * len(losses)
        own = weights[first : first + len(losses)]
        return (own * losses).sum() * process_count() / weights.sum()


def weighted(rows: Tensor, step: int, reweighting: Reweighting | None) -> Tensor:
    """The mean of the losses of all queries, weighed where ``reweighting`` is given."""
    return reduce(rows, "mean") if reweighting is None else reweighting(rows, step)


def _given(values: Tensor | None, loss: object) -> Tensor:
    if values is None:
        raise TrainingError(
            f"{loss} learns from a teacher, and the batch has no scores of one: give it teacher or guide"
        )
    return values
