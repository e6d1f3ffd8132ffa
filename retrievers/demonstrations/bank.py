"""A bank of demonstrations: an index of labelled examples of which the inputs are embedded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from retrievers.conditions import Filter, parse_filter
from retrievers.demonstrations.examples import Demonstration, Selected, as_document, from_document
from retrievers.demonstrations.features import Features
from retrievers.demonstrations.selection import (
    ORDERS,
    STRATEGIES,
    balanced,
    check_choice,
    check_share,
    coverage,
    greedily,
    in_turn,
    marginal_relevance,
)
from retrievers.documents import Document, Hit
from retrievers.encoders import Encoder
from retrievers.errors import DemonstrationError
from retrievers.indexes.snapshot import Snapshot
from retrievers.queries import check_count
from retrievers.retriever import Retriever
from retrievers.retriever import _search as search_vectors
from retrievers.specs import Spec
from retrievers.training.near_duplicates import NearTexts, normal_form
from retrievers.vectors import Vectors, take
from retrievers.writer import DEFAULT_MEMORY, Progress

NEAR = 0.8
"""From this Jaccard coefficient of character trigrams on, two inputs are near-duplicates."""

_BLOCK = 256  # inputs that are looked at together
_SPARE = 8  # candidates beyond those wanted: near-duplicates fall out
_DEEPER = 4

Input = str | Demonstration


class DemonstrationBank:
    """Labelled examples of many tasks, held in a directory, and the selection of some of them for an input.

    The directory is an index as :class:`retrievers.Retriever` writes it; only the inputs are embedded.
    """

    def __init__(self, retriever: Retriever) -> None:
        """The bank that an open index holds. Raises DemonstrationError where it holds other documents."""
        self.retriever = retriever
        self._known: tuple[Snapshot, dict[str, list[str]]] | None = None
        first = next(self._entries(), None)
        if first is not None:
            from_document(first)

    @classmethod
    def build(
        cls,
        path: str | Path,
        demonstrations: Iterable[Demonstration],
        *,
        encoder: str | Path | Encoder = "bm25",
        index: str | Spec | None = None,
        memory: int = DEFAULT_MEMORY,
        progress: Progress | None = None,
    ) -> Self:
        """Index examples into the directory ``path`` and open it; the parameters are those of :meth:`Retriever.build`.

        Raises as that does, and DemonstrationError, which names the place, for what is no example.
        """
        documents = _documents(demonstrations)
        return cls(Retriever.build(path, documents, encoder=encoder, index=index, memory=memory, progress=progress))

    @classmethod
    def open(
        cls, path: str | Path, *, encoder: Encoder | None = None, device: str | None = None, dtype: str | None = None
    ) -> Self:
        """Open the bank at ``path``, as :meth:`Retriever.open` does. Raises as that, and DemonstrationError."""
        return cls(Retriever.open(path, encoder=encoder, device=device, dtype=dtype))

    def __len__(self) -> int:
        return len(self.retriever)

    def __contains__(self, id: object) -> bool:
        return id in self.retriever

    def __iter__(self) -> Iterator[Demonstration]:
        """All examples, those marked as evaluation data included."""
        return map(from_document, self._entries())

    def get(self, id: str) -> Demonstration:
        """The example with this id. Raises UnknownIdError."""
        return from_document(self.retriever.get(id))

    def add(
        self, demonstrations: Iterable[Demonstration], *, memory: int = DEFAULT_MEMORY, progress: Progress | None = None
    ) -> int:
        """Add examples, all in one commit; returns how many. Raises as :meth:`Retriever.add` does."""
        return self.retriever.add(_documents(demonstrations), memory=memory, progress=progress)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete examples by id, all in one commit; returns how many. Raises UnknownIdError."""
        return self.retriever.delete(ids)

    def mark_evaluation(self, inputs: Iterable[str], *, near: float = NEAR) -> list[str]:
        """Mark those examples as evaluation data whose input is one of these, or nearly so; returns their ids, sorted.

        Call it with the inputs of an evaluation before anything is selected for training: what is marked is never selected.
        Two texts are near where the Jaccard coefficient of their character trigrams, letters and digits alone, is ``near`` (0.5
        to 1) or more; every such example is found. What was marked before stays so, and is not returned.
        """
        table = NearTexts([normal_form(text) for text in inputs], check_share("near", near, 0.5))
        marked: list[Demonstration] = []
        block: list[Demonstration] = []
        for one in self:
            if not one.evaluation:
                block.append(one)
            if len(block) == 1 << 14:
                marked += _near(table, block)
                block = []
        marked += _near(table, block)
        if marked:
            ids = sorted(one.id for one in marked)
            self.delete(ids)
            self.add(Demonstration(one.id, one.task, one.input, one.output, one.metadata, True) for one in marked)
            return ids
        return []

    @overload
    def select(self, inputs: Input, k: int = 8, strategy: str = "nearest", **options: Any) -> list[Selected]: ...

    @overload
    def select(
        self, inputs: Sequence[Input], k: int = 8, strategy: str = "nearest", **options: Any
    ) -> list[list[Selected]]: ...

    def select(
        self,
        inputs: Input | Sequence[Input],
        k: int = 8,
        strategy: str = "nearest",
        *,
        tasks: str | Sequence[str] | None = None,
        filter: Mapping[str, Any] | None = None,
        per_task: int | None = None,
        order: str = "nearest_last",
        near: float = NEAR,
        pool: int | None = None,
        diversity: float = 0.5,
        seed: int = 0,
    ) -> list[Selected] | list[list[Selected]]:
        """Up to ``k`` demonstrations for an input; for a sequence of inputs, a list for each.

        ``strategy`` is one of

        * ``"nearest"``: the best by the index;
        * ``"balanced"``: the best of each output in turn, so that all labels come equally often, or, where there are
          more than ``k``, the ``k`` nearest ones once each;
        * ``"diverse"``: maximal marginal relevance, ``diversity`` (0 to 1) being the weight of unlikeness;
        * ``"covering"``: those that together cover most of the input's terms or tokens
          (:meth:`retrievers.demonstrations.features.Features.covered`), chosen greedily;
        * ``"random"``: drawn by ``seed`` and the input, the baseline.

        The last three choose among the best ``pool`` candidates (by default 50, or 5 times ``k`` where that is more). No task
        (of those in ``tasks``; of all by default) has more than ``per_task`` demonstrations. ``filter`` is that of
        :meth:`Retriever.search`, over the fields ``task``, ``output`` and ``metadata.<field>``.

        Never selected are examples that are marked as evaluation data, an input that is itself a :class:`Demonstration` of
        the bank, and near-duplicates of the input, by ``near`` as in :meth:`mark_evaluation`. The best comes last, where a
        prompt has it next to the input, or first (``order="nearest_first"``). What is selected for an input depends on
        the input and the bank, not on the other inputs. Fewer than ``k`` come back where fewer are left, or, with
        lexical and sparse encoders, where fewer share a term with the input.

        Raises DemonstrationError, QueryError, FilterError.
        """
        single = isinstance(inputs, str | Demonstration)
        given: list[Any] = [inputs] if single else list(inputs)  # type: ignore[arg-type]
        for number, one in enumerate(given):
            if not isinstance(one, str | Demonstration):
                raise DemonstrationError(
                    f"input {number} is a {type(one).__name__}, {one!r:.80}: give strings or Demonstrations"
                )
        condition = _permitted(tasks, filter)
        choice = _Choice(
            check_count("k", k),
            check_choice("strategy", strategy, STRATEGIES),
            None if per_task is None else check_count("per_task", per_task),
            check_share("near", near, 0.5),
            max(50, 5 * k) if pool is None else max(check_count("pool", pool), k),
            check_share("diversity", diversity, 0.0),
            seed,
        )
        check_choice("order", order, ORDERS)
        found: list[list[Selected]] = []
        for first in range(0, len(given), _BLOCK):
            found += _Block(self, given[first : first + _BLOCK], condition, choice).select()
        if order == "nearest_last":
            for selected in found:
                selected.reverse()
        return found[0] if single else found

    def close(self) -> None:
        """Release the files. Any further call raises IndexClosedError."""
        self.retriever.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"DemonstrationBank({str(self.retriever.path)!r}, {len(self)} demonstrations)"

    def _entries(self) -> Iterator[Document]:
        for segment in self.retriever._current.segments:
            for row, entry in segment.store.entries():
                if segment.is_live(row):
                    yield entry.document

    def permitted_ids(self, condition: Filter) -> list[str]:
        """The ids of the examples that a filter permits, sorted; kept until the bank changes."""
        snapshot = self.retriever._current
        if self._known is None or self._known[0] is not snapshot:
            self._known = snapshot, {}
        known = self._known[1]
        key = condition.canonical
        if key not in known:
            ids: list[str] = []
            for segment in snapshot.segments:
                rows = np.flatnonzero(segment.permitted(condition)).tolist()
                ids += segment.store.ids(rows).values()
            known[key] = sorted(ids)
        return known[key]

    def outputs(self, condition: Filter) -> list[str]:
        """The distinct outputs of the examples that a filter permits, sorted."""
        found: set[str] = set()
        for segment in self.retriever._current.segments:
            column = segment.store.column("output")
            if column is not None:
                mask = segment.permitted(condition)
                rows = mask if column.rows is None else mask[column.rows]
                found |= {column.values[code] for code in np.unique(column.codes[rows]).tolist() if code >= 0}
        return sorted(found)


