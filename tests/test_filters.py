"""Filters: their meaning value by value, and columns against the direct evaluation of each document."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from retrievers.errors import DocumentError, FilterTypeError, IndexDamagedError
from retrievers.filters import Column, Filter, build_columns, evaluate, matches, parse_filter

MISMATCH = "mismatch"


def comparison(field: str, operator: str, value: object) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


def logic(operator: str, *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"operator": operator, "conditions": list(conditions)}


def name_row(row: int) -> str:
    return f"doc-{row}"


def stored(metadata: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns as a reader gets them: dumped and loaded."""
    return {field: Column.load(*column.dump(), len(metadata)) for field, column in build_columns(metadata).items()}


def permitted(filter: Mapping[str, Any], metadata: Sequence[Mapping[str, Any]]) -> list[int]:
    """The rows that a filter permits, found through columns and document by document."""
    condition = parse_filter(filter)
    mask = evaluate(condition, stored(metadata).get, len(metadata), name_row=name_row)
    assert mask.dtype == np.bool_
    assert mask.shape == (len(metadata),)
    assert mask.tolist() == [matches(condition, document) for document in metadata]
    return np.flatnonzero(mask).tolist()


# What each comparison gives for one document's value; MISMATCH is a FilterTypeError.
OUTCOMES: list[tuple[object, str, object, object]] = [
    (2020, "==", 2020, True),
    (2020, "==", 2020.0, True),
    (2020, "!=", 2020.0, False),
    (2020, "!=", 2021, True),
    (2020, ">", 2019.5, True),
    (2020, ">", 2020, False),
    (2020, ">=", 2020, True),
    (2020, "<", 2020, False),
    (2020, "<=", 2020, True),
    (-0.0, "==", 0, True),
    (2**53 + 1, "==", float(2**53), False),
    (2**53 + 1, ">", float(2**53), True),
    (2**53 + 1, "in", [float(2**53), 2**53 + 1], True),
    (10**400, ">", 1.7976931348623157e308, True),
    (10**400, "==", 10**400, True),
    (10**400 + 1, "<=", 10**400, False),
    ("b", ">", "a", True),
    ("2024-02-29", "<", "2024-03-01", True),
    ("Z", "<", "a", True),
    ("z", "<", "é", True),
    ("\uffff", "<", "\U00010000", True),  # in UTF-16 units it would be the other way round
    ("é", "==", "e\u0301", False),
    ("", "<=", "", True),
    (True, "==", True, True),
    (True, "!=", False, True),
    (True, "in", [False], False),
    (True, "==", 1, MISMATCH),
    (1, "==", True, MISMATCH),
    (0, "!=", False, MISMATCH),
    (True, ">", 0, MISMATCH),
    (1, "in", [True], MISMATCH),
    ("1", "==", 1, MISMATCH),
    ("1", ">=", 1, MISMATCH),
    (1, "!=", "1", MISMATCH),
    (1, "not in", ["1"], MISMATCH),
    (1, "in", [1, "1"], True),
    (1, "in", ["1", True, 2], False),
    (1, "not in", ["1", True, 2], True),
    ([1], "in", [1, "1"], MISMATCH),
    (1, "in", [None], False),
    (1, "not in", [None], True),
    (1, "in", [], False),
    (1, "not in", [], True),
    (1, "==", None, False),
    (1, "!=", None, True),
    (None, "==", None, True),
    (None, "!=", None, False),
    (None, "==", 1, False),
    (None, "!=", 1, True),
    (None, "in", [1, None], True),
    (None, "in", [1], False),
    (None, "not in", [1], True),
    (None, "not in", [None], False),
    (None, ">", 1, False),
    (None, "<=", "a", False),
    ([], "==", [], True),
    ([], "!=", ["a"], True),
    (["a", "b"], "==", ["a", "b"], True),
    (("a", "b"), "==", ["a", "b"], True),
    (["a", "b"], "==", ("a", "b"), True),
    (["b", "a"], "==", ["a", "b"], False),
    ([1], "==", [1.0], True),
    ([1], "==", [True], False),
    ([1], "==", ["1"], False),
    ([1, [2, {"a": 3}]], "==", [1, [2, {"a": 3}]], True),
    ([1, [2, {"a": 3}]], "==", [1, [2, {"a": False}]], False),
    (["a"], "in", [["a"], ["b"]], True),
    (["c"], "not in", [["a"], ["b"]], True),
    (["a"], "in", ["a"], MISMATCH),
    (["a"], "==", "a", MISMATCH),
    (["a"], "<", "a", MISMATCH),
    ({}, "==", {}, True),
    ({"a": 1}, "==", {"a": 1.0}, True),
    ({"a": 1, "b": 2}, "==", {"b": 2, "a": 1}, True),
    ({"a": 1}, "!=", {"a": True}, True),
    ({"a": 1}, "==", {"a": 1, "b": None}, False),
    ({"a": 1}, "in", [{"a": 2}, {"a": 1}], True),
    ({"a": 1}, "==", "a", MISMATCH),
    ("a", "!=", {"a": 1}, MISMATCH),
]


