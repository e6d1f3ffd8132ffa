"""Cases of the kernel that bounds the logits of a masked-language head."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from noise import noise_like


def vocabulary_case(seed: int) -> dict[str, Any]:
    """Arguments of ``vocabulary_bound``, at random: the sums of a chunk may wrap around."""
    rng = np.random.default_rng(seed)
    entries, tokens = int(rng.choice([0, 1, 15, 16, 17, 100])), int(rng.choice([0, 1, 2, 5, 6, 7, 13, 40]))
    quads = int(rng.choice([1, 2, 31, 32, 33, 65]))
    panels = -(-entries // 16)
    most = int(rng.choice([2, 20, 127]))
    weights = rng.integers(-most, most + 1, (panels, quads, 16, 4)).astype(np.int8)
    return {
        "entries": entries,
        "quads": quads,
        "codes": rng.integers(64 - min(most, 63), 65 + min(most, 63), (tokens, quads, 4)).astype(np.uint8),
        "panels": weights,
        "corrections": rng.integers(-1 << 15, 1 << 15, (panels, -(-quads // 32), 16, 2)).astype(np.int16),
        "factors": rng.standard_normal((4, panels * 16)).astype(np.float32),
        "step": float(rng.choice([0.001, 1.0])),
        "norm_slack": float(rng.random()),
        "error_slack": float(rng.random()),
    }


def run_vocabulary(module: Any, case: dict[str, Any]) -> list[int]:
    found = np.full(case["factors"].shape[-1], -1, np.int32)
    count = module.vocabulary_bound(*case.values(), found)
    return [int(entry) for entry in found[:count]]


def wanted_vocabulary(case: dict[str, Any]) -> list[int]:
    """What the kernel is to find, by plain sums that wrap around in 16 bits where it says that they do."""
    codes, weights = case["codes"].astype(np.int64), case["panels"].astype(np.int64)
    factors, steps = case["factors"], np.float32(case["step"])
    if not len(codes):
        highest = np.full(factors.shape[1], -(2**31), np.int64)
    else:
        products = np.einsum("tqj,pqej->tpeqj", codes, weights)
        pairs = products.reshape(*products.shape[:-1], 2, 2).sum(axis=-1)  # [tokens, panels, 16, quads, 2]
        sums = np.add.reduceat(pairs, range(0, pairs.shape[3], 32), axis=3)  # [tokens, panels, 16, chunks, 2]
        sums = sums + case["corrections"].astype(np.int64).swapaxes(1, 2)
        wrapped = (sums + 2**15) % 2**16 - 2**15
        highest = wrapped.sum(axis=(3, 4)).max(axis=0).ravel()
    bound = highest.astype(np.float32) * (steps * factors[0]) + factors[1]
    bound = bound + np.float32(case["norm_slack"]) * factors[2]
    bound = bound + np.float32(case["error_slack"]) * factors[3]
    return [int(entry) for entry in np.flatnonzero(~(bound[: case["entries"]] < 0))]


def run_damaged_vocabulary(module: Any, seed: int) -> None:
    """Arrays cut or overwritten, sizes that do not fit: refused, or answered from inside what is there."""
    rng = np.random.default_rng(seed)
    case = vocabulary_case(seed)
    name = str(rng.choice(list(case)))
    value = case[name]
    if isinstance(value, np.ndarray):
        noise = noise_like(rng, value)
        case[name] = np.ascontiguousarray([value[: rng.integers(len(value) + 1)], noise][rng.integers(2)])
    else:
        case[name] = int(rng.choice([-1, 0, 2, 1 << 40])) if isinstance(value, int) else np.nan
    with contextlib.suppress(ValueError):
        run_vocabulary(module, case)
