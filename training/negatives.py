"""Which of the documents that retrievers found for a query become its negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError
from retrievers.training.blocks import Arrays
from retrievers.training.sets import TrainingSet
from retrievers.training.strata import Strata, lot
from retrievers.training.teachers import LiveTeacher

REASONS = ("strangers", "positives", "duplicates", "above", "margin", "repeated", "unfound")

_SAID = {
    "strangers": "that the training set does not have",
    "positives": "that are positives",
    "duplicates": "with the text of a positive",
    "above": "that score too close to the positive",
    "margin": "that the teacher puts too close to the positive",
    "repeated": "with the text of a negative drawn before",
}


@dataclass(frozen=True)
class Rules:
    """What is taken for a false negative.

    ``fraction``: a document that a retriever scores above ``p - (1 - fraction) * |p|``, where ``p`` is that retriever's
    score of the query's best-scored positive: above 95% of it by default (Moreira et al., 2024, "NV-Retriever", the
    rule TopK-PercPos). Written so, the bound is below ``p`` where scores are negative, too. None switches it off.

    ``unfound`` says what happens where a retriever found no positive within its depth, so that it has no score to
    compare with: ``"keep"`` keeps what it found (a lexical retriever that shares no word with the positive says nothing
    of the others), ``"drop"`` lets all that it found be false negatives, which is the rule taken by the letter, for all
    of it stands above the positive.

    ``margin``: a document that the teacher scores above its lowest score for a positive less ``margin``, in the units of
    the teacher, as in Louis et al. (2024), "ColBERT-XM", whose margin is 3 logits of a cross-encoder. None switches it off.

    Raises TrainingDataError for a fraction that is not above 0 and at most 1, or a margin that is no finite number.
    """

    fraction: float | None = 0.95
    unfound: Literal["keep", "drop"] = "keep"
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise TrainingDataError(f"fraction is {self.fraction!r}: give a number above 0 and at most 1, or None")
        if self.unfound not in ("keep", "drop"):
            raise TrainingDataError(f"unfound is {self.unfound!r}: choose keep or drop")
        if self.margin is not None and not math.isfinite(self.margin):
            raise TrainingDataError(f"margin is {self.margin!r}: give a number in the units of the teacher's scores")

    def bound(self, positive: float) -> float:
        """The highest score that a negative may have; ``positive`` is that of the positive."""
        if self.fraction is None:
            return math.inf
        return positive * (self.fraction if positive >= 0 else 2 - self.fraction)


@dataclass(frozen=True)
class Found:
    """What a retriever found: document rows int64 ``[queries, depth]``, -1 for none or a stranger, and their scores,
    float32, NaN past the last."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class MiningReport:
    """What mining did.

    ``counts`` tell, by reason, how many documents were dropped, each once a query under the first reason that fits, in the
    order of ``REASONS`` (strangers once a retriever); ``margin`` and ``repeated`` are met while drawing, and so only by
    documents whose turn came. ``counts["unfound"]`` is the number of queries and retrievers, in pairs, for which no
    positive was found. ``short`` queries have fewer than ``wanted`` negatives, ``none`` of them not one; ``examples`` are
    the ids of the first five.
    """

    queries: int
    wanted: int
    positives: int
    negatives: int
    counts: dict[str, int]
    short: int
    none: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.negatives:,} negatives and {self.positives:,} positives for {self.queries:,} queries"]
        lines += [f"dropped {self.counts[reason]:,} {said}" for reason, said in _SAID.items() if self.counts[reason]]
        if self.counts["unfound"]:
            lines.append(f"no positive found in {self.counts['unfound']:,} searches")
        if self.short:
            named = ", ".join(map(repr, self.examples)) + (", ..." if self.short > len(self.examples) else "")
            lines.append(
                f"{self.short:,} queries have fewer than {self.wanted} negatives, {self.none:,} of them none: {named}"
            )
        return "\n".join(lines)


def choose(
    training_set: TrainingSet,
    queries: NDArray[np.int64],
    found: Sequence[Found],
    texts: NDArray[np.uint64],
    strata: Strata,
    seed: int,
    rules: Rules,
    teacher: LiveTeacher | None,
) -> Arrays:
    """The negatives of a batch of queries: parallel ``queries`` and ``documents`` (rows, int64), and ``counts``.

    ``texts`` has a hash of each document's text, normalised. ``counts`` are int64 ``[queries, len(REASONS)]``.
    """
    searches = [
        _Search(training_set, int(query), [f.rows[at] for f in found], [f.scores[at] for f in found], texts)
        for at, query in enumerate(queries)
    ]
    for search in searches:
        search.sift(rules)
        search.arrange(training_set, strata, seed)
    judged = _Judge(training_set, teacher, rules.margin) if teacher is not None and rules.margin is not None else None
    while asked := [(search, wanted) for search in searches if (wanted := search.propose())]:
        refused = judged.refuses(asked) if judged is not None else [set() for _ in asked]
        for (search, _), no in zip(asked, refused, strict=True):
            search.accept(no)
    sizes = [len(search.drawn) for search in searches]
    return {
        "queries": np.repeat(queries, sizes).astype(np.int64),
        "documents": np.array([row for search in searches for row in search.drawn], np.int64),
        "counts": np.array([[search.counts[reason] for reason in REASONS] for search in searches], np.int64),
    }


