"""Arrays on disk, memory-mapped, and the small JSON files beside them, checked before anything looks inside."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, OpenFilesError


def load_array(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Map an array into memory, read-only.

    ``dtype`` and ``shape`` (None for a length that any number fits) are what it must have; an array of no elements is
    read, since nothing can be mapped. Raises IndexDamagedError, which names the file and what it holds instead;
    OpenFilesError where the system's limit of open files is reached.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise IndexDamagedError(f"{path} is missing: restore it, or build the index again") from None
    except (ValueError, OSError, EOFError, SyntaxError, OverflowError, MemoryError, TypeError, KeyError) as error:
        refuse_open_files(path, error)
        raise IndexDamagedError(f"{path} is no array ({error}): restore it, or build the index again") from error
    wanted = np.dtype(dtype)
    fits = isinstance(array, np.ndarray) and array.dtype == wanted and array.ndim == len(shape)
    if not fits or any(want is not None and have != want for have, want in zip(array.shape, shape, strict=True)):
        held = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        wants = [("*" if want is None else want) for want in shape]
        raise IndexDamagedError(
            f"{path} holds {held} where {wanted} {wants} belongs: restore it, or build the index again"
        )
    if not array.flags.c_contiguous:
        raise IndexDamagedError(f"{path} is in Fortran order: restore it, or build the index again")
    return np.asarray(array)


def refuse_open_files(path: Path, error: Exception) -> None:
    """Raise OpenFilesError where the error says that no more files may be opened."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise OpenFilesError(
            f"{path} cannot be opened, since the process has as many files open as it may: raise the limit (ulimit -n 4096) "
            "and merge the index, whose segments take about eight files each; or close other retrievers"
        ) from error


def load_meta(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with the ``wanted`` members, whose numbers are finite and 0 or more. Raises IndexDamagedError."""
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IndexDamagedError(f"{path} is missing: restore it, or build the index again") from None
    except (OSError, ValueError, RecursionError) as error:
        refuse_open_files(path, error)
        raise IndexDamagedError(f"{path} is damaged ({error}): restore it, or build the index again") from error
    for name, kind in wanted.items():
        value: Any = meta.get(name) if isinstance(meta, dict) else None
        sound = type(value) is kind
        if not sound or (kind is not str and not 0 <= value < float("inf")):
            raise IndexDamagedError(f"{path} gives {name} as {value!r}: restore it, or build the index again")
    found: dict[str, Any] = meta
    return found
