"""Meta-training with demonstrations (Mueller et al., 2023): many tasks, a frozen retriever, then a few examples of a new task.

bank = DemonstrationBank.build("bank", examples)
trainer = MetaTrainer(model, tokenizer, bank, k=5)
trainer.meta_train({"questions": [...], "intents": [...]}, Schedule(steps=2000))
trainer.tune(few_examples, Schedule(steps=50, rate=1e-4))
print(trainer.evaluate(test_examples).exact_match)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrievers.demonstrations import Demonstration, DemonstrationBank
from retrievers.errors import LeakError, TrainingDataError, TrainingError
from retrievers.training.answering import Answering, Marginal
from retrievers.training.answers import exact_match, token_f1
from retrievers.training.batches import Batches, MixedBatches, RandomBatches, generator
from retrievers.training.few_shot import FewShotBatch, FewShotCollator, FewShotExample, FewShotSet
from retrievers.training.guard import Guard
from retrievers.training.joining import Cuts, Form, Joiner, Overlong
from retrievers.training.meta_checkpoints import Checkpoints
from retrievers.training.near_duplicates import normal_form
from retrievers.training.schedule import Schedule

_DROPOUT = 5  # see batches.py: a stream of its own


@dataclass(frozen=True)
class FewShotRun:
    """What training gave: the mean loss of an answer's token, of every step that this call took, and what was cut."""

    losses: list[float]
    cuts: Cuts


@dataclass(frozen=True)
class FewShotScores:
    """What evaluation gave: means over the examples, the generated ``answers`` in their order, and what was cut."""

    exact_match: float
    token_f1: float
    answers: list[str] = field(repr=False)
    cuts: Cuts = field(repr=False)


