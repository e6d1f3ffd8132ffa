"""A segment: documents and their index, immutable once committed, and the record of what has been deleted since."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge as merge_sorted
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.conditions import Filter
from retrievers.errors import DuplicateIdError, IndexDamagedError
from retrievers.filters import evaluate
from retrievers.indexes import bitmaps
from retrievers.indexes.arrays import load_array
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.files import check_quickly, seal
from retrievers.indexes.inverted import InvertedIndex, LexicalIndex
from retrievers.indexes.kinds import index_class
from retrievers.indexes.manifest import Deletions, SegmentRecord
from retrievers.indexes.maxsim import MaxSimIndex
from retrievers.indexes.plaid import PlaidIndex
from retrievers.indexes.postings_search import Looked
from retrievers.indexes.protocol import Found, Index
from retrievers.indexes.store import Entry, Store, open_store, write_store
from retrievers.specs import Spec
from retrievers.vectors import Kind, Vectors, shallow, take

SEGMENTS = "segments"
DELETIONS = "deletions"

_SHORT = 64  # terms of a query up to which those that were met before are remembered,
_REMEMBERED = 1 << 16  # as long as there are no more


@dataclass(frozen=True, eq=False)
class Segment:
    """An open segment: ``live`` is None where nothing is deleted."""

    record: SegmentRecord
    index: Index
    store: Store
    live: Bitmap | None
    deleted_terms: NDArray[np.int64]
    deleted_frequencies: NDArray[np.int64]

    @classmethod
    def open(cls, root: Path, record: SegmentRecord, spec: Spec, kind: Kind, known: Segment | None = None) -> Segment:
        """Open a segment of the index at ``root``: cheap checks, nothing large is read.

        ``known`` is the segment of that name in an older snapshot, whose open files serve again. Raises
        IndexDamagedError, which names the file that is missing, cut or swapped.
        """
        folder = root / SEGMENTS / record.name
        if known is not None and known.record.files == record.files:
            if known.record == record:
                return known
            index, store = known.index, known.store
        else:
            check_quickly(folder, record.files)
            index = index_class(spec, kind).load(folder / "index", spec)
            if index.size != record.documents:
                raise IndexDamagedError(f"{folder} holds {index.size} vectors for {record.documents} documents")
            store = open_store(folder, record.documents)
        live, terms, frequencies = None, np.empty(0, np.int64), np.empty(0, np.int64)
        if record.deletions is not None:
            deleted = root / DELETIONS / record.deletions.name
            check_quickly(deleted, record.deletions.files)
            live = load_array(deleted / "live.npy", np.uint8, (-(-record.documents // 8),))
            if bitmaps.cardinality(live) != record.documents - record.deletions.count:
                raise IndexDamagedError(f"{deleted} does not hold {record.deletions.count} deletions")
            terms = load_array(deleted / "terms.npy", np.int64, (None,))
            frequencies = load_array(deleted / "frequencies.npy", np.int64, (len(terms),))
        return cls(record, index, store, live, terms, frequencies)

    @property
    def size(self) -> int:
        """The number of rows, deleted ones included."""
        return self.record.documents

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The live rows, bool ``[size]``."""
        return np.ones(self.size, np.bool_) if self.live is None else bitmaps.unpack(self.live, self.size)

    def is_live(self, row: int) -> bool:
        return self.live is None or bool(self.live[row >> 3] >> (row & 7) & 1)

    def entries(self) -> Iterator[Entry]:
        """The live documents, by ascending id, without holding them all."""
        mask = self.mask
        for row, entry in self.store.entries():
            if mask[row]:
                yield entry

    def permitted(self, condition: Filter) -> NDArray[np.bool_]:
        """The live rows that a filter permits, bool ``[size]``."""
        mask = self.mask
        outcome = evaluate(
            condition,
            self.store.column,
            self.size,
            live=mask,
            name_row=lambda row: self.store.ids([row])[row],
        )
        return outcome & mask

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Bitmap | None,
        norms: NDArray[np.float32] | None,
        floor: NDArray[np.float32] | None = None,
    ) -> Found:
        """The best ``k`` live rows of each query; ``norms`` for a lexical index alone (see :mod:`retrievers.bm25`).

        Rows that score below ``floor`` (one a query) may be missing, in kinds that save work by it.
        """
        if norms is not None and isinstance(self.index, LexicalIndex):
            return self.index.search(queries, k, allowed=allowed, live=self.live, norms=norms)
        if isinstance(self.index, MaxSimIndex):
            return self.index.search(queries, k, allowed=allowed, live=self.live, floor=floor)
        return self.index.search(queries, k, allowed=allowed, live=self.live)

    def search_within(
        self,
        query: Vectors,
        k: int,
        *,
        allowed: Bitmap | None,
        norms: NDArray[np.float32] | None,
        give_up: float,
        seconds: float,
        least: float,
    ) -> tuple[Found, Looked]:
        """:meth:`retrievers.indexes.inverted.InvertedIndex.search_within` over the live rows."""
        limits = {"give_up": give_up, "seconds": seconds, "least": least}
        if norms is not None and isinstance(self.index, LexicalIndex):
            return self.index.search_within(query, k, allowed=allowed, live=self.live, norms=norms, **limits)
        if isinstance(self.index, InvertedIndex):
            return self.index.search_within(query, k, allowed=allowed, live=self.live, **limits)
        raise TypeError("only an inverted index can leave a part out")

    def prepare(self, norms: NDArray[np.float32] | None) -> None:
        """Do now what the first search would wait for; ``norms`` are those of :meth:`search`."""
        if norms is not None and isinstance(self.index, LexicalIndex):
            self.index.prepare(norms)
        elif isinstance(self.index, InvertedIndex):
            self.index.prepare()

    def document_frequencies(self, terms: NDArray[np.int64]) -> NDArray[np.int64]:
        """In how many live documents each term occurs, int64 (lexical indexes alone)."""
        if not isinstance(self.index, LexicalIndex):
            raise TypeError("only a lexical index has document frequencies")
        frequencies = self.index.document_frequencies(terms)
        if len(self.deleted_terms):
            at = np.minimum(np.searchsorted(self.deleted_terms, terms), len(self.deleted_terms) - 1)
            frequencies = frequencies - np.where(self.deleted_terms[at] == terms, self.deleted_frequencies[at], 0)
        return frequencies

    def close(self) -> None:
        self.store.close()


