"""Training sets of several sources: joined into one, and told apart again by the names before their ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError
from retrievers.training.sets import Lists, TrainingSet
from retrievers.training.spool import work_folder
from retrievers.training.texts import Texts

SEPARATOR = "/"
"""What stands between the name of a source and an id of it."""


@dataclass(frozen=True, eq=False)
class Sources:
    """``names`` of sources, and which of them each query is from, int64 ``[queries]``."""

    names: tuple[str, ...]
    numbers: NDArray[np.int64]


def join(sets: Mapping[str, TrainingSet], folder: str | Path) -> TrainingSet:
    """One training set of several, in a new folder; ``sets`` tells each by a name.

    Ids of queries and documents become ``name/id``, so that equal ids stay apart, and :func:`sources_of` finds the
    names again. A teacher that has scored some of the sets has no scores (NaN) for the candidates of the others.

    Raises TrainingDataError for a name that is empty or holds a slash, no sets at all, and a folder that exists already.
    """
    if not sets:
        raise TrainingDataError("there is nothing to join: give one training set or more")
    for name in sets:
        if not name or SEPARATOR in name:
            raise TrainingDataError(f"{name!r} is no name of a source: it is not empty, and holds no {SEPARATOR!r}")
    with work_folder(folder) as work:
        built = TrainingSet.build(
            work / "set",
            (entry for name, one in sets.items() for entry in _entries(name, one.queries)),
            (entry for name, one in sets.items() for entry in _entries(name, one.documents)),
            (pair for name, one in sets.items() for pair in _pairs(name, one, one.positives)),
            (pair for name, one in sets.items() for pair in _pairs(name, one, one.candidates)),
        )
        # Queries and their lists keep their order, and so the scores of all are those of each, one after the other.
        for teacher in dict.fromkeys(teacher for one in sets.values() for teacher in one.teachers):
            built.add_scores(teacher, np.concatenate([_scores(one, teacher) for one in sets.values()]))
        del built
        (work / "set").replace(folder)
    return TrainingSet.open(folder)


def sources_of(training_set: TrainingSet) -> Sources:
    """The source of each query: the part of its id before the first slash, as :func:`join` has written it.

    Names are numbered as they first come. Raises TrainingDataError where an id has no slash.
    """
    numbers: dict[str, int] = {}
    found = np.empty(len(training_set), np.int64)
    for row in range(len(training_set)):
        id = training_set.queries.id(row)
        name, slash, _ = id.partition(SEPARATOR)
        if not slash:
            raise TrainingDataError(
                f"query {id!r:.80} of {training_set.path} has no source, which stands before a slash in its id: join the sets "
                "of several sources with `retrievers train set ONE ANOTHER ... -o SET`"
            )
        found[row] = numbers.setdefault(name, len(numbers))
    return Sources(tuple(numbers), found)


def source_name(path: str | Path) -> str:
    """A name for what is read from a folder or file: the last part of its path, without ``.jsonl`` and ``.gz``."""
    return Path(path).resolve().name.removesuffix(".gz").removesuffix(".jsonl")


def _entries(name: str, texts: Texts) -> Iterator[tuple[str, str]]:
    return ((f"{name}{SEPARATOR}{texts.id(row)}", texts.text(row)) for row in range(len(texts)))


def _pairs(name: str, training_set: TrainingSet, lists: Lists) -> Iterator[tuple[str, str]]:
    for query in range(len(training_set)):
        asked = f"{name}{SEPARATOR}{training_set.queries.id(query)}"
        for document in training_set.documents.ids(lists.of(query)):
            yield asked, f"{name}{SEPARATOR}{document}"


def _scores(training_set: TrainingSet, teacher: str) -> NDArray[np.float32]:
    if teacher in training_set.teachers:
        return training_set.scores(teacher)
    return np.full(len(training_set.candidates.rows), np.nan, np.float32)
