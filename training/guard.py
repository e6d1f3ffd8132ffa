"""Stopping a training run that cannot come to anything any more."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from torch import Tensor

from retrievers.errors import TrainingError


class Guard:
    """Raises TrainingError, with the step, the numbers and the likely mend, once a run has broken or collapsed.

    A loss that is NaN or infinite stops the run at once. A loss above ``factor`` times the median of the last ``window``
    ones, or a collapse, has to last for ``patience`` checks in a row: one bad batch is no broken run. Reading a number
    off an accelerator waits for it, so that a run on one may check every tenth step.

    ``state`` and ``restore`` carry what it has seen through a checkpoint, as plain numbers.
    """

    def __init__(self, *, window: int = 50, factor: float = 20.0, patience: int = 5) -> None:
        self.window, self.factor, self.patience = window, factor, patience
        self._recent: list[float] = []
        self._bad: dict[str, int] = {}

    def check_loss(self, step: int, loss: Tensor | float) -> None:
        """After each step: the loss of it."""
        value = float(loss)
        if not math.isfinite(value):
            before = f"the one before was {self._recent[-1]:.4g}" if self._recent else "it is the first"
            raise TrainingError(
                f"step {step}: the loss is {value}; {before}. Lower the learning rate or the scale of the loss, clip "
                "gradients, or train in bf16 or fp32 where it was fp16; with a fresh masked-language head set head_divisor"
            )
        usual = median(map(abs, self._recent)) if len(self._recent) >= min(10, self.window) else math.inf
        exploded = abs(value) > self.factor * max(usual, 1e-6)
        if self._lasting("explosion", exploded):
            raise TrainingError(
                f"step {step}: the loss is {value:.4g}, {self.patience} times in a row more than {self.factor:g} times "
                f"its recent median of {usual:.4g}. Lower the learning rate, warm up for longer, or clip gradients"
            )
        if not exploded:  # the median stays that of healthy steps
            self._recent = [*self._recent, value][-self.window :]

    def check_sparse(self, step: int, nonzeros: Tensor, vocabulary: int) -> None:
        """The counts of non-zeros of a batch's documents, ``[n]``, of ``vocabulary`` entries each."""
        least, most = int(nonzeros.min()), int(nonzeros.max())
        mean = float(nonzeros.double().mean())
        if self._lasting("zero", most == 0):
            raise TrainingError(
                f"step {step}: all {nonzeros.numel()} sparse vectors of the batch are empty, {self.patience} checks in a "
                "row, and no gradient brings them back. Lower the weight of FLOPS, let it rise over more steps, or set a "
                "threshold of non-zeros below which a document is spared"
            )
        if self._lasting("full", least == vocabulary):
            raise TrainingError(
                f"step {step}: all {nonzeros.numel()} sparse vectors of the batch have all {vocabulary} entries active "
                f"(mean {mean:.0f}), {self.patience} checks in a row. Raise the weight of FLOPS or shorten its rise; a "
                "fresh masked-language head needs a head_divisor, or has no trained weights at all"
            )

    def check_scores(self, step: int, scores: Tensor) -> None:
        """The scores of a batch ``[B, n]``, as they come from the encoder: all equal means that it tells nothing apart."""
        least, most = float(scores.min()), float(scores.max())
        equal = scores.numel() > 1 and most - least <= 1e-6 * max(abs(least), abs(most), 1e-6)
        if self._lasting("equal", equal):
            raise TrainingError(
                f"step {step}: all {scores.numel()} scores of the batch lie between {least:.6g} and {most:.6g}, "
                f"{self.patience} checks in a row: the encoder gives every text the same vector. Lower the learning "
                "rate, start from the checkpoint again, and look whether queries and passages reach the model whole"
            )

    def state(self) -> dict[str, Any]:
        """What is to be saved with a checkpoint; JSON holds it."""
        return {"recent": list(self._recent), "bad": dict(self._bad)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._recent = [float(value) for value in state["recent"]]
        self._bad = {str(name): int(count) for name, count in state["bad"].items()}

    def _lasting(self, name: str, bad: bool) -> bool:
        self._bad[name] = self._bad.get(name, 0) + 1 if bad else 0
        return self._bad[name] >= self.patience
