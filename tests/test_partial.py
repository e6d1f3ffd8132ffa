"""Search that leaves a part out: what it promises, against exhaustive scores, and when nothing is left out."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers import Document, Hit, HybridRetriever, PartialSearch, Retriever
from retrievers.errors import IndexClosedError, QueryError, RetrieversError, UnsupportedSearchError
from retrievers.indexes.inverted import InvertedIndex
from retrievers.specs import Spec
from retrievers.vectors import csr

KINDS = ["lexical", "sparse", "sparse 8 bits"]
EVEN = {"field": "number", "operator": "in", "value": list(range(0, 3000, 2))}
FEW = {"field": "number", "operator": "<", "value": 20}


def documents(n: int, seed: int = 5) -> list[Document]:
    """Texts of words that are common and rare, many of them the same."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(400)]
    odds = [1 / (number + 3) for number in range(400)]
    texts = [" ".join(rng.choices(words, odds, k=rng.randint(1, 30))) for _ in range(n)]
    return [Document(f"d{at:05}", texts[at if at % 7 else at // 2], metadata={"number": at}) for at in range(n)]


def build(folder: Path, kind: str, batches: list[list[Document]]) -> Retriever:
    encoder: Any = "bm25" if kind == "lexical" else HashEncoder("sparse")
    index = "inverted(bits=8)" if kind == "sparse 8 bits" else None
    retriever = Retriever.build(folder, batches[0], encoder=encoder, index=index)
    for batch in batches[1:]:
        retriever.add(batch)
    return retriever


@pytest.fixture(scope="module", params=KINDS)
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    """Three segments, with documents deleted from two of them."""
    every = documents(3000)
    built = build(
        tmp_path_factory.mktemp("partial") / "idx", request.param, [every[:1500], every[1500:1530], every[1530:]]
    )
    built.delete([f"d{at:05}" for at in range(40, 2990, 9)])
    return built


def check(outcome: PartialSearch, exhaustive: list[Hit], k: int, give_up: float | None) -> None:
    """Everything that an outcome promises; ``exhaustive`` are all documents that match, best first."""
    hits, exact = outcome.hits, exhaustive[:k]
    scores = {hit.id: hit.score for hit in exhaustive}
    assert [hit.score for hit in hits] == [scores[hit.id] for hit in hits]
    assert [(-hit.score, hit.id) for hit in hits] == sorted((-hit.score, hit.id) for hit in hits)
    assert all(hit.score <= outcome.ceiling for hit in exact if hit not in hits)
    # A document that is no hit was looked at, and is worse, or was not.
    limit = max(outcome.ceiling, hits[-1].score) if len(hits) == k else outcome.ceiling
    found = {hit.id for hit in hits}
    assert all(hit.score <= limit for hit in exhaustive if hit.id not in found)
    for mine, best in zip(hits, exact, strict=False):
        assert mine.score >= (1 - outcome.shortfall) * best.score * (1 - 1e-12)
    if outcome.shortfall < 1:
        assert len(hits) == len(exact)
    if outcome.exact:
        assert hits == exact
        assert outcome.shortfall == 0
    if give_up is not None:
        assert outcome.shortfall <= give_up + 1e-12
    if give_up == 0:
        assert hits == exact
    assert outcome.documents >= len(exhaustive)
    for name in ("slices", "documents", "postings"):
        assert 0 <= getattr(outcome, f"{name}_skipped") <= getattr(outcome, name)
    if outcome.slices_skipped == 0:
        assert (outcome.ceiling, outcome.exact, outcome.documents_skipped) == (0, True, 0)
    else:
        assert outcome.ceiling > 0
        assert outcome.documents_skipped > 0


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 399), min_size=0, max_size=9),
    st.sampled_from([1, 3, 10, 100, 1000]),
    st.sampled_from([0.0, 0.05, 0.3, 0.9]),
    st.sampled_from([None, EVEN, FEW]),
)
def test_the_promises_hold(retriever: Retriever, words: list[int], k: int, give_up: float, filter: Any) -> None:
    query = " ".join(f"w{number}" for number in words)
    exhaustive = retriever.search(query, 3000, filter=filter)
    check(retriever.search_within(query, k, give_up=give_up, filter=filter), exhaustive, k, give_up)
    for milliseconds in (0, 0.02, 1000):
        check(retriever.search_within(query, k, milliseconds=milliseconds, filter=filter), exhaustive, k, None)
        both = retriever.search_within(query, k, give_up=give_up, milliseconds=milliseconds, filter=filter)
        check(both, exhaustive, k, None)


def test_a_time_of_nothing_looks_at_something_and_says_so(retriever: Retriever) -> None:
    outcome = retriever.search_within("w1 w2 w30", 50, milliseconds=0)
    assert 0 < len(outcome.hits) <= 3 * 8
    assert outcome.slices - outcome.slices_skipped == 3  # one of each segment
    assert 0 < outcome.documents - outcome.documents_skipped <= 3 * 8
    assert (outcome.exact, outcome.shortfall) == (False, 1)
    assert retriever.search_within("w1 w2 w30", 50, milliseconds=10_000).exact


