"""Arrays on disk, memory-mapped or growing, and the small JSON files beside them, checked before anything looks inside."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, OpenFilesError

_PAGE, _TOUCHED = 4096, 64 << 20
_READ, _SHARED = 1, 1  # PROT_READ and MAP_SHARED, the same on every POSIX system


def _system() -> Any:
    """The C library's mmap and munmap; None where it is another system's, or its offsets are of another size."""
    if os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != ctypes.sizeof(ctypes.c_int64):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
    ]  # fmt: skip
    library.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return library


_libc = _system()
_PLAIN = re.compile(
    rb"\{'descr': '([<>|]?[a-z][0-9]+)', 'fortran_order': (True|False), 'shape': \(((?:[0-9]+(?:, ?)?)*)\), \} *\n"
)


def load_array(path: Path, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Map an array into memory, read-only.

    ``dtype`` and ``shape`` (None for a length that any number fits) are what it must have; an array of no elements is
    read, since nothing can be mapped. Raises IndexDamagedError, which names the file and what it holds instead;
    OpenFilesError where the system's limit of open files is reached.
    """
    try:
        array = _map(path)
    except FileNotFoundError:
        raise IndexDamagedError(f"{path} is missing: restore it, or build the index again") from None
    except (ValueError, OSError, EOFError, SyntaxError, OverflowError, MemoryError, TypeError, KeyError) as error:
        refuse_open_files(path, error)
        raise IndexDamagedError(f"{path} is no array ({error}): restore it, or build the index again") from error
    wanted = np.dtype(dtype)
    fits = array.dtype == wanted and array.ndim == len(shape)
    if not fits or any(want is not None and have != want for have, want in zip(array.shape, shape, strict=True)):
        wants = [("*" if want is None else want) for want in shape]
        raise IndexDamagedError(
            f"{path} holds {array.dtype} {list(array.shape)} where {wanted} {wants} belongs: "
            "restore it, or build the index again"
        )
    if not array.flags.c_contiguous:
        raise IndexDamagedError(f"{path} is in Fortran order: restore it, or build the index again")
    return array


class _Mapped:
    """A file in memory, read-only, until the last array over it is gone.

    It holds no descriptor open, as :class:`mmap.mmap` does: an index of a hundred segments would have one for each of a
    thousand arrays, which is what a process may have by default.
    """

    def __init__(self, descriptor: int, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._size = start + math.prod(shape) * dtype.itemsize
        self._address: int | None = None
        self._unmap = _libc.munmap  # by then the module may have been taken down
        address = _libc.mmap(None, self._size, _READ, _SHARED, descriptor, 0)
        if address == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._address = address
        # An array made of this holds it as its base.
        self.__array_interface__ = {
            "data": (address + start, True),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        if self._address is not None:
            self._unmap(self._address, self._size)


def _map(path: Path) -> NDArray[Any]:
    """The array of an ``.npy`` file, mapped where it has elements. Raises OSError, ValueError and the like."""
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"it describes {dtype} {list(shape)}")
        if start + math.prod(shape) * dtype.itemsize > size:
            raise ValueError(f"it has {size} bytes, too few for {dtype} {list(shape)}")
        if not math.prod(shape) * dtype.itemsize:
            return np.empty(shape, dtype)
        stored = shape[::-1] if fortran else shape
        mapped = (
            np.memmap(file, dtype, "r", start, stored)
            if _libc is None
            else _Mapped(file.fileno(), start, stored, dtype)
        )
        array = np.asarray(mapped)
        return array.T if fortran else array


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an ``.npy`` file, which is read to where its elements begin.

    What numpy writes for plain types is read here: numpy itself has Python parse it, which raises SystemError in Python
    3.11 where several threads parse at once, and errors of many kinds where the header is damaged.
    """
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"it has version {version} of the format")
    plain = _PLAIN.fullmatch(file.read(int.from_bytes(file.read(2), "little")))
    if plain is None:
        raise ValueError("its header is damaged")
    lengths = (int(length) for length in plain[3].split(b",") if length.strip())
    return tuple(lengths), plain[2] == b"True", np.dtype(plain[1].decode())


def rises(array: NDArray[Any]) -> bool:
    """Whether each number is greater than the one before."""
    return bool((array[1:] > array[:-1]).all())


def are_offsets(array: NDArray[np.int64], end: int) -> bool:
    """Whether the numbers, of which there are some, rise from 0 to ``end``."""
    return bool(array[0] == 0 and array[-1] == end and rises(array))


class GrowingArray:
    """Writes a ``.npy`` file whose length is known in the end only; a context manager that finishes it.

    Its header, which numpy pads for this, is written again then.
    """

    def __init__(self, path: Path, dtype: Any, row: tuple[int, ...] = ()) -> None:
        """``row`` is the shape of what the array is a row of."""
        self._dtype, self._row = np.dtype(dtype), row
        self.rows = 0
        self._file: IO[bytes] = path.open("wb")
        self._header()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.close()

    def append(self, values: NDArray[Any]) -> None:
        """Write some more, of the array's type and with rows of its shape."""
        self._file.write(np.ascontiguousarray(values).data)
        self.rows += len(values)

    def finish(self) -> None:
        """Write the length, and close the file."""
        self._file.seek(0)
        self._header()
        self._file.close()

    def close(self) -> None:
        """Close the file, which holds less than its header says."""
        self._file.close()

    def _header(self) -> None:
        description = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._row),
        }
        np.lib.format.write_array_header_1_0(self._file, description)


def refuse_open_files(path: Path, error: Exception) -> None:
    """Raise OpenFilesError where the error says that no more files may be opened."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise OpenFilesError(
            f"{path} cannot be opened, since the process has as many files open as it may: raise the limit (ulimit -n 4096), "
            "or close what it has opened"
        ) from error


def touch(*arrays: NDArray[Any]) -> None:
    """Have small mapped arrays, of 64 MiB together, in memory at once: what a search meets in them lies anywhere.

    Page by page the first search would wait for them twice as long as it takes. Of larger ones only the start is read.
    """
    left = _TOUCHED
    for array in arrays:
        bytes_ = array.reshape(-1).view(np.uint8)[: max(0, left)]
        bytes_[::_PAGE].max(initial=0)
        left -= array.nbytes


def load_meta(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    """A JSON object with the ``wanted`` members, whose numbers are finite and 0 or more. Raises IndexDamagedError."""
    try:
        meta = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise IndexDamagedError(f"{path} is missing: restore it, or build the index again") from None
    except (OSError, ValueError, RecursionError) as error:
        refuse_open_files(path, error)
        raise IndexDamagedError(f"{path} is damaged ({error}): restore it, or build the index again") from error
    if not isinstance(meta, dict):
        raise IndexDamagedError(f"{path} holds no JSON object: restore it, or build the index again")
    for name, kind in wanted.items():
        value: Any = meta.get(name)
        sound = type(value) is kind
        if not sound or (kind is not str and not 0 <= value < float("inf")):
            raise IndexDamagedError(f"{path} gives {name} as {value!r}: restore it, or build the index again")
    return meta
