"""Rerankers: models that score a query and a document together, over the best hits of any index.

An index answers from vectors that were made before the query was known. A reranker looks at both, which is slower and as
a rule better, so it sees only the first hits: ``retriever.search(query, k=10, rerank=reranker, depth=100)``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document, Hit, found_hit
from retrievers.encoders.texts import check_texts
from retrievers.errors import EncoderError, QueryError, ScoreError, VectorError
from retrievers.vectors import TokenVectors, check

_OWNERS = ("cross-encoder", "sentence-transformers")
_DOCUMENTS = 512  # documents whose token vectors are held at a time: some 80 MB of 300 tokens by 128 dimensions
_ADVICE = "Pass a reranker, a CrossEncoder, a multi-vector encoder, or the folder or hub name of one of the two"

# One model may stand behind several rerankers, and its tokenizer's settings must not change under a call.
_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@runtime_checkable
class Reranker(Protocol):
    """What a search asks of a reranker."""

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        """How well documents answer queries; higher is better.

        ``documents`` holds a sequence for each query. Returns for each query a float32 array ``[documents]``, in their
        order, of finite numbers.
        """
        ...


class CrossEncoderReranker:
    """Scores with a ``sentence_transformers.CrossEncoder``.

    ``model`` is a folder, a name on the hub or the object itself, which is used as it is (and moved or converted where
    ``device`` or ``dtype`` is given). ``batch_size`` pairs are scored at once. ``dtype`` (``"float32"``,
    ``"bfloat16"``, ``"float16"``) converts the weights; scores are float32 all the same. ``device`` is torch's name for
    it, by default the accelerator if there is one. ``revision`` is that of a model on the hub.

    Prompt, length and activation are the model's own: a score is what its ``predict`` gives for the pair of the query
    and the document's :attr:`~retrievers.Document.content`. Calls from several threads wait for one another.

    Raises ModelNotFoundError where there is no model, EncoderError where it is no cross-encoder, cannot be loaded or
    gives more than one label, MissingDependencyError where sentence-transformers is not installed.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | None = None,
        batch_size: int = 32,
        dtype: str | None = None,
        revision: str | None = None,
    ) -> None:
        from retrievers.encoders.checkpoints import require_neural
        from retrievers.encoders.numerics import check_sizes, full_name

        dtype = full_name(dtype, ("float32", "bfloat16", "float16"))
        check_sizes(batch_size=batch_size)
        self.batch_size = batch_size
        if isinstance(model, str | Path):
            self.model = _load_cross_encoder(model, device, revision)
        else:
            require_neural()
            from sentence_transformers import CrossEncoder

            if not isinstance(model, CrossEncoder):
                raise EncoderError(
                    f"expected a folder, a name on the hub or a sentence_transformers.CrossEncoder, got {_named(model)}"
                )
            self.model = model
            if device is not None:
                self.model.to(device)
        if self.model.num_labels != 1:
            raise EncoderError(
                f"the cross-encoder gives {self.model.num_labels} labels for a pair, and ranking takes one score: use a "
                "model that was trained with num_labels=1"
            )
        if dtype is not None:
            import torch

            self.model.to(getattr(torch, dtype))
        with _locks_guard:
            self._lock = _locks.setdefault(self.model, threading.Lock())

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        """See :meth:`Reranker.score`. The pairs of all queries fill batches together, the longest first.

        A pair that comes twice is scored once, so that equal texts have equal scores whatever they are batched with.
        Raises EncoderError for what is no text, QueryError where there are not as many sequences as queries, ScoreError
        for NaN or infinity.
        """
        texts, lists = _checked(queries, documents)
        pairs: dict[tuple[str, str], int] = {}
        places: list[NDArray[np.int64]] = []
        for text, found in zip(texts, lists, strict=True):
            contents = check_texts([document.content for document in found])
            numbers = [pairs.setdefault((text, content), len(pairs)) for content in contents]
            places.append(np.array(numbers, np.int64))
        if not pairs:
            return [np.empty(0, np.float32) for _ in lists]
        with self._lock:
            # predict sorts by length and batches; the longest batch comes first, and so does running out of memory.
            given = self.model.predict(list(pairs), batch_size=self.batch_size, show_progress_bar=False)
        scores = np.asarray(given, np.float32)
        if scores.shape != (len(pairs),):
            raise ScoreError(f"the cross-encoder gave scores of shape {list(scores.shape)} for {len(pairs)} pairs")
        return check_scores([scores[at] for at in places], texts, lists, self)