def test_giving_up_more_looks_at_less(retriever: Retriever) -> None:
    skipped = [
        retriever.search_within("w1 w5 w60 w200", give_up=share).documents_skipped for share in (0, 0.2, 0.5, 0.9)
    ]
    assert skipped == sorted(skipped)
    assert skipped[0] < skipped[-1]


def test_what_matches_nothing_is_exact(retriever: Retriever) -> None:
    for query, filter in (("", None), ("unheard of", None), ("w1", {"field": "number", "operator": "<", "value": 0})):
        outcome = retriever.search_within(query, milliseconds=0, filter=filter)
        assert outcome == PartialSearch([], True, 0, 0, 0, 0, 0, 0, outcome.postings, outcome.postings)
    assert retriever.search_within("w1 unheard").hits == retriever.search("w1 unheard")


def test_an_empty_index_is_searched(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", []) as retriever:
        assert retriever.search_within("w1") == PartialSearch([], True, 0, 0, 0, 0, 0, 0, 0, 0)


def test_statistics_move_with_the_collection(tmp_path: Path) -> None:
    every = documents(600)
    with build(tmp_path / "idx", "lexical", [every[:300]]) as retriever:
        before = retriever.search_within("w1 w60")
        retriever.add(every[300:])
        after = retriever.search_within("w1 w60")
        assert after.hits == retriever.search("w1 w60") != before.hits


def test_several_ranges_of_rows() -> None:
    n, rng = 150_000, np.random.default_rng(3)
    lengths = rng.integers(1, 6, n)
    columns = rng.integers(0, 50, (n, 5)).cumsum(axis=1)[np.arange(5) < lengths[:, None]]
    vectors = csr((rng.gamma(1, 1, len(columns)) + 0.1).astype(np.float32), columns, lengths, 300)
    index = InvertedIndex.build(vectors, Spec("inverted"))
    query = csr(np.array([1, 2, 0.5, 3], np.float32), np.array([20, 40, 41, 200]), np.array([4]), 300)
    for k in (1, 10, 1000):
        exact, (found, looked) = index.search(query, k), index.search_within(query, k)
        assert found.rows[0].tolist() == exact.rows[0].tolist()
        assert found.scores[0].tobytes() == exact.scores[0].tobytes()
        assert looked.ceiling < exact.scores[0][-1]
        assert looked.postings_read < looked.postings / 2


@pytest.mark.parametrize("name", ["cranfield", "medline"])
def test_real_questions(name: str, collections: Path, tmp_path: Path) -> None:
    def records(file: str) -> list[dict[str, str]]:
        path = collections / name / file
        raw = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
        return [json.loads(line) for line in raw.splitlines() if line]

    every = [Document(one["_id"], one["text"], title=one.get("title", "")) for one in records("corpus.jsonl")]
    with build(tmp_path / "idx", "lexical", [every[:500], every[500:]]) as retriever:
        for question in records("queries.jsonl")[:40]:
            exhaustive = retriever.search(question["text"], len(every))
            for give_up in (0, 0.1, 0.5):
                check(retriever.search_within(question["text"], give_up=give_up), exhaustive, 10, give_up)
            check(retriever.search_within(question["text"], milliseconds=0.05), exhaustive, 10, None)


@pytest.mark.parametrize(
    ("kind", "index"), [("dense", "flat"), ("dense", "hnsw"), ("multi-vector", "maxsim"), ("multi-vector", "plaid")]
)
def test_other_kinds_refuse(kind: Any, index: str, tmp_path: Path) -> None:
    with (
        Retriever.build(tmp_path / "idx", documents(60), encoder=HashEncoder(kind), index=index) as retriever,
        pytest.raises(UnsupportedSearchError, match=f"{index} of {kind} vectors.*kind inverted"),
    ):
        retriever.search_within("w1", give_up=0.1)


def test_a_hybrid_refuses(tmp_path: Path) -> None:
    parts = [build(tmp_path / kind, kind, [documents(20)]) for kind in ("lexical", "sparse")]
    with (
        HybridRetriever(parts) as hybrid,
        pytest.raises(UnsupportedSearchError, match=r"kind inverted.*lexical, sparse"),
    ):
        hybrid.search_within("w1", give_up=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"give_up": 1}, "give_up is 1"),
        ({"give_up": -0.1}, "give_up is -0.1"),
        ({"give_up": float("nan")}, "give_up is nan"),
        ({"give_up": True}, "give_up is True"),
        ({"milliseconds": -1}, "milliseconds is -1"),
        ({"milliseconds": float("inf")}, "milliseconds is inf"),
        ({"milliseconds": "5"}, "milliseconds is '5'"),
        ({"k": 0}, "k is 0"),
        ({"query": ["w1"]}, "takes one string"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    retriever = build(tmp_path / "idx", "lexical", [documents(20)])
    with pytest.raises(QueryError, match=message):
        retriever.search_within(**({"query": "w1"} | arguments))
    retriever.close()
    with pytest.raises(IndexClosedError):
        retriever.search_within("w1")
    assert issubclass(UnsupportedSearchError, RetrieversError)
