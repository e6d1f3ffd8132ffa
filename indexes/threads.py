"""Batches of queries, shared among threads: what they call releases Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_PIECES = 4  # of a batch for each thread: some queries take long, and a thread that is done takes the next piece


def granted() -> int:
    """How many threads a batch of queries may take: as many as the variable OMP_NUM_THREADS grants to numpy and FAISS.

    Where it is not set, or holds no number of 1 or more, one for each core that the process may run on.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pieces(count: int, most: int, least: int, each: int = _PIECES) -> list[slice]:
    """A batch of so many queries in pieces for :func:`shared`: of at most ``most``, and ``each`` for each thread granted.

    Less than ``least`` for each thread is not shared.
    """
    threads = min(granted(), count // least) if count >= 2 * least else 1
    step = max(1, min(most, count if threads == 1 else -(-count // (each * threads))))
    return [slice(first, min(first + step, count)) for first in range(0, count, step)]


def shared(
    work: Callable[[T], R],
    items: Sequence[T],
    least: int = 1,
    start: Callable[[], object] | None = None,
    threads: int | None = None,
) -> list[R]:
    """What ``work`` makes of each item, in order, by as many threads (by default those granted) with ``least`` items or more.

    Every thread but the caller's calls ``start`` first.
    """
    most = len(items) // least
    threads = min(granted() if threads is None else threads, most) if most > 1 else 1
    if threads == 1:
        return list(map(work, items))
    from concurrent.futures import ThreadPoolExecutor  # which imports logging: single questions do without

    with ThreadPoolExecutor(threads, initializer=start) as pool:
        return list(pool.map(work, items))
