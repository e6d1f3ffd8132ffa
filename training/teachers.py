"""Teachers: whatever scores documents for queries, from BM25 and encoders to cross-encoders and files of scores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.documents import Document
from retrievers.encoders import Encoder, check_encoder, load_encoder
from retrievers.errors import EncoderError, QueryError, TrainingDataError, VectorError
from retrievers.rerankers import Reranker, as_reranker, check_scores
from retrievers.training.kept_vectors import KeptVectors
from retrievers.training.score_files import FileTeacher
from retrievers.training.sets import TrainingSet
from retrievers.training.vector_scores import Collection, paired, product
from retrievers.vectors import Vectors, check, dimension

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]

_DOCUMENTS = 2048  # documents that are encoded at a time, and whose vectors are held
_SCORE_FILES = (".jsonl", ".tsv", ".run", ".trec", ".txt")


@runtime_checkable
class Teacher(Protocol):
    """What scores the candidate lists of a training set."""

    @property
    def name(self) -> str:
        """Under which the training set keeps the scores: letters, digits, ``.``, ``_`` and ``-``."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything but the texts that the scores depend on."""
        ...

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Scores]:
        """For each query a float32 array parallel to its candidate list; NaN for a candidate without a score."""
        ...


@runtime_checkable
class LiveTeacher(Teacher, Protocol):
    """A teacher that scores any texts, and so the batches of training, and the finds of mining."""

    def lists(self, query_texts: Sequence[str], document_texts: Sequence[Sequence[str]]) -> list[Scores]:
        """For each query the scores of its own documents, float32, in their order."""
        ...

    def scores(self, query_texts: Sequence[str], document_texts: Sequence[str]) -> Scores:
        """Every query with every document, float32 ``[B, n]``: what the second half of the dual-teacher loss learns
        from (Hofstätter et al., 2021, "Efficiently Teaching an Effective Dense Retriever with Balanced Topic Aware
        Sampling", section 3.3)."""
        ...


class EncoderTeacher:
    """Inner products of the vectors of a dense, sparse or lexical encoder; higher is better.

    A lexical encoder scores by BM25, whose weights belong to a collection: to all documents of ``training_set``, which
    are read once when the first score is asked for. Scores differ from those of an index by rounding alone (and by what
    an approximate index leaves out). Dense and sparse vectors of a training set's texts are kept in its folder
    (:class:`~retrievers.training.kept_vectors.KeptVectors`), so that each is encoded once; other documents once a call, the
    longest first, 2,048 at a time.

    Raises EncoderError for a multi-vector encoder, which :class:`RerankerTeacher` is for; TrainingDataError where a
    lexical encoder has no training set.
    """

    def __init__(self, encoder: Encoder, *, name: str, training_set: TrainingSet | None = None) -> None:
        self.encoder, self.name = check_encoder(encoder), name
        if encoder.kind == "multi-vector":
            raise EncoderError("MaxSim of a multi-vector encoder is the work of RerankerTeacher: use load_teacher")
        self._bm25 = getattr(encoder, "bm25", None) or Bm25()
        self._training_set = training_set
        self._collection: Collection | None = None
        self._kept: tuple[KeptVectors, KeptVectors] | None = None

    @property
    def fingerprint(self) -> str:
        """Of the encoder and, if lexical, of BM25's parameters."""
        parts = [self.encoder.kind, self.encoder.fingerprint]
        if self.encoder.kind == "lexical":
            parts.append(f"{self._bm25.k1} {self._bm25.b}")
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Scores]:
        """See :meth:`Teacher.score`."""
        self._use(training_set)
        if self.encoder.kind == "lexical":
            return self.lists(*_candidates(training_set, query_rows))
        lists = [training_set.candidates.of(row) for row in query_rows]
        if not sum(map(len, lists)):
            return [np.zeros(0, np.float32) for _ in lists]
        queries, documents = self._vectors(training_set)
        asked = queries.of(query_rows)
        distinct, places = np.unique(np.concatenate(lists), return_inverse=True)
        return _each(
            lists, places, len(distinct), asked, lambda block: self._alike(asked, documents.of(distinct[block]))
        )

    def rows(self, training_set: TrainingSet, query_rows: Rows, document_rows: Rows) -> Scores:
        """Every query with every document of a training set, by rows, float32 ``[B, n]``: see :meth:`LiveTeacher.scores`."""
        self._use(training_set)
        if self.encoder.kind == "lexical":
            return self.scores(training_set.queries.texts(query_rows), training_set.documents.texts(document_rows))
        if not len(query_rows) or not len(document_rows):
            return np.zeros((len(query_rows), len(document_rows)), np.float32)
        queries, documents = self._vectors(training_set)
        asked = queries.of(query_rows)
        return product(asked, self._alike(asked, documents.of(document_rows)))

    def lists(self, query_texts: Sequence[str], document_texts: Sequence[Sequence[str]]) -> list[Scores]:
        """See :meth:`LiveTeacher.lists`."""
        if len(query_texts) != len(document_texts):
            raise QueryError(
                f"got {len(query_texts)} queries and {len(document_texts)} sequences of documents: give one for each query"
            )
        if not any(document_texts):
            return [np.zeros(0, np.float32) for _ in document_texts]
        asked = self._queries(query_texts)
        every = [text for texts in document_texts for text in texts]
        distinct = sorted(set(every), key=lambda text: (-len(text), text))
        row = {text: at for at, text in enumerate(distinct)}
        places = np.array([row[text] for text in every], np.int64)
        return _each(
            document_texts, places, len(distinct), asked, lambda block: self._documents(distinct[block], asked)
        )

    def scores(self, query_texts: Sequence[str], document_texts: Sequence[str]) -> Scores:
        """See :meth:`LiveTeacher.scores`."""
        if not query_texts or not document_texts:
            return np.zeros((len(query_texts), len(document_texts)), np.float32)
        asked = self._queries(query_texts)
        told = self._documents(document_texts, asked)
        return product(asked, told)

    def _queries(self, texts: Sequence[str]) -> Vectors:
        vectors = self.encoder.encode_query(list(texts))
        check(vectors, self.encoder.kind, len(texts))
        return self._weights().weigh_queries(vectors) if self.encoder.kind == "lexical" else vectors

    def _documents(self, texts: Sequence[str], asked: Vectors) -> Vectors:
        vectors = self.encoder.encode_document(list(texts))
        check(vectors, self.encoder.kind, len(texts))
        self._alike(asked, vectors)
        return self._weights().weigh_documents(vectors) if self.encoder.kind == "lexical" else vectors

    def _use(self, training_set: TrainingSet) -> None:
        if self._training_set is not training_set:
            self._training_set, self._collection, self._kept = training_set, None, None

    def _vectors(self, training_set: TrainingSet) -> tuple[KeptVectors, KeptVectors]:
        if self._kept is None:
            queries = KeptVectors(training_set, self.encoder, "query")
            self._kept = queries, KeptVectors(training_set, self.encoder, "document")
        return self._kept

    def _alike(self, queries: Vectors, documents: Vectors) -> Vectors:
        # Kept sparse vectors have as many columns as they need.
        if self.encoder.kind == "dense" and dimension(documents) != dimension(queries):
            raise VectorError(
                f"{self.name} gave queries of {dimension(queries)} dimensions and documents of {dimension(documents)}: they "
                "cannot be compared"
            )
        return documents

    def _weights(self) -> Collection:
        if self._training_set is None:
            raise TrainingDataError(
                f"{self.name} weighs terms by how rare they are in a collection: pass training_set to say in which"
            )
        if self._collection is None:
            self._collection = Collection(self.encoder, self._bm25, self._training_set)
        return self._collection