@pytest.mark.parametrize(("value", "operator", "operand", "outcome"), OUTCOMES)
def test_one_value(value: object, operator: str, operand: object, outcome: object) -> None:
    condition = parse_filter(comparison("f", operator, operand))
    metadata: list[dict[str, Any]] = [{"other": 1}, {"f": value}, {}]
    if outcome == MISMATCH:
        with pytest.raises(FilterTypeError):
            evaluate(condition, stored(metadata).get, 3, name_row=name_row)
        with pytest.raises(FilterTypeError):
            matches(condition, metadata[1])
    else:
        assert permitted(comparison("f", operator, operand), metadata) == ([1] if outcome else [])


def test_missing_field_matches_no_comparison_and_every_negation() -> None:
    metadata: list[dict[str, Any]] = [{"year": 2020}, {}, {"year": None}]
    for operator, operand in [("==", 1), ("!=", 1), ("<", 1), ("in", [1]), ("not in", [1]), ("==", None), ("!=", None)]:
        found = permitted(comparison("year", operator, operand), metadata)
        assert 1 not in found
        negated = permitted(logic("NOT", comparison("year", operator, operand)), metadata)
        assert sorted([*found, *negated]) == [0, 1, 2]
    assert permitted(comparison("absent", "!=", 1), metadata) == []
    assert permitted(logic("NOT", comparison("absent", "==", 1)), metadata) == [0, 1, 2]


def test_logic() -> None:
    metadata: list[dict[str, Any]] = [{"a": a, "b": b} for a in (0, 1) for b in (0, 1)]
    a, b = comparison("a", "==", 1), comparison("b", "==", 1)
    assert permitted(logic("AND", a, b), metadata) == [3]
    assert permitted(logic("OR", a, b), metadata) == [1, 2, 3]
    assert permitted(logic("NOT", a, b), metadata) == [0, 1, 2]
    assert permitted(logic("NOT", logic("OR", a, b)), metadata) == [0]
    assert permitted(logic("AND", logic("NOT", a), logic("NOT", logic("NOT", b))), metadata) == [1]
    assert permitted(logic("AND", a), metadata) == [2, 3]


def test_fields_of_nested_objects() -> None:
    metadata: list[dict[str, Any]] = [
        {"author": {"name": "Ada", "born": {"year": 1815}}},
        {"author": {"name": "Bob"}},
        {"author.name": "Cid", "author": {"name": "not this"}},
        {"author": "Dan"},
        {"meta": {"x": 1}},
        {"x": 1},
    ]
    assert permitted(comparison("author.name", "==", "Ada"), metadata) == [0]
    assert permitted(comparison("meta.author.name", "!=", "Ada"), metadata) == [1, 2]
    assert permitted(comparison("author.name", "in", ["Cid", "not this"]), metadata) == [2]
    assert permitted(comparison("author.name", "==", "not this"), metadata) == []
    assert permitted(comparison("author.born.year", "<", 1900), metadata) == [0]
    assert permitted(comparison("author", "==", {"name": "Bob"}), metadata[:3]) == [1]
    assert permitted(comparison("meta.x", "==", 1), metadata) == [5]
    assert permitted(comparison("meta.meta.x", "==", 1), metadata) == [4]
    assert permitted(comparison("meta", "==", {"x": 1}), metadata) == [4]
    with pytest.raises(FilterTypeError, match=r"'author' of document 'doc-0' holds object"):
        permitted(comparison("author", "==", "Dan"), metadata)


def test_keys_with_dots() -> None:
    metadata: list[dict[str, Any]] = [
        {"a.b": {"c": 1}, "a": {"b.c": 2, "b": {"c": 3}}},
        {"a": {"b": {"c": 3}, "b.c": 2}},
        {"a": {"b": {"c": 3}}},
        {"a.b": 5, "a": {"b": {"c": 3}}},
        {"a.b.c": 4, "a.b": {"c": 1}},
    ]
    assert [permitted(comparison("a.b.c", "==", n), metadata) for n in (1, 2, 3, 4)] == [[0], [1], [2, 3], [4]]