class Statistics:
    """What BM25 needs to know of the live collection, over all segments."""

    def __init__(self, segments: Sequence[Segment], bm25: Bm25) -> None:
        self._segments = segments
        self._bm25 = bm25
        self._remembered: dict[int, float] = {}
        self.documents = 0
        lengths: list[NDArray[np.int64]] = []
        total = 0
        for segment in segments:
            if not isinstance(segment.index, LexicalIndex):
                raise TypeError("BM25 statistics want lexical indexes")
            mine = np.asarray(segment.index.lengths).astype(np.int64)
            lengths.append(mine)
            mask = segment.mask
            self.documents += int(mask.sum())
            total += int(mine[mask].sum())
        self.norms = [bm25.norms(mine, total, self.documents) for mine in lengths]

    def weigh(self, queries: Any) -> Vectors:
        """Query term frequencies times the inverse document frequency of the live collection, as csr_matrix."""
        weighted = shallow(queries)
        if len(queries.indices) <= _SHORT:
            idf = self._known_idf(queries.indices.tolist())
            weighted.data = np.array(list(map(mul, queries.data.tolist(), idf)), np.float32)
        else:
            weighted.data = (queries.data * self._idf(queries.indices.astype(np.int64, copy=False))).astype(np.float32)
        return weighted

    def _idf(self, columns: NDArray[np.int64]) -> NDArray[np.float64]:
        frequencies = np.zeros(len(columns), np.int64)
        for segment in self._segments:
            frequencies += segment.document_frequencies(columns)
        return self._bm25.idf(frequencies, self.documents)

    def _known_idf(self, columns: list[int]) -> list[float]:
        """The same for a few terms. Those of questions come again, and looking one up takes as long as a small search."""
        known = self._remembered
        missing = [column for column in columns if column not in known]
        if missing:
            if len(known) >= _REMEMBERED:
                known = self._remembered = {}
                missing = columns
            known.update(zip(missing, self._idf(np.array(missing, np.int64)).tolist(), strict=True))
        return [known[column] for column in columns]


