"""Sums and gathers over the processes of a run that gradients flow through.

The objective of ``P`` processes is the mean of their losses, and its gradient the mean of their gradients, as
``DistributedDataParallel`` takes it. Each process's loss may depend on what any other encoded, so that the gradient of a
gathered value comes back to its owner from all of them. Without a process group every function gives what it was given.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor of the same shape over all processes; differentiable, once."""
    if process_count() == 1:
        return values
    return _Sum.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def gather_rows(values: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks: ``[rows, ...]`` to ``[processes * rows, ...]``.

    Every process gives the same number of rows. A second axis of another length in each process, as that of tokens has,
    is filled up with zeros to the longest. Differentiable, once, for floating types.
    """
    if process_count() == 1:
        return values
    if values.dim() > 1:
        longest = torch.tensor(values.shape[1], device=values.device)
        dist.all_reduce(longest, op=dist.ReduceOp.MAX)
        missing = int(longest) - values.shape[1]
        if missing:
            values = torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)
    if not values.is_floating_point():
        return _all_rows(values.to(torch.uint8) if values.dtype == torch.bool else values).to(values.dtype)
    return _Gather.apply(values)  # type: ignore[no-any-return, no-untyped-call]


def _all_rows(values: Tensor) -> Tensor:
    found = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(process_count())]
    dist.all_gather(found, values.contiguous())
    return torch.cat(found)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: Any, given: Tensor) -> Tensor:
        total = given.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.rows = len(values)
        return _all_rows(values.detach())

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> Tensor:
        total = given.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        first = process_rank() * ctx.rows
        return total[first : first + ctx.rows]
