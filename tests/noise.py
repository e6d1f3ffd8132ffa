"""Random bytes in the place of an array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def noise_like(rng: np.random.Generator, value: NDArray[Any]) -> NDArray[Any]:
    """An array of the shape and type of ``value`` whose bytes may be anything."""
    return rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
