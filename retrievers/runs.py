"""Runs (what a search found for each query) and qrels (what is relevant), in memory and in TREC's and BEIR's files.

The order of a run is trec_eval's: by score as a 32-bit float, descending, and where those are equal by document id,
descending. Runs that are made here (:func:`run_of`, :func:`write_run`) have strictly decreasing scores, so that every
reader keeps the order in which documents were found.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retrievers.errors import QrelsError, RunError
from retrievers.indexes.files import replace_file
from retrievers.lines import read_lines

if TYPE_CHECKING:
    from retrievers.documents import Hit

Run = dict[str, dict[str, float]]
"""``{query id: {document id: score}}``."""

Qrels = dict[str, dict[str, int]]
"""``{query id: {document id: grade}}``; a grade above 0 is relevant, negative ones count as not relevant."""

DEFAULT_TAG = "retrievers"

_SPACE = re.compile(r"\s")
_RUN_COLUMNS = "query id, Q0, document id, rank, score, tag"
_QRELS_COLUMNS = "query id, iteration, document id, grade (TREC), or query id, tab, document id, tab, grade (BEIR)"
_BEIR_HEADER = ("query-id", "corpus-id", "score")


def ranking(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents with their scores, best first, in the order of a run. Raises RunError for NaN."""
    for id, score in scores.items():
        if score != score:
            raise RunError(f"document {id!r} has the score NaN, which has no place in a ranking")
    by_id = sorted(scores.items(), reverse=True)
    with np.errstate(over="ignore"):
        return sorted(by_id, key=lambda item: -np.float32(item[1]))


def decreasing(scores: Iterable[float]) -> list[float]:
    """Scores as 32-bit floats, each lowered, where it must be, to the next one below the score before it.

    trec_eval ignores ranks and reads scores as 32-bit floats: this keeps an order that equal scores would lose.
    """
    lowered: list[float] = []
    previous = np.float32(np.inf)
    for score in scores:
        previous = min(np.float32(score), np.nextafter(previous, np.float32(-np.inf)))
        lowered.append(float(previous))
    return lowered


def run_of(queries: Iterable[str], hits: Iterable[Sequence[Hit]]) -> Run:
    """The run of some query ids and the hits of each, in the same order; scores strictly decrease."""
    run: Run = {}
    for query, found in zip(queries, hits, strict=True):
        scores = decreasing(hit.score for hit in found)
        run[query] = {hit.id: score for hit, score in zip(found, scores, strict=True)}
    return run


def run_lines(query: str, found: Iterable[tuple[str, float]], tag: str = DEFAULT_TAG) -> Iterator[str]:
    """The lines of a TREC run for one query and its documents, best first, with strictly decreasing scores.

    Raises RunError, which names it, for an id that is empty or holds white space, which the format cannot.
    """
    ranked = list(found)
    for what, id in (("query", query), *(("document", id) for id, _ in ranked), ("tag", tag)):
        if not id or _SPACE.search(id):
            held = f"{what} id {id!r}" if what != "tag" else f"tag {id!r}"
            raise RunError(f"{held} {'holds white space' if id else 'is empty'}, which a TREC run cannot: use JSON")
    scores = decreasing(score for _, score in ranked)
    for rank, ((id, _), score) in enumerate(zip(ranked, scores, strict=True), 1):
        yield f"{query} Q0 {id} {rank} {np.float32(score):.9g} {tag}\n"


def write_run(path: str | Path, run: Mapping[str, Mapping[str, float]], *, tag: str = DEFAULT_TAG) -> None:
    """Write a TREC run, gzipped where the name ends in ``.gz``; the file appears whole or not at all.

    Queries come in the order of the mapping. Raises RunError for ids with white space and for NaN.
    """
    target = Path(path)
    text = "".join(line for query, scores in run.items() for line in run_lines(query, ranking(scores), tag))
    data = text.encode()
    replace_file(target, gzip.compress(data, mtime=0) if target.name.lower().endswith(".gz") else data)


def read_run(path: str | Path) -> Run:
    """Read a TREC run, plain or gzipped; ranks are ignored, as by trec_eval.

    Raises RunError, naming file and line, for a line that has not six columns, a score that is no finite number, and a
    document that comes twice for a query; DocumentError and SourceNotFoundError for what is no text file.
    """
    run: Run = {}
    for place, line in read_lines(str(path)):
        columns = line.split()
        if len(columns) != 6:
            raise RunError(f"{place}: {len(columns)} columns, and a run has six ({_RUN_COLUMNS}): {line!r:.80}")
        query, _, document, _, text, _ = columns
        score = _number(text)
        if score is None:
            raise RunError(f"{place}: the score {text!r} is no finite number")
        found = run.setdefault(query, {})
        if document in found:
            raise RunError(f"{place}: document {document!r} comes twice for query {query!r}: keep one of the lines")
        found[document] = score
    return run


def read_qrels(path: str | Path) -> Qrels:
    """Read qrels in TREC's form or BEIR's (``.tsv``, with or without its header), plain or gzipped.

    Raises QrelsError, naming file and line, for a line that is short of a column, a grade that is no whole number, and a
    pair that comes twice with two grades; DocumentError and SourceNotFoundError for what is no text file.
    """
    qrels: Qrels = {}
    places: dict[tuple[str, str], str] = {}
    for number, (place, line) in enumerate(read_lines(str(path))):
        columns = line.split("\t")
        if number == 0 and tuple(columns) == _BEIR_HEADER:
            continue
        if len(columns) != 3:
            spaced = line.split()
            columns = [spaced[0], spaced[2], spaced[3]] if len(spaced) == 4 else []
        if len(columns) != 3 or not columns[0] or not columns[1]:
            raise QrelsError(f"{place}: expected {_QRELS_COLUMNS}; got {line!r:.80}")
        query, document, text = columns
        value = _number(text)
        if value is None or not value.is_integer():
            raise QrelsError(f"{place}: the grade {text!r} is no whole number")
        first = places.setdefault((query, document), place)
        grade = qrels.setdefault(query, {}).setdefault(document, int(value))
        if grade != int(value):
            raise QrelsError(
                f"query {query!r} and document {document!r} have the grade {grade} in {first}, and {int(value)} in "
                f"{place}: keep one of them"
            )
    return qrels


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < float("inf") else None
