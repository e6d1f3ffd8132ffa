"""Cases of the kernel that walks over graphs, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from noise import spoil

from retrievers.indexes.bitmaps import pack
from retrievers.indexes.sieve import Sieve


def graph_case(seed: int) -> dict[str, Any]:
    """A graph whose links are drawn at random, with ties everywhere or nowhere, and links that lead nowhere in a few."""
    rng = np.random.default_rng(seed)
    n, dimension = int(rng.choice([1, 2, 40, 300])), int(rng.choice([1, 3, 31, 64, 65]))
    values = rng.standard_normal((n, dimension)) * rng.choice([1e-20, 1.0, 1e15])
    if rng.random() < 0.4:
        values = rng.integers(-1, 2, (n, dimension))
    sieve = Sieve.of(values.astype(np.float32))
    m = int(rng.choice([1, 2, 8]))
    heights = np.minimum(rng.geometric(0.6, n) - 1, 3)
    heights[0] = 1 + heights.max()
    starts = np.where(heights > 0, np.cumsum(heights) - heights, -1).astype(np.int32)
    links, upper = (rng.integers(-1, n, shape) for shape in ((n, 2 * m), (int(heights.sum()), m)))
    for level in range(1, int(heights[0]) + 1):  # a link leads to a node that is on this level, too
        high = np.flatnonzero(heights >= level)
        upper[starts[high] + level - 1] = rng.choice(high, (len(high), m))
    if rng.random() < 0.1:
        [links, upper][rng.integers(2)][0, 0] = rng.choice([n, 1 << 30])
    queries = rng.standard_normal((int(rng.choice([0, 1, 3])), dimension)).astype(np.float32)
    return {
        "dimension": dimension,
        "codes": sieve.codes,
        "bounds": sieve.bounds,
        "spread": sieve.spread,
        "links": links.astype(np.int32),
        "starts": starts,
        "upper": upper.astype(np.int32),
        "upper_width": m,
        "entry": 0,
        "levels": int(heights[0]),
        "queries": queries * rng.choice([0, 1e-30, 1]).astype(np.float32),
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.5, 1.0])),
        "effort": int(rng.choice([1, 5, 64, 1000])),
        "count": int(rng.choice([1, 10, 500])),
    }


def rows_found(search: Callable[..., int], case: dict[str, Any]) -> tuple[int, list[list[int]]]:
    """What a kernel answers that writes ``count`` rows for each query, and those rows where that is sound."""
    *arguments, count = case.values()
    rows = np.full((len(case["queries"]), count), -7, np.int64)
    outcome = search(*arguments, rows)
    return outcome, rows.tolist() if outcome == 0 else []


def run_graph(module: Any, case: dict[str, Any]) -> tuple[int, list[list[int]]]:
    return rows_found(module.graph_search, case)


def run_damaged_graph(module: Any, seed: int) -> None:
    case = graph_case(seed)
    spoil(np.random.default_rng(seed), case, [name for name in case if name != "count"])
    with contextlib.suppress(ValueError):
        run_graph(module, case)
