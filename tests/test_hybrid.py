"""Hybrid search against fusing the searches of its parts by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from numpy.typing import NDArray

from retrievers import Document, Hit, Retriever
from retrievers.errors import (
    FilterTypeError,
    HybridError,
    IndexClosedError,
    IndexNotFoundError,
    QueryError,
    SpecError,
    UnknownIdError,
)
from retrievers.evaluation import evaluate
from retrievers.fusion import ReciprocalRanks, fuse
from retrievers.hybrid import HybridRetriever
from retrievers.queries import read_queries
from retrievers.readers import read_beir
from retrievers.runs import read_qrels, run_of

N = 300
QUERIES = ["w1 w2 w3", "w7", "Title 3 w50 w49 w7 w7", "nothing here", "w11 w11 w30", ""]


def collection() -> list[Document]:
    rng = np.random.default_rng(5)
    words = [f"w{at}" for at in range(60)]
    return [
        Document(
            f"doc-{at}",
            " ".join(rng.choice(words, size=int(rng.integers(1, 12)))),
            title=f"Title {at % 5}",
            metadata={"rank": at},
        )
        for at in range(N)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lexical, a dense and a multi-vector index of one collection, which no test changes."""
    path = tmp_path_factory.mktemp("hybrid")
    Retriever.build(path / "words", collection()).close()
    Retriever.build(path / "dense", collection(), encoder=HashEncoder("dense")).close()
    Retriever.build(path / "tokens", collection(), encoder=HashEncoder("multi-vector")).close()
    return path


@pytest.fixture
def parts(folder: Path) -> Iterator[list[Retriever]]:
    with (
        Retriever.open(folder / "words") as words,
        Retriever.open(folder / "dense", encoder=HashEncoder("dense")) as dense,
        Retriever.open(folder / "tokens", encoder=HashEncoder("multi-vector")) as tokens,
    ):
        yield [words, dense, tokens]


def by_hand(found: list[list[Hit]], fusion: str, weights: list[float]) -> list[tuple[str, float]]:
    """Formulas once more, in plain Python."""
    scores = {hit.id: 0.0 for hits in found for hit in hits}
    for hits, weight in zip(found, weights, strict=True):
        if not hits:
            continue
        place = {hit.id: rank for rank, hit in enumerate(hits, 1)}
        given = {hit.id: hit.score for hit in hits}
        low, high = min(given.values()), max(given.values())
        mean = sum(given.values()) / len(given)
        deviation = (sum((score - mean) ** 2 for score in given.values()) / len(given)) ** 0.5
        for id in scores:
            if fusion == "rrf":
                value = 1 / (60 + place[id]) if id in place else 0.0
            elif fusion == "convex":
                value = (given.get(id, low) - low) / (high - low) if low < high else float(id in given)
                value /= sum(weights)
            else:
                value = (given.get(id, low) - mean) / deviation if low < high else 0.0
                value /= sum(weights)
            scores[id] += weight * value
    return sorted(scores.items(), key=lambda item: (-round(item[1], 9), item[0]))


@pytest.mark.parametrize("fusion", ["rrf", "convex", "convex(normalise=z)"])
@pytest.mark.parametrize(("some", "weights"), [([0, 1], None), ([1, 0], [0.25, 1.5]), ([0, 1, 2], [2.0, 0.5, 1.0])])
@pytest.mark.parametrize("bound", [None, -1, 0, 3, 30, 200, 298, 1000])
def test_searches_are_fused_as_by_hand(
    fusion: str, some: list[int], weights: list[float] | None, bound: int | None, parts: list[Retriever]
) -> None:
    chosen = [parts[at] for at in some]
    condition = None if bound is None else {"field": "rank", "operator": "<=", "value": bound}
    for depth, k in ((50, 10), (50, 50), (20, 70), (1000, 1000)):
        hybrid = HybridRetriever(chosen, fusion=fusion, weights=weights, depth=depth)
        many = hybrid.search(QUERIES, k, filter=condition)
        assert many == [hybrid.search(query, k, filter=condition) for query in QUERIES]
        for query, hits in zip(QUERIES, many, strict=True):
            found = [part.search(query, max(depth, k), filter=condition) for part in chosen]
            wanted = by_hand(found, fusion, weights or [1.0] * len(chosen))[:k]
            assert [hit.id for hit in hits] == [id for id, _ in wanted]
            assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], rel=1e-9, abs=1e-9)
            assert [hit.document for hit in hits] == [chosen[0].get(hit.id) for hit in hits]
            assert bound is None or all(hit.document.metadata["rank"] <= bound for hit in hits)
        if bound == -1:
            assert many == [[] for _ in QUERIES]
        else:
            assert any(many)


