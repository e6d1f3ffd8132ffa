"""Cases of the linear layer in 8-bit integers."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from noise import noise_like

GROUP, CHUNK, PANEL = 128, 64, 16


def linear_case(seed: int) -> dict[str, Any]:
    """Arguments of ``linear_bytes``: inputs that are whole numbers of steps, powers of two, and weights at their limits."""
    rng = np.random.default_rng(seed)
    inputs, outputs = int(rng.choice([1, 3, 64, 127, 128, 129, 300])), int(rng.choice([1, 15, 16, 17, 40]))
    rows = int(rng.choice([0, 1, 2, 3, 5, 6, 7, 13, 200]))
    groups, panels = -(-inputs // GROUP), -(-outputs // PANEL)
    weights = rng.integers(-25, 26, (panels * PANEL, groups * GROUP))
    weights[:, ::CHUNK] = rng.choice([-100, 100], weights[:, ::CHUNK].shape)
    weights[:, inputs:] = 0
    values = rng.integers(-18, 19, (rows, groups, GROUP))
    # The span of a group tells its step.
    low = int(rng.choice([-127, -100]))
    values[:, :, 0], values[:, :, -1], values[:, -1, (inputs - 1) % GROUP] = low, low + 254, low + 254
    if inputs % GROUP == 1:
        values[:, -1] = 189  # alone beside zeros its norm tells
    scale = 2.0 ** rng.integers(-20, 20, (rows, groups, 1))
    return {
        "inputs": inputs,
        "outputs": outputs,
        "values": np.ascontiguousarray((values * scale).reshape(rows, groups * GROUP)[:, :inputs]).astype(np.float32),
        "panels": in_panels(weights),
        "sums": place_sums(weights),
        "steps": rng.random((panels, groups, PANEL)).astype(np.float32),
        "bias": rng.standard_normal(panels * PANEL).astype(np.float32),
    }


def in_panels(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """``[outputs, inputs]``, padded, as the kernel reads them."""
    parted = weights.reshape(-1, PANEL, weights.shape[1] // GROUP, GROUP // 4, 4)
    return np.ascontiguousarray(parted.transpose(0, 2, 3, 1, 4)).astype(np.int8)


def place_sums(weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The sums of the weights whose products are summed in one place."""
    parted = weights.reshape(-1, PANEL, weights.shape[1] // GROUP, GROUP // CHUNK, CHUNK // 4, 2, 2)
    return np.ascontiguousarray(parted.sum(axis=(4, 6)).transpose(0, 2, 3, 1, 4)).astype(np.int16)


def run_linear(module: Any, case: dict[str, Any]) -> np.ndarray[Any, Any]:
    found = np.full((len(case["values"]), max(0, case["outputs"])), -1, np.float32)
    module.linear_bytes(*case.values(), found)
    return found


def wanted_linear(case: dict[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The layer in float64, and the sizes of what is summed, by which rounding is told."""
    panels, groups = case["panels"].shape[:2]
    codes = case["panels"].transpose(0, 3, 1, 2, 4).reshape(panels * PANEL, groups, GROUP).astype(np.float64)
    steps = case["steps"].transpose(0, 2, 1).reshape(panels * PANEL, groups, 1)
    weights = (codes * steps).reshape(panels * PANEL, -1)[: case["outputs"], : case["inputs"]]
    values, bias = case["values"].astype(np.float64), case["bias"][: case["outputs"]]
    return values @ weights.T + bias, np.abs(values) @ np.abs(weights.T) + np.abs(bias)


def check_linear(module: Any, case: dict[str, Any]) -> None:
    found = run_linear(module, case)
    wanted, size = wanted_linear(case)
    assert (np.abs(found - wanted) <= 1e-6 * size).all()


def run_damaged_linear(module: Any, seed: int) -> None:
    """Arrays cut or overwritten, sizes that do not fit: refused, or answered from inside what is there."""
    rng = np.random.default_rng(seed)
    case = linear_case(seed)
    name = str(rng.choice(list(case)))
    value = case[name]
    if isinstance(value, np.ndarray):
        noise = noise_like(rng, value)
        case[name] = np.ascontiguousarray([value[: rng.integers(len(value) + 1)], noise][rng.integers(2)])
    else:
        case[name] = int(rng.choice([-1, 0, 2, 1 << 20, 1 << 40]))
    with contextlib.suppress(ValueError):
        found = np.full((len(case["values"]), 40), -1, np.float32)[:, : max(0, min(40, case["outputs"]))]
        module.linear_bytes(*case.values(), np.ascontiguousarray(found))
