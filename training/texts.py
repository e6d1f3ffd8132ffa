"""Texts with ids on disk, memory-mapped: rows in, texts out, and ids back to rows, for millions of them."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError
from retrievers.indexes.arrays import load_array

_Raw = bytes  # within the class the name is that of a property
_FLUSHED = 1 << 20  # bytes that are held before they are written
_OVERHEAD = 128  # bytes that a pair takes beside its id and text while it is held
_BLOCK = 1 << 16  # ids that are checked for duplicates at a time


class Texts:
    """Texts and their ids, in files below ``folder``, each stored once.

    ``texts.bin`` and ``ids.bin`` hold UTF-8 end to end, the offsets where each begins; ``hashes.npy`` and ``order.npy``
    find the row of an id: sorted 64-bit hashes and their rows. Opening maps the files and reads none of them whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, NDArray[np.int64]] = {}
        self._bytes: dict[str, mmap.mmap | bytes] = {}
        for name in ("texts", "ids"):
            self._offsets[name] = load_array(folder / f"{name}.npy", np.int64, (None,))
            self._bytes[name] = _mapped(folder / f"{name}.bin")
            offsets = self._offsets[name]
            if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(self._bytes[name]):
                raise TrainingDataError(f"{folder / f'{name}.bin'} was cut or exchanged: build the training set again")
        count = len(self._offsets["ids"]) - 1
        if len(self._offsets["texts"]) != count + 1:
            raise TrainingDataError(f"{folder} holds {count} ids and other texts: build the training set again")
        self._hashes = load_array(folder / "hashes.npy", np.uint64, (count,))
        self._order = load_array(folder / "order.npy", np.int64, (count,))

    @classmethod
    def write(cls, folder: Path, entries: Iterable[tuple[str, str]], what: str) -> Self:
        """Store pairs of id and text, which are read once. Raises TrainingDataError where an id comes twice."""
        folder.mkdir()
        ends: dict[str, list[NDArray[np.int64]]] = {"ids": [np.zeros(1, np.int64)], "texts": [np.zeros(1, np.int64)]}
        hashes: list[NDArray[np.uint64]] = []
        with (folder / "ids.bin").open("wb") as ids, (folder / "texts.bin").open("wb") as texts:
            held: list[tuple[bytes, bytes]] = []
            size = 0

            def flush() -> None:
                for file, name, part in ((ids, "ids", 0), (texts, "texts", 1)):
                    file.write(b"".join(pair[part] for pair in held))
                    lengths = np.array([len(pair[part]) for pair in held], np.int64)
                    ends[name].append(ends[name][-1][-1] + np.cumsum(lengths))
                hashes.append(np.array([_hash(pair[0]) for pair in held], np.uint64))
                held.clear()

            for id, text in entries:
                if not isinstance(id, str) or not id or not isinstance(text, str):
                    raise TrainingDataError(
                        f"a {what} is a pair of an id and a text, and {id!r:.80}: {text!r:.80} came"
                    )
                held.append((_utf8(id, what), _utf8(text, what)))
                size += len(held[-1][0]) + len(held[-1][1]) + _OVERHEAD
                if size > _FLUSHED:
                    flush()
                    size = 0
            if held:
                flush()
        for name in ("ids", "texts"):
            np.save(folder / f"{name}.npy", np.concatenate(ends[name]))
        all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        order = np.argsort(all_hashes, kind="stable")
        np.save(folder / "hashes.npy", all_hashes[order])
        np.save(folder / "order.npy", order.astype(np.int64))
        found = cls(folder)
        found._refuse_duplicates(what)
        return found

    def __len__(self) -> int:
        return len(self._order)

    def text(self, row: int) -> str:
        """The text of a row."""
        return self._read("texts", row)

    def id(self, row: int) -> str:
        """The id of a row."""
        return self._read("ids", row)

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of rows, in their order."""
        return [self._read("texts", int(row)) for row in rows]

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of rows, in their order."""
        return [self._read("ids", int(row)) for row in rows]

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id, int64 ``[n]``; -1 where there is none."""
        encoded = [id.encode("utf-8", "surrogatepass") for id in ids]
        wanted = np.array([_hash(id) for id in encoded], np.uint64)
        starts = np.searchsorted(self._hashes, wanted)
        found = np.full(len(encoded), -1, np.int64)
        for number, (id, start) in enumerate(zip(encoded, starts.tolist(), strict=True)):
            at = start
            while at < len(self._hashes) and self._hashes[at] == wanted[number]:
                row = int(self._order[at])
                if not 0 <= row < len(self):
                    raise self._damaged("order.npy")
                if self._raw("ids", row) == id:
                    found[number] = row
                    break
                at += 1
        return found

    @property
    def bytes(self) -> int:
        """The size of all texts in UTF-8."""
        return len(self._bytes["texts"])

    def _read(self, name: str, row: int) -> str:
        try:
            return self._raw(name, row).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"{name}.bin") from error

    def _raw(self, name: str, row: int) -> _Raw:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        first, last = self._offsets[name][row : row + 2].tolist()
        if not 0 <= first <= last <= len(self._bytes[name]):
            raise self._damaged(f"{name}.npy")
        return bytes(self._bytes[name][first:last])

    def _damaged(self, name: str) -> TrainingDataError:
        return TrainingDataError(f"{self._folder / name} is damaged: build the training set again")

    def _refuse_duplicates(self, what: str) -> None:
        for first in range(0, len(self._hashes), _BLOCK):
            part = self._hashes[first : first + _BLOCK + 1]
            for at in (first + np.flatnonzero(part[1:] == part[:-1])).tolist():
                # Equal hashes stand together in the order of rows, so that equal ids do nearly always: look at all pairs.
                before = at
                while before >= 0 and self._hashes[before] == self._hashes[at + 1]:
                    one, other = int(self._order[before]), int(self._order[at + 1])
                    if self._raw("ids", one) == self._raw("ids", other):
                        raise TrainingDataError(
                            f"the {what} id {self.id(one)!r:.80} came twice, as number {one + 1} and {other + 1}: ids are "
                            "unique within a training set"
                        )
                    before -= 1


def _hash(id: bytes) -> int:
    return int.from_bytes(blake2b(id, digest_size=8).digest(), "little")


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TrainingDataError(
            f"a {what} holds half of a surrogate pair, which is no character: {text!r:.80}"
        ) from error


def _mapped(path: Path) -> mmap.mmap | bytes:
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise TrainingDataError(f"{path} is missing: build the training set again") from None
