"""What the tests of rerankers, and of searches that rerank, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hashing import HashEncoder
from numpy.typing import NDArray

from retrievers import Document


def words(n: int, seed: int = 0) -> list[Document]:
    """Documents that all hold the word ``all``, so that a lexical index finds every one."""
    rng = np.random.default_rng(seed)
    return [
        Document(
            f"doc-{at}",
            "all " + " ".join(f"w{w}" for w in rng.integers(0, 60, int(rng.integers(1, 25)))),
            metadata={"year": 2000 + at % 20},
        )
        for at in range(n)
    ]


def predicted(model: Any, query: str, found: Sequence[Document]) -> NDArray[np.float32]:
    """What sentence-transformers gives, one pair at a time."""
    scores = [model.predict([(query, document.content)], show_progress_bar=False)[0] for document in found]
    return np.array(scores, np.float32)


def maxsim(query: str, text: str) -> float:
    """In plain numpy, from the vectors of HashEncoder."""
    encoder = HashEncoder("multi-vector")
    left, right = encoder.encode_query([query])[0], encoder.encode_document([text])[0]
    if not len(left) or not len(right):
        return 0.0
    return float(np.float32((left.astype(np.float64) @ right.astype(np.float64).T).max(axis=1).sum()))


class Lengths:
    """A reranker of the user's own: the shortest text is the best. ``seen`` holds the ids of each call."""

    def __init__(self) -> None:
        self.seen: list[list[list[str]]] = []

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        self.seen.append([[document.id for document in found] for found in documents])
        return [np.array([-len(document.text) for document in found], np.float32) for found in documents]
