"""The manifest: the one small file that says what an index holds. Replacing it is the commit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrievers.errors import IndexDamagedError, IndexFormatError, IndexNotFoundError
from retrievers.indexes.arrays import refuse_open_files
from retrievers.indexes.files import FileRecord, Records, replace_file

FORMAT = 3
"""The version of the on-disk format that this library writes; it reads this one and older ones."""

NAME = "manifest.json"

ENCODER = "encoder"
"""The folder of the encoder's own files."""


@dataclass(frozen=True)
class Deletions:
    """The rows of a segment that are deleted: a sealed folder below ``deletions/``."""

    name: str
    count: int
    files: Records


@dataclass(frozen=True)
class SegmentRecord:
    """A segment: a sealed folder below ``segments/`` with ``documents`` rows, and what has been deleted of it since."""

    name: str
    documents: int
    files: Records
    deletions: Deletions | None = None


@dataclass(frozen=True)
class Manifest:
    """A whole commit. ``encoder`` holds ``kind``, ``fingerprint`` and ``reference``; ``complete`` is false while a build runs."""

    index: str
    encoder: dict[str, Any]
    encoder_files: Records
    generation: int = 0
    complete: bool = False
    segments: tuple[SegmentRecord, ...] = field(default=())

    @property
    def documents(self) -> int:
        """The number of live documents."""
        return sum(s.documents - (s.deletions.count if s.deletions else 0) for s in self.segments)

    def write(self, root: Path) -> None:
        """Commit: replace the manifest in ``root`` in one durable step."""
        body = {
            "format": FORMAT,
            "generation": self.generation,
            "complete": self.complete,
            "documents": self.documents,
            "index": self.index,
            "encoder": self.encoder,
            "encoder_files": _files_to_json(self.encoder_files),
            "segments": [_segment_to_json(segment) for segment in self.segments],
        }
        body["checksum"] = _checksum(body)
        replace_file(root / NAME, (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())

    @classmethod
    def read(cls, root: Path) -> Manifest:
        """Read the manifest of the index at ``root``.

        Raises IndexNotFoundError where there is none, IndexFormatError for a newer format, IndexDamagedError otherwise.
        """
        path = root / NAME
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            reason = "it holds no manifest.json" if root.is_dir() else "there is no such folder"
            raise IndexNotFoundError(f"{root} is not an index: {reason}") from None
        except NotADirectoryError:
            raise IndexNotFoundError(f"{root} is not an index: an index is a folder") from None
        except OSError as error:
            refuse_open_files(path, error)
            raise
        try:
            body = json.loads(raw.decode())
            version = body["format"]
            if isinstance(version, int) and version > FORMAT:
                raise IndexFormatError(
                    f"{root} has format {version}, and this library reads up to {FORMAT}: "
                    "upgrade with pip install -U tri-retrievers"
                )
            if body.pop("checksum") != _checksum(body):
                raise IndexDamagedError(
                    f"{path} is not what was written (its checksum differs): restore it from a backup"
                )
            return cls(
                index=body["index"],
                encoder=body["encoder"],
                encoder_files=_files_from_json(body["encoder_files"]),
                generation=body["generation"],
                complete=body["complete"],
                segments=tuple(_segment_from_json(segment) for segment in body["segments"]),
            )
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise IndexDamagedError(f"{path} is damaged ({error}): restore it from a backup") from error


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _files_to_json(files: Records) -> dict[str, Any]:
    return {name: record.to_json() for name, record in files.items()}


def _files_from_json(value: Mapping[str, Any]) -> Records:
    return {name: FileRecord.from_json(record) for name, record in value.items()}


def _segment_to_json(segment: SegmentRecord) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": segment.name,
        "documents": segment.documents,
        "files": _files_to_json(segment.files),
        "deletions": None,
    }
    if segment.deletions is not None:
        deletions = segment.deletions
        value["deletions"] = {
            "name": deletions.name,
            "count": deletions.count,
            "files": _files_to_json(deletions.files),
        }
    return value


def _segment_from_json(value: Mapping[str, Any]) -> SegmentRecord:
    found = value["deletions"]
    deletions = None if found is None else Deletions(found["name"], found["count"], _files_from_json(found["files"]))
    return SegmentRecord(value["name"], value["documents"], _files_from_json(value["files"]), deletions)
