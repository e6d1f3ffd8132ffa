"""Rows of training data, from JSON lines or from memory, and their fields: ids, texts, and scores, checked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np

from retrievers.errors import DocumentError, TrainingDataError
from retrievers.lines import Source, StrPath, numbered_lines
from retrievers.records import listing, parse_record

_LARGEST = float(np.finfo(np.float32).max)


def rows_of(rows: StrPath | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with their places: ``train.jsonl, line 17``, or ``row 17`` of what is no file. Blank lines are skipped.

    Raises TrainingDataError for what is no JSON object, or no mapping.
    """
    if isinstance(rows, str | os.PathLike):
        source = Source.at(rows)
        try:
            for number, line in numbered_lines(source):
                if line.strip():
                    yield source.line(number), parse_record(line, source.line(number))
        except DocumentError as error:
            raise TrainingDataError(str(error)) from error
        return
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise TrainingDataError(
                f"row {number}: expected a mapping of column names to values, got {row!r:.80}: give one split of a data set"
            )
        yield f"row {number}", row


def required(row: Mapping[str, Any], name: str, place: str) -> Any:
    """A value that has to be there. Raises TrainingDataError."""
    value = row.get(name)
    if value is None:
        state = "null" if name in row else "missing"
        raise TrainingDataError(f"{place}: field {name!r} is {state}; the row has: {listing(row)}")
    return value


def id_of(row: Mapping[str, Any], name: str, place: str) -> str:
    """An id: a string that is not empty, or an integer, which becomes its digits. Raises TrainingDataError."""
    value = required(row, name, place)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    if not isinstance(value, str) or not value:
        raise TrainingDataError(
            f"{place}: field {name!r} must hold a string that is not empty, or an integer: {value!r:.80}"
        )
    return _whole(value, name, place)


def text_of(row: Mapping[str, Any], name: str, place: str, *, blank: bool = False) -> str:
    """A text, which may be ``blank`` only where that is said. Raises TrainingDataError."""
    return _text(required(row, name, place), name, place, blank)


def texts_of(row: Mapping[str, Any], name: str, place: str) -> list[str]:
    """A list of texts; an empty one where the field is absent or null. Raises TrainingDataError."""
    value = _plain(row.get(name))
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise TrainingDataError(f"{place}: field {name!r} must be a list of texts, got {value!r:.80}: write [text]")
    return [_text(text, name, place, False) for text in value]


def scores_of(row: Mapping[str, Any], name: str, count: int | None, place: str) -> list[float | None]:
    """A list of ``count`` numbers, None for null; all None where the field is absent or null.

    Raises TrainingDataError for another length (any fits None) and for what no 32-bit float can hold.
    """
    value = _plain(row.get(name))
    if value is None:
        return [None] * (count or 0)
    if not isinstance(value, list | tuple):
        raise TrainingDataError(f"{place}: field {name!r} must be a list of scores, got {value!r:.80}")
    if count is not None and len(value) != count:
        raise TrainingDataError(
            f"{place}: field {name!r} holds {len(value)} scores for {count} texts: give one for each, or null"
        )
    for score in value:
        number = isinstance(score, Real) and not isinstance(score, bool)
        if score is not None and not (number and abs(score) <= _LARGEST):
            raise TrainingDataError(f"{place}: field {name!r} holds {score!r:.80}, which is no finite 32-bit float")
    return [None if score is None else float(score) for score in value]


def _plain(value: Any) -> Any:
    # Data sets give arrays and tensors where they were told to.
    return value.tolist() if hasattr(value, "tolist") else value


def _text(value: object, name: str, place: str, blank: bool) -> str:
    if not isinstance(value, str):
        raise TrainingDataError(f"{place}: field {name!r} must hold text, got {value!r:.80}")
    if not blank and not value.strip():
        raise TrainingDataError(f"{place}: field {name!r} holds a blank text: leave it out")
    return _whole(value, name, place)


def _whole(value: str, name: str, place: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TrainingDataError(
            f"{place}: field {name!r} holds half of a surrogate pair, which is no character: {value!r:.80}"
        ) from None
    return value
