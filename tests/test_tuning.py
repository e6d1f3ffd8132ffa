"""Targets for the recall: reached on vectors that were left out, deterministic, kept with the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from numpy.typing import NDArray
from test_dense_indexes import APPROXIMATE, FLAT, pairs, rewritten, unit, wanted

from retrievers import Document, Retriever
from retrievers.errors import IndexDamagedError, QueryError, SpecError
from retrievers.indexes import bitmaps
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.kinds import parse_index_spec
from retrievers.specs import Spec


def clustered(rng: np.random.Generator, n: int, dimension: int = 24) -> NDArray[np.float32]:
    centres = unit(rng, 40, dimension)
    values = centres[rng.integers(40, size=n)] + 0.8 * unit(rng, n, dimension)
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("spec", APPROXIMATE)
def test_a_target_for_the_recall_is_reached_on_vectors_that_were_left_out(spec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    vectors = clustered(rng, 5400)
    vectors, queries = vectors[:5000], vectors[5000:]
    best = [{row for row, _ in wanted(vectors, query, 10)} for query in queries]
    effort = []
    for target in (0.8, 0.97):
        kind = parse_index_spec(f"{spec}(recall={target})", "dense")
        index = ApproximateIndex.build(vectors, kind)
        found = index.search(queries, 10)
        recall = np.mean([len(best[at] & set(rows.tolist())) / 10 for at, rows in enumerate(found.rows)])
        report = index.settings
        assert report["recall"] >= target
        assert report["recall_queries"] >= 499  # every tenth row, but for where a graph is entered
        assert recall >= target - 0.03  # the sample's and the queries' chance together
        effort.append([report[name] for name in ("ef_search", "nprobe", "candidates") if name in report])
        place = tmp_path / str(target)
        place.mkdir()
        index.save(place)
        loaded = ApproximateIndex.load(place, kind)
        assert loaded.settings == report
        again = loaded.search(queries, 10)
        assert [pairs(again, at) for at in range(400)] == [pairs(found, at) for at in range(400)]
    assert effort[0] < effort[1] or spec == "sq8"


def test_tuning_is_deterministic_and_merging_tunes_anew() -> None:
    rng = np.random.default_rng(14)
    vectors = clustered(rng, 4000)
    for text in ("ivf(recall=0.9)", "rabitq(recall=0.9)", "ivfpq(recall=0.9)", "sq8(recall=0.9)", "binary(recall=0.9)"):
        kind = parse_index_spec(text, "dense")
        whole = ApproximateIndex.build(vectors, kind)
        parts = [ApproximateIndex.build(part, kind) for part in (vectors[:3800], vectors[3800:])]
        assert "recall" not in parts[1].settings  # scanned
        places = [np.arange(3800, dtype=np.int64), np.arange(3800, 4000, dtype=np.int64)]
        merged = ApproximateIndex.merge(list(zip(parts, places, strict=True)), kind)
        assert merged.settings == whole.settings == ApproximateIndex.build(vectors, kind).settings
        assert merged.settings["recall_queries"] == 400
        assert parts[0].settings["recall_queries"] == 380


def test_a_graph_without_some_of_its_nodes_meets_none_of_them() -> None:
    rng = np.random.default_rng(15)
    vectors = clustered(rng, 3000)
    graph = ApproximateIndex.build(vectors, Spec("hnsw", {"m": 6}))._index
    before = graph.links.copy()
    left_out = rng.random(3000) < 0.2
    left_out[graph.entry] = False
    rest = graph.without(left_out)
    assert (graph.links == before).all()
    for some, all_of_them in ((rest.links, graph.links), (rest.upper, graph.upper)):
        assert not left_out[some[some >= 0]].any()
        assert (some >= 0).sum() == (~left_out[all_of_them[all_of_them >= 0]]).sum()
        assert (np.diff((some < 0).astype(int), axis=1) >= 0).all()  # a list ends at its first -1
    rows = rest.propose(vectors, 10, None, 64)
    assert np.isin(rows[rows >= 0], np.flatnonzero(~left_out)).all()
    exact = FlatIndex.build(vectors, FLAT).search(vectors[:100], 10, allowed=bitmaps.pack(~left_out))
    assert np.mean([np.isin(exact.rows[at], rows[at]).mean() for at in range(100)]) > 0.9


def test_equal_vectors_do_not_make_a_target_unreachable() -> None:
    vectors = np.repeat(clustered(np.random.default_rng(16), 300), 10, axis=0)
    for spec in ("ivf", "binary"):
        kind = parse_index_spec(f"{spec}(recall=0.95)", "dense")
        assert ApproximateIndex.build(vectors, kind).settings["recall"] >= 0.95


@pytest.mark.parametrize(
    "tuned",
    [None, {}, {"recall": 1, "queries": 3, "values": {}}, {"recall": 0.9, "queries": 9, "values": {"nprobe": 0}}],
)
def test_damaged_tuning_is_found_when_opening(tuned: Any, tmp_path: Path) -> None:
    kind = parse_index_spec("ivf(recall=0.9)", "dense")
    ApproximateIndex.build(clustered(np.random.default_rng(17), 1000), kind).save(tmp_path)
    rewritten(tmp_path / "dense.json", tuned=tuned)
    with pytest.raises(IndexDamagedError, match="does not tell how the index was tuned"):
        ApproximateIndex.load(tmp_path, kind)


def test_without_questions_queries_are_harder_than_documents() -> None:
    """Sums of three documents left out: an index that finds .95 of them finds more of the documents' own best."""
    vectors = clustered(np.random.default_rng(18), 5400)
    vectors, documents = vectors[:5000], vectors[5000:]
    index = ApproximateIndex.build(vectors, parse_index_spec("binary(recall=0.9)", "dense"))
    exact = FlatIndex.build(vectors, FLAT).search(documents, 10).rows
    found = index.search(documents, 10).rows
    assert np.mean([np.isin(best, rows).mean() for best, rows in zip(exact, found, strict=True)]) > 0.9


