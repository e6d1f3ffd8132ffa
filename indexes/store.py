"""Texts, ids and metadata of a segment: written once, then mapped into memory and only read.

``documents/records.npy`` holds the documents as bytes, one after the other, in the order of the segment's rows, which
is that of their ids; ``documents/starts.npy`` where each begins, and where the last ends. A document is its number in the
input it came with (int64), the bytes of the four parts that follow (uint32 each, all little-endian): its id, title,
metadata (JSON; nothing where there are none) and place; and its text, to the end; all in UTF-8.

``documents/columns.npy`` holds the metadata once more, field by field, as filters want them (:mod:`retrievers.columns`);
``documents/fields.json`` says where in it the values of each field begin, where its codes do, and where they end.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from retrievers.columns import Column, build_columns
from retrievers.documents import Document
from retrievers.errors import DocumentError, IndexDamagedError
from retrievers.indexes.arrays import GrowingArray, are_offsets, load_array, load_meta
from retrievers.indexes.kernels import HEAD, Part, documents_find, documents_made, documents_read

if TYPE_CHECKING:
    from retrievers.indexes.sqlite_store import SqliteStore

Store: TypeAlias = "DocumentStore | SqliteStore"

FOLDER = "documents"

_ORIGIN = Part.ORDINAL | Part.PLACE
_TOGETHER = 200  # rows that are read at once where all are walked: a merge reads many segments side by side
_CHUNK = 1 << 18  # bytes
_LONGEST = (1 << 32) - 1


class Entry(NamedTuple):
    """A document with its origin: its number in the input it came with (from 1), and that place in words."""

    ordinal: int
    place: str
    document: Document


class Known(NamedTuple):
    """What a store answers of an id that it holds."""

    row: int
    ordinal: int
    place: str


def write_store(folder: Path, entries: Iterable[Entry]) -> None:
    """Write the documents of a segment, in the order of their rows: by ascending id."""
    target = folder / FOLDER
    target.mkdir()
    metadata: list[Any] = []
    starts = array("q", [0])
    with GrowingArray(target / "records.npy", np.uint8) as records:
        pieces, held = [], 0
        for ordinal, place, document in entries:
            metadata.append(document.metadata)
            packed = json.dumps(document.metadata, ensure_ascii=False) if document.metadata else ""
            parts = [part.encode() for part in (document.id, document.title, packed, place, document.text)]
            lengths = [len(part) for part in parts[:-1]]
            if max(lengths) > _LONGEST:
                raise DocumentError(
                    f"{place}: an id, a title and metadata may take up to 4 GiB each, and one takes {max(lengths)} bytes"
                )
            pieces += [HEAD.pack(ordinal, *lengths), *parts]
            size = HEAD.size + sum(map(len, parts))
            starts.append(starts[-1] + size)
            held += size
            if held > _CHUNK:
                records.append(np.frombuffer(b"".join(pieces), np.uint8))
                pieces, held = [], 0
        records.append(np.frombuffer(b"".join(pieces), np.uint8))
    np.save(target / "starts.npy", np.frombuffer(starts, np.int64))
    fields: dict[str, list[int]] = {}
    with GrowingArray(target / "columns.npy", np.uint8) as columns:
        for field, column in sorted(build_columns(metadata).items()):
            values, codes = column.dump()
            fields[field] = [columns.rows]
            for part in (values.encode(), codes):
                columns.append(np.frombuffer(part, np.uint8))
                fields[field].append(columns.rows)
    (target / "fields.json").write_text(json.dumps(fields, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def open_store(folder: Path, size: int) -> Store:
    """The documents of a segment, of whatever format; ``size`` is how many there must be. Raises IndexDamagedError."""
    if (folder / "documents.sqlite").exists():
        from retrievers.indexes.sqlite_store import SqliteStore

        return SqliteStore(folder, size)
    return DocumentStore(folder, size)


class DocumentStore:
    """Reads the documents of a segment; safe to share between threads.

    What does not fit together becomes an IndexDamagedError, as soon as it is read.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder / FOLDER
        self._size = size
        self._records = load_array(self._folder / "records.npy", np.uint8, (None,))
        self._starts = load_array(self._folder / "starts.npy", np.int64, (size + 1,))
        if not are_offsets(self._starts, len(self._records)):
            raise self._damaged("starts.npy", f"does not hold the starts of {size} documents")
        self._packed = load_array(self._folder / "columns.npy", np.uint8, (None,))
        self._fields = load_meta(self._folder / "fields.json", {})
        for field, ends in self._fields.items():
            whole = isinstance(ends, list) and len(ends) == 3 and all(type(end) is int for end in ends)
            if not whole or not 0 <= ends[0] <= ends[1] <= ends[2] <= len(self._packed):
                raise self._damaged("fields.json", f"holds {ends!r} for the column of {field!r}")
        self._columns: dict[str, Column] = {}

    def close(self) -> None:
        """Nothing is open; the files stay mapped as long as something is read of them."""

    def documents(self, rows: Sequence[int]) -> dict[int, Document]:
        """The documents of these rows, by row."""
        made: dict[int, Document] = self._ask(documents_made, list(rows), Document, self._metadata)
        return made

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        """The document ids of these rows, by row."""
        return dict(zip(rows, chain.from_iterable(self._read(rows, Part.ID)), strict=True))

    def find(self, ids: Sequence[str]) -> dict[str, Known]:
        """Row and origin of each of these ids that is here, deleted or not."""
        rows = self._ask(documents_find, list(ids))
        found = {id_: row for id_, row in zip(ids, rows, strict=True) if row >= 0}
        origins = self._read(list(found.values()), _ORIGIN)
        return {id_: Known(row, *origin) for (id_, row), origin in zip(found.items(), origins, strict=True)}

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """All rows with their documents, in order, without holding them all."""
        for rows in self._all():
            documents = self.documents(rows)
            for row, (ordinal, place) in zip(rows, self._read(rows, _ORIGIN), strict=True):
                yield row, Entry(ordinal, place, documents[row])

    def all_ids(self) -> Iterator[tuple[int, str]]:
        """All rows with their ids, in order, without holding them all."""
        for rows in self._all():
            yield from self.ids(rows).items()

    def column(self, field: str) -> Column | None:
        """The values of a metadata field; None where no document of the segment has it."""
        if field not in self._fields:
            return None
        if field not in self._columns:
            start, middle, end = self._fields[field]
            try:
                values = self._packed[start:middle].tobytes().decode()
                self._columns[field] = Column.load(values, self._packed[middle:end].tobytes(), self._size)
            except (UnicodeDecodeError, IndexDamagedError) as error:
                raise self._damaged("columns.npy", f"holds no column of {field!r} ({error})") from error
        return self._columns[field]

    def fields(self) -> list[str]:
        """The metadata fields of the segment's documents, sorted."""
        return sorted(self._fields)

    def _all(self) -> Iterator[range]:
        return (range(start, min(start + _TOGETHER, self._size)) for start in range(0, self._size, _TOGETHER))

    def _read(self, rows: Sequence[int], parts: Part) -> list[tuple[Any, ...]]:
        """These parts of these rows, a tuple each, in the order of :class:`Part`."""
        read: list[tuple[Any, ...]] = self._ask(documents_read, list(rows), parts)
        return read

    def _ask(self, kernel: Callable[..., Any], *arguments: Any) -> Any:
        """What a kernel makes of the records."""
        try:
            return kernel(self._records, self._starts, *arguments)
        except IndexDamagedError:  # of the metadata, which says so itself
            raise
        except ValueError as error:
            raise self._damaged("records.npy", str(error)) from error

    def _metadata(self, row: int, packed: str) -> dict[str, Any]:
        try:
            found = json.loads(packed)
        except (ValueError, RecursionError):
            found = None
        if type(found) is not dict:
            raise self._damaged("records.npy", f"holds no document in row {row}")
        return found

    def _damaged(self, name: str, what: str) -> IndexDamagedError:
        return IndexDamagedError(
            f"{self._folder / name} {what}: run `retrievers index verify`, and restore the index or build it again"
        )
