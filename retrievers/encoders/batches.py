"""Batches of a model's inputs: texts of like length together, each batch within a budget of tokens, made ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Tokenized at once, and sorted by their tokens among themselves.
CHUNK = 256


def chunks(texts: list[str]) -> Iterator[NDArray[np.int64]]:
    """The positions of texts of like length, :data:`CHUNK` at once, long ones first; length is that in characters."""
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable").astype(np.int64)
    for start in range(0, len(order), CHUNK):
        yield order[start : start + CHUNK]


def cut(
    features: dict[str, Any], *, batch_size: int, max_tokens: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]] | None:
    """Batches of the rows of ``features``, most tokens first, without the columns that are padding in all their rows.

    Each comes with the rows that it holds, and has at most ``batch_size`` of them and, padding included, ``max_tokens``
    tokens, or a single row. None where the features are not a row a text.
    """
    spans = _spans(features)
    if spans is None:
        return None
    return _cut(features, *spans, batch_size=batch_size, max_tokens=max_tokens)


def _spans(features: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The first column of each row that a model has to see, and the one after the last."""
    import torch

    mask = features.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or not mask.shape[1]:
        return None
    shape = mask.shape
    for value in features.values():
        if isinstance(value, torch.Tensor) and value.shape[:1] != shape[:1]:
            return None
        if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape != shape:
            return None
    seen = mask.bool()
    if "query_expansion_positions" in features:  # scored, though often not attended to
        seen = seen | features["query_expansion_positions"].bool()
    kept = seen.cpu().numpy()
    some = kept.any(axis=1)
    first = np.where(some, kept.argmax(axis=1), 0).astype(np.int64)
    end = np.where(some, shape[1] - kept[:, ::-1].argmax(axis=1), 1).astype(np.int64)
    if first.any() and (end[some] != shape[1]).any():  # padded on both sides
        return np.zeros_like(first), np.full_like(end, shape[1])
    return first, end


def _cut(
    features: dict[str, Any],
    first: NDArray[np.int64],
    end: NDArray[np.int64],
    *,
    batch_size: int,
    max_tokens: int,
) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
    widths = end - first
    order = np.argsort(-widths, kind="stable").astype(np.int64)
    start = 0
    while start < len(order):
        fitting = max_tokens // int(widths[order[start]])
        rows = order[start : start + max(1, min(batch_size, fitting))]
        yield rows, _slice(features, rows, slice(int(first[rows].min()), int(end[rows].max())))
        start += len(rows)


def _slice(features: dict[str, Any], rows: NDArray[np.int64], columns: slice) -> dict[str, Any]:
    import torch

    chosen = torch.from_numpy(rows)
    found = {}
    for name, value in features.items():
        if isinstance(value, torch.Tensor):
            value = value[chosen.to(value.device)]
            if value.ndim > 1:
                value = value[:, columns].contiguous()
        found[name] = value
    return found


def ahead(items: Iterator[Item], depth: int = 2) -> Iterator[Item]:
    """The same items, made by a thread while earlier ones are in use, at most ``depth`` of them waiting.

    What ``items`` raises is raised here, in its place. Where the caller stops early, so does the thread.
    """
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(last: bool, value: Any) -> bool:
        while not stopped.is_set():
            try:
                made.put((last, value), timeout=0.05)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(False, item):
                    return
            put(True, None)
        except BaseException as error:  # handed to the caller, whatever it is
            put(True, error)

    thread = threading.Thread(target=work, name="tokenizing", daemon=True)
    thread.start()
    try:
        while True:
            last, value = made.get()
            if last:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def side_by_side(items: Iterator[Item], work: Callable[[Item], Result], count: int) -> Iterator[Result]:
    """What ``work`` makes of each item, in order, several at a time: by ``count`` threads, in each of which torch has one.

    A single item is worked on by the caller, with all threads that torch has.
    """
    import torch

    first = list(islice(items, 2))
    if len(first) < 2 or count < 2:
        yield from map(work, chain(first, items))
        return
    started, threads = threading.Barrier(count + 1), torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread that has not asked yet takes over, once, what was set last by any other
        started.wait()

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(count, "encoding", start)
    try:
        for _ in range(count):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(threads)  # the threads of others take over what was set last
        for item in chain(first, items):
            waiting.append(pool.submit(copy_context().run, work, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        started.abort()  # where a thread could not be started, the others wait for it
        pool.shutdown(cancel_futures=True)
