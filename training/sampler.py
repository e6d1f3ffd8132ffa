"""Topic-aware batches in the trainers of sentence-transformers themselves, of any of the three kinds.

arguments = SentenceTransformerTrainingArguments(..., batch_sampler=TopicAwareBatchSampler.of(topics))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from sentence_transformers.base.sampler import DefaultBatchSampler

from retrievers.errors import TrainingDataError
from retrievers.training.batches import Over, TopicAwareBatches, share
from retrievers.training.processes import process_count
from retrievers.training.topics import Topics


class TopicAwareBatchSampler(DefaultBatchSampler):  # type: ignore[misc]
    """The batches of :class:`~retrievers.training.batches.TopicAwareBatches` as a batch sampler.

    An epoch has ``len(dataset) // (batch_size * processes)`` global batches, and a query may come in several or none of
    them. Step ``i`` of epoch ``e`` is step ``e * steps + i`` of the run, so that a resumed run goes on with the batches
    that it would have had. ``processes`` (by default those of the process group) take turns in what is yielded, as
    accelerate deals it out: each gets its share of one global batch, whose topics are the same for all. Give
    ``processes=1`` where accelerate splits batches itself (``split_batches``).

    ``dataset``, ``batch_size`` (of one process), ``drop_last`` (batches are always full), ``valid_label_columns``,
    ``generator`` (unused: ``seed`` alone decides) and ``seed`` are what trainers pass. Raises TrainingDataError where
    ``topics`` are not those of as many queries as the data set has rows, and for what TopicAwareBatches refuses.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        drop_last: bool = True,
        valid_label_columns: list[str] | None = None,
        generator: Any = None,
        seed: int = 0,
        *,
        topics: Topics,
        topics_per_batch: int = 1,
        over: Over = "uniform",
        processes: int | None = None,
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            drop_last=drop_last,
            valid_label_columns=valid_label_columns,
            generator=generator,
            seed=seed,
        )
        if len(dataset) != len(topics.assignment):
            raise TrainingDataError(
                f"the topics are those of {len(topics.assignment):,} queries, and the data set has {len(dataset):,} rows: "
                "find the topics of its rows; for an evaluation set, pass others='in order' to TopicAwareBatchSampler.of"
            )
        self.processes = process_count() if processes is None else processes
        if self.processes < 1:
            raise TrainingDataError(f"{self.processes} processes: give 1 or more")
        self.batches = TopicAwareBatches(
            topics.assignment,
            batch_size * self.processes,
            topics_per_batch=topics_per_batch,
            over=over,
            seed=seed,
        )
        self._steps = len(dataset) // self.batches.size

    @classmethod
    def of(
        cls,
        topics: Topics,
        *,
        topics_per_batch: int = 1,
        over: Over = "uniform",
        processes: int | None = None,
        others: Literal["refuse", "in order"] = "refuse",
    ) -> Callable[..., Any]:
        """What ``batch_sampler=`` of training arguments takes.

        Trainers batch their evaluation sets with it as well. ``others`` says what becomes of a data set that has another
        number of rows than the topics: it is refused with a TrainingDataError, or batched in its own order.
        """
        if others not in ("refuse", "in order"):
            raise TrainingDataError(f"others is {others!r}: give 'refuse' or 'in order'")

        def sampler(dataset: Any, batch_size: int, drop_last: bool = True, **given: Any) -> Any:
            if others == "in order" and len(dataset) != len(topics.assignment):
                return DefaultBatchSampler(range(len(dataset)), batch_size=batch_size, drop_last=drop_last, **given)
            options: dict[str, Any] = {"topics_per_batch": topics_per_batch, "over": over, "processes": processes}
            return cls(dataset, batch_size, drop_last, **given, topics=topics, **options)

        return sampler

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.epoch * self._steps, (self.epoch + 1) * self._steps):
            batch = self.batches.batch(step)
            for rank in range(self.processes):
                yield share(batch, rank, self.processes).tolist()

    def __len__(self) -> int:
        return self._steps * self.processes