class _Choice:
    """How demonstrations are selected."""

    def __init__(
        self, k: int, strategy: str, per_task: int | None, near: float, pool: int, diversity: float, seed: int
    ) -> None:
        self.k, self.strategy, self.per_task, self.near = k, strategy, per_task, near
        self.pool, self.diversity, self.seed = pool, diversity, seed


class _Block:
    """Some inputs that are looked at together."""

    def __init__(self, bank: DemonstrationBank, inputs: Sequence[Input], condition: Filter, choice: _Choice) -> None:
        self._bank, self._condition, self._choice = bank, condition, choice
        self._snapshot = bank.retriever._current
        self._inputs = inputs
        self._texts = [one if isinstance(one, str) else one.input for one in inputs]
        self._table = NearTexts([normal_form(text) for text in self._texts], choice.near)
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
        documents = {hit.id: hit.document for hits in candidates for hit in hits}
        encoder = self._bank.retriever.encoder
        features = Features(encoder, self._snapshot, self._texts, self._queries, documents)
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
        outputs = self._bank.outputs(self._condition)
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
        ids = self._bank.permitted_ids(self._condition)
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
            self._encoded = self._bank.retriever._encode_queries(self._snapshot, self._texts, None)
        return self._encoded

    def _candidates(
        self, numbers: Sequence[int], depth: int, condition: Filter, enough: Callable[[list[Hit]], bool]
    ) -> list[list[Hit]]:
        """The hits of each input, best first: deeper and deeper until they are ``enough`` or no more are there."""
        found: dict[int, list[Hit]] = {}
        left, size = list(numbers), max(1, len(self._bank))
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


