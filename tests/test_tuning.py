"""Targets for the recall: reached on vectors that were left out, deterministic, kept with the index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from test_dense_indexes import APPROXIMATE, FLAT, pairs, rewritten, unit, wanted

from retrievers.errors import IndexDamagedError
from retrievers.indexes import bitmaps, tuning
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
        assert [pairs(loaded.search(queries, 10), at) for at in range(400)] == [pairs(found, at) for at in range(400)]
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


def test_tuning_leaves_a_graph_as_it_was_and_meets_none_of_its_queries() -> None:
    rng = np.random.default_rng(15)
    vectors = clustered(rng, 3000)
    index = ApproximateIndex.build(vectors, Spec("hnsw", {"m": 6}))
    graph = index._index.hnsw
    links = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    before = links.copy()
    left_out = rng.random(3000) < 0.2
    left_out[graph.entry_point] = False
    with tuning.without(graph, left_out):
        assert not left_out[links[links >= 0]].any()
        kept = np.flatnonzero(~left_out)
        assert (links >= 0).sum() == sum(1 for link in before[before >= 0] if not left_out[link])
        rows = index._index.search(vectors, 20)[1]
        assert np.isin(rows[rows >= 0], kept).all()
        exact = FlatIndex.build(vectors, FLAT).search(vectors[:100], 10, allowed=bitmaps.pack(~left_out))
        assert np.mean([np.isin(exact.rows[at], rows[at]).mean() for at in range(100)]) > 0.9
    assert (links == before).all()


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
