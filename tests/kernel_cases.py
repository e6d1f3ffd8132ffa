"""What the kernels are called with in their tests: random cases, spoilt ones, and what a module answers to them.

Compiled with sanitizers, the kernels run through these in a process of their own, which loads no test.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from retrievers.documents import Document
from retrievers.indexes import _dense_numpy, _documents_numpy, _maxsim_numpy, _plaid_numpy, maxsim, plaid
from retrievers.indexes import _inverted_numpy as twin
from retrievers.indexes.bitmaps import pack
from retrievers.indexes.postings import assemble
from retrievers.indexes.residuals import Codec
from retrievers.indexes.store import FOLDER, Entry, write_store


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
            noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8)
            case[name] = noise.view(value.dtype)
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
    queries, k = int(rng.choice([0, 1, 2, 3])), int(rng.choice([1, 3, 20, 300]))
    values = rng.standard_normal((n, dimension)) * rng.choice([1e-20, 1.0, 1e15])
    if rng.random() < 0.4:
        values = rng.integers(-2, 3, (n, dimension))
    values = values.astype(np.float32)
    longest = float(np.linalg.norm(values.astype(np.float64), axis=1).max(initial=0))
    if n and rng.random() < 0.2:
        values[rng.random(values.shape) < 0.01] = rng.choice([np.nan, np.inf, -np.inf])
    rows = rng.integers(-1, n, (queries, int(rng.choice([0, 1, 63, 64, 150])))) if n else np.full((queries, 3), -1)
    if rows.size and rng.random() < 0.1:
        rows[rng.integers(len(rows)), rng.integers(rows.shape[1])] = rng.choice([-2, n, 2**62])
    return {
        "dimension": dimension,
        "values": values,
        "longest": longest,
        "queries": rng.standard_normal((queries, dimension)).astype(np.float32),
        "rows": rows,
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.01, 0.5, 1.0])),
        "k": k,
    }


def run_dense(module: Any, case: dict[str, Any]) -> list[Any]:
    """The outcomes of ``dense_scores``, ``dense_best`` and ``dense_scan``, and what they found where that is sound."""
    dimension, values, longest, queries, rows, mask, k = case.values()
    found: list[Any] = []
    scores, count = np.zeros(rows.size, np.float32), len(queries)
    numbers = np.repeat(np.arange(count), rows.shape[1])
    outcome = module.dense_scores(dimension, values, queries, numbers, rows.ravel(), scores)
    found.append((outcome, scores.tobytes() if outcome == 0 else b""))
    for call in (
        lambda best: module.dense_best(dimension, values, queries, rows, *best),
        lambda best: module.dense_scan(dimension, values, longest, queries, mask, *best),
    ):
        best = np.zeros((count, k), np.int64), np.zeros((count, k), np.float32), np.zeros(count, np.int64)
        outcome = call(best)
        each = [(best[0][at, :c].tolist(), best[1][at, :c].tobytes()) for at, c in enumerate(best[2].tolist())]
        found.append((outcome, each if outcome == 0 else []))
    return found


def run_damaged_dense(module: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = dense_case(seed)
    name = str(rng.choice(["values", "queries", "rows", "mask", "longest", "dimension"]))
    value = case[name]
    if isinstance(value, np.ndarray):
        noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
        case[name] = [value[: rng.integers(len(value) + 1)], noise][rng.integers(2)]
    elif value is not None:
        case[name] = [np.nan, -1.0][rng.integers(2)] if name == "longest" else int(rng.choice([-1, 0, 2, 1 << 40]))
    with contextlib.suppress(ValueError):
        run_dense(module, case)


def maxsim_case(seed: int) -> dict[str, Any]:
    """Arguments of ``maxsim_scores``: documents of no token and of many, queries too."""
    rng = np.random.default_rng(seed)
    dimension = int(rng.choice([1, 2, 31, 32, 33, 96, 130]))
    sizes = rng.choice([0, 1, 2, 15, 16, 17, 33, 300], rng.integers(0, 90)).astype(np.int64)
    lengths = rng.choice([0, 1, 4, 15, 16, 17, 40], rng.integers(0, 9))
    codes = rng.random() < 0.5
    tokens = int(sizes.sum())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return {
        "dimension": dimension,
        "values": rng.integers(-127, 128, (tokens, dimension)).astype(np.int8)
        if codes
        else rng.standard_normal((tokens, dimension)).astype(np.float16),
        "scales": (rng.random(tokens) / 64 + 0.001).astype(np.float32) if codes else None,
        "starts": (np.cumsum(sizes) - sizes)[::-1].astype(np.int64),
        "sizes": sizes[::-1].copy(),
        "panels": rng.standard_normal((int(offsets[-1]), dimension)).astype(np.float32),
        "offsets": offsets,
    }


def run_maxsim(module: Any, level: int, case: dict[str, Any]) -> Any:
    rows, queries = len(case["starts"]), max(0, len(case["offsets"]) - 1)
    scores = np.full((rows, queries), np.nan, np.float32)
    panels = case["panels"] if case["panels"].dtype == np.uint16 else maxsim._panels(maxsim._narrow(case["panels"]))
    module.maxsim_scores(level, *{**case, "panels": panels}.values(), scores)
    return scores


def check_maxsim(module: Any, case: dict[str, Any]) -> None:
    """Against plain loops in float64 over what bfloat16 keeps of the numbers."""
    queries = maxsim._wide(maxsim._narrow(case["panels"])).astype(np.float64)
    documents = case["values"].astype(np.float32)
    documents = maxsim._wide(maxsim._narrow(documents)).astype(np.float64)
    if case["scales"] is not None:
        documents *= case["scales"][:, None]
    wanted = np.zeros((len(case["starts"]), len(case["offsets"]) - 1))
    for row, (start, size) in enumerate(zip(case["starts"].tolist(), case["sizes"].tolist(), strict=True)):
        for query, (first, last) in enumerate(itertools.pairwise(case["offsets"].tolist())):
            best = (queries[first:last] @ documents[start : start + size].T).max(axis=1, initial=-np.inf)
            wanted[row, query] = best.sum()
    for level in range(1, module.maxsim_level() + 1):
        np.testing.assert_allclose(run_maxsim(module, level, case), wanted, rtol=1e-5, atol=1e-3)


def damaged_maxsim_case(seed: int) -> dict[str, Any]:
    """A case with arrays that were cut, swapped, repeated or overwritten."""
    rng = np.random.default_rng(seed)
    case = maxsim_case(seed)
    case["panels"] = maxsim._panels(maxsim._narrow(case["panels"]))
    for name in rng.choice(["values", "scales", "starts", "sizes", "panels", "offsets"], 2, replace=False):
        value = case[name]
        if value is not None:
            some = rng.integers(len(value) + 1)
            noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
            spoilt = [value[:some], value[::-1], np.concatenate([value, value]), noise, value - 1]
            case[name] = np.ascontiguousarray(spoilt[rng.integers(5)])
    return case


def run_damaged_maxsim(module: Any, case: dict[str, Any]) -> None:
    for level in range(3):
        with contextlib.suppress(ValueError):
            run_maxsim(module, level, case)


def exact_case(seed: int) -> dict[str, Any]:
    """Arguments of ``maxsim_exact``: rows and queries that have tokens, paired anyhow."""
    rng = np.random.default_rng(seed)
    case = maxsim_case(seed)
    lengths = np.diff(case["offsets"])
    rows, queries = np.flatnonzero(case["sizes"]), np.flatnonzero(lengths)
    pairs = rng.integers(0, 30) if len(rows) and len(queries) else 0
    rows, queries = rng.choice(rows, pairs), rng.choice(queries, pairs)
    if len(case["values"]) and rng.random() < 0.2:  # what no sound row holds
        case["values" if case["scales"] is None else "scales"][rng.integers(len(case["values"]))] = np.inf
    return {
        "dimension": case["dimension"],
        "values": case["values"],
        "scales": case["scales"],
        "starts": case["starts"][rows],
        "sizes": case["sizes"][rows],
        "queries": case["panels"],
        "first": case["offsets"][queries.astype(np.int64)],
        "count": lengths[queries.astype(np.int64)],
    }


def run_exact(module: Any, case: dict[str, Any]) -> Any:
    scores = np.zeros(len(case["starts"]), np.float32)
    return module.maxsim_exact(*case.values(), scores), scores.tobytes()


def run_damaged_exact(module: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = exact_case(seed)
    name = str(rng.choice(["values", "queries", "starts", "sizes", "first", "count"]))
    value = case[name]
    noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
    case[name] = [value[: rng.integers(len(value) + 1)], noise, value - 3][rng.integers(3)]
    with contextlib.suppress(ValueError):
        run_exact(module, case)


def plaid_case(seed: int) -> dict[str, Any]:
    """Arguments of ``plaid_search`` from the codec's on: few documents, some without tokens, and queries of many tokens."""
    rng = np.random.default_rng(seed)
    dimension, bits = int(rng.choice([1, 7, 32, 40])), int(rng.choice([1, 2, 4]))
    sizes = rng.choice([0, 1, 3, 20], int(rng.integers(1, 80)))
    vectors = rng.standard_normal((int(sizes.sum()) + 200, dimension)).astype(np.float32)
    codec = Codec.train(vectors, len(vectors), bits, seed)
    codes = codec.encode(vectors[: int(sizes.sum())])
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    lists, list_rows = plaid._inverted(codes.centroids, offsets, len(codec.centroids))
    query = rng.standard_normal((int(rng.choice([1, 5, 32, 33, 70, 300])), dimension)).astype(np.float32)
    longest = np.linalg.norm(query, axis=1).max() * np.linalg.norm(codec.wide, axis=1).max()
    count = int(rng.integers(1, 30))
    return {
        "dimension": dimension,
        "bits": bits,
        "centroids": codec.centroids,
        "codes": codes.centroids,
        "residuals": codes.residuals,
        "steps": codes.steps,
        "tables": codec.tables,
        "levels": codec.levels,
        "query": query,
        "panels": None,
        "scale": 255 / (float(longest) + 1e-9),
        "lists": lists,
        "list_rows": list_rows,
        "offsets": offsets,
        "live": None if rng.random() < 0.5 else pack(rng.random(len(sizes)) < 0.7),
        "probes": int(rng.integers(1, 33)),
        "shortlist": count + int(rng.integers(30)),
        "count": count,
    }


