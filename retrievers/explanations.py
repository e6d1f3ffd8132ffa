"""Why a document has its score: contributions that sum to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrievers.encoders import Encoder
from retrievers.indexes import bitmaps
from retrievers.indexes.inverted import InvertedIndex, LexicalIndex
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.indexes.snapshot import Snapshot
from retrievers.vectors import Vectors


@dataclass(frozen=True)
class Contribution:
    """A part of a score: a term or token of the query, the token of the document that it met, and what that gave.

    ``match`` equals ``term`` in lexical and sparse indexes. Where the encoder cannot name its terms or tokens, they are
    given by number (``"#17"``).
    """

    term: str
    match: str
    score: float


@dataclass(frozen=True)
class Explanation:
    """The score of a document for a query and its parts, the largest first; a dense score has none."""

    query: str
    id: str
    score: float
    contributions: tuple[Contribution, ...]


def explain(
    encoder: Encoder, snapshot: Snapshot, vectors: Vectors, query: str, id: str, number: int, row: int
) -> Explanation:
    """Explain the score of row ``row`` in segment ``number`` for one query and its (weighted) vectors."""
    segment = snapshot.segments[number]
    mask = np.zeros(segment.size, np.bool_)
    mask[row] = True
    found = segment.search(vectors, 1, allowed=bitmaps.pack(mask), norms=snapshot.norms(number))
    score = float(found.scores[0][0]) if len(found.scores[0]) else 0.0
    parts: list[Contribution] = []
    if isinstance(segment.index, InvertedIndex | LexicalIndex):
        if isinstance(segment.index, LexicalIndex):
            norms = snapshot.norms(number)
            if norms is None:
                raise TypeError("a lexical index is searched with the norms of its documents")
            terms, scores = segment.index.explain(vectors, row, norms)
        else:
            terms, scores = segment.index.explain(vectors, row)
        for name, part in zip(_names(encoder, query, terms.tolist()), scores.tolist(), strict=True):
            if part:
                parts.append(Contribution(name, name, part))
    elif isinstance(segment.index, MaxSimIndex):
        tokens, scores = segment.index.explain(vectors, row)
        document = segment.store.documents([row])[row].content
        ours, theirs = _tokens(encoder, "query_tokens", query), _tokens(encoder, "document_tokens", document)
        for at, (token, part) in enumerate(zip(tokens.tolist(), scores.tolist(), strict=True)):
            parts.append(Contribution(_name(ours, at), _name(theirs, token), part))
    parts.sort(key=lambda part: -part.score)
    return Explanation(query, id, score, tuple(parts))


def _names(encoder: Encoder, query: str, columns: list[int]) -> list[str]:
    """The terms behind columns: a lexical encoder knows those of the query, a sparse one its whole vocabulary."""
    terms = getattr(encoder, "terms", None)
    if terms is None:
        return [f"#{column}" for column in columns]
    if encoder.kind == "lexical":
        known = terms(query)
        return [known[column] for column in columns]
    return list(terms(columns))


def _tokens(encoder: Encoder, method: str, text: str) -> list[str]:
    tokens = getattr(encoder, method, None)
    return [] if tokens is None else list(tokens(text))


def _name(names: list[str], at: int) -> str:
    return names[at] if at < len(names) else f"#{at}"
