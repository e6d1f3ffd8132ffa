"""Gradient caching: large batches in the memory of small ones (Gao et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from retrievers.errors import TrainingError
from retrievers.training.losses import Loss
from retrievers.training.objective import Features, Objective
from retrievers.training.objectives import Reweighting
from retrievers.training.scores import Vectors


class CachedObjective(Objective):
    """An :class:`~retrievers.training.objective.Objective` that encodes at most ``chunk`` texts at a time.

    The vectors of the whole batch are kept, what leads to them is not. When the gradient of the vectors has come back,
    each chunk is encoded again, with the same random numbers (dropout), and its share of the gradient goes on to the
    parameters. The loss, its gradients and what else reads the vectors, such as a penalty, are those of the whole batch;
    each text is encoded twice.

    Raises TrainingError where ``chunk`` is below 1.
    """

    def __init__(
        self,
        model: Any,
        kind: str,
        loss: Loss,
        *,
        chunk: int,
        special: tuple[int, ...] = (),
        reweighting: Reweighting | None = None,
    ) -> None:
        super().__init__(model, kind, loss, special=special, reweighting=reweighting)
        if chunk < 1:
            raise TrainingError(f"chunk is {chunk}: encode 1 or more texts at a time")
        self.chunk = chunk

    def encode(self, features: Features, side: str) -> Vectors:
        """The vectors of a side; backward encodes it again, chunk by chunk."""
        parts = [self._encode_chunk(part, side) for part in chunks(features, self.chunk)]
        return joined(parts)

    def _encode_chunk(self, features: Features, side: str) -> Vectors:
        encode = super().encode
        if not torch.is_grad_enabled():
            return encode(features, side)
        # ``checkpoint`` drops what the chunk saves for backward, and restores random numbers and autocast to make it again.
        found: Vectors = checkpoint(encode, features, side, use_reentrant=False)
        return found


def chunks(features: Features, size: int) -> Iterator[Features]:
    """The features of ``size`` texts after the other; what is no tensor goes with each.

    Padding stays, so that all chunks have one length: a query may be filled up with tokens that take part in scores.
    Raises TrainingError where a tensor has not one row a text.
    """
    tensors = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}
    if not tensors or any(value.dim() == 0 for value in tensors.values()):
        raise TrainingError("these features cannot be cut into chunks: they hold no tensors with a row for each text")
    rows = {key: len(value) for key, value in tensors.items()}
    count = rows.get("input_ids", next(iter(rows.values())))
    if set(rows.values()) != {count}:
        raise TrainingError(
            f"these features cannot be cut into chunks: of {count} texts they hold {rows} rows. Train without chunks, "
            "or with a model whose inputs are padded and not strung together"
        )
    for start in range(0, count, size):
        yield {**features, **{key: value[start : start + size] for key, value in tensors.items()}}


def joined(parts: list[Vectors]) -> Vectors:
    """The rows of all parts; those of tokens, ``[rows, length, ...]``, are filled up with zeros to the longest."""
    longest = [max(part[n].shape[1] for part in parts) for n in range(len(parts[0]))]
    return tuple(torch.cat([_filled(part[n], length) for part in parts]) for n, length in enumerate(longest))


def _filled(values: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - values.shape[1]
    if not missing:
        return values
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)
