"""Encoders and retrievers as models of ``mteb`` 2.x, so that ``mteb.evaluate`` measures the search that an application gets.

:class:`MtebModel` indexes the corpus of each task with an encoder; :class:`MtebRetriever` is for an index that exists, or for
anything else with ``search``. Both follow mteb's ``SearchProtocol``, and a dense :class:`MtebModel` its ``EncoderProtocol``
too, so that tasks without a search (similarity, classification, clustering) can use it.

Scores are those of the hits as 32-bit floats; where hits have equal scores, each is lowered to the next number below the one
before it. mteb ranks equal scores by document id, descending, and would otherwise turn the order of the hits around.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retrievers.documents import Hit
from retrievers.encoders import Encoder, identity, load_encoder
from retrievers.errors import IndexClosedError, UnknownIdError
from retrievers.evaluation import Searcher
from retrievers.indexes.kinds import check_index_spec, default_index, parse_index_spec
from retrievers.mteb_inputs import ID_FIELD, check_precision, documents, query_texts
from retrievers.mteb_metadata import label_of, metadata, require_mteb, revision_of, state_of
from retrievers.mteb_vectors import DenseVectors
from retrievers.retriever import DEFAULT_MEMORY, Retriever
from retrievers.runs import Run, run_of
from retrievers.specs import Spec

_BATCH = 256  # queries that are searched at once


class MtebModel:
    """An encoder, with the index that is to hold its vectors, as a model that ``mteb.evaluate`` takes.

    ``encoder`` is what :func:`retrievers.load_encoder` takes, as are ``device``, ``batch_size`` and ``dtype``, and ``index``
    and ``memory`` (bytes) are those of :meth:`retrievers.Retriever.build`. Each corpus is indexed in a new folder inside
    ``folder`` (by default the system's for temporary files), which is removed once its queries are answered. Documents are
    encoded as :attr:`retrievers.Document.content` joins title and text, with the prompts that the model carries.
    ``batch_size`` holds whatever batch size mteb passes.

    mteb files results under a name, ``name`` or one made from the encoder's, and a revision, which holds the encoder's
    fingerprint and a hash of all that changes the results: two checkpoints in one folder, or two indexes, never share any.

    A dense one has ``encode``, ``similarity`` and ``similarity_pairwise`` too, as
    :class:`retrievers.mteb_vectors.DenseVectors` describes them. None has ``predict``, by which mteb tells a cross-encoder.

    Raises MissingDependencyError where mteb is not installed, SpecError for an index that does not fit, and what
    :func:`retrievers.load_encoder` raises.
    """

    encode: Callable[..., Any]
    similarity: Callable[[Any, Any], Any]
    similarity_pairwise: Callable[[Any, Any], Any]

    def __init__(
        self,
        encoder: str | Path | Encoder = "bm25",
        *,
        index: str | Spec | None = None,
        name: str | None = None,
        folder: str | Path | None = None,
        device: str | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        require_mteb()
        check_index_spec(index)
        self.encoder = load_encoder(encoder, device=device, batch_size=batch_size, dtype=dtype)
        kind = self.encoder.kind
        self._index = default_index(kind) if index is None else parse_index_spec(index, kind)
        self._folder = None if folder is None else Path(folder)
        self._memory = memory
        self._opened = ExitStack()
        self._retriever: Retriever | None = None
        self._meta = metadata(
            label_of(self.encoder) if name is None else name,
            revision_of(self.encoder.fingerprint, [identity(self.encoder), str(self._index), dtype]),
            self.encoder,
            {"encoder": label_of(self.encoder), "index": str(self._index)},
        )
        if kind == "dense":
            # On the object, not the class: mteb asks whether a model has ``encode``, and the other kinds must not.
            vectors = DenseVectors(self.encoder)
            self.encode = vectors.encode
            self.similarity = vectors.similarity
            self.similarity_pairwise = vectors.similarity_pairwise

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb files results under, an ``mteb.models.ModelMeta``."""
        return self._meta

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Index ``corpus``, whose rows have ``id``, ``text`` and perhaps ``title``, in the place of the one before.

        Raises DocumentError for a row without a text and for what cannot be indexed, DuplicateIdError, and EncoderError
        for a ``precision`` other than float32: the index's specification, such as ``"maxsim(dtype=int8)"``, says how
        vectors are stored.
        """
        check_precision(encode_kwargs)
        self.close()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as opened:
            place = opened.enter_context(TemporaryDirectory(prefix="retrievers-mteb-", dir=self._folder))
            retriever = opened.enter_context(
                Retriever.build(
                    Path(place) / "index",
                    documents(corpus),
                    encoder=self.encoder,
                    index=self._index,
                    memory=self._memory,
                )
            )
            self._opened = opened.pop_all()
        self._retriever = retriever

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> Run:
        """The best ``top_k`` documents of each query: ``{query id: {document id: score}}``; then the index is removed.

        With ``top_ranked`` the documents of a query are the best of those it names, by an exact filter. Of a lexical or
        sparse index those come back that share a term with the query.

        Raises IndexClosedError where no corpus has been indexed since the last search, QueryError for a query without a
        text, EncoderError as :meth:`index` does.
        """
        check_precision(encode_kwargs)
        retriever = self._retriever
        if retriever is None:
            raise IndexClosedError(
                "no corpus is indexed: call index before each search, which removes its index at the end"
            )
        try:
            asked = query_texts(queries)
            if top_ranked is None:
                return _found(retriever, asked, top_k)
            run: Run = {}
            for query, text in asked.items():
                permitted = list(dict.fromkeys(top_ranked.get(query) or ()))
                condition = {"field": ID_FIELD, "operator": "in", "value": permitted}
                hits = retriever.search([text], min(top_k, len(permitted)), filter=condition) if permitted else [[]]
                run |= run_of([query], hits)
            return run
        finally:
            self.close()

    def close(self) -> None:
        """Remove the index that is open, if there is one."""
        self._retriever = None
        self._opened.close()


class MtebRetriever:
    """A retriever that exists, or anything with its ``search``, as a model that ``mteb.evaluate`` takes.

    The retriever must hold the corpus of the task, no less and no more. ``name`` and ``revision`` are what mteb files results
    under. By default the revision comes from the fingerprints of the encoders behind ``retriever`` and from their
    indexes, where it has ``encoder`` and ``index``, ``parts`` that do, or a ``fingerprint``; from anything else, it is new
    for each object, so that mteb never takes the results of one for those of another: give ``revision`` to find them again.

    Raises MissingDependencyError where mteb is not installed, and what opening the retriever's encoder raises.
    """

    def __init__(self, retriever: Searcher, *, name: str | None = None, revision: str | None = None) -> None:
        require_mteb()
        self.retriever = retriever
        self._ids: frozenset[str] | None = None
        if name is None:
            path = getattr(retriever, "path", None)
            name = type(retriever).__name__.lower() if path is None else Path(path).resolve().name
        encoder = getattr(retriever, "encoder", None)
        if revision is None:
            state = state_of(retriever)
            known = getattr(encoder, "fingerprint", None) or getattr(retriever, "fingerprint", None) or "several"
            revision = f"unversioned-{uuid.uuid4().hex[:16]}" if state is None else revision_of(known, state)
        index = getattr(retriever, "index", None)
        self._meta = metadata(name, revision, encoder, {} if index is None else {"index": str(index)})

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb files results under, an ``mteb.models.ModelMeta``."""
        return self._meta

    def index(
        self,
        corpus: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Check that the retriever holds the documents of ``corpus``; texts are not compared.

        What the retriever holds is asked by its ``held(ids)``, else by ``in``, and how many by ``len``, as far as it has
        them. Raises UnknownIdError where it lacks a document of the corpus, which the message names, or holds more;
        EncoderError for a ``precision`` other than float32.
        """
        check_precision(encode_kwargs)
        self._ids = None
        ids = list(corpus["id"])
        wanted = frozenset(ids)
        known = _held(self.retriever, ids)
        if known is not None:
            missing = [id for id in ids if id not in known]
            if missing:
                raise UnknownIdError(
                    f"{self.retriever!r} lacks {len(missing)} of the {len(wanted)} documents of the corpus, the first with id "
                    f"{missing[0]!r}: build it from the corpus of {_name(task_metadata)}"
                )
            size = getattr(self.retriever, "__len__", wanted.__len__)()
            if size > len(wanted):
                raise UnknownIdError(
                    f"{self.retriever!r} holds {size - len(wanted)} documents more than the {len(wanted)} of the corpus of "
                    f"{_name(task_metadata)}: its hits would be of another collection. Build it from that corpus"
                )
        self._ids = wanted

    def search(
        self,
        queries: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **kwargs: Any,
    ) -> Run:
        """The best ``top_k`` documents of each query: ``{query id: {document id: score}}``.

        With ``top_ranked`` the documents of a query are the best of those it names: the whole corpus is searched for, and
        what is not named left out. An approximate index may not find all of them.

        Raises IndexClosedError before :meth:`index`, QueryError for a query without a text, UnknownIdError for a hit that
        the corpus lacks, EncoderError as :meth:`index` does.
        """
        check_precision(encode_kwargs)
        if self._ids is None:
            raise IndexClosedError("no corpus has been checked against the retriever: call index before search")
        asked = query_texts(queries)
        if top_ranked is None:
            return _found(self.retriever, asked, top_k, self._ids)
        run: Run = {}
        for query, text in asked.items():
            permitted = frozenset(top_ranked.get(query) or ())
            hits = self.retriever.search([text], max(1, len(self._ids)))[0] if permitted else []
            run |= run_of([query], [[hit for hit in hits if hit.id in permitted][:top_k]])
        return run


def _held(searcher: Any, ids: Sequence[str]) -> set[str] | None:
    """Those of these ids that a searcher holds; None where it cannot say."""
    if hasattr(searcher, "held"):
        return set(searcher.held(ids))
    return {id for id in ids if id in searcher} if hasattr(searcher, "__contains__") else None


def _found(searcher: Searcher, asked: Mapping[str, str], k: int, corpus: frozenset[str] | None = None) -> Run:
    """The run of all queries; raises UnknownIdError for a hit that is not in ``corpus``."""
    texts = list(asked.values())
    hits: list[list[Hit]] = []
    for first in range(0, len(texts), _BATCH):
        hits += searcher.search(texts[first : first + _BATCH], k)
    if corpus is not None:
        for hit in (hit for found in hits for hit in found):
            if hit.id not in corpus:
                raise UnknownIdError(
                    f"{searcher!r} found a document with id {hit.id!r}, which the corpus lacks: build it from that corpus"
                )
    return run_of(asked, hits)


def _name(task_metadata: Any) -> str:
    return str(getattr(task_metadata, "name", "the task"))
