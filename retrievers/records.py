"""Records (JSON objects, rows of a table) as documents: which fields are id, text and title, and what is metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retrievers.documents import Document
from retrievers.errors import DocumentError, SourceError
from retrievers.json_values import same, shown

_NAMES_SHOWN = 20  # field names that stand in a message
_METADATA = "metadata"


@dataclass(frozen=True)
class Fields:
    """The names of the fields of a record.

    ``metadata`` holds the names of the fields that become metadata; None takes every field that is none of the other
    three. A field ``metadata`` that is an object counts as if its members stood in the record itself.
    """

    id: str = "id"
    text: str = "text"
    title: str = "title"
    metadata: tuple[str, ...] | None = None

    def id_among(self, names: Iterable[str]) -> str:
        """The id field of a record that has these fields: ``_id`` where the default ``id`` is absent."""
        return "_id" if self.id == "id" and "id" not in names and "_id" in names else self.id

    def document(self, record: Mapping[str, Any], place: str) -> Document:
        """The document that a record holds. Raises DocumentError, naming ``place`` and the field."""
        id_field = self.id_among(record)
        id_ = _required(record, id_field, place)
        if type(id_) is int:
            id_ = str(id_)
        if not isinstance(id_, str):
            raise DocumentError(f"{place}: field {id_field!r} must be a string or an integer, got {shown(id_)}")
        if not id_:
            raise DocumentError(f"{place}: field {id_field!r} is empty; every document needs an id")
        text = _required(record, self.text, place)
        title = record.get(self.title)
        if title is None:
            title = ""
        for name, value in ((self.text, text), (self.title, title)):
            if not isinstance(value, str):
                raise DocumentError(f"{place}: field {name!r} must be a string, got {shown(value)}")
        return Document(id_, text, title, self._metadata(record, id_field, place))

    def _metadata(self, record: Mapping[str, Any], id_field: str, place: str) -> dict[str, Any]:
        inner = record.get(_METADATA)
        merged: dict[str, Any] = dict(inner) if isinstance(inner, Mapping) else {}
        if self.metadata is not None:
            # A field that is picked by name may also be the id, the text or the title, or the whole metadata object.
            beside: Iterable[str] = [name for name in self.metadata if name in record]
        else:
            taken = {id_field, self.text, self.title}
            if inner is None or isinstance(inner, Mapping):
                taken.add(_METADATA)
            beside = [name for name in record if name not in taken]
        for name in beside:
            value = record[name]
            if name in merged and not same(merged[name], value):
                raise DocumentError(
                    f"{place}: field {name!r} stands beside {_METADATA!r} as {shown(value)} and within it as "
                    f"{shown(merged[name])}: keep one of them"
                )
            merged[name] = value
        if self.metadata is None:
            return merged
        return {name: merged[name] for name in self.metadata if name in merged}


def chosen(id: str, text: str, title: str, metadata: Sequence[str] | None) -> Fields:
    """The fields that a caller named. Raises SourceError for a single string in place of a sequence of names."""
    if isinstance(metadata, str):
        raise SourceError(
            f"metadata must be a sequence of field names, got the string {metadata!r}: write [{metadata!r}]"
        )
    return Fields(id, text, title, None if metadata is None else tuple(metadata))


def listing(names: Iterable[str]) -> str:
    """Field names for a message, as many as can be read."""
    known = list(names)
    if not known:
        return "no fields"
    more = len(known) - _NAMES_SHOWN
    return ", ".join(known[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def parse_record(line: str, place: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises DocumentError for anything else, for a field that comes twice, and for NaN and infinity, which are no JSON.
    """
    try:
        record = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise DocumentError(
            f"{place}: not JSON: {error.msg} at character {error.pos + 1}; every line must be one JSON object"
        ) from None
    except ValueError as error:  # of the hooks below, and of integers of thousands of digits
        raise DocumentError(f"{place}: {error}") from None
    except RecursionError:
        raise DocumentError(f"{place}: the JSON is nested too deep") from None
    if not isinstance(record, dict):
        raise DocumentError(f"{place}: expected a JSON object, got {shown(record)}; every line must be one JSON object")
    return record


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value: leave the field out, or write null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"field {twice!r} comes twice: keep one of them")
    return members


def _required(record: Mapping[str, Any], name: str, place: str) -> Any:
    try:
        value = record[name]
    except KeyError:
        raise DocumentError(f"{place}: field {name!r} is missing; the line has: {listing(sorted(record))}") from None
    if value is None:
        raise DocumentError(f"{place}: field {name!r} is null; leave the line out, or give it a value")
    return value


_DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_unique)
