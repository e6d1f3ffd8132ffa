"""Cases of the kernels over compressed vectors, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from maxsim_cases import levels
from noise import noise_like

from retrievers.indexes import _plaid_numpy, kernels, maxsim, plaid
from retrievers.indexes.bitmaps import pack
from retrievers.indexes.residuals import Codec


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
    if level not in (0, kernels.INT16):
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
    for level in levels(module):
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
        noise = noise_like(rng, value)
        case[name] = np.ascontiguousarray([value[: rng.integers(len(value) + 1)], noise, noise][rng.integers(3)])
    for level in (0, *levels(module)):
        with contextlib.suppress(ValueError):
            run_plaid(module, level, case)
        if level:
            nearest = np.empty(len(case["query"]), np.int32)
            with contextlib.suppress(ValueError):
                module.plaid_assign(level, case["dimension"], case["query"], case["centroids"], nearest)
