"""Rerankers in a search and on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import ref

import models
import numpy as np
import pytest
from hashing import HashEncoder
from numpy.typing import NDArray
from reranking import Lengths, maxsim, predicted, words

from retrievers import (
    CrossEncoderReranker,
    Document,
    Hit,
    HybridRetriever,
    MultiVectorReranker,
    Retriever,
    rerankers,
)
from retrievers.errors import ModelNotFoundError, QueryError, ScoreError
from retrievers.rerankers import as_reranker

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

YEAR = {"field": "year", "operator": ">=", "value": 2010}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_cross_encoder(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def cross(folder: Path) -> CrossEncoderReranker:
    return CrossEncoderReranker(folder, device="cpu")


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-vector model under a name that says something else."""
    return models.make_multi_vector(tmp_path_factory.mktemp("saved") / "cross-encoder")


def ordered(scores: dict[str, float], k: int) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:k]


def pairs(hits: Sequence[Hit]) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in hits]


class Fixed:
    """Gives what it was told to give."""

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[NDArray[np.float32]]:
        return self.scores  # type: ignore[no-any-return]


def test_reranking_everything_is_an_exhaustive_search(tmp_path: Path) -> None:
    found = words(150)
    with (
        Retriever.build(tmp_path / "lexical", found) as lexical,
        Retriever.build(tmp_path / "late", found, encoder=HashEncoder("multi-vector")) as index,
    ):
        reranker = MultiVectorReranker(HashEncoder("multi-vector"))
        for query in ("all w1 w2 w3", "all w50"):
            for k in (1, 10, 150):
                hits = lexical.search(query, k, rerank=reranker, depth=150)
                assert pairs(hits) == ordered({d.id: maxsim(query, d.content) for d in found}, k)
                # The vectors of HashEncoder are whole multiples of 1/128, which float16 holds.
                assert hits == index.search(query, k)
        assert lexical.search("all w1", rerank=reranker, depth=150) != lexical.search("all w1")


def test_what_has_no_tokens_stays_among_the_hits(tmp_path: Path) -> None:
    found = [*words(8), Document("empty", ""), Document("blank", " ")]
    late = HashEncoder("multi-vector")
    with (
        Retriever.build(tmp_path / "dense", found, encoder=HashEncoder("dense")) as dense,
        Retriever.build(tmp_path / "late", found, encoder=late) as index,
    ):
        hits = dense.search("w1 w2", 10, rerank=late)
        assert pairs(hits) == ordered({d.id: maxsim("w1 w2", d.content) for d in found}, 10)
        assert {hit.id for hit in hits if hit.score == 0} == {"blank", "empty"}
        assert pairs(index.search("w1 w2", 10)) == [pair for pair in pairs(hits) if pair[0] not in ("blank", "empty")]
        assert pairs(dense.search("", 10, rerank=late)) == [(id, 0.0) for id in sorted(d.id for d in found)]
        assert index.search("", 10) == []


def test_depth_is_what_the_reranker_sees(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", words(150)) as retriever:
        query = "all w1 w2 w3"
        first = retriever.search(query, 150)
        for k, depth in ((3, 20), (20, 20), (1, 500), (10, np.int64(30))):
            reranker = Lengths()
            hits = retriever.search(query, k, rerank=reranker, depth=depth)  # type: ignore[arg-type]
            assert reranker.seen == [[[hit.id for hit in first[: int(depth)]]]]
            wanted = ordered({hit.id: -float(len(hit.document.text)) for hit in first[: int(depth)]}, k)
            assert pairs(hits) == wanted
            assert [hit.document for hit in hits] == [retriever.get(id) for id, _ in wanted]
        reranker = Lengths()
        retriever.search(query, rerank=reranker)
        assert len(reranker.seen[0][0]) == 100


def test_many_queries_at_once_are_reranked_as_one_by_one(tmp_path: Path, cross: CrossEncoderReranker) -> None:
    with Retriever.build(tmp_path / "idx", words(60)) as retriever:
        queries = ["all w1", "nowhere", "w2 w3", "w50"]
        for reranker in (Lengths(), MultiVectorReranker(HashEncoder("multi-vector"))):
            many = retriever.search(queries, 5, rerank=reranker, depth=20)
            assert many == [retriever.search(query, 5, rerank=reranker, depth=20) for query in queries]
            assert [len(hits) for hits in many][:2] == [5, 0]
        many = retriever.search(queries, 5, rerank=cross, depth=20)
        for query, hits in zip(queries, many, strict=True):
            alone = retriever.search(query, 5, rerank=cross, depth=20)
            np.testing.assert_allclose([h.score for h in hits], [h.score for h in alone], atol=1e-5)
            wanted = predicted(cross.model, query, [hit.document for hit in hits])
            np.testing.assert_allclose([h.score for h in hits], wanted, atol=1e-5)
            scores = predicted(cross.model, query, [h.document for h in retriever.search(query, 20)])
            np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:5], atol=1e-5)
        lengths = Lengths()
        assert retriever.search(["nowhere"], rerank=lengths) == [[]]
        assert retriever.search([], rerank=lengths) == []
        assert lengths.seen == []


