"""Training sets from the formats of others: BEIR folders, sentence-transformers columns, PyLate, FlagEmbedding, Tevatron.

Every function reads its input once (a BEIR corpus too), writes a new folder and returns the
:class:`~retrievers.training.sets.TrainingSet` in it; where anything fails, no folder is left. Files are UTF-8, and gzip
where their names end in ``.gz``. A line that is malformed raises TrainingDataError with file, line and mend; a file that
is not there SourceNotFoundError.

The functions share two options. ``teacher`` is the name under which scores that come with the data are stored; data
without scores stores none. ``lonely`` says what happens to queries that have no positive: ``"refuse"`` (the default)
raises TrainingDataError with their number and the first, ``"drop"`` leaves them out, so that ``len`` tells how many stayed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from retrievers.documents import Document
from retrievers.errors import SourceNotFoundError, TrainingDataError
from retrievers.lines import Source, StrPath, plain_or_gzipped
from retrievers.queries import read_queries
from retrievers.readers import read_beir, read_documents
from retrievers.records import listing
from retrievers.runs import Qrels, read_qrels
from retrievers.training.rows import id_of, required, rows_of, scores_of, text_of, texts_of
from retrievers.training.sets import TrainingSet
from retrievers.training.spool import Example, Known, Lonely, LonelyQueries, Passage, gather, one_error_type

TEACHER = "given"
"""The teacher of scores that came with the data."""

_NEGATIVE = re.compile(r"negative(?:_(\d+))?")
_SCORES = ("score", "scores")
_LABELS = ("label", "labels")


def from_beir(
    source: StrPath, folder: str | Path, split: str = "train", least_grade: int = 1, *, lonely: Lonely = "refuse"
) -> TrainingSet:
    """The training set of a BEIR folder: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, each also ``.gz``.

    Queries are those of the split, in the order of ``queries.jsonl``; positives their documents of ``least_grade`` or
    more; documents the whole corpus, from which negatives can then be mined. In memory are the judgements of the split.
    Raises TrainingDataError, also for a query or document of the qrels that the folder lacks; SourceNotFoundError,
    with the splits that there are, for another split.
    """
    place = Source.at(source)
    alone = LonelyQueries(lonely)
    with one_error_type():
        corpus = read_beir(source)
        judged = _file(place, f"qrels/{split}.tsv")
        qrels = read_qrels(judged)
        positives = {
            query: [document for document, grade in grades.items() if grade >= least_grade]
            for query, grades in qrels.items()
        }
        for query in [query for query, documents in positives.items() if not documents]:
            alone.add(f"{judged}, with grades below {least_grade}", query)
            del positives[query]
        alone.finish(len(positives))
        return TrainingSet.build(
            folder,
            (query for query in read_queries(_file(place, "queries.jsonl")) if query.id in positives),
            corpus,
            ((query, document) for query, documents in positives.items() for document in documents),
        )


def from_columns(
    rows: StrPath | Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    teacher: str = TEACHER,
    lonely: Lonely = "refuse",
) -> TrainingSet:
    """The training set of rows in sentence-transformers' columns: a JSONL file, a ``datasets.Dataset`` or any iterable.

    Columns are ``anchor`` or ``query``; ``positive``; and ``negative``, ``negative_1``, ``negative_2``, ...; each a
    text or null. Ids are hashes of the texts, so that equal texts are one, and rows of one query come together. Other
    columns are not read.

    ``score`` or ``scores`` holds, as the losses of sentence-transformers have it, a list of one score for the positive
    and each negative; a list of one margin (positive less negative) for each negative, or the margin itself where
    there is one; or one score where there is no negative. From a margin the positive gets 0 and the negative the
    margin's opposite, which leaves differences, and so losses, as they are; that has no answer where a query has
    margins to two positives, which is refused. So are columns ``label`` and ``labels``: whether they are scores, or
    say that a row is no positive, cannot be told.
    """
    return gather(_column_examples(rows), folder, teacher=teacher, lonely=lonely)


def from_pylate(
    queries: StrPath | Mapping[str, str],
    documents: StrPath | Iterable[Document],
    lists: StrPath | Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    qrels: StrPath | Qrels | None = None,
    least_grade: int = 1,
    teacher: str = TEACHER,
    lonely: Lonely = "refuse",
) -> TrainingSet:
    """The training set of PyLate's lists: rows with ``query_id``, ``document_ids`` and, optionally, ``scores``.

    ``queries`` is a file that :func:`~retrievers.queries.read_queries` knows, or a mapping of ids to texts, and
    is held in memory; ``documents`` a BEIR folder or file that :func:`~retrievers.readers.read_documents` knows, or
    Documents, and all of them are stored.

    The first id of a list is its positive, as PyLate's own data have it. With ``qrels`` the positives are the documents
    that they grade ``least_grade`` or more, in the list or not, and the others of the list are negatives; a list
    whose query they do not know then has none. Integers as ids become their digits.
    """
    with one_error_type():
        texts = dict(queries) if isinstance(queries, Mapping) else dict(read_queries(str(queries)))
        told = read_documents(documents) if isinstance(documents, str | os.PathLike) else documents
        grades = qrels if qrels is None or isinstance(qrels, Mapping) else read_qrels(os.fspath(qrels))
    examples = _pylate_examples(lists, texts, grades, least_grade)
    return gather(examples, folder, teacher=teacher, lonely=lonely, documents=told)


def from_flagembedding(
    path: StrPath | Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    teacher: str = TEACHER,
    lonely: Lonely = "refuse",
) -> TrainingSet:
    """The training set of FlagEmbedding's rows: ``query``, lists ``pos`` and ``neg``, lists ``pos_scores``, ``neg_scores``.

    All but the query and ``pos`` may be absent or null, and so may ``id``, that of the query. Other ids are hashes of
    the texts, so that equal texts are one.
    """
    return gather(_flag_examples(path), folder, teacher=teacher, lonely=lonely)


def from_tevatron(
    path: StrPath | Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    teacher: str = TEACHER,
    lonely: Lonely = "refuse",
) -> TrainingSet:
    """The training set of Tevatron's rows: ``query_id``, ``query``, ``positive_passages`` and ``negative_passages``.

    A passage has ``docid``, ``text``, optionally ``title``, which goes before the text, and ``score``. A ``docid`` that
    comes with two texts is an error. Integers as ids become their digits.
    """
    return gather(_tevatron_examples(path), folder, teacher=teacher, lonely=lonely)


def _column_examples(rows: StrPath | Iterable[Mapping[str, Any]]) -> Iterator[Example]:
    centres = Known()
    for place, row in rows_of(rows):
        for label in _LABELS:
            if label in row:
                raise TrainingDataError(
                    f"{place}: column {label!r} is not read: keep rows of positives and remove it, or name it 'score' "
                    "where it holds scores"
                )
        anchor = _only(row, ("anchor", "query"), place)
        if anchor is None:
            raise TrainingDataError(f"{place}: there is no column 'anchor' or 'query'; the row has: {listing(row)}")
        query = text_of(row, anchor, place)
        named = sorted((int(match[1] or 0), name) for name in row if (match := _NEGATIVE.fullmatch(name)))
        columns = ["positive", *(name for _, name in named)]
        texts = [text_of(row, name, place) if row.get(name) is not None else None for name in columns]
        column = _only(row, _SCORES, place)
        value = None if column is None else row[column]
        scores: list[float | None] = [None] * len(texts)
        if value is not None and column is not None:
            listed = value if isinstance(value, list | tuple) or np.ndim(value) else [value]
            scores = scores_of({column: listed}, column, None, place)
            if len(scores) == len(texts) - 1:
                scores = [0.0, *(None if margin is None else -margin for margin in scores)]
                if texts[0] is not None and centres.add(query, texts[0]) is None:
                    raise TrainingDataError(
                        f"{place}: the query came before with margins to another positive, and margins do not say how "
                        "the two compare: give a score for each text in place of margins"
                    )
            elif len(scores) != len(texts):
                raise TrainingDataError(
                    f"{place}: column {column!r} holds {len(scores)} scores for {len(texts)} texts: give one for each text, "
                    "the positive first, or one margin for each negative"
                )
        passages = [None if text is None else _hashed(text, score) for text, score in zip(texts, scores, strict=True)]
        yield Example(place, _hash_id(query), query, [p for p in passages[:1] if p], [p for p in passages[1:] if p])


def _pylate_examples(
    lists: StrPath | Iterable[Mapping[str, Any]], queries: Mapping[str, str], qrels: Qrels | None, least_grade: int
) -> Iterator[Example]:
    for place, row in rows_of(lists):
        id = id_of(row, "query_id", place)
        if id not in queries:
            raise TrainingDataError(
                f"{place}: query {id!r:.80} is not among the {len(queries):,} queries: give its text"
            )
        ids = required(row, "document_ids", place)
        if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
            raise TrainingDataError(f"{place}: field 'document_ids' must be a list of ids, got {ids!r:.80}")
        documents = [id_of({"document_ids": document}, "document_ids", place) for document in ids]
        scores = scores_of(row, "scores", len(documents), place)
        passages = [_passage(document, "", score) for document, score in zip(documents, scores, strict=True)]
        if qrels is None:
            yield Example(place, id, queries[id], passages[:1], passages[1:])
            continue
        good = {document for document, grade in qrels.get(id, {}).items() if grade >= least_grade}
        listed = [passage for passage in passages if passage.id in good]
        other = [Passage(document, "") for document in qrels.get(id, {}) if document in good.difference(documents)]
        yield Example(place, id, queries[id], listed + other, [p for p in passages if p.id not in good])


def _flag_examples(path: StrPath | Iterable[Mapping[str, Any]]) -> Iterator[Example]:
    for place, row in rows_of(path):
        query = text_of(row, "query", place)
        id = id_of(row, "id", place) if row.get("id") is not None else _hash_id(query)
        sides: list[list[Passage]] = []
        for name in ("pos", "neg"):
            texts = texts_of(row, name, place)
            scores = scores_of(row, f"{name}_scores", len(texts), place)
            sides.append([_hashed(text, score) for text, score in zip(texts, scores, strict=True)])
        yield Example(place, id, query, *sides)


def _tevatron_examples(path: StrPath | Iterable[Mapping[str, Any]]) -> Iterator[Example]:
    for place, row in rows_of(path):
        sides: list[list[Passage]] = []
        for name in ("positive_passages", "negative_passages"):
            value = row.get(name)
            passages = [] if value is None else value
            if not isinstance(passages, Sequence) or not all(isinstance(passage, Mapping) for passage in passages):
                raise TrainingDataError(
                    f"{place}: field {name!r} must be a list of objects with 'docid' and 'text', got {value!r:.80}"
                )
            sides.append([_tevatron_passage(passage, f"{place}, {name} {n}") for n, passage in enumerate(passages, 1)])
        yield Example(place, id_of(row, "query_id", place), text_of(row, "query", place), *sides)


def _tevatron_passage(row: Mapping[str, Any], place: str) -> Passage:
    id = id_of(row, "docid", place)
    title = text_of(row, "title", place, blank=True) if row.get("title") is not None else ""
    content = Document(id, text_of(row, "text", place, blank=True), title).content
    [score] = scores_of({"score": [row.get("score")]}, "score", 1, place)
    return _passage(id, content, score)


def _passage(id: str, text: str, score: float | None) -> Passage:
    return Passage(id, text) if score is None else Passage(id, text, score)


def _hashed(text: str, score: float | None) -> Passage:
    return _passage(_hash_id(text), text, score)


def _hash_id(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _only(row: Mapping[str, Any], names: Sequence[str], place: str) -> str | None:
    found = [name for name in names if name in row]
    if len(found) > 1:
        raise TrainingDataError(f"{place}: columns {' and '.join(map(repr, found))} mean the same: keep one of them")
    return found[0] if found else None


def _file(folder: Source, name: str) -> str:
    missing = folder.inside(name)
    found = plain_or_gzipped(missing.path)
    if found is not None:
        return found
    there = sorted(path.name for path in missing.path.parent.glob("*")) if missing.path.parent.is_dir() else []
    raise SourceNotFoundError(f"{missing.given}: there is no such file, also not with .gz; there is: {listing(there)}")
