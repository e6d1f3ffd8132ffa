"""Files of scores as teachers: TREC runs, and JSONL or TSV of query id, document id and score."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import SourceNotFoundError, TrainingDataError
from retrievers.lines import read_lines
from retrievers.training.sets import TrainingSet
from retrievers.training.spool import one_error_type

_CHUNK = 1 << 22
_PAIRS = 1 << 16  # lines whose ids are looked up at a time
_HEADERS = ({"query-id", "query_id", "qid"}, {"corpus-id", "document_id", "doc_id", "pid"})


class FileTeacher:
    """Scores that stand in a file, plain or gzipped; a candidate that is not in it has none (NaN).

    ``.jsonl`` holds objects with ``query_id``, ``document_id`` and ``score``; ``.tsv`` these three, with or without a
    header, so that ids may hold spaces; anything else is read as a TREC run. Lines of queries and documents that the
    training set does not have are passed over. The file is read once for a training set; 20 bytes a line are kept.

    Raises TrainingDataError, which names file and line, for a line that is not well formed, a score that is no finite
    number, and a pair with two scores; SourceNotFoundError where there is no file.
    """

    def __init__(self, path: str | Path, *, name: str) -> None:
        self.path, self.name = Path(path), name
        if not self.path.is_file():
            raise SourceNotFoundError(f"{self.path}: there is no such file of scores (looked in {self.path.parent})")
        self._read: _Pairs | None = None
        self._read_for: TrainingSet | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of the file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
        return digest.hexdigest()

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[NDArray[np.float32]]:
        """See :meth:`retrievers.training.teachers.Teacher.score`."""
        if self._read is None or self._read_for is not training_set:
            with one_error_type():
                self._read, self._read_for = _Pairs(self.path, training_set), training_set
        return [self._read.of(row, training_set.candidates.of(row)) for row in query_rows]


class _Pairs:
    """The scores of a file, by query row and document row."""

    def __init__(self, path: Path, training_set: TrainingSet) -> None:
        queries, documents, scores = array("q"), array("q"), array("f")
        lines = _lines(path)
        while block := list(islice(lines, _PAIRS)):
            query_rows = training_set.queries.rows([query for query, _, _ in block])
            document_rows = training_set.documents.rows([document for _, document, _ in block])
            known = (query_rows >= 0) & (document_rows >= 0)
            queries.frombytes(query_rows[known].tobytes())
            documents.frombytes(document_rows[known].tobytes())
            scores.frombytes(np.array([score for _, _, score in block], np.float32)[known].tobytes())
        if not len(scores):
            raise TrainingDataError(
                f"{path} has no score for a query and a document of {training_set.path}: its ids are others"
            )
        rows, columns = np.frombuffer(queries, np.int64), np.frombuffer(documents, np.int64)
        order = np.lexsort((columns, rows))
        self._queries, self._documents = rows[order], columns[order]
        self._scores = np.frombuffer(scores, np.float32)[order]
        same = (self._queries[1:] == self._queries[:-1]) & (self._documents[1:] == self._documents[:-1])
        twice = np.flatnonzero(same & (self._scores[1:] != self._scores[:-1]))
        if len(twice):
            at = int(twice[0])
            raise TrainingDataError(
                f"{path} has two scores, {self._scores[at]:g} and {self._scores[at + 1]:g}, for query "
                f"{training_set.queries.id(int(self._queries[at]))!r} and document "
                f"{training_set.documents.id(int(self._documents[at]))!r}: keep one of them"
            )

    def of(self, query: int, documents: NDArray[np.int64]) -> NDArray[np.float32]:
        """The scores of some documents for a query."""
        first, last = np.searchsorted(self._queries, [query, query + 1])
        known, scores = self._documents[first:last], self._scores[first:last]
        if not len(known):
            return np.full(len(documents), np.nan, np.float32)
        places = np.minimum(np.searchsorted(known, documents), len(known) - 1)
        return np.where(known[places] == documents, scores[places], np.float32(np.nan)).astype(np.float32)


def _lines(path: Path) -> Iterator[tuple[str, str, float]]:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    for number, (place, line) in enumerate(read_lines(str(path))):
        if suffix == ".jsonl":
            parts = _object(place, line)
        elif suffix == ".tsv":
            parts = line.split("\t")
            if number == 0 and len(parts) == 3 and parts[0] in _HEADERS[0] and parts[1] in _HEADERS[1]:
                continue
        else:
            columns = line.split()
            parts = [columns[0], columns[2], columns[4]] if len(columns) == 6 else []
        if len(parts) != 3:
            what = "query id, document id, score" if suffix == ".tsv" else "query id, Q0, document id, rank, score, tag"
            raise TrainingDataError(f"{place}: expected {what}; got {line!r:.80}")
        query, document, text = parts
        yield query, document, _number(place, text)


def _object(place: str, line: str) -> list[Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    wanted = ("query_id", "document_id", "score")
    if not isinstance(value, dict) or any(key not in value for key in wanted):
        raise TrainingDataError(f"{place}: expected an object with {', '.join(wanted)}; got {line!r:.80}")
    for key in wanted[:2]:
        if not isinstance(value[key], str):
            raise TrainingDataError(f"{place}: {key} is {value[key]!r:.80}, and ids are strings")
    return [value[key] for key in wanted]


def _number(place: str, text: Any) -> float:
    try:
        with np.errstate(over="ignore"):
            number = float(np.float32(text)) if type(text) in (str, int, float) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise TrainingDataError(f"{place}: the score {text!r:.80} is no finite number that 32 bits hold")
    return number
