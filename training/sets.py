"""Training sets by id, on disk: queries, documents, which answer which, and candidates with the scores of teachers.

No text stands twice, however many pairs it is in, and everything is memory-mapped: a process that trains holds what its
batches touch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.errors import IndexDamagedError, TrainingDataError
from retrievers.indexes.arrays import load_array
from retrievers.indexes.files import replace_file, sync_folder
from retrievers.training.texts import Texts

FORMAT = 1
_NAME = "training-set.json"
_PAIRS = 1 << 16  # pairs whose ids are looked up at a time
_TEACHER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # nothing outside the folder


@dataclass(frozen=True)
class Lists:
    """Document rows for each query: those of query ``i`` are ``rows[offsets[i]:offsets[i + 1]]``, both int64."""

    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, query: int) -> NDArray[np.int64]:
        """The document rows of a query."""
        return self.rows[self.span(query)]

    def span(self, query: int) -> slice:
        """Where a query's entries stand, in ``rows`` and in the scores of a teacher."""
        if not 0 <= query < len(self):
            raise IndexError(f"query {query} of {len(self)}")
        return slice(int(self.offsets[query]), int(self.offsets[query + 1]))

    def lengths(self) -> NDArray[np.int64]:
        """How many documents each query has."""
        return np.diff(self.offsets)


