"""The inverted index against exhaustive computations of the same float32 sums."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from retrievers.errors import IndexDamagedError, QueryError, SpecError, VectorError
from retrievers.indexes import bitmaps, postings
from retrievers.indexes.impacts import decode16, encode16
from retrievers.indexes.inverted import InvertedIndex, LexicalIndex
from retrievers.indexes.protocol import Found
from retrievers.specs import Spec
from retrievers.vectors import csr

PLAIN = Spec("inverted")
BITS8 = Spec("inverted", {"bits": 8})
COMPACT = Spec("inverted", {"compact": True})
VOCABULARY = 2**62
Index = InvertedIndex | LexicalIndex
seeds = st.integers(0, 2**32)


def dense_to_csr(matrix: NDArray[Any], terms: NDArray[np.int64]) -> csr_matrix:
    """Sparse vectors whose column ``j`` is the term ``terms[j]`` of a large vocabulary."""
    rows, columns = np.nonzero(matrix)
    lengths = np.bincount(rows, minlength=len(matrix))
    return csr(matrix[rows, columns].astype(np.float32), terms[columns], lengths, VOCABULARY)


def random_terms(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    return np.unique(rng.integers(0, VOCABULARY, size))


def random_matrix(rng: np.random.Generator, n: int, terms: int, *, counts: bool) -> NDArray[np.float32]:
    """Values of few or of many kinds, with empty rows and empty columns."""
    matrix = rng.random((n, terms)) < rng.choice([0.02, 0.3, 0.9], terms)
    matrix[rng.random(n) < 0.1] = False
    if counts:
        values = rng.integers(1, int(rng.choice([2, 4, 300, 70_000])) + 1, (n, terms))
    else:
        values = rng.choice([0.5, 1.0, 3.0], (n, terms)) if rng.random() < 0.5 else rng.gamma(1.0, 2.0, (n, terms))
    return np.where(matrix, values, 0).astype(np.float32)


def exhaustive(
    parts: NDArray[np.float32], weights: NDArray[np.float32], k: int, permitted: NDArray[np.bool_]
) -> tuple[list[int], bytes]:
    """The best rows of ``parts`` (contribution of each row and term, for weight 1 applied already), term by term."""
    scores = np.zeros(len(parts), np.float32)
    for column in np.flatnonzero(weights > 0):
        scores = scores + parts[:, column]
    order = [
        row for row in np.lexsort((np.arange(len(scores)), -scores)).tolist() if scores[row] > 0 and permitted[row]
    ]
    return order[:k], scores[order[:k]].tobytes()


def answers(found: Found) -> list[tuple[list[int], bytes]]:
    return [(rows.tolist(), scores.tobytes()) for rows, scores in zip(found.rows, found.scores, strict=True)]


def bm25_parts(
    counts: NDArray[np.float32], weights: NDArray[np.float32], norms: NDArray[np.float32]
) -> NDArray[np.float32]:
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, weights * (counts / (counts + norms[:, None])), 0).astype(np.float32)


def random_queries(rng: np.random.Generator, width: int) -> NDArray[np.float32]:
    queries = np.where(rng.random((3, width)) < 0.6, rng.choice([0.25, 1.0, 2.5], (3, width)), 0).astype(np.float32)
    queries[1] = 0  # an empty query
    return queries


def random_masks(rng: np.random.Generator, n: int) -> tuple[NDArray[np.bool_], dict[str, bitmaps.Bitmap | None]]:
    allowed, live = (rng.random(n) < rng.choice([0.0, 0.05, 0.5, 1.0]) for _ in range(2))
    use = rng.integers(4)
    permitted = (allowed if use & 1 else True) & (live if use & 2 else np.ones(n, np.bool_))
    return permitted, {
        "allowed": bitmaps.pack(allowed) if use & 1 else None,
        "live": bitmaps.pack(live) if use & 2 else None,
    }


@settings(max_examples=80, deadline=None)
@given(seeds, st.sampled_from([0, 1, 8, 60, 300]), st.sampled_from([1, 3, 10, 1000]), st.sampled_from([PLAIN, BITS8]))
def test_impacts_equal_exhaustive_search(seed: int, n: int, k: int, spec: Spec) -> None:
    rng = np.random.default_rng(seed)
    terms = random_terms(rng, 9)
    matrix = random_matrix(rng, n, len(terms), counts=False)
    index = InvertedIndex.build(dense_to_csr(matrix, terms), spec)
    codes = encode16(matrix)
    held = np.where(codes > 0, decode16(np.maximum(codes, 1)), 0).astype(np.float32)
    queries = random_queries(rng, len(terms))
    scales = np.ones(len(terms), np.float32)
    if spec is BITS8 and n:
        matrix = np.where(codes > 0, matrix, 0)
        scales = matrix.max(axis=0) / np.float32(255)
        steps = matrix / np.where(scales > 0, scales, 1)
        held = np.where(matrix > 0, np.clip(np.rint(steps), 1, 255), 0).astype(np.float32)
        assert np.all(np.abs(held * scales - matrix) <= np.maximum(scales, 1e-6))
    permitted, masks = random_masks(rng, n)
    found = index.search(dense_to_csr(queries, terms), k, **masks)
    for query, answer in zip(queries, answers(found), strict=True):
        weights = query * scales
        assert answer == exhaustive(held * weights, weights, k, permitted)


@settings(max_examples=80, deadline=None)
@given(seeds, st.sampled_from([0, 1, 8, 60, 300]), st.sampled_from([1, 3, 10, 1000]))
def test_frequencies_equal_exhaustive_search(seed: int, n: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    terms = random_terms(rng, 9)
    counts = random_matrix(rng, n, len(terms), counts=True)
    index = LexicalIndex.build(dense_to_csr(counts, terms), PLAIN)
    norms = rng.choice([0.0, 0.3, 1.2], n).astype(np.float32)
    queries = random_queries(rng, len(terms))
    permitted, masks = random_masks(rng, n)
    found = index.search(dense_to_csr(queries, terms), k, norms=norms, **masks)
    for query, answer in zip(queries, answers(found), strict=True):
        assert answer == exhaustive(bm25_parts(counts, query, norms), query, k, permitted)
    assert index.lengths.tolist() == counts.astype(np.int64).sum(axis=1).tolist()
    frequencies = (counts > 0).sum(axis=0)
    assert index.document_frequencies(terms).tolist() == frequencies.tolist()
    some = np.where(permitted)[0]
    held, numbers = index.frequencies_of(bitmaps.pack(permitted))
    expected = (counts[some] > 0).sum(axis=0)
    assert dict(zip(held.tolist(), numbers.tolist(), strict=True)) == {
        term: number for term, number in zip(terms.tolist(), expected.tolist(), strict=True) if number
    }
    for row in range(min(n, 5)):
        for query, answer in zip(
            queries, answers(index.search(dense_to_csr(queries, terms), n, norms=norms)), strict=True
        ):
            shared, parts = index.explain(dense_to_csr(query[None], terms), row, norms)
            assert shared.tolist() == [t for t, c, w in zip(terms, counts[row], query, strict=True) if c and w]
            scores = dict(zip(answer[0], np.frombuffer(answer[1], np.float32), strict=True))
            total = np.add.accumulate(parts)[-1] if len(parts) else np.float32(0)
            assert total.tobytes() == np.float32(scores.get(row, 0)).tobytes()


@pytest.mark.parametrize("bits", [8, 16])
def test_contributions_of_impacts_add_up_to_the_score(bits: int) -> None:
    rng = np.random.default_rng(5)
    terms = random_terms(rng, 12)
    index = InvertedIndex.build(
        dense_to_csr(random_matrix(rng, 40, 12, counts=False), terms), Spec("inverted", {"bits": bits})
    )
    query = dense_to_csr(rng.random((1, 12)), terms)
    found = index.search(query, 40)
    assert len(found.rows[0]) > 20
    for row, score in zip(found.rows[0].tolist(), found.scores[0], strict=True):
        assert np.add.accumulate(index.explain(query, row)[1])[-1].tobytes() == score.tobytes()


@pytest.mark.parametrize(("highest", "bits"), [(255, 8), (256, 16), (65_535, 16), (65_536, 32), (2**24, 32)])
def test_frequencies_take_the_narrowest_width(highest: int, bits: int, tmp_path: Path) -> None:
    vectors = csr(np.array([1, highest], np.float32), np.array([7, 7]), np.array([1, 1]), VOCABULARY)
    index = LexicalIndex.build(vectors, PLAIN)
    index.save(tmp_path)
    assert json.loads((tmp_path / "inverted.json").read_text())["bits"] == bits
    assert LexicalIndex.load(tmp_path, PLAIN).lengths.tolist() == [1, highest]
    norms = np.full(2, 0.5, np.float32)
    query = csr(np.ones(1, np.float32), np.array([7]), np.array([1]), VOCABULARY)
    assert index.search(query, 2, norms=norms).scores[0][0] == np.float32(highest) / (np.float32(highest) + norms[0])
    alone = LexicalIndex.merge([(index, np.array([0, -1]))], PLAIN)
    assert alone.lengths.tolist() == [1]
    (tmp_path / "alone").mkdir()
    alone.save(tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "inverted.json").read_text())["bits"] == 8


def large_matrix(seed: int, n: int) -> tuple[csr_matrix, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    columns = [np.flatnonzero(rng.random(n) < share) for share in (0.8, 0.4, 0.4, 0.05, 0.001, 2 / n)]
    terms = random_terms(rng, len(columns))
    rows = np.concatenate(columns)
    held = np.repeat(terms, [len(column) for column in columns])
    order = np.lexsort((held, rows))
    values = rng.integers(1, 4, len(rows)).astype(np.float32)
    return csr(values, held[order], np.bincount(rows, minlength=n), VOCABULARY), terms


@pytest.mark.parametrize("k", [10, 100, 300])
def test_several_ranges_equal_exhaustive_search(k: int) -> None:
    n = 150_000
    vectors, terms = large_matrix(1, n)
    rows = np.repeat(np.arange(n), np.diff(vectors.indptr))
    counts = np.zeros((n, len(terms)), np.float32)
    counts[rows, np.searchsorted(terms, vectors.indices)] = vectors.data
    norms = np.random.default_rng(2).choice([0.4, 1.0, 1.7], n).astype(np.float32)
    weights = np.array([0.2, 0.9, 0.9, 3.0, 6.0, 9.0], np.float32)
    query = dense_to_csr(weights[None], terms)
    everything = np.ones(n, np.bool_)
    found = LexicalIndex.build(vectors, PLAIN).search(query, k, norms=norms)
    assert answers(found) == [exhaustive(bm25_parts(counts, weights, norms), weights, k, everything)]
    found = InvertedIndex.build(vectors, PLAIN).search(query, k)
    assert answers(found) == [exhaustive(counts * weights, weights, k, everything)]


def test_many_queries_answer_as_one_by_one() -> None:
    rng = np.random.default_rng(11)
    terms = random_terms(rng, 30)
    index = InvertedIndex.build(dense_to_csr(random_matrix(rng, 400, 30, counts=False), terms), PLAIN)
    queries = dense_to_csr(np.where(rng.random((50, 30)) < 0.3, rng.random((50, 30)), 0), terms)
    together = answers(index.search(queries, 7))
    assert together == [answers(index.search(queries[i], 7))[0] for i in range(50)]


def test_the_order_and_the_repeats_of_entries_do_not_matter() -> None:
    sorted_ = csr(np.array([1, 3, 2, 4], np.float32), np.array([5, 9, 5, 8]), np.array([2, 2]), VOCABULARY)
    jumbled = csr(np.array([3, 1, 0, 2, 2, 2], np.float32), np.array([9, 5, 3, 8, 5, 8]), np.array([3, 3]), VOCABULARY)
    for kind in (InvertedIndex, LexicalIndex):
        one, other = kind.build(sorted_, PLAIN), kind.build(jumbled, PLAIN)
        options = {"norms": np.ones(2, np.float32)} if kind is LexicalIndex else {}
        expected = answers(one.search(sorted_, 2, **options))
        assert answers(other.search(jumbled, 2, **options)) == expected
        assert answers(one.search(jumbled, 2, **options)) == expected
        assert [rows for rows, _ in expected] == ([[0, 1], [1, 0]])


def test_unknown_terms_and_empty_indexes_find_nothing() -> None:
    index = InvertedIndex.build(dense_to_csr(np.eye(3), np.array([4, 5, 6])), PLAIN)
    strange = dense_to_csr(np.ones((1, 3)), np.array([1, 7, VOCABULARY - 1]))
    assert answers(index.search(strange, 5)) == [([], b"")]
    assert index.explain(strange, 0)[0].tolist() == []
    empty = InvertedIndex.build(dense_to_csr(np.zeros((0, 3)), np.array([4, 5, 6])), PLAIN)
    assert answers(empty.search(strange, 5)) == [([], b"")]
    assert index.search(dense_to_csr(np.zeros((0, 3)), np.array([4, 5, 6])), 5).rows == []


def folder_bytes(index: Index, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    index.save(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", [InvertedIndex, LexicalIndex])
@pytest.mark.parametrize("seed", range(12))
def test_merging_equals_building_the_whole(kind: type[Index], seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    terms = random_terms(rng, 12)
    n = int(rng.choice([0, 3, 50, 400]))
    matrix = random_matrix(rng, n, len(terms), counts=kind is LexicalIndex)
    owner = rng.integers(0, 4, n)  # part 3 is dropped
    owner[rng.random(n) < 0.1] = 3
    kept = np.flatnonzero(owner < 3)
    if seed % 2:
        rng.shuffle(kept)  # an order that is not the parts'
    new = np.full(n, -1, np.int64)
    new[kept] = np.arange(len(kept))
    parts = []
    for part in range(3):
        mine = np.flatnonzero((owner == part) | ((owner == 3) & (np.arange(n) % 3 == part)))
        parts.append((kind.build(dense_to_csr(matrix[mine], terms), PLAIN), new[mine]))
    merged = kind.merge(parts, PLAIN)
    whole = kind.build(dense_to_csr(matrix[kept], terms), PLAIN)
    assert folder_bytes(merged, tmp_path / "merged") == folder_bytes(whole, tmp_path / "whole")


def test_merging_in_several_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("retrievers.indexes.postings._CHUNK", 1000)
    vectors, _ = large_matrix(4, 70_000)
    half = 40_000
    parts: list[tuple[LexicalIndex, NDArray[np.int64]]] = [
        (LexicalIndex.build(vectors[:half], PLAIN), np.arange(half)),
        (LexicalIndex.build(vectors[half:], PLAIN), np.arange(half, 70_000)),
    ]
    merged = LexicalIndex.merge(parts, PLAIN)
    assert folder_bytes(merged, tmp_path / "a") == folder_bytes(LexicalIndex.build(vectors, PLAIN), tmp_path / "b")


def test_merging_8_bits_scales_anew() -> None:
    rng = np.random.default_rng(9)
    terms = random_terms(rng, 5)
    matrix = random_matrix(rng, 60, 5, counts=False) * np.where(np.arange(60) < 30, 1, 5)[:, None].astype(np.float32)
    parts = [(InvertedIndex.build(dense_to_csr(matrix[at], terms), BITS8), np.arange(30) + 30 * i)
             for i, at in enumerate((slice(30), slice(30, 60)))]  # fmt: skip
    merged = InvertedIndex.merge(parts, BITS8)
    for column in range(5):
        query = dense_to_csr(np.eye(5, dtype=np.float32)[column : column + 1], terms)
        found = merged.search(query, 60)
        assert sorted(found.rows[0].tolist()) == np.flatnonzero(matrix[:, column]).tolist()
        error = np.abs(found.scores[0] - matrix[found.rows[0], column])
        assert error.max(initial=0) <= 1.01 * matrix[:, column].max() / 255  # half a step of each of two codings
    with pytest.raises(SpecError, match="other bits"):
        InvertedIndex.merge(parts, PLAIN)


def test_the_gaps_of_compact_files(tmp_path: Path) -> None:
    """By hand: a gap of 254 is a byte, one of 255 is not; the next term begins below where the last one ended."""
    matrix = np.zeros((70_000, 2), np.float32)
    matrix[[3, 257, 512, 1000, 65_536, 65_540], 0] = 1
    matrix[[2, 65_535], 1] = 1
    index = InvertedIndex.build(csr_matrix(matrix), COMPACT)
    index.save(tmp_path)
    gaps = [3, 254, 255, 255, 255, 4, 255, 255]
    assert np.load(tmp_path / "gaps.npy").tolist() == gaps
    assert np.load(tmp_path / "long_gaps.npy").tolist() == [255, 488, 65_536 - 1000, 65_536 - 2, 65_533]
    assert not (tmp_path / "ids.npy").exists()
    again = InvertedIndex.load(tmp_path, COMPACT)
    assert (again._postings.ids == index._postings.ids).all()


@settings(max_examples=200, deadline=None)
@given(seeds, st.sampled_from([1, 2, 7, 1 << 18]))
def test_compact_files_hold_the_ids(seed: int, together: int) -> None:
    rng = np.random.default_rng(seed)
    count, most = int(rng.choice([0, 1, 2, 15, 3000])), int(rng.choice([1, 4, 256, 257, 1 << 16]))
    ids = np.cumsum(rng.integers(0, most, count), dtype=np.uint64).astype(np.uint16)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(postings, "_ADDED", together)
        gaps, longer = postings._gaps(ids)
        np.save(Path(folder) / "gaps.npy", gaps)
        np.save(Path(folder) / "long_gaps.npy", longer)
        found = postings._added_up(Path(folder))
    assert found.dtype == np.uint16
    assert (found == ids).all()


@pytest.mark.parametrize("by", [-1, 1])
def test_compact_files_that_do_not_fit_together_are_damaged(by: int, tmp_path: Path) -> None:
    vectors, _ = large_matrix(3, 70_000)
    InvertedIndex.build(vectors, COMPACT).save(tmp_path)
    longer = np.load(tmp_path / "long_gaps.npy")
    np.save(tmp_path / "long_gaps.npy", longer[:by] if by < 0 else np.append(longer, longer[-1:]))
    with pytest.raises(IndexDamagedError, match=r"long_gaps\.npy does not hold as many numbers"):
        InvertedIndex.load(tmp_path, COMPACT)


@pytest.mark.parametrize("kind", ["impacts", "impacts 8", "impacts compact", "frequencies", "frequencies compact"])
def test_what_is_saved_is_loaded(kind: str, tmp_path: Path) -> None:
    spec = BITS8 if kind == "impacts 8" else COMPACT if kind.endswith("compact") else PLAIN
    vectors, terms = large_matrix(3, 70_000)
    query = dense_to_csr(np.ones((1, len(terms))), terms)
    frequencies = kind.startswith("frequencies")
    index: Any = (LexicalIndex if frequencies else InvertedIndex).build(vectors, spec)
    options = {"norms": np.ones(70_000, np.float32)} if frequencies else {}
    index.save(tmp_path)
    again: Any = type(index).load(tmp_path, spec)
    assert answers(again.search(query, 50, **options)) == answers(index.search(query, 50, **options))
    assert (again.size, again.dimension, again.spec) == (70_000, VOCABULARY, spec)
    assert folder_bytes(again, tmp_path / "again") == {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()
    }
    for other, wrong in ((InvertedIndex, PLAIN if spec is BITS8 else BITS8), (LexicalIndex, PLAIN)):
        if not (other is LexicalIndex and frequencies):
            with pytest.raises(IndexDamagedError, match=r"inverted\.json"):
                other.load(tmp_path, wrong)


def alter(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / f"{name}.npy"
        np.save(path, change(np.load(path)))

    return act


def put(at: int, value: int | float) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def act(array: NDArray[Any]) -> NDArray[Any]:
        array[at] = value
        return array

    return act


DAMAGES: dict[str, Callable[[Path], None]] = {
    "terms swapped": alter("terms", lambda a: a[::-1].copy()),
    "terms negative": alter("terms", put(0, -5)),
    "terms cut": alter("terms", lambda a: a[:-1]),
    "terms of another type": alter("terms", lambda a: a.astype(np.float64)),
    "term_blocks beyond": alter("term_blocks", put(-1, 99)),
    "term_blocks before": alter("term_blocks", put(0, -1)),
    "term_blocks fall": alter("term_blocks", put(1, 5)),
    "term_blocks stand": alter("term_blocks", put(1, 0)),
    "block_range beyond": alter("block_range", put(1, 2**32 - 1)),
    "block_range falls": alter("block_range", lambda a: a[::-1].copy()),
    "block_range cut": alter("block_range", lambda a: a[:-1]),
    "block_start beyond": alter("block_start", put(-1, 2**40)),
    "block_start falls": alter("block_start", put(2, 0)),
    "block_start too long a block": alter("block_start", put(1, -(2**62))),
    "ids cut": alter("ids", lambda a: a[:-1]),
    "ids of another type": alter("ids", lambda a: a.astype(np.uint32)),
    "payload cut": alter("payload", lambda a: a[:-7]),
    "payload of another type": alter("payload", lambda a: a.astype(np.int64)),
    "payload of two dimensions": alter("payload", lambda a: a[:, None]),
    "payload missing": lambda folder: (folder / "payload.npy").unlink(),
    "payload file cut": lambda folder: (folder / "payload.npy").write_bytes(
        (folder / "payload.npy").read_bytes()[:1000]
    ),
    "meta missing": lambda folder: (folder / "inverted.json").unlink(),
    "meta rubbish": lambda folder: (folder / "inverted.json").write_bytes(b"\xff\x00"),
    "meta a list": lambda folder: (folder / "inverted.json").write_text("[]"),
    "meta without rows": lambda folder: (folder / "inverted.json").write_text('{"bits": 8}'),
    "meta true rows": lambda folder: (folder / "inverted.json").write_text('{"rows": true, "bits": 8, "dimension": 5}'),
    "meta too many rows": lambda folder: (folder / "inverted.json").write_text(
        json.dumps({**json.loads((folder / "inverted.json").read_text()), "rows": 2**50})
    ),
    "meta fewer rows": lambda folder: (folder / "inverted.json").write_text(
        json.dumps({**json.loads((folder / "inverted.json").read_text()), "rows": 65_000})
    ),
}
ONLY_LEXICAL = {
    "lengths cut": alter("lengths", lambda a: a[:-1]),
    "lengths negative": alter("lengths", put(3, -1)),
}
ONLY_8_BITS = {
    "scales cut": alter("scales", lambda a: a[:-1]),
    "scales not a number": alter("scales", put(0, float("nan"))),
    "scales zero": alter("scales", put(0, 0)),
    "block_max cut": alter("block_max", lambda a: a[:-1]),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    vectors, _ = large_matrix(6, 70_000)
    folders = {name: tmp_path_factory.mktemp(name) for name in ("lexical", "impacts8")}
    LexicalIndex.build(vectors, PLAIN).save(folders["lexical"])
    InvertedIndex.build(vectors, BITS8).save(folders["impacts8"])
    return folders


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("name", [*DAMAGES, *ONLY_LEXICAL])
def test_damage_to_frequencies_is_found_at_opening(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(saved["lexical"], tmp_path / "index")
    LexicalIndex.load(folder, PLAIN)
    (DAMAGES | ONLY_LEXICAL)[name](folder)
    with pytest.raises(IndexDamagedError, match=str(folder)):
        LexicalIndex.load(folder, PLAIN)


@pytest.mark.parametrize("name", [*DAMAGES, *ONLY_8_BITS])
def test_damage_to_impacts_is_found_at_opening(name: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(saved["impacts8"], tmp_path / "index")
    InvertedIndex.load(folder, BITS8)
    (DAMAGES | ONLY_8_BITS)[name](folder)
    with pytest.raises(IndexDamagedError, match=str(folder)):
        InvertedIndex.load(folder, BITS8)


def search_rubbish(folder: Path, lexical: bool) -> None:
    """Fill what is not checked at opening with anything at all, and search (run in a process of its own)."""
    rng = np.random.default_rng(1)
    terms = np.load(folder / "terms.npy")
    query = dense_to_csr(np.ones((1, len(terms)), np.float32), terms)
    for _ in range(20):
        for name in ("ids", "payload") if lexical else ("ids", "payload", "block_max"):
            array = np.load(folder / f"{name}.npy")
            noise = rng.integers(0, 256, array.nbytes, dtype=np.uint8)
            np.save(folder / f"{name}.npy", noise.view(array.dtype))
        index: Any = LexicalIndex.load(folder, PLAIN) if lexical else InvertedIndex.load(folder, BITS8)
        options = {"norms": np.ones(index.size, np.float32)} if lexical else {}
        for k in (1, 10, 1000):
            found = index.search(query, k, **options)
            assert len(found.rows[0]) <= k
            assert all(0 <= row < index.size for row in found.rows[0].tolist())
        index.explain(query, 0, *options.values())
        if lexical:
            index.frequencies_of(np.full(-(-index.size // 8), 255, np.uint8))
    print("survived")


@pytest.mark.parametrize("kind", ["lexical", "impacts8"])
def test_rubbish_in_the_postings_is_harmless(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(saved[kind], tmp_path / "index")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_inverted as t; "
        f"t.search_rubbish(pathlib.Path(sys.argv[1]), {kind == 'lexical'})"
    )
    outcome = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert outcome.stdout.split() == ["survived"]


def test_codes_of_16_bits_are_nearest() -> None:
    codes = np.arange(1, 65_536)
    values = decode16(codes)
    assert np.all(np.diff(values) > 0)
    assert encode16(values).tolist() == codes.tolist()
    assert (values[0], values[-1]) == (np.float32(2**-16 * (1 + 2**-11)), np.float32((2 - 2**-11) * 2**15))
    middles = (values[:-1].astype(np.float64) + values[1:]) / 2  # exact in float32
    even = codes[:-1] + codes[:-1] % 2
    assert encode16(middles.astype(np.float32)).tolist() == even.tolist()
    assert encode16(np.nextafter(middles.astype(np.float32), np.float32(0))).tolist() == codes[:-1].tolist()
    assert encode16(np.nextafter(middles.astype(np.float32), np.float32(9e9))).tolist() == codes[1:].tolist()
    assert encode16(np.array([0, 1e-45, 2**-17, 2**-16], np.float32)).tolist() == [0, 0, 0, 0]


def test_weights_below_the_window_are_left_out_and_above_refused() -> None:
    terms = np.array([3, 4])
    index = InvertedIndex.build(dense_to_csr(np.array([[1e-6, 0], [1e-6, 2.0]]), terms), PLAIN)
    assert answers(index.search(dense_to_csr(np.ones((1, 2)), terms), 5)) == [([1], np.float32(2).tobytes())]
    with pytest.raises(VectorError, match="65520"):
        InvertedIndex.build(dense_to_csr(np.array([[65_528.0, 0]]), terms), PLAIN)


def test_bad_input_is_refused() -> None:
    vectors = dense_to_csr(np.eye(3), np.array([4, 5, 6]))
    index, lexical = InvertedIndex.build(vectors, PLAIN), LexicalIndex.build(vectors, PLAIN)
    norms = np.ones(3, np.float32)
    with pytest.raises(QueryError, match="k=0"):
        index.search(vectors, 0)
    with pytest.raises(QueryError, match="bitmap"):
        index.search(vectors, 1, allowed=np.zeros(2, np.uint8))
    with pytest.raises(QueryError, match="norms"):
        lexical.search(vectors, 1, norms=norms[:2])
    with pytest.raises(QueryError, match="norms"):
        lexical.search(vectors, 1, norms=np.array([1, np.nan, 1], np.float32))
    with pytest.raises(QueryError, match="row 3"):
        index.explain(vectors[:1], 3)
    with pytest.raises(VectorError, match="vocabulary"):
        index.search(csr(np.ones(1, np.float32), np.array([4]), np.array([1]), 10), 1)
    with pytest.raises(VectorError, match="NaN"):
        index.search(csr(np.array([np.nan], np.float32), np.array([4]), np.array([1]), VOCABULARY), 1)
    with pytest.raises(VectorError, match="negative"):
        InvertedIndex.build(dense_to_csr(-np.eye(3), np.array([4, 5, 6])), PLAIN)
    with pytest.raises(VectorError, match="whole"):
        LexicalIndex.build(dense_to_csr(np.eye(3) / 2, np.array([4, 5, 6])), PLAIN)
    with pytest.raises(SpecError, match="bits"):
        InvertedIndex.build(vectors, Spec("inverted", {"bits": 4}))
    with pytest.raises(SpecError, match="no parameter 'bits': it takes compact"):
        LexicalIndex.build(vectors, BITS8)


@pytest.mark.parametrize("kind", ["impacts", "scaled impacts", "frequencies"])
def test_queries_may_be_laid_out_in_any_way(kind: str) -> None:
    rng = np.random.default_rng(4)
    matrix = csr_matrix(rng.integers(0, 4, (60, 30)).astype(np.float32))
    lexical = kind == "frequencies"
    spec = Spec("inverted", {"bits": 8} if kind == "scaled impacts" else {})
    index: Any = (LexicalIndex if lexical else InvertedIndex).build(matrix, spec)
    options = {"norms": np.ones(60, np.float32)} if lexical else {}
    columns, weights = np.array([2, 5, 17, 29]), np.array([1.5, 0.0, 2.0, 0.25], np.float32)
    plain = csr_matrix((weights, columns, [0, 4]), (1, 30))

    def answer(queries: Any) -> list[tuple[list[int], list[float]]]:
        found = index.search(queries, 7, **options)
        return [(rows.tolist(), scores.tolist()) for rows, scores in zip(found.rows, found.scores, strict=True)]

    wanted = answer(plain)
    assert len(wanted[0][0]) == 7
    turned = csr_matrix((weights[::-1].copy(), columns[::-1].copy(), [0, 4]), (1, 30))
    halves = csr_matrix((np.repeat(weights / 2, 2), np.repeat(columns, 2), [0, 8]), (1, 30))
    strided = plain.copy()
    strided.data, strided.indices = np.repeat(weights, 2)[::2], np.repeat(columns.astype(np.int32), 3)[::3]
    wide = plain.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    believed = turned.copy()
    believed.has_canonical_format = True  # what is said of a matrix before its columns are set
    for queries in (turned, halves, strided, wide, believed):
        assert answer(queries) == wanted
        assert answer(vstack([plain, queries, plain])) == wanted * 3
        limited = index.search_within(queries, 7, **options)[0]
        assert [(limited.rows[0].tolist(), limited.scores[0].tolist())] == wanted
        terms, parts = index.explain(queries, wanted[0][0][0], **options)
        assert np.all(np.diff(terms) > 0)
        assert np.cumsum(parts, dtype=np.float32)[-1] == np.float32(wanted[0][1][0])
