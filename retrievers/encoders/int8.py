"""Linear layers in 8-bit integers: weights and inputs in groups of 128 along a row, each group with a step of its own.

A token's groups take their steps and zeros as they come (Yao et al., 2022, ZeroQuant, section 4.1, has one a token), which
makes a text's vector independent of the texts beside it; and an outlier, of which transformers have some in fixed
dimensions, coarsens only its group (Dai et al., 2021, VS-Quant, section 4, groups weights and activations alike).

The kernel (``_linear.c``) multiplies unsigned bytes of inputs with signed ones of weights, in pairs whose sum is cut off at
15 bits, and sums 32 products in 16 bits. So that both are exact, the weights of a pair are 128 at most together, without
their signs; and what is summed in one place has a norm of at most 170 on the side of weights and 192 on that of inputs, by
Cauchy-Schwarz less than 2 ** 15. Where the kernel cannot run, the same numbers are multiplied in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from retrievers.indexes import kernels, threads

_OUTPUTS, _QUAD, _CHUNK, _GROUP = 16, 4, 64, 128  # as in _linear.c
_PAIR, _NORM = 127.0, 167.0  # before rounding, which adds 1 to a pair and 3 to 32 numbers
_SPAN, _INPUT_NORM, _LEAST = 254.0, 189.0, 1e-15  # as in _linear.c
_ROWS_A_THREAD, _NUMBERS_A_THREAD = 256, 1 << 19  # with fewer, threads take longer to start than they save


class Int8Linear(torch.nn.Module):
    """What ``torch.nn.Linear`` computes, with products in integers; inference on a processor alone.

    Takes and gives float32 ``[..., inputs]`` and ``[..., outputs]``. A row with an input that is no finite number, or above
    1e18, gives NaN.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        weight = _grouped(linear.weight.detach().float())
        pairs = weight.view(*weight.shape[:2], -1, 2).abs().sum(dim=3).amax(dim=2)
        steps = torch.maximum(pairs / _PAIR, _lengths(weight) / _NORM)
        steps[steps == 0] = 1
        codes = (weight / steps.unsqueeze(2)).round()
        bias = linear.weight.new_zeros(self.out_features) if linear.bias is None else linear.bias.detach()
        self.steps: torch.Tensor
        self.bias: torch.Tensor
        self.weight: torch.Tensor
        self.sums: torch.Tensor
        self._compiled = kernels.bytes_level() > 0
        if self._compiled:
            groups = codes.shape[1]
            panels = _panels(codes).view(-1, _OUTPUTS, groups, _GROUP // _QUAD, _QUAD)
            self.register_buffer("weight", panels.permute(0, 2, 3, 1, 4).to(torch.int8).contiguous())
            sums = _panels(_halves(codes).sum(dim=(3, 5))).view(-1, _OUTPUTS, groups, _GROUP // _CHUNK, 2)
            self.register_buffer("sums", sums.permute(0, 2, 3, 1, 4).to(torch.int16).contiguous())
            self.register_buffer("steps", _panels(steps).view(-1, _OUTPUTS, groups).transpose(1, 2).contiguous())
            self.register_buffer("bias", _panels(bias.float()))
        else:
            self.register_buffer("weight", (codes * steps.unsqueeze(2)).flatten(1)[:, : self.in_features].contiguous())
            self.register_buffer("bias", bias.float())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.detach().reshape(-1, self.in_features).float().contiguous()
        found = (
            self._multiply(rows)
            if self._compiled
            else torch.nn.functional.linear(_coarse(rows), self.weight, self.bias)
        )
        return found.view(*input.shape[:-1], self.out_features)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        found = rows.new_empty(len(rows), self.out_features)
        weights = [values.numpy() for values in (self.weight, self.sums, self.steps, self.bias)]

        def work(part: slice) -> None:
            kernels.linear_bytes(self.in_features, self.out_features, rows[part].numpy(), *weights, found[part].numpy())

        _shared(work, len(rows), _ROWS_A_THREAD)
        return found


class Gelu(torch.nn.Module):
    """The activation GELU (Hendrycks and Gimpel, 2016) of float32, off by 3e-7 times a number at most; inference alone.

    In float32 torch takes some four times as long, a tenth of all that a small model does in integers.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        values = input.detach().float().contiguous()
        found = torch.empty_like(values)
        flat, out = values.view(-1), found.view(-1)
        _shared(lambda part: kernels.gelu(flat[part].numpy(), out[part].numpy()), len(flat), _NUMBERS_A_THREAD)
        return found


def _shared(work: Callable[[slice], None], size: int, least: int) -> None:
    """``work`` on all of ``size`` in parts, by as many threads as torch may use."""
    count = max(1, min(torch.get_num_threads(), size // least))
    step = max(1, -(-size // count))
    threads.shared(work, [slice(at, at + step) for at in range(0, size, step)], threads=count)


def _grouped(values: torch.Tensor) -> torch.Tensor:
    """``[n, inputs]`` as ``[n, groups, 128]``, padded with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % _GROUP))
    return padded.view(len(values), -1, _GROUP)


def _panels(values: torch.Tensor) -> torch.Tensor:
    """Padded with zeros to whole panels of outputs."""
    missing = -len(values) % _OUTPUTS
    return torch.cat([values, values.new_zeros(missing, *values.shape[1:])]) if missing else values


def _halves(grouped: torch.Tensor) -> torch.Tensor:
    """``[n, groups, chunks, quads, 2, 2]``: what the kernel sums in one place lies along the third and the last dimension."""
    return grouped.view(*grouped.shape[:2], _GROUP // _CHUNK, _CHUNK // _QUAD, 2, 2)


def _lengths(grouped: torch.Tensor) -> torch.Tensor:
    """The norm of the longest of what is summed in one place, ``[n, groups]``."""
    return _halves(grouped.square()).sum(dim=(3, 5)).amax(dim=(2, 3)).sqrt()


def _coarse(rows: torch.Tensor) -> torch.Tensor:
    """Inputs as the kernel takes them: whole multiples of the steps of their groups."""
    grouped = _grouped(rows)
    span = grouped.amax(dim=2).clamp_min(0) - grouped.amin(dim=2).clamp_max(0)
    steps = torch.maximum(span * (1 / _SPAN), _lengths(grouped) * (1 / _INPUT_NORM)).clamp_min(_LEAST).unsqueeze(2)
    return ((grouped * steps.reciprocal()).round() * steps).flatten(1)[:, : rows.shape[1]]


def convert(module: torch.nn.Module, *, but: Collection[Any] = ()) -> int:
    """Put an :class:`Int8Linear` in the place of each ``torch.nn.Linear`` below ``module``; returns how many.

    Those in ``but``, and subclasses, which may compute something else, stay. Where there are kernels :class:`Gelu` takes
    the place of that activation.
    """
    kept = {id(layer) for layer in but}
    count = 0
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and id(layer) not in kept:
                setattr(parent, name, Int8Linear(layer))
                count += 1
            elif _is_gelu(layer) and kernels.bytes_level():
                setattr(parent, name, Gelu())
    return count


def _is_gelu(layer: torch.nn.Module) -> bool:
    if type(layer) is torch.nn.GELU:
        return layer.approximate == "none"
    # That of transformers, whose other versions of it have names of their own.
    return type(layer).__name__ == "GELUActivation" and getattr(layer, "act", None) is torch.nn.functional.gelu
