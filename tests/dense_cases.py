"""Cases of the kernels over dense vectors, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from noise import noise_like

from retrievers.indexes.bitmaps import pack
from retrievers.indexes.sieve import Sieve


def offer_case(seed: int) -> dict[str, Any]:
    """Arguments of several calls of ``dense_offer``: blocks of rows, ties everywhere or nowhere, NaN and infinity."""
    rng = np.random.default_rng(seed)
    n, queries = int(rng.choice([1, 5, 70, 300])), int(rng.choice([0, 1, 4, 63, 64, 65, 130]))
    scores = rng.standard_normal((n, queries)).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores).astype(np.float32)
    if rng.random() < 0.3:
        scores[rng.random(scores.shape) < 0.1] = rng.choice([np.nan, -np.inf, np.inf])
    rows = np.flatnonzero(rng.random(n) < rng.choice([0.3, 1.0])).astype(np.int64)
    mask = None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.5, 1.0]))
    cuts = np.sort(rng.integers(0, len(rows) + 1, 3)).tolist()
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    return {"n": n, "k": int(rng.choice([1, 3, 20, 400])), "scores": scores, "parts": parts, "mask": mask}


def run_offer(module: Any, case: dict[str, Any]) -> list[list[tuple[float, int]]]:
    queries, k = case["scores"].shape[1], case["k"]
    best, rows = np.full((queries, k), -7, np.float32), np.full((queries, k), -7, np.int64)
    counts = np.zeros(queries, np.int64)
    for part in case["parts"]:
        scores = np.ascontiguousarray(case["scores"][part])
        module.dense_offer(case["n"], scores, part, case["mask"], best, rows, counts)
    return [
        sorted(zip((-best[at, :count]).tolist(), rows[at, :count].tolist(), strict=True))
        for at, count in enumerate(counts.tolist())
    ]


def dense_case(seed: int) -> dict[str, Any]:
    """Vectors, queries and proposed rows for the kernels in float64: ties everywhere or nowhere, numbers that no score holds."""
    rng = np.random.default_rng(seed)
    n, dimension = int(rng.choice([0, 1, 7, 64, 65, 200, 9000])), int(rng.choice([1, 7, 31, 32, 33, 64, 100]))
    queries, k = int(rng.choice([0, 1, 2, 3, 17, 33])), int(rng.choice([1, 3, 20, 300]))
    values = rng.standard_normal((n, dimension)) * rng.choice([1e-20, 1.0, 1e15])
    if rng.random() < 0.4:
        values = rng.integers(-2, 3, (n, dimension))
    values = values.astype(np.float32)
    longest = float(np.linalg.norm(values.astype(np.float64), axis=1).max(initial=0))
    if n and rng.random() < 0.2:
        values[rng.random(values.shape) < 0.01] = rng.choice([np.nan, np.inf, -np.inf])
    sieve = Sieve.of(values) if rng.random() < 0.7 and np.isfinite(values).all() else None
    rows = rng.integers(-1, n, (queries, int(rng.choice([0, 1, 63, 64, 150])))) if n else np.full((queries, 3), -1)
    if rows.size and rng.random() < 0.1:
        rows[rng.integers(len(rows)), rng.integers(rows.shape[1])] = rng.choice([-2, n, 2**62])
    return {
        "dimension": dimension,
        "values": values,
        "longest": longest,
        "codes": None if sieve is None else sieve.codes,
        "bounds": None if sieve is None else sieve.bounds,
        "spread": None if sieve is None else sieve.spread,
        "queries": rng.standard_normal((queries, dimension)).astype(np.float32),
        "rows": rows,
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.01, 0.5, 1.0])),
        "k": k,
    }


def run_dense(module: Any, case: dict[str, Any]) -> list[Any]:
    """The outcomes of ``dense_scores``, ``dense_best`` and ``dense_scan``, and what they found where that is sound."""
    dimension, values, longest, codes, bounds, spread, queries, rows, mask, k = case.values()
    found: list[Any] = []
    scores, count = np.zeros(rows.size, np.float32), len(queries)
    numbers = np.repeat(np.arange(count), rows.shape[1])
    outcome = module.dense_scores(dimension, values, queries, numbers, rows.ravel(), scores)
    found.append((outcome, scores.tobytes() if outcome == 0 else b""))
    for call in (
        lambda best: module.dense_best(dimension, values, codes, bounds, spread, queries, rows, *best),
        lambda best: module.dense_scan(dimension, values, longest, codes, bounds, spread, queries, mask, *best),
    ):
        best = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32), np.zeros(count, np.int64)
        outcome = call(best)
        each = [(best[0][at, :c].tolist(), best[1][at, :c].tobytes()) for at, c in enumerate(best[2].tolist())]
        found.append((outcome, each if outcome == 0 else []))
    return found


def run_damaged_dense(module: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = dense_case(seed)
    name = str(rng.choice(["values", "codes", "bounds", "spread", "queries", "rows", "mask", "longest", "dimension"]))
    value = case[name]
    if isinstance(value, np.ndarray):
        noise = noise_like(rng, value)
        case[name] = [value[: rng.integers(len(value) + 1)], noise][rng.integers(2)]
    elif value is not None:
        case[name] = [np.nan, -1.0][rng.integers(2)] if name == "longest" else int(rng.choice([-1, 0, 2, 1 << 40]))
    with contextlib.suppress(ValueError):
        run_dense(module, case)
