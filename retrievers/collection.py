"""The documents of an index that is being written: which ids its segments hold, those that the change has written among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrievers.documents import Document
from retrievers.errors import BuildChangedError
from retrievers.indexes.manifest import SegmentRecord
from retrievers.indexes.segments import SEGMENTS, Segment, duplicate
from retrievers.indexes.snapshot import Snapshot
from retrievers.indexes.store import Entry, Store, open_store


@dataclass(frozen=True)
class _Sealed:
    """A segment that this change has written. Its index is not opened: it would be read for nothing."""

    record: SegmentRecord
    store: Store

    def is_live(self, row: int) -> bool:
        return True

    def close(self) -> None:
        self.store.close()


class Collection:
    """The documents that are in segments: which ids are taken, and by what."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._segments: list[Segment | _Sealed] = list(Snapshot.open(root).segments)

    def append(self, record: SegmentRecord) -> None:
        self._segments.append(self._sealed(record))

    def replace(self, group: Sequence[SegmentRecord], by: SegmentRecord) -> None:
        """Let one segment take the place of those that were folded into it."""
        names = {record.name for record in group}
        gone = [segment for segment in self._segments if segment.record.name in names]
        at = self._segments.index(gone[0])
        self._segments[at : at + len(gone)] = [self._sealed(by)]
        for segment in gone:
            segment.close()

    def close(self) -> None:
        """Close the files."""
        for segment in self._segments:
            segment.close()

    def _sealed(self, record: SegmentRecord) -> _Sealed:
        return _Sealed(record, open_store(self._root / SEGMENTS / record.name, record.documents))

    def refuse_known(self, batch: Sequence[Entry]) -> None:
        """Raise DuplicateIdError where an id is taken by a live document."""
        for segment in self._segments:
            known = segment.store.find([entry.document.id for entry in batch])
            for entry in batch:
                found = known.get(entry.document.id)
                if found is not None and segment.is_live(found.row):
                    raise duplicate(entry.document.id, f"{found.place} (already in the index)", entry.place)

    def without_known(self, batch: Sequence[Entry]) -> tuple[Sequence[Entry], set[str]]:
        """Leave out what the stopped build has committed; returns the rest and the ids left out.

        Raises DuplicateIdError where an id came from another place, BuildChangedError where its document has changed.
        """
        if not self._segments:
            return batch, set()
        skipped: set[str] = set()
        for segment in self._segments:
            known = segment.store.find([entry.document.id for entry in batch])
            if not known:
                continue
            stored = segment.store.documents(sorted(found.row for found in known.values()))
            for entry in batch:
                found = known.get(entry.document.id)
                if found is None:
                    continue
                if found.ordinal != entry.ordinal:  # an ordinal comes once in a run: so of this one, too
                    raise duplicate(entry.document.id, found.place, entry.place)
                if not _same(stored[found.row], entry.document):
                    raise BuildChangedError(
                        f"{entry.place}: document {entry.document.id!r} is not what it was when the stopped build of "
                        f"{self._root} indexed it: go on with the same documents, or remove the folder to begin anew"
                    )
                skipped.add(entry.document.id)
        return [entry for entry in batch if entry.document.id not in skipped], skipped


def _same(stored: Document, document: Document) -> bool:
    if stored.text != document.text or stored.title != document.title:
        return False
    return json.dumps(dict(stored.metadata)) == json.dumps(dict(document.metadata))
