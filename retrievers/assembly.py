"""Segments under construction: one is filled while a thread indexes, writes and seals the one before it, or folds others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

from retrievers.errors import SpecError, VectorError
from retrievers.folding import Growing
from retrievers.indexes.manifest import SegmentRecord
from retrievers.indexes.segments import duplicate
from retrievers.indexes.store import Entry
from retrievers.vectors import Kind, Vectors, check, concatenate, dimension, nbytes

_LEAST_MEMORY = 16 << 20

# What a segment takes while it is indexed, in bytes of memory per byte of its vectors; measured, rounded up.
_FACTORS: dict[Kind, float] = {"dense": 4.5, "multi-vector": 4.0, "sparse": 9.0, "lexical": 9.0}
_PER_DOCUMENT = 1200  # the Python objects of a document, its row in the store and its staging, in bytes


class Pending:
    """The documents and vectors of a segment."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._places: dict[str, str] = {}
        self._parts: list[Vectors] = []
        self.entries: list[Entry] = []
        self.held = 0.0
        """The bytes that documents and vectors take now."""
        self.used = 0.0
        """The bytes that they take at most, while the segment is indexed."""

    def refuse_known(self, batch: Sequence[Entry]) -> None:
        """Raise DuplicateIdError where an id is here already."""
        for entry in batch:
            first = self._places.get(entry.document.id)
            if first is not None:
                raise duplicate(entry.document.id, first, entry.place)

    def note(self, batch: Sequence[Entry]) -> None:
        """Note the places of documents that are to come; raises DuplicateIdError."""
        for entry in batch:
            self.refuse_known((entry,))  # one by one: an id may come twice in the batch
            self._places[entry.document.id] = entry.place

    def extend(self, batch: Sequence[Entry], vectors: Vectors) -> None:
        """Take a batch in. Raises VectorError for vectors of another kind, number or dimension."""
        check(vectors, self._kind, len(batch))
        if self._parts and dimension(vectors) != dimension(self._parts[0]):
            raise VectorError(
                f"the encoder gave {dimension(vectors)} dimensions after {dimension(self._parts[0])}: it is broken"
            )
        self.entries += batch
        self._parts.append(vectors)
        documents = sum(2 * len(e.document.text) + 2 * len(e.document.title) + _PER_DOCUMENT for e in batch)
        self.held += nbytes(vectors) + documents
        self.used += nbytes(vectors) * _FACTORS[self._kind] + documents

    def vectors(self) -> Vectors:
        """All the vectors; they are no longer held here."""
        parts, self._parts = self._parts, []
        return concatenate(parts)


class BrokenOffError(Exception):
    """Raised in the thread where the build was interrupted; no caller sees it."""


class _Breakable(Sequence[Entry]):
    """Documents that can no longer be read once ``broken`` is set."""

    def __init__(self, entries: Sequence[Entry], broken: threading.Event) -> None:
        self._entries, self._broken = entries, broken

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, at: Any) -> Any:
        if self._broken.is_set():
            raise BrokenOffError
        return self._entries[at]

    def __iter__(self) -> Iterator[Entry]:
        return (self[at] for at in range(len(self)))


class _Flight(NamedTuple):
    """What the thread is at."""

    pending: Pending
    """The documents of the segment that it writes; empty where it folds others."""
    future: Future[SegmentRecord]
    landed: Callable[[SegmentRecord], None]


class Assembly:
    """Cuts a stream of documents into segments; a context manager.

    A collection that fits into the budget becomes one segment. Once one is cut, those that follow take half of the
    budget each, so that two are in memory: one is filled, and a thread writes the other. Where the two would take more
    (beside the first, which has the whole budget), filling waits. Folding segments takes half of the budget likewise, and
    the thread's time: the next segment is written after it.

    What is cut, and what is folded, never depends on what the thread takes.

    What writing raises is raised here, by the call that follows it. Where the block is left by an error, the segment in
    flight is finished and landed first; by KeyboardInterrupt and the like, it is broken off where it can be.
    """

    def __init__(self, kind: Kind, memory: int, segments: Growing, *, more: bool = False) -> None:
        """``more`` says that a part of this collection is in segments already. Raises SpecError, see check_memory."""
        self._kind = kind
        self._limit = check_memory(memory)
        self._segments = segments
        self._most = self._limit / 2 if more else self._limit
        self._pending = Pending(kind)
        self._flight: _Flight | None = None
        self._broken = threading.Event()
        self._executor = ThreadPoolExecutor(1, "retrievers-segment")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._flight is not None:
            if not isinstance(error, Exception):
                self._broken.set()
            flight = self._flight
            self._settle(flight.future)
            if flight.future.exception() is None:
                flight.landed(flight.future.result())
        self._executor.shutdown()

    def admit(self, batch: Sequence[Entry]) -> None:
        """Announce documents whose vectors come next, and wait until there is room for them.

        Raises DuplicateIdError, and what the thread has raised.
        """
        if self._flight is not None:
            flying = self._flight.pending
            flying.refuse_known(batch)
            if self._flight.future.done() or flying.used + self._pending.held > self._limit:
                self._land()
        self._pending.note(batch)

    def extend(self, batch: Sequence[Entry], vectors: Vectors) -> None:
        """Take in documents that were admitted. Raises VectorError, and what the thread has raised."""
        self._pending.extend(batch, vectors)
        if self._pending.used >= self._most:
            self._launch()

    def finish(self) -> None:
        """Write what is left, and wait until all is landed. Raises what the thread has raised."""
        if self._pending.entries:
            self._launch()
        while self._flight is not None:
            self._land()

    def _launch(self) -> None:
        while self._flight is not None:
            self._land()
        pending, write = self._pending, self._segments.begin()
        entries = _Breakable(pending.entries, self._broken)
        future = self._executor.submit(lambda: write(entries, pending.vectors()))
        self._flight = _Flight(pending, future, lambda record: self._segments.landed(record, pending.entries))
        self._pending, self._most = Pending(self._kind), self._limit / 2

    def _land(self) -> None:
        """Wait for the thread, hand on what it has made, and let it fold the segments that are due."""
        if self._flight is None:
            return
        flight = self._flight
        record = flight.future.result()
        self._flight = None
        flight.landed(record)
        fold = self._segments.fold(self._limit / 2)
        if fold is not None:
            pending = Pending(self._kind)
            pending.used = self._limit / 2
            self._flight = _Flight(pending, self._executor.submit(fold, self._breaking), self._segments.folded)

    def _breaking(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if self._broken.is_set():
                raise BrokenOffError
            yield entry

    def _settle(self, future: Future[SegmentRecord]) -> None:
        """Wait for the thread; it must have ended before another writer may come. Whoever is impatient breaks it off."""
        while not future.done():
            try:
                wait([future])
            except KeyboardInterrupt:
                self._broken.set()


def check_memory(memory: int) -> float:
    """The budget, in bytes, of the segments under construction; the rest is left to the interpreter and the encoder.

    Raises SpecError where it is too small to hold a batch.
    """
    if memory < _LEAST_MEMORY:
        raise SpecError(f"a memory budget of {memory} bytes is too small: give at least {_LEAST_MEMORY} (16 MiB)")
    return 0.75 * memory
