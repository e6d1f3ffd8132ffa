"""Which entries of a vocabulary a text may have at all, by products of 8-bit numbers that bound its logits from above.

Of the tens of thousands of entries of a masked-language head a SPLADE vector holds a few hundred: those whose highest logit
is above zero. Let ``x`` be the hidden state of a token, ``c`` a fixed one, ``w`` the weights of an entry and ``b`` its bias.
With ``q`` and ``v`` integers times a step, near ``x - c`` and near ``w``,

    x.w + b  =  c.w + b + q.v + (x - c - q).w + q.(w - v)  <=  c.w + b + q.v + |x - c - q| |w| + |q| |w - v|

by Cauchy-Schwarz. One step serves all tokens of a text, so that the highest ``q.v`` of any token is that of integers; where
the bound is below zero no logit is above it. The other entries are few, and computed as ever. Which ``c`` is taken changes
how many they are, never a result: it is the mean of the first hidden states that are met.

The kernel (``_vocabulary.c``) sums 128 dimensions in two sums of 16 bits. A step is so great that in each of these halves
the norm of what is summed is at most 181 on either side, and its product below 2 ** 15.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.indexes import kernels

_ENTRIES, _QUAD, _CHUNK = 16, 4, 32  # as in _vocabulary.c
_OFFSET, _MOST_TOKEN, _MOST_WEIGHT = 64, 63, 127  # a pair of products fits 16 bits
_NORM = 177.0  # and at most 181 when 64 numbers are rounded
_AT_ONCE = 512  # entries that are turned into bytes together, in a cache


def available() -> bool:
    """Whether this machine has the instructions, and the kernels are compiled."""
    return kernels.bytes_level() > 0


class HeadBounds:
    """Bounds for the head with ``weight``, float32 ``[vocabulary, dim]``, and ``bias``, float32 ``[vocabulary]``.

    ``centre``, float32 ``[dim]``, is about the mean of hidden states. Raises ValueError where a number is not finite.
    """

    def __init__(
        self, weight: NDArray[np.float32], bias: NDArray[np.float32] | None, centre: NDArray[np.float32]
    ) -> None:
        self._entries, dimension = weight.shape
        self._quads = -(-dimension // _QUAD)
        self._centre = np.zeros(self._quads * _QUAD)
        self._centre[:dimension] = centre
        # By such a share of the norms float32 is off at most, in logits (Higham, 2002, section 3.1) as in the bounds.
        self._rounding = 4 * (dimension + 8) * 2.0**-24
        panels, chunks = -(-self._entries // _ENTRIES), -(-self._quads // _CHUNK)
        self._halves = _halves(self._quads)
        self._panels = np.zeros((panels, self._quads, _ENTRIES, _QUAD), np.int8)
        self._corrections = np.zeros((panels, chunks, _ENTRIES, 2), np.int16)
        self._factors = np.zeros((4, panels * _ENTRIES), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite shows in the factors
            for first in range(0, self._entries, _AT_ONCE):
                some = slice(first, first + _AT_ONCE)
                self._fill(weight[some], 0.0 if bias is None else bias[some].astype(np.float64), first)
        if not np.isfinite(self._factors).all():
            raise ValueError("the head holds numbers that are not finite, or beyond what float32 can bound")

    def _fill(self, weight: NDArray[np.float32], bias: NDArray[np.float64] | float, first: int) -> None:
        """The entries from ``first``, a multiple of a panel's."""
        count, dimension = weight.shape
        rows = np.zeros((-(-count // _ENTRIES) * _ENTRIES, self._quads * _QUAD), np.float32)
        rows[:count, :dimension] = weight
        squares = rows * rows @ self._halves
        steps = _steps(np.maximum(rows.max(axis=1), -rows.min(axis=1)), squares, _MOST_WEIGHT)
        codes = np.rint(rows / steps[:, None])
        panels = slice(first // _ENTRIES, (first + len(rows)) // _ENTRIES)
        quads = codes.astype(np.int8).view(np.int32).reshape(-1, _ENTRIES, self._quads)  # moved as one number each
        self._panels[panels].view(np.int32)[..., 0] = quads.swapaxes(1, 2)
        offsets = (
            (-_OFFSET * (codes @ self._halves)).astype(np.int64).reshape(-1, _ENTRIES, *self._corrections.shape[1::2])
        )
        self._corrections[panels] = offsets.swapaxes(1, 2).astype(np.int16)  # modulo 2 ** 16, as the kernel adds
        bases = rows @ self._centre.astype(np.float32)
        bases[:count] += bias + 2.0**-20 * np.abs(bias)
        codes *= steps[:, None]
        codes -= rows
        errors = np.sqrt(np.einsum("ij,ij->i", codes, codes))
        self._factors[:, first : first + len(rows)] = steps, bases, np.sqrt(squares.sum(axis=1)), errors

    def candidates(self, hidden: NDArray[np.float32]) -> NDArray[np.int32] | None:
        """The entries that may have a logit above zero for a token of ``hidden``, float32 ``[tokens, dim]``, ascending.

        None where ``hidden`` holds what is no finite number.
        """
        tokens = np.zeros((len(hidden), len(self._centre)))
        tokens[:, : hidden.shape[1]] = hidden
        reach = np.linalg.norm(tokens, axis=1).max(initial=0) + np.linalg.norm(self._centre)
        if not np.isfinite(reach):
            return None
        tokens -= self._centre
        steps = _steps(np.abs(tokens).max(axis=1), tokens * tokens @ self._halves, _MOST_TOKEN)
        step = float(steps.max(initial=1e-30))
        codes = np.rint(tokens / step)
        error = np.linalg.norm(tokens - codes * step, axis=1).max(initial=0)
        length = np.linalg.norm(codes, axis=1).max(initial=0) * step
        found = np.empty(self._factors.shape[1], np.int32)
        count = kernels.vocabulary_bound(
            self._entries,
            self._quads,
            (codes + _OFFSET).astype(np.uint8),
            self._panels,
            self._corrections,
            self._factors,
            step,
            error + self._rounding * (reach + length),
            length * (1 + self._rounding),
            found,
        )
        return found[:count]


def _halves(quads: int) -> NDArray[np.float32]:
    """The matrix ``[quads * 4, chunks * 2]`` whose product with rows are the sums that the kernel takes apart."""
    places = np.arange(quads * _QUAD)
    found = np.zeros((len(places), -(-quads // _CHUNK) * 2), np.float32)
    found[places, places // (_CHUNK * _QUAD) * 2 + places // 2 % 2] = 1
    return found


def _steps(highest: NDArray[Any], squares: NDArray[Any], most: int) -> NDArray[Any]:
    """Of each row the step in which no number is above ``most``, and no half of a chunk longer than is allowed.

    ``highest`` and ``squares`` are the greatest number of a row, without its sign, and the sums of squares of its halves.
    """
    steps: NDArray[Any] = np.maximum(highest / most, np.sqrt(squares.max(axis=1)) / _NORM)
    steps[steps == 0] = 1
    return steps
