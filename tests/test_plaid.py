"""The plaid index on vectors with many near tokens: recall, what codes stand for, drift, pooling, damage, and its twin."""

from __future__ import annotations

import json
import threading
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrievers import Document, Retriever
from retrievers.cli.information import examine, print_information
from retrievers.errors import IndexDamagedError, SpecError, VectorError
from retrievers.indexes import bitmaps, plaid, residuals
from retrievers.indexes.kinds import parse_index_spec
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.indexes.plaid import PlaidIndex
from retrievers.indexes.pooling import pool
from retrievers.specs import Spec
from retrievers.vectors import TokenVectors

DIMENSION = 48


def texts(n: int, most: int, seed: int, shift: float = 0.0) -> TokenVectors:
    """Texts of up to ``most`` tokens, which lie around 3,000 words, the frequent ones more often."""
    words = np.random.default_rng(99).standard_normal((3000, DIMENSION)) + shift
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, n)
    chosen = (3000 * rng.random(int(lengths.sum())) ** 2).astype(np.int64)
    values = words[chosen] + 0.5 * rng.standard_normal((len(chosen), DIMENSION))
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return TokenVectors(values.astype(np.float32), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@lru_cache
def documents() -> TokenVectors:
    return texts(3000, 60, 1)


@lru_cache
def queries() -> TokenVectors:
    """Parts of documents, and noise."""
    rng = np.random.default_rng(2)
    found = [documents()[row][:20] for row in rng.choice(3000, 40) if len(documents()[row]) > 3]
    values = np.concatenate(found) + 0.1 * rng.standard_normal((sum(map(len, found)), DIMENSION))
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in found])]).astype(np.int64)
    return TokenVectors(values.astype(np.float32), offsets)


@lru_cache
def built(text: str) -> PlaidIndex:
    return PlaidIndex.build(documents(), parse_index_spec(text, "multi-vector"))


@lru_cache
def exact() -> list[set[int]]:
    index = MaxSimIndex.build(documents(), Spec("maxsim"))
    return [set(rows.tolist()) for rows in index.search(queries(), 10).rows]


def recall(found: Any) -> float:
    return float(np.mean([len(mine & set(rows.tolist())) / 10 for mine, rows in zip(exact(), found.rows, strict=True)]))


@pytest.mark.parametrize(
    ("text", "least"),
    [("plaid", 0.95), ("plaid(bits=1)", 0.95), ("plaid(bits=4)", 0.95), ("plaid(bits=4, vectors=none)", 0.9)],
)
def test_most_of_the_best_are_found(text: str, least: float) -> None:
    index = built(text)
    assert index.settings["centroids"] == 4096
    assert recall(index.search(queries(), 10)) >= least


def test_more_effort_finds_more() -> None:
    found = [
        recall(built(f"plaid(nprobe={probes}, candidates={count})").search(queries(), 10))
        for probes, count in ((1, 40), (4, 80), (64, 1200))
    ]
    assert found[0] < found[1] < found[2] + 0.01
    assert found[2] >= 0.99


def test_finer_codes_stand_for_nearer_vectors_without_the_vectors() -> None:
    errors = []
    for bits in (1, 2, 4):
        index = built(f"plaid(bits={bits}, vectors=none)")
        decoded = np.concatenate([index._block(np.array([row]))[0] for row in range(200)]).astype(np.float32)
        wanted = documents().values[: len(decoded)]
        errors.append(float(((decoded - wanted) ** 2).sum(axis=1).mean()))
        # Brought back to the length that they had, as far as a byte tells; few are beyond its table.
        off = np.abs(np.linalg.norm(decoded, axis=1) - 1)
        assert np.quantile(off, 0.99) < 0.005
        assert off.max() < 0.2
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01