class MultiVectorReranker:
    """Scores with a multi-vector encoder, by exact MaxSim (Khattab and Zaharia, 2020, ColBERT, section 3).

    ``encoder`` is a :class:`retrievers.MultiVectorEncoder`, or any object of kind ``"multi-vector"`` with
    ``encode_query`` and ``encode_document``; a score is the sum, over the tokens of the query, of the highest inner
    product with any token of the document, from float32 vectors in float64.

    A document or a query without tokens scores 0, the sum of nothing, and stays among the hits; a maxsim index never
    finds such a document, and finds nothing for such a query. An index also stores its vectors as float16 or int8: its
    scores differ from these by that rounding.

    Raises EncoderError where the object is no such encoder.
    """

    def __init__(self, encoder: Any) -> None:
        kind = getattr(encoder, "kind", None)
        if kind != "multi-vector":
            raise EncoderError(
                f"MaxSim needs an encoder of kind 'multi-vector', and this {_named(encoder)} has "
                + ("none" if kind is None else f"kind {kind!r}")
            )
        for name in ("encode_query", "encode_document"):
            if not hasattr(encoder, name):
                raise EncoderError(f"{_named(encoder)} is no encoder: it lacks {name}")
        self.encoder = encoder

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        """See :meth:`Reranker.score`. Each distinct text of a document is encoded once.

        Raises EncoderError for what is no text, QueryError where there are not as many sequences as queries, VectorError
        for broken vectors, ScoreError where a score is too large for float32.
        """
        texts, lists = _checked(queries, documents)
        scores = [np.zeros(len(found), np.float32) for found in lists]
        wanted: dict[str, list[tuple[int, int]]] = {}
        for number, found in enumerate(lists):
            for at, document in enumerate(found):
                wanted.setdefault(document.content, []).append((number, at))
        if not wanted:
            return scores
        asked: TokenVectors = self.encoder.encode_query(texts)
        check(asked, "multi-vector", len(texts))
        sides = [asked[number].astype(np.float64) for number in range(len(texts))]
        contents = list(wanted)
        for first in range(0, len(contents), _DOCUMENTS):
            block = contents[first : first + _DOCUMENTS]
            vectors: TokenVectors = self.encoder.encode_document(block)
            check(vectors, "multi-vector", len(block))
            if vectors.values.shape[1] != asked.values.shape[1]:
                raise VectorError(
                    f"the encoder gave queries of {asked.values.shape[1]} dimensions and documents of "
                    f"{vectors.values.shape[1]}: they cannot be compared"
                )
            for row, content in enumerate(block):
                tokens = vectors[row].astype(np.float64).T
                for number, at in wanted[content]:
                    # Each pair for itself: what is multiplied together may change the last bit.
                    if tokens.shape[1] and len(sides[number]):
                        with np.errstate(over="ignore"):
                            scores[number][at] = (sides[number] @ tokens).max(axis=1).sum()
        return check_scores(scores, texts, lists, self)


def as_reranker(value: Any, *, device: str | None = None, batch_size: int = 32, dtype: str | None = None) -> Reranker:
    """The reranker that a user names.

    ``value`` is a :class:`Reranker`, which is returned as it is; a ``sentence_transformers.CrossEncoder`` or
    ``MultiVectorEncoder``; an encoder of kind ``"multi-vector"``; or the folder or hub name of either, told apart by the
    saved configuration. ``device``, ``batch_size`` and ``dtype`` are for models that are loaded here or come as an object
    of sentence-transformers.

    Raises EncoderError, ModelNotFoundError, MissingDependencyError.
    """
    if isinstance(value, str | Path):
        from retrievers.encoders.checkpoints import locate

        checkpoint = locate(value, owners=_OWNERS)
        if checkpoint.kind == "multi-vector":
            return _over_multi_vector(checkpoint.location, device, batch_size, dtype)
        return CrossEncoderReranker(checkpoint.location, device=device, batch_size=batch_size, dtype=dtype)
    if callable(getattr(value, "score", None)) and not isinstance(value, type):
        own: Reranker = value
        return own
    if getattr(value, "kind", None) == "multi-vector":
        return MultiVectorReranker(value)
    loaded: Any = sys.modules.get("sentence_transformers")  # never imported: the value is none of its objects
    if loaded is not None and isinstance(value, loaded.CrossEncoder):
        return CrossEncoderReranker(value, device=device, batch_size=batch_size, dtype=dtype)
    if loaded is not None and isinstance(value, loaded.MultiVectorEncoder):
        return _over_multi_vector(value, device, batch_size, dtype)
    told = f" of kind {value.kind!r}" if hasattr(value, "kind") else ""
    raise EncoderError(f"{_named(value)}{told} is no reranker. {_ADVICE}")


