"""Hybrid search: several retrievers over the same documents behind one search call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, overload

from retrievers.documents import Document, Hit, found_hit
from retrievers.errors import HybridError, UnknownIdError, UnsupportedSearchError
from retrievers.explanations import Contribution, Explanation
from retrievers.fusion import Fusion, Table
from retrievers.queries import check_count
from retrievers.rerankers import NamedReranker, reranked
from retrievers.retriever import Retriever

DEPTH = 100
"""How many hits of each part are fused where no more are asked for."""


class HybridRetriever:
    """Retrievers over the same documents, such as a lexical and a dense one, whose hits are fused.

    The parts are searched where they stand: what is added to or deleted from one must be added to and deleted from all.
    """

    def __init__(
        self,
        parts: Sequence[Retriever],
        *,
        fusion: str | Fusion = "rrf",
        weights: Sequence[float] | None = None,
        depth: int = DEPTH,
    ) -> None:
        """Put retrievers together; closing the hybrid closes them.

        ``fusion`` and ``weights`` are those of :func:`retrievers.fusion.fuse`. The best ``depth`` hits of each part are
        fused, or the best ``k`` where a search asks for more.

        Raises HybridError for fewer than two parts and for an index that comes twice, SpecError for a fusion that is not
        known and weights that do not fit, QueryError for a depth below 1.
        """
        self._parts = tuple(parts)
        for number, part in enumerate(self._parts):
            if not isinstance(part, Retriever):
                raise HybridError(f"part {number} is a {type(part).__name__}: the parts of a hybrid are retrievers")
        if len(self._parts) < 2:
            raise HybridError(f"a hybrid has two parts or more, and {len(self._parts)} came")
        places: dict[Path, int] = {}
        for number, part in enumerate(self._parts):
            first = places.setdefault(part.path.resolve(), number)
            if first != number:
                raise HybridError(f"parts {first} and {number} are the same index, {part.path}: give each once")
        self._fusion = Fusion.parse(fusion)
        self._factors = self._fusion.weigh(weights, len(self._parts))
        self._depth = check_count("depth", depth)
        self._reranker = NamedReranker()
        names = [part.path.resolve().name for part in self._parts]
        self._names = tuple(names if len(set(names)) == len(names) else (str(part.path) for part in self._parts))

    @classmethod
    def open(
        cls,
        paths: Iterable[str | Path],
        *,
        fusion: str | Fusion = "rrf",
        weights: Sequence[float] | None = None,
        depth: int = DEPTH,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """Open the indexes at ``paths``, with their own encoders on ``device`` and in ``dtype``.

        Raises what :meth:`Retriever.open` and the constructor raise; then nothing is left open.
        """
        if isinstance(paths, str | Path):
            raise HybridError(f"{str(paths)!r} is one path: give a list of two or more")
        with ExitStack() as opened:
            parts = [opened.enter_context(Retriever.open(path, device=device, dtype=dtype)) for path in paths]
            hybrid = cls(parts, fusion=fusion, weights=weights, depth=depth)
            opened.pop_all()
        return hybrid

    @property
    def parts(self) -> tuple[Retriever, ...]:
        """The retrievers that are fused."""
        return self._parts

    @property
    def names(self) -> tuple[str, ...]:
        """What the parts are called: their folders' names, or paths where two folders have one name."""
        return self._names

    @property
    def fusion(self) -> Fusion:
        """The method of fusion."""
        return self._fusion

    @property
    def weights(self) -> tuple[float, ...]:
        """The factor of each part: as given, and in a convex combination scaled to the sum 1."""
        return tuple(self._factors.tolist())

    @property
    def depth(self) -> int:
        """How many hits of each part are fused at least."""
        return self._depth

    @property
    def size(self) -> int:
        """The bytes of the files of all parts; each part holds the documents."""
        return sum(part.size for part in self._parts)

    def __len__(self) -> int:
        """The number of documents of the largest part."""
        return max(map(len, self._parts))

    def __contains__(self, id: object) -> bool:
        return any(id in part for part in self._parts)

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first overload wins
        self, query: str, k: int = 10, *, filter: Mapping[str, Any] | None = None, rerank: Any = None
    ) -> list[Hit]: ...

    @overload
    def search(
        self, query: Sequence[str], k: int = 10, *, filter: Mapping[str, Any] | None = None, rerank: Any = None
    ) -> list[list[Hit]]: ...

    def search(
        self, query: str | Sequence[str], k: int = 10, *, filter: Mapping[str, Any] | None = None, rerank: Any = None
    ) -> list[Hit] | list[list[Hit]]:
        """The best ``k`` documents for a query by fused score, best first; for a sequence of queries, a list for each.

        Every part is searched, with the same ``filter`` (see :mod:`retrievers.filters`), for the larger of ``depth`` and
        ``k`` hits, and once for all queries. Equal scores come in ascending order of ids. Fewer than ``k`` hits come back
        where the parts found fewer between them. The document of a hit is that of the first part that found it.

        With ``rerank`` (see :meth:`Retriever.search`) the best ``depth`` by fused score, or ``k``, are scored anew.

        Raises what :meth:`Retriever.search` raises, and HybridError where parts found a document with one id and different
        titles or texts.
        """
        texts = [query] if isinstance(query, str) else list(query)
        reranker = None if rerank is None else self._reranker.get(rerank)
        found = self._found(texts, k, filter)
        first = k if reranker is None else max(k, self._depth)
        fused = [
            [
                found_hit(score, documents[id])
                for id, score in Table.of(self._fusion, ranked).ranked(self._factors)[:first]
            ]
            for ranked, documents in found
        ]
        if reranker is not None:
            fused = reranked(texts, fused, reranker, int(k))
        return fused[0] if isinstance(query, str) else fused

    def search_within(self, *_: Any, **__: Any) -> NoReturn:
        """Raise UnsupportedSearchError: a fused score is made of ranks in whole lists, of which none can be left out."""
        raise UnsupportedSearchError(
            "a hybrid cannot leave a part of its documents out: call search_within of one of its parts whose index is of the "
            f"kind inverted (bm25 and sparse encoders); the parts are {', '.join(self._names)}"
        )

    def explain(self, query: str, id: str, *, k: int = 10, filter: Mapping[str, Any] | None = None) -> Explanation:
        """What each part gives to the fused score of a document, with its rank and score in that part.

        There is one contribution a part, and they sum to the score that :meth:`search` gives for the same ``k`` and
        ``filter``, on which ranks depend. A document that no part finds so far up has the score 0, and contributions of 0
        that say so.

        Raises UnknownIdError where no part holds the document, and what :meth:`search` raises.
        """
        if id not in self:
            raise self._unknown(id)
        ((ranked, _),) = self._found([query], k, filter)
        table = Table.of(self._fusion, ranked)
        values = table.values[table.ids.index(id)] * self._factors if id in table.ids else 0 * self._factors
        score = dict(table.ranked(self._factors)).get(id, 0.0)
        parts = [
            Contribution(name, _place(part, id), value)
            for name, part, value in zip(self._names, ranked, values.tolist(), strict=True)
        ]
        return Explanation(query, id, score, tuple(sorted(parts, key=lambda part: -part.score)))

    def get(self, id: str) -> Document:
        """The document with this id, from the first part that holds it. Raises UnknownIdError."""
        for part in self._parts:
            if id in part:
                return part.get(id)
        raise self._unknown(id)

    def held(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that any part holds."""
        wanted = list(ids)
        return set().union(*(part.held(wanted) for part in self._parts))

    def close(self) -> None:
        """Close all parts. Any further call raises IndexClosedError."""
        self._reranker.forget()
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HybridRetriever({list(self._parts)!r}, {self._fusion}, weights={self.weights})"

    def _found(
        self, texts: list[str], k: int, filter: Mapping[str, Any] | None
    ) -> list[tuple[list[list[tuple[str, float]]], dict[str, Document]]]:
        """For each query the ids and scores that each part found, best first, and the documents of all of them."""
        # The parts see the larger of two numbers, and could not refuse this one.
        deepest = max(self._depth, check_count("k", k))
        hits = [part.search(texts, deepest, filter=filter) for part in self._parts]
        return [
            ([[(hit.id, hit.score) for hit in part] for part in found], self._documents(found))
            for found in zip(*hits, strict=True)
        ]

    def _documents(self, found: Sequence[list[Hit]]) -> dict[str, Document]:
        documents: dict[str, Document] = {}
        owners: dict[str, int] = {}
        for number, part in enumerate(found):
            for hit in part:
                first = documents.setdefault(hit.id, hit.document)
                owner = owners.setdefault(hit.id, number)
                for what, ours, theirs in (
                    ("text", first.text, hit.document.text),
                    ("title", first.title, hit.document.title),
                ):
                    if ours != theirs:
                        raise HybridError(
                            f"document {hit.id!r} has the {what} {ours!r:.80} in {self._parts[owner].path}, and "
                            f"{theirs!r:.80} in {self._parts[number].path}: build both from the same documents"
                        )
        return documents

    def _unknown(self, id: str) -> UnknownIdError:
        return UnknownIdError(f"no part holds a document with id {id!r}: the parts are {', '.join(self._names)}")


def _place(part: Sequence[tuple[str, float]], id: str) -> str:
    for rank, (found, score) in enumerate(part, 1):
        if found == id:
            return f"rank {rank}, score {score:.6g}"
    return f"not among the {len(part)} found" if part else "nothing found"