def test_type_error_names_everything() -> None:
    metadata: list[dict[str, Any]] = [{"year": 2019}, {"year": 2020}, {"year": "2021"}, {"year": "2022"}]
    condition = parse_filter(comparison("year", ">=", 2020))
    with pytest.raises(FilterTypeError) as raised:
        evaluate(condition, stored(metadata).get, 4, name_row=name_row)
    message = str(raised.value)
    for part in ("'year'", "'doc-2'", 'text "2021"', "'>='", "number 2020", "write the filter's value as text"):
        assert part in message
    with pytest.raises(FilterTypeError, match=r"of document x holds text .* values of type boolean or number"):
        matches(parse_filter(comparison("year", "in", [1, None, True])), metadata[2], name="document x")
    with pytest.raises(FilterTypeError, match="compared as a whole"):
        matches(parse_filter(comparison("tags", "in", ["a"])), {"tags": ["a", "b"]})
    with pytest.raises(FilterTypeError, match="too large to print"):
        matches(parse_filter(comparison("a", "==", "x")), {"a": 10**5000})


def test_type_error_does_not_depend_on_the_other_conditions() -> None:
    metadata: list[dict[str, Any]] = [{"a": 1, "b": 1}, {"a": 2, "b": "x"}]
    never, wrong = comparison("a", "==", 7), comparison("b", "==", 1)
    always = comparison("a", "in", [1, 2])
    for filter in (logic("AND", never, wrong), logic("OR", always, wrong), logic("NOT", logic("AND", never, wrong))):
        with pytest.raises(FilterTypeError, match="doc-1"):
            evaluate(parse_filter(filter), stored(metadata).get, 2, name_row=name_row)
        with pytest.raises(FilterTypeError):
            matches(parse_filter(filter), metadata[1])


def test_only_live_rows_count() -> None:
    metadata: list[dict[str, Any]] = [{"a": 1}, {"a": "x"}, {"a": 1}, {"a": 2}]
    columns = stored(metadata)
    live = np.array([True, False, True, True])
    for filter, rows in [(comparison("a", "==", 1), [0, 2]), (logic("NOT", comparison("a", "==", 1)), [3])]:
        mask = evaluate(parse_filter(filter), columns.get, 4, live=live, name_row=name_row)
        assert np.flatnonzero(mask).tolist() == rows
    assert live.tolist() == [True, False, True, True]
    with pytest.raises(FilterTypeError, match="doc-1"):
        evaluate(parse_filter(comparison("a", "==", 1)), columns.get, 4, live=~live, name_row=name_row)


@pytest.mark.parametrize("share", [0, 1, 10, 50, 90, 99, 100])
def test_selectivity(share: int) -> None:
    metadata: list[dict[str, Any]] = [{"n": (row * 37) % 100, "id": f"d{row}"} for row in range(1000)]
    assert len(permitted(comparison("n", "<", share), metadata)) == 10 * share
    ids = [f"d{row}" for row in range(10 * share)]
    assert permitted(comparison("id", "in", ids), metadata) == list(range(10 * share))
    assert permitted(comparison("id", "not in", ids), metadata) == list(range(10 * share, 1000))


def test_columns_as_they_are_stored() -> None:
    columns = build_columns([{"a": 1, "t": "é"}, {"a": True}, {"a": "1"}, {"a": 1.0}, {}, {"a": [1], "o": {"k": None}}])
    assert {field: column.dump() for field, column in columns.items()} == {
        "a": ('[1,true,"1",[1]]', np.array([0, 1, 2, 0, -1, 3], "<i4").tobytes()),
        "t": ('{"sparse":["é"]}', np.array([0, 0], "<i4").tobytes()),
        "o": ('{"sparse":[{"k":null}]}', np.array([5, 0], "<i4").tobytes()),
        "o.k": ('{"sparse":[null]}', np.array([5, 0], "<i4").tobytes()),
    }
    assert [type(value) for value in columns["a"].values] == [int, bool, str, list]
    loaded = Column.load(*columns["t"].dump(), 6)
    assert loaded.value(0) == "é"
    for column, row in [(loaded, 1), (loaded, 5), (Column.load(*columns["a"].dump(), 6), 4)]:
        with pytest.raises(KeyError):
            column.value(row)
    alike = build_columns([{"o": {"k": 1, "l": 2}}, {"o": {"l": 2, "k": 1}}, {"o": {"k": 2, "l": 1}}])["o"]
    assert alike.codes.tolist() == [0, 0, 1]
    assert build_columns([]) == {}
    assert build_columns([{}, {}]) == {}


