"""Changing an index: building, adding, deleting and merging, one writer at a time, each change one commit.

A change writes new folders, seals them, and then replaces the manifest. Whatever a writer that was killed left behind is not
in the manifest, and the next writer removes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from filelock import FileLock, Timeout

from retrievers.assembly import Assembly, Write, check_memory
from retrievers.documents import Document
from retrievers.encoders import Encoder, check_same, store_encoder
from retrievers.errors import (
    BuildChangedError,
    EncoderMismatchError,
    IndexExistsError,
    IndexNotFoundError,
    WriterLockedError,
)
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
    merge_segments,
    write_deletions,
    write_segment,
)
from retrievers.indexes.snapshot import Snapshot
from retrievers.indexes.store import DocumentStore, Entry
from retrievers.readers import entries as placed
from retrievers.specs import Spec
from retrievers.staging import Staging
from retrievers.vectors import Kind, Vectors, check, concatenate, take

Progress = Callable[[int], None]

DEFAULT_MEMORY = 2 << 30
_BATCH = 1024  # documents encoded and staged at once: what a stop can cost

_BUILDING = "building"
_LOCK = "writer.lock"


class Writer:
    """Holds the writer's lock of an index; a context manager."""

    def __init__(self, root: Path, encoder: Encoder | None = None) -> None:
        self._root = root
        self._encoder = encoder  # of a build
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
            self._spec: Spec = parse_index_spec(self._manifest.index, self._kind)
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
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            _create(root, encoder, spec)
        try:
            manifest = Manifest.read(root)
        except IndexNotFoundError:
            raise IndexExistsError(f"{root} exists and is no index: choose another path, or remove it") from None
        if manifest.complete:
            raise IndexExistsError(
                f"{root} is an index of {manifest.documents} documents already: add to it, choose another path, or remove it"
            )
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
        building = self._encoder is not None and not self._manifest.segments
        if error is not None and building and not any((self._root / _BUILDING).glob("*.npz")):
            shutil.rmtree(self._root)  # the build failed before anything was worth keeping
        self._lock.release()

    def build(self, documents: Iterable[Document], memory: int, progress: Progress | None) -> None:
        """Index the documents in segments, each committed when it is full, and finish the build."""
        if self._encoder is None:
            raise TypeError("this writer was not begun with begin_build")
        staging = Staging(self._root / _BUILDING)
        collection = _Collection(self._root)
        before = self._manifest.documents
        again = done = 0

        def landed(record: SegmentRecord, entries: Sequence[Entry]) -> None:
            self._commit((*self._manifest.segments, record))
            collection.append(record)
            staging.forget({entry.document.id for entry in entries})

        assembly = Assembly(self._kind, memory, lambda: self._begin_segment(0), landed, more=before > 0)
        with assembly:
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
        self._commit(self._manifest.segments, complete=True)
        staging.remove()
        if self._spec.name in PlaidIndex.PARAMETERS and len(self._manifest.segments) > 1:
            self.merge(memory)  # centroids of everything, where those of the first segment served for all

    def add(self, encoder: Encoder, documents: Iterable[Document], memory: int, progress: Progress | None) -> int:
        """Index more documents, in one commit; returns how many."""
        self._refuse_unfinished("add to")
        collection = _Collection(self._root)
        added: list[SegmentRecord] = []
        done = 0

        def landed(record: SegmentRecord, entries: Sequence[Entry]) -> None:
            added.append(record)
            collection.append(record)

        with Assembly(self._kind, memory, lambda: self._begin_segment(len(added)), landed) as assembly:
            for batch in _batches(documents):
                collection.refuse_known(batch)
                assembly.admit(batch)
                assembly.extend(batch, _encode(encoder, batch, None))
                done += len(batch)
                if progress is not None:
                    progress(done)
            assembly.finish()
        if added:
            self._commit((*self._manifest.segments, *added))
        return done

    def delete(self, ids: Sequence[str]) -> list[str]:
        """Delete documents, in one commit, unless some are unknown: then nothing is deleted and those are returned."""
        self._refuse_unfinished("delete from")
        snapshot = Snapshot.open(self._root)
        left = dict.fromkeys(ids)
        found: list[list[int]] = []
        for segment in snapshot.segments:
            known = segment.store.find(list(left))
            live = {id: place.row for id, place in known.items() if segment.is_live(place.row)}
            found.append(list(live.values()))
            for id in live:
                del left[id]
        if left or not ids:
            return list(left)
        records = []
        for number, (segment, rows) in enumerate(zip(snapshot.segments, found, strict=True)):
            record = segment.record
            if rows:
                record = write_deletions(self._root, f"{self._next}-{number}", segment, rows)
            if record.deletions is None or record.deletions.count < record.documents:
                records.append(record)
        self._commit(tuple(records))
        return []

    def merge(self, memory: int) -> int:
        """Fold segments, in one commit; returns how many are left."""
        self._refuse_unfinished("merge")
        limit = check_memory(memory)
        snapshot = Snapshot.open(self._root)
        groups: list[list[Segment]] = []
        used = 0.0
        for segment in snapshot.segments:
            size = self._taken * sum(record.size for record in segment.record.files.values())
            if not groups or used + size > limit:
                groups.append([])
                used = 0.0
            groups[-1].append(segment)
            used += size
        records = []
        for number, group in enumerate(groups):
            if len(group) == 1 and group[0].live is None:
                records.append(group[0].record)
            else:
                records.append(merge_segments(self._root, f"{self._next}-{number}", group, self._spec, self._kind))
        if tuple(records) != self._manifest.segments:
            self._commit(tuple(records))
            self._sweep()
        return len(records)

    def respecify(self, spec: Spec) -> None:
        """Search the same segments by another specification, which must be one that reads their files, in one commit."""
        self._refuse_unfinished("tune")
        self._manifest = replace(self._manifest, index=str(spec))
        self._spec = spec
        self._commit(self._manifest.segments)

    @property
    def _taken(self) -> float:
        """Bytes of memory that a merge takes for each byte of files; a plaid index gathers its vectors in a file."""
        return 0.5 if self._spec.name in PlaidIndex.PARAMETERS else 3

    @property
    def _next(self) -> str:
        return f"{self._manifest.generation + 1:06d}"

    def _begin_segment(self, number: int) -> Write:
        """What writes the next segment, in a thread; ``number`` tells those of one commit apart."""
        name, like = f"{self._next}-{number}", self._largest()

        def write(entries: Sequence[Entry], vectors: Vectors) -> SegmentRecord:
            return write_segment(self._root, name, entries, vectors, self._spec, self._kind, like)

        return write

    def _largest(self) -> Index | None:
        """The index of the largest segment, whose centroids those that follow share; None in kinds without centroids."""
        if self._spec.name not in PlaidIndex.PARAMETERS or not self._manifest.segments:
            return None
        record = max(self._manifest.segments, key=lambda one: one.documents)
        return Segment.open(self._root, record, self._spec, self._kind).index

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


