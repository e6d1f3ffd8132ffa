"""Every index kind against exhaustive search: hits, filters, deletions, ties, batches, threads, files and merges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from retrievers.errors import QueryError, VectorError
from retrievers.indexes import bitmaps, plaid
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.inverted import LexicalIndex
from retrievers.indexes.kinds import index_class, parse_index_spec
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.indexes.protocol import Found
from retrievers.vectors import Kind, TokenVectors, Vectors, concatenate, count, csr, take

QUERIES = 24
K = 10


@dataclass(frozen=True)
class Case:
    kind: Kind
    spec: str
    exact: bool = True  # without a filter as well
    lossless: bool = True  # merging is building on the merged vectors


CASES = [
    Case("dense", "flat"),
    Case("dense", "hnsw", exact=False),
    Case("dense", "ivf", exact=False),
    Case("dense", "ivfpq", exact=False),
    Case("dense", "rabitq", exact=False),
    Case("dense", "sq8", exact=False),
    Case("dense", "binary", exact=False),
    Case("dense", "hnsw(recall=0.97)", exact=False),
    Case("dense", "rabitq(recall=0.97)", exact=False),
    Case("multi-vector", "maxsim"),
    Case("multi-vector", "maxsim(dtype=int8)"),
    Case("multi-vector", "plaid(candidates=60)", exact=False),
    Case("multi-vector", "plaid(bits=4, vectors=none, candidates=60, nprobe=8)", exact=False, lossless=False),
    Case("sparse", "inverted"),
    Case("sparse", "inverted(bits=8)", lossless=False),
    Case("sparse", "inverted(compact=true)"),
    Case("lexical", "inverted"),
    Case("lexical", "inverted(compact=true)"),
]
EXACT = [case for case in CASES if case.exact]
APPROXIMATE = [case for case in CASES if not case.exact]


def name(case: Case) -> str:
    return f"{case.kind}-{case.spec}"


every_kind = pytest.mark.parametrize("case", CASES, ids=name)


@pytest.fixture(autouse=True)
def _compress_what_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)


@lru_cache
def collection(kind: Kind) -> tuple[Vectors, Vectors]:
    """Documents in clusters, one in ten of them twice or more, and queries near some of them."""
    rng = np.random.default_rng(7)
    if kind == "dense":
        centres = rng.standard_normal((60, 24))
        values = centres[rng.integers(60, size=2400)] + 0.4 * rng.standard_normal((2400, 24))
        documents = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
        documents[rng.choice(2400, 240, replace=False)] = documents[rng.choice(2400, 60).repeat(4)]
        near = documents[rng.choice(2400, QUERIES)] + 0.1 * rng.standard_normal((QUERIES, 24))
        return documents, near.astype(np.float32)
    if kind == "multi-vector":
        words = rng.standard_normal((80, 16))
        return token_vectors(rng, words, 300, 12), token_vectors(rng, words, QUERIES, 6)
    return sparse_vectors(rng, 400, 12, kind), sparse_vectors(rng, QUERIES, 5, kind)


def token_vectors(rng: np.random.Generator, words: NDArray[np.float64], n: int, most: int) -> TokenVectors:
    lengths = rng.integers(0, most + 1, n)
    if most > 6:  # one document in ten is the one before it
        lengths[5::10] = lengths[4::10]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = words[rng.integers(80, size=offsets[-1])] + 0.3 * rng.standard_normal((offsets[-1], 16))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    if most > 6:
        for row in range(5, n, 10):
            values[offsets[row] : offsets[row + 1]] = values[offsets[row - 1] : offsets[row]]
    return TokenVectors(values.astype(np.float32), offsets)


def sparse_vectors(rng: np.random.Generator, n: int, most: int, kind: Kind) -> Vectors:
    rows = [np.unique((rng.random(int(rng.integers(0, most + 1))) ** 2 * 90).astype(np.int64)) for _ in range(n)]
    rows[5::10] = rows[4::10][: len(rows[5::10])]
    columns = np.concatenate(rows)
    data = (rng.integers(1, 5, len(columns)) if kind == "lexical" else 3 * rng.random(len(columns)) + 0.01).astype("f4")
    return csr(data, columns, np.array([len(row) for row in rows], np.int64), 100)


@lru_cache
def built(case: Case) -> Any:
    return build(case, collection(case.kind)[0])


def build(case: Case, vectors: Vectors) -> Any:
    spec = parse_index_spec(case.spec, case.kind)
    return index_class(spec, case.kind).build(vectors, spec)


def search(index: Any, queries: Vectors, k: int = K, **masks: Bitmap | None) -> Found:
    if isinstance(index, LexicalIndex):
        norms = (0.5 + index.lengths / 10).astype(np.float32)
        return index.search(queries, k, norms=norms, **masks)
    found: Found = index.search(queries, k, **masks)
    return found


def exhaustive(index: Any, vectors: Vectors, queries: Vectors) -> NDArray[np.float32]:
    """The score of every pair, float32 ``[queries, rows]``, -inf for what shares nothing; one by one, without tricks."""
    scores = np.full((count(queries), count(vectors)), -np.inf, np.float32)
    if isinstance(vectors, np.ndarray):
        return (queries.astype(np.longdouble) @ vectors.astype(np.longdouble).T).astype(np.float32)
    for number in range(len(scores)):
        one = take(queries, np.array([number]))
        for row in range(scores.shape[1]):
            if isinstance(index, MaxSimIndex):
                values, scales, _ = index._block(np.array([row]))
                stored = values.astype(np.longdouble)
                if scales is not None:
                    stored = stored * scales[:, None]
                if len(stored) and len(one.values):
                    scores[number, row] = (one.values.astype(np.longdouble) @ stored.T).max(axis=1).sum()
                continue
            if isinstance(index, LexicalIndex):
                parts = index.explain(one, row, (0.5 + index.lengths / 10).astype(np.float32))[1]
            else:
                parts = index.explain(one, row)[1]
            if len(parts):
                scores[number, row] = np.cumsum(parts, dtype=np.float32)[-1]
    return scores


@lru_cache
def all_scores(case: Case) -> NDArray[np.float32]:
    vectors, queries = collection(case.kind)
    return exhaustive(built(case), vectors, queries)


def best(scores: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None) -> Found:
    """The best ``k`` of the rows of ``mask`` by score, equal ones by row."""
    found = Found([], [])
    for mine in scores:
        rows = np.flatnonzero(np.isfinite(mine) & (True if mask is None else mask))
        rows = np.array(sorted(rows.tolist(), key=lambda row: (-mine[row], row))[:k], np.int64)
        found.rows.append(rows)
        found.scores.append(mine[rows])
    return found


def check_same(found: Found, wanted: Found) -> None:
    """The same, bit for bit."""
    assert len(found.rows) == len(wanted.rows) == len(found.scores) == len(wanted.scores)
    for rows, scores, wanted_rows, wanted_scores in zip(
        found.rows, found.scores, wanted.rows, wanted.scores, strict=True
    ):
        assert rows.dtype == np.int64
        assert scores.dtype == np.float32
        np.testing.assert_array_equal(rows, wanted_rows)
        np.testing.assert_array_equal(scores.view(np.int32), wanted_scores.view(np.int32))


def recall(found: Found, wanted: Found) -> float:
    """Over the queries that have hits; the others find nothing."""
    pairs = list(zip(found.rows, wanted.rows, strict=True))
    assert not any(len(have) for have, want in pairs if not len(want))
    return float(np.mean([np.isin(want, have).mean() for have, want in pairs if len(want)]))


def mask_of(n: int, share: float, seed: int = 0) -> NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    mask = np.zeros(n, np.bool_)
    mask[rng.choice(n, round(share * n), replace=False)] = True
    return mask


@pytest.mark.parametrize("case", EXACT, ids=name)
def test_exact_kinds_find_what_exhaustive_search_finds(case: Case) -> None:
    _, queries = collection(case.kind)
    check_same(search(built(case), queries), best(all_scores(case), K))


@pytest.mark.parametrize("case", APPROXIMATE, ids=name)
def test_approximate_kinds_find_most_and_score_exactly(case: Case) -> None:
    _, queries = collection(case.kind)
    found = search(built(case), queries)
    assert recall(found, best(all_scores(case), K)) >= 0.9
    for number, (rows, scores) in enumerate(zip(found.rows, found.scores, strict=True)):
        mine = all_scores(case)[number]
        assert len(rows) == min(K, np.isfinite(mine).sum())
        np.testing.assert_array_equal(scores, mine[rows])
        assert rows.tolist() == sorted(rows.tolist(), key=lambda row: (-mine[row], row))


@every_kind
@pytest.mark.parametrize("share", ["none", "one", 0.01, 0.5, 0.99, 1.0])
def test_filters_are_exact(case: Case, share: float | str) -> None:
    vectors, queries = collection(case.kind)
    n = count(vectors)
    if isinstance(share, str):
        mask = np.zeros(n, np.bool_)
        mask[n // 2] = share == "one"
    else:
        mask = mask_of(n, share)
    wanted = best(all_scores(case), K, mask)
    check_same(search(built(case), queries, allowed=bitmaps.pack(mask)), wanted)
    few = take(queries, np.arange(3))
    check_same(search(built(case), few, allowed=bitmaps.pack(mask)), Found(wanted.rows[:3], wanted.scores[:3]))


@every_kind
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97, 0.9999])
def test_deleted_rows_are_left_out(case: Case, share: float) -> None:
    vectors, queries = collection(case.kind)
    live = mask_of(count(vectors), share, seed=1)
    found = search(built(case), queries, live=bitmaps.pack(live))
    wanted = best(all_scores(case), K, live)
    if case.exact:
        check_same(found, wanted)
        return
    assert recall(found, wanted) >= 0.9 if live.any() else not any(map(len, found.rows))
    for rows, wanted_rows in zip(found.rows, wanted.rows, strict=True):
        assert len(rows) == len(wanted_rows)
        assert live[rows].all()


@every_kind
def test_a_filter_and_deletions_together(case: Case) -> None:
    vectors, queries = collection(case.kind)
    live, allowed = mask_of(count(vectors), 0.8, seed=2), mask_of(count(vectors), 0.3, seed=3)
    found = search(built(case), queries, live=bitmaps.pack(live), allowed=bitmaps.pack(allowed & live))
    check_same(found, best(all_scores(case), K, live & allowed))


@every_kind
@pytest.mark.parametrize("masks", ["none", "live", "allowed"])
def test_a_batch_gives_what_one_by_one_gives(case: Case, masks: str) -> None:
    vectors, queries = collection(case.kind)
    options = {} if masks == "none" else {masks: bitmaps.pack(mask_of(count(vectors), 0.7, seed=4))}
    found = search(built(case), queries, **options)
    for number in range(QUERIES):
        alone = search(built(case), take(queries, np.array([number])), **options)
        check_same(alone, Found([found.rows[number]], [found.scores[number]]))
    backwards = search(built(case), take(queries, np.arange(QUERIES)[::-1]), **options)
    check_same(backwards, Found(found.rows[::-1], found.scores[::-1]))


@every_kind
def test_the_number_of_threads_changes_nothing(case: Case) -> None:
    vectors, queries = collection(case.kind)
    live = bitmaps.pack(mask_of(count(vectors), 0.6, seed=5))
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append([search(built(case), queries), search(built(case), queries, live=live)])
    finally:
        faiss.omp_set_num_threads(before)
    for one, two in zip(*found, strict=True):
        check_same(one, two)


@every_kind
def test_all_rows_come_back_where_more_are_asked_for(case: Case) -> None:
    vectors, queries = collection(case.kind)
    n = count(vectors)
    wanted = best(all_scores(case), n)
    check_same(search(built(case), queries, k=n), wanted)
    check_same(search(built(case), queries, k=10 * n), wanted)


@every_kind
def test_equal_scores_come_in_ascending_order_of_rows(case: Case) -> None:
    vectors, queries = collection(case.kind)
    some = next(row for row in range(count(vectors)) if np.isfinite(all_scores(case)[0, row]))
    many = take(vectors, np.full(1500, some, np.int64))
    index = build(case, many)
    found = search(index, take(queries, np.zeros(1, np.int64)), allowed=bitmaps.pack(np.ones(1500, np.bool_)))
    assert found.rows[0].tolist() == list(range(K))
    if case.exact:
        batch = search(index, take(queries, np.zeros(QUERIES, np.int64)), k=700)
        assert all(rows.tolist() == list(range(700)) for rows in batch.rows)
        assert len({score.tobytes() for score in batch.scores}) == 1
        assert len(set(batch.scores[0].tolist())) == 1


@every_kind
def test_a_loaded_index_gives_the_same_answers(case: Case, tmp_path: Path) -> None:
    vectors, queries = collection(case.kind)
    index = built(case)
    index.save(tmp_path)
    loaded = index_class(index.spec, case.kind).load(tmp_path, index.spec)
    assert (loaded.size, loaded.dimension) == (index.size, index.dimension)
    live = bitmaps.pack(mask_of(count(vectors), 0.6, seed=6))
    for options in ({}, {"live": live}, {"allowed": live}):
        check_same(search(loaded, queries, **options), search(index, queries, **options))


@every_kind
@pytest.mark.parametrize("loaded", [False, True], ids=["built", "loaded"])
def test_merging_keeps_what_is_kept(case: Case, loaded: bool, tmp_path: Path) -> None:
    vectors, queries = collection(case.kind)
    n, rng = count(vectors), np.random.default_rng(8)
    bounds = [0, n // 2, n // 2 + n // 3, n]
    parts, pieces, kept = [], [], []
    for number, (low, high) in enumerate(pairwise(bounds)):
        piece = take(vectors, np.arange(low, high))
        part = build(case, piece)
        if loaded:
            folder = tmp_path / str(number)
            folder.mkdir()
            part.save(folder)
            part = type(part).load(folder, part.spec)
        parts.append(part)
        pieces.append(piece)
        kept.append(rng.random(high - low) < 0.8)
    order = rng.permutation(int(sum(mask.sum() for mask in kept)))
    maps, used = [], 0
    for mask in kept:
        rows = np.full(len(mask), -1, np.int64)
        rows[mask] = order[used : used + mask.sum()]
        used += int(mask.sum())
        maps.append(rows)
    index = type(parts[0]).merge(list(zip(parts, maps, strict=True)), parts[0].spec)
    assert index.size == len(order)
    together = take(concatenate(pieces), np.flatnonzero(np.concatenate(kept)))
    merged_vectors = take(together, np.argsort(order))
    everything = bitmaps.pack(np.ones(index.size, np.bool_))
    if case.lossless:
        fresh = build(case, merged_vectors)
        check_same(search(index, queries, allowed=everything), search(fresh, queries, allowed=everything))
    few = take(queries, np.arange(6))
    check_same(search(index, few, allowed=everything), best(exhaustive(index, merged_vectors, few), K))


@every_kind
def test_no_query_finds_nothing_and_bad_ones_are_refused(case: Case) -> None:
    vectors, queries = collection(case.kind)
    index = built(case)
    none = search(index, take(queries, np.empty(0, np.int64)))
    assert none.rows == none.scores == []
    bad: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (QueryError, "k=0", lambda: search(index, queries, k=0)),
        (QueryError, "bytes", lambda: search(index, queries, allowed=np.zeros(3, np.uint8))),
        (QueryError, "bytes", lambda: search(index, queries, live=np.zeros(count(vectors), np.bool_))),
        (VectorError, str(index.dimension), lambda: search(index, widened(queries))),
    ]
    for error, message, call in bad:
        with pytest.raises(error, match=message):
            call()


def widened(queries: Vectors) -> Vectors:
    if isinstance(queries, TokenVectors):
        return TokenVectors(np.pad(queries.values, ((0, 0), (0, 1))), queries.offsets)
    if isinstance(queries, np.ndarray):
        return np.pad(queries, ((0, 0), (0, 1)))
    return csr(queries.data, queries.indices, np.diff(queries.indptr), queries.shape[1] + 1)
