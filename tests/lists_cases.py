"""Cases of the kernel that scans inverted lists, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from graph_cases import rows_found
from noise import spoil

from retrievers.indexes.bitmaps import pack
from retrievers.indexes.sieve import Sieve


def lists_case(seed: int) -> dict[str, Any]:
    """Lists of rows drawn at random, some empty, with ties everywhere or nowhere; a row that there is not in a few."""
    rng = np.random.default_rng(seed)
    n, lists, dimension = int(rng.choice([0, 1, 70, 400])), int(rng.choice([1, 5, 70])), int(rng.choice([1, 7, 32, 65]))
    values = rng.standard_normal((n + lists, dimension)) * rng.choice([1e-20, 1.0, 1e15])
    if rng.random() < 0.4:
        values = rng.integers(-1, 2, (n + lists, dimension))
    sieve, centroids = Sieve.of(values[:n].astype(np.float32)), Sieve.of(values[n:].astype(np.float32))
    rows = rng.permutation(n).astype(np.int32)
    starts = np.concatenate([[0], np.sort(rng.integers(0, n + 1, lists - 1)), [n]]).astype(np.int64)
    if n and rng.random() < 0.1:
        rows[0] = rng.choice([-1, n])
    if rng.random() < 0.1:
        starts[rng.integers(lists + 1)] = rng.choice([-1, n + 1])
    queries = rng.standard_normal((int(rng.choice([0, 1, 3])), dimension)).astype(np.float32)
    return {
        "dimension": dimension,
        **vars(sieve),
        **{f"centroid_{name}": part for name, part in vars(centroids).items()},
        "rows": rows,
        "starts": starts,
        "queries": queries * rng.choice([0, 1e-30, 1]).astype(np.float32),
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.5, 1.0])),
        "probes": int(rng.choice([1, 3, 1000])),
        "count": int(rng.choice([1, 10, 500])),
    }


def run_lists(module: Any, case: dict[str, Any]) -> tuple[int, list[list[int]]]:
    return rows_found(module.lists_search, case)


def run_damaged_lists(module: Any, seed: int) -> None:
    case = lists_case(seed)
    spoil(np.random.default_rng(seed), case, [name for name in case if name != "count"])
    with contextlib.suppress(ValueError):
        run_lists(module, case)
