"""The grammar of filters, which is Haystack's: comparisons, and AND, OR and NOT over conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retrievers.errors import FilterError, FilterTypeError
from retrievers.json_values import JsonType, json_type

COMPARISONS = ("==", "!=", ">", ">=", "<", "<=", "in", "not in")
ORDERINGS = (">", ">=", "<", "<=")
LOGIC = ("AND", "OR", "NOT")
MAX_DEPTH = 100
"""How deep conditions, and lists and objects inside a value, may be nested."""

_COMPARISON_KEYS = ("field", "operator", "value")
_LOGIC_KEYS = ("operator", "conditions")
_EXAMPLE = '{"field": "year", "operator": ">=", "value": 2020}'
_META = "meta."
_MEANT = {
    "=": "==", "===": "==", "eq": "==", "is": "==", "<>": "!=", "!==": "!=", "ne": "!=", "neq": "!=", "is not": "!=",
    "=>": ">=", "=<": "<=", "gt": ">", "gte": ">=", "ge": ">=", "lt": "<", "lte": "<=", "le": "<=", "nin": "not in",
    "not_in": "not in", "notin": "not in", "&": "AND", "&&": "AND", "|": "OR", "||": "OR", "!": "NOT", "nor": "NOT",
}  # fmt: skip


class _Condition:
    """Conditions are equal, and hash alike, when they are written alike: ``1`` and ``True`` are told apart."""

    def to_dict(self) -> dict[str, Any]:
        raise NotImplementedError

    @cached_property
    def canonical(self) -> str:
        """The condition as JSON in one fixed form, which parses back to an equal one."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def __str__(self) -> str:
        return self.canonical

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Condition) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)


@dataclass(frozen=True, eq=False)
class Comparison(_Condition):
    """One field against one value (for ``in`` and ``not in``: a list of values); made by :func:`parse_filter`.

    ``field`` is without the leading ``meta.``.
    """

    field: str
    operator: str
    value: Any

    def fields(self) -> set[str]:
        """The field that is compared."""
        return {self.field}

    def to_dict(self) -> dict[str, Any]:
        """The comparison as :func:`parse_filter` reads it."""
        field = _META + self.field if self.field.startswith(_META) else self.field
        return {"field": field, "operator": self.operator, "value": self.value}

    @cached_property
    def operands(self) -> dict[JsonType, list[Any]]:
        """The value, or for ``in`` and ``not in`` each of them, by JSON type."""
        found: dict[JsonType, list[Any]] = {}
        for operand in self.value if self.operator in ("in", "not in") else [self.value]:
            found.setdefault(json_type(operand), []).append(operand)
        return found

    def admits(self, name: JsonType) -> bool:
        """Whether a document's value of this type may be compared at all.

        Null may, and any value may be compared with null and with an empty list of values.
        """
        return name == "null" or name in self.operands or self.operands.keys() <= {"null"}


@dataclass(frozen=True, eq=False)
class Logic(_Condition):
    """``AND``, ``OR``, or ``NOT`` (the negation of AND) of conditions; made by :func:`parse_filter`."""

    operator: str
    conditions: tuple[Filter, ...]

    def fields(self) -> set[str]:
        """All fields that are compared."""
        return set().union(*(condition.fields() for condition in self.conditions))

    def to_dict(self) -> dict[str, Any]:
        """The condition as :func:`parse_filter` reads it."""
        return {"operator": self.operator, "conditions": [condition.to_dict() for condition in self.conditions]}


Filter = Comparison | Logic


def parse_filter(value: Mapping[str, Any]) -> Filter:
    """Read a filter.

    A comparison is ``{"field": "year", "operator": ">=", "value": 2020}`` with one of ``== != > >= < <= in "not in"``;
    a logical condition is ``{"operator": "AND", "conditions": [...]}`` with ``AND``, ``OR`` or ``NOT``, which negates
    the AND of its conditions. A field is a metadata key or a dotted path into nested objects; a leading ``meta.`` is
    dropped. What is read is a copy: later changes of ``value`` do not reach it.

    Raises FilterError, which says where the filter departs from the grammar (``conditions[1].operator``) and what is
    accepted there, and FilterTypeError for an ordering of values that have none (booleans, lists, objects).
    """
    return _parse(value, "", 1)


