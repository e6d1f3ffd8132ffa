"""Documents and hits: the values that go into an index and come out of a search."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrievers.errors import DocumentError

Metadata = Mapping[str, Any]

_MOST_BITS = 14_000  # a little under 4,300 digits, past which Python refuses to turn an int into text


@dataclass(frozen=True, slots=True)
class Document:
    """A text with an id.

    ``id`` is any non-empty string, and comes back as it went in. ``text`` and ``title`` may be empty; an encoder sees
    the title, a space and the text. ``metadata`` is a JSON object (string keys; strings, numbers, booleans, null,
    lists and objects): filters look at it.
    """

    id: str
    text: str
    title: str = ""
    metadata: Metadata = field(default_factory=dict)

    @property
    def content(self) -> str:
        """What an encoder sees: title and text, joined by a space (the BEIR convention)."""
        return f"{self.title} {self.text}" if self.title else self.text


@dataclass(frozen=True, slots=True)
class Hit:
    """A document that was found: higher scores are better in every kind of index."""

    id: str
    score: float
    document: Document


# A frozen dataclass sets each field through object.__setattr__; the descriptors of its slots do it at half the cost, and
# batches of queries bring thousands of hits.
_set_hit_id, _set_score, _set_document = (Hit.__dict__[name].__set__ for name in ("id", "score", "document"))


def found_hit(score: float, document: Document) -> Hit:
    """The hit of a document."""
    hit = object.__new__(Hit)
    _set_hit_id(hit, document.id)
    _set_score(hit, score)
    _set_document(hit, document)
    return hit


def check_document(document: object, place: str) -> Document:
    """Refuse what cannot be stored and given back unchanged.

    ``place`` says where the document came from, and stands in the message of the DocumentError raised.
    """
    if not isinstance(document, Document):
        raise DocumentError(f"{place}: expected a Document, got {type(document).__name__}")
    for name in ("id", "text", "title"):
        value = getattr(document, name)
        if not isinstance(value, str):
            raise DocumentError(f"{place}: field {name!r} must be a string, got {type(value).__name__} {value!r:.80}")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DocumentError(
                    f"{place}: field {name!r} holds a lone surrogate at character {error.start}, which is no text: "
                    "decode the source with the right encoding"
                ) from error
    if not document.id:
        raise DocumentError(f"{place}: field 'id' is empty; every document needs an id")
    if not isinstance(document.metadata, dict):
        found = type(document.metadata).__name__
        raise DocumentError(f"{place}: field 'metadata' must be a dict, got {found} {document.metadata!r:.80}")
    if document.metadata:
        _check_json(document.metadata, f"{place}: field 'metadata'")
    return document


def _check_json(value: object, place: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, int):
        if value.bit_length() > _MOST_BITS:
            raise DocumentError(f"{place} has over 4,300 digits, which Python does not print: store it as text")
    elif isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DocumentError(f"{place} holds a lone surrogate, which is no text") from error
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise DocumentError(f"{place} is {value}, which JSON cannot hold: leave the field out")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise DocumentError(f"{place} has the key {key!r}: keys must be strings")
            _check_json(key, f"{place} key {key!r}")
            _check_json(inner, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check_json(inner, f"{place}[{number}]")
    else:
        raise DocumentError(
            f"{place} is a {type(value).__name__}: use strings, numbers, booleans, null, lists, objects"
        )
