"""Columns of metadata: the distinct values of a field, and for each row which of them it holds.

A column is built when a segment is written, stored as JSON and little-endian int32, and loaded when a filter first asks
for it. Fields of nested objects have dotted names (``author.name``); an object itself is a column too, so that a filter
that compares it as a whole, or takes it for a text, is answered exactly.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.json_values import JsonType, json_type, plain

_LEAVES = {type(None), bool, int, float, str, list, tuple}
_SPARSE = "sparse"
_key = json.JSONEncoder(sort_keys=True, default=plain).encode  # equal lists and objects give equal text


@dataclass(frozen=True, eq=False)
class Column:
    """The values of one field.

    ``values`` are distinct (by type and value) and JSON-able. ``codes`` is int32: with ``rows`` None it is ``[n]``, the
    place in ``values`` of each row's value, and -1 where a row lacks the field. A field of less than half the rows has
    ``rows`` instead, int32 ``[m]`` ascending: the rows that have it, with ``codes`` ``[m]`` theirs. So the columns of a
    segment take no more than its values do, however many fields there are.
    """

    values: list[Any]
    codes: NDArray[np.int32]
    rows: NDArray[np.int32] | None = None

    @cached_property
    def by_type(self) -> dict[JsonType, tuple[NDArray[np.int64], list[Any]]]:
        """The values by JSON type, each with its places in :attr:`values` (int64)."""
        types = list(map(json_type, self.values))
        found: dict[JsonType, tuple[NDArray[np.int64], list[Any]]] = {}
        for name in dict.fromkeys(types):
            places = [place for place, other in enumerate(types) if other == name]
            members = self.values if len(places) == len(types) else [self.values[place] for place in places]
            found[name] = (np.array(places, np.int64), members)
        return found

    def spread(self, outcome: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
        """Give every row the outcome of its value.

        ``outcome`` is bool ``[len(values)]``; returns bool ``[n]``, False where a row lacks the field.
        """
        if self.rows is None:
            return np.append(outcome, np.False_)[self.codes]  # -1, a missing value, takes the last
        mask = np.zeros(n, np.bool_)
        mask[self.rows] = outcome[self.codes]
        return mask

    def value(self, row: int) -> Any:
        """The value of a row that has the field; raises KeyError for one that lacks it."""
        place = row if self.rows is None else int(np.searchsorted(self.rows, row))
        if self.rows is not None and (place == len(self.rows) or self.rows[place] != row):
            raise KeyError(row)
        code = int(self.codes[place])
        if code < 0:
            raise KeyError(row)
        return self.values[code]

    def dump(self) -> tuple[str, bytes]:
        """The column as it is stored: JSON of the values, and little-endian int32.

        A column with ``rows`` None is a JSON list, and ``codes``; one with rows is ``{"sparse": [...]}``, and ``rows``
        followed by ``codes``.
        """
        codes = self.codes.astype("<i4").tobytes()
        if self.rows is None:
            return _json(self.values), codes
        return _json({_SPARSE: self.values}), self.rows.astype("<i4").tobytes() + codes

    @classmethod
    def load(cls, values: str, codes: bytes, n: int) -> Column:
        """The column that :meth:`dump` wrote, in a segment of ``n`` rows.

        Raises IndexDamagedError unless the values are JSON, the lengths fit, rows ascend in [0, n), and every code
        names a value.
        """
        if not isinstance(values, str) or not isinstance(codes, bytes):
            _damaged(f"it is stored as {type(values).__name__} and {type(codes).__name__}, not as text and bytes")
        try:
            read = json.loads(values, parse_constant=_constant)
        except (ValueError, RecursionError) as error:
            raise IndexDamagedError(_damage(f"its values are no JSON: {error}")) from error
        rows = None
        if isinstance(read, dict) and list(read) == [_SPARSE]:
            read = read[_SPARSE]
            if len(codes) % 8:
                _damaged(f"its rows and codes take {len(codes)} bytes, which is no multiple of 8")
            both = np.frombuffer(codes, "<i4").astype(np.int32, copy=False)
            rows, found = both[: len(both) // 2], both[len(both) // 2 :]
            if len(rows) and (rows[0] < 0 or rows[-1] >= n or np.any(rows[1:] <= rows[:-1])):
                _damaged(f"its rows do not ascend within {n} rows")
        else:
            if len(codes) != 4 * n:
                _damaged(f"its codes take {len(codes)} bytes, and {n} rows need {4 * n}")
            found = np.frombuffer(codes, "<i4").astype(np.int32, copy=False)
        if not isinstance(read, list):
            _damaged("its values are no JSON list")
        least = -1 if rows is None else 0
        if len(found) and (found.min() < least or found.max() >= len(read)):
            _damaged(f"its codes run from {found.min()} to {found.max()}, and there are {len(read)} values")
        return cls(read, found, rows)


class _Builder:
    """A column that grows row by row."""

    __slots__ = ("codes", "numbers", "others", "rows", "texts", "values")

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.texts: dict[str, int] = {}
        self.numbers: dict[int | float, int] = {}
        self.others: dict[object, int] = {}
        self.rows = array("i")
        self.codes = array("i")

    def column(self, n: int) -> Column:
        rows, codes = np.array(self.rows, np.int32), np.array(self.codes, np.int32)
        if 2 * len(rows) < n:
            return Column(self.values, codes, rows)
        dense = np.full(n, -1, np.int32)
        dense[rows] = codes
        return Column(self.values, dense)


def build_columns(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns of all fields of some documents, ``metadata[i]`` being that of row ``i``.

    Values are kept in the order in which rows bring them, so equal documents give equal columns.
    """
    builders: dict[str, _Builder] = {}
    known: dict[Any, int]
    for row, fields in enumerate(metadata):
        flat = fields if _LEAVES.issuperset(map(type, fields.values())) else flatten(fields)
        for field, value in flat.items():
            builder = builders.get(field)
            if builder is None:
                builder = builders[field] = _Builder()
            kind = type(value)
            key: Any = value
            # One dictionary for all would take True for 1: they hash alike.
            if kind is str:
                known = builder.texts
            elif kind is int or kind is float:
                known = builder.numbers
            else:
                known = builder.others
                if kind is not bool and value is not None:
                    key = _key(value)
            code = known.get(key)
            if code is None:
                code = known[key] = len(builder.values)
                builder.values.append(value)
            builder.rows.append(row)
            builder.codes.append(code)
    return {field: builder.column(len(metadata)) for field, builder in builders.items()}


def flatten(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a document's metadata by the name under which a filter finds it.

    Where keys that hold dots give two values one name, that with the longer key on the outer level has it: the literal
    key ``"a.b"`` wins over ``b`` inside ``a``.
    """
    found: dict[str, Any] = {}
    # Depth first and longest key first, so that of several paths with one name the one that wins comes first.
    waiting = _ascending(metadata)
    while waiting:
        name, value = waiting.pop()
        found.setdefault(name, value)
        if type(value) not in _LEAVES and isinstance(value, Mapping):
            waiting += [(f"{name}.{key}", inner) for key, inner in _ascending(value)]
    return found


def _ascending(value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The items of an object, longest key last; as they come where no key holds a dot and so no two names can meet."""
    if any("." in key for key in value):
        return sorted(value.items(), key=lambda item: len(item[0]))
    return list(value.items())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=plain)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _damage(what: str) -> str:
    return (
        f"the column of a metadata field is damaged ({what}): run `retrievers index verify`, and restore the index or "
        "build it again"
    )


def _damaged(what: str) -> NoReturn:
    raise IndexDamagedError(_damage(what))
