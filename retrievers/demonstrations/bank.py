"""A bank of demonstrations: an index of labelled examples of which the inputs are embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

from retrievers.conditions import Filter, parse_filter
from retrievers.demonstrations.blocks import Block, Choice, Input, Permitted
from retrievers.demonstrations.examples import Demonstration, Selected, as_document, from_document
from retrievers.demonstrations.selection import ORDERS, STRATEGIES, check_choice, check_share
from retrievers.documents import Document
from retrievers.encoders import Encoder
from retrievers.errors import DemonstrationError
from retrievers.queries import check_count
from retrievers.retriever import DEFAULT_MEMORY, Progress, Retriever
from retrievers.specs import Spec
from retrievers.training.near_duplicates import NearTexts

NEAR = 0.8
"""From this Jaccard coefficient of character trigrams on, two inputs are near-duplicates."""

_BLOCK = 1 << 14  # examples that are compared at a time
_TOGETHER = 256  # inputs that are selected for at a time


class DemonstrationBank:
    """Labelled examples of many tasks, held in a directory, and the selection of some of them for an input.

    The directory is an index as :class:`retrievers.Retriever` writes it; only the inputs are embedded.
    """

    def __init__(self, retriever: Retriever) -> None:
        """The bank that an open index holds. Raises DemonstrationError where it holds other documents."""
        self.retriever = retriever
        first = next(self.retriever.snapshot.all_documents(), None)
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
        documents = _Documents(demonstrations)
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
        return map(from_document, self.retriever.snapshot.all_documents())

    def get(self, id: str) -> Demonstration:
        """The example with this id. Raises UnknownIdError."""
        return from_document(self.retriever.get(id))

    def add(
        self, demonstrations: Iterable[Demonstration], *, memory: int = DEFAULT_MEMORY, progress: Progress | None = None
    ) -> int:
        """Add examples, all in one commit; returns how many. Raises as :meth:`Retriever.add` does."""
        return self.retriever.add(_Documents(demonstrations), memory=memory, progress=progress)

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete examples by id, all in one commit; returns how many. Raises UnknownIdError."""
        return self.retriever.delete(ids)

    def mark_evaluation(self, inputs: Iterable[str], *, near: float = NEAR) -> list[str]:
        """Mark those examples as evaluation data whose input is one of these, or nearly so; returns their ids, sorted.

        Call it with the inputs of an evaluation before anything is selected for training: what is marked is never selected.
        All are marked in one commit. Two texts are near where the Jaccard coefficient of their character trigrams, letters
        and digits alone, is ``near`` (0.5 to 1) or more; every such example is found. What was marked before stays so, and is
        not returned.
        """
        table = NearTexts.of(inputs, check_share("near", near, 0.5))
        unmarked = (one for one in self if not one.evaluation)
        marked: list[Demonstration] = []
        while block := list(islice(unmarked, _BLOCK)):
            marked += [block[place] for place in sorted(table.near([one.input for one in block]))]
        if marked:
            self.retriever.replace(as_document(replace(one, evaluation=True), one.id) for one in marked)
        return sorted(one.id for one in marked)

    @overload
    def select(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first overload wins
        self,
        inputs: Input,
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
    ) -> list[Selected]: ...

    @overload
    def select(
        self,
        inputs: Sequence[Input],
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
        choice = Choice(
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
        permitted = Permitted(self.retriever.snapshot, condition)
        for first in range(0, len(given), _TOGETHER):
            found += Block(self.retriever, permitted, given[first : first + _TOGETHER], choice).select()
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


def _permitted(tasks: str | Sequence[str] | None, filter: Mapping[str, Any] | None) -> Filter:
    conditions: list[Mapping[str, Any]] = [{"field": "evaluation", "operator": "==", "value": False}]
    if tasks is not None:
        names = [tasks] if isinstance(tasks, str) else list(tasks)
        conditions.append({"field": "task", "operator": "in", "value": names})
    if filter is not None:
        conditions.append(parse_filter(filter).to_dict())
    return parse_filter({"operator": "AND", "conditions": conditions} if len(conditions) > 1 else conditions[0])


class _Documents:
    """Examples as documents, read anew by each iteration where the examples can be."""

    def __init__(self, demonstrations: Iterable[Demonstration]) -> None:
        self._demonstrations = demonstrations

    def __iter__(self) -> Iterator[Document]:
        for number, one in enumerate(self._demonstrations, 1):
            yield as_document(one, f"demonstration {number}")
