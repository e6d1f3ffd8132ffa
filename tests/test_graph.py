"""Graphs: walks beside those of FAISS, files of this version and of older ones, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from graph_cases import graph_case, run_damaged_graph, run_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_kernels import compiled_module, needs_compiled

from retrievers.errors import IndexDamagedError
from retrievers.indexes import _graph_numpy, arrays, bitmaps
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.graph import Graph
from retrievers.indexes.sieve import Sieve
from retrievers.specs import Spec

HNSW = Spec("hnsw", {"m": 8, "ef_construction": 60})


def clustered(n: int, dimension: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(n)
    values = rng.standard_normal((50, dimension))[rng.integers(50, size=n)] + 0.7 * rng.standard_normal((n, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def found_share(index: Any, vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int = 10) -> float:
    exact = FlatIndex.build(vectors, Spec("flat")).search(queries, k).rows
    rows = index.search(queries, k)[1] if hasattr(index, "hnsw") else index.search(queries, k).rows
    return float(np.mean([np.isin(best, some).mean() for best, some in zip(exact, rows, strict=True)]))


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_walk_equals_its_twin_bit_for_bit(seed: int) -> None:
    case = graph_case(seed)
    assert run_graph(compiled_module(), case) == run_graph(_graph_numpy, case)
    run_damaged_graph(compiled_module(), seed)


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "twin"])
@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 0},
        {"codes": np.zeros((40, 2), np.int8)},
        {"bounds": np.zeros((2, 39), np.float32)},
        {"spread": np.zeros((1, 3), np.float32)},
        {"links": np.zeros(41, np.int32)},
        {"starts": np.zeros(0, np.int32)},
        {"upper_width": 0},
        {"upper_width": 3, "upper": np.zeros((2, 2), np.int32)},
        {"entry": 40},
        {"levels": -1},
        {"queries": np.zeros(4, np.float32)},
        {"mask": np.zeros(4, np.uint8)},
        {"effort": 0},
    ],
    ids=str,
)
def test_what_makes_a_graph_must_fit(module: str, change: dict[str, Any]) -> None:
    chosen = compiled_module() if module == "compiled" else _graph_numpy
    sieve = Sieve.of(np.ones((40, 3), np.float32))
    nothing = {"starts": np.full(40, -1, np.int32), "upper": np.zeros((0, 2), np.int32), "upper_width": 2}
    case: dict[str, Any] = {
        "dimension": 3,
        **vars(sieve),
        "links": np.full((40, 2), -1, np.int32),
        **nothing,
        "entry": 7,
        "levels": 0,
        "queries": np.zeros((2, 3), np.float32),
        "mask": None,
        "effort": 5,
        "count": 2,
    }
    assert run_graph(chosen, case) == (0, [[7, -1], [7, -1]])
    with pytest.raises(ValueError, match="fit"):
        run_graph(chosen, case | change)


@pytest.mark.parametrize("effort", [10, 30, 100])
def test_a_walk_by_codes_finds_what_faiss_finds_by_vectors(effort: int) -> None:
    vectors = clustered(6000, 48)
    vectors, queries = vectors[:5600], vectors[5600:]
    bare = faiss.IndexHNSWFlat(48, 8, faiss.METRIC_INNER_PRODUCT)
    bare.hnsw.efConstruction = 60
    bare.add(vectors)
    bare.hnsw.efSearch = effort
    ours = ApproximateIndex.build(vectors, HNSW)
    ours._settings["ef_search"] = effort
    ours._index = Graph.of_faiss(bare.hnsw, Sieve.of(vectors), "the graph")
    found = found_share(ours, vectors, queries)
    assert found > found_share(bare, vectors, queries) - 0.01
    assert effort < 100 or found > 0.9


def older(folder: Path, vectors: NDArray[np.float32]) -> Any:
    """Make of a saved index one that older versions wrote; its graph, as FAISS has it."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], 8, faiss.METRIC_INNER_PRODUCT)
    index.add(vectors)
    for name in ("graph.json", "links.npy", "starts.npy", "upper.npy", "codes.npy", "bounds.npy", "spread.npy"):
        (folder / name).unlink()
    meta = json.loads((folder / "dense.json").read_text())
    del meta["sieved"]
    (folder / "dense.json").write_text(json.dumps(meta))
    faiss.write_index(index, str(folder / "index.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
    return index


def test_a_graph_of_an_older_version_is_walked_the_same_way(tmp_path: Path) -> None:
    vectors = clustered(3000, 24)
    ApproximateIndex.build(vectors, HNSW).save(tmp_path)
    bare = older(tmp_path, vectors)
    index = ApproximateIndex.load(tmp_path, HNSW)
    of_faiss = Graph.of_faiss(bare.hnsw, Sieve.of(vectors), "the graph")
    assert (index._index.propose(vectors[:50], 10, None, 40) == of_faiss.propose(vectors[:50], 10, None, 40)).all()
    assert found_share(index, vectors, clustered(300, 24)) > 0.9
    live = bitmaps.pack(np.arange(3000) % 3 > 0)
    assert all((rows % 3 > 0).all() and len(rows) == 10 for rows in index.search(vectors[:50], 10, live=live).rows)
    (tmp_path / "again").mkdir()
    index.save(tmp_path / "again")
    again = ApproximateIndex.load(tmp_path / "again", HNSW)
    assert (tmp_path / "again" / "graph.json").exists()
    for one, other in zip(index.search(vectors, 10).rows, again.search(vectors, 10).rows, strict=True):
        assert (one == other).all()


def test_links_that_lead_nowhere_are_told_of(tmp_path: Path) -> None:
    vectors = clustered(300, 8)
    ApproximateIndex.build(vectors, HNSW).save(tmp_path)
    for name in ("links.npy", "upper.npy"):
        whole = np.load(tmp_path / name)
        np.save(tmp_path / name, np.where(whole >= 0, whole + 1000, whole))
        with pytest.raises(IndexDamagedError, match=r"links\.npy holds links that lead nowhere"):
            ApproximateIndex.load(tmp_path, HNSW).search(vectors[:1], 10)
        np.save(tmp_path / name, whole)
    np.save(tmp_path / "starts.npy", np.full(300, -1, np.int32))
    with pytest.raises(IndexDamagedError, match=r"links\.npy holds links that lead nowhere"):
        ApproximateIndex.load(tmp_path, HNSW).search(vectors[:1], 10)
    graph = older(tmp_path, vectors)
    links = faiss.rev_swig_ptr(graph.hnsw.neighbors.data(), graph.hnsw.neighbors.size())
    links[links >= 0] += 1000
    faiss.write_index(graph, str(tmp_path / "index.faiss"), faiss.IO_FLAG_SKIP_STORAGE)
    with pytest.raises(
        IndexDamagedError, match=r"index\.faiss (holds a graph that is not one of 300 vectors|is no FAISS index)"
    ):
        ApproximateIndex.load(tmp_path, HNSW)


def test_files_of_a_graph_that_do_not_fit_are_found_when_opening(tmp_path: Path) -> None:
    index = ApproximateIndex.build(clustered(400, 16), HNSW)
    index.save(tmp_path)
    sound = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(sound["links.npy"]) == 128 + 400 * 16 * 4

    def refuses(message: str) -> None:
        with pytest.raises(IndexDamagedError, match=message):
            ApproximateIndex.load(tmp_path, HNSW)
        for name, content in sound.items():
            (tmp_path / name).write_bytes(content)
        ApproximateIndex.load(tmp_path, HNSW)

    for name in ("links.npy", "starts.npy", "upper.npy"):
        (tmp_path / name).write_bytes(sound[name][:-1])
        refuses(name)
        np.save(tmp_path / name, np.load(tmp_path / name)[1:])
        refuses(name)
        (tmp_path / name).unlink()
        refuses(f"{name} is missing")
    meta = json.loads(sound["graph.json"])
    for change in ({"entry": 400}, {"levels": 10**6}, {"m": 0}, {"m": 9}, {"uppers": -1}, {"levels": "1"}):
        (tmp_path / "graph.json").write_text(json.dumps(meta | change))
        refuses(r"graph\.json|links\.npy")
    (tmp_path / "graph.json").unlink()
    refuses(r"graph\.json is missing")
    (tmp_path / "index.faiss").write_bytes(b"no index")
    with pytest.raises(IndexDamagedError, match=r"index\.faiss is no FAISS index"):
        ApproximateIndex.load(tmp_path, HNSW)


def test_of_large_arrays_the_start_is_touched_and_of_small_ones_every_page(monkeypatch: Any) -> None:
    monkeypatch.setattr(arrays, "_TOUCHED", 10_000)
    touched: list[int] = []

    class Watched(np.ndarray[Any, Any]):
        def max(self, *arguments: Any, **options: Any) -> Any:
            touched.append(self.size)
            return super().max(*arguments, **options)

    values = [np.zeros(size, np.float32).view(Watched) for size in (0, 1500, 5000, 5000)]
    arrays.touch(*values)
    assert touched == [0, 2, 1, 0]