class NamedReranker:
    """What :func:`as_reranker` makes, and the model that was last given by its name, so that it is loaded once.

    One model is kept, until another is named or :meth:`forget` is called; a folder whose files change meanwhile is not
    read again. May be shared by threads: those that name a model which is being loaded wait for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[str, Reranker] | None = None

    def get(self, value: Any) -> Reranker:
        """The reranker for ``value``. Raises what :func:`as_reranker` raises."""
        if not isinstance(value, str | Path):
            return as_reranker(value)
        name = str(Path(value).resolve())  # the same name means another folder once the working directory has changed
        with self._lock:
            if self._kept is None or self._kept[0] != name:
                self._kept = None  # two models at once may be more than the memory holds
                self._kept = (name, as_reranker(value))
            return self._kept[1]

    def forget(self) -> None:
        """Let go of the model; a search that is under way finishes with it."""
        with self._lock:
            self._kept = None


def check_depth(depth: Any, k: int) -> int:
    """How many hits are reranked. Raises QueryError for what is no whole number, or less than ``k``."""
    if isinstance(depth, bool) or not isinstance(depth, int | np.integer):
        raise QueryError(f"depth is {depth!r}: it must be a whole number of at least k, which is {k}")
    if depth < k:
        raise QueryError(f"depth is {depth}, below k, which is {k}: rerank at least as many hits as are wanted")
    return int(depth)


def reranked(queries: Sequence[str], hits: Sequence[Sequence[Hit]], reranker: Reranker, k: int) -> list[list[Hit]]:
    """For each query the best ``k`` of its hits by the reranker's scores, which they then carry.

    Equal scores come in ascending order of ids. Raises ScoreError where the reranker gave something else than one finite
    score a hit, and what its ``score`` raises.
    """
    documents = [[hit.document for hit in found] for found in hits]
    if not any(documents):
        return [[] for _ in documents]
    scores = check_scores(reranker.score(queries, documents), queries, documents, reranker)
    return [_best(found.tolist(), of, k) for found, of in zip(scores, documents, strict=True)]


def _best(scores: list[float], documents: list[Document], k: int) -> list[Hit]:
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], documents[at].id))
    return [found_hit(float(scores[at]), documents[at]) for at in order[:k]]


def check_scores(
    scores: Sequence[Any], queries: Sequence[str], documents: Sequence[Sequence[Document]], reranker: object
) -> list[NDArray[Any]]:
    """The scores as arrays. Raises ScoreError, which names the query and the document, for what cannot be ordered."""
    name = _named(reranker)
    if len(scores) != len(queries):
        raise ScoreError(f"{name} gave scores for {len(scores)} queries, and was asked about {len(queries)}")
    checked: list[NDArray[Any]] = []
    for query, found, given in zip(queries, documents, scores, strict=True):
        values = np.asarray(given)
        if values.shape != (len(found),) or values.dtype.kind not in "fiu":
            raise ScoreError(
                f"{name} gave {values.dtype} {list(values.shape)} for query {query!r:.80}, where a number for each of "
                f"{len(found)} documents belongs"
            )
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            at = int(wrong[0])
            raise ScoreError(
                f"{name} scored document {found[at].id!r:.80} for query {query!r:.80} as {values[at]}, which no ranking "
                "can hold: the model is broken, or its numbers are too large for its dtype"
            )
        checked.append(values)
    return checked


def _checked(queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> tuple[list[str], list[list[Document]]]:
    texts, lists = check_texts(queries), [list(found) for found in documents]
    if len(texts) != len(lists):
        raise QueryError(f"got {len(texts)} queries and {len(lists)} sequences of documents: give one for each query")
    return texts, lists


def _load_cross_encoder(source: str | Path, device: str | None, revision: str | None) -> Any:
    from retrievers.encoders.checkpoints import locate
    from retrievers.encoders.model import load_as

    checkpoint = locate(source, revision=revision, owners=_OWNERS)
    place = checkpoint.location
    if checkpoint.kind == "backbone":
        raise EncoderError(f"{place} is a plain masked-language model: train it first, for it has no head that scores")
    if checkpoint.kind != "cross-encoder":
        mend = "MultiVectorReranker" if checkpoint.kind == "multi-vector" else "a cross-encoder or multi-vector model"
        raise EncoderError(f"{place} was saved as a {checkpoint.kind} encoder, not a cross-encoder: rerank with {mend}")
    return load_as("CrossEncoder", place, "a cross-encoder", device=device, revision=revision)


def _over_multi_vector(model: Any, device: str | None, batch_size: int, dtype: str | None) -> MultiVectorReranker:
    from retrievers.encoders.multi_vector import MultiVectorEncoder

    return MultiVectorReranker(MultiVectorEncoder(model, device=device, batch_size=batch_size, dtype=dtype))


def _named(value: object) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
