"""Batches of query rows, each a pure function of (seed, step): at random, by topic, from one source, or from many.

A batch is the global one, of all processes together. It is drawn alike by each of them, and :func:`share` gives each its
slice, so that what is trained on does not depend on how many there are, and a run that was stopped goes on without drawing
again what came before. Draws come from numpy's Philox generator, keyed by (seed, step); they stay the same from one machine
to the next, and numpy keeps them within a version.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError

Rows = NDArray[np.int64]
Over = Literal["uniform", "proportional"]

#: What draws are for: no two purposes of one seed share a stream.
_TOPICS, _EPOCHS, _SOURCES, _MIXED = 1, 2, 3, 4


class Batches(Protocol):
    """What a training loop asks of the batches that it goes through."""

    @property
    def size(self) -> int:
        """How many queries a batch has, over all processes."""
        ...

    def batch(self, step: int) -> Rows:
        """The query rows of a step, int64 ``[size]``, none of them twice; steps may be asked for in any order."""
        ...


def generator(seed: int, *key: int) -> np.random.Generator:
    """Numbers that depend on ``seed`` and ``key`` alone, both 0 or more: another key, another independent stream.

    Raises TrainingDataError for negative ones.
    """
    if seed < 0 or min(key, default=0) < 0:
        raise TrainingDataError(f"seed {seed} with key {list(key)}: seeds, steps and rows must be 0 or more")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def share(batch: Rows, rank: int, processes: int) -> Rows:
    """The slice of a global batch that process ``rank`` of ``processes`` trains on.

    Raises TrainingDataError where the batch does not divide evenly, or there is no such process.
    """
    if not 0 <= rank < processes:
        raise TrainingDataError(f"there is no process {rank} among {processes}: ranks count from 0")
    if len(batch) % processes:
        raise TrainingDataError(
            f"a batch of {len(batch)} queries does not divide among {processes} processes: make its size a multiple"
        )
    each = len(batch) // processes
    return batch[rank * each : (rank + 1) * each]


class RandomBatches:
    """Epochs in random order: each query once in an epoch.

    An epoch whose length is no multiple of ``size`` ends inside a batch, which the next one fills up, with queries that are
    not in it yet. Only where an epoch is shorter than two batches does it give one batch and leave its other queries out.

    With a ``fraction`` below 1 each epoch is a fresh random subset of the queries, in random order (RS2: Okanovic et al.,
    "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", 2024).

    The orders of two epochs are kept in memory, 16 bytes a query. Raises TrainingDataError for a size or a fraction
    out of range, and where an epoch has fewer queries than a batch.
    """

    def __init__(self, queries: int, size: int, *, seed: int = 0, fraction: float = 1.0) -> None:
        if not 0 < fraction <= 1:
            raise TrainingDataError(f"fraction is {fraction}: give more than 0 and at most 1")
        self.size = size
        self.queries = queries
        self.epoch_queries = round(queries * fraction)
        """How many queries an epoch has."""
        _check_size(size, self.epoch_queries, "an epoch")
        self._seed = seed
        whole = self.epoch_queries >= 2 * size
        self._period = self.epoch_queries if whole else size  # queries of an epoch that are trained on
        self._order = lru_cache(maxsize=2)(self._draw)

    @property
    def steps_per_epoch(self) -> float:
        """How many batches an epoch fills; not a whole number where it ends inside one."""
        return self._period / self.size

    def epoch(self, step: int) -> int:
        """The epoch in which the first query of a step's batch is, from 0."""
        return step * self.size // self._period

    def batch(self, step: int) -> Rows:
        """The query rows of a step, int64 ``[size]``; see :class:`Batches`."""
        _check_step(step)
        epoch, first = divmod(step * self.size, self._period)
        rows = self._order(epoch)[first : first + self.size]
        if len(rows) < self.size:
            rows = np.concatenate([rows, self._order(epoch + 1)[: self.size - len(rows)]])
        return rows.copy()

    def _draw(self, epoch: int) -> Rows:
        order = self._shuffled(epoch)
        begun = epoch * self._period % self.size  # queries of the epoch before in the batch that this one completes
        if not begun:
            return order[: self._period]
        # Those of them that would come again in that batch change places with later ones. The end of the order stays
        # as it was drawn, so that an epoch depends on the one before it and on no earlier one.
        missing = self.size - begun
        end = self._period - (epoch + 1) * self._period % self.size
        before = self._shuffled(epoch - 1)[self._period - begun : self._period]
        twice = np.flatnonzero(np.isin(order[:missing], before))
        later = missing + np.flatnonzero(~np.isin(order[missing:end], before))[: len(twice)]
        order[twice], order[later] = order[later], order[twice]
        return order

    def _shuffled(self, epoch: int) -> Rows:
        order = generator(self._seed, _EPOCHS, epoch).permutation(self.queries)[: self.epoch_queries]
        return order.astype(np.int64, copy=False)


