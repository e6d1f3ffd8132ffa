"""MaxSim against plain loops, its two storage types, explanations and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, QueryError, SpecError, VectorError
from retrievers.indexes import bitmaps, kernels, maxsim
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.specs import Spec
from retrievers.vectors import TokenVectors

FLOAT16 = Spec("maxsim")
INT8 = Spec("maxsim", {"dtype": "int8"})
both_types = pytest.mark.parametrize("spec", [FLOAT16, INT8], ids=str)


def texts(rng: np.random.Generator, lengths: list[int], dimension: int, distinct: int | None = None) -> TokenVectors:
    tokens = sum(lengths)
    values = rng.standard_normal((tokens, dimension))
    if distinct is not None:
        values = rng.standard_normal((distinct, dimension))[rng.integers(distinct, size=tokens)]
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenVectors(values.astype(np.float32), offsets)


def stored(index: MaxSimIndex, row: int) -> NDArray[np.longdouble]:
    at = slice(index._offsets[row], index._offsets[row + 1])
    values = index._values[at].astype(np.longdouble)
    return values if index._scales is None else values * index._scales[at, None]


def wanted(
    index: MaxSimIndex, query: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None = None
) -> list[tuple[int, float]]:
    scores = {}
    for row in range(index.size):
        tokens = stored(index, row)
        if len(tokens) and len(query) and (mask is None or mask[row]):
            similarities = query.astype(np.longdouble) @ tokens.T
            scores[row] = float(np.float32(similarities.max(axis=1).sum()))
    return [(row, scores[row]) for row in sorted(scores, key=lambda row: (-scores[row], row))[:k]]


def pairs(found: Any, query: int = 0) -> list[tuple[int, float]]:
    return list(zip(found.rows[query].tolist(), found.scores[query].tolist(), strict=True))


def draw_level(data: st.DataObject, patch: pytest.MonkeyPatch) -> None:
    """One of the ways in which this processor scores fast: bfloat16, int16 or float32."""
    level, short = data.draw(st.integers(0, kernels.maxsim_level())), data.draw(st.booleans())
    patch.setattr(kernels, "maxsim_level", lambda: level)
    if not short:
        patch.setattr(kernels, "bytes_level", lambda: 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_exhaustive_search_in_pieces_of_any_size(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 5, 40]), min_size=1, max_size=60))
    dimension = data.draw(st.sampled_from([1, 3, 16]))
    documents = texts(rng, lengths, dimension, data.draw(st.sampled_from([None, 1, 4])))
    queries = texts(rng, data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)), dimension)
    index = MaxSimIndex.build(documents, data.draw(st.sampled_from([FLOAT16, INT8])))
    mask = rng.random(len(lengths)) < data.draw(st.sampled_from([0.2, 0.8, 1.0]))
    k = data.draw(st.integers(1, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maxsim, "_TOKENS", data.draw(st.sampled_from([1, 7, 4096])))
        patch.setattr(maxsim, "_TOGETHER", data.draw(st.sampled_from([1, 5, 256])))
        patch.setattr(maxsim, "_TOGETHER_NARROW", data.draw(st.sampled_from([1, 5, 4096])))
        patch.setattr(maxsim, "_ROWS", data.draw(st.sampled_from([1, 10, 2048])))
        draw_level(data, patch)
        found = index.search(queries, k)
        filtered = index.search(queries, k, allowed=bitmaps.pack(mask))
    for number in range(len(queries)):
        assert pairs(found, number) == wanted(index, queries[number], k)
        assert pairs(filtered, number) == wanted(index, queries[number], k, mask)


@both_types
@pytest.mark.parametrize("n", [1, 12])
def test_scores_that_only_rounding_tells_apart_are_equal(spec: Spec, n: int) -> None:
    rng = np.random.default_rng(n)
    values = np.stack([rng.permutation(np.linspace(-1, 1.5, 128, dtype=np.float32)) for _ in range(900)])
    index = MaxSimIndex.build(TokenVectors(values, np.arange(0, 901, 3)), spec)
    queries = TokenVectors(np.full((4 * n, 128), 0.3, np.float32), np.arange(0, 4 * n + 1, 4))
    found = index.search(queries, 20)
    for number in range(n):
        assert found.rows[number].tolist() == list(range(20))
        assert pairs(found, number) == wanted(index, queries[number], 20)


@both_types
def test_documents_without_tokens_are_never_found(spec: Spec, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = texts(rng, [0, 3, 0, 0, 2, 0], 8)
    queries = texts(rng, [2, 0, 1], 8)
    MaxSimIndex.build(documents, spec).save(tmp_path)
    found = MaxSimIndex.load(tmp_path, spec).search(queries, 10)
    assert [sorted(rows.tolist()) for rows in found.rows] == [[1, 4], [], [1, 4]]
    for nothing in (texts(rng, [0, 0], 8), texts(rng, [], 8)):
        folder = tmp_path / str(len(nothing))
        folder.mkdir()
        index = MaxSimIndex.build(nothing, spec)
        index.save(folder)
        loaded = MaxSimIndex.load(folder, spec)
        assert [len(rows) for rows in loaded.search(queries, 10).rows] == [0, 0, 0]
        assert (loaded.size, loaded.dimension) == (len(nothing), 8)


@both_types
def test_every_best_token_is_told_and_sums_to_the_score(spec: Spec) -> None:
    rng = np.random.default_rng(1)
    documents = texts(rng, [7, 0, 30, 1, 12], 16, distinct=6)
    index = MaxSimIndex.build(documents, spec)
    query = texts(rng, [9], 16)
    found = dict(pairs(index.search(query, 10)))
    assert sorted(found) == [0, 2, 3, 4]
    for row, score in found.items():
        tokens, parts = index.explain(query, row)
        assert tokens.dtype == np.int64
        assert parts.dtype == np.float32
        similarities = query.values.astype(np.float64) @ stored(index, row).astype(np.float64).T
        for at, token in enumerate(tokens.tolist()):
            best = similarities[at].max()
            assert token == np.flatnonzero(similarities[at] > best - 1e-9)[0]
            assert parts[at] == np.float32(best)
        assert parts.sum() == pytest.approx(score, abs=1e-5)
    tokens, parts = index.explain(query, 1)
    assert len(tokens) == len(parts) == 0
    with pytest.raises(QueryError, match="row 5 is not in an index of 5 rows"):
        index.explain(query, 5)
    with pytest.raises(VectorError, match="one query"):
        index.explain(texts(rng, [1, 2], 16), 0)


def test_stored_values_are_as_near_as_their_type_allows() -> None:
    rng = np.random.default_rng(2)
    documents = texts(rng, [50] * 20, 32)
    values = documents.values * rng.choice([1e-3, 1, 100], (1000, 1)).astype(np.float32)
    values[17] = 0
    documents = TokenVectors(values, documents.offsets)
    half, codes = MaxSimIndex.build(documents, FLOAT16), MaxSimIndex.build(documents, INT8)
    for row in range(20):
        given_ = documents[row].astype(np.float64)
        peak = np.abs(given_).max(axis=1, keepdims=True)
        assert (np.abs(stored(half, row) - given_) <= np.abs(given_) * 2.0**-11 + 2.0**-25).all()
        assert (np.abs(stored(codes, row) - given_) <= peak / 127 * 0.5001).all()


def test_every_half_is_decoded_as_numpy_decodes_it() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    out = np.empty(65536, np.float32)
    maxsim._decode(halves, out)
    finite = np.isfinite(halves)
    np.testing.assert_array_equal(out[finite].view(np.int32), halves[finite].astype(np.float32).view(np.int32))
    assert (np.abs(out[~finite]) >= 65536).all()


@both_types
def test_merging_moves_the_stored_codes_as_they_are(spec: Spec, monkeypatch: Any) -> None:
    monkeypatch.setattr(maxsim, "_COPIED", 11)
    rng = np.random.default_rng(3)
    first = MaxSimIndex.build(texts(rng, [3, 0, 5, 2], 8), spec)
    second = MaxSimIndex.build(texts(rng, [4, 1, 0, 30], 8), spec)
    merged = MaxSimIndex.merge([(first, np.array([5, 0, -1, 2])), (second, np.array([1, -1, 4, 3]))], spec)
    assert merged.size == 6
    for index, row, new in [
        (first, 0, 5),
        (first, 1, 0),
        (first, 3, 2),
        (second, 0, 1),
        (second, 2, 4),
        (second, 3, 3),
    ]:
        np.testing.assert_array_equal(stored(merged, new), stored(index, row))
    other = FLOAT16 if spec == INT8 else INT8
    with pytest.raises(SpecError, match="another type"):
        MaxSimIndex.merge([(first, np.arange(4))], other)
    third = MaxSimIndex.build(texts(rng, [1], 9), spec)
    with pytest.raises(VectorError, match=r"\[8, 9\]"):
        MaxSimIndex.merge([(first, np.arange(4)), (third, np.array([4]))], spec)


def test_numbers_that_a_type_cannot_hold_are_refused() -> None:
    large = TokenVectors(np.full((2, 4), 1e5, np.float32), np.array([0, 2], np.int64))
    with pytest.raises(VectorError, match=r"65504.*int8"):
        MaxSimIndex.build(large, FLOAT16)
    index = MaxSimIndex.build(large, INT8)
    assert index.search(large, 1).scores[0][0] == pytest.approx(8e10)
    huge = TokenVectors(np.full((2, 4), 1e33, np.float32), large.offsets)
    with pytest.raises(VectorError, match="normalise"):
        index.search(huge, 1)


@both_types
def test_vectors_of_another_kind_are_refused(spec: Spec) -> None:
    rng = np.random.default_rng(4)
    good = texts(rng, [2, 3], 8)
    bad: list[Any] = [
        np.zeros((2, 8), np.float32),
        TokenVectors(good.values.astype(np.float64), good.offsets),
        TokenVectors(good.values, np.array([0, 4, 3, 5])),
        TokenVectors(np.full_like(good.values, np.nan), good.offsets),
        TokenVectors(np.zeros((5, 0), np.float32), good.offsets),
    ]
    index = MaxSimIndex.build(good, spec)
    for vectors in bad:
        with pytest.raises(VectorError):
            MaxSimIndex.build(vectors, spec)
        with pytest.raises(VectorError):
            index.search(vectors, 1)
    with pytest.raises(SpecError, match="float16 or int8"):
        MaxSimIndex.build(good, Spec("maxsim", {"dtype": "float32"}))


@both_types
def test_token_vectors_damaged_behind_its_back_are_never_ranked(spec: Spec, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    index = MaxSimIndex.build(texts(rng, [6] * 100, 16), spec)
    index.save(tmp_path)
    queries = texts(rng, [4] * 30, 16)
    name = "values.npy" if spec == FLOAT16 else "scales.npy"
    sound = np.load(tmp_path / name)
    for value in (np.nan, np.inf, -np.inf):
        damaged = sound.copy()
        damaged[::7] = value
        np.save(tmp_path / name, damaged)
        loaded = MaxSimIndex.load(tmp_path, spec)
        with pytest.raises(IndexDamagedError, match="NaN"):
            loaded.search(queries, 100)
        with pytest.raises(IndexDamagedError, match="NaN"):
            loaded.search(queries, 100, allowed=bitmaps.pack(np.arange(100) < 60))
        with pytest.raises(IndexDamagedError, match="NaN"):
            loaded.explain(texts(rng, [2], 16), 0)


@both_types
def test_files_that_do_not_fit_are_found_when_opening(spec: Spec, tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    index = MaxSimIndex.build(texts(rng, [6] * 10, 16), spec)
    offsets = index._offsets
    wrong: list[tuple[str, Any, str]] = [
        ("offsets.npy", offsets[:-1], r"offsets\.npy"),
        ("offsets.npy", offsets + 1, "does not rise from 0"),
        ("offsets.npy", offsets.astype(np.int32), "int32"),
        ("offsets.npy", np.where(offsets == 12, 50, offsets), "does not rise"),
        ("values.npy", index._values[:-1], r"values\.npy"),
        ("values.npy", index._values.astype(np.float64), "float64"),
        ("maxsim.json", {"rows": 11}, r"offsets\.npy"),
        ("maxsim.json", {"tokens": -1}, "tokens as -1"),
        ("maxsim.json", {"dtype": "int4"}, "int4"),
        ("maxsim.json", {"dimension": 0}, "0 dimensions"),
        ("maxsim.json", {"longest": None}, "longest"),
    ]
    if spec == INT8:
        wrong.append(("scales.npy", np.ones(3, np.float32), r"scales\.npy"))
    for number, (name, value, message) in enumerate(wrong):
        folder = tmp_path / str(number)
        folder.mkdir()
        index.save(folder)
        if isinstance(value, dict):
            path = folder / name
            path.write_text(json.dumps(json.loads(path.read_text()) | value))
        else:
            np.save(folder / name, value)
        with pytest.raises(IndexDamagedError, match=message):
            MaxSimIndex.load(folder, spec)
    index.save(tmp_path)
    with pytest.raises(IndexDamagedError, match=r"maxsim\.json"):
        MaxSimIndex.load(tmp_path, FLOAT16 if spec == INT8 else INT8)
    (tmp_path / "values.npy").unlink()
    with pytest.raises(IndexDamagedError, match=r"values\.npy is missing"):
        MaxSimIndex.load(tmp_path, spec)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_only_rows_below_the_floor_may_be_missing(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    lengths = data.draw(st.lists(st.sampled_from([0, 1, 2, 5]), min_size=1, max_size=60))
    documents = texts(rng, lengths, 3, data.draw(st.sampled_from([None, 2])))
    queries = texts(rng, [2, 0, 3], 3)
    index = MaxSimIndex.build(documents, data.draw(st.sampled_from([FLOAT16, INT8])))
    k = data.draw(st.integers(1, 20))
    with pytest.MonkeyPatch.context() as patch:
        draw_level(data, patch)
        whole = index.search(queries, k)
        at = data.draw(st.integers(0, 19))
        floor = np.array(
            [scores[min(at, len(scores) - 1)] if len(scores) else 0 for scores in whole.scores], np.float32
        )
        found = index.search(queries, k, floor=floor)
    for query in range(3):
        mine = pairs(found, query)
        assert mine == pairs(whole, query)[: len(mine)]
        assert {pair for pair in pairs(whole, query) if pair[1] >= floor[query]} <= set(mine)


def test_rounding_to_bfloat16_loses_no_row() -> None:
    """Rows that bfloat16 cannot tell apart come in the order of what is stored."""
    if kernels.maxsim_level() == 0:
        pytest.skip("this processor does not multiply bfloat16")
    rows = np.float16(1) + np.arange(60, dtype=np.float16) * np.float16(2**-10)  # 8 of them round to one
    documents = TokenVectors(rows.astype(np.float32)[:, None], np.arange(61, dtype=np.int64))
    found = MaxSimIndex.build(documents, FLOAT16).search(TokenVectors(np.ones((1, 1), np.float32), np.array([0, 1])), 5)
    assert found.rows[0].tolist() == [59, 58, 57, 56, 55]


def test_rounding_to_steps_of_the_longest_token_loses_no_row() -> None:
    """Rows that int16 cannot tell apart beside a long token come in the order of what is stored."""
    rows = np.append(np.float16(1) + np.arange(60, dtype=np.float16) * np.float16(2**-10), np.float16(-60000))
    documents = TokenVectors(rows.astype(np.float32)[:, None], np.arange(62, dtype=np.int64))
    found = MaxSimIndex.build(documents, FLOAT16).search(TokenVectors(np.ones((1, 1), np.float32), np.array([0, 1])), 5)
    assert found.rows[0].tolist() == [59, 58, 57, 56, 55]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1000.0])
@pytest.mark.parametrize("dimension", [7, 32])
def test_int16_tells_a_number_that_was_never_stored(value: float, dimension: int) -> None:
    rng = np.random.default_rng(0)
    index = MaxSimIndex.build(texts(rng, [3] * 40, dimension), FLOAT16)
    if maxsim.scan_level(np.ones((1, dimension), np.float32), index) != kernels.INT16:
        pytest.skip("this processor scores in other numbers")
    index._values[50, dimension - 1] = value
    with pytest.raises(IndexDamagedError, match="restore it from a backup"):
        index.search(texts(rng, [2], dimension), 5)
