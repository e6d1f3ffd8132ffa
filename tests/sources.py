"""Files for the tests of readers: lines, tables, documents to write into them, and how reading one fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import strategies as st

from retrievers.documents import Document
from retrievers.errors import DocumentError
from retrievers.readers import DocumentReader

texts = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.one_of(
    texts.filter(bool),
    st.text(" \t\r\n\"',;\\#\u00a0\u2028\ufeff\x00\x1c", min_size=1),
    st.text('aß漢🙂ع\t" ', min_size=1000, max_size=1000),
)
documents = st.lists(st.builds(Document, ids, texts, texts), max_size=5, unique_by=lambda document: document.id)


def lines_file(folder: Path, *lines: object, name: str = "docs.jsonl") -> Path:
    """A file of JSON lines; a string stands as it is."""
    path = folder / name
    written = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in written), encoding="utf-8")
    return path


def table_file(folder: Path, content: str | bytes, name: str = "docs.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def failure(reader: DocumentReader) -> str:
    """The message with which reading ends, which must be a DocumentError."""
    with pytest.raises(DocumentError) as caught:
        list(reader)
    return str(caught.value)
