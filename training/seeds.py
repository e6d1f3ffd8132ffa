"""Seeds of an augmentation: a few pairs of a query and a passage of a collection, which an index holds."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from retrievers.documents import Document
from retrievers.errors import TrainingDataError
from retrievers.retriever import Retriever


class Seed(NamedTuple):
    """A query, and the document of the collection that answers it."""

    query: str
    document: Document


def find_seeds(seeds: Iterable[tuple[str, str | Document]], pool: Retriever) -> list[Seed]:
    """Pairs of a query and a passage with the passage as the pool has it: a Document by its id, a text by what it says.

    A text is that of a document, with or without its title, white space aside; of several alike it is the first. Raises
    TrainingDataError, which names the seed, for what is no such pair, an empty query, and a passage that is not in the pool.
    """
    given = checked_pairs(seeds, "seed")
    wanted = {_hash(passage) for _, passage in given if isinstance(passage, str)}
    by_text: dict[bytes, Document] = {}
    if wanted:
        for document in pool.snapshot.all_documents():
            for text in {document.text, document.content}:
                key = _hash(text)
                if key in wanted:
                    by_text.setdefault(key, document)
    found = []
    for number, (query, passage) in enumerate(given):
        known = by_text.get(_hash(passage)) if isinstance(passage, str) else _held(pool, passage.id)
        if known is None:
            shown = f"{passage!r:.80}" if isinstance(passage, str) else f"with the id {passage.id!r:.80}"
            raise TrainingDataError(
                f"the passage of seed {number}, {shown}, is not in {pool.path}: seeds are pairs of the collection that the "
                "pool holds"
            )
        found.append(Seed(query, known))
    return found


def _held(pool: Retriever, id: str) -> Document | None:
    return pool.get(id) if id in pool else None


def checked_pairs(pairs: Iterable[tuple[str, str | Document]], what: str) -> list[tuple[str, str | Document]]:
    """Pairs of a query and a passage. Raises TrainingDataError, which names the first that is none, for others."""
    given = list(pairs)
    for number, pair in enumerate(given):
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TrainingDataError(f"{what} {number} is {pair!r:.80}: give pairs of a query and a passage")
        if not isinstance(pair[1], str | Document):
            raise TrainingDataError(
                f"the passage of {what} {number} is a {type(pair[1]).__name__}, {pair[1]!r:.80}: give its text, or a Document"
            )
        if not pair[0].strip():
            raise TrainingDataError(f"the query of {what} {number} is empty: leave the {what} out")
    return given


def text_key(document: Document) -> bytes:
    """A hash of what a document says, which is that of others that say the same, white space and case aside."""
    return _hash(document.content.casefold())


def _hash(text: str) -> bytes:
    return blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
