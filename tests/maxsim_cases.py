"""Cases of the kernels of late interaction, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import numpy as np
from noise import noise_like

from retrievers.indexes import kernels, maxsim


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
        "longest": 20.0,
        "values": rng.integers(-127, 128, (tokens, dimension)).astype(np.int8)
        if codes
        else rng.standard_normal((tokens, dimension)).astype(np.float16),
        "scales": (rng.random(tokens) / 64 + 0.001).astype(np.float32) if codes else None,
        "starts": (np.cumsum(sizes) - sizes)[::-1].astype(np.int64),
        "sizes": sizes[::-1].copy(),
        "panels": rng.standard_normal((int(offsets[-1]), dimension)).astype(np.float32),
        "steps": None,
        "offsets": offsets,
    }


def levels(module: Any) -> list[int]:
    """The ways in which this processor scores fast."""
    return [*range(1, module.maxsim_level() + 1), *([kernels.INT16] if module.bytes_level() else [])]


def run_maxsim(module: Any, level: int, case: dict[str, Any]) -> Any:
    rows, queries = len(case["starts"]), max(0, len(case["offsets"]) - 1)
    scores = np.full((rows, queries), np.nan, np.float32)
    module.maxsim_scores(level, *(case | in_panels(level, case)).values(), scores)
    return scores


def in_panels(level: int, case: dict[str, Any]) -> dict[str, Any]:
    """The queries of a case as a level takes them."""
    if case["panels"].dtype != np.float32:
        return {}
    if level != kernels.INT16:
        return {"panels": maxsim._panels(maxsim._narrow(case["panels"]))}
    codes, steps = maxsim._short(case["panels"])
    return {"panels": maxsim._panels(codes.view(np.uint16)), "steps": np.pad(steps, (0, -len(steps) % 16))}


def check_maxsim(module: Any, case: dict[str, Any]) -> None:
    """Against plain loops in float64 over what bfloat16 keeps of the numbers, or int16, of documents but for a step."""
    for level in levels(module):
        documents = case["values"].astype(np.float32)
        if level == kernels.INT16:
            codes, steps = maxsim._short(case["panels"])
            queries = codes * steps.astype(np.float64)[:, None]
            norms = np.sqrt((queries**2).sum(axis=1))
            lost = 0 if case["scales"] is not None else 0.52 / 32767 * case["longest"] * case["dimension"] ** 0.5
        else:
            queries = maxsim._wide(maxsim._narrow(case["panels"])).astype(np.float64)
            documents = maxsim._wide(maxsim._narrow(documents))
            norms, lost = np.zeros(len(queries)), 0
        wide = documents.astype(np.float64)
        if case["scales"] is not None:
            wide *= case["scales"][:, None]
        found = run_maxsim(module, level, case)
        for row, (start, size) in enumerate(zip(case["starts"].tolist(), case["sizes"].tolist(), strict=True)):
            for query, (first, last) in enumerate(itertools.pairwise(case["offsets"].tolist())):
                best = (queries[first:last] @ wide[start : start + size].T).max(axis=1, initial=-np.inf)
                slack = 1e-3 + norms[first:last].sum() * lost
                np.testing.assert_allclose(found[row, query], best.sum(), rtol=1e-5, atol=slack)


def damaged_maxsim_case(seed: int) -> dict[str, Any]:
    """A case with arrays that were cut, swapped, repeated or overwritten."""
    rng = np.random.default_rng(seed)
    case = maxsim_case(seed)
    case |= in_panels(kernels.INT16 if rng.random() < 0.5 else 1, case)
    names = ["values", "scales", "starts", "sizes", "panels", "steps", "offsets"]
    for name in rng.choice(names, 2, replace=False):
        value = case[name]
        if value is not None:
            some = rng.integers(len(value) + 1)
            noise = noise_like(rng, value)
            spoilt = [value[:some], value[::-1], np.concatenate([value, value]), noise, value - 1]
            case[name] = np.ascontiguousarray(spoilt[rng.integers(5)])
    return case


def run_damaged_maxsim(module: Any, case: dict[str, Any]) -> None:
    for level in range(4):
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
    noise = noise_like(rng, value)
    case[name] = [value[: rng.integers(len(value) + 1)], noise, value - 3][rng.integers(3)]
    with contextlib.suppress(ValueError):
        run_exact(module, case)