class TrainingSet:
    """A folder with queries, documents, positives, candidate lists and scores.

    Queries and documents are known by rows; ``queries.rows(ids)`` and ``documents.rows(ids)`` find them. The score of a
    candidate that a teacher has not scored is NaN. Files are written whole and then named in ``training-set.json``, which
    is replaced in one step: a process that is killed leaves what was there before.
    """

    def __init__(self, folder: Path, queries: Texts, documents: Texts) -> None:
        self.path = folder
        self.queries = queries
        self.documents = documents
        self._read()

    @classmethod
    def build(
        cls,
        folder: str | Path,
        queries: Iterable[tuple[str, str]],
        documents: Iterable[Document] | Iterable[tuple[str, str]],
        positives: Iterable[tuple[str, str]],
        candidates: Iterable[tuple[str, str]] = (),
    ) -> Self:
        """Store a training set in a new folder.

        ``queries`` are pairs of id and text, ``documents`` Documents or such pairs (a title goes before the text, as
        encoders see it), ``positives`` and ``candidates`` pairs of query id and document id. Each is read once, in this
        order. A pair that comes twice counts once.

        Raises TrainingDataError for an id that comes twice, a pair that names an unknown one, a query without a positive,
        or where the folder exists already.
        """
        place = Path(folder)
        if place.exists():
            raise TrainingDataError(f"{place} exists already: remove it, or give another folder")
        temporary = place.with_name(place.name + ".building")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            asked = Texts.write(temporary / "queries", queries, "query")
            told = Texts.write(temporary / "documents", (_entry(document) for document in documents), "document")
            paired = _rows(positives, asked, told, "positives")  # first: it names what is missing
            if not len(asked) or not len(told):
                raise TrainingDataError(
                    f"there are {len(asked)} queries and {len(told)} documents: give one of each or more"
                )
            good = _lists(paired, len(asked))
            lonely = np.flatnonzero(np.diff(good.offsets) == 0)
            if len(lonely):
                raise TrainingDataError(
                    f"{len(lonely):,} of {len(asked):,} queries have no positive, the first is {asked.id(int(lonely[0]))!r}: "
                    "leave them out, or give one for each"
                )
            _save(temporary, "positives-0", good)
            _save(temporary, "candidates-0", _lists(_rows(candidates, asked, told, "candidates"), len(asked)))
            _commit(
                temporary, {"format": FORMAT, "positives": "positives-0", "candidates": "candidates-0", "scores": {}}
            )
            temporary.replace(place)
            sync_folder(place.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls.open(place)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a folder that :meth:`build` wrote. Raises TrainingDataError where it is none, or damaged."""
        place = Path(folder)
        if not (place / _NAME).is_file():
            raise TrainingDataError(f"{place} holds no training set: build one with TrainingSet.build")
        try:
            return cls(place, Texts(place / "queries"), Texts(place / "documents"))
        except IndexDamagedError as error:
            raise TrainingDataError(str(error)) from error

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.queries)

    def __repr__(self) -> str:
        return (
            f"TrainingSet({str(self.path)!r}: {len(self.queries):,} queries, {len(self.documents):,} documents, "
            f"{len(self.positives.rows):,} positives, {len(self.candidates.rows):,} candidates, teachers {self.teachers})"
        )

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teachers whose scores are here."""
        return tuple(self._scores)

    def scores(self, teacher: str) -> NDArray[np.float32]:
        """The scores of all candidates, float32 ``[candidates]``, parallel to ``candidates.rows``; NaN for none."""
        if teacher not in self._scores:
            raise TrainingDataError(
                f"{self.path} has no scores of {teacher!r}: it has those of {', '.join(self._scores) or 'no teacher'}"
            )
        return self._scores[teacher]

    def add_scores(self, teacher: str, scores: NDArray[Any]) -> None:
        """Store the scores of a teacher for all candidates, in place of its earlier ones.

        Raises TrainingDataError for a name other than letters, digits, ``.``, ``_`` and ``-``, for scores that are
        not one a candidate, and for infinite ones.
        """
        check_teacher_name(teacher)
        values = np.asarray(scores, np.float32)
        if values.shape != self.candidates.rows.shape:
            raise TrainingDataError(
                f"{teacher} gave scores of shape {list(values.shape)} for {len(self.candidates.rows)} candidates"
            )
        if np.isinf(values).any():
            raise TrainingDataError(
                f"{teacher} gave {int(np.isinf(values).sum()):,} infinite scores: NaN stands for none"
            )
        manifest = self._manifest()
        name = self._fresh(f"scores-{teacher}", ".npy")
        np.save(self.path / f"{name}.npy", values)
        manifest["scores"][teacher] = name
        self._replace(manifest)

    def set_candidates(
        self, queries: NDArray[np.int64], documents: NDArray[np.int64], *, replace: bool = False
    ) -> None:
        """Store candidate lists, pairs of query row and document row, in place of the earlier ones.

        Raises TrainingDataError for rows that are not there, and where teachers have scored the earlier lists: their
        scores go with these, so that ``replace`` has to say so.
        """
        if len(queries) != len(documents):
            raise TrainingDataError(f"{len(queries)} query rows and {len(documents)} document rows are no pairs")
        if self.teachers and not replace:
            raise TrainingDataError(
                f"{self.path} has scores of {', '.join(self.teachers)} for its candidates, which new candidates would "
                "throw away: pass replace=True"
            )
        for rows, texts, what in ((queries, self.queries, "query"), (documents, self.documents, "document")):
            if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(texts)):
                raise TrainingDataError(f"{what} rows from {rows.min()} to {rows.max()} are not among {len(texts)}")
        manifest = self._manifest()
        name = self._fresh("candidates", "-rows.npy")
        _save(
            self.path, name, _lists((np.asarray(queries, np.int64), np.asarray(documents, np.int64)), len(self.queries))
        )
        self._replace({**manifest, "candidates": name, "scores": {}})

    def _manifest(self) -> dict[str, Any]:
        place = self.path / _NAME
        try:
            manifest: Any = json.loads(place.read_bytes())
        except (ValueError, RecursionError) as error:
            raise TrainingDataError(f"{place} is damaged ({error}): build the set again") from error
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise TrainingDataError(f"{place} is of another version of the library: build the set again")
        scores = manifest.get("scores")
        names = [manifest.get("positives"), manifest.get("candidates")]
        names += scores.values() if isinstance(scores, dict) else [None]
        if not all(isinstance(name, str) and _FILE.fullmatch(name) for name in names):
            raise TrainingDataError(f"{place} names no files of the set: build the set again")
        return manifest

    def _read(self) -> None:
        manifest = self._manifest()
        self.positives = self._load(manifest["positives"])
        self.candidates = self._load(manifest["candidates"])
        shape = self.candidates.rows.shape
        self._scores: dict[str, NDArray[np.float32]] = {
            teacher: load_array(self.path / f"{name}.npy", np.float32, shape)
            for teacher, name in sorted(manifest["scores"].items())
        }

    def _load(self, name: str) -> Lists:
        offsets = load_array(self.path / f"{name}-offsets.npy", np.int64, (len(self.queries) + 1,))
        rows = load_array(self.path / f"{name}-rows.npy", np.int64, (None,))
        if offsets[0] != 0 or offsets[-1] != len(rows) or np.any(offsets[1:] < offsets[:-1]):
            raise TrainingDataError(f"{self.path / f'{name}-offsets.npy'} does not fit its rows: build the set again")
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(self.documents)):
            raise TrainingDataError(
                f"{self.path / f'{name}-rows.npy'} names documents that are not there: build the set again"
            )
        return Lists(offsets, rows)

    def _fresh(self, stem: str, suffix: str) -> str:
        number = 0
        while (self.path / f"{stem}-{number}{suffix}").exists():
            number += 1
        return f"{stem}-{number}"

    def _replace(self, manifest: dict[str, Any]) -> None:
        _commit(self.path, manifest)
        self._read()
        named = {*manifest["scores"].values(), manifest["candidates"], manifest["positives"]}
        for path in self.path.glob("*.npy"):
            if path.name.removesuffix("-rows.npy").removesuffix("-offsets.npy").removesuffix(".npy") not in named:
                path.unlink()


