"""Linear layers in 8-bit integers: weights with a scale for each output, inputs with a scale for each token.

A scale a token, taken as it comes (Yao et al., 2022, ZeroQuant, section 4.1), keeps an outlying token from coarsening the
others, and makes a text's vector independent of the texts beside it, which one scale for a batch does not.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

_LARGEST = 127.0
_LEAST = 1e-12  # a scale for rows of zeros


class Int8Linear(torch.nn.Module):
    """What ``torch.nn.Linear`` computes, with products and sums in integers; inference on a processor alone.

    Takes and gives float32 ``[..., inputs]`` and ``[..., outputs]``. Weights are int8, rounded to nearest.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp_min(_LEAST) / _LARGEST
        self.weight: torch.Tensor
        self.scales: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("weight", (weight / scales.unsqueeze(1)).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, input.shape[-1])
        scales = rows.abs().amax(dim=1, keepdim=True).clamp_min_(_LEAST).div_(_LARGEST)
        whole = (rows * scales.reciprocal()).round_().to(torch.int8)
        sums = torch._int_mm(whole, self.weight.T)
        found = sums * scales  # float32
        if self.bias is None:
            found *= self.scales
        else:
            torch.addcmul(self.bias, found, self.scales, out=found)
        return found.view(*input.shape[:-1], -1)


def replace_linear(module: torch.nn.Module, *, but: Collection[Any] = ()) -> int:
    """Put an :class:`Int8Linear` in the place of each ``torch.nn.Linear`` below ``module``; returns how many.

    Those in ``but``, and subclasses, which may compute something else, stay.
    """
    kept = {id(layer) for layer in but}
    count = 0
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear and id(layer) not in kept:
                setattr(parent, name, Int8Linear(layer))
                count += 1
    return count