class RerankerTeacher:
    """Scores of a :class:`retrievers.Reranker`: a cross-encoder, or MaxSim of a multi-vector encoder.

    ``fingerprint`` is by default that of the model or encoder inside, or of the reranker itself. Raises EncoderError
    where none of them has one.
    """

    def __init__(self, reranker: Reranker, *, name: str, fingerprint: str | None = None) -> None:
        self.reranker, self.name = reranker, name
        found = fingerprint or _fingerprint(reranker)
        if found is None:
            raise EncoderError(
                f"{type(reranker).__name__} has no fingerprint, by which its scores are kept: pass fingerprint=, a text "
                "that changes when its scores do"
            )
        self.fingerprint = found

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Scores]:
        """See :meth:`Teacher.score`."""
        return self.lists(*_candidates(training_set, query_rows))

    def lists(self, query_texts: Sequence[str], document_texts: Sequence[Sequence[str]]) -> list[Scores]:
        """See :meth:`LiveTeacher.lists`. Raises ScoreError for scores that are not finite."""
        if not any(document_texts):
            return [np.zeros(0, np.float32) for _ in document_texts]
        documents = [[Document(f"{place}", text) for place, text in enumerate(texts)] for texts in document_texts]
        found = self.reranker.score(list(query_texts), documents)
        return [values.astype(np.float32) for values in check_scores(found, query_texts, documents, self.reranker)]

    def scores(self, query_texts: Sequence[str], document_texts: Sequence[str]) -> Scores:
        """See :meth:`LiveTeacher.scores`."""
        rows = self.lists(query_texts, [document_texts] * len(query_texts))
        return np.array(rows, np.float32).reshape(len(query_texts), len(document_texts))


