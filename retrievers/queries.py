"""Queries from files: BEIR's JSON lines, tab-separated ids and texts, or one query a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retrievers.errors import QueryError
from retrievers.lines import read_lines
from retrievers.records import parse_record

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tsv": "tsv", ".txt": "text"}


class Query(NamedTuple):
    """A query with its id."""

    id: str
    text: str


def read_queries(source: str) -> Iterator[Query]:
    """The queries of a file, or of standard input for ``"-"``, one after the other.

    ``.jsonl`` holds objects with ``_id`` and ``text`` (BEIR), ``.tsv`` an id, a tab and a text a line, ``.txt`` a
    query a line, whose ids are then 1, 2, ...; other names are told apart by their first line. ``.gz`` is unpacked.
    Blank lines count for nothing. Raises QueryError, which names file and line, for what is no query and for an id that
    comes twice, and DocumentError for lines that are no text or no JSON object.
    """
    suffixes = [suffix.lower() for suffix in Path(source).suffixes]
    form = _FORMATS.get("".join((suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes)[-1:]))
    places: dict[str, str] = {}
    for place, query in _parse(read_lines(source), form):
        first = places.setdefault(query.id, place)
        if first is not place:
            raise QueryError(f"query id {query.id!r} came twice: {first}, and {place}; ids must differ")
        yield query


def check_count(what: str, value: object) -> int:
    """A number of hits that was asked for, called ``what``. Raises QueryError for what is no whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise QueryError(f"{what} is {value!r}: it must be a whole number of at least 1")
    return int(value)


def numbered(texts: Iterable[str]) -> Iterator[Query]:
    """Queries of the command line, whose ids are 1, 2, ..."""
    for number, text in enumerate(texts, 1):
        yield Query(str(number), text)


def batches(queries: Iterable[Query], size: int) -> Iterator[list[Query]]:
    """Queries ``size`` at a time."""
    rest = iter(queries)
    while batch := list(islice(rest, size)):
        yield batch


def _parse(lines: Iterator[tuple[str, str]], form: str | None) -> Iterator[tuple[str, Query]]:
    first = next(lines, None)
    if first is None:
        return
    if form is None:
        form = "jsonl" if first[1].lstrip().startswith("{") else "tsv" if "\t" in first[1] else "text"
    for number, (place, line) in enumerate(chain([first], lines), 1):
        if form == "jsonl":
            yield place, _from_json(place, line)
        elif form == "tsv":
            id, tab, text = line.partition("\t")
            if not tab or not id:
                raise QueryError(f"{place}: expected an id, a tab and a query, got {line!r:.80}")
            yield place, Query(id, text)
        else:
            yield place, Query(str(number), line)


def _from_json(place: str, line: str) -> Query:
    value = parse_record(line, place)
    id = value.get("_id", value.get("id"))
    text = value.get("text")
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if not isinstance(id, str) or not id:
        raise QueryError(f"{place}: field '_id' must be a string that is not empty, got {id!r:.80}")
    if not isinstance(text, str):
        raise QueryError(f"{place}: field 'text' must be a string, got {text!r:.80}")
    return Query(id, text)