def _permitted(tasks: str | Sequence[str] | None, filter: Mapping[str, Any] | None) -> Filter:
    conditions: list[Mapping[str, Any]] = [{"field": "evaluation", "operator": "==", "value": False}]
    if tasks is not None:
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        conditions.append({"field": "task", "operator": "in", "value": names})
    if filter is not None:
        conditions.append(parse_filter(filter).to_dict())
    return parse_filter({"operator": "AND", "conditions": conditions} if len(conditions) > 1 else conditions[0])


def _both(condition: Filter, other: Mapping[str, Any]) -> Filter:
    return parse_filter({"operator": "AND", "conditions": [condition.to_dict(), other]})


def _selected(hit: Hit) -> Selected:
    return Selected(from_document(hit.document), hit.score)


def _near(table: NearTexts, some: list[Demonstration]) -> list[Demonstration]:
    if not some:
        return []
    asked = table.find([normal_form(one.input) for one in some]).asked
    return [some[place] for place in np.unique(asked).tolist()]


class _documents:
    """Examples as documents, read anew by each iteration where the examples can be."""

    def __init__(self, demonstrations: Iterable[Demonstration]) -> None:
        self._demonstrations = demonstrations

    def __iter__(self) -> Iterator[Document]:
        for number, one in enumerate(self._demonstrations, 1):
            yield as_document(one, f"demonstration {number}")
