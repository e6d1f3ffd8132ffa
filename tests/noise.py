"""Random bytes in the place of an array, and cases that are spoilt by them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def noise_like(rng: np.random.Generator, value: NDArray[Any]) -> NDArray[Any]:
    """An array of the shape and type of ``value`` whose bytes may be anything."""
    return rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)


def spoil(rng: np.random.Generator, case: dict[str, Any], names: list[str]) -> None:
    """Put noise, a part of it or another number in the place of one of these members of a case."""
    name = str(rng.choice(names))
    value = case[name]
    if isinstance(value, np.ndarray):
        case[name] = [value[: rng.integers(len(value) + 1)], noise_like(rng, value)][rng.integers(2)]
    elif value is not None:
        case[name] = int(rng.choice([-1, 0, 2, 1 << 40]))