class _Search:
    """The finds for one query, on their way to being negatives."""

    def __init__(
        self,
        training_set: TrainingSet,
        query: int,
        rows: list[NDArray[np.int64]],
        scores: list[NDArray[np.float32]],
        texts: NDArray[np.uint64],
    ) -> None:
        self.query = query
        self.counts = dict.fromkeys(REASONS, 0)
        self.drawn: list[int] = []
        self._rows = [found.tolist() for found in rows]
        self._scores = [found.tolist() for found in scores]
        self._positives = set(training_set.positives.of(query).tolist())
        self._texts = {row: int(texts[row]) for found in self._rows for row in found if row >= 0}
        self._answers = {int(texts[row]) for row in self._positives}
        self._out: set[int] = set()
        self._queues: list[tuple[list[int], int]] = []  # for each stratum of each retriever: lots to come, and how many
        self._proposed: list[int] = []

    def sift(self, rules: Rules) -> None:
        """Take out what is no negative by itself."""
        above: set[int] = set()
        for rows, scores in zip(self._rows, self._scores, strict=True):
            best = max((score for row, score in zip(rows, scores, strict=True) if row in self._positives), default=None)
            self.counts["unfound"] += best is None
            self.counts["strangers"] += sum(row < 0 and score == score for row, score in zip(rows, scores, strict=True))
            if best is None and rules.fraction is not None and rules.unfound == "drop":
                above.update(rows)
            elif best is not None:
                bound = rules.bound(best)
                above.update(row for row, score in zip(rows, scores, strict=True) if score > bound)
        for row, text in self._texts.items():
            if row in self._positives:
                self.counts["positives"] += 1
            elif text in self._answers:
                self.counts["duplicates"] += 1
            elif row in above:
                self.counts["above"] += 1
            else:
                continue
            self._out.add(row)

    def arrange(self, training_set: TrainingSet, strata: Strata, seed: int) -> None:
        """Draw the lots of what is left, stratum by stratum."""
        id = training_set.queries.id(self.query)
        left = [row for row in self._texts if row not in self._out]
        lots = {row: lot(seed, id, name) for row, name in zip(left, training_set.documents.ids(left), strict=True)}
        for rows in self._rows:
            for part in strata.parts:
                mine = [row for row in rows[part.first - 1 : part.last] if row in lots]
                # Low lots last, where they are taken from.
                self._queues.append((sorted(mine, key=lots.__getitem__, reverse=True), part.count))

    def propose(self) -> list[int]:
        """The next documents that may be drawn, from the first stratum that still wants some; none at the end."""
        self._proposed = []
        while self._queues and not self._proposed:
            queue, count = self._queues[0]
            while queue and len(self._proposed) < count:
                row = queue.pop()
                if row in self._out or row in self.drawn:  # another stratum's already
                    continue
                if self._texts[row] in self._answers:
                    self.counts["repeated"] += 1
                    self._out.add(row)
                    continue
                self._answers.add(self._texts[row])
                self._proposed.append(row)
            if not self._proposed:
                self._queues.pop(0)
        return self._proposed

    def accept(self, refused: set[int]) -> None:
        """Take what was proposed, but for what the teacher refused."""
        queue, count = self._queues[0]
        for row in self._proposed:
            if row in refused:
                self.counts["margin"] += 1
                self._out.add(row)
            else:
                self.drawn.append(row)
                count -= 1
        self._queues[0] = (queue, count)


class _Judge:
    """A teacher that refuses what it scores within a margin of the lowest positive."""

    def __init__(self, training_set: TrainingSet, teacher: LiveTeacher, margin: float) -> None:
        self._set, self._teacher, self._margin = training_set, teacher, margin
        self._lowest: dict[int, float] = {}

    def refuses(self, asked: Sequence[tuple[_Search, list[int]]]) -> list[set[int]]:
        """Of the documents that each search proposes, those that are too close to its positive."""
        fresh = [search.query for search, _ in asked if search.query not in self._lowest]
        if fresh:
            for query, scores in zip(
                fresh, self._scores(fresh, [self._set.positives.of(query) for query in fresh]), strict=True
            ):
                self._lowest[query] = float(scores.min())
        given = self._scores([search.query for search, _ in asked], [rows for _, rows in asked])
        return [
            {
                row
                for row, score in zip(rows, scores.tolist(), strict=True)
                if score > self._lowest[search.query] - self._margin
            }
            for (search, rows), scores in zip(asked, given, strict=True)
        ]

    def _scores(
        self, queries: list[int], rows: Sequence[Sequence[int] | NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        documents = [self._set.documents.texts(some) for some in rows]
        return self._teacher.lists(self._set.queries.texts(queries), documents)