class MetaTrainer:
    """Trains a sequence-to-sequence or causal model of transformers on tasks with demonstrations.

    Each of ``k`` demonstrations is joined to an input separately, and the answer's probability is marginalised over them
    (``marginal``, see :mod:`retrievers.training.marginal`); ``k=0`` is the same without demonstrations. ``strategy``,
    ``own_task`` and ``options`` select them (:class:`FewShotSet`), ``form``, ``max_length``, ``max_answer`` and ``overlong``
    write them (:class:`Joiner`), ``temperature`` divides their scores. The model is trained in place, on ``device`` (by
    default where it is).

    All that is random depends on ``seed``: on one CPU the same seed gives the same weights. Raises as those classes do.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        bank: DemonstrationBank | None = None,
        *,
        k: int = 5,
        marginal: Marginal = "token",
        temperature: float = 1.0,
        strategy: str = "nearest",
        own_task: bool = False,
        options: Mapping[str, Any] | None = None,
        form: Form | None = None,
        max_length: int = 512,
        max_answer: int = 64,
        overlong: Overlong = "refuse",
        seed: int = 0,
        device: str | None = None,
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.tokenizer, self.bank, self.k, self.seed = tokenizer, bank, k, seed
        self._select = {"k": k, "strategy": strategy, "own_task": own_task, **(options or {})}
        self._write: dict[str, Any] = {
            "form": form,
            "max_length": max_length,
            "max_answer": max_answer,
            "overlong": overlong,
        }
        self._max_answer = max_answer
        places = getattr(model.config, "max_position_embeddings", None)
        if places is not None and max(max_length, max_answer) > places:
            raise TrainingError(
                f"max_length is {max_length} and max_answer {max_answer}, and {type(model).__name__} has {places} positions: set "
                f"them to {places} at most"
            )
        joiner = self._joiner()
        self.answering = Answering(model, end=joiner.end, pad=joiner.pad, marginal=marginal, temperature=temperature)
        self._few_shot([])  # refuses k without a bank

    def meta_train(
        self,
        tasks: Mapping[str, Sequence[Demonstration]],
        schedule: Schedule | None = None,
        *,
        exponent: float = 1.0,
        folder: str | Path | None = None,
        every: int = 500,
        report: Callable[[int, float], None] | None = None,
    ) -> FewShotRun:
        """Train on many tasks; each example's task is drawn by its size to the power ``exponent``: 1 proportionally, 0 uniformly.

        With a ``folder`` a checkpoint is kept there, of every ``every``-th step, from which the same call goes on to the same
        weights. ``report`` is called after each step with its number, from 1, and its loss.

        Raises TrainingDataError for tasks that are empty, fewer examples than a step takes, and what does not fit (see
        :class:`Joiner`), LeakError for evaluation data, TrainingError where training breaks, RecipeError where the folder
        holds the checkpoint of another run.
        """
        schedule = schedule or Schedule()
        empty = [name for name, examples in tasks.items() if not examples]
        if empty or not tasks:
            raise TrainingDataError(
                f"{'no tasks' if not tasks else f'no examples of {empty[0]!r}'}: give some of each task"
            )
        examples = [one for name in tasks for one in tasks[name]]
        numbers = np.repeat(np.arange(len(tasks)), [len(some) for some in tasks.values()])
        batches = MixedBatches(numbers, schedule.batch * schedule.accumulate, exponent=exponent, seed=self.seed)
        checkpoints = (
            None if folder is None else Checkpoints(Path(folder), every, [repr(schedule), exponent, self.seed])
        )
        return self._train(examples, batches, schedule, checkpoints, report)

    def tune(
        self,
        examples: Sequence[Demonstration],
        schedule: Schedule | None = None,
        *,
        report: Callable[[int, float], None] | None = None,
    ) -> FewShotRun:
        """Train on the few examples of a task, in epochs; batches are no larger than there are examples.

        Parameters and errors are those of :meth:`meta_train`.
        """
        schedule = schedule or Schedule(steps=100, rate=1e-4)
        if not examples:
            raise TrainingDataError("there are no examples to tune on: give one or more")
        size = min(schedule.batch * schedule.accumulate, len(examples))
        return self._train(examples, RandomBatches(len(examples), size, seed=self.seed), schedule, None, report)

    def _train(
        self,
        examples: Sequence[Demonstration],
        batches: Batches,
        schedule: Schedule,
        checkpoints: Checkpoints | None,
        report: Callable[[int, float], None] | None,
    ) -> FewShotRun:
        few_shot, collate = self._few_shot(examples), FewShotCollator(self._joiner())
        marked = next((one for one in examples if one.evaluation), None)
        if marked is not None:
            raise LeakError(
                f"example {marked.id!r} of task {marked.task!r} is evaluation data: leave it out of training"
            )
        collate.joiner.check(examples)
        optimiser, guard, losses = self._optimiser(schedule), Guard(), []
        was_training = self.model.training
        self.model.train()
        first = 0 if checkpoints is None else checkpoints.restore(self.model, optimiser, guard)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            for step in range(first, schedule.steps):
                torch.manual_seed(int(generator(self.seed, _DROPOUT, step).integers(2**62)))
                for group in optimiser.param_groups:
                    group["lr"] = schedule.rate_at(step)
                chosen = few_shot.__getitems__(batches.batch(step).tolist())
                loss = self.accumulate(chosen, collate, schedule.batch)
                guard.check_loss(step, loss)
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                losses.append(loss)
                if checkpoints is not None:
                    checkpoints.after(step + 1, self.model, optimiser, guard)
                if report is not None:
                    report(step + 1, loss)
        self.model.train(was_training)
        return FewShotRun(losses, collate.joiner.cuts)

    def accumulate(self, chosen: Sequence[FewShotExample], collate: FewShotCollator, size: int) -> float:
        """Add the gradient of the mean loss of an answer's token, forwarding ``size`` examples at a time; returns the loss.

        The mean is over the tokens of all examples, so that the gradient does not depend on ``size``.
        """
        parts = [collate(chosen[first : first + size]) for first in range(0, len(chosen), size)]
        tokens = sum(int(part.tokens.sum()) for part in parts)
        total = 0.0
        for part in parts:
            loss = -self._log_likelihood(part).sum() / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    @torch.no_grad()
    def evaluate(self, examples: Sequence[Demonstration], *, batch: int = 16) -> FewShotScores:
        """Generate an answer to each example, and compare it with its output: exact match and token F1.

        Raises TrainingDataError for no examples and for what does not fit, LeakError where a demonstration's input is that of
        another one of the examples: their answers must not be seen.
        """
        if not examples:
            raise TrainingDataError("there are no examples to evaluate on: give one or more")
        few_shot, collate = self._few_shot(examples), FewShotCollator(self._joiner())
        held_out = {normal_form(one.input) for one in examples}
        was_training = self.model.training
        self.model.eval()
        answers: list[str] = []
        for first in range(0, len(examples), batch):
            chosen = few_shot[first : first + batch]
            for one in chosen:
                _check_leak(one, held_out)
            ids = self.answering.generate(collate(chosen).to(self.model.device), self._max_answer)
            answers += [self.tokenizer.decode(some, skip_special_tokens=True).strip() for some in ids]
        self.model.train(was_training)
        pairs = [(answer, one.output) for answer, one in zip(answers, examples, strict=True)]
        return FewShotScores(
            float(np.mean([exact_match(*pair) for pair in pairs])),
            float(np.mean([token_f1(*pair) for pair in pairs])),
            answers,
            collate.joiner.cuts,
        )

    def save(self, folder: str | Path) -> None:
        """Write model and tokenizer as transformers reads them."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _log_likelihood(self, batch: FewShotBatch) -> Tensor:
        return self.answering.log_likelihood(batch.to(self.model.device))

    def _few_shot(self, examples: Sequence[Demonstration]) -> FewShotSet:
        return FewShotSet(examples, self.bank, **self._select)

    def _joiner(self) -> Joiner:
        return Joiner(self.tokenizer, causal=not self.model.config.is_encoder_decoder, **self._write)

    def _optimiser(self, schedule: Schedule) -> torch.optim.AdamW:
        trained = [value for value in self.model.parameters() if value.requires_grad]
        groups = [
            {"params": [value for value in trained if value.dim() > 1], "weight_decay": schedule.weight_decay},
            {"params": [value for value in trained if value.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=schedule.rate)


def _check_leak(chosen: FewShotExample, held_out: set[str]) -> None:
    for one in chosen.selected:
        if normal_form(one.demonstration.input) in held_out:
            raise LeakError(
                f"demonstration {one.demonstration.id!r} of example {chosen.example.id!r} has the input of one of the examples "
                "evaluated on: call bank.mark_evaluation with their inputs first"
            )
