"""What mteb hands to a model: the rows of a corpus and of queries, and options."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retrievers.documents import Document
from retrievers.errors import DocumentError, EncoderError, QueryError

ID_FIELD = "id"
"""The metadata field that holds each document's id, by which a search is kept to some documents."""


def check_precision(options: Mapping[str, Any]) -> None:
    """Raises EncoderError where mteb's ``encode_kwargs`` ask for vectors of another precision than float32."""
    precision = options.get("precision")
    if precision not in (None, "float32"):
        raise EncoderError(
            f"precision={precision!r} is not applied here, and mteb would file the results under it: leave it out, and choose "
            "how vectors are stored by MtebModel(..., index=...)"
        )


def documents(corpus: Iterable[Mapping[str, Any]]) -> Iterator[Document]:
    """The documents of a corpus, with their ids in the metadata too. Raises DocumentError for a row without a text."""
    for row in corpus:
        text = row.get("text")
        if not isinstance(text, str):
            raise DocumentError(
                f"document {row.get('id')!r} of the corpus has no text, but {text!r:.80}: tasks must be of text"
            )
        yield Document(row["id"], text, row.get("title") or "", {ID_FIELD: row["id"]})


def query_texts(queries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """``{query id: text}``, put together as mteb does: an instruction follows a query, and precedes a conversation.

    Raises QueryError for a query without a text.
    """
    asked: dict[str, str] = {}
    for row in queries:
        text, instruction = row.get("text"), row.get("instruction")
        if isinstance(text, str):
            parts = [text, instruction]
        elif isinstance(text, list) and text:
            parts = [instruction, "; ".join(map(_turn, text))]
        else:
            raise QueryError(f"query {row.get('id')!r} has no text, but {text!r:.80}: tasks must be of text")
        asked[row["id"]] = " ".join(part for part in parts if part is not None)
    return asked


def _turn(turn: Any) -> str:
    return turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}"