def test_many_sparse_fields_stay_small() -> None:
    metadata: list[dict[str, Any]] = [{"votes": {f"user{row}": row}} for row in range(3000)]
    columns = build_columns(metadata)
    assert len(columns) == 3001
    assert sum(len(values) + len(codes) for values, codes in map(Column.dump, columns.values())) < 300_000
    assert permitted(comparison("votes.user1234", ">", 0), metadata) == [1234]


def test_metadata_that_is_no_json() -> None:
    for value in (b"x", [{1}]):
        with pytest.raises(DocumentError, match="use strings, numbers"):
            build_columns([{"a": value}])
    with pytest.raises(DocumentError, match="use strings, numbers"):
        matches(parse_filter(comparison("a", "==", 1)), {"a": b"x"})
    assert permitted(comparison("a.b", "==", 1), [MappingProxyType({"a": MappingProxyType({"b": 1})})]) == [0]


def codes(*numbers: int) -> bytes:
    return np.array(numbers, "<i4").tobytes()


@pytest.mark.parametrize(
    ("values", "stored_codes", "message"),
    [
        ('["a"]', codes(0, 0), "8 bytes, and 3 rows need 12"),
        ('["a"]', codes(0, 0, 0)[:-1], "11 bytes"),
        ('["a"]', codes(0, 0, 0, 0), "16 bytes"),
        ('["a"]', b"", "0 bytes"),
        ('["a"]', codes(0, 1, 0), "run from 0 to 1, and there are 1 values"),
        ('["a"]', codes(0, -2, 0), "run from -2"),
        ("[]", codes(-1, 0, -1), "there are 0 values"),
        ('["a"', codes(0, 0, 0), "no JSON"),
        ("[NaN]", codes(0, 0, 0), "NaN is no JSON number"),
        ("[" * 100_000, codes(0, 0, 0), "no JSON"),
        ('{"a": 1}', codes(0, 0, 0), "no JSON list"),
        ('"abc"', codes(0, 0, 0), "no JSON list"),
        ('{"sparse": "abc"}', codes(0, 0), "no JSON list"),
        ('{"sparse": ["a"]}', codes(0, 0, 0), "12 bytes, which is no multiple of 8"),
        ('{"sparse": ["a"]}', codes(3, 0), "do not ascend within 3 rows"),
        ('{"sparse": ["a"]}', codes(-1, 0), "do not ascend"),
        ('{"sparse": ["a"]}', codes(1, 1, 0, 0), "do not ascend"),
        ('{"sparse": ["a"]}', codes(2, 1, 0, 0), "do not ascend"),
        ('{"sparse": ["a"]}', codes(1, -1), "run from -1"),
        ('{"sparse": ["a"]}', codes(1, 1), "run from 1"),
        (None, codes(0, 0, 0), "stored as NoneType and bytes"),
        ('["a"]', "abcdefghijkl", "stored as str and str"),
    ],
)
def test_damaged_columns(values: Any, stored_codes: Any, message: str) -> None:
    with pytest.raises(IndexDamagedError, match=message):
        Column.load(values, stored_codes, 3)


# Few names and few values, so that filters meet documents; keys with dots, so that paths meet.
KEYS = st.sampled_from(["a", "b", "a.b", "b.a", "é"])
FIELDS = st.sampled_from(["a", "a", "a", "b", "b", "a.b", "a.a", "b.a", "a.b.a", "b.b", "é", "meta.a", "absent"])
NUMBERS = st.sampled_from([0, 1, 2, -1, 0.0, 1.0, 0.5, 2**53, 2**53 + 1, float(2**53), 2**90 + 1, -(2**90)])
TEXTS = st.sampled_from(["", "0", "1", "a", "b", "é", "日本", "\U0001f600", "\uffff", "2024-01-01", "true"])
ORDERED = st.one_of(NUMBERS, TEXTS)
SCALARS = st.one_of(ORDERED, st.booleans(), st.none())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)


