"""The segments that a build or an addition writes, and when some of them become one.

An index of many segments is slow to search, and so is the look for ids that are taken. Sixteen segments of like size, one
after the other, are therefore folded into one as soon as they are there, and sixteen such into a larger one, as far as
the memory budget goes: a document is written again once for each such step (O'Neil et al., "The Log-Structured
Merge-Tree", 1996). What is folded depends on the sizes of the files alone, and so do the bytes of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from retrievers.indexes.manifest import SegmentRecord
from retrievers.indexes.segments import Segment, merge_segments
from retrievers.indexes.store import Entry
from retrievers.specs import Spec
from retrievers.vectors import Kind, Vectors

FEW = 4
"""Segments that a finished build may have without being merged."""

# What a merge takes in memory for each byte of index files: the new index, and in most kinds the parts that it is put
# together from, or a graph and a copy of the vectors beside it. A plaid index gathers its vectors in a file.
_TAKEN = {"flat": 1.25, "maxsim": 1.25, "plaid": 0.5}
_TAKEN_COMPACT = 4.5  # files that are smaller than what they are read into

_FOLDED = 16
_LIKE = 4  # how much larger the largest of some segments of like size may be than the smallest

Write = Callable[[Sequence[Entry], Vectors], SegmentRecord]
"""Indexes, writes and seals the segment of these documents, and touches nothing else: it is called in a thread.

It walks the sequence once it writes the documents; that walk is where a build that is stopped breaks it off.
"""

Fold = Callable[[Callable[[Iterator[Entry]], Iterator[Entry]]], SegmentRecord]
"""Writes and seals one segment in place of several, in a thread likewise; its documents pass through what it is given."""


class Growing(Protocol):
    """Where segments go: all of it is called by the thread that fills them, but for what ``begin`` and ``fold`` return."""

    def begin(self) -> Write:
        """What writes the next segment."""
        ...

    def landed(self, record: SegmentRecord, entries: Sequence[Entry]) -> None:
        """Take in a segment that is sealed."""
        ...

    def fold(self, limit: float) -> Fold | None:
        """What folds the segments that are due within ``limit`` bytes of memory; None where none are."""
        ...

    def folded(self, record: SegmentRecord) -> None:
        """Take in what the last ``fold`` has made."""
        ...


def taken(record: SegmentRecord, spec: Spec) -> float:
    """Bytes of memory that this segment takes while it is merged with others; its documents stream."""
    size = sum(file.size for name, file in record.files.items() if name.startswith("index/"))
    return (_TAKEN_COMPACT if spec.parameters.get("compact") else _TAKEN.get(spec.name, 2.5)) * size


def due(sizes: Sequence[float], limit: float) -> int:
    """How many of the last segments are to be folded now, 0 for none; ``sizes`` are what :func:`taken` says of them."""
    count, total, least, most = 0, 0.0, float("inf"), 0.0
    for size in reversed(sizes[-_FOLDED:]):
        least, most = min(least, size), max(most, size)
        if most > _LIKE * least or total + size > limit:
            break
        count, total = count + 1, total + size
    # Where the budget has room for fewer than sixteen of these, they are folded when it is full.
    full = count >= FEW and total * (1 + 1 / count) > limit
    return count if count == _FOLDED or full else 0


def folding(root: Path, name: str, records: Sequence[SegmentRecord], spec: Spec, kind: Kind) -> Fold:
    """What folds these segments of the index at ``root`` into one of that name."""

    def fold(through: Callable[[Iterator[Entry]], Iterator[Entry]]) -> SegmentRecord:
        with ExitStack() as stack:
            segments = [Segment.open(root, record, spec, kind) for record in records]
            for segment in segments:
                stack.callback(segment.close)
            return merge_segments(root, name, segments, spec, kind, through)

    return fold
