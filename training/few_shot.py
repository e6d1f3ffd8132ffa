"""Training examples with the demonstrations that were retrieved for them, and batches of them as tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from retrievers.demonstrations import Demonstration, DemonstrationBank, Selected
from retrievers.errors import TrainingDataError
from retrievers.training.joining import Joiner


@dataclass(frozen=True)
class FewShotExample:
    """An example, and its demonstrations, the nearest first; none where it goes without."""

    example: Demonstration
    selected: tuple[Selected, ...]


class FewShotSet(Sequence[FewShotExample]):
    """A data set of torch's map style: examples, each with up to ``k`` demonstrations out of a bank.

    Demonstrations are selected when an example is first asked for, by :meth:`DemonstrationBank.select`: never the example
    itself, its near-duplicates or evaluation data. They are kept, as the retriever is frozen. ``own_task`` restricts them
    to the example's own task; ``options`` are further ones of ``select``. ``k=0`` needs no bank.

    Raises TrainingDataError for what is no list of Demonstrations, and for ``k`` without a bank.
    """

    def __init__(
        self,
        examples: Sequence[Demonstration],
        bank: DemonstrationBank | None = None,
        *,
        k: int = 5,
        strategy: str = "nearest",
        own_task: bool = False,
        **options: Any,
    ) -> None:
        if k < 0 or (k and bank is None):
            raise TrainingDataError(f"k is {k} and the bank {bank!r}: give a bank, or k=0 to go without demonstrations")
        for number, one in enumerate(examples):
            if not isinstance(one, Demonstration):
                raise TrainingDataError(f"example {number} is a {type(one).__name__}, {one!r:.80}: give Demonstrations")
        self.examples = examples
        self.k = k
        self._bank, self._strategy, self._own_task = bank, strategy, own_task
        self._options = {**options, "order": "nearest_first"}
        self._known: dict[int, tuple[Selected, ...]] = {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return self.__getitems__(range(len(self))[number])
        return self.__getitems__([range(len(self))[number]])[0]

    def __iter__(self) -> Iterator[FewShotExample]:
        return (self[number] for number in range(len(self)))

    def __getitems__(self, numbers: Sequence[int]) -> list[FewShotExample]:
        """Several at once, which takes one call of the retriever; torch's loaders ask in this way."""
        missing = [number for number in dict.fromkeys(numbers) if number not in self._known]
        groups: dict[str | None, list[int]] = {}
        for number in missing:
            groups.setdefault(self.examples[number].task if self._own_task else None, []).append(number)
        for task, some in groups.items():
            self._known |= zip(some, self._select(task, [self.examples[number] for number in some]), strict=True)
        return [FewShotExample(self.examples[number], self._known[number]) for number in numbers]

    def _select(self, task: str | None, examples: list[Demonstration]) -> list[tuple[Selected, ...]]:
        if not self.k or self._bank is None:
            return [()] * len(examples)
        options = self._options if task is None else {**self._options, "tasks": task}
        return [tuple(found) for found in self._bank.select(examples, self.k, self._strategy, **options)]


@dataclass(frozen=True, eq=False)
class FewShotBatch:
    """``batch`` examples with up to ``K`` rows each, of which the ``rows`` that exist are forwarded.

    ``prompts`` ``[rows, width]`` are the tokens of the joined inputs, padded on the right, and ``prompt_mask`` is 1 for real
    ones, both int64; rows come example by example. ``scores`` ``[batch, K]`` float32 are the retrieval scores and
    ``demonstrations`` ``[batch, K]`` is true for rows that exist (an example without a demonstration has one row, too).
    ``answers`` ``[batch, length]`` int64 are the gold tokens, padded on the right, ``tokens`` is true for real ones.
    """

    prompts: Tensor
    prompt_mask: Tensor
    scores: Tensor
    demonstrations: Tensor
    answers: Tensor
    tokens: Tensor

    @property
    def example_of(self) -> Tensor:
        """The number of each row's example, int64 ``[rows]``."""
        return self.demonstrations.nonzero()[:, 0]

    def spread(self, values: Tensor) -> Tensor:
        """Values of rows ``[rows, n]`` at their places in ``[batch, K, n]``; 0 where no row is."""
        full = values.new_zeros(*self.demonstrations.shape, values.shape[1])
        full[self.demonstrations] = values
        return full

    def to(self, device: torch.device | str) -> Self:
        """The same on a device."""
        return type(self)(**{one.name: getattr(self, one.name).to(device) for one in fields(self)})


class FewShotCollator:
    """Makes a :class:`FewShotBatch` of examples: a joined row for each demonstration. ``joiner.cuts`` counts what was cut."""

    def __init__(self, joiner: Joiner) -> None:
        self.joiner = joiner

    def __call__(self, examples: Sequence[FewShotExample]) -> FewShotBatch:
        """Raises TrainingDataError as the joiner does, and for no examples at all."""
        if not examples:
            raise TrainingDataError("there is nothing to make a batch of: give one example or more")
        joined = self.joiner.join([(one.example, one.selected) for one in examples])
        prompts = [ids for rows in joined for ids, _ in rows]
        answers = self.joiner.answers([one.example for one in examples])
        most = max(map(len, joined))
        scores = [[score for _, score in rows] + [0.0] * (most - len(rows)) for rows in joined]
        return FewShotBatch(
            _padded(prompts, self.joiner.pad),
            _padded([[1] * len(ids) for ids in prompts], 0),
            torch.tensor(scores, dtype=torch.float32),
            torch.arange(most) < torch.tensor([len(rows) for rows in joined])[:, None],
            _padded(answers, self.joiner.pad),
            _padded([[1] * len(ids) for ids in answers], 0).bool(),
        )


def _padded(rows: list[list[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([ids + [filler] * (width - len(ids)) for ids in rows], dtype=torch.int64)
