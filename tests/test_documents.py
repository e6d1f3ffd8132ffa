"""What a document may hold, and documents from any iterable."""

from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.documents import Document, check_document
from retrievers.errors import DocumentError, RetrieversError
from retrievers.readers import entries

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(id_=texts.filter(bool), text=texts, title=texts, metadata=st.dictionaries(texts, json_values, max_size=4))
def test_what_json_holds_is_taken_and_returned_as_it_is(
    id_: str, text: str, title: str, metadata: dict[str, Any]
) -> None:
    document = Document(id_, text, title, metadata)
    assert check_document(document, "here") is document
    assert json.loads(json.dumps(dict(document.metadata))) == metadata


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"id": "a", "text": "b"}, "here: expected a Document, got dict"),
        ("a", "here: expected a Document, got str"),
        (None, "here: expected a Document, got NoneType"),
        (Document("", "text"), "here: field 'id' is empty; every document needs an id"),
        (Document(7, "text"), "here: field 'id' must be a string, got int 7"),  # type: ignore[arg-type]
        (Document("a", None), "here: field 'text' must be a string, got NoneType None"),  # type: ignore[arg-type]
        (Document("a", "b", ["c"]), "here: field 'title' must be a string, got list ['c']"),  # type: ignore[arg-type]
        (Document("é\ud800", "b"), "here: field 'id' holds a lone surrogate at character 1"),
        (Document("a", "xy\udfff"), "here: field 'text' holds a lone surrogate at character 2"),
        (Document("a", "b", "\udc80"), "here: field 'title' holds a lone surrogate at character 0"),
        (Document("a", "b", metadata={"x": "\ud800"}), "here: field 'metadata'.x holds a lone surrogate"),
        (Document("a", "b", metadata={"\ud800": 1}), "holds a lone surrogate"),
        (Document("a", "b", metadata={"x": float("nan")}), "here: field 'metadata'.x is nan, which JSON cannot hold"),
        (Document("a", "b", metadata={"x": [1, float("inf")]}), "here: field 'metadata'.x[1] is inf"),
        (Document("a", "b", metadata={"x": {"y": {1: 2}}}), "here: field 'metadata'.x.y has the key 1"),
        (Document("a", "b", metadata={"x": {1, 2}}), "here: field 'metadata'.x is a set: use strings"),
        (Document("a", "b", metadata={"x": b"y"}), "here: field 'metadata'.x is a bytes"),
        (Document("a", "b", metadata=[("x", 1)]), "here: field 'metadata' must be a dict, got list"),  # type: ignore[arg-type]
        (Document("a", "b", metadata=MappingProxyType({})), "here: field 'metadata' must be a dict, got mappingproxy"),
        (Document("a", "b", metadata={"x": 10**5000}), "here: field 'metadata'.x has over 4,300 digits"),
    ],
)
def test_what_cannot_be_stored_is_refused(document: object, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        check_document(document, "here")
    assert message in str(caught.value)
    assert isinstance(caught.value, RetrieversError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RetrieversError)
    assert isinstance(caught.value, ValueError)


def test_an_encoder_sees_title_and_text() -> None:
    assert Document("a", "text", "Title").content == "Title text"
    assert Document("a", "text").content == "text"


def test_documents_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Document("a", "b").text = "c"  # type: ignore[misc]


def test_entries_number_the_documents_of_any_iterable() -> None:
    found = [Document("a", "x"), Document("b", "y")]
    expected = [("document 1", found[0]), ("document 2", found[1])]
    assert list(entries(found)) == expected
    assert list(entries(tuple(found))) == expected
    assert list(entries(document for document in found)) == expected
    assert list(entries([])) == []


def test_entries_take_one_document_at_a_time() -> None:
    taken = []

    def source() -> Any:
        for number in range(5):
            taken.append(number)
            yield Document(f"d{number}", "")

    stream = entries(source())
    assert taken == []
    next(stream)
    next(stream)
    assert taken == [0, 1]


def test_entries_check_each_document_and_name_its_number() -> None:
    stream = entries([Document("a", "x"), Document("", "y")])
    assert next(stream)[1].id == "a"
    with pytest.raises(DocumentError, match="document 2: field 'id' is empty"):
        next(stream)
    with pytest.raises(DocumentError, match="document 1: expected a Document, got str"):
        next(entries("docs.jsonl"))  # type: ignore[arg-type]


def test_one_document_is_no_iterable() -> None:
    with pytest.raises(DocumentError, match="expected an iterable of Document, got Document"):
        entries(Document("a", "x"))  # type: ignore[arg-type]


def test_metadata_that_holds_itself_is_refused() -> None:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    with pytest.raises(DocumentError, match="document 1: field 'metadata' is nested too deep, or holds itself"):
        next(entries([Document("a", "x", metadata=metadata)]))