@dataclass(frozen=True)
class _Sealed:
    """A segment that this change has written. Its index is not opened: builds of many segments would run out of files."""

    store: DocumentStore

    def is_live(self, row: int) -> bool:
        return True


class _Collection:
    """The documents that are committed: which ids are taken, and by what."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._segments: list[Segment | _Sealed] = list(Snapshot.open(root).segments)
        self._resumed = len(self._segments)

    def append(self, record: SegmentRecord) -> None:
        self._segments.append(_Sealed(DocumentStore(self._root / SEGMENTS / record.name, record.documents)))

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
        for number, segment in enumerate(self._segments):
            known = segment.store.find([entry.document.id for entry in batch])
            if not known:
                continue
            stored = segment.store.documents(sorted(found.row for found in known.values()))
            for entry in batch:
                found = known.get(entry.document.id)
                if found is None:
                    continue
                if number >= self._resumed or found.ordinal != entry.ordinal:
                    raise duplicate(entry.document.id, found.place, entry.place)
                if not _same(stored[found.row], entry.document):
                    raise BuildChangedError(
                        f"{entry.place}: document {entry.document.id!r} is not what it was when the stopped build of "
                        f"{self._root} indexed it: go on with the same documents, or remove the folder to begin anew"
                    )
                skipped.add(entry.document.id)
        return [entry for entry in batch if entry.document.id not in skipped], skipped


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


def _same(stored: Document, document: Document) -> bool:
    if stored.text != document.text or stored.title != document.title:
        return False
    return json.dumps(dict(stored.metadata)) == json.dumps(dict(document.metadata))
