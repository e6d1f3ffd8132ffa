"""Reading every byte of an index and saying what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from retrievers.errors import IndexDamagedError
from retrievers.indexes.files import check_fully
from retrievers.indexes.manifest import ENCODER, Manifest
from retrievers.indexes.segments import DELETIONS, SEGMENTS
from retrievers.indexes.snapshot import Snapshot


def verify(path: str | Path) -> list[str]:
    """Read every byte of the index at ``path`` and return a sentence for each fault; an empty list means a sound index.

    Raises IndexNotFoundError and IndexFormatError where there is nothing to read or no way to read it.
    """
    root = Path(path)
    try:
        manifest = Manifest.read(root)
    except IndexDamagedError as error:
        return [str(error)]
    faults = list(_check_files(root, manifest))
    if not faults:
        try:
            Snapshot.open(root).close()
        except IndexDamagedError as error:
            faults.append(str(error))
    return faults


def _check_files(root: Path, manifest: Manifest) -> Iterator[str]:
    yield from check_fully(root / ENCODER, manifest.encoder_files)
    for segment in manifest.segments:
        yield from check_fully(root / SEGMENTS / segment.name, segment.files)
        if segment.deletions is not None:
            yield from check_fully(root / DELETIONS / segment.deletions.name, segment.deletions.files)
