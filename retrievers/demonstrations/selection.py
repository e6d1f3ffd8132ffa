"""Which of the candidates are selected: the strategies, one input at a time.

Sources: maximal marginal relevance, Carbonell and Goldstein (SIGIR 1998); coverage of the input's terms or tokens, Gupta,
Gardner and Singh (EMNLP 2023), where each part of the input counts with the selected example that covers it best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import DemonstrationError

STRATEGIES = ("nearest", "balanced", "diverse", "covering", "random")
ORDERS = ("nearest_last", "nearest_first")

Gains = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""What each candidate would add, float64 ``[candidates]``, to those that are chosen already (bool ``[candidates]``)."""


def in_turn(order: Sequence[int], tasks: Sequence[str], k: int, per_task: int | None) -> list[int]:
    """The first ``k`` of an order that leave no task with more than ``per_task``."""
    if per_task is None:
        return list(order[:k])
    taken: dict[str, int] = {}
    chosen: list[int] = []
    for place in order:
        if taken.get(tasks[place], 0) < per_task:
            taken[tasks[place]] = taken.get(tasks[place], 0) + 1
            chosen.append(place)
            if len(chosen) == k:
                break
    return chosen


def balanced(outputs: Sequence[str]) -> list[int]:
    """An order of candidates, which come best first: the best of every output, then the second of every output, ..."""
    met: dict[str, int] = {}
    turns: list[int] = []
    for output in outputs:
        turns.append(met.get(output, 0))
        met[output] = turns[-1] + 1
    return sorted(range(len(outputs)), key=turns.__getitem__)


def greedily(gains: Gains, tasks: Sequence[str], k: int, per_task: int | None) -> list[int]:
    """The candidates that add most, one after the other; of equal ones the first, which is the better hit."""
    chosen = np.zeros(len(tasks), np.bool_)
    open_ = np.ones(len(tasks), np.bool_)
    order: list[int] = []
    while len(order) < k and open_.any():
        place = int(np.where(open_, gains(chosen), -np.inf).argmax())
        order.append(place)
        chosen[place], open_[place] = True, False
        if per_task is not None and sum(tasks[other] == tasks[place] for other in order) >= per_task:
            open_ &= np.array([task != tasks[place] for task in tasks])
    return order


def marginal_relevance(relevance: NDArray[Any], similarity: NDArray[Any], diversity: float) -> Gains:
    """Relevance to the input ``[c]`` less likeness to what is chosen, ``[c, c]``; both on one scale.

    ``diversity`` is the weight of the second, from 0 (the nearest) to 1.
    """

    def gains(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        nearest = similarity[:, chosen].max(axis=1) if chosen.any() else np.zeros(len(relevance))
        return np.asarray((1 - diversity) * relevance - diversity * nearest, np.float64)

    return gains


def coverage(covered: NDArray[Any]) -> Gains:
    """How much better the chosen would cover the input with each candidate.

    ``covered`` is ``[c, parts]``: by how much each candidate covers each part of the input.
    """

    def gains(chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        floor = covered[chosen].max(axis=0) if chosen.any() else np.zeros(covered.shape[1])
        return np.asarray(np.maximum(covered - floor, 0).sum(axis=1), np.float64)

    return gains


def check_choice(what: str, value: object, known: Sequence[str]) -> str:
    """A value that must be one of a few. Raises DemonstrationError, which names them."""
    if not isinstance(value, str) or value not in known:
        raise DemonstrationError(f"{what} is {value!r}: it must be one of {', '.join(known)}")
    return value


def check_share(what: str, value: object, least: float) -> float:
    """A number from ``least`` to 1. Raises DemonstrationError."""
    number = isinstance(value, int | float | np.floating) and not isinstance(value, bool)
    if not number or not least <= float(value) <= 1:  # type: ignore[arg-type]
        raise DemonstrationError(f"{what} is {value!r}: it must be a number from {least:g} to 1")
    return float(value)  # type: ignore[arg-type]