def _parse(value: object, path: str, depth: int) -> Filter:
    where = path.removesuffix(".") or "the filter"
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter nests conditions deeper than {MAX_DEPTH}: write it with fewer levels")
    if not isinstance(value, Mapping):
        raise FilterError(f"{where} must be an object such as {_EXAMPLE}; got {type(value).__name__} {_printed(value)}")
    if not value:
        raise FilterError(f"{where} is empty: write a condition such as {_EXAMPLE}, or give no filter at all")
    operator = value.get("operator")
    logical = "conditions" in value or (isinstance(operator, str) and operator in LOGIC)
    accepted = _LOGIC_KEYS if logical else _COMPARISON_KEYS
    for key in value:
        if key in accepted:
            continue
        keys = f"a comparison has the keys {_listed(_COMPARISON_KEYS)}, a logical condition {_listed(_LOGIC_KEYS)}"
        if key in _COMPARISON_KEYS:
            raise FilterError(f"{where} has the key {key!r} beside a logical operator or 'conditions': {keys}")
        raise FilterError(f"{where} has the unknown key {_printed(key)}{_closest(key, accepted)}; {keys}")
    for key in accepted:
        if key not in value:
            kind = "a logical condition" if logical else "a comparison"
            raise FilterError(f"{where} lacks the key {key!r}: {kind} has the keys {_listed(accepted)}")
    _check_operator(operator, LOGIC if logical else COMPARISONS, f"{path}operator")
    if not logical:
        field = _field(value["field"], f"{path}field")
        return Comparison(field, str(operator), _operand(str(operator), value["value"], f"{path}value"))
    conditions = value["conditions"]
    if not isinstance(conditions, list | tuple):
        raise FilterError(f"{path}conditions must be a list of conditions; got {type(conditions).__name__}")
    if not conditions:
        raise FilterError(f"{path}conditions is empty: list at least one condition, or leave the filter out")
    return Logic(
        str(operator),
        tuple(_parse(inner, f"{path}conditions[{number}].", depth + 1) for number, inner in enumerate(conditions)),
    )


def _check_operator(operator: object, accepted: tuple[str, ...], path: str) -> None:
    if isinstance(operator, str) and operator in accepted:
        return
    raise FilterError(
        f"{path} is {_printed(operator)}{_closest(operator, accepted)}; accepted here are {_listed(accepted)}"
    )


def _closest(found: object, accepted: tuple[str, ...]) -> str:
    if not isinstance(found, str):
        return ""
    from difflib import get_close_matches

    word = found.strip().lower().removeprefix("$")
    folded = {name.lower(): name for name in accepted}
    meant = folded.get(word) or _MEANT.get(word)
    if meant is None:
        meant = next((folded[near] for near in get_close_matches(word, folded, n=1, cutoff=0.7)), None)
    return f", did you mean {meant!r}?" if meant in accepted else ""


def _field(field: object, path: str) -> str:
    if not isinstance(field, str):
        raise FilterError(f"{path} must be the name of a metadata field; got {type(field).__name__} {_printed(field)}")
    _check_text(field, path)
    name = field.removeprefix(_META)
    if not name:
        raise FilterError(f"{path} is {field!r}: name a metadata field, such as 'year' or 'author.name'")
    return name


def _operand(operator: str, value: object, path: str) -> Any:
    operand = _plain(value, path, 1)
    if operator in ("in", "not in"):
        if not isinstance(operand, list):
            raise FilterError(
                f"{path} must be a list of values with the operator {operator!r}; got {json_type(operand)}"
            )
    elif operator in ORDERINGS:
        if operand is None:
            raise FilterError(f"{path} is null, which has no order: use '==' or '!=' with null, or another value")
        if json_type(operand) not in ("text", "number"):
            raise FilterTypeError(
                f"{path} is of type {json_type(operand)}, which has no order: {operator!r} takes text or a number"
            )
    return operand


def _plain(value: object, path: str, depth: int) -> Any:
    """A copy of a filter's value in plain JSON types."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_text(value, path)
        return str.__str__(value)
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError as error:  # Python's own limit of digits, which JSON meets as well
            raise FilterError(
                f"{path} is an integer of {value.bit_length()} bits, which JSON text cannot hold"
            ) from error
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FilterError(f"{path} is {value}, which JSON cannot hold and no document has: use a finite number")
        return float(value)
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter holds a value nested deeper than {MAX_DEPTH}: no such value is compared")
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{path}[{number}]", depth + 1) for number, inner in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise FilterError(f"{path} has the key {_printed(key)}: keys must be strings")
            _check_text(key, f"{path} key")
        return {str.__str__(key): _plain(inner, f"{path}.{key}", depth + 1) for key, inner in value.items()}
    raise FilterError(
        f"{path} is a {type(value).__name__}: use text (ISO form for dates), numbers, booleans, null, lists or objects"
    )


def _check_text(text: str, path: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FilterError(f"{path} holds a lone surrogate at character {error.start}, which is no text") from error


def _printed(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints; a value nested too deep
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}…"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