def run_plaid(module: Any, level: int, case: dict[str, Any]) -> Any:
    case = dict(case)
    count = case.pop("count")
    rows, scores = np.full(count, -1), np.zeros(count, np.float32)
    if level:
        asked = np.zeros((-(-len(case["query"]) // 32) * 32, case["dimension"]), np.float32)
        asked[: len(case["query"])] = case["query"]
        case["panels"] = maxsim.as_panels(asked)
    room = None
    if module is not _plaid_numpy:
        raw = np.empty(module.plaid_search(level, *case.values(), rows, scores, None) + 64, np.uint8)
        room = raw[-raw.ctypes.data % 64 :]
    found = module.plaid_search(level, *case.values(), rows, scores, room)
    return found, rows[:found].tolist(), scores[:found]


def check_plaid(module: Any, case: dict[str, Any]) -> None:
    """At level 0 like the twin, bit for bit; at the others nearly the same scores of the rows that both find."""
    found, rows, scores = run_plaid(module, 0, case)
    wanted = run_plaid(_plaid_numpy, 0, case)
    assert (found, rows, scores.tobytes()) == (wanted[0], wanted[1], wanted[2].tobytes())
    for level in range(1, module.maxsim_level() + 1):
        _, narrow_rows, narrow_scores = run_plaid(module, level, case)
        known = dict(zip(rows, scores.tolist(), strict=True))
        near = [
            (score, known[row]) for row, score in zip(narrow_rows, narrow_scores.tolist(), strict=True) if row in known
        ]
        if near:
            mine, theirs = np.array(near).T
            np.testing.assert_allclose(mine, theirs, atol=0.02 * float(np.linalg.norm(case["query"], axis=1).sum()))
    starts, sizes = case["offsets"][:-1], np.diff(case["offsets"])
    codec = [case[name] for name in list(case)[:8]]
    for some in (sizes >= 0, sizes == 0):  # all rows, and those without tokens alone
        decoded = [np.empty((int(sizes[some].sum()), case["dimension"]), np.float32) for _ in range(2)]
        for decoder, out in zip((module, _plaid_numpy), decoded, strict=True):
            decoder.plaid_decode(*codec, starts[some], sizes[some], out)
        np.testing.assert_array_equal(*decoded)


def run_damaged_plaid(module: Any, seed: int) -> None:
    """Arrays overwritten, or cut: refused, or answered from inside what is there."""
    rng = np.random.default_rng(seed)
    case = plaid_case(seed)
    # Offsets are checked once, when an index is opened; everything else may hold anything.
    for name in rng.choice(["centroids", "codes", "residuals", "steps", "tables", "levels", "list_rows", "query"], 2):
        value = case[name]
        noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
        case[name] = np.ascontiguousarray([value[: rng.integers(len(value) + 1)], noise, noise][rng.integers(3)])
    for level in range(module.maxsim_level() + 1):
        with contextlib.suppress(ValueError):
            run_plaid(module, level, case)
        if level:
            nearest = np.empty(len(case["query"]), np.int32)
            with contextlib.suppress(ValueError):
                module.plaid_assign(level, case["dimension"], case["query"], case["centroids"], nearest)


def documents_case(seed: int) -> dict[str, Any]:
    """Arguments of ``documents_read`` and ``documents_find``: parts of any length, ids that begin alike, some not there."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(rng.choice(list("aab\0 é漢🙂"), int(rng.integers(most + 1))))

    n = int(rng.choice([0, 1, 2, 3, 10, 100]))
    ids = sorted({text(6) or "a" for _ in range(n)})
    entries = [
        Entry(
            int(rng.integers(1 << 40)),
            text(9),
            Document(id_, text(30), text(3), {"n": len(id_)} if len(id_) % 2 else {}),
        )
        for id_ in ids
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), entries)
        records, starts = (np.load(Path(folder, FOLDER, f"{name}.npy")) for name in ("records", "starts"))
    rows = rng.integers(0, max(len(ids), 1), int(rng.choice([0, 1, 2, 5, 90]))).tolist() if ids else []
    asked = [*(ids[row] for row in rows), text(6), text(2), "", "\ud800"]
    return {"records": records, "starts": starts, "rows": rows, "parts": int(rng.integers(64)), "ids": asked}


def damaged_documents_case(seed: int) -> dict[str, Any]:
    case, rng = documents_case(seed), np.random.default_rng(seed)
    for name in ("records", "starts"):
        if rng.random() < 0.6 and len(case[name]):
            spoilt = case[name].view(np.uint8)
            at = rng.integers(len(spoilt), size=int(rng.choice([1, 3, 50])))
            spoilt[at] = rng.choice([0, 1, 127, 255, int(rng.integers(256))], len(at))
    case["rows"] += [[], [], [-1], [len(case["starts"])], [1 << 40]][int(rng.integers(5))]
    return case


def run_documents(module: Any, case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What was read, the rows of the ids, and the documents as objects; or what each was refused for."""

    def told(function: Any, *arguments: Any) -> Any:
        try:
            return function(case["records"], case["starts"], *arguments)
        except ValueError as error:
            return str(error)

    made = told(module.documents_made, case["rows"], Document, lambda row, packed: {str(row): packed})
    return told(module.documents_read, case["rows"], case["parts"]), told(module.documents_find, case["ids"]), made


def run_everything(module: Any, seeds: range) -> None:
    """The core of these tests, for a module compiled with sanitizers."""
    for seed in seeds:
        offer = offer_case(seed)
        assert run_offer(module, offer) == run_offer(_dense_numpy, offer), f"seed {seed}"
        case = random_case(seed)
        assert run(module, case) == run(twin, case), f"seed {seed}"
        run_damaged(module, damaged_case(seed))
        limits = LIMITS[seed % len(LIMITS)]
        if len(case["offsets"]) > 1:
            assert run_within(module, case, limits) == run_within(twin, case, limits), f"seed {seed}"
        for number in range(3):
            run_damaged_within(module, 3 * seed + number)
        check_maxsim(module, maxsim_case(seed))
        run_damaged_maxsim(module, damaged_maxsim_case(seed))
        exact = exact_case(seed)
        assert run_exact(module, exact) == run_exact(_maxsim_numpy, exact), f"seed {seed}"
        run_damaged_exact(module, seed)
        dense = dense_case(seed)
        assert run_dense(module, dense) == run_dense(_dense_numpy, dense), f"seed {seed}"
        run_damaged_dense(module, seed)
        check_plaid(module, plaid_case(seed))
        run_damaged_plaid(module, seed)
        count = count_case(seed)
        assert run_count(module, count) == run_count(twin, count), f"seed {seed}"
        with contextlib.suppress(ValueError):
            run_count(module, {**count, "block_start": count["block_start"][::-1].copy()})
        for case in (documents_case(seed), damaged_documents_case(seed)):
            assert run_documents(module, case) == run_documents(_documents_numpy, case), f"seed {seed}"


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


def load_extension(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("retrievers.indexes._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
