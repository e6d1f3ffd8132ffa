"""The grammar of filters: what is refused, where the message points, and filters as values."""

from __future__ import annotations

import enum
import json
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from retrievers.conditions import Comparison, Logic, parse_filter
from retrievers.errors import FilterError, FilterTypeError
from retrievers.filters import matches


def comparison(field: str, operator: str, value: object) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


def logic(operator: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"operator": operator, "conditions": list(conditions)}


GRAMMAR: list[tuple[object, str]] = [
    ({}, "the filter is empty"),
    ([], "the filter must be an object such as .* got list"),
    ("year >= 2020", "the filter must be an object"),
    ([10**5000], "the filter must be an object .* got list a list"),  # more digits than Python prints
    ({"year": 2020}, "unknown key 'year'; a comparison has the keys 'field', 'operator', 'value'"),
    (comparison("a", "=", 1), r"^operator is '=', did you mean '=='\?; accepted here are '==', '!='"),
    (comparison("a", "$gte", 1), r"operator is '\$gte', did you mean '>='"),
    (comparison("a", "IN", [1]), "did you mean 'in'"),
    (comparison("a", "not_in", [1]), "did you mean 'not in'"),
    (comparison("a", "resembles", 1), "^operator is 'resembles'; accepted here are '=='"),
    (comparison("a", 3, 1), "^operator is 3; accepted"),  # type: ignore[arg-type]
    (comparison("a", ["=="], 1), r"^operator is \['=='\]; accepted"),  # type: ignore[arg-type]
    (
        logic("and", comparison("a", "==", 1)),
        r"^operator is 'and', did you mean 'AND'\?; accepted here are 'AND', 'OR'",
    ),
    (logic("==", comparison("a", "==", 1)), "^operator is '=='; accepted here are 'AND', 'OR', 'NOT'"),
    ({"field": "a", "operator": "AND", "value": 1}, "key 'field' beside a logical operator"),
    ({"field": "a", "operator": "==", "conditions": []}, "key 'field' beside a logical operator or 'conditions'"),
    ({"field": "a", "operator": "=="}, "the filter lacks the key 'value': a comparison has"),
    ({"field": "a", "value": 1}, "lacks the key 'operator'"),
    ({"operator": "==", "value": 1}, "lacks the key 'field'"),
    ({"operator": "AND"}, "lacks the key 'conditions': a logical condition has"),
    ({"operator": "AND", "condition": []}, "unknown key 'condition', did you mean 'conditions'"),
    ({"feild": "a", "operator": "==", "value": 1}, "unknown key 'feild', did you mean 'field'"),
    ({"field": "a", "operator": "==", "value": 1, 5: 1}, "unknown key 5;"),
    (logic("AND"), "^conditions is empty"),
    ({"operator": "AND", "conditions": comparison("a", "==", 1)}, "^conditions must be a list of conditions; got dict"),
    (logic("AND", comparison("a", "==", 1), comparison("a", "=", 1)), r"^conditions\[1\]\.operator is '='"),
    (logic("OR", logic("NOT", comparison("", "==", 1))), r"^conditions\[0\]\.conditions\[0\]\.field is ''"),
    (logic("OR", {"operator": "AND", "conditions": [None]}), r"^conditions\[0\]\.conditions\[0\] must be an object"),
    (logic("OR", logic("NOT")), r"^conditions\[0\]\.conditions is empty"),
    (comparison("meta.", "==", 1), "field is 'meta.'"),
    (comparison(7, "==", 1), "^field must be the name of a metadata field; got int 7"),  # type: ignore[arg-type]
    (comparison("\ud800", "==", 1), "^field holds a lone surrogate at character 0"),
    (comparison("a", "==", "x\udfff"), "^value holds a lone surrogate at character 1"),
    (comparison("a", "==", float("nan")), "^value is nan"),
    (comparison("a", "<", float("inf")), "^value is inf"),
    (comparison("a", "in", [1, [float("nan")]]), r"^value\[1\]\[0\] is nan"),
    (comparison("a", "==", {"b": [{1, 2}]}), r"^value\.b\[0\] is a set"),
    (comparison("a", "==", {1: 2}), "^value has the key 1: keys must be strings"),
    (comparison("a", "==", np.int64(3)), "^value is a int64"),
    (comparison("a", "==", 10**5000), "^value is an integer of .* bits"),
    (comparison("a", "in", "abc"), "^value must be a list of values with the operator 'in'; got text"),
    (comparison("a", "not in", None), "^value must be a list of values with the operator 'not in'; got null"),
    (comparison("a", "<", None), "^value is null, which has no order"),
]


@pytest.mark.parametrize(("filter", "message"), GRAMMAR)
def test_bad_grammar(filter: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message) as raised:
        parse_filter(filter)
    assert not isinstance(raised.value, FilterTypeError)


@pytest.mark.parametrize("operand", [True, False, [], [1], {}, {"a": 1}])
@pytest.mark.parametrize("operator", [">", ">=", "<", "<="])
def test_what_has_no_order(operator: str, operand: object) -> None:
    with pytest.raises(FilterTypeError, match=r"^conditions\[0\]\.value is of type .* which has no order"):
        parse_filter(logic("AND", comparison("a", operator, operand)))


def test_depth_is_bounded() -> None:
    filter, value = comparison("a", "==", 1), 1
    for _ in range(99):
        filter = logic("NOT", filter)
    condition = parse_filter(filter)
    assert [matches(condition, {"a": n}) for n in (1, 2)] == [False, True]
    with pytest.raises(FilterError, match="deeper than 100"):
        parse_filter(logic("NOT", filter))
    cycle = logic("AND", filter)
    cycle["conditions"].append(cycle)
    with pytest.raises(FilterError, match="deeper than 100"):
        parse_filter(cycle)
    for _ in range(10_000):
        value = [value]  # type: ignore[assignment]
    with pytest.raises(FilterError, match="value nested deeper than 100"):
        parse_filter(comparison("a", "==", value))


def test_filters_are_values() -> None:
    class Color(str, enum.Enum):  # noqa: UP042 - its str() is not its value
        RED = "red"

    given_value = ["x", (1, 2.5), MappingProxyType({"k": None})]
    filter = logic("NOT", comparison("meta.meta.a", "in", given_value), comparison("meta.b.c", "==", True))
    condition = parse_filter(filter)
    given_value.append("later")
    assert condition.fields() == {"meta.a", "b.c"}
    assert parse_filter(json.loads(str(condition))) == condition
    assert hash(parse_filter(json.loads(str(condition)))) == hash(condition)
    assert isinstance(condition, Logic)
    first = condition.conditions[0]
    assert isinstance(first, Comparison)
    assert first.value == ["x", [1, 2.5], {"k": None}]
    assert parse_filter(comparison("a", "==", 1)) != parse_filter(comparison("a", "==", True))
    assert parse_filter(comparison("a", "==", 1)) != parse_filter(comparison("a", "==", "1"))
    red = parse_filter(comparison("a", "==", Color.RED))
    assert red == parse_filter(comparison("a", "==", "red"))
    assert parse_filter(comparison("a", "==", np.float64(0.5))) == parse_filter(comparison("a", "==", 0.5))
    with pytest.raises(AttributeError):
        red.field = "b"  # type: ignore[misc, union-attr]
