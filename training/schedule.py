"""How long and how fast a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from retrievers.errors import RecipeError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, the rate rising over the share ``warmup`` of the steps and falling linearly to 0.

    A step takes ``batch`` times ``accumulate`` examples, ``batch`` at a time; ``clip`` bounds the norm of its gradient, and
    ``weight_decay`` is for matrices alone. Raises RecipeError for a value out of range.
    """

    steps: int = 1000
    batch: int = 8
    accumulate: int = 1
    rate: float = 3e-4
    warmup: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name} is {getattr(self, name)}: it must be a number above 0")
        if not 0 <= self.warmup <= 1 or not 0 <= self.weight_decay < math.inf:
            raise RecipeError(
                f"warmup is {self.warmup} and weight_decay {self.weight_decay}: give a share from 0 to 1, and 0 or more"
            )

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0; none is 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * (self.steps - step) / (self.steps - rising)
