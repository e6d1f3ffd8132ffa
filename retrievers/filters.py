"""Metadata filters, evaluated exactly.

The grammar is Haystack's (see :func:`parse_filter`), the meaning is strict:

- A document that lacks the field matches no comparison, ``!=`` and ``not in`` neither; NOT is plain negation.
- Null is a value for ``==``, ``!=``, ``in`` and ``not in``; a document's null is in no order with anything.
- Types are text, number, boolean, list, object and null. Integers and floats compare exactly. Text is ordered by code
  points, so ISO dates order as dates do. Lists and objects are compared as a whole, and have no order.
- A document whose value is neither null nor of the filter's type is an error, never a silent mismatch. It is raised
  whenever a live document of the collection has such a value, whatever the other conditions say.
- ``author.name`` is the field ``name`` of the object ``author``; a literal key ``"author.name"`` wins over it.
"""

from __future__ import annotations

import operator as operators
from collections.abc import Callable, Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.columns import Column as Column
from retrievers.columns import build_columns as build_columns
from retrievers.conditions import ORDERINGS
from retrievers.conditions import Comparison as Comparison
from retrievers.conditions import Filter as Filter
from retrievers.conditions import Logic as Logic
from retrievers.conditions import parse_filter as parse_filter
from retrievers.errors import FilterTypeError
from retrievers.json_values import JsonType, json_type, same, shown

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">": operators.gt,
    ">=": operators.ge,
    "<": operators.lt,
    "<=": operators.le,
}
_MISSING = object()


def evaluate(
    filter: Filter,
    columns: Callable[[str], Column | None],
    n: int,
    *,
    live: NDArray[np.bool_] | None = None,
    name_row: Callable[[int], str],
) -> NDArray[np.bool_]:
    """The rows of a segment that a filter permits, bool ``[n]``.

    ``columns`` gives the column of a field, None where no row has it. Rows that are not in ``live`` (bool ``[n]``; None
    means all) come out False, and their types are not looked at. ``name_row`` gives the document id of a row, for
    messages. Each comparison is made once for each distinct value.

    Raises FilterTypeError where a live row's value is neither null nor of the type it is compared with: of the filter's
    comparisons in the order in which they are written the first, of its rows the first.
    """
    mask = _evaluate(filter, columns, n, live, name_row)
    return mask if live is None else mask & live


def _evaluate(
    condition: Filter,
    columns: Callable[[str], Column | None],
    n: int,
    live: NDArray[np.bool_] | None,
    name_row: Callable[[int], str],
) -> NDArray[np.bool_]:
    if isinstance(condition, Comparison):
        column = columns(condition.field)
        return np.zeros(n, np.bool_) if column is None else _compare(condition, column, n, live, name_row)
    # No branch is cut short: whether a type error is raised must not depend on what the other conditions give.
    mask = _evaluate(condition.conditions[0], columns, n, live, name_row)
    for inner in condition.conditions[1:]:
        outcome = _evaluate(inner, columns, n, live, name_row)
        mask = mask | outcome if condition.operator == "OR" else mask & outcome
    return ~mask if condition.operator == "NOT" else mask


def _compare(
    comparison: Comparison,
    column: Column,
    n: int,
    live: NDArray[np.bool_] | None,
    name_row: Callable[[int], str],
) -> NDArray[np.bool_]:
    outcome = np.zeros(len(column.values), np.bool_)
    mismatched = np.zeros(len(column.values), np.bool_)
    for name, (places, members) in column.by_type.items():
        if comparison.admits(name):
            outcome[places] = _outcomes(comparison, name, members)
        else:
            mismatched[places] = True
    if mismatched.any():
        wrong = column.spread(mismatched, n)
        if live is not None:
            wrong &= live
        if wrong.any():
            row = int(wrong.argmax())
            raise _mismatch(comparison, column.value(row), f"document {name_row(row)!r}")
    return column.spread(outcome, n)


def _outcomes(comparison: Comparison, name: JsonType, members: list[Any]) -> NDArray[np.bool_]:
    """The outcome of a comparison for each of some values of one type, which it admits."""
    operands = comparison.operands.get(name, [])
    if comparison.operator in ORDERINGS:
        if name == "null":
            return np.zeros(len(members), np.bool_)
        return _each(map(_ORDER[comparison.operator], members, repeat(comparison.value)), len(members))
    if name in ("list", "object"):
        found = _each((any(same(member, operand) for operand in operands) for member in members), len(members))
    elif len(operands) == 1:
        found = _each(map(operators.eq, members, operands * len(members)), len(members))
    else:
        found = _each(map(frozenset(operands).__contains__, members), len(members))
    return ~found if comparison.operator in ("!=", "not in") else found


def _each(outcomes: Iterable[bool], count: int) -> NDArray[np.bool_]:
    return np.fromiter(outcomes, np.bool_, count)


def matches(filter: Filter, metadata: Mapping[str, Any], *, name: str = "the document") -> bool:
    """Whether one document's metadata matches a filter, with ``name`` for it in messages.

    Raises FilterTypeError as :func:`evaluate` does for a collection of this document alone.
    """
    if isinstance(filter, Comparison):
        return _matches(filter, metadata, name)
    outcomes = [matches(condition, metadata, name=name) for condition in filter.conditions]
    if filter.operator == "OR":
        return any(outcomes)
    return all(outcomes) == (filter.operator == "AND")


def _matches(comparison: Comparison, metadata: Mapping[str, Any], name: str) -> bool:
    value, operator, operand = _find(metadata, comparison.field), comparison.operator, comparison.value
    if value is _MISSING:
        return False
    if operator in ("in", "not in"):
        types = {json_type(one) for one in operand if one is not None}
        if value is not None and types and json_type(value) not in types:
            raise _mismatch(comparison, value, name)
        return any(same(value, one) for one in operand) == (operator == "in")
    if value is not None and operand is not None and json_type(value) != json_type(operand):
        raise _mismatch(comparison, value, name)
    if operator == "==":
        return same(value, operand)
    if operator == "!=":
        return not same(value, operand)
    return value is not None and _ORDER[operator](value, operand)


def _find(metadata: Mapping[str, Any], path: str) -> Any:
    if path in metadata:
        return metadata[path]
    dot = path.rfind(".")
    while dot >= 0:
        inner = metadata.get(path[:dot])
        if isinstance(inner, Mapping):
            value = _find(inner, path[dot + 1 :])
            if value is not _MISSING:
                return value
        dot = path.rfind(".", 0, dot)
    return _MISSING


def _mismatch(comparison: Comparison, value: object, name: str) -> FilterTypeError:
    found = json_type(value)
    wanted = " or ".join(sorted(comparison.operands.keys() - {"null"}))
    operand = comparison.value
    given = shown(operand) if comparison.operator not in ("in", "not in") else f"values of type {wanted}"
    if found in ("list", "object"):
        mend = f"a value of type {found} is compared as a whole, with '==', '!=', 'in' and 'not in'"
    else:
        mend = f"write the filter's value as {found}"
    return FilterTypeError(
        f"field {comparison.field!r} of {name} holds {shown(value)}, and the filter compares it by "
        f"{comparison.operator!r} with {given}: {mend}, or store the field as {wanted} in every document"
    )
