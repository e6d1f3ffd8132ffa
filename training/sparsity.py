"""Keeping sparse vectors sparse: the FLOPS penalty, how its weight rises, and who is spared it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrievers.errors import TrainingError
from retrievers.training.processes import process_count, sum_over_processes
from retrievers.training.recipe import Sparsity

#: The table of an inference-free model's queries, among the names of its parameters: a key of ``learning_rate_mapping`` in
#: the training arguments of sentence-transformers, which gives what it matches an optimizer group with its own rate.
QUERY_TABLE = r"sub_modules\.query\.0\.weight$"


def flops(documents: Tensor, candidates: int = 1, *, threshold: int = 0) -> Tensor:
    """``sum over slots and entries of (mean over the batch of |w|)^2``, a scalar (Paria et al., 2020; Geng et al., 2024).

    ``documents`` ``[B * c, V]`` holds the ``c`` candidates of one query after the other. The mean is over the ``B``
    queries of all processes, apart for each of the ``c`` slots. A document with at most ``threshold`` non-zeros counts
    with zeros (Shen et al., 2025); 0 spares none.

    Raises TrainingError where the rows are no whole number of candidates.
    """
    if candidates < 1 or len(documents) == 0 or len(documents) % candidates:
        raise TrainingError(
            f"{len(documents)} sparse vectors are no whole number of queries with {candidates} candidates each"
        )
    weights = documents.float().abs()  # sums of half precision lose the rare entries
    if threshold:
        spared = (weights > 0).sum(dim=1, keepdim=True) <= threshold
        weights = weights.masked_fill(spared, 0.0)
    slots = weights.view(-1, candidates, weights.shape[1])
    means = sum_over_processes(slots.sum(dim=0)) / (len(slots) * process_count())
    return means.square().sum()


def risen(weight: float, step: int, rise: int) -> float:
    """``weight * min(1, (step / rise)^2)``: the weight at a global step from 0 (Formal et al., 2021, section 3.2)."""
    return float(weight) * min(1.0, step / rise) ** 2


class Controller:
    """A factor of the penalty's weight that steers the mean number of non-zeros of a document to ``target``.

    After each batch the factor is multiplied by ``exp(gain * log(mean / target))``, the logarithm cut to [-1, 1], and the
    factor to ``[1 / limit, limit]``. It is a function of the batches seen, so that it must be saved with a checkpoint.
    """

    def __init__(self, target: int, *, gain: float = 0.02, limit: float = 1000.0) -> None:
        if target < 1 or not gain > 0 or not limit > 1:
            raise TrainingError(
                f"target is {target}, gain {gain} and limit {limit}: target is 1 or more, gain above 0, limit above 1"
            )
        self.target, self.gain, self.limit = target, gain, limit
        self.factor = 1.0

    def observe(self, active: float) -> None:
        """The mean number of non-zeros of a batch's documents; one of empty documents counts as 1."""
        error = max(-1.0, min(1.0, math.log(max(active, 1.0) / self.target)))
        self.factor = max(1 / self.limit, min(self.limit, self.factor * math.exp(self.gain * error)))

    def state(self) -> dict[str, Any]:
        """What is to be saved with a checkpoint; JSON holds it."""
        return {"factor": self.factor}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self.factor = float(state["factor"])


class Penalty:
    """The penalty of a batch's documents, as a recipe's ``[sparsity]`` wants it.

    ``candidates`` are the documents of each query. Without a target the weight is a pure function of the global step.
    With one, a :class:`Controller` begins when the weight has risen: what is far from the target before that is so
    because the weight was small.

    Raises TrainingError for settings out of their range, and for a target that the spared documents keep out of reach.
    """

    def __init__(self, sparsity: Sparsity, candidates: int) -> None:
        if sparsity.weight < 0 or sparsity.rise < 1 or sparsity.threshold < 0 or sparsity.target < 0 or candidates < 1:
            raise TrainingError(
                f"{sparsity} for {candidates} candidates: weight, threshold and target are 0 or more, rise and "
                "candidates 1 or more"
            )
        if 0 < sparsity.target <= sparsity.threshold:
            raise TrainingError(
                f"sparsity.target is {sparsity.target} and sparsity.threshold {sparsity.threshold}: documents with at "
                "most threshold non-zeros are spared, so that a lower target is never reached. Set the threshold below it"
            )
        self.sparsity, self.candidates = sparsity, candidates
        self.controller = Controller(sparsity.target) if sparsity.target else None

    def weight(self, step: int) -> float:
        """The weight at a global step."""
        factor = 1.0 if self.controller is None else self.controller.factor
        return factor * risen(self.sparsity.weight, step, self.sparsity.rise)

    def __call__(self, step: int, documents: tuple[Tensor, ...]) -> Tensor:
        """The weighted penalty, a scalar, of ``documents``: one tensor ``[B * c, V]``, none of it below zero."""
        vectors = documents[0]
        found = self.weight(step) * flops(vectors, self.candidates, threshold=self.sparsity.threshold)
        if self.controller is not None and step >= self.sparsity.rise and torch.is_grad_enabled():
            counts = (vectors.detach() > 0).sum(dim=1).double().mean()
            self.controller.observe(float(sum_over_processes(counts)) / process_count())
        return found

    def state(self) -> dict[str, Any]:
        """What is to be saved with a checkpoint; JSON holds it."""
        return {} if self.controller is None else {"controller": self.controller.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        if self.controller is not None and "controller" in state:
            self.controller.restore(state["controller"])
