"""The types of JSON values, and equality that keeps them apart: ``1``, ``True`` and ``"1"`` are three values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from retrievers.errors import DocumentError

JsonType = Literal["null", "boolean", "number", "text", "list", "object"]

_TYPES: dict[type, JsonType] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    tuple: "list",
    dict: "object",
}
_SHOWN = 60  # characters of a value that stand in a message


def json_type(value: object) -> JsonType:
    """The JSON type of a value: tuples count as lists, and mappings as objects.

    Raises DocumentError for what JSON cannot hold.
    """
    exact = _TYPES.get(type(value))
    if exact is not None:
        return exact
    for base, name in _TYPES.items():
        if isinstance(value, base):
            return name
    if isinstance(value, Mapping):
        return "object"
    raise DocumentError(
        f"metadata holds a {type(value).__name__}: use strings, numbers, booleans, null, lists and objects"
    )


def same(left: object, right: object) -> bool:
    """Whether two values are equal and of one type, at every depth; integers and floats compare exactly."""
    if json_type(left) != json_type(right):
        return False
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(inner, right[key]) for key, inner in left.items())
    return left == right


def shown(value: object) -> str:
    """The type and the beginning of a value, for a message: ``text "1999"``."""
    name = json_type(value)
    if value is None:
        return "null"
    try:
        text = json.dumps(value, ensure_ascii=False, default=plain)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints; a value nested too deep
        return f"{name} that is too large to print"
    return f"{name} {text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


def plain(value: object) -> Any:
    """What ``json`` needs for mappings other than ``dict`` (its argument ``default``)."""
    if isinstance(value, Mapping):
        return dict(value)
    raise DocumentError(
        f"metadata holds a {type(value).__name__}: use strings, numbers, booleans, null, lists and objects"
    )
