"""Codes by which a scan passes over rows: how far off they may be, that they are used, and that they change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrievers.indexes import bitmaps, kernels
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.exact import StoredVectors
from retrievers.indexes.sieve import Sieve
from retrievers.specs import Spec

FLAT = Spec("flat")


def made(kind: str, n: int, dimension: int) -> NDArray[np.float32]:
    """Vectors that codes fit well, and others that they fit badly."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((n, dimension))
    match kind:
        case "one long coordinate":
            values[:, dimension // 2] = 300
        case "near one another":
            values = values[:1] + 0.01 * values
        case "few values":
            values = np.round(values)
        case "zero, tiny and huge":
            values *= rng.choice([0, 1e-44, 1e-38, 1e-30, 1, 1e15], (n, 1))
        case "heavy tails":
            values = values**9
    return values.astype(np.float32)


KINDS = ["normal", "one long coordinate", "near one another", "few values", "zero, tiny and huge", "heavy tails"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_no_farther_from_their_codes_than_it_says(kind: str) -> None:
    values = made(kind, 5000, 33)
    sieve = Sieve.of(values)
    (steps, errors), (mean, deviations) = sieve.bounds.astype(np.longdouble), sieve.spread.astype(np.longdouble)
    true = np.linalg.norm((values - mean) / deviations - sieve.codes * steps[:, None], axis=1)
    assert (true <= errors).all()
    assert np.abs(sieve.codes.astype(np.int16)).max() == 127
    if kind != "zero, tiny and huge":
        assert (errors <= 1.001 * steps / 2 * np.sqrt(33)).all()
    if kind in ("normal", "one long coordinate"):  # no number is far from the mean of its dimension
        assert steps.max() < 6 / 127


@pytest.mark.parametrize("dimension", [1, 31, 384, 1025])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_change_nothing_that_is_found(kind: str, dimension: int) -> None:
    values = made(kind, 1500, dimension)
    longest = np.linalg.norm(values.astype(np.float64), axis=1).max()
    queries = made(kind, 40, dimension)[::-1] / np.float32(max(longest, 1))
    index = FlatIndex.build(values, FLAT)
    without = FlatIndex(replace(index._stored, sieve=None), FLAT)
    mask = bitmaps.pack(np.random.default_rng(1).random(1500) < 0.4)
    for count in (1, 3, 15, 16, 40):
        for k in (1, 10, 200):
            for live in (None, mask):
                some = np.ascontiguousarray(queries[:count])
                found, wanted = index.search(some, k, live=live), without.search(some, k, live=live)
                assert [rows.tolist() for rows in found.rows] == [rows.tolist() for rows in wanted.rows]
                assert [scores.tobytes() for scores in found.scores] == [scores.tobytes() for scores in wanted.scores]


@pytest.mark.skipif(not kernels.compiled(), reason="the kernels are not compiled")
@pytest.mark.parametrize("count", [1, 2, 40])
def test_rows_are_passed_over_by_their_codes(count: int) -> None:
    stored = StoredVectors.of(made("normal", 1000, 64))
    assert stored.sieve is not None
    best = stored.values[777]
    queries = np.repeat(best[None], count, axis=0)
    assert [rows[0] for rows in stored.scan(queries, 5).rows] == [777] * count
    codes = stored.sieve.codes.copy()
    codes[777] = 0  # as far from the truth as it may be, and says that it is near
    wrong = replace(stored, sieve=replace(stored.sieve, codes=codes))
    assert all(777 not in rows for rows in wrong.scan(queries, 5).rows)
    seen = replace(wrong.sieve, bounds=wrong.sieve.bounds.copy())
    seen.bounds[1, 777] = np.nan  # what is no number stays
    assert [rows[0] for rows in replace(wrong, sieve=seen).scan(queries, 5).rows] == [777] * count


@pytest.mark.parametrize("index", [FlatIndex, ApproximateIndex])
def test_an_index_of_an_older_version_has_no_codes_and_finds_the_same(index: Any, tmp_path: Path) -> None:
    spec = FLAT if index is FlatIndex else Spec("binary")
    values = made("normal", 1000, 32)
    built = index.build(values, spec)
    built.save(tmp_path)
    assert isinstance(index.load(tmp_path, spec)._stored.sieve, Sieve)
    (tmp_path / "codes.npy").unlink()
    (tmp_path / "bounds.npy").unlink()
    (tmp_path / "spread.npy").unlink()
    meta = json.loads((tmp_path / "dense.json").read_text())
    del meta["sieved"]
    (tmp_path / "dense.json").write_text(json.dumps(meta))
    older = index.load(tmp_path, spec)
    assert older._stored.sieve is None
    for count in (1, 20):
        allowed = bitmaps.pack(np.arange(1000) % 3 > 0)
        found, wanted = (one.search(values[:count], 7, allowed=allowed) for one in (older, built))
        assert [rows.tolist() for rows in found.rows] == [rows.tolist() for rows in wanted.rows]
    (tmp_path / "again").mkdir()
    older.save(tmp_path / "again")
    assert index.load(tmp_path / "again", spec)._stored.sieve is None
    assert index.merge([(older, np.arange(1000))], spec)._stored.sieve is not None
