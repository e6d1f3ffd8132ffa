"""The training loop: a recipe in, a plain sentence-transformers model out.

The loop itself is the sentence-transformers trainer of the model's class. Here it gets batches that are a function of the
seed and the step alone, so that a run which was stopped goes on with the very numbers that it would have had.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from retrievers.encoders.checkpoints import NeuralKind
from retrievers.encoders.model import LIBRARY_CLASSES, save
from retrievers.errors import RecipeError
from retrievers.training.development import MEASURE, DevelopmentSet
from retrievers.training.examples import moved
from retrievers.training.guard import Guard
from retrievers.training.objective import Batch
from retrievers.training.processes import process_count, process_rank, sum_over_processes
from retrievers.training.recipe import Recipe
from retrievers.training.sparsity import Penalty

LOG, BEST = "log.jsonl", "best"
_EVERY = 10  # steps between two lines of the log


@dataclass(frozen=True)
class Progress:
    """How a run stands, after each step. ``active`` is the mean of non-zeros of a sparse document, None for others."""

    step: int
    steps: int
    loss: float
    queries_per_second: float
    seconds_left: float
    active: float | None
    quality: float | None


class Loader:
    """The batches of a run from ``start`` on, which the trainer iterates."""

    def __init__(self, assemble: Callable[[int], Batch], batches: int) -> None:
        self._assemble, self._batches = assemble, batches
        self.start = 0

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        for number in range(self.start, self._batches):
            yield {"batch": self._assemble(number)}


class Loop(TrainerCallback):  # type: ignore[misc]
    """What happens around the steps: the guard, the log, the development set, and the weights that are kept."""

    def __init__(
        self,
        recipe: Recipe,
        development: DevelopmentSet | None,
        report: Callable[[Progress], None] | None,
    ) -> None:
        self.recipe, self.development, self.report = recipe, development, report
        self.guard = Guard()
        self.folder = Path(recipe.output)
        self.best: float | None = None
        self.since = 0  # measurements since the best
        self.latest: float | None = None
        self.loss = math.nan
        self.active: float | None = None
        self._times: deque[float] = deque(maxlen=21)
        self._board = _board(self.folder / "tensorboard") if process_rank() == 0 else None

    def state(self) -> dict[str, Any]:
        return {"guard": self.guard.state(), "best": self.best, "since": self.since, "latest": self.latest}

    def restore(self, state: dict[str, Any]) -> None:
        self.guard.restore(state["guard"])
        self.best, self.since, self.latest = state["best"], state["since"], state["latest"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        step, model = state.global_step, kwargs["model"]
        self._times.append(time.monotonic())
        if self.development is not None and (step % self.recipe.development.every == 0 or step == state.max_steps):
            self._measure(self.development, step, model)
            patience = self.recipe.development.patience
            if patience and self.since >= patience:
                control.should_training_stop = True
            control.should_save = True
        elif step % self.recipe.development.every == 0 or step == state.max_steps:
            control.should_save = True
        if state.is_world_process_zero:
            sparse = self.active is not None
            if step % _EVERY == 0 or step == state.max_steps:
                self._write(step, {"loss": self.loss, "active": self.active} if sparse else {"loss": self.loss})
            if self.report is not None:
                self.report(self._progress(step, state.max_steps))
        return control

    def _measure(self, development: DevelopmentSet, step: int, model: Any) -> None:
        """The first process measures, and all take the same decisions from what it found."""
        found = [0.0]
        if process_rank() == 0:
            generator = torch.get_rng_state()  # measuring must not change what is drawn after it
            found = [development.measure(model, self.recipe.model.kind)]
            torch.set_rng_state(generator)
            self._write(step, {MEASURE: found[0]})
        if process_count() > 1:
            torch.distributed.broadcast_object_list(found, src=0)
        self.latest = found[0]
        if self.best is not None and self.latest <= self.best:
            self.since += 1
            return
        self.best, self.since = self.latest, 0
        if process_rank() == 0:
            new = self.folder / "best.new"
            shutil.rmtree(new, ignore_errors=True)
            save(model, new)
            shutil.rmtree(self.folder / BEST, ignore_errors=True)
            new.rename(self.folder / BEST)

    def _write(self, step: int, values: dict[str, float | None]) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)
            self._board.flush()

    def _progress(self, step: int, steps: int) -> Progress:
        times = list(self._times)
        each = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.nan
        rate = self.recipe.batches.size * self.recipe.batches.accumulate / each if each > 0 else math.nan
        return Progress(step, steps, self.loss, rate, each * (steps - step), self.active, self.latest)


def _board(folder: Path) -> Any:
    """A writer of TensorBoard's files, None where that package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))


