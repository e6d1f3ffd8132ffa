"""The kernels over stored documents without a compiler: the same answers, and the same errors."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntFlag
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Part(IntFlag):
    """What can be read of a document, in the order in which it comes."""

    ID = 1
    TEXT = 2
    TITLE = 4
    METADATA = 8
    ORDINAL = 16
    PLACE = 32


HEAD = struct.Struct("<q4I")
"""The head of a document: its ordinal, and the bytes of its id, title, metadata and place, which follow; then comes the text."""

_STORED = (Part.ID, Part.TITLE, Part.METADATA, Part.PLACE, Part.TEXT)


def documents_read(
    records: NDArray[np.uint8], starts: NDArray[np.int64], rows: list[int], parts: int
) -> list[tuple[Any, ...]]:
    """Some parts of some documents: str each, but for the ordinal.

    ``records`` are the bytes of all, uint8 ``[bytes]``; ``starts`` where each begins and the last ends, int64 ``[n + 1]``;
    ``parts`` a sum of :class:`Part`. Raises ValueError, which names the row, where it is none or what is there is damaged.
    """
    for row in rows:
        if not 0 <= row < len(starts) - 1:
            raise ValueError(f"lacks row {row}")
    read: list[tuple[Any, ...]] = []
    for row in rows:
        ordinal, stored = _record(records, starts, row)
        found: dict[int, Any] = {Part.ORDINAL: ordinal}
        try:
            found |= {part: value.decode() for part, value in stored.items() if part & parts}
        except UnicodeDecodeError:
            raise _no_document(row) from None
        read.append(tuple(found[part] for part in Part if part & parts))
    return read


def documents_made(
    records: NDArray[np.uint8],
    starts: NDArray[np.int64],
    rows: list[int],
    kind: type[Any],
    parse: Callable[[int, str], Any],
) -> dict[int, Any]:
    """Some documents as objects of ``kind``, by row: ``id``, ``text``, ``title`` and ``metadata`` are set past its own methods.

    The metadata are what ``parse`` makes of the row and the stored text, or an empty dict where nothing is stored. Raises
    what :func:`documents_read` and ``parse`` raise.
    """
    made: dict[int, Any] = {}
    read = documents_read(records, starts, rows, Part.ID | Part.TEXT | Part.TITLE | Part.METADATA)
    for row, (id_, text, title, metadata) in zip(rows, read, strict=True):
        made[row] = object.__new__(kind)
        values = {"id": id_, "text": text, "title": title, "metadata": parse(row, metadata) if metadata else {}}
        for name, value in values.items():
            object.__setattr__(made[row], name, value)
    return made


def documents_find(records: NDArray[np.uint8], starts: NDArray[np.int64], ids: Sequence[str]) -> list[int]:
    """The row of each id, -1 for one that is not here; the documents stand in the order of their ids' UTF-8.

    Raises ValueError, which names the row, where what is there is damaged.
    """
    found: list[int] = []
    for id_ in ids:
        try:
            wanted = id_.encode()
        except UnicodeEncodeError:  # no document has such an id
            found.append(-1)
            continue
        low, high = 0, len(starts) - 1
        while low < high:
            middle = (low + high) // 2
            here = _record(records, starts, middle)[1][Part.ID]
            if here == wanted:
                found.append(middle)
                break
            if here < wanted:
                low = middle + 1
            else:
                high = middle
        else:
            found.append(-1)
    return found


def _record(records: NDArray[np.uint8], starts: NDArray[np.int64], row: int) -> tuple[int, dict[Part, bytes]]:
    """The ordinal and the other parts of a document."""
    start, end = int(starts[row]), int(starts[row + 1])
    if not 0 <= start <= end - HEAD.size <= len(records) - HEAD.size:
        raise _no_document(row)
    ordinal, *lengths = HEAD.unpack(records[start : start + HEAD.size].tobytes())
    start += HEAD.size
    if sum(lengths) > end - start or lengths[0] == 0:  # no id is empty, and a page of zeros is no document
        raise _no_document(row)
    parts: dict[Part, bytes] = {}
    for part, length in zip(_STORED, [*lengths, end - start - sum(lengths)], strict=True):
        parts[part] = records[start : start + length].tobytes()
        start += length
    return ordinal, parts


def _no_document(row: int) -> ValueError:
    return ValueError(f"holds no document in row {row}")
