"""The selection of demonstrations for some inputs that are looked at together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from retrievers.conditions import Filter, parse_filter
from retrievers.demonstrations.examples import Demonstration, Selected, from_document
from retrievers.demonstrations.features import Features
from retrievers.demonstrations.selection import balanced, coverage, greedily, in_turn, marginal_relevance
from retrievers.documents import Document, Hit
from retrievers.indexes.snapshot import Snapshot
from retrievers.retriever import Retriever, search_vectors
from retrievers.training.near_duplicates import NearTexts, normal_form
from retrievers.vectors import Vectors, take

_SPARE = 8  # candidates beyond those wanted: near-duplicates fall out
_DEEPER = 4

Input = str | Demonstration


@dataclass(frozen=True)
class Choice:
    """How demonstrations are selected; the fields are what :meth:`DemonstrationBank.select` calls them."""

    k: int
    strategy: str
    per_task: int | None
    near: float
    pool: int
    diversity: float
    seed: int


class Permitted:
    """The examples of a snapshot that a filter permits."""

    def __init__(self, snapshot: Snapshot, condition: Filter) -> None:
        self.snapshot, self.condition = snapshot, condition

    @cached_property
    def ids(self) -> list[str]:
        """Their ids, sorted."""
        ids: list[str] = []
        for segment in self.snapshot.segments:
            ids += segment.store.ids(np.flatnonzero(segment.permitted(self.condition)).tolist()).values()
        return sorted(ids)

    @cached_property
    def outputs(self) -> list[str]:
        """Their distinct outputs, sorted."""
        found: set[str] = set()
        for segment in self.snapshot.segments:
            column = segment.store.column("output")
            if column is not None:
                mask = segment.permitted(self.condition)
                rows = mask if column.rows is None else mask[column.rows]
                found |= {column.values[code] for code in np.unique(column.codes[rows]).tolist() if code >= 0}
        return sorted(found)


class Block:
    """Some inputs that are looked at together, and the examples of the bank that they may be given."""

    def __init__(self, retriever: Retriever, permitted: Permitted, inputs: Sequence[Input], choice: Choice) -> None:
        self._retriever, self._permitted, self._choice = retriever, permitted, choice
        self._snapshot, self._condition = permitted.snapshot, permitted.condition
        self._inputs = inputs
        self._texts = [one if isinstance(one, str) else one.input for one in inputs]
        self._table = NearTexts.of(self._texts, choice.near)
        self._encoded: Vectors | None = None

    def select(self) -> list[list[Selected]]:
        """The selected of each input, best first."""
        if self._choice.strategy == "random":
            return self._at_random()
        if self._choice.strategy == "balanced":
            return self._by_output()
        k, strategy = self._choice.k, self._choice.strategy
        wanted = k if strategy == "nearest" else self._choice.pool

        def enough(hits: list[Hit]) -> bool:
            if len(hits) < wanted:
                return False
            tasks = [str(hit.document.metadata["task"]) for hit in hits]
            return len(in_turn(range(len(hits)), tasks, k, self._choice.per_task)) == k

        candidates = self._candidates(range(len(self._texts)), wanted + _SPARE, self._condition, enough)
        if strategy == "nearest":
            return [self._in_turn(hits, range(len(hits))) for hits in candidates]
        if self._choice.per_task is None:  # else those of tasks that are full stand in the way of others
            candidates = [hits[:wanted] for hits in candidates]
        documents = {hit.id: hit.document for hits in candidates for hit in hits}
        if not documents:
            return [[] for _ in candidates]
        features = Features(self._retriever.encoder, self._snapshot, self._texts, self._queries, documents)
        return [self._greedily(features, number, hits) for number, hits in enumerate(candidates)]

    def _greedily(self, features: Features, number: int, hits: list[Hit]) -> list[Selected]:
        if not hits:
            return []
        ids = [hit.id for hit in hits]
        if self._choice.strategy == "covering":
            gains = coverage(features.covered(number, ids))
        else:
            gains = marginal_relevance(*features.likeness(number, ids), self._choice.diversity)
        tasks = [str(hit.document.metadata["task"]) for hit in hits]
        chosen = greedily(gains, tasks, self._choice.k, self._choice.per_task)
        return [_selected(hits[place]) for place in sorted(chosen)]  # hits come best first

    def _in_turn(self, hits: list[Hit], order: Sequence[int]) -> list[Selected]:
        tasks = [str(hit.document.metadata["task"]) for hit in hits]
        return [
            _selected(hits[place]) for place in sorted(in_turn(order, tasks, self._choice.k, self._choice.per_task))
        ]

    def _by_output(self) -> list[list[Selected]]:
        k = self._choice.k
        numbers = range(len(self._texts))
        outputs = self._permitted.outputs
        if len(outputs) > k:

            def enough(hits: list[Hit]) -> bool:
                chosen = self._in_turn(hits, balanced([str(hit.document.metadata["output"]) for hit in hits]))
                return len({one.demonstration.output for one in chosen}) == k

            candidates = self._candidates(numbers, self._choice.pool, self._condition, enough)
        else:
            # Few outputs: each is asked for, however far away its examples are.
            candidates = [[] for _ in numbers]
            for output in outputs:
                condition = _both(self._condition, {"field": "output", "operator": "==", "value": output})
                each = self._candidates(numbers, k + _SPARE, condition, lambda hits: len(hits) >= k)
                for mine, more in zip(candidates, each, strict=True):
                    mine += more
            candidates = [sorted(hits, key=lambda hit: (-hit.score, hit.id)) for hits in candidates]
        return [
            self._in_turn(hits, balanced([str(hit.document.metadata["output"]) for hit in hits])) for hits in candidates
        ]

    def _at_random(self) -> list[list[Selected]]:
        ids = self._permitted.ids
        found: list[list[Selected]] = [[] for _ in self._texts]
        left, count = list(range(len(self._texts))), min(len(ids), 4 * self._choice.k + _SPARE)
        while left:
            draws = {number: self._draw(self._texts[number], ids, count) for number in left}
            documents = self._documents(sorted({id for drawn in draws.values() for id in drawn}))
            hits = {number: [Hit(id, 0.0, documents[id]) for id in drawn] for number, drawn in draws.items()}
            for number, some in self._without_near(hits).items():
                found[number] = self._in_turn(some, range(len(some)))
            if count == len(ids):
                break
            left = [number for number in left if len(found[number]) < self._choice.k]
            count = len(ids)
        return found

    def _draw(self, text: str, ids: list[str], count: int) -> list[str]:
        """So many ids in an order by chance, which depends on the seed and the input alone."""
        digest = hashlib.blake2b(f"{self._choice.seed}\n{text}".encode(), digest_size=16).digest()
        random = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
        return [ids[place] for place in random.choice(len(ids), count, replace=False).tolist()]

    def _documents(self, ids: list[str]) -> dict[str, Document]:
        found: dict[str, Document] = {}
        for segment in self._snapshot.segments:
            rows = [known.row for known in segment.store.find(ids).values() if segment.is_live(known.row)]
            found |= {document.id: document for document in segment.store.documents(rows).values()}
        return found

    @property
    def _queries(self) -> Vectors:
        if self._encoded is None:
            self._encoded = self._retriever.encode_queries(self._snapshot, self._texts)
        return self._encoded

    def _candidates(
        self, numbers: Sequence[int], depth: int, condition: Filter, enough: Callable[[list[Hit]], bool]
    ) -> list[list[Hit]]:
        """The hits of each input, best first: deeper and deeper until they are ``enough`` or no more are there."""
        found: dict[int, list[Hit]] = {}
        left, size = list(numbers), max(1, self._snapshot.manifest.documents)
        while left:
            depth = min(depth, size)
            vectors = take(self._queries, np.array(left, np.int64))
            hits = search_vectors(self._snapshot, vectors, depth, condition)
            found |= self._without_near(dict(zip(left, hits, strict=True)))
            deep = [number for number, some in zip(left, hits, strict=True) if len(some) == depth < size]
            left = [number for number in deep if not enough(found[number])]
            depth *= _DEEPER
        return [found[number] for number in numbers]

    def _without_near(self, hits: Mapping[int, list[Hit]]) -> dict[int, list[Hit]]:
        """Hits without the input itself and its near-duplicates."""
        places = {hit.id: hit.document.text for some in hits.values() for hit in some}
        ids = list(places)
        matches = self._table.find([normal_form(text) for text in places.values()])
        near = {(ids[one], other) for one, other in zip(matches.asked.tolist(), matches.known.tolist(), strict=True)}
        own = {(one.id, number) for number, one in enumerate(self._inputs) if isinstance(one, Demonstration)}
        barred = near | own
        return {number: [hit for hit in some if (hit.id, number) not in barred] for number, some in hits.items()}


def _both(condition: Filter, other: Mapping[str, Any]) -> Filter:
    return parse_filter({"operator": "AND", "conditions": [condition.to_dict(), other]})


def _selected(hit: Hit) -> Selected:
    return Selected(from_document(hit.document), hit.score)