@pytest.mark.parametrize("kind", ["lexical", "dense", "sparse", "multi-vector"])
def test_filters_hold_before_the_reranker(kind: Any, tmp_path: Path) -> None:
    encoder: Any = "bm25" if kind == "lexical" else HashEncoder(kind)
    with Retriever.build(tmp_path / "idx", words(200), encoder=encoder) as retriever:
        reranker = Lengths()
        hits = retriever.search("all w1 w2", 10, filter=YEAR, rerank=reranker, depth=40)
        permitted = retriever.search("all w1 w2", 40, filter=YEAR)
        assert reranker.seen == [[[hit.id for hit in permitted]]]
        assert len(permitted) == 40
        assert all(hit.document.metadata["year"] >= 2010 for hit in hits)
        assert pairs(hits) == ordered({hit.id: -float(len(hit.document.text)) for hit in permitted}, 10)


def test_equal_scores_come_in_the_order_of_ids(tmp_path: Path) -> None:
    names = ["b", "a", "Z", "é", "10", "9", "aa", "日本", "\U0001f600", "A b"]
    found = [Document(name, "same text" + " again" * at) for at, name in enumerate(names)]
    with Retriever.build(tmp_path / "idx", found) as retriever:
        hits = retriever.search("same", rerank=Fixed([np.zeros(10, np.float32)]))
        assert [hit.id for hit in hits] == sorted(names)
        assert [hit.id for hit in retriever.search("same")] != sorted(names)
        hits = retriever.search("same", 3, rerank=Fixed([np.zeros(10, np.float32)]))
        assert [hit.id for hit in hits] == sorted(names)[:3]
        assert all(type(hit.score) is float for hit in hits)


def test_a_search_takes_models_as_they_are(tmp_path: Path, folder: Path, cross: CrossEncoderReranker) -> None:
    with Retriever.build(tmp_path / "idx", words(20)) as retriever:
        wanted = retriever.search("all w1", 5, rerank=cross)
        assert wanted != retriever.search("all w1", 5)
        assert retriever.search("all w1", 5, rerank=cross.model) == wanted
        for hit, other in zip(retriever.search("all w1", 5, rerank=folder), wanted, strict=True):
            assert (hit.id, hit.score) == (other.id, pytest.approx(other.score, abs=1e-5))
        late = HashEncoder("multi-vector")
        assert retriever.search("all w1", rerank=late) == retriever.search("all w1", rerank=MultiVectorReranker(late))


def test_a_named_model_is_loaded_once(
    tmp_path: Path, folder: Path, late: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(value: Any) -> Any:
        loaded.append(Path(value).name)
        return as_reranker(value)

    monkeypatch.setattr(rerankers, "as_reranker", load)
    with (
        Retriever.build(tmp_path / "a", words(20)) as one,
        Retriever.build(tmp_path / "b", words(20)) as other,
        HybridRetriever([one, other]) as hybrid,
    ):
        for search in (one.search, hybrid.search):
            loaded.clear()
            first = search("all w1", 5, rerank=folder)
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda _, search=search: search("all w1", 5, rerank=str(folder)), range(8)))
            assert found == [first] * 8
            assert loaded == [folder.name]
            assert search("all w1", 5, rerank=late) != first
            assert search("all w1", 5, rerank=folder) == first  # one model is kept, the last
            assert loaded == [folder.name, late.name, folder.name]
            with pytest.raises(ModelNotFoundError, match="nowhere"):
                search("all w1", 5, rerank=tmp_path / "nowhere")
            assert search("all w1", 5, rerank=folder) == first
        monkeypatch.chdir(folder.parent)
        assert one.search("all w1", 5, rerank=folder.name) == first
        monkeypatch.chdir(late.parent)
        with pytest.raises(ModelNotFoundError, match=folder.name):
            one.search("all w1", 5, rerank=folder.name)
        kept = ref(one._reranker.get(folder))
        assert kept() is not None
    assert kept() is None  # closed, it holds no model


