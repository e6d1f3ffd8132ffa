"""Changing an index: building, adding, deleting and merging, one writer at a time, each change one commit.

A change writes new folders, seals them, and then replaces the manifest. Whatever a writer that was killed left behind is not
in the manifest, and the next writer removes it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from filelock import FileLock, Timeout

from retrievers.assembly import Assembly, check_memory
from retrievers.collection import Collection
from retrievers.documents import Document, check_document
from retrievers.encoders import Encoder, check_same, store_encoder
from retrievers.errors import (
    BuildChangedError,
    EncoderMismatchError,
    IndexExistsError,
    IndexNotFoundError,
    WriterLockedError,
)
from retrievers.folding import FEW, Fold, Write, due, folding, taken
from retrievers.indexes.files import seal
from retrievers.indexes.kinds import parse_index_spec
from retrievers.indexes.manifest import ENCODER, Manifest, SegmentRecord
from retrievers.indexes.plaid import PlaidIndex
from retrievers.indexes.protocol import Index
from retrievers.indexes.segments import (
    DELETIONS,
    SEGMENTS,
    Segment,
    duplicate,
    fresh_folder,
    write_deletions,
    write_segment,
)
from retrievers.indexes.snapshot import Snapshot
from retrievers.indexes.store import Entry
from retrievers.readers import entries as placed
from retrievers.specs import Spec
from retrievers.staging import Staging
from retrievers.vectors import Kind, Vectors, check, concatenate, take

if TYPE_CHECKING:
    from retrievers.retriever import Progress

_BATCH = 1024  # documents encoded and staged at once: what a stop can cost

_BUILDING = "building"
_LOCK = "writer.lock"


class Writer:
    """Holds the writer's lock of an index; a context manager."""

    def __init__(self, root: Path, encoder: Encoder | None = None) -> None:
        self._root = root
        self._encoder = encoder  # of a build
        self._collection: Collection | None = None  # of a build or an addition
        self._last = 0, 0  # the generation and number of the last name that was given
        self._lock = FileLock(root / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise WriterLockedError(
                f"{root} is being written by another process or thread: wait for it to finish, and try again"
            ) from None
        try:
            self._manifest = Manifest.read(root)
            self._kind: Kind = self._manifest.encoder["kind"]
            self.spec: Spec = parse_index_spec(self._manifest.index, self._kind)
            self._sweep()
        except BaseException:
            self._lock.release()
            raise

    @classmethod
    def begin(cls, root: Path) -> Self:
        """Start to change the index at ``root``. Raises IndexNotFoundError, WriterLockedError."""
        Manifest.read(root)
        return cls(root)

    @classmethod
    def begin_build(cls, root: Path, encoder: Encoder, spec: Spec) -> Self:
        """Start a build, or go on with one that was stopped.

        Raises IndexExistsError where something else is at ``root``, BuildChangedError where the stopped build had another
        encoder or index specification.
        """
        manifest = check_place(root)
        if manifest is None:
            _create(root, encoder, spec)
            manifest = Manifest.read(root)
        if manifest.index != str(spec):
            raise BuildChangedError(
                f"the build of {root} that was stopped had the index {manifest.index!r}, and this one has {str(spec)!r}: "
                "go on with the same one, or remove the folder to begin anew"
            )
        try:
            check_same(encoder, manifest.encoder)
        except EncoderMismatchError as error:
            raise BuildChangedError(
                f"the build of {root} that was stopped had another encoder: go on with the same one, or remove the folder "
                f"to begin anew ({error})"
            ) from error
        return cls(root, encoder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._collection is not None:
            self._collection.close()
        building = self._encoder is not None and not self._manifest.segments
        if error is not None and building and not any((self._root / _BUILDING).glob("*.npz")):
            shutil.rmtree(self._root)  # the build failed before anything was worth keeping
        self._lock.release()

    def build(self, documents: Iterable[Document], memory: int, progress: Progress | None) -> None:
        """Index the documents in segments, each committed when it is full, and finish the build."""
        if self._encoder is None:
            raise TypeError("this writer was not begun with begin_build")
        staging = Staging(self._root / _BUILDING)
        collection = self._collection = Collection(self._root)
        before = self._manifest.documents
        again = done = 0

        def commit(segments: Sequence[SegmentRecord], ids: Set[str]) -> None:
            self._commit(tuple(segments))
            staging.forget(ids)

        growing = _Growing(self, collection, self._manifest.segments, commit)
        with Assembly(self._kind, memory, growing, more=before > 0) as assembly:
            for batch in _batches(documents):
                fresh, skipped = collection.without_known(batch)
                if skipped:
                    staging.forget(skipped)  # where the stop came between a commit and this
                    again += len(skipped)
                if fresh:
                    assembly.admit(fresh)
                    assembly.extend(fresh, _encode(self._encoder, fresh, staging))
                done += len(batch)
                if progress is not None:
                    progress(done)
            if again != before:
                raise BuildChangedError(
                    f"the stopped build of {self._root} had indexed {before} documents, and only {again} of them came "
                    "again: go on with the same documents, or remove the folder to begin anew"
                )
            assembly.finish()
        staging.remove()
        # A plaid index gets centroids of everything, where those of the first segment served for all.
        if len(self._manifest.segments) > (1 if self.spec.name in PlaidIndex.PARAMETERS else FEW):
            self._merge(memory)
        self._commit(self._manifest.segments, complete=True)

    def add(self, encoder: Encoder, documents: Iterable[Document], memory: int, progress: Progress | None) -> int:
        """Index more documents, in one commit; returns how many."""
        self._refuse_unfinished("add to")
        records, done = self._written(encoder, documents, memory, progress, new=True)
        if records:
            self._commit((*self._manifest.segments, *records))
        return done

    def replace(self, encoder: Encoder, documents: Sequence[Document], memory: int) -> list[str]:
        """Put documents in place of those with their ids, in one commit, unless some are unknown, as in :meth:`delete`."""
        self._refuse_unfinished("change")
        places: dict[str, str] = {}
        for number, document in enumerate(documents, 1):
            place = f"document {number}"
            if places.setdefault(check_document(document, place).id, place) != place:
                raise duplicate(document.id, places[document.id], place)
        left, missing = self._without(list(places))
        if places and not missing:
            records, _ = self._written(encoder, documents, memory, None, new=False)
            self._commit((*left, *records))
        return missing

    def _written(
        self, encoder: Encoder, documents: Iterable[Document], memory: int, progress: Progress | None, *, new: bool
    ) -> tuple[tuple[SegmentRecord, ...], int]:
        """Segments of documents, whose ids must not be taken where they are ``new``, and how many documents there are."""
        collection = self._collection = Collection(self._root)
        growing = _Growing(self, collection, (), lambda segments, ids: None)
        done = 0
        with Assembly(self._kind, memory, growing) as assembly:
            for batch in _batches(documents):
                if new:
                    collection.refuse_known(batch)
                assembly.admit(batch)
                assembly.extend(batch, _encode(encoder, batch, None))
                done += len(batch)
                if progress is not None:
                    progress(done)
            assembly.finish()
        return growing.records, done

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents, in one commit, unless some are unknown: then nothing is deleted and those are returned."""
        self._refuse_unfinished("delete from")
        records, missing = self._without(ids)
        if ids and not missing:
            self._commit(records)
        return missing

    def _without(self, ids: Sequence[str]) -> tuple[tuple[SegmentRecord, ...], list[str]]:
        """The segments without the documents with these ids, and which of the ids are unknown: then nothing is written."""
        snapshot = Snapshot.open(self._root)
        left = dict.fromkeys(ids)
        found: list[list[int]] = []
        for segment in snapshot.segments:
            known = segment.store.find(list(left))
            live = {id: place.row for id, place in known.items() if segment.is_live(place.row)}
            found.append(list(live.values()))
            for id in live:
                del left[id]
        if left:
            return (), list(left)
        records = []
        for number, (segment, rows) in enumerate(zip(snapshot.segments, found, strict=True)):
            record = segment.record
            if rows:
                record = write_deletions(self._root, f"{self._manifest.generation + 1:06d}-{number}", segment, rows)
            if record.deletions is None or record.deletions.count < record.documents:
                records.append(record)
        return tuple(records), []

    def merge(self, memory: int) -> int:
        """Fold segments, each fold in one commit; returns how many are left."""
        self._refuse_unfinished("merge")
        return self._merge(memory)

    def _merge(self, memory: int) -> int:
        limit = check_memory(memory)
        groups: list[list[SegmentRecord]] = []
        used = 0.0
        for record in self._manifest.segments:
            size = taken(record, self.spec)
            if not groups or used + size > limit:
                groups.append([])
                used = 0.0
            groups[-1].append(record)
            used += size
        for group in groups:
            if len(group) > 1 or group[0].deletions is not None:
                merged = self.fold(group)(iter)
                self._commit(_replaced(self._manifest.segments, group, merged))
                self.remove(group)
        return len(groups)

    def respecify(self, spec: Spec) -> None:
        """Search the same segments by another specification, which must be one that reads their files, in one commit."""
        self._refuse_unfinished("tune")
        self._manifest = replace(self._manifest, index=str(spec))
        self.spec = spec
        self._commit(self._manifest.segments)

    def fold(self, group: Sequence[SegmentRecord]) -> Fold:
        """What folds these segments into one."""
        return folding(self._root, self._name(), group, self.spec, self._kind)

    def _name(self) -> str:
        """A name that no segment has had."""
        generation = self._manifest.generation + 1
        number = self._last[1] + 1 if self._last[0] == generation else 0
        self._last = generation, number
        return f"{generation:06d}-{number}"

    def begin_segment(self) -> Write:
        """What writes the next segment."""
        name, like = self._name(), self._largest()

        def write(entries: Sequence[Entry], vectors: Vectors) -> SegmentRecord:
            return write_segment(self._root, name, entries, vectors, self.spec, self._kind, like)

        return write

    def _largest(self) -> Index | None:
        """The index of the largest segment, whose centroids those that follow share; None in kinds without centroids."""
        if self.spec.name not in PlaidIndex.PARAMETERS or not self._manifest.segments:
            return None
        record = max(self._manifest.segments, key=lambda one: one.documents)
        return Segment.open(self._root, record, self.spec, self._kind).index

    def _commit(self, segments: tuple[SegmentRecord, ...], complete: bool | None = None) -> None:
        manifest = replace(
            self._manifest,
            segments=segments,
            generation=self._manifest.generation + 1,
            complete=self._manifest.complete if complete is None else complete,
        )
        manifest.write(self._root)
        self._manifest = manifest

    def _refuse_unfinished(self, change: str) -> None:
        if not self._manifest.complete:
            raise BuildChangedError(
                f"the build of {self._root} was stopped: finish it with the same build call before you {change} it"
            )

    def remove(self, records: Iterable[SegmentRecord]) -> None:
        """Remove the folders of segments that no manifest names any more, or none has named yet."""
        for record in records:
            shutil.rmtree(self._root / SEGMENTS / record.name)
            if record.deletions is not None:
                shutil.rmtree(self._root / DELETIONS / record.deletions.name)

    def _sweep(self) -> None:
        """Remove the folders that no manifest names."""
        named = {record.name for record in self._manifest.segments}
        deleted = {record.deletions.name for record in self._manifest.segments if record.deletions}
        for folder, keep in ((SEGMENTS, named), (DELETIONS, deleted)):
            parent = self._root / folder
            for path in parent.iterdir() if parent.is_dir() else ():
                if path.name not in keep:
                    shutil.rmtree(path)
        if self._manifest.complete and (self._root / _BUILDING).exists():
            shutil.rmtree(self._root / _BUILDING)


class _Growing:
    """The segments that a change has written, which come after those that the index had."""

    def __init__(
        self,
        writer: Writer,
        collection: Collection,
        records: Sequence[SegmentRecord],
        commit: Callable[[Sequence[SegmentRecord], Set[str]], None],
    ) -> None:
        """``commit`` is told of the segments each time that they change, and of the ids that are new in them."""
        self.records = tuple(records)
        self._writer, self._collection, self._commit = writer, collection, commit
        self._group: Sequence[SegmentRecord] = ()

    def begin(self) -> Write:
        return self._writer.begin_segment()

    def landed(self, record: SegmentRecord, entries: Sequence[Entry]) -> None:
        self.records = (*self.records, record)
        self._collection.append(record)
        self._commit(self.records, {entry.document.id for entry in entries})

    def fold(self, limit: float) -> Fold | None:
        spec = self._writer.spec
        if spec.name in PlaidIndex.PARAMETERS:
            return None  # centroids would be trained each time
        count = due([taken(record, spec) for record in self.records], limit)
        self._group = self.records[len(self.records) - count :]
        return self._writer.fold(self._group) if count else None

    def folded(self, record: SegmentRecord) -> None:
        self.records = _replaced(self.records, self._group, record)
        self._commit(self.records, set())
        self._collection.replace(self._group, record)
        self._writer.remove(self._group)


def _replaced(
    records: Sequence[SegmentRecord], group: Sequence[SegmentRecord], by: SegmentRecord
) -> tuple[SegmentRecord, ...]:
    """Records with one in place of a group that stands together."""
    first = records.index(group[0])
    return (*records[:first], by, *records[first + len(group) :])


def check_place(root: Path) -> Manifest | None:
    """The manifest of the stopped build at ``root``; None where nothing is there, so that a build can begin.

    Raises IndexExistsError where an index or anything else is there.
    """
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return None
    try:
        manifest = Manifest.read(root)
    except IndexNotFoundError:
        raise IndexExistsError(f"{root} exists and is no index: choose another path, or remove it") from None
    if manifest.complete:
        raise IndexExistsError(
            f"{root} is an index of {manifest.documents} documents already: add to it, choose another path, or remove it"
        )
    return manifest


def _create(root: Path, encoder: Encoder, spec: Spec) -> None:
    """Make an index without documents appear at ``root`` in one step."""
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = fresh_folder(root.parent / f".{root.name}.{os.getpid()}.new")
    try:
        for name in (ENCODER, SEGMENTS, DELETIONS):
            (temporary / name).mkdir()
        stored = store_encoder(encoder, temporary / ENCODER)
        Manifest(str(spec), stored, seal(temporary / ENCODER)).write(temporary)
        try:
            temporary.rename(root)
        except OSError as error:
            raise IndexExistsError(f"{root} cannot be made ({error}): choose another path") from error
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def _batches(documents: Iterable[Document]) -> Iterator[list[Entry]]:
    numbered = (Entry(ordinal, place, document) for ordinal, (place, document) in enumerate(placed(documents), 1))
    while batch := list(islice(numbered, _BATCH)):
        yield batch


def _encode(encoder: Encoder, batch: Sequence[Entry], staging: Staging | None) -> Vectors:
    documents = [entry.document for entry in batch]
    if staging is None:
        return encoder.encode_document([document.content for document in documents])
    known = [document for document in documents if document in staging]
    if len(known) == len(documents):
        return staging.get(documents)
    new = [document for document in documents if document not in staging]
    vectors = encoder.encode_document([document.content for document in new])
    check(vectors, encoder.kind, len(new))
    staging.put(new, vectors)
    if not known:
        return vectors
    both = concatenate([staging.get(known), vectors])
    place = {document.id: row for row, document in enumerate(known + new)}
    return take(both, np.array([place[document.id] for document in documents], np.int64))
