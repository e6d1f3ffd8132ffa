"""Examples (a query, its positives, its negatives, their scores) of any format, gathered into a training set.

Examples come once, one after the other. What is in them goes to files beside the set, so that memory holds 24 to 48
bytes for each text that differs and none of the texts.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.errors import DocumentError, QrelsError, QueryError, TrainingDataError
from retrievers.readers import Hashes
from retrievers.training.sets import TrainingSet

Lonely = Literal["refuse", "drop"]
"""What happens to queries without a positive: ``"refuse"`` raises, with their number; ``"drop"`` leaves them out."""

_LINES = 1 << 12  # examples whose scores are placed at a time
_hash = hash


class Passage(NamedTuple):
    """A document of an example; ``score`` is NaN where the data has none."""

    id: str
    text: str
    score: float = math.nan


class Example(NamedTuple):
    """A query with its documents, and the place it was read from."""

    place: str
    id: str
    text: str
    positives: list[Passage]
    negatives: list[Passage]


class Known:
    """Ids that came, each with what it stands for: at most 48 bytes an id."""

    def __init__(self) -> None:
        self._ids = Hashes()
        self._entries = Hashes()

    def add(self, id: str, content: str) -> bool | None:
        """True for an id that is new, False where it came with this content, None where it came with another."""
        if not self._entries.add(_hash((id, content))):
            return None if self._ids.add(_hash(id)) else True
        return False


class LonelyQueries:
    """Counts queries that have no positive, and refuses them at the end unless they are to be dropped."""

    def __init__(self, lonely: Lonely) -> None:
        if lonely not in ("refuse", "drop"):
            raise TrainingDataError(f"lonely is {lonely!r}: it is 'refuse' or 'drop'")
        self._refuse = lonely == "refuse"
        self._count = 0
        self._first = ""

    def add(self, place: str, id: str) -> None:
        """Count one."""
        self._first = self._first or f"{place}: query {id!r:.80}"
        self._count += 1

    def finish(self, kept: int) -> None:
        """Raise TrainingDataError where there were any that may not be dropped, and where nothing else is left."""
        if self._count and (self._refuse or not kept):
            mend = "add positives, or pass lonely='drop' to leave them out" if kept else "add positives"
            raise TrainingDataError(
                f"{self._count:,} of {self._count + kept:,} queries have no positive, the first is {self._first}: {mend}"
            )


@contextmanager
def one_error_type() -> Iterator[None]:
    """Turn the errors of lines, records, queries and qrels into TrainingDataError; a missing file stays what it is."""
    try:
        yield
    except (DocumentError, QueryError, QrelsError) as error:
        raise TrainingDataError(str(error)) from error


@contextmanager
def work_folder(folder: str | Path) -> Iterator[Path]:
    """A folder for files on the way to ``folder``, which must not exist; it is removed at the end."""
    place = Path(folder)
    if place.exists():
        raise TrainingDataError(f"{place} exists already: remove it, or give another folder")
    work = place.with_name(place.name + ".reading")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def gather(
    examples: Iterable[Example],
    folder: str | Path,
    *,
    teacher: str,
    lonely: Lonely,
    documents: Iterable[Document] | None = None,
) -> TrainingSet:
    """Build the training set of some examples, with ``documents`` for their documents where these come apart.

    A query that comes several times, under one id, gets the documents of all its examples. Its candidates are those of
    the examples that have a negative or a score: positives first, then negatives. Scores become those of ``teacher``;
    where a pair is scored several times the first score stands. Raises TrainingDataError, also where an id comes
    with two texts.
    """
    alone = LonelyQueries(lonely)
    with work_folder(folder) as work:
        paths = {name: work / f"{name}.jsonl" for name in ("queries", "documents", "lists")}
        kept = 0
        scored = False
        with ExitStack() as stack, one_error_type():
            files = {name: stack.enter_context(path.open("w")) for name, path in paths.items()}
            queries, texts = Known(), Known()
            for example in examples:
                if not example.positives:
                    alone.add(example.place, example.id)
                    continue
                if _fresh(queries, "query", example.id, example.text, example.place):
                    files["queries"].write(json.dumps([example.id, example.text]) + "\n")
                    kept += 1
                passages = _once([*example.positives, *example.negatives])
                if documents is None:
                    for passage in passages:
                        if _fresh(texts, "document", passage.id, passage.text, example.place):
                            files["documents"].write(json.dumps([passage.id, passage.text]) + "\n")
                good = list(dict.fromkeys(passage.id for passage in example.positives))
                given = [None if math.isnan(passage.score) else passage.score for passage in passages]
                some = any(score is not None for score in given)
                scored |= some
                listed = [passage.id for passage in passages] if example.negatives or some else []
                files["lists"].write(json.dumps([example.id, good, listed, given]) + "\n")
        alone.finish(kept)
        with one_error_type():
            built = TrainingSet.build(
                work / "set",
                ((id, text) for id, text in _lines(paths["queries"])),
                ((id, text) for id, text in _lines(paths["documents"])) if documents is None else documents,
                ((id, document) for id, good, _, _ in _lines(paths["lists"]) for document in good),
                ((id, document) for id, _, listed, _ in _lines(paths["lists"]) for document in listed),
            )
        if scored:
            built.add_scores(teacher, _scores(built, paths["lists"]))
        del built
        (work / "set").replace(folder)
    return TrainingSet.open(folder)


def _fresh(known: Known, what: str, id: str, text: str, place: str) -> bool:
    new = known.add(id, text)
    if new is None:
        raise TrainingDataError(
            f"{place}: {what} {id!r:.80} came before with another text than {text!r:.80}: ids are unique, give one of "
            "the two another id"
        )
    return new


def _once(passages: list[Passage]) -> list[Passage]:
    """Each document once, where it first stands; with the first score that it has."""
    found: dict[str, Passage] = {}
    for passage in passages:
        known = found.setdefault(passage.id, passage)
        if known.text != passage.text:
            raise TrainingDataError(f"document {passage.id!r:.80} has two texts in one example: give two ids")
        if math.isnan(known.score) and not math.isnan(passage.score):
            found[passage.id] = passage
    return list(found.values())


def _scores(built: TrainingSet, lists: Path) -> NDArray[np.float32]:
    """The scores of the lists at the places of their pairs among the candidates; of several, the first."""
    width = len(built.documents)
    keys = np.repeat(np.arange(len(built)), built.candidates.lengths()) * width + built.candidates.rows
    order = np.argsort(keys)
    keys = keys[order]
    scores = np.full(len(keys), np.nan, np.float32)
    source = _lines(lists)
    while block := list(islice(source, _LINES)):
        triples = [
            (id, document, score)
            for id, _, listed, given in block
            for document, score in zip(listed, given, strict=False)
            if score is not None
        ]
        if not triples:
            continue
        ids, documents, values = zip(*triples, strict=True)
        rows = built.queries.rows(ids) * width + built.documents.rows(documents)
        at, first = np.unique(order[np.searchsorted(keys, rows)], return_index=True)
        scores[at] = np.where(np.isnan(scores[at]), np.array(values, np.float32)[first], scores[at])
    return scores


def _lines(path: Path) -> Iterator[Any]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