def test_scores_are_those_of_the_stored_vectors() -> None:
    """Of the vectors that were given where they are kept, of what the codes stand for elsewhere."""
    kept = built("plaid").search(queries(), 10)
    whole = MaxSimIndex.build(documents(), Spec("maxsim"))
    coded = built("plaid(vectors=none)")
    found = coded.search(queries(), 10)
    for number in range(len(queries())):
        mine = np.isin(np.arange(3000), kept.rows[number])
        wanted = whole.search(one(number), 10, allowed=bitmaps.pack(mine))
        np.testing.assert_array_equal(kept.rows[number], wanted.rows[0])
        np.testing.assert_array_equal(kept.scores[number], wanted.scores[0])
        for row, score in zip(found.rows[number].tolist(), found.scores[number].tolist(), strict=True):
            values = coded._block(np.array([row]))[0].astype(np.float64)
            assert score == pytest.approx((queries()[number] @ values.T).max(axis=1).sum(), rel=1e-6)


def one(number: int) -> TokenVectors:
    query = queries()[number]
    return TokenVectors(query, np.array([0, len(query)]))


@pytest.mark.parametrize("text", ["plaid", "plaid(vectors=none)"])
def test_filters_are_exact_and_the_deleted_are_left_out(text: str) -> None:
    index = built(text)
    rng = np.random.default_rng(3)
    allowed = rng.random(index.size) < 0.4
    found = index.search(queries(), 10, allowed=bitmaps.pack(allowed))
    every = MaxSimIndex.search(index, queries(), 10, allowed=bitmaps.pack(allowed))
    for mine, wanted in zip((*found.rows, *found.scores), (*every.rows, *every.scores), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    live = rng.random(index.size) < 0.6
    for rows in index.search(queries(), 10, live=bitmaps.pack(live)).rows:
        assert len(rows) == 10
        assert live[rows].all()


@pytest.mark.parametrize("text", ["plaid", "plaid(vectors=none, bits=4)"])
def test_a_batch_gives_what_one_by_one_and_a_loaded_index_give(text: str, tmp_path: Path) -> None:
    index = built(text)
    index.save(tmp_path)
    loaded = PlaidIndex.load(tmp_path, index.spec)
    assert loaded.settings == index.settings
    found, again = index.search(queries(), 7), loaded.search(queries(), 7)
    for number in range(len(queries())):
        alone = index.search(one(number), 7)
        for other in (alone.rows[0], again.rows[number]):
            np.testing.assert_array_equal(found.rows[number], other)
        np.testing.assert_array_equal(found.scores[number], alone.scores[0])


@pytest.mark.parametrize(("granted", "asked", "wanted"), [("3", 30, 3), ("3", 8, 2), ("3", 7, 1), ("1", 30, 1)])
def test_threads_share_a_batch_and_give_what_one_gives(
    granted: str, asked: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = built("plaid")
    ends = queries().offsets[: asked + 1]
    some = TokenVectors(queries().values[: ends[-1]], ends)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = index.search(some, 10)
    used = set()
    propose = PlaidIndex._propose

    def watched(self: PlaidIndex, *arguments: Any) -> Any:
        used.add(threading.get_ident())
        time.sleep(0.002)  # so that a thread that starts late finds work left
        return propose(self, *arguments)

    monkeypatch.setattr(PlaidIndex, "_propose", watched)
    monkeypatch.setenv("OMP_NUM_THREADS", granted)
    together = index.search(some, 10)
    assert len(used) == wanted
    for first, second in zip((*alone.rows, *alone.scores), (*together.rows, *together.scores), strict=True):
        np.testing.assert_array_equal(first, second)


def test_added_documents_are_assigned_to_the_centroids_and_drift_is_told() -> None:
    first = built("plaid")
    near = PlaidIndex.build(texts(2500, 60, 5), first.spec, first)
    assert near._compressed is not None
    assert first._compressed is not None
    np.testing.assert_array_equal(near._compressed.codec.centroids, first._compressed.codec.centroids)
    far = PlaidIndex.build(texts(2500, 60, 5, shift=2.0), first.spec, first)
    assert first.settings["drift"] == 1
    assert 0.9 < near.settings["drift"] < 1.3
    assert far.settings["drift"] > near.settings["drift"] + 0.1
    merged = PlaidIndex.merge([(first, np.arange(3000)), (far, 3000 + np.arange(2500))], first.spec)
    assert merged.settings["drift"] == 1  # trained anew


def test_few_tokens_are_scanned_and_a_merge_compresses_them() -> None:
    spec = Spec("plaid", {"vectors": "none"})
    half = [PlaidIndex.build(TokenVectors(*part), spec) for part in halves()]
    assert [part.settings for part in half] == [{}, {}]
    merged = PlaidIndex.merge(
        [(half[0], np.arange(half[0].size)), (half[1], half[0].size + np.arange(half[1].size))], spec
    )
    assert merged.settings["centroids"] == 4096
    assert recall(merged.search(queries(), 10)) >= 0.7
    back = np.full(merged.size, -1)
    back[:10] = np.arange(10)
    few = PlaidIndex.merge([(merged, back)], spec)
    assert few.settings == {}
    assert few.size == 10


def halves() -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    given, middle = documents(), 1500
    at = int(given.offsets[middle])
    return [
        (given.values[:at], given.offsets[: middle + 1]),
        (given.values[at:], given.offsets[middle:] - at),
    ]


def test_a_merge_of_much_gathers_in_a_file_what_it_gathers_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [(built("plaid"), np.arange(3000)[::-1].copy())]
    before = PlaidIndex.merge(parts, built("plaid").spec)
    monkeypatch.setattr(plaid, "_ON_DISK", 1)
    monkeypatch.setattr(plaid, "_TOKENS", 1000)
    after = PlaidIndex.merge(parts, built("plaid").spec)
    assert isinstance(after._values, np.memmap)
    np.testing.assert_array_equal(np.asarray(after._values), before._values)
    for mine, wanted in zip(after.search(queries(), 10).scores, before.search(queries(), 10).scores, strict=True):
        np.testing.assert_array_equal(mine, wanted)


def test_pooling_keeps_a_part_of_the_tokens_and_the_first() -> None:
    given = documents()
    for factor in (2, 3):
        found = pool(given, factor)
        for row in range(50):
            before, after = given[row], found[row]
            assert len(after) == (0 if len(before) == 0 else max(1, len(before) // factor))
            np.testing.assert_array_equal(after[:1], before[:1])
            np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert pool(given, 1) is given
    # The first stays by itself, and of the others three pairs that are alike become one each.
    pairs = TokenVectors(np.eye(4, DIMENSION, dtype=np.float32)[[0, 1, 1, 2, 2, 3, 3, 3]], np.array([0, 8]))
    np.testing.assert_allclose(pool(pairs, 2)[0], np.eye(4, DIMENSION), atol=1e-6)
    pooled, alone = built("plaid(pool=2)"), PlaidIndex.build(pool(documents(), 2), Spec("plaid"))
    for mine, wanted in zip(pooled.search(queries(), 10).rows, alone.search(queries(), 10).rows, strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.parametrize(
    "text", ["plaid(bits=3)", "plaid(nprobe=0)", "plaid(vectors=int8)", "plaid(pool=0)", "plaid(k=3)"]
)
def test_parameters_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="plaid"):
        parse_index_spec(text, "multi-vector")


def test_vectors_that_float16_cannot_hold_are_refused() -> None:
    with pytest.raises(VectorError, match="65504"):
        PlaidIndex.build(TokenVectors(np.full((1, 4), 1e6, np.float32), np.array([0, 1])), Spec("plaid"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lists", lambda array: array[::-1].copy()),
        ("offsets", lambda array: array + 1),
        ("codes", lambda array: array[:-1]),
        ("levels", lambda array: array * np.float32(np.nan)),
        ("tables", lambda array: array[:, :9]),
        ("steps", lambda array: array.astype(np.int16)),
        ("centroids", lambda array: array[:-1]),
    ],
)
def test_damaged_files_are_named(name: str, change: Any, tmp_path: Path) -> None:
    index = built("plaid")
    index.save(tmp_path)
    np.save(tmp_path / f"{name}.npy", change(np.load(tmp_path / f"{name}.npy")))
    with pytest.raises(IndexDamagedError, match=name):
        PlaidIndex.load(tmp_path, index.spec)


@pytest.mark.parametrize(("key", "value"), [("centroids", 4095), ("kept", 2), ("dimension", 0), ("rest", -1.0)])
def test_a_description_that_cannot_be_is_refused(key: str, value: float, tmp_path: Path) -> None:
    built("plaid").save(tmp_path)
    meta = json.loads((tmp_path / "plaid.json").read_text())
    (tmp_path / "plaid.json").write_text(json.dumps({**meta, key: value}))
    with pytest.raises(IndexDamagedError, match=r"plaid\.json"):
        PlaidIndex.load(tmp_path, built("plaid").spec)


@pytest.mark.parametrize("name", ["codes", "list_rows", "residuals", "steps", "centroids"])
def test_a_payload_that_was_overwritten_crashes_no_search(name: str, tmp_path: Path) -> None:
    index = built("plaid(vectors=none)")
    index.save(tmp_path)
    array = np.load(tmp_path / f"{name}.npy")
    noise = np.random.default_rng(4).integers(0, 256, array.nbytes, dtype=np.uint8)
    np.save(tmp_path / f"{name}.npy", noise.view(array.dtype).reshape(array.shape))
    loaded = PlaidIndex.load(tmp_path, index.spec)
    try:
        found = loaded.search(queries(), 10)
    except IndexDamagedError:
        return
    assert all(0 <= rows.min() <= rows.max() < index.size for rows in found.rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_vectors_are_assigned_to_the_nearest_centroid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dimension = int(rng.choice([1, 31, 33, 64]))
    vectors = rng.standard_normal((int(rng.integers(1, 700)), dimension)).astype(np.float32)
    centroids = residuals._padded(rng.standard_normal((64, dimension)).astype(np.float32))
    products = vectors @ residuals.widen(centroids)[:, :dimension].T
    found = residuals.nearest(vectors, centroids)
    best = products.max(axis=1)
    short = best - products[np.arange(len(vectors)), found]
    # bfloat16 rounds the vectors: what is chosen may be second by that.
    longest = np.linalg.norm(residuals.widen(centroids), axis=1).max()
    assert (short <= 2**-8 * 2 * longest * np.linalg.norm(vectors, axis=1)).all()


def test_a_build_in_segments_ends_in_one_and_what_is_added_shares_its_centroids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(6)
    words = [f"word{n}" for n in range(4000)]
    lines = [" ".join(words[int(4000 * x**2)] for x in rng.random(50)) for _ in range(6000)]
    encoder = HashEncoder("multi-vector")
    everything = [Document(f"d{n:04}", line) for n, line in enumerate(lines)]
    with Retriever.build(tmp_path, everything[:4000], encoder=encoder, index="plaid", memory=40 << 20) as retriever:
        assert encoder.encoded == 4000
        assert retriever._snapshot.manifest.generation >= 4  # two segments or more, the end, and the merge
        (segment,) = retriever._snapshot.segments
        assert segment.index.settings["drift"] == 1
        retriever.add(everything[4000:])
        first, second = (one.index._compressed.codec for one in retriever._snapshot.segments)
        np.testing.assert_array_equal(first.centroids, second.centroids)
        found = retriever.search([lines[7], lines[5007]], k=3)
        assert [hits[0].id for hits in found] == ["d0007", "d5007"]
        retriever.merge()
        assert [one.index.settings["drift"] for one in retriever._snapshot.segments] == [1]
        assert examine(tmp_path)["settings"] == [retriever._snapshot.segments[0].index.settings]
        print_information(examine(tmp_path))
        assert "settings     centroids 8192, bits 2, nprobe 16, candidates 272, drift 1.0" in capsys.readouterr().out
        again = retriever.search([lines[7], lines[5007]], k=3)
        assert [(hit.id, hit.score) for hit in again[1][:1]] == [(hit.id, hit.score) for hit in found[1][:1]]