class TopicAwareBatches:
    """Batches of queries on few topics (TAS: Hofstätter et al., 2021, "Efficiently Teaching an Effective Dense Retriever
    with Balanced Topic Aware Sampling", section 3.1).

    While a batch is short, a topic is drawn that it does not have yet, and ``size // topics_per_batch`` of its queries,
    all where it has fewer, without replacement. Topics are drawn ``over`` ``"uniform"``, each alike as in the paper, or
    ``"proportional"`` to their queries. Where all topics were drawn and the batch is still short, another round takes of
    the queries that are left. The queries of a topic stand together.

    ``assignment`` is the topic of each query, int64 ``[queries]``, from 0. Raises TrainingDataError where it is not that,
    for fewer queries than a batch, and for a number of topics that a batch cannot hold.
    """

    def __init__(
        self,
        assignment: NDArray[np.integer],
        size: int,
        *,
        topics_per_batch: int = 1,
        over: Over = "uniform",
        seed: int = 0,
    ) -> None:
        self.size = size
        _check_size(size, len(assignment), "the assignment")
        if not 1 <= topics_per_batch <= size:
            raise TrainingDataError(f"{topics_per_batch} topics in a batch of {size} queries: give 1 to {size}")
        if over not in ("uniform", "proportional"):
            raise TrainingDataError(f"topics cannot be drawn over {over!r}: give 'uniform' or 'proportional'")
        self.topics_per_batch = topics_per_batch
        self._by_topic = _groups(assignment, "topic")
        sizes = np.array([len(rows) for rows in self._by_topic])
        self._weights = np.ones(len(sizes)) if over == "uniform" else sizes.astype(np.float64)
        self._seed = seed

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return sum(len(rows) for rows in self._by_topic)

    def batch(self, step: int) -> Rows:
        """The query rows of a step, int64 ``[size]``; see :class:`Batches`."""
        _check_step(step)
        draws = generator(self._seed, _TOPICS, step)
        # The order of exponential waiting times is that of weighted draws without replacement.
        topics = np.argsort(draws.exponential(size=len(self._weights)) / self._weights, kind="stable")
        most = self.size // self.topics_per_batch
        taken: list[Rows] = []
        short, turn = self.size, 0
        left: dict[int, Rows] = {}
        while short:
            topic = int(topics[turn % len(topics)])
            turn += 1
            if topic not in left:
                left[topic] = self._by_topic[topic]
            rows, count = left[topic], min(most, short, len(left[topic]))
            places = draws.choice(len(rows), count, replace=False) if count else np.empty(0, np.int64)
            taken.append(rows[places])
            left[topic] = np.delete(rows, places)
            short -= count
        return np.concatenate(taken)