def write_segment(
    root: Path,
    name: str,
    entries: Sequence[Entry],
    vectors: Vectors,
    spec: Spec,
    kind: Kind,
    like: Index | None = None,
) -> SegmentRecord:
    """Write and seal a segment; the rows are sorted by document id, so that equal scores come in the order of ids.

    ``like`` is another segment's index, whose centroids serve again in kinds that have them.
    Raises DuplicateIdError where two entries have the same id, naming both places.
    """
    order = sorted(range(len(entries)), key=lambda at: entries[at].document.id)
    for first, second in pairwise(order):
        if entries[first].document.id == entries[second].document.id:
            raise duplicate(entries[first].document.id, entries[first].place, entries[second].place)
    sorted_vectors = take(vectors, np.array(order, np.int64))
    if isinstance(like, PlaidIndex):
        return _write(root, name, PlaidIndex.build(sorted_vectors, spec, like), (entries[at] for at in order))
    index = index_class(spec, kind).build(sorted_vectors, spec)
    return _write(root, name, index, (entries[at] for at in order))


def merge_segments(
    root: Path,
    name: str,
    segments: Sequence[Segment],
    spec: Spec,
    kind: Kind,
    through: Callable[[Iterator[Entry]], Iterator[Entry]] = iter,
) -> SegmentRecord:
    """Fold segments into a new one that holds their live documents; texts stream, nothing is encoded again.

    The documents pass ``through`` on their way to the file, which may break the work off.
    """
    streams = [_live_ids(number, segment) for number, segment in enumerate(segments)]
    maps = [np.full(segment.size, -1, np.int64) for segment in segments]
    for new, (_, number, row) in enumerate(merge_sorted(*streams)):
        maps[number][row] = new
    parts = [(segment.index, rows) for segment, rows in zip(segments, maps, strict=True)]
    index = index_class(spec, kind).merge(parts, spec)
    entries = [segment.entries() for segment in segments]
    return _write(root, name, index, through(merge_sorted(*entries, key=lambda entry: entry.document.id)))


def write_deletions(root: Path, name: str, segment: Segment, rows: Sequence[int]) -> SegmentRecord:
    """Write and seal the deletion of more rows of a segment; returns the segment's new record."""
    mask = segment.mask
    mask[np.array(rows, np.int64)] = False
    terms, frequencies = np.empty(0, np.int64), np.empty(0, np.int64)
    if isinstance(segment.index, LexicalIndex):
        terms, frequencies = segment.index.frequencies_of(bitmaps.pack(~mask))
    folder = fresh_folder(root / DELETIONS / name)
    np.save(folder / "live.npy", bitmaps.pack(mask))
    np.save(folder / "terms.npy", terms)
    np.save(folder / "frequencies.npy", frequencies)
    deletions = Deletions(name, int(segment.size - mask.sum()), seal(folder))
    return SegmentRecord(segment.record.name, segment.record.documents, segment.record.files, deletions)


def duplicate(id_: str, first: str, second: str) -> DuplicateIdError:
    """The error for an id that came twice."""
    return DuplicateIdError(f"document id {id_!r} came twice: {first}, and {second}; ids must differ")


def fresh_folder(folder: Path) -> Path:
    """An empty folder; what a killed writer left there is removed."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    return folder


def _write(root: Path, name: str, index: Index, entries: Iterable[Entry]) -> SegmentRecord:
    folder = fresh_folder(root / SEGMENTS / name)
    (folder / "index").mkdir()
    index.save(folder / "index")
    write_store(folder, entries)
    return SegmentRecord(name, index.size, seal(folder))


def _live_ids(number: int, segment: Segment) -> Iterator[tuple[str, int, int]]:
    """The ids of those documents, with the segment's number and the row."""
    mask = segment.mask
    for row, id_ in segment.store.all_ids():
        if mask[row]:
            yield id_, number, row