def collections(values: st.SearchStrategy[Any], least: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(st.dictionaries(KEYS, values, max_size=4), min_size=least, max_size=12)


def comparisons(values: st.SearchStrategy[Any], ordered: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(comparison, FIELDS, st.sampled_from(["==", "!="]), values),
        st.builds(comparison, FIELDS, st.sampled_from([">", ">=", "<", "<="]), ordered),
        st.builds(comparison, FIELDS, st.sampled_from(["in", "not in"]), st.lists(values, max_size=4)),
    )


def filters(values: st.SearchStrategy[Any], ordered: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        comparisons(values, ordered),
        lambda inner: st.builds(
            lambda operator, conditions: {"operator": operator, "conditions": conditions},
            st.sampled_from(["AND", "OR", "NOT"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=5,
    )


# Of one type, so that most filters have an outcome; of all, so that most meet a type error.
CASES = st.one_of(
    *(
        st.tuples(filters(values, ordered), collections(values, 3), st.data())
        for values, ordered in [
            (NUMBERS | st.none(), NUMBERS),
            (TEXTS | st.none(), TEXTS),
            (st.lists(SCALARS, max_size=2), ORDERED),
            (SCALARS, ORDERED),
            (VALUES, ORDERED),
        ]
    )
)


def one_by_one(condition: Filter, metadata: Sequence[Mapping[str, Any]], live: Sequence[bool]) -> list[bool] | None:
    """The outcome of each document, False for one that is not live; None where a live one has another type."""
    outcome = []
    for document, alive in zip(metadata, live, strict=True):
        try:
            outcome.append(alive and matches(condition, document))
        except FilterTypeError:
            return None
    return outcome


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CASES)
def test_columns_agree_with_documents(case: tuple[dict[str, Any], list[dict[str, Any]], st.DataObject]) -> None:
    filter, metadata, data = case
    live = data.draw(st.lists(st.booleans(), min_size=len(metadata), max_size=len(metadata)) | st.none())
    condition = parse_filter(filter)
    assert parse_filter(json.loads(str(condition))) == condition
    expected = one_by_one(condition, metadata, [True] * len(metadata) if live is None else live)
    event("type error" if expected is None else f"some {any(expected)}, all {all(expected)}")
    alive = None if live is None else np.array(live, np.bool_)
    for columns in (build_columns(metadata), stored(metadata)):
        try:
            mask = evaluate(condition, columns.get, len(metadata), live=alive, name_row=name_row)
            outcome = mask.tolist()
        except FilterTypeError as error:
            outcome = None
            named = next(row for row in range(len(metadata)) if f"'doc-{row}'" in str(error))
            with pytest.raises(FilterTypeError):
                matches(condition, metadata[named])
            assert alive is None or alive[named]
        assert outcome == expected


@settings(max_examples=300, deadline=None)
@example([{"a": 1}, {"a": True}, {"a": "1"}, {"a": None}, {"a": []}, {"a": {}}, {"a": "null"}, {"a": "[]"}])
@given(collections(VALUES, 0))
def test_stored_columns_are_the_same(metadata: list[dict[str, Any]]) -> None:
    n = len(metadata)
    for field, column in build_columns(metadata).items():
        loaded = Column.load(*column.dump(), n)
        assert loaded.dump() == column.dump()
        for row, document in enumerate(metadata):
            name = "meta." + field
            try:
                value = loaded.value(row)
            except KeyError:
                lacking = logic("OR", comparison(name, "==", None), comparison(name, "!=", None))
                assert not matches(parse_filter(lacking), document)
            else:
                assert json.dumps(value) == json.dumps(column.value(row))
                assert matches(parse_filter(comparison(name, "==", value)), document)


def test_speed(capsys: pytest.CaptureFixture[str]) -> None:
    n = 50_000
    metadata: list[dict[str, Any]] = [
        {"title": f"t{row}", "year": 1900 + row % 120, "ok": row % 3 == 0, "score": row / n} for row in range(n)
    ]
    start = time.perf_counter()
    columns = stored(metadata)
    built = time.perf_counter()
    filter = parse_filter(logic("AND", comparison("year", ">=", 2000), comparison("score", "<", 0.5)))
    mask = evaluate(filter, columns.get, n, name_row=name_row)
    end = time.perf_counter()
    assert mask.sum() == sum(1900 + row % 120 >= 2000 and row / n < 0.5 for row in range(n))
    with capsys.disabled():
        print(f"\ncolumns of {n} documents x 4 fields: {built - start:.2f} s; one filter: {1e3 * (end - built):.1f} ms")