class Counting(HashEncoder):
    calls: int = 0

    def encode_query(self, texts: Any) -> Any:
        self.calls += 1
        return super().encode_query(texts)


def test_a_batch_searches_each_part_once(folder: Path) -> None:
    encoders = [Counting("dense"), Counting("multi-vector")]
    with HybridRetriever(
        [
            Retriever.open(folder / name, encoder=encoder)
            for name, encoder in zip(("dense", "tokens"), encoders, strict=True)
        ]
    ) as hybrid:
        assert len(hybrid.search(QUERIES)) == len(QUERIES)
        assert [encoder.calls for encoder in encoders] == [1, 1]
        assert hybrid.search([]) == []


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    names = ["b", "a", "Z", "é", "10", "9", "\U0001f600", "A b"]
    documents = [Document(name, "same text") for name in names]
    for fusion in ("convex", "convex(normalise=z)"):
        with HybridRetriever(
            [
                Retriever.build(tmp_path / fusion / "a", documents),
                Retriever.build(tmp_path / fusion / "b", documents, encoder=HashEncoder("dense")),
            ],
            fusion=fusion,
        ) as hybrid:
            hits = hybrid.search("same text", 20)
            assert [hit.id for hit in hits] == sorted(names)
            assert len({hit.score for hit in hits}) == 1
            assert [hit.id for hit in hybrid.search("same text", 3)] == sorted(names)[:3]


@pytest.mark.parametrize("fusion", ["rrf", "convex", "convex(normalise=z)", "convex(normalise=none)"])
def test_explanations_sum_to_the_score(fusion: str, parts: list[Retriever]) -> None:
    hybrid = HybridRetriever(parts, fusion=fusion, weights=(2, 1, 0.5), depth=20)
    condition = {"field": "rank", "operator": ">", "value": 100}
    lacking = 0
    for query in ("w1 w2 w3", "w7 w50", "nothing here"):
        for k, filter in ((10, None), (40, None), (20, condition)):
            found = [part.search(query, max(20, k), filter=filter) for part in parts]
            for hit in hybrid.search(query, k, filter=filter):
                told = hybrid.explain(query, hit.id, k=k, filter=filter)
                assert (told.query, told.id, told.score) == (query, hit.id, hit.score)
                assert sum(part.score for part in told.contributions) == pytest.approx(hit.score, rel=1e-6, abs=1e-9)
                assert [part.score for part in told.contributions] == sorted(
                    (part.score for part in told.contributions), reverse=True
                )
                matches = {part.term: part.match for part in told.contributions}
                assert set(matches) == {"words", "dense", "tokens"}
                for name, hits in zip(("words", "dense", "tokens"), found, strict=True):
                    ranks = {one.id: rank for rank, one in enumerate(hits, 1)}
                    if hit.id in ranks:
                        score = hits[ranks[hit.id] - 1].score
                        assert matches[name] == f"rank {ranks[hit.id]}, score {score:.6g}"
                    else:
                        lacking += 1
                        assert matches[name] == (f"not among the {len(hits)} found" if hits else "nothing found")
    assert lacking > 10


def test_explaining_what_no_part_finds_so_far_up(parts: list[Retriever]) -> None:
    hybrid = HybridRetriever(parts[:2], fusion="convex(normalise=none)", depth=5)
    near = {hit.id for hit in hybrid.search("w1 w2", 10)}
    far = next(document.id for document in collection() if document.id not in near)
    told = hybrid.explain("w1 w2", far, k=5)
    assert told.score == 0
    assert [(part.match, part.score) for part in told.contributions] == [("not among the 5 found", 0)] * 2
    with pytest.raises(UnknownIdError, match=r"no part holds a document with id 'nobody': the parts are words, dense"):
        hybrid.explain("w1", "nobody")


