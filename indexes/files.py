"""Files that survive a crash and show their damage: durable writes, checksums, cheap and full checks.

A *sealed* folder has been written whole, is on disk, and has a :class:`FileRecord` for each of its files. Records live in
the manifest, which is replaced in one step; so a folder that the manifest names is complete, and one that it does not name
is rubbish of a stopped writer.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrievers.errors import IndexDamagedError
from retrievers.indexes.arrays import refuse_open_files

SMALL = 1 << 20
"""Files up to this size (bytes) are checked whole at every opening; of larger ones only the size and both ends."""

_EDGE = 1 << 16
_CHUNK = 1 << 22
_READ_WHOLE = (
    ".faiss",
)  # parsed by FAISS, which trusts what it reads: checked whole at every opening, whatever the size


@dataclass(frozen=True)
class FileRecord:
    """What is known of a sealed file: its size in bytes, the SHA-256 of it all and of its first and last 64 KiB."""

    size: int
    sha256: str
    edges: str

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self.sha256, "edges": self.edges}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FileRecord:
        return cls(int(value["size"]), str(value["sha256"]), str(value["edges"]))


Records = dict[str, FileRecord]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable (a no-op where the system has no such call)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in one step: after a crash either the old content is there or the new, and never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def seal(folder: Path) -> Records:
    """Bring everything below ``folder`` to disk and return the records of its files, by path relative to it."""
    records: Records = {}
    for path in _walk(folder):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        records[path.relative_to(folder).as_posix()] = _record(path)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)
    sync_folder(folder.parent)
    return records


def check_quickly(folder: Path, records: Records) -> None:
    """Find files that are missing, cut or swapped, and any change in small ones, without reading the large ones.

    Raises IndexDamagedError, which names the first such file; OpenFilesError where it cannot be opened for that reason.
    """
    for name, record in records.items():
        path = folder / name
        size = _size(path)
        if size != record.size:
            raise IndexDamagedError(f"{path} has {size} bytes, and {record.size} were written: {_MEND}")
        whole = size <= SMALL or path.suffix in _READ_WHOLE
        try:
            same = _digest(path) == record.sha256 if whole else _edges(path, size) == record.edges
        except OSError as error:
            refuse_open_files(path, error)
            raise
        if not same:
            part = "" if whole else " of its ends"
            raise IndexDamagedError(f"{path} is not what was written (the checksum{part} differs): {_MEND}")


def check_fully(folder: Path, records: Records) -> Iterator[str]:
    """Read every byte and yield a sentence for each file that is missing, changed, or should not be there."""
    for name, record in records.items():
        path = folder / name
        try:
            size = _size(path)
        except IndexDamagedError as error:
            yield str(error)
            continue
        if size != record.size:
            yield f"{path} has {size} bytes, and {record.size} were written"
        elif _digest(path) != record.sha256:
            yield f"{path} is not what was written (its checksum differs)"
    if folder.is_dir():
        for path in _walk(folder):
            if path.relative_to(folder).as_posix() not in records:
                yield f"{path} does not belong to the index"


_MEND = "restore it from a backup, or build the index again"


def _walk(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _size(path: Path) -> int:
    if not path.is_file():
        raise IndexDamagedError(f"{path} is missing: {_MEND}")
    return path.stat().st_size


def _record(path: Path) -> FileRecord:
    size = path.stat().st_size
    return FileRecord(size, _digest(path), _edges(path, size))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _edges(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read(_EDGE))
    return digest.hexdigest()
