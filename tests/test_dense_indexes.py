"""Dense indexes: exactness to the last bit, parameters, files and damage."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, MissingDependencyError, SpecError, VectorError
from retrievers.indexes import bitmaps, exact
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.exact import StoredVectors
from retrievers.indexes.kinds import default_index, index_class, parse_index_spec
from retrievers.specs import Spec

APPROXIMATE = ["hnsw", "ivf", "ivfpq", "rabitq", "sq8", "binary"]
FLAT = Spec("flat")


def unit(rng: np.random.Generator, n: int, dimension: int) -> NDArray[np.float32]:
    values = rng.standard_normal((n, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def wanted(
    vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
) -> list[tuple[int, float]]:
    """The best rows by the float32 nearest to the true inner product."""
    scores = (vectors.astype(np.longdouble) @ query.astype(np.longdouble)).astype(np.float32)
    rows = range(len(vectors)) if mask is None else np.flatnonzero(mask).tolist()
    return [(row, float(scores[row])) for row in sorted(rows, key=lambda row: (-scores[row], row))[:k]]


def flat(vectors: NDArray[np.float32], coded: bool) -> FlatIndex:
    """An index with codes, or without, as older versions wrote it."""
    index = FlatIndex.build(vectors, FLAT)
    return index if coded else FlatIndex(replace(index._stored, sieve=None), FLAT)


def pairs(found: Any, query: int = 0) -> list[tuple[int, float]]:
    return list(zip(found.rows[query].tolist(), found.scores[query].tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flat_is_exhaustive_search_whatever_the_ties(data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    limit = data.draw(st.sampled_from([0, 128_000]))  # 0: as if there were many queries; else as if few
    n, dimension = data.draw(st.integers(1, 300)), data.draw(st.sampled_from([1, 2, 3, 17, 64]))
    distinct = data.draw(st.integers(1, n))
    vectors = rng.integers(-2, 3, (distinct, dimension)).astype(np.float32)[rng.integers(distinct, size=n)]
    queries = rng.standard_normal((data.draw(st.sampled_from([1, 3, 25])), dimension)).astype(np.float32)
    mask = rng.random(n) < data.draw(st.sampled_from([0.1, 0.5, 0.95, 1.0]))
    k = data.draw(st.integers(1, n + 5))
    index = flat(vectors, data.draw(st.booleans()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_MULTIPLIED", limit)
        found, filtered = index.search(queries, k), index.search(queries, k, allowed=bitmaps.pack(mask))
    for number, query in enumerate(queries):
        assert pairs(found, number) == wanted(vectors, query, k)
        assert pairs(filtered, number) == wanted(vectors, query, k, mask)


@pytest.mark.parametrize("coded", [True, False])
@pytest.mark.parametrize("n", [1, 5, 64, 400])
def test_rows_that_float32_cannot_tell_apart_in_a_fast_pass_are_ranked_exactly(n: int, coded: bool) -> None:
    rng = np.random.default_rng(n)
    base = unit(rng, 1, 384)
    steps = np.zeros((2000, 384), np.float32)
    steps[np.arange(2000), rng.integers(384, size=2000)] = rng.integers(-9, 10, 2000) * np.float32(3e-6)
    vectors, queries = base + steps, np.repeat(base, n, axis=0)
    assert len(np.unique(vectors @ base[0])) > 5
    found = flat(vectors, coded).search(queries, 20)
    for number in range(n):
        assert pairs(found, number) == wanted(vectors, base[0], 20)


@pytest.mark.parametrize("gap", [1, 100, 900])
@pytest.mark.parametrize("queries", [3, 30, 450])
@pytest.mark.parametrize("coded", [True, False])
def test_permitted_rows_in_every_shape_are_searched_exactly(
    gap: int, queries: int, coded: bool, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exact, "_TOGETHER", 64)
    monkeypatch.setattr(exact, "_CELLS", 4000)
    monkeypatch.setattr(exact, "_MANY", 100)
    rng = np.random.default_rng(gap)
    vectors, asked = unit(rng, 1000, 8), unit(rng, queries, 8)
    vectors[500:700] = vectors[3]
    mask = np.ones(1000, np.bool_)
    mask[50 : 50 + gap] = False
    found = flat(vectors, coded).search(asked, 15, live=bitmaps.pack(mask))
    for number, query in enumerate(asked):
        assert pairs(found, number) == wanted(vectors, query, 15, mask)


def test_a_search_holds_few_candidates_at_a_time_and_finds_the_same(monkeypatch: Any) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = unit(rng, 3000, 16), unit(rng, 40, 16)
    for spec in ("flat", "hnsw", "ivf"):
        kind = parse_index_spec(spec, "dense")
        index = index_class(kind, "dense").build(vectors, kind)
        whole = index.search(queries, 10)
        with monkeypatch.context() as patch:
            patch.setattr(exact, "_PAIRS", 50)
            patch.setattr(exact, "_MOST_QUERIES", 7)
            patch.setattr("retrievers.indexes.approximate._PAIRS", 50)
            parts = index.search(queries, 10)
        assert [pairs(whole, at) for at in range(40)] == [pairs(parts, at) for at in range(40)]


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12])
def test_the_length_of_vectors_does_not_matter(factor: float) -> None:
    rng = np.random.default_rng(1)
    vectors, query = unit(rng, 500, 16) * np.float32(factor), unit(rng, 1, 16)
    assert pairs(FlatIndex.build(vectors, FLAT).search(query, 10)) == wanted(vectors, query[0], 10)


def test_products_beyond_float32_are_refused() -> None:
    vectors = np.full((3, 4), 1e30, np.float32)
    with pytest.raises(VectorError, match="normalise"):
        FlatIndex.build(vectors, FLAT).search(np.full((1, 4), 1e30, np.float32), 1)


@pytest.mark.parametrize("spec", ["flat", *APPROXIMATE])
def test_vectors_of_another_kind_are_refused(spec: str) -> None:
    kind = parse_index_spec(spec, "dense")
    chosen = index_class(kind, "dense")
    bad: list[Any] = [
        np.zeros((3, 4)),
        np.zeros(4, np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.zeros((3, 0), np.float32),
        [[0.0, 1.0]],
    ]
    for vectors in bad:
        with pytest.raises(VectorError):
            chosen.build(vectors, kind)
    index = chosen.build(np.ones((3, 4), np.float32), kind)
    for queries in bad:
        with pytest.raises(VectorError):
            index.search(queries, 1)


@pytest.mark.parametrize("spec", ["flat", *APPROXIMATE])
@pytest.mark.parametrize("n", [0, 1, 2, 30])
def test_few_vectors_make_an_index_as_well(spec: str, n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n)
    vectors, queries = unit(rng, n, 8), unit(rng, 25, 8)
    kind = parse_index_spec(spec, "dense")
    built = index_class(kind, "dense").build(vectors, kind)
    built.save(tmp_path)
    for index in (built, index_class(kind, "dense").load(tmp_path, kind)):
        found = index.search(queries, 10)
        assert [pairs(found, at) for at in range(25)] == [wanted(vectors, query, 10) for query in queries]


def test_building_is_deterministic_but_for_graphs_and_keeps_the_number_of_threads() -> None:
    rng = np.random.default_rng(2)
    vectors, queries = unit(rng, 3000, 16), unit(rng, 30, 16)
    threads = faiss.omp_get_max_threads()
    for spec in ("ivf", "ivfpq", "sq8"):
        kind = parse_index_spec(spec, "dense")
        found = [ApproximateIndex.build(vectors, kind).search(queries, 10) for _ in range(2)]
        assert [pairs(found[0], at) for at in range(30)] == [pairs(found[1], at) for at in range(30)]
    ApproximateIndex.build(vectors, Spec("hnsw")).search(queries, 10)
    assert faiss.omp_get_max_threads() == threads


def test_more_effort_finds_more() -> None:
    rng = np.random.default_rng(3)
    vectors, queries = unit(rng, 4000, 32), unit(rng, 40, 32)
    best = [{row for row, _ in wanted(vectors, query, 10)} for query in queries]

    def recall(text: str) -> float:
        kind = parse_index_spec(text, "dense")
        found = ApproximateIndex.build(vectors, kind).search(queries, 10)
        return float(np.mean([len(best[at] & set(found.rows[at].tolist())) / 10 for at in range(40)]))

    for little, much in [
        ("hnsw(m=4, ef_construction=10, ef_search=1)", "hnsw(m=16, ef_search=400)"),
        ("ivf(nlist=64, nprobe=1)", "ivf(nlist=64, nprobe=64)"),
        ("ivfpq(nlist=16, m=4, nbits=4, nprobe=1, candidates=10)", "ivfpq(nlist=16, nprobe=16, m=16, candidates=2000)"),
    ]:
        assert recall(little) < 0.8
        assert recall(much) > 0.97
    assert recall("sq8") > 0.97


WEAK = [
    "hnsw(m=2, ef_construction=1, ef_search=1)",
    "ivf(nlist=50, nprobe=1)",
    "ivfpq(nlist=50, nprobe=1, m=2, nbits=4, candidates=20)",
]


@pytest.mark.parametrize("spec", WEAK)
def test_filters_are_exact_and_hits_are_not_fewer_however_weak_the_candidates(spec: str) -> None:
    rng = np.random.default_rng(10)
    vectors, queries = unit(rng, 2000, 32), unit(rng, 25, 32)
    index = ApproximateIndex.build(vectors, parse_index_spec(spec, "dense"))
    plain = index.search(queries, 20)
    assert any(pairs(plain, at) != wanted(vectors, query, 20) for at, query in enumerate(queries))
    for share in (0.3, 0.9, 1.0):
        mask = rng.random(2000) < share
        filtered = index.search(queries, 20, allowed=bitmaps.pack(mask))
        assert [pairs(filtered, at) for at in range(25)] == [wanted(vectors, query, 20, mask) for query in queries]
        for k in (20, 300, 1200):
            found = index.search(queries, k, live=bitmaps.pack(mask))
            for rows in found.rows:
                assert len(rows) == min(k, mask.sum())
                assert mask[rows].all()


@pytest.mark.parametrize("spec", ["rabitq(nlist=50, nprobe=1)", "ivfpq(nlist=50, nprobe=1, m=96)"])
def test_queries_between_two_lists_search_the_same_one_alone_and_together(spec: str) -> None:
    rng = np.random.default_rng(11)
    index = ApproximateIndex.build(unit(rng, 2000, 384), parse_index_spec(spec, "dense"))
    centroids = index._index.quantizer.reconstruct_n(0, 50)
    nearest = np.argsort(-(centroids @ centroids.T), axis=1)[:, 1:11]
    queries = (centroids[:, None] + centroids[nearest]).reshape(-1, 384)
    together = index.search(queries, 5)
    assert len(queries) == 500  # enough for any version of FAISS to choose the lists of all by a matrix product
    for at in range(len(queries)):
        assert pairs(index.search(queries[at : at + 1], 5)) == pairs(together, at)


def test_parameters_left_out_are_chosen_to_suit() -> None:
    rng = np.random.default_rng(4)
    settings_of = {
        (spec, n): ApproximateIndex.build(unit(rng, n, 24), parse_index_spec(spec, "dense")).settings
        for spec in ("ivf", "ivfpq", "ivf(nlist=1000, nprobe=900)")
        for n in (10, 3900)
    }
    assert settings_of["ivf", 10] == {"nlist": 1, "nprobe": 1}
    assert settings_of["ivf", 3900] == {"nlist": 100, "nprobe": 8}
    assert settings_of["ivfpq", 3900] == {"nlist": 100, "nprobe": 8, "m": 6, "nbits": 8}
    assert settings_of["ivf(nlist=1000, nprobe=900)", 3900] == {"nlist": 100, "nprobe": 100}


def test_codes_must_divide_the_dimensions() -> None:
    with pytest.raises(SpecError, match=r"m=5 must divide the 24 dimensions.*3, 4, 6"):
        ApproximateIndex.build(np.zeros((3, 24), np.float32), Spec("ivfpq", {"m": 5}))


def test_specifications_are_checked() -> None:
    assert parse_index_spec("hnsw(m=16)", "dense") == Spec("hnsw", {"m": 16})
    assert parse_index_spec("ivf(nlist=auto)", "dense") == Spec("ivf", {"nlist": "auto"})
    assert str(parse_index_spec(Spec("maxsim", {"dtype": "int8"}), "multi-vector")) == "maxsim(dtype=int8)"
    kinds = ("dense", "sparse", "lexical", "multi-vector")
    assert [str(default_index(kind)) for kind in kinds] == ["flat", "inverted", "inverted", "maxsim"]
    for text, kind, message in [
        ("hnsww", "dense", "no 'hnsww'; the indexes for dense vectors are flat, hnsw, ivf, ivfpq, rabitq, sq8, binary"),
        ("inverted", "dense", "takes vectors of sparse and lexical encoders; the indexes for dense vectors are flat"),
        ("flat", "sparse", "takes vectors of dense encoders; the indexes for sparse vectors are inverted"),
        ("hnsw", "multi-vector", "the indexes for multi-vector vectors are maxsim"),
        ("hnsw(ef_serach=3)", "dense", r"takes m \(a whole number .*; did you mean ef_search\?"),
        ("flat(m=3)", "dense", "no parameter 'm': it takes none"),
        ("hnsw(m=1)", "dense", "m is 1, and must be a whole number from 2 to 512"),
        ("hnsw(m=2.5)", "dense", "m is 2.5"),
        ("hnsw(m=true)", "dense", "m is True"),
        ("hnsw(m=auto)", "dense", "m is 'auto'"),
        ("ivf(nlist=many)", "dense", "must be a whole number from 1 to 16777216, or auto"),
        ("hnsw(recall=1)", "dense", "recall is 1, and must be a fraction between 0 and 1"),
        ("hnsw(recall=1.5)", "dense", "recall is 1.5"),
        ("flat(recall=0.9)", "dense", "no parameter 'recall'"),
        ("hnsw(recall=0.9, ef_search=64)", "dense", "recall sets ef_search, which is given as well"),
        ("ivf(nprobe=3, recall=0.9)", "dense", "recall sets nprobe"),
        ("ivfpq(recall=0.9, candidates=30)", "dense", "recall sets candidates"),
        ("maxsim(dtype=int4)", "multi-vector", "must be float16 or int8"),
        ("inverted(bits=4)", "sparse", "must be 8 or 16"),
        ("inverted(bits=16)", "lexical", "no parameter 'bits'"),
    ]:
        with pytest.raises(SpecError, match=message):
            parse_index_spec(text, kind)  # type: ignore[arg-type]
        with pytest.raises(SpecError, match=message):
            index_class(Spec.parse(text), kind)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no kind of encoder"):
        parse_index_spec("flat", "image")  # type: ignore[arg-type]


def test_without_faiss_it_is_said_how_to_install_it(monkeypatch: Any) -> None:
    vectors = np.ones((3, 4), np.float32)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError, match="pip install faiss-cpu"):
        ApproximateIndex.build(vectors, parse_index_spec("hnsw", "dense"))
    assert FlatIndex.build(vectors, FLAT).search(vectors[:1], 1).rows[0].tolist() == [0]  # takes none


def test_merging_needs_one_dimension() -> None:
    parts = [(FlatIndex.build(np.ones((1, d), np.float32), FLAT), np.array([d - 2], np.int64)) for d in (2, 3)]
    with pytest.raises(VectorError, match=r"\[2, 3\]"):
        FlatIndex.merge(parts, FLAT)


@pytest.mark.parametrize("spec", ["flat", *APPROXIMATE])
def test_vectors_damaged_behind_its_back_are_never_ranked(spec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors, queries = unit(rng, 2000, 16), unit(rng, 25, 16)
    kind = parse_index_spec(spec, "dense")
    chosen = index_class(kind, "dense")
    chosen.build(vectors, kind).save(tmp_path)
    some = bitmaps.pack(np.arange(2000) % 2 == 0)
    for value in (np.nan, np.inf, 3e38):
        damaged = vectors.copy()
        damaged[::10] = value
        np.save(tmp_path / "vectors.npy", damaged)
        if spec == "flat" and np.isnan(value):
            with pytest.raises(IndexDamagedError, match=r"vectors\.npy holds NaN"):
                chosen.load(tmp_path, kind).search(queries, 2000)
        first = bitmaps.pack(np.arange(2000) < 100)
        with pytest.raises(IndexDamagedError, match=r"vectors\.npy"):
            chosen.load(tmp_path, kind).search(queries, 100, allowed=first)
        for options in ({}, {"allowed": some}, {"live": some}):
            for asked in (queries, queries[:2]):
                with pytest.raises(IndexDamagedError, match=r"vectors\.npy"):
                    chosen.load(tmp_path, kind).search(asked, 2000, **options)
                try:
                    found = chosen.load(tmp_path, kind).search(asked, 5, **options)
                except IndexDamagedError:
                    continue
                assert all(np.isfinite(scores).all() for scores in found.scores)


def rewritten(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("spec", ["flat", *APPROXIMATE])
def test_files_that_do_not_fit_are_found_when_opening(spec: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    vectors = unit(rng, 400, 16)
    kind = parse_index_spec(spec, "dense")
    chosen = index_class(kind, "dense")

    def fresh(folder: str, n: int = 400, dimension: int = 16, other: str = spec) -> Path:
        place = tmp_path / folder
        place.mkdir()
        other_kind = parse_index_spec(other, "dense")
        index_class(other_kind, "dense").build(unit(rng, n, dimension), other_kind).save(place)
        return place

    def refuses(place: Path, message: str) -> None:
        with pytest.raises(IndexDamagedError, match=message):
            chosen.load(place, kind)

    for number, (wrong, message) in enumerate(
        [
            (vectors.astype(np.float64), "float64"),
            (vectors[:-1], r"\[399, 16\]"),
            (vectors[:, :-1].copy(), r"\[400, 15\]"),
            (np.asfortranarray(vectors), "Fortran"),
        ]
    ):
        place = fresh(f"array {number}")
        np.save(place / "vectors.npy", wrong)
        refuses(place, message)
    place = fresh("cut")
    (place / "vectors.npy").write_bytes((place / "vectors.npy").read_bytes()[:-1])
    refuses(place, r"vectors\.npy")
    for number, change in enumerate(
        [
            {"rows": -1},
            {"rows": "400"},
            {"dimension": True},
            {"longest": None},
            {"longest": float("inf")},
            {"rows": 10**30},
            {"sieved": "yes"},
            {"sieved": 2},
        ]
    ):
        place = fresh(f"meta {number}")
        rewritten(place / "dense.json", **change)
        refuses(place, r"dense\.json|vectors\.npy")
    for number, (name, content, message) in enumerate(
        [
            ("codes", np.zeros((400, 15), np.int8), r"codes\.npy.*\[400, 15\]"),
            ("codes", np.zeros((400, 16), np.uint8), r"codes\.npy.*uint8"),
            ("bounds", np.zeros((2, 399), np.float32), r"bounds\.npy.*\[2, 399\]"),
            ("spread", np.zeros((2, 15), np.float32), r"spread\.npy.*\[2, 15\]"),
        ]
    ):
        place = fresh(f"codes {number}")
        np.save(place / f"{name}.npy", content)
        refuses(place, message)
    place = fresh("no codes")
    (place / "codes.npy").unlink()
    refuses(place, r"codes\.npy")
    for number, text in enumerate([b"", b"[]", b"\xff", b"[" * 100_000]):
        place = fresh(f"text {number}")
        (place / "dense.json").write_bytes(text)
        refuses(place, r"dense\.json")
    if spec in ("flat", "hnsw", "ivf"):  # of graphs and lists see test_graph.py and test_lists.py
        return
    for number, (other, message) in enumerate(
        [
            (fresh("fewer", n=399), "399"),
            (fresh("wider", dimension=20), "24" if spec == "binary" else "20"),  # bits come in whole bytes
            (
                fresh("other", other="ivfpq" if spec == "sq8" else "sq8"),
                "IndexScalarQuantizer|IndexIVFPQ|is no FAISS index",
            ),
        ]
    ):
        place = fresh(f"index {number}")
        (place / "index.faiss").write_bytes((other / "index.faiss").read_bytes())
        refuses(place, message)
    place = fresh("short")
    (place / "index.faiss").write_bytes((place / "index.faiss").read_bytes()[:-100])
    refuses(place, r"index\.faiss is no FAISS index")
    (place / "index.faiss").unlink()
    refuses(place, r"index\.faiss is missing")
    place = fresh("flag")
    rewritten(place / "dense.json", accelerated="yes")
    refuses(place, "accelerated|belongs")


def test_the_bound_of_lengths_holds() -> None:
    rng = np.random.default_rng(9)
    for factor in (0.0, 1e-30, 1.0, 1e18, 1e30):
        vectors = (rng.standard_normal((5000, 33)) * factor).astype(np.float32)
        true = float(np.linalg.norm(vectors.astype(np.longdouble), axis=1).max())
        assert true <= StoredVectors.of(vectors).longest <= true * (1 + 1e-5) + 1e-17
