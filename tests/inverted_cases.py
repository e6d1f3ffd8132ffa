"""Cases of the kernels over inverted indexes, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from noise import noise_like

from retrievers.indexes.bitmaps import pack
from retrievers.indexes.postings import assemble


def random_case(seed: int) -> dict[str, Any]:
    """Arguments of ``inverted_search``: few rows or several ranges, rare terms and dense ones, ties everywhere."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 9, 100, 20_000, 65_536, 65_537, 90_000, 140_000]))
    kind = int(rng.integers(5))
    terms = int(rng.integers(1, 14))
    highest = [65_535, 255, 255, 65_535, 2**32 - 1][kind]
    few = rng.random() < 0.5  # few values: ties everywhere
    chunks = []
    for term in range(terms):
        rows = np.flatnonzero(rng.random(n) < rng.choice([1 / n, 0.0005, 0.02, 0.4, 0.95, 1.0]))
        if not len(rows):
            continue
        if kind == 0:
            codes = rng.choice([40_000, 32_768], len(rows)) if few else rng.integers(1, 50_000, len(rows))
        else:
            codes = rng.integers(1, 3 if few else min(highest, 400) + 1, len(rows))
        codes[rng.integers(len(rows))] = highest if rng.random() < 0.3 and kind != 0 else codes[0]
        chunks.append((np.full(len(rows), 3 * term, np.int64), rows.astype(np.int64), codes))
    payload_type = [np.uint16, np.uint8, np.uint8, np.uint16, np.uint32][kind]
    postings = assemble(chunks, n, payload_type)
    lists = [np.sort(rng.permutation(len(postings.terms))[: rng.integers(15)]) for _ in range(rng.integers(4))]
    slots = np.concatenate([np.empty(0, np.int64), *lists]).astype(np.int64)
    columns = postings.terms[slots] if len(postings.terms) else slots
    strange = rng.random(len(slots)) < 0.1  # the terms are multiples of 3
    share = rng.choice([0.0, 0.001, 0.3, 0.9, 1.0])
    norms = rng.choice([0.4, 1.2, 1.9], n) if few else rng.gamma(4.0, 0.3, n)
    starts = postings.block_start[:-1]
    return {
        "kind": kind,
        "n": n,
        "k": int(rng.choice([1, 2, 10, 100, 256, 257, n, n + 5])),
        "ids": postings.ids,
        "payload": postings.payload,
        "term_blocks": postings.term_blocks,
        "block_start": postings.block_start,
        "block_range": postings.block_range,
        "block_max": np.maximum.reduceat(postings.payload, starts)
        if kind < 2 and len(starts)
        else postings.payload[:0],
        "terms": postings.terms,
        "scales": None if kind != 1 or few else rng.random(len(postings.terms)).astype(np.float32),
        "norms": norms.astype(np.float32) if kind > 1 else None,
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < share),
        "columns": columns + strange,
        "weights": rng.choice([0.5, 2.0, 7.25, 0.0] if rng.random() < 0.2 else [0.5, 2.0, 7.25], len(slots)).astype(
            np.float32
        )
        if few
        else (rng.random(len(slots)).astype(np.float32) ** 4 + np.float32(1e-6)) * np.float32(9),
        "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum([len(some) for some in lists], dtype=np.int64)]),
    }


def prepare(module: Any, case: dict[str, Any], *, coarse: bool = True) -> Any:
    """What a module's ``inverted_prepare`` makes of a case."""
    names = (
        "kind",
        "n",
        "ids",
        "payload",
        "term_blocks",
        "block_start",
        "block_range",
        "terms",
        "scales",
        "block_max",
        "norms",
    )
    return module.inverted_prepare(*(case[name] for name in names), coarse)


def asked(case: dict[str, Any]) -> list[Any]:
    """The mask and the queries of a case."""
    return [case[name] for name in ("mask", "columns", "weights", "offsets")]


def run(module: Any, case: dict[str, Any], *, plain: bool = False) -> list[tuple[list[int], bytes]]:
    """What a module's ``inverted_search`` answers, ``plain`` without whole numbers: rows, and scores bit by bit."""
    queries, k = len(case["offsets"]) - 1, case["k"]
    rows, scores = np.full(queries * k, -7, np.int64), np.full(queries * k, -7, np.float32)
    counts = np.zeros(queries, np.int64)
    prepared = prepare(module, case, coarse=not plain)
    for _ in range(2):  # what is kept is made by the first and used by the second
        if not module.inverted_search(prepared, k, *asked(case), rows, scores, counts):
            raise ValueError("the columns of a query do not ascend")
    return [
        (rows[i * k : i * k + count].tolist(), scores[i * k : i * k + count].tobytes())
        for i, count in enumerate(counts.tolist())
    ]


