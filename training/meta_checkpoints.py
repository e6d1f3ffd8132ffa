"""The checkpoint of a meta-training run, from which it goes on to the very weights that it would have had."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retrievers.errors import RecipeError
from retrievers.training.guard import Guard

FILE = "checkpoint.pt"


class Checkpoints:
    """Keeps the weights, the optimiser's state and the guard's in a file, replaced whole every so many steps.

    ``run`` says which run it is; the checkpoint of another one is refused. Nothing else has to be kept: batches, rates and
    dropout are functions of the seed and the step.
    """

    def __init__(self, folder: Path, every: int, run: Sequence[Any]) -> None:
        if every < 1:
            raise RecipeError(f"every is {every}: a checkpoint is kept every 1 or more steps")
        self._folder, self._every, self._run = folder, every, [str(part) for part in run]

    def restore(self, model: Any, optimiser: torch.optim.Optimizer, guard: Guard) -> int:
        """Put what the checkpoint holds into these; returns how many steps it has behind it, 0 where there is none.

        Raises RecipeError where it is that of another run.
        """
        place = self._folder / FILE
        if not place.is_file():
            return 0
        found = torch.load(place, map_location="cpu", weights_only=True)
        if found["run"] != self._run:
            raise RecipeError(
                f"{place} is of another run ({', '.join(found['run'])}; this one is {', '.join(self._run)}): give another folder"
            )
        model.load_state_dict(found["model"])
        optimiser.load_state_dict(found["optimiser"])
        guard.restore(found["guard"])
        return int(found["step"])

    def after(self, step: int, model: Any, optimiser: torch.optim.Optimizer, guard: Guard) -> None:
        """Write the checkpoint where it is time, ``step`` steps being done."""
        if step % self._every:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        found = {
            "run": self._run,
            "step": step,
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "guard": guard.state(),
        }
        new = self._folder / (FILE + ".new")
        with new.open("wb") as file:
            torch.save(found, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / FILE)
