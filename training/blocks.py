"""Blocks of finished work on disk: what a process that is killed has done so far, for the next one to go on from."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from retrievers.errors import WriterLockedError
from retrievers.indexes.files import replace_file, sync_folder

FORMAT = 1
_MANIFEST = "manifest.json"
_CHECKSUM = 32  # bytes of a SHA-256, before the archive

Arrays = dict[str, NDArray[Any]]


class Blocks:
    """A folder of numbered blocks of arrays, all of which depend on nothing but ``key``.

    A block is a file, ``block-000012.bin``, that appears whole or not at all: the SHA-256 of an ``.npz`` archive, and the
    archive. A folder that was begun with another key is emptied: its blocks answer another question.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.path = folder
        wanted = (json.dumps({"format": FORMAT, **key}, indent=1, sort_keys=True) + "\n").encode()
        manifest = folder / _MANIFEST
        if not manifest.is_file() or manifest.read_bytes() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            replace_file(manifest, wanted)
            sync_folder(folder.parent)

    def load(self, number: int) -> Arrays | None:
        """The arrays of a block; None where it has not been done, or its file is damaged."""
        try:
            raw = self._place(number).read_bytes()
        except OSError:
            return None
        data = raw[_CHECKSUM:]
        if hashlib.sha256(data).digest() != raw[:_CHECKSUM]:
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}

    def save(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store the arrays of a block, durably and in one step."""
        data = io.BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type]  # the stubs take one for allow_pickle
        archive = data.getvalue()
        replace_file(self._place(number), hashlib.sha256(archive).digest() + archive)

    def _place(self, number: int) -> Path:
        return self.path / f"block-{number:06d}.bin"


@contextmanager
def locked(place: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock at ``place``, which a process that ends, in whatever way, gives back.

    Raises WriterLockedError where another process has it, unless it is to be waited for.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise WriterLockedError(f"another process is {what} (it holds {place}): wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()


def digest(*parts: bytes | NDArray[Any] | str) -> str:
    """The SHA-256, in hex, of some arrays and texts, in order."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        raw = data if isinstance(data, bytes) else np.ascontiguousarray(data).data
        found.update(f"{len(data)} ".encode())
        found.update(raw)
    return found.hexdigest()