def test_parts_that_hold_other_documents(tmp_path: Path) -> None:
    documents = collection()[:40]
    first = Retriever.build(tmp_path / "x" / "idx", documents[:30], encoder=HashEncoder("dense"))
    second = Retriever.build(tmp_path / "y" / "idx", documents[20:], encoder=HashEncoder("multi-vector"))
    with HybridRetriever([first, second]) as hybrid:
        assert hybrid.names == (str(tmp_path / "x" / "idx"), str(tmp_path / "y" / "idx"))
        assert len(hybrid) == 30
        assert {hit.id for hit in hybrid.search("w1", 100)} == {document.id for document in documents}
        assert all(document.id in hybrid for document in documents)
        assert "nobody" not in hybrid
        assert 3 not in hybrid
        assert [hybrid.get(document.id) for document in documents] == documents
        assert hybrid.held(["doc-0", "nobody", "doc-25", "doc-39"]) == {"doc-0", "doc-25", "doc-39"}
        assert hybrid.held(iter([])) == set()
        with pytest.raises(UnknownIdError, match="no part holds a document with id 'nobody'"):
            hybrid.get("nobody")


@pytest.mark.parametrize(("field", "change"), [("text", {"text": "w1 other"}), ("title", {"title": "Other"})])
def test_documents_that_differ_between_parts_are_refused(field: str, change: dict[str, str], tmp_path: Path) -> None:
    documents = [Document("a", "w1 same", metadata={"n": 1}), Document("b", "w1 one", title="Title")]
    changed = Document(**{"id": "b", "text": "w1 one", "title": "Title", **change})
    with HybridRetriever(
        [
            Retriever.build(tmp_path / "old", documents),
            Retriever.build(tmp_path / "new", [documents[0], changed], encoder=HashEncoder("dense")),
        ]
    ) as hybrid:
        with pytest.raises(HybridError, match=f"document 'b' has the {field} .*/old, and .*/new: build both"):
            hybrid.search("w1")
        # Where it is not found, nothing is known of it.
        assert [hit.id for hit in hybrid.search("w1", filter={"field": "n", "operator": "==", "value": 1})] == ["a"]


def test_the_document_of_a_hit_is_that_of_the_first_part(tmp_path: Path) -> None:
    with HybridRetriever(
        [
            Retriever.build(tmp_path / "a", [Document("d", "w1", metadata={"from": "a"})]),
            Retriever.build(tmp_path / "b", [Document("d", "w1", metadata={"from": "b"}), Document("e", "w1")]),
        ]
    ) as hybrid:
        assert {hit.id: dict(hit.document.metadata) for hit in hybrid.search("w1")} == {"d": {"from": "a"}, "e": {}}
        assert hybrid.get("d").metadata == {"from": "a"}