def retriever(tmp_path: Path, spec: str, count: int = 3000) -> Retriever:
    random = np.random.default_rng(5)
    words = [f"word{number}" for number in range(300)]
    documents = [Document(f"d{n:04}", " ".join(random.choice(words, 12))) for n in range(count)]
    return Retriever.build(tmp_path / "idx", documents, encoder=HashEncoder("dense"), index=spec)


@pytest.mark.parametrize(
    "spec", ["hnsw(m=4,recall=0.9)", "ivf", "rabitq", "binary(candidates=10)", "ivfpq(m=4,nbits=4)"]
)
def test_an_index_is_tuned_by_questions(tmp_path: Path, spec: str) -> None:
    random = np.random.default_rng(6)
    questions = [" ".join(f"word{number}" for number in random.integers(0, 300, 3)) for _ in range(600)]
    with retriever(tmp_path, spec) as index:
        truth = Retriever.build(
            tmp_path / "flat", map(index.get, [f"d{n:04}" for n in range(3000)]), encoder=HashEncoder("dense")
        ).search(questions[300:], 10)
        best = [{hit.id for hit in hits} for hits in truth]

        def recall() -> float:
            found = index.search(questions[300:], 10)
            return float(
                np.mean([len(some & {hit.id for hit in hits}) / 10 for some, hits in zip(best, found, strict=True)])
            )

        values = index.tune(questions[:300], recall=0.95)
        assert recall() >= 0.92  # the chance of two samples of 300 questions
        kept = dict(index.index.parameters)
        assert "recall" not in kept
        assert {name: kept[name] for name in values} == values
        loose = index.tune(questions[:300], recall=0.5)
        assert all(loose[name] <= values[name] for name in values)
        assert index.tune(questions[:300], recall=0.95) == values
    with Retriever.open(tmp_path / "idx", encoder=HashEncoder("dense")) as again:
        assert str(again.index) == str(Spec(again.index.name, kept))
        again.delete([f"d{n:04}" for n in range(0, 3000, 3)])
        again.add([Document(f"new{n}", f"word{n} word{n + 1}") for n in range(200)])
        assert again.tune(questions[:300], recall=0.9)  # over two segments, one of which is scanned
        assert again.merge() == 1
        assert len(again.search(questions[0], 10)) == 10


def test_what_cannot_be_tuned_is_refused(tmp_path: Path) -> None:
    index = retriever(tmp_path, "flat", 10)
    with index, pytest.raises(SpecError, match="flat cannot be tuned by questions; kinds that can are hnsw"):
        index.tune(["word1"])
    (tmp_path / "few").mkdir()
    with retriever(tmp_path / "few", "hnsw(recall=0.9)", 100) as index:
        assert index.tune(["word1 word2"]) == {}
        assert str(index.index) == "hnsw(recall=0.9)"
        for questions, options in ((["word1"], {"recall": 1.0}), ([], {}), ("word1", {}), (["word1"], {"k": 0})):
            with pytest.raises(QueryError):
                index.tune(questions, **options)  # type: ignore[arg-type]