LIMITS = [(0.0, 0.0, np.inf), (0.0, 0.3, np.inf), (1.5, 0.1, np.inf), (0.0, 0.8, np.inf), (0.0, 0.0, 0.0)]
"""The least score, the share that is given up, and the seconds, of searches by slices."""


def run_within(
    module: Any, case: dict[str, Any], limits: tuple[float, float, float]
) -> tuple[list[int], bytes, tuple[Any, ...]]:
    """What a module's ``inverted_within`` answers for the first query of a case: rows, scores bit by bit, and the report."""
    one = case | {"offsets": case["offsets"][:2]}
    rows, scores = np.full(case["k"], -7, np.int64), np.full(case["k"], -7, np.float32)
    counts, prepared = np.zeros(1, np.int64), prepare(module, case)
    sliced = module.inverted_slices(case["n"], max(0, len(case["term_blocks"]) - 1), len(case["ids"]))
    for _ in range(2):  # what is kept is made by the first and used by the second
        told = module.inverted_within(prepared, case["k"], *asked(one), rows, scores, counts, *limits, sliced)
    return rows[: counts[0]].tolist(), scores[: counts[0]].tobytes(), told


def run_damaged_within(module: Any, seed: int) -> None:
    case = damaged_case(seed)
    with contextlib.suppress(ValueError):
        assert all(0 <= row < case["n"] for row in run_within(module, case, LIMITS[seed % len(LIMITS)])[0])


def damaged_case(seed: int) -> dict[str, Any]:
    """A case one or more of whose arrays hold anything at all, at the right sizes or at others."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    for name in rng.choice(list(case), rng.integers(1, 4), replace=False):
        value = case[name]
        if not isinstance(value, np.ndarray):
            continue
        value = case[name] = value.copy()
        how = rng.integers(5)
        if how == 0 and len(value):  # a few items flipped
            at = rng.integers(len(value), size=3)
            noise = rng.integers(0, 256, 3 * value.itemsize, dtype=np.uint8)
            value[at] = noise.view(value.dtype)
        elif how == 1:  # rubbish
            case[name] = noise_like(rng, value)
        elif how == 2:  # cut
            case[name] = value[: rng.integers(len(value) + 1)].copy()
        elif how == 3:  # swapped
            case[name] = value[::-1].copy()
        else:  # of another size
            case[name] = np.concatenate([value, value, value[:1]])
    return case


def run_damaged(module: Any, case: dict[str, Any]) -> None:
    """Rows of the index and a ValueError are both fine; reading or writing elsewhere is not."""
    with contextlib.suppress(ValueError):
        assert all(0 <= row < case["n"] for rows, _ in run(module, case) for row in rows)


def count_case(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    return {
        "n": case["n"],
        "ids": case["ids"],
        "block_start": case["block_start"],
        "block_range": case["block_range"],
        "mask": pack(rng.random(case["n"]) < rng.choice([0.0, 0.001, 0.5, 1.0])),
    }


def run_count(module: Any, case: dict[str, Any]) -> list[int]:
    counts = np.full(len(case["block_range"]), -7, np.int64)
    module.inverted_count(*case.values(), counts)
    return [int(count) for count in counts]


def bm25_like_case(k: int, *, equal: bool = False) -> dict[str, Any]:
    """Two ranges and a long query of common and rare terms: pruning leaves out most of the postings."""
    rng = np.random.default_rng(7)
    n = 100_000
    shares = [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.05, 0.01, 0.002, 0.0005]
    chunks = []
    for term, share in enumerate(shares):
        rows = np.flatnonzero(rng.random(n) < share)
        chunks.append(
            (np.full(len(rows), term), rows, np.ones(len(rows), np.int64) if equal else rng.geometric(0.5, len(rows)))
        )
    postings = assemble(chunks, n, np.uint8)
    weights = np.log1p((1 - np.array(shares)) / np.array(shares)).astype(np.float32)
    return {
        "kind": 2,
        "n": n,
        "k": k,
        "ids": postings.ids,
        "payload": postings.payload,
        "term_blocks": postings.term_blocks,
        "block_start": postings.block_start,
        "block_range": postings.block_range,
        "block_max": None,
        "terms": postings.terms,
        "scales": None,
        "norms": np.ones(n, np.float32) if equal else rng.gamma(4.0, 0.3, n).astype(np.float32),
        "mask": None,
        "columns": np.arange(len(shares)),
        "weights": weights,
        "offsets": np.array([0, len(shares)]),
    }