class SingleSourceBatches:
    """Batches whose queries all come from one source: one data set, one language.

    A source is drawn with a probability in proportion to the number of its queries to the power ``exponent``: 1 is
    proportional, 0 is uniform, between them small sources come more often than their size would have it. The queries
    of a batch are drawn from the source without replacement, and independently of other batches.

    ``sources`` is the number of each query's source, int64 ``[queries]``, from 0. Raises TrainingDataError where it is not
    that, for a source with fewer queries than a batch, and for an exponent that is negative or no number.
    """

    def __init__(self, sources: NDArray[np.integer], size: int, *, exponent: float = 1.0, seed: int = 0) -> None:
        self.size = size
        _check_size(size, len(sources), "the list of sources")
        self._by_source = _groups(sources, "source")
        for rows in self._by_source:
            if len(rows) < size:
                raise TrainingDataError(
                    f"source {sources[rows[0]]} has {len(rows)} queries, fewer than a batch of {size}: leave it out, join "
                    "it to another, or make the batches smaller"
                )
        self._until = _shares(self._by_source, exponent)
        self._seed = seed

    def batch(self, step: int) -> Rows:
        """The query rows of a step, int64 ``[size]``; see :class:`Batches`."""
        _check_step(step)
        draws = generator(self._seed, _SOURCES, step)
        drawn = min(int(np.searchsorted(self._until, draws.random(), side="right")), len(self._by_source) - 1)
        rows = self._by_source[drawn]
        return rows[draws.choice(len(rows), self.size, replace=False)]


class MixedBatches:
    """Batches of many sources: the source of every query is drawn anew.

    ``sources`` and ``exponent`` are as in :class:`SingleSourceBatches`, and so are the errors, but that a source may be small:
    where all its queries are in the batch already, another one is drawn.
    """

    def __init__(self, sources: NDArray[np.integer], size: int, *, exponent: float = 1.0, seed: int = 0) -> None:
        self.size = size
        _check_size(size, len(sources), "the list of sources")
        self._by_source = _groups(sources, "source")
        self._until = _shares(self._by_source, exponent)
        self._seed = seed

    def batch(self, step: int) -> Rows:
        """The query rows of a step, int64 ``[size]``; see :class:`Batches`."""
        _check_step(step)
        draws = generator(self._seed, _MIXED, step)
        taken: dict[int, None] = {}
        while len(taken) < self.size:
            drawn = np.searchsorted(self._until, draws.random(self.size - len(taken)), side="right")
            for source in np.minimum(drawn, len(self._by_source) - 1).tolist():
                rows = self._by_source[source]
                # One that is in the batch already changes nothing, and is drawn again.
                taken[int(rows[draws.integers(len(rows))])] = None
        return np.array(list(taken), np.int64)


def _shares(by_source: list[Rows], exponent: float) -> NDArray[np.float64]:
    """Up to where in [0, 1] each source reaches, with its size to the power ``exponent`` as its share."""
    if not 0 <= exponent < float("inf"):
        raise TrainingDataError(f"exponent is {exponent}: give 0 (uniform) to 1 (proportional), or more")
    logs = exponent * np.log([len(rows) for rows in by_source])
    weights = np.exp(logs - logs.max())
    return np.asarray(np.cumsum(weights / weights.sum()), np.float64)


def _groups(numbers: NDArray[np.integer], what: str) -> list[Rows]:
    """The rows that have each number, in order; numbers that no row has are left out."""
    given = np.asarray(numbers)
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise TrainingDataError(
            f"the {what} of each query must be an array of whole numbers [queries]; got {given.dtype} {list(given.shape)}"
        )
    if given.min() < 0:
        row = int(np.flatnonzero(given < 0)[0])
        raise TrainingDataError(f"query {row} has the {what} {given[row]}: number them from 0")
    order = np.argsort(given, kind="stable").astype(np.int64, copy=False)
    return np.split(order, np.flatnonzero(np.diff(given[order])) + 1)


def _check_size(size: int, queries: int, where: str) -> None:
    if size < 1:
        raise TrainingDataError(f"a batch of {size} queries: give 1 or more")
    if queries < size:
        raise TrainingDataError(
            f"{where} has {queries} queries, fewer than a batch of {size}: give more queries, or smaller batches"
        )


def _check_step(step: int) -> None:
    if step < 0:
        raise TrainingDataError(f"there is no step {step}: steps count from 0")