def test_opening_and_closing(tmp_path: Path) -> None:
    documents = collection()[:20]
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, encoder in zip(paths, ("bm25", "bm25(k1=2.0, b=0.1)"), strict=True):
        Retriever.build(path, documents, encoder=encoder).close()
    with HybridRetriever.open(paths, fusion="convex", weights=(3, 1), depth=7) as hybrid:
        assert (str(hybrid.fusion), hybrid.weights, hybrid.depth) == ("convex(normalise=min-max)", (0.75, 0.25), 7)
        assert hybrid.names == ("one", "two")
        assert [part.path for part in hybrid.parts] == paths
        assert "one" in repr(hybrid)
        assert hybrid.search("w1 w2")
    for call in (
        lambda: hybrid.search("w1"),
        lambda: hybrid.get("doc-1"),
        lambda: hybrid.held(["doc-1"]),
        lambda: len(hybrid),
    ):
        with pytest.raises(IndexClosedError, match="is closed"):
            call()
    with pytest.raises(IndexNotFoundError):
        HybridRetriever.open([paths[0], tmp_path / "three"])
    with pytest.raises(HybridError, match="is one path: give a list"):
        HybridRetriever.open(str(paths[0]))
    assert HybridRetriever.open(iter(map(str, paths))).fusion == ReciprocalRanks(60)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: HybridRetriever([]), HybridError, "two parts or more, and 0 came"),
        (lambda p: HybridRetriever(p[:1]), HybridError, "two parts or more, and 1 came"),
        (
            lambda p: HybridRetriever([*p, p[1]]),
            HybridError,
            "parts 1 and 3 are the same index, .*dense: give each once",
        ),
        (
            lambda p: HybridRetriever([p[0], Retriever.open(p[0].path.parent / "tokens" / ".." / "words")]),
            HybridError,
            "parts 0 and 1 are the same index",
        ),
        (lambda p: HybridRetriever([p[0], "dense"]), HybridError, "part 1 is a str"),
        (lambda p: HybridRetriever(p, weights=(1, 2)), SpecError, "2 weights for 3 parts"),
        (lambda p: HybridRetriever(p, fusion="sum"), SpecError, "no fusion 'sum'"),
        (lambda p: HybridRetriever(p, depth=0), QueryError, "depth is 0"),
        (lambda p: HybridRetriever(p).search("x", k=0), QueryError, "k is 0"),
        (lambda p: HybridRetriever(p).search("x", k=2.5), QueryError, "k is 2.5"),
        (lambda p: HybridRetriever(p).search([], k=True), QueryError, "k is True"),
        (lambda p: HybridRetriever(p).search(["x", 3]), QueryError, "query 1 is a int, 3"),
        (
            lambda p: HybridRetriever(p).search("x", filter={"field": "rank", "operator": ">", "value": "2010"}),
            FilterTypeError,
            "rank",
        ),
    ],
)
def test_bad_calls_are_refused(
    call: Callable[[list[Retriever]], Any], error: type[Exception], message: str, parts: list[Retriever]
) -> None:
    with pytest.raises(error, match=message):
        call(parts)


@pytest.mark.parametrize("fusion", ["rrf", "convex", "convex(normalise=z)"])
def test_on_a_real_collection_the_hybrid_is_the_fusion_of_the_runs(
    fusion: str, cranfield: list[Retriever], collections: Path
) -> None:
    queries = {query.id: query.text for query in read_queries(str(collections / "cranfield" / "queries.jsonl"))}
    qrels = read_qrels(collections / "cranfield" / "qrels" / "test.tsv")
    hybrid = evaluate(HybridRetriever(cranfield, fusion=fusion), queries, qrels, "nDCG@10", k=100)
    runs = [run_of(queries, part.search(list(queries.values()), 100)) for part in cranfield]
    fused = evaluate(fuse(runs, fusion, depth=100), None, qrels, "nDCG@10")
    assert hybrid.means == fused.means
    assert hybrid.values == fused.values
    assert hybrid.means["nDCG@10"] > 0.3
    # The two parts do differ, so that there is something to fuse.
    alone = [evaluate(run, None, qrels, "nDCG@10").means["nDCG@10"] for run in runs]
    assert len({*alone, hybrid.means["nDCG@10"]}) == 3


@pytest.fixture(scope="module")
def cranfield(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Retriever]]:
    path = tmp_path_factory.mktemp("cranfield")
    documents = list(read_beir(collections / "cranfield"))
    with (
        Retriever.build(path / "english", documents) as english,
        Retriever.build(path / "plain", documents, encoder="bm25(language=none)") as plain,
    ):
        yield [english, plain]


class Length:
    """A reranker: the longer the text, the better, and as many points for a word of the query in it."""

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        return [
            np.array([len(d.text) + 9 * (q.split()[:1] == d.text.split()[:1]) for d in found], np.float32)
            for q, found in zip(queries, documents, strict=True)
        ]


@pytest.mark.parametrize("k", [1, 5, 60])
def test_the_best_of_the_fused_are_reranked(k: int, parts: list[Retriever]) -> None:
    hybrid, reranker = HybridRetriever(parts, depth=40), Length()
    lower = {"field": "rank", "operator": "<", "value": 120}
    for query, found in zip(QUERIES[:5], hybrid.search(QUERIES[:5], k, filter=lower, rerank=reranker), strict=True):
        hits = hybrid.search(query, max(k, 40), filter=lower)[: max(k, 40)]
        ((scores,), ids) = reranker.score([query], [[hit.document for hit in hits]]), [hit.id for hit in hits]
        best = sorted(zip((-scores).tolist(), ids, strict=True))[:k]
        assert [(-hit.score, hit.id) for hit in found] == best
        assert hybrid.search(query, k, filter=lower, rerank=reranker) == found