def check_teacher_name(name: str) -> None:
    """Raises TrainingDataError for what scores cannot be stored under."""
    if not _TEACHER.fullmatch(name):
        raise TrainingDataError(f"{name!r} is no name of a teacher: use letters, digits, '.', '_' and '-'")


def _commit(folder: Path, manifest: dict[str, Any]) -> None:
    # Large files first, so that what the manifest names is on the disk.
    for place in (folder, folder / "queries", folder / "documents"):  # not what scoring and mining keep for themselves
        for path in place.iterdir():
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
    replace_file(folder / _NAME, (json.dumps(manifest, indent=1) + "\n").encode())


def _entry(document: Document | tuple[str, str]) -> tuple[str, str]:
    return (document.id, document.content) if isinstance(document, Document) else document


def _rows(
    pairs: Iterable[tuple[str, str]], queries: Texts, documents: Texts, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    left, right = array("q"), array("q")
    source: Iterator[tuple[str, str]] = iter(pairs)
    while block := list(islice(source, _PAIRS)):
        sides: tuple[Sequence[str], Sequence[str]] = tuple(zip(*block, strict=True))  # type: ignore[assignment]
        for ids, texts, rows, side in ((sides[0], queries, left, "query"), (sides[1], documents, right, "document")):
            found = texts.rows(ids)
            missing = np.flatnonzero(found < 0)
            if len(missing):
                at = int(missing[0])
                raise TrainingDataError(
                    f"pair {len(rows) + at + 1} of the {what}, {block[at]!r:.200}, names a {side} that is not there: give "
                    f"every {side} that pairs name"
                )
            rows.frombytes(found.tobytes())
    return np.frombuffer(left, np.int64), np.frombuffer(right, np.int64)


def _lists(pairs: tuple[NDArray[np.int64], NDArray[np.int64]], count: int) -> Lists:
    queries, documents = pairs
    order = np.argsort(queries, kind="stable")
    queries, documents = queries[order], documents[order]
    # Of equal pairs the first stays where it is: lists keep the order in which they came.
    by_pair = np.lexsort((documents, queries))
    same = (queries[by_pair][1:] == queries[by_pair][:-1]) & (documents[by_pair][1:] == documents[by_pair][:-1])
    kept = np.ones(len(queries), bool)
    kept[by_pair[1:][same]] = False
    queries, documents = queries[kept], documents[kept]
    return Lists(np.searchsorted(queries, np.arange(count + 1)).astype(np.int64), documents)


def _save(folder: Path, name: str, lists: Lists) -> None:
    np.save(folder / f"{name}-offsets.npy", lists.offsets)
    np.save(folder / f"{name}-rows.npy", lists.rows)
