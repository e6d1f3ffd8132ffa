"""What a step trains on: queries, their candidates and targets as rows of a training set, and then as features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retrievers.encoders.model import Task
from retrievers.errors import TrainingDataError
from retrievers.training.batches import Batches, generator, share
from retrievers.training.losses import Targets, known_positives
from retrievers.training.objective import Batch, Features
from retrievers.training.pairs import Candidates, PairReport, Scheme, draw_negatives, draw_pairs, drawable
from retrievers.training.sets import TrainingSet
from retrievers.training.teachers import LiveTeacher, batch_scores

Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Preprocess = Callable[[list[str], Task], Features]

_POSITIVE = 21  # no two purposes of one seed share a stream


@dataclass(frozen=True, eq=False)
class Drawn:
    """The global batch of a step: ``queries`` ``[b]``, ``documents`` ``[b, c]`` with the positive first, all rows.

    ``teacher`` ``[b, c]`` are their targets, NaN for none. Where a query has fewer negatives than the others its
    positive stands in their place, ``filler`` is true, and its target is NaN.
    """

    queries: Rows
    documents: Rows
    teacher: Scores
    filler: NDArray[np.bool_]

    def labels(self) -> Scores:
        """Targets that no teacher gives, ``[b, c]``: 1 for the positive, 0 for a negative, NaN for filler."""
        found = np.where(self.filler, np.nan, 0.0)
        found[:, 0] = 1.0
        return found


class Examples:
    """Draws the candidates of the queries that can be trained on.

    ``targets`` are one a candidate of the set, float ``[candidates]``, or None where nothing is distilled. Queries without a
    pair, which ``scheme`` needs where ``negatives`` is not 0, are left out, and counted in ``report``.

    Raises TrainingDataError where no query is left.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        *,
        negatives: int,
        scheme: Scheme = "random",
        targets: NDArray[np.float32] | None = None,
        seed: int = 0,
    ) -> None:
        self.set, self.negatives, self.scheme, self.seed = training_set, negatives, scheme, seed
        self._targets = targets
        self.report = PairReport()
        if negatives:
            able, self.report = drawable(
                training_set.positives, training_set.candidates, targets, scheme=scheme, negatives=negatives
            )
            self.queries = np.flatnonzero(able)
        else:
            self.queries = np.arange(len(training_set), dtype=np.int64)
        if not len(self.queries):
            raise TrainingDataError(
                f"none of the {len(training_set):,} queries of {training_set.path} has a positive and a negative "
                f"{'with scores ' if targets is not None else ''}among its candidates: mine negatives, and score them"
            )

    def _candidates(self, query: int) -> Candidates:
        rows = self.set.candidates.of(query)
        scores = np.zeros(len(rows)) if self._targets is None else self._targets[self.set.candidates.span(query)]
        found = Candidates.split(self.set.positives.of(query), rows, scores)
        if self._targets is None:  # positives need not be among the candidates, and no score tells them apart
            found = Candidates(found.positives, np.zeros(len(found.positives)), found.negatives, found.negative_scores)
        return found

    def draw(self, queries: Rows, step: int) -> Drawn:
        """The candidates of these query rows at this step: a pure function of the seed, the step and each row."""
        if not self.negatives:
            rows = np.array([self._positive(int(query), step) for query in queries], np.int64)[:, None]
            return Drawn(queries, rows, np.full(rows.shape, np.nan), np.zeros(rows.shape, bool))
        lists = [self._candidates(int(query)) for query in queries]
        if self.negatives == 1:
            pairs = draw_pairs(lists, queries, step, scheme=self.scheme, seed=self.seed)
            documents = np.stack([pairs.positives, pairs.negatives], axis=1)
        else:
            drawn = draw_negatives(lists, queries, step, self.negatives, scheme=self.scheme, seed=self.seed)
            good = [self._scored_positive(one, int(query), step) for one, query in zip(lists, queries, strict=True)]
            documents = np.concatenate([np.array(good, np.int64)[:, None], drawn.rows], axis=1)
        filler = documents < 0
        teacher = np.full(documents.shape, np.nan)
        for at, one in enumerate(lists):
            known = dict(zip(one.positives.tolist(), one.positive_scores.tolist(), strict=True))
            known.update(zip(one.negatives.tolist(), one.negative_scores.tolist(), strict=True))
            teacher[at] = [known.get(row, np.nan) for row in documents[at].tolist()]
        documents = np.where(filler, documents[:, :1], documents)
        return Drawn(queries, documents, np.where(filler, np.nan, teacher), filler)

    def _positive(self, query: int, step: int) -> int:
        rows = self.set.positives.of(query)
        return int(rows[generator(self.seed, _POSITIVE, step, query).integers(len(rows))])

    def _scored_positive(self, one: Candidates, query: int, step: int) -> int:
        rows = one.positives[~np.isnan(one.positive_scores)]
        rows = rows if len(rows) else one.positives
        return int(rows[generator(self.seed, _POSITIVE, step, query).integers(len(rows))])


class Assembler:
    """From a step to the :class:`Batch` of this process: draws, texts, features and targets.

    ``labels`` says that the targets tell positives from negatives, whatever teachers there are to draw by.
    """

    def __init__(
        self,
        examples: Examples,
        batches: Batches,
        preprocess: Preprocess,
        *,
        in_batch: bool,
        labels: bool = False,
        guide: LiveTeacher | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._examples, self._batches, self._preprocess = examples, batches, preprocess
        self._in_batch, self._labels, self._guide = in_batch, labels, guide
        self._rank, self._processes = rank, processes

    def __call__(self, step: int) -> Batch:
        examples = self._examples
        drawn = examples.draw(examples.queries[self._batches.batch(step)], step)
        mine = share(np.arange(len(drawn.queries), dtype=np.int64), self._rank, self._processes)
        told = examples.set.documents
        texts = examples.set.queries.texts(drawn.queries[mine])
        own = told.texts(drawn.documents[mine].ravel())
        drop = guide = None
        if self._in_batch:
            documents = torch.from_numpy(drawn.documents)
            positives = [examples.set.positives.of(int(query)).tolist() for query in drawn.queries[mine]]
            drop = known_positives(documents, positives, first=int(mine[0]))
            drop |= torch.from_numpy(drawn.filler).unsqueeze(0)
        if self._guide is not None:
            everything, places = np.unique(drawn.documents, return_inverse=True)
            scores = batch_scores(self._guide, examples.set, drawn.queries[mine], everything)
            guide = torch.from_numpy(scores[:, places.reshape(drawn.documents.shape)])
            guide = guide.masked_fill(torch.from_numpy(drawn.filler).unsqueeze(0), torch.nan)
        teacher = drawn.labels() if self._labels else drawn.teacher
        targets = Targets(torch.from_numpy(teacher[mine].astype(np.float32)), guide, drop)
        return Batch(step, self._preprocess(texts, "query"), self._preprocess(own, "document"), targets)


def moved(batch: Batch, device: Any) -> Batch:
    """The batch on a device."""

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    targets = Targets(there(batch.targets.teacher), there(batch.targets.guide), there(batch.targets.drop))
    queries, documents = (
        {key: there(value) for key, value in side.items()} for side in (batch.queries, batch.documents)
    )
    return Batch(batch.step, queries, documents, targets)