def trainer_class(kind: NeuralKind) -> Any:
    """The trainer of sentence-transformers for models of this kind, with batches and losses of ours."""
    import sentence_transformers as library

    base: Any = getattr(library, f"{LIBRARY_CLASSES[kind]}Trainer")

    class Ours(base):  # type: ignore[misc]
        batches: Loader
        loop: Loop
        penalty: Penalty | None = None

        def add_model_card_callback(self, _default_args_dict: dict[str, Any]) -> None:
            """The card is written at the end, from the recipe."""

        def get_train_dataloader(self) -> Any:
            return self.batches

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            batch: Batch = inputs["batch"]
            step = self.state.global_step
            if self.loss.model is not model:
                self.loss.model = model
            outcome = self.loss(batch)
            loss = outcome.loss
            if self.penalty is not None:
                loss = loss + self.penalty(step, outcome.documents)
            guard, vectors = self.loop.guard, outcome.documents[0]
            guard.check_loss(step, loss.detach())
            guard.check_scores(step, outcome.scores.own.detach())
            if self.loss.kind == "sparse":
                active = (vectors.detach() > 0).sum(dim=1)
                guard.check_sparse(step, active, vectors.shape[1])
                self.loop.active = float(active.double().mean())
            self.loop.loss = float(sum_over_processes(loss.detach())) / process_count()
            return (loss, {}) if return_outputs else loss

        def _prepare_inputs(self, inputs: Any) -> Any:
            return {"batch": moved(inputs["batch"], self.args.device)}

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
            # The parent would make a model card at every checkpoint, which fails, aloud, for an inference-free model.
            save(self.model, Path(output_dir or self.args.output_dir))

        def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
            super()._save_checkpoint(*arguments, **options)
            if self.is_world_process_zero():
                place = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / "loop.json"
                state = {"loop": self.loop.state(), "penalty": None if self.penalty is None else self.penalty.state()}
                place.write_text(json.dumps(state), encoding="utf-8")

        def _load_from_checkpoint(self, place: str, *arguments: Any, **options: Any) -> None:
            super()._load_from_checkpoint(place, *arguments, **options)
            state = json.loads((Path(place) / "loop.json").read_text(encoding="utf-8"))
            self.loop.restore(state["loop"])
            if self.penalty is not None:
                self.penalty.restore(state["penalty"])
            self.batches.start = checkpoint_step(Path(place)) * self.args.gradient_accumulation_steps

    return Ours


def arguments_class(kind: NeuralKind) -> Any:
    """The arguments that go with :func:`trainer_class`."""
    import sentence_transformers as library

    return getattr(library, f"{LIBRARY_CLASSES[kind]}TrainingArguments")


def checkpoint_step(checkpoint: Path) -> int:
    """The step after which a checkpoint was made."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints below a folder, the newest last; those that a kill has cut short are passed over."""
    found = (path for path in folder.glob("checkpoint-*") if (path / "loop.json").is_file())
    return sorted(found, key=checkpoint_step)


def claim(recipe: Recipe, folder: Path) -> None:
    """Make a folder that of this recipe's run, unless it is; raises RecipeError where it holds something else."""
    place = folder / "recipe.toml"
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        place.write_text(recipe.to_toml(), encoding="utf-8")
        return
    if not place.is_file():
        raise RecipeError(f"{folder} is not empty, and holds no run: give another output")
    if place.read_text(encoding="utf-8") != recipe.to_toml():
        raise RecipeError(f"{folder} holds the run of another recipe: give another output, or remove the folder")
