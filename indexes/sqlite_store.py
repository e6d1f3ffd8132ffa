"""Texts, ids and metadata of a segment of format 1: one SQLite file, which is read and no longer written.

Its tables are ``documents(row, id, title, text, metadata, ordinal, place)``, by row and by id, and
``columns(field, values, codes)``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retrievers.columns import Column
from retrievers.documents import Document
from retrievers.errors import IndexDamagedError
from retrievers.indexes.arrays import refuse_open_files
from retrievers.indexes.store import Entry, Known

NAME = "documents.sqlite"

_BATCH = 500  # variables of one statement; SQLite's own limit is higher on every build since 2020


class SqliteStore:
    """Reads the documents of a segment; safe to share between threads.

    SQLite finds most damage by itself; whatever it reports, and whatever does not fit, becomes an IndexDamagedError.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._path = folder / NAME
        self._size = size
        self._lock = threading.Lock()
        self._columns: dict[str, Column | None] = {}
        if not self._path.is_file():
            raise IndexDamagedError(f"{self._path} is missing")
        try:
            self._path.open("rb").close()  # SQLite would not say why it cannot
        except OSError as error:
            refuse_open_files(self._path, error)
        self._connection = sqlite3.connect(
            f"file:{quote(str(self._path.absolute()))}?mode=ro&immutable=1",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._query("PRAGMA trusted_schema = OFF", ())
            self._query(f"PRAGMA mmap_size = {self._path.stat().st_size}", ())
            found = self._query("SELECT max(row) FROM documents", ())
            if found != [(size - 1 if size else None,)]:
                raise self._damaged(f"does not hold the {size} documents of its segment")
        except IndexDamagedError:
            self._connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def documents(self, rows: Sequence[int]) -> dict[int, Document]:
        """The documents of these rows, by row."""
        select = "SELECT row, id, text, title, metadata FROM documents WHERE row IN "
        found: dict[int, Document] = {}
        for row, id_, text, title, metadata in self._select(select, rows):
            found[row] = self._document(row, id_, text, title, metadata)
        self._refuse_missing(rows, found)
        return found

    def ids(self, rows: Sequence[int]) -> dict[int, str]:
        """The document ids of these rows, by row."""
        found: dict[int, str] = dict(self._select("SELECT row, id FROM documents WHERE row IN ", rows))
        self._refuse_missing(rows, found)
        for row, id_ in found.items():
            if type(id_) is not str:
                raise self._damaged(f"holds no id in row {row}")
        return found

    def find(self, ids: Sequence[str]) -> dict[str, Known]:
        """Row and origin of each of these ids that is here, deleted or not."""
        select = "SELECT id, row, ordinal, place FROM documents WHERE id IN "
        found: dict[str, Known] = {}
        wanted = frozenset(ids)
        for id_, row, ordinal, place in self._select(select, ids):
            if id_ not in wanted:  # the file's index of ids and its rows tell two stories
                raise self._damaged(f"holds another id in row {row} than its index says")
            found[id_] = self._known(row, ordinal, place)
        return found

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """All rows with their documents, in order, without holding them all."""
        for row, id_, text, title, metadata, ordinal, place in self._rows("id, text, title, metadata, ordinal, place"):
            known = self._known(row, ordinal, place)
            yield row, Entry(known.ordinal, known.place, self._document(row, id_, text, title, metadata))

    def all_ids(self) -> Iterator[tuple[int, str]]:
        """All rows with their ids, in order, without holding them all."""
        for row, id_ in self._rows("id"):
            if type(id_) is not str:
                raise self._damaged(f"holds no id in row {row}")
            yield row, id_

    def _rows(self, columns: str) -> Iterator[Any]:
        """All rows, in order, some hundred at a time: a merge reads many segments at once."""
        select = f"SELECT row, {columns} FROM documents WHERE row >= ? ORDER BY row LIMIT 200"
        start = 0
        while start < self._size:
            batch = self._query(select, (start,))
            if not batch:
                raise self._damaged(f"lacks row {start}")
            for found in batch:
                if found[0] != start:
                    raise self._damaged(f"lacks row {start}")
                yield found
                start += 1

    def column(self, field: str) -> Column | None:
        """The values of a metadata field; None where no document of the segment has it."""
        if field not in self._columns:
            found = self._query('SELECT "values", codes FROM columns WHERE field = ?', (field,))
            self._columns[field] = self._load_column(*found[0]) if found else None
        return self._columns[field]

    def _load_column(self, values: Any, codes: Any) -> Column:
        try:
            return Column.load(values, codes, self._size)
        except IndexDamagedError as error:
            raise IndexDamagedError(f"{self._path}: {error}") from error

    def fields(self) -> list[str]:
        """The metadata fields of the segment's documents, sorted."""
        found = [field for (field,) in self._query("SELECT field FROM columns ORDER BY field", ())]
        if not all(type(field) is str for field in found):
            raise self._damaged("holds a field without a name")
        return found

    def _document(self, row: int, id_: Any, text: Any, title: Any, metadata: Any) -> Document:
        try:
            found = json.loads(metadata) if metadata else {}
        except (ValueError, TypeError, RecursionError):
            found = None
        if type(id_) is type(text) is type(title) is str and type(found) is dict:
            return Document(id_, text, title, found)
        raise self._damaged(f"holds no document in row {row}")

    def _known(self, row: Any, ordinal: Any, place: Any) -> Known:
        """The origin of a document, once it is sure that it is one: a damaged page gives whatever its bytes look like."""
        if type(row) is type(ordinal) is int and 0 <= row < self._size and type(place) is str:
            return Known(row, ordinal, place)
        raise self._damaged(f"holds no document in row {row}")

    def _refuse_missing(self, rows: Sequence[int], found: Mapping[int, object]) -> None:
        """Raise where one of these rows, which differ, was not found."""
        if len(found) < len(rows):
            raise self._damaged(f"lacks row {next(row for row in rows if row not in found)}")

    def _damaged(self, what: str) -> IndexDamagedError:
        return IndexDamagedError(
            f"{self._path} {what}: run `retrievers index verify`, and restore the index or build it again"
        )

    def _select(self, select: str, keys: Sequence[Any]) -> Iterator[Any]:
        return chain.from_iterable(
            self._query(f"{select}({','.join('?' * len(batch))})", batch)
            for batch in (tuple(keys[start : start + _BATCH]) for start in range(0, len(keys), _BATCH))
        )

    def _query(self, sql: str, parameters: tuple[Any, ...]) -> list[Any]:
        try:
            with self._lock:
                return self._connection.execute(sql, parameters).fetchall()
        except (
            sqlite3.Error,
            UnicodeDecodeError,
        ) as error:  # the latter of SQLite's own message, which quotes the file
            raise self._damaged(f"cannot be read ({error})") from error
        except MemoryError as error:  # so Python's sqlite3 reports some values whose lengths are damaged, too
            raise self._damaged("cannot be read (SQLite asked for more memory than there is)") from error
