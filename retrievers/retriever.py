"""The retriever: an index on disk and its encoder behind one search call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from retrievers.conditions import Filter, parse_filter
from retrievers.documents import Document, Hit, found_hit
from retrievers.encoders import (
    Encoder,
    check_encoder,
    check_same,
    encode_query,
    load_encoder,
    open_encoder,
    opens_quickly,
)
from retrievers.errors import IndexClosedError, QueryError, SpecError, UnknownIdError, VectorError
from retrievers.explanations import Explanation, explain
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.arrays import refuse_open_files
from retrievers.indexes.kinds import check_index_spec, default_index, import_for, parse_index_spec
from retrievers.indexes.manifest import ENCODER
from retrievers.indexes.snapshot import Snapshot, Threshold
from retrievers.partial import PartialSearch, check_limits, check_partial, search_partly
from retrievers.queries import check_count
from retrievers.rerankers import NamedReranker, check_depth, reranked
from retrievers.specs import Spec
from retrievers.vectors import Vectors, check, count, dimension

if TYPE_CHECKING:
    from retrievers.writer import Writer

Progress = Callable[[int], None]
"""Called with the number of documents that are done."""

DEFAULT_MEMORY = 2 << 30
"""Bytes that documents and vectors may take at once."""


class Retriever:
    """Search over a collection, held in a directory.

    A retriever answers from the commit that it opened, from any number of threads, until :meth:`refresh` or a change made
    through it moves it forward. Build with :meth:`build`, open with :meth:`open`.
    """

    def __init__(self, root: Path, snapshot: Snapshot, encoder: Encoder | None) -> None:
        self._root = root
        self._snapshot: Snapshot | None = snapshot
        self._moving = threading.Lock()
        self._encoder = encoder
        self._options: dict[str, Any] = {}  # of an encoder that the index names
        self._reranker = NamedReranker()

    @classmethod
    def build(
        cls,
        path: str | Path,
        documents: Iterable[Document],
        *,
        encoder: str | Path | Encoder = "bm25",
        index: str | Spec | None = None,
        memory: int = DEFAULT_MEMORY,
        progress: Progress | None = None,
    ) -> Self:
        """Index a collection into the directory ``path`` and open it.

        ``documents`` is read once, as a stream. ``encoder`` is what :func:`retrievers.load_encoder` takes. ``index`` is a
        specification such as ``"hnsw(m=32)"``; by default the exact kind that fits the encoder. ``memory`` bounds, in
        bytes, what documents and vectors take while the index is built (the model comes on top). ``progress`` is
        called with the number of documents done so far.

        A build that was stopped goes on where it was when it is called again with the same documents: nothing is encoded
        twice. Raises IndexExistsError where ``path`` holds a finished index or anything else, DuplicateIdError,
        DocumentError, SpecError, BuildChangedError where a stopped build began with other documents or options.
        """
        from retrievers.assembly import check_memory
        from retrievers.writer import Writer, check_place

        root = Path(path)
        check_memory(memory)
        check_place(root)
        check_index_spec(index)
        model = load_encoder(encoder)
        spec = default_index(model.kind) if index is None else parse_index_spec(index, model.kind)
        with Writer.begin_build(root, model, spec) as writer:
            writer.build(documents, memory, progress)
        return cls(root, Snapshot.open(root), model)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: Encoder | None = None,
        device: str | None = None,
        dtype: str | None = None,
        workers: int = 1,
    ) -> Self:
        """Open the index at ``path``.

        The encoder that the index names must have the fingerprint that the index was built with. A model is loaded when it
        is first needed, on ``device`` and in ``dtype``; an encoder whose queries need none is loaded at once, and with it
        all that the first search would wait for. ``workers`` are the processes that encode documents which are added. Pass
        ``encoder`` where it was an object of your own, or to share one between indexes.

        Raises IndexNotFoundError, IndexFormatError, IndexDamagedError (which name the file), EncoderMismatchError.
        """
        root = Path(path)
        snapshot = Snapshot.open(root)
        if encoder is not None:
            check_same(check_encoder(encoder), snapshot.manifest.encoder)
        retriever = cls(root, snapshot, encoder)
        retriever._options = {"device": device, "dtype": dtype, "workers": workers}
        try:
            retriever._prepare()
        except BaseException as error:
            snapshot.close()
            if isinstance(error, OSError):
                refuse_open_files(root, error)  # an encoder opens files of its own
            raise
        return retriever

    @property
    def path(self) -> Path:
        """The directory of the index."""
        return self._root

    @property
    def size(self) -> int:
        """The bytes of all files of the index, added up anew at each call."""
        return sum(file.stat().st_size for file in self._root.rglob("*") if file.is_file())

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at the first use."""
        if self._encoder is None:
            stored = self.snapshot.manifest.encoder
            self._encoder = open_encoder(stored, self._root / ENCODER, **self._options)
        return self._encoder

    @property
    def index(self) -> Spec:
        """The specification of the index."""
        return self.snapshot.spec

    @property
    def complete(self) -> bool:
        """False where the build of this index was stopped and has not been continued."""
        return self.snapshot.manifest.complete

    def __len__(self) -> int:
        return self.snapshot.manifest.documents

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self.snapshot.locate(id) is not None

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too; the first overload wins
        self,
        query: str,
        k: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        rerank: Any = None,
        depth: int = 100,
        language: str | None = None,
    ) -> list[Hit]: ...

    @overload
    def search(
        self,
        query: Sequence[str],
        k: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        rerank: Any = None,
        depth: int = 100,
        language: str | None = None,
    ) -> list[list[Hit]]: ...

    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        *,
        filter: Mapping[str, Any] | None = None,
        rerank: Any = None,
        depth: int = 100,
        language: str | None = None,
    ) -> list[Hit] | list[list[Hit]]:
        """The best ``k`` documents for a query, best first; for a sequence of queries, a list for each.

        ``filter`` follows Haystack's grammar (see :mod:`retrievers.filters`) and is exact: the hits are the best documents
        of those that it permits. Equal scores come in ascending order of ids. Fewer than ``k`` hits come back where fewer
        documents are permitted, or, with lexical and sparse encoders, where fewer share a term with the query.

        With ``rerank`` the best ``depth`` by the index (``k`` or more) are scored anew, and the best ``k`` of them come
        back with those scores. It is a :class:`retrievers.Reranker`, or what one is made of: a cross-encoder or
        multi-vector model as an object, folder or hub name. A model that is named is loaded by the first search, and kept
        until another is named or the retriever is closed; to choose its device or numbers, or to share it between
        retrievers, make a :class:`retrievers.CrossEncoderReranker` or :class:`retrievers.MultiVectorReranker`.

        ``language`` is for encoders with an adapter for each language: that of these queries, where it is another than the
        index remembers. Documents stay in theirs. A multi-vector model that reranks keeps its own languages.

        Raises QueryError, EncoderError for a language that the encoder lacks, ScoreError, FilterError, FilterTypeError,
        IndexClosedError, IndexDamagedError.
        """
        snapshot = self.snapshot
        if isinstance(query, str):
            texts: list[str] = [query]
        else:
            texts = list(query)
            for number, text in enumerate(texts):
                if not isinstance(text, str):
                    raise QueryError(f"query {number} is a {type(text).__name__}, {text!r:.80}: queries are strings")
        check_count("k", k)
        condition = None if filter is None else parse_filter(filter)
        first = k if rerank is None else check_depth(depth, k)
        reranker = None if rerank is None else self._reranker.get(rerank)
        if not texts:
            return []
        vectors = self.encode_queries(snapshot, texts, language)
        hits = search_vectors(snapshot, vectors, int(first), condition)
        if reranker is not None:
            hits = reranked(texts, hits, reranker, int(k))
        return hits[0] if isinstance(query, str) else hits

    def search_within(
        self,
        query: str,
        k: int = 10,
        *,
        give_up: float = 0.0,
        milliseconds: float | None = None,
        filter: Mapping[str, Any] | None = None,
    ) -> PartialSearch:
        """The best ``k`` documents but for a part of the score that is given up, or within a time, and what was skipped.

        For inverted indexes (``bm25`` and sparse encoders). Their documents are looked at by slices of eight, those first
        that can score most. With ``give_up``, a share from 0 to below 1, the search ends where no slice that is left can
        beat the ``k``-th best score by more than that: at every rank the score is at least ``1 - give_up`` times that of
        :meth:`search`, whose hits come back where it is 0. With ``milliseconds`` it ends when they are over, with one slice
        of each segment or more; they count while documents are looked at, not while the query is encoded, a filter is
        evaluated or documents are read. Segments share them by size. Both limits hold where both are given.

        The report says how much was left out and what that can have cost, and whether the hits are exact none the less.
        Raises UnsupportedSearchError for other kinds of index, and what :meth:`search` raises.
        """
        snapshot = self.snapshot
        check_partial(snapshot)
        if not isinstance(query, str):
            raise QueryError(f"the query is a {type(query).__name__}, {query!r:.80}: search_within takes one string")
        check_count("k", k)
        share, seconds = check_limits(give_up, milliseconds)
        condition = None if filter is None else parse_filter(filter)
        vectors = self.encode_queries(snapshot, [query])
        return search_partly(snapshot, vectors, int(k), condition, share, seconds)

    def explain(self, query: str, id: str, *, language: str | None = None) -> Explanation:
        """Why a document has its score for a query.

        Lexical and sparse indexes tell the contribution of each term, multi-vector indexes the best token of the document
        for each token of the query; the contributions sum to the score that :meth:`search` gives. Dense scores have
        no parts. ``language`` is that of :meth:`search`. Raises UnknownIdError.
        """
        snapshot = self.snapshot
        place = snapshot.locate(id)
        if place is None:
            raise _unknown([id], self._root)
        vectors = self.encode_queries(snapshot, [query], language)
        return explain(self.encoder, snapshot, vectors, query, id, *place)

    def get(self, id: str) -> Document:
        """The document with this id. Raises UnknownIdError."""
        snapshot = self.snapshot
        place = snapshot.locate(id)
        if place is None:
            raise _unknown([id], self._root)
        number, row = place
        return snapshot.segments[number].store.documents([row])[row]

    def held(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that the index holds."""
        return self.snapshot.held(list(ids))

    def add(
        self,
        documents: Iterable[Document],
        *,
        memory: int = DEFAULT_MEMORY,
        progress: Progress | None = None,
    ) -> int:
        """Add documents, all in one commit; returns how many. Afterwards this retriever sees them.

        Raises DuplicateIdError where an id is in the index already (delete it first) or comes twice, DocumentError,
        WriterLockedError while another writer is at work; then nothing is added.
        """
        encoder = self.encoder
        with self._writer() as writer:
            added = writer.add(encoder, documents, memory, progress)
        self.refresh()
        return added

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete documents by id, all in one commit; returns how many.

        Raises UnknownIdError where an id is not in the index: then nothing is deleted.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        with self._writer() as writer:
            missing = writer.delete(wanted)
        if missing:
            raise _unknown(missing, self._root)
        self.refresh()
        return len(set(wanted))

    def replace(self, documents: Iterable[Document], *, memory: int = DEFAULT_MEMORY) -> int:
        """Put documents in place of those with the same ids, all in one commit; returns how many.

        Raises UnknownIdError where an id is not in the index, and DuplicateIdError, DocumentError and WriterLockedError as
        :meth:`add` does; then nothing is changed.
        """
        changed = list(documents)
        encoder = self.encoder
        with self._writer() as writer:
            missing = writer.replace(encoder, changed, memory)
        if missing:
            raise _unknown(missing, self._root)
        self.refresh()
        return len(changed)

    def merge(self, *, memory: int = DEFAULT_MEMORY) -> int:
        """Fold the segments into as few as ``memory`` (bytes) allows, without the deleted; returns how many are left.

        Nothing is encoded again. Searches give what they gave before.
        """
        with self._writer() as writer:
            left = writer.merge(memory)
        self.refresh()
        return left

    def tune(self, questions: Sequence[str], *, recall: float = 0.95, k: int = 10) -> dict[str, int]:
        """Set how thoroughly an approximate dense index searches, by questions of the kind that it will be asked.

        The cheapest ``ef_search``, ``nprobe`` and ``candidates`` by which the index finds at least the share ``recall`` of the
        ``k`` best documents of these questions, on the average, are written into its specification, in one commit, in place
        of a target for the recall; nothing is built again. Returns them; nothing is changed, and they are empty, where the index
        has too few vectors for anything but a scan, which is exact. A few hundred questions do; those of an evaluation
        should not be among them.

        Raises SpecError for an index of another kind, QueryError for no questions, and for ``recall`` outside 0 to 1.
        """
        texts = list(questions)
        check_count("k", k)
        if not isinstance(recall, int | float) or not 0 < recall < 1:
            raise QueryError(f"recall is {recall!r}: it must be a number above 0 and below 1")
        if isinstance(questions, str) or not texts:
            raise QueryError(f"questions is {questions!r:.80}: give a sequence of questions, some hundred if there are")
        snapshot = self.snapshot
        if snapshot.spec.name not in ApproximateIndex.PARAMETERS:
            raise SpecError(
                f"{snapshot.spec} cannot be tuned by questions; kinds that can are {', '.join(ApproximateIndex.PARAMETERS)}"
            )
        vectors = self.encode_queries(snapshot, texts)
        values: dict[str, int] = {}
        for segment in snapshot.segments:
            assert isinstance(segment.index, ApproximateIndex)
            tuned = segment.index.tune(vectors, recall, k, segment.live)
            for name, value in ({} if tuned is None else tuned.values).items():
                values[name] = max(value, values.get(name, 0))
        if values:
            kept = {name: value for name, value in snapshot.spec.parameters.items() if name != "recall"}
            with self._writer() as writer:
                writer.respecify(Spec(snapshot.spec.name, {**kept, **values}))
            self.refresh()
        return values

    def refresh(self) -> bool:
        """Move to the newest commit; returns whether there was a newer one."""
        # One at a time: a slower thread that read an older commit would move the retriever back.
        with self._moving:
            current = self.snapshot
            newest = Snapshot.open(self._root, current)
            self._snapshot = newest
            return newest is not current

    def close(self) -> None:
        """Release the files. Any further call raises IndexClosedError."""
        self._reranker.forget()
        with self._moving:
            if self._snapshot is not None:
                self._snapshot.close()
                self._snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._snapshot is None:
            return f"Retriever({str(self._root)!r}, closed)"
        manifest = self._snapshot.manifest
        return f"Retriever({str(self._root)!r}, {manifest.documents} documents, {manifest.encoder['kind']}, {manifest.index})"

    def _writer(self) -> Writer:
        from retrievers.writer import Writer  # and with it much that a search needs not wait for

        return Writer.begin(self._root)

    @property
    def snapshot(self) -> Snapshot:
        """The commit that is searched, as the other parts of the library read it."""
        if self._snapshot is None:
            raise IndexClosedError(f"the retriever of {self._root} is closed: open it again")
        return self._snapshot

    def _prepare(self) -> None:
        """Do now what the first search would wait for, as far as that takes no model."""
        stored = self.snapshot.manifest.encoder
        import_for(stored["kind"])
        self.snapshot.prepare()
        if opens_quickly(stored):
            self.search("first")  # as much as the first search takes longer than a later one

    def encode_queries(self, snapshot: Snapshot, texts: list[str], language: str | None = None) -> Vectors:
        """The vectors of queries, weighed as this snapshot wants them. Raises VectorError for those of another dimension."""
        encoder = self.encoder
        vectors = encode_query(encoder, texts, language)
        check(vectors, encoder.kind, len(texts))
        wanted = snapshot.dimension
        if wanted is not None and dimension(vectors) != wanted:
            raise VectorError(
                f"the encoder gave queries of {dimension(vectors)} dimensions, and the index holds {wanted}"
            )
        return snapshot.weigh(vectors)


def search_vectors(snapshot: Snapshot, queries: Vectors, k: int, condition: Filter | None) -> list[list[Hit]]:
    """The best ``k`` documents for each of these queries, which are weighed already, among those that a filter permits."""
    n = count(queries)
    found: list[tuple[int, Any]] = []
    threshold = Threshold(n, k) if snapshot.uses_threshold(k) else None
    for number, segment, allowed in snapshot.permitted(condition):
        floor = None if threshold is None else threshold.scores
        part = segment.search(queries, k, allowed=allowed, norms=snapshot.norms(number), floor=floor)
        found.append((number, part))
        if threshold is not None:
            threshold.raise_by(part)
    if not found:
        return [[] for _ in range(n)]
    best = snapshot.combine(found, n, k)
    documents = snapshot.documents(best)
    return [list(map(found_hit, ranking.scores, map(documents.__getitem__, ranking.places))) for ranking in best]


def _unknown(ids: Sequence[str], root: Path) -> UnknownIdError:
    names = ", ".join(repr(id) for id in ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    return UnknownIdError(f"{root} holds no document with id {names}")
