"""Several processes that encode documents with one encoder, each with a copy of it."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from retrievers.errors import EncoderError, EncoderMismatchError, RetrieversError
from retrievers.vectors import Vectors, concatenate, take

_LEAST = 32  # texts for each worker, below which one process does it as fast
_MOST = 256  # texts that a worker takes at once
_SHARES = 4  # parts of a call for each worker, so that they end at about the same time
# What is told to the process that asked; anything else ends the process, which is told by its exit code.
_FAILURES = (
    RetrieversError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ImportError,
    OSError,
    MemoryError,
)


class Workers:
    """``count`` processes, started at the first use, that each load the encoder which ``make`` describes.

    ``make`` holds the arguments of :func:`retrievers.encoders.workers.load`. ``fingerprint`` is that of the encoder
    which the processes must find there. With ``by_length``, texts of like length go together, as models want it; without,
    texts are shared out in their order.
    """

    def __init__(self, count: int, make: dict[str, Any], fingerprint: str, *, by_length: bool = True) -> None:
        self.count = count
        self._by_length = by_length
        self._make = make
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._pool: list[tuple[Any, Connection]] = []
        self._stop: Callable[[], object] = _nothing

    def encode_document(self, texts: list[str], **options: Any) -> Vectors:
        """The vectors of documents, in the order of ``texts``; ``options`` go to the encoder's method.

        Raises EncoderError where a process ends or cannot start, EncoderMismatchError where it finds another model, and
        what encoding raises there.
        """
        with self._lock:
            if not self._pool:
                self._start()
            try:
                return self._encode(texts, options)
            except BaseException:
                self.close()  # answers still to come would be taken for those of the next call
                raise

    def enough(self, texts: Sequence[str]) -> bool:
        """Whether there are so many texts that sharing them out pays."""
        return len(texts) >= _LEAST * self.count

    def close(self) -> None:
        """End the processes; a later call starts them again."""
        self._stop()
        self._pool = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for number in range(self.count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, number, self.count, self._make), daemon=True)
            process.start()
            theirs.close()
            self._pool.append((process, ours))
        self._stop = weakref.finalize(self, _end, list(self._pool))
        try:
            for process, connection in self._pool:
                found = _receive(process, connection)
                if found != self._fingerprint:
                    raise EncoderMismatchError(
                        f"a worker found another model ({str(found)[:12]}) than was loaded here ({self._fingerprint[:12]}): "
                        "its folder has changed since; load the encoder again"
                    )
        except BaseException:
            self.close()
            raise

    def _encode(self, texts: list[str], options: dict[str, Any]) -> Vectors:
        order = np.arange(len(texts), dtype=np.int64)
        if self._by_length:  # long ones first: little padding, and short work for whoever is last
            order = np.argsort(np.array([-len(text) for text in texts], dtype=np.int64), kind="stable")
        size = max(1, min(_MOST, -(-len(texts) // (_SHARES * self.count))))
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        found: list[Vectors | None] = [None] * len(parts)
        left = iter(enumerate(parts))
        working: dict[Connection, tuple[Any, int]] = {}

        def hand(process: Any, connection: Connection) -> None:
            number, part = next(left, (-1, None))
            if part is not None:
                with suppress(BrokenPipeError):  # what became of the process is told where its answer is read
                    connection.send(([texts[position] for position in part], options))
                working[connection] = process, number

        for process, connection in self._pool:
            hand(process, connection)
        while working:
            ready = wait(list(working))
            for connection in [one for one in working if one in ready]:
                process, number = working.pop(connection)
                found[number] = _receive(process, connection)
                hand(process, connection)
        whole = concatenate([part for part in found if part is not None])
        return take(whole, np.argsort(order, kind="stable").astype(np.int64)) if self._by_length else whole


def _receive(process: Any, connection: Connection) -> Any:
    try:
        failed, value = connection.recv()
    except (EOFError, OSError) as error:
        process.join(timeout=5)
        raise EncoderError(
            f"a process that encodes ended with exit code {process.exitcode}: -9 as a rule means that memory ran out "
            "(take fewer workers); 1 at the start, that the script lacks `if __name__ == '__main__':`"
        ) from error
    if failed:
        raise value
    return value


def _nothing() -> None:
    pass


def _end(pool: list[tuple[Any, Connection]]) -> None:
    for _, connection in pool:
        connection.close()
    for process, _ in pool:
        process.terminate()
        process.join(timeout=5)


def _serve(connection: Connection, number: int, count: int, make: dict[str, Any]) -> None:
    """What a process does: load the encoder, say which it is, and answer until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is told, and ends this one
    try:
        encoder = load(number, count, **make)
        connection.send((False, encoder.fingerprint))
    except _FAILURES as error:
        connection.send((True, _portable(error, "load the encoder")))
        return
    while True:
        try:
            texts, options = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = False, encoder.encode_document(texts, **options)
        except _FAILURES as error:
            answer = True, _portable(error, "encode")
        connection.send(answer)


def load(number: int, count: int, *, kind: str, **options: Any) -> Any:
    """The encoder of process ``number`` of ``count``: a lexical one of these options, or a model."""
    if kind != "lexical":
        return _load_model(number, count, kind=kind, **options)
    from retrievers.encoders.lexical import LexicalEncoder

    return LexicalEncoder(**options)


def _load_model(number: int, count: int, *, kind: str, source: str, device: str, threads: int, **options: Any) -> Any:
    """The model's encoder; ``cuda`` without a number gives each process a GPU in turn."""
    import torch

    from retrievers.encoders.model import encoder_class

    torch.set_num_threads(max(1, threads // count))
    if device == "cuda":
        device = f"cuda:{number % torch.cuda.device_count()}"
    return encoder_class(kind)(source, device=device, **options)


def _portable(error: Exception, work: str) -> RetrieversError:
    """An error of this library's as it is, any other as an EncoderError, which another process can always read."""
    if isinstance(error, RetrieversError):
        return error
    return EncoderError(f"a process could not {work}: {type(error).__name__}: {error}")