def load_teacher(
    source: str | Path | Encoder | Reranker,
    *,
    name: str | None = None,
    training_set: TrainingSet | None = None,
    device: str | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
) -> Teacher:
    """The teacher that a user names: ``bm25`` (with options), a folder or hub name of any model, a file of scores.

    Encoders and rerankers may be given as objects. ``name`` is by default made of the source's. A lexical teacher that is
    used on batches needs ``training_set``; :meth:`Teacher.score` is given one anyway. ``device``, ``batch_size`` and
    ``dtype`` are for models that are loaded here.

    Raises ModelNotFoundError and EncoderError for what is no model, SourceNotFoundError for a file of scores that is not
    there; what is in one is read, and refused, when the first score is asked for.
    """
    settings: dict[str, Any] = {"device": device, "batch_size": batch_size, "dtype": dtype}
    found: Any = source
    if isinstance(source, str | Path):
        name = name or teacher_name(str(source))
        # What is named as a file of scores is no model, though it be missing.
        if Path(source).is_file() or (not Path(source).exists() and _ending(str(source)) in _SCORE_FILES):
            return FileTeacher(source, name=name)
        found = _loaded(source, settings)
    name = name or teacher_name(type(found).__name__)
    kind = getattr(found, "kind", None)
    if kind is not None and kind != "multi-vector":
        return EncoderTeacher(check_encoder(found), name=name, training_set=training_set)
    return RerankerTeacher(as_reranker(found, **settings), name=name)


def live_teacher(
    source: str | Path | Encoder | Reranker,
    *,
    name: str | None = None,
    training_set: TrainingSet | None = None,
    device: str | None = None,
    batch_size: int = 32,
    dtype: str | None = None,
) -> LiveTeacher:
    """As :func:`load_teacher`, for a teacher that scores new texts. Raises TrainingDataError for a file of scores."""
    found = load_teacher(
        source, name=name, training_set=training_set, device=device, batch_size=batch_size, dtype=dtype
    )
    if not isinstance(found, LiveTeacher):
        raise TrainingDataError(
            f"{source} holds scores of what was scored before, and here a model is needed: name one"
        )
    return found


def batch_scores(teacher: LiveTeacher, training_set: TrainingSet, query_rows: Rows, document_rows: Rows) -> Scores:
    """Every query with every document of a training set, by rows, float32 ``[B, n]``; encoders read what they have kept."""
    if isinstance(teacher, EncoderTeacher):
        return teacher.rows(training_set, query_rows, document_rows)
    texts = training_set.queries.texts(query_rows), training_set.documents.texts(document_rows)
    return np.asarray(teacher.scores(*texts), np.float32)


def teacher_name(source: str) -> str:
    """A name for the scores of a teacher: the last part of a path or hub name, with what names cannot hold as ``-``."""
    last = Path(source.strip()).name or source
    for ending in (".gz", *_SCORE_FILES):
        last = last.removesuffix(ending)
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:100] or "teacher"


def _ending(source: str) -> str:
    return Path(source.lower().removesuffix(".gz")).suffix


def _loaded(source: str | Path, settings: dict[str, Any]) -> Any:
    if isinstance(source, str) and re.match(r"\s*bm25\s*(\(|\Z)", source) and not Path(source).exists():
        return load_encoder(source)
    from retrievers.encoders.checkpoints import locate

    checkpoint = locate(source, owners=("sentence-transformers", "cross-encoder"))
    if checkpoint.kind == "cross-encoder":
        return as_reranker(checkpoint.location, **settings)
    return load_encoder(checkpoint.location, **settings)


def _each(
    lists: Sequence[Sized],
    places: Rows,
    distinct: int,
    asked: Vectors,
    told: Callable[[slice], Vectors],
) -> list[Scores]:
    """The scores of each query's list; ``places`` tells, list after list, which of the ``distinct`` documents an entry is.

    ``told`` gives the vectors of some of them, which are in memory 2,048 at a time.
    """
    lengths = [len(one) for one in lists]
    owners = np.repeat(np.arange(len(lists)), lengths)
    given = np.zeros(len(places), np.float32)
    for first in range(0, distinct, _DOCUMENTS):
        here = np.flatnonzero((places >= first) & (places < first + _DOCUMENTS))
        given[here] = paired(asked, told(slice(first, first + _DOCUMENTS)), owners[here], places[here] - first)
    return np.split(given, np.cumsum(lengths)[:-1])


def _candidates(training_set: TrainingSet, query_rows: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    documents = [training_set.documents.texts(training_set.candidates.of(row)) for row in query_rows]
    return training_set.queries.texts(query_rows), documents


def _fingerprint(reranker: Any) -> str | None:
    own = getattr(reranker, "fingerprint", None) or getattr(getattr(reranker, "encoder", None), "fingerprint", None)
    if isinstance(own, str):
        return own
    if not hasattr(getattr(reranker, "model", None), "state_dict"):
        return None
    from retrievers.encoders.fingerprint import fingerprint

    return fingerprint(_CrossEncoder(reranker.model), "cross-encoder")


class _CrossEncoder:
    """A cross-encoder with what the fingerprint of an encoder asks for: its activation stands for the similarity."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.similarity_fn_name = str(getattr(model, "activation_fn", None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
