"""Search that may leave a part of the collection out, and tells how much and what that can have cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TypeGuard

from retrievers.conditions import Filter
from retrievers.documents import Hit, found_hit
from retrievers.errors import QueryError, UnsupportedSearchError
from retrievers.indexes.postings_search import Looked
from retrievers.indexes.protocol import Found
from retrievers.indexes.snapshot import Snapshot, Threshold
from retrievers.vectors import Vectors


@dataclass(frozen=True)
class PartialSearch:
    """The outcome of :meth:`retrievers.Retriever.search_within`: hits, and a guarantee of what they may lack.

    The index looks at its documents by slices of eight neighbours. Counted are the slices that hold a term of the query
    and a permitted document; the permitted documents in them; and all postings of the query's terms.
    """

    hits: list[Hit]
    """The best of the documents that were looked at, with their exact scores, best first."""
    exact: bool
    """True where these are the hits of :meth:`retrievers.Retriever.search`, for sure; False where they may not be."""
    shortfall: float
    """By what share the score at any rank may be below that of the exact hits, at most: 0 where they are exact, and 1 where
    fewer than ``k`` hits came and some documents were not looked at."""
    ceiling: float
    """The most that a document which was not looked at can score; 0 where there is none."""
    slices: int
    slices_skipped: int
    documents: int
    documents_skipped: int
    postings: int
    postings_skipped: int


def check_limits(give_up: object, milliseconds: object) -> tuple[float, float]:
    """The share to give up, and the seconds to take (infinity for None). Raises QueryError for other than numbers in range."""
    if not _is_number(give_up) or not 0 <= give_up < 1:
        raise QueryError(f"give_up is {give_up!r}: it must be a number from 0 (nothing) to below 1 (everything)")
    if milliseconds is None:
        return float(give_up), math.inf
    if not _is_number(milliseconds) or not 0 <= milliseconds < math.inf:
        raise QueryError(f"milliseconds is {milliseconds!r}: it must be a number of 0 or more, or None for no limit")
    return float(give_up), float(milliseconds) / 1e3


def check_partial(snapshot: Snapshot) -> None:
    """Raise UnsupportedSearchError for an index that cannot leave a part out."""
    if snapshot.kind not in ("lexical", "sparse"):
        raise UnsupportedSearchError(
            f"{snapshot.root} is an index {snapshot.spec} of {snapshot.kind} vectors: search_within is for the kind inverted "
            "(bm25 and sparse encoders) alone. Use search; the parameters of an approximate kind say how thorough it is"
        )


def search_partly(
    snapshot: Snapshot, query: Vectors, k: int, condition: Filter | None, give_up: float, seconds: float
) -> PartialSearch:
    """Search the segments of an inverted index for one query, each with its share of what is left of the time."""
    parts = list(snapshot.permitted(condition))
    end = time.monotonic() + seconds
    rows = sum(segment.size for _, segment, _ in parts)
    threshold = Threshold(1, k)
    found: list[tuple[int, Found]] = []
    told: list[Looked] = []
    for number, segment, allowed in parts:
        mine = max(0.0, end - time.monotonic()) * segment.size / rows
        rows -= segment.size
        least = max(0.0, float(threshold.scores[0]))
        some, looked = segment.search_within(
            query, k, allowed=allowed, norms=snapshot.norms(number), give_up=give_up, seconds=mine, least=least
        )
        found.append((number, some))
        told.append(looked)
        threshold.raise_by(some)
    best = snapshot.combine(found, 1, k) if found else []
    documents = snapshot.documents(best)
    hits = [found_hit(score, documents[at]) for one in best for score, at in zip(one.scores, one.places, strict=True)]
    ceiling = max((looked.ceiling for looked in told), default=0.0)
    kth = hits[-1].score if len(hits) == k else 0.0
    return PartialSearch(
        hits=hits,
        exact=ceiling == 0 or ceiling < kth,  # where it equals that, the id decides
        shortfall=max(0.0, 1.0 - kth / ceiling) if ceiling > 0 else 0.0,
        ceiling=ceiling,
        slices=sum(looked.slices for looked in told),
        slices_skipped=sum(looked.slices - looked.slices_read for looked in told),
        documents=sum(looked.documents for looked in told),
        documents_skipped=sum(looked.documents - looked.documents_read for looked in told),
        postings=sum(looked.postings for looked in told),
        postings_skipped=sum(looked.postings - looked.postings_read for looked in told),
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