def test_depth_is_checked(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", words(20)) as retriever:
        for depth in (5, 0, -1):
            with pytest.raises(QueryError, match=rf"depth is {depth}, below k, which is 6"):
                retriever.search("all", 6, rerank=Lengths(), depth=depth)
        for wrong in (10.0, "10", True, None):
            with pytest.raises(QueryError, match=f"depth is {wrong!r}: it must be a whole number"):
                retriever.search("all", 1, rerank=Lengths(), depth=wrong)  # type: ignore[call-overload]
        with pytest.raises(QueryError, match="depth is 100, below k, which is 101"):
            retriever.search("all", 101, rerank=Lengths())
        assert len(retriever.search("all", 101)) == 20, "depth is the reranker's alone"


def test_scores_that_order_nothing_stop_a_search(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", words(3)) as retriever:
        ids = [hit.id for hit in retriever.search("all")]
        with pytest.raises(ScoreError, match=f"Fixed scored document '{ids[1]}' for query 'all' as nan"):
            retriever.search("all", rerank=Fixed([np.array([1, np.nan, 2], np.float32)]))
        with pytest.raises(ScoreError, match=r"Fixed gave float32 \[2\] for query 'all', .* each of 3 documents"):
            retriever.search("all", rerank=Fixed([np.zeros(2, np.float32)]))
        with pytest.raises(ScoreError, match=r"Fixed gave <U1 \[3\]"):
            retriever.search("all", rerank=Fixed([["a", "b", "c"]]))
        with pytest.raises(ScoreError, match="scores for 2 queries, and was asked about 1"):
            retriever.search("all", rerank=Fixed([np.zeros(3)] * 2))
        hits = retriever.search("all", rerank=Fixed([[1, 3, 2]]))
        assert [(hit.id, hit.score) for hit in hits] == [(ids[1], 3), (ids[2], 2), (ids[0], 1)]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "retrievers", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_reranks(tmp_path: Path, folder: Path, late: Path) -> None:
    index = tmp_path / "idx"
    with Retriever.build(index, words(40)) as retriever:
        for model, depth in ((folder, 7), (late, 40)):
            done = command(
                "search", index, "all w1", "-k", 3, "--rerank", model, "--depth", depth, "--device", "cpu",
                "--format", "json", "--filter", json.dumps(YEAR),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            reranker = as_reranker(model, device="cpu")
            wanted = retriever.search("all w1", 3, filter=YEAR, rerank=reranker, depth=depth)
            hits = json.loads(done.stdout)["hits"]
            assert [hit["id"] for hit in hits] == [hit.id for hit in wanted]
            assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-4)
            assert [hit.id for hit in wanted] != [hit.id for hit in retriever.search("all w1", 3, filter=YEAR)]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--rerank", "{model}", "--explain"], 2, "--explain"),
        (["--depth", "10"], 2, "--depth"),
        (["--rerank", "{model}", "--depth", "9"], 2, "--depth"),
        (["--rerank", "{model}", "-k", "101"], 2, "--depth"),
        (["--rerank", "{model}", "--depth", "0"], 2, "--depth"),
        (["--rerank", "./nowhere"], 1, "error: no folder at ./nowhere"),
    ],
)
def test_the_command_refuses(arguments: list[str], code: int, told: str, tmp_path: Path, folder: Path) -> None:
    Retriever.build(tmp_path / "idx", words(3)).close()
    done = command("search", tmp_path / "idx", "all", *(word.format(model=folder) for word in arguments))
    assert done.returncode == code
    assert told in done.stderr
    assert "Traceback" not in done.stderr
