"""Training sets on disk: what goes in comes out, in bounded memory, whole or not at all, and damage has a typed error."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import ids, texts

from retrievers.documents import Document
from retrievers.errors import TrainingDataError
from retrievers.training import texts as texts_module
from retrievers.training.sets import TrainingSet
from retrievers.training.texts import Texts

entries = st.lists(st.tuples(ids, texts), min_size=1, max_size=6, unique_by=lambda entry: entry[0])


@given(entries)
def test_odd_ids_and_texts_come_back(tmp_path_factory: pytest.TempPathFactory, given: list[tuple[str, str]]) -> None:
    stored = Texts.write(tmp_path_factory.mktemp("texts") / "t", given, "query")
    rows = list(range(len(given)))
    assert list(zip(stored.ids(rows), stored.texts(rows), strict=True)) == given
    assert stored.rows([id for id, _ in reversed(given)]).tolist() == rows[::-1]
    assert stored.rows(["no such id", "\ud800"]).tolist() == [-1, -1]
    assert stored.bytes == sum(len(text.encode()) for _, text in given)
    with pytest.raises(IndexError):
        stored.text(len(given))


def small(folder: Path) -> TrainingSet:
    return TrainingSet.build(
        folder / "set",
        [("q1", "one"), ("q2", "two")],
        [Document("a", "A", "T"), Document("b", "B"), Document("c", "")],
        [("q2", "a"), ("q1", "b"), ("q2", "a")],
        [("q2", "c"), ("q2", "b"), ("q1", "a"), ("q2", "c")],
    )


def test_lists_keep_their_order_and_no_pair_twice(tmp_path: Path) -> None:
    small(tmp_path)
    training = TrainingSet.open(tmp_path / "set")
    assert [training.positives.of(row).tolist() for row in (0, 1)] == [[1], [0]]
    assert [training.candidates.of(row).tolist() for row in (0, 1)] == [[0], [2, 1]]
    assert training.documents.text(0) == "T A"
    assert len(training) == 2


def test_hashes_that_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts_module, "_hash", lambda id: len(id) % 2)
    given = [(f"{number:0{1 + number % 3}d}", str(number)) for number in range(50)]
    stored = Texts.write(tmp_path / "t", given, "query")
    assert stored.rows([id for id, _ in given]).tolist() == list(range(50))
    assert stored.rows(["none", "x"]).tolist() == [-1, -1]
    with pytest.raises(TrainingDataError, match="came twice, as number 8 and 51"):
        Texts.write(tmp_path / "twice", [*given, (given[7][0], "")], "query")


@pytest.mark.parametrize(
    ("queries", "documents", "positives", "message"),
    [
        ([("q", ""), ("q", "")], [("d", "")], [("q", "d")], "query id 'q' came twice, as number 1 and 2"),
        ([("q", "")], [("d", "")], [("q", "d"), ("q", "e")], "pair 2 of the positives.*document that is not there"),
        ([("q", "")], [("d", "")], [("r", "d")], "query that is not there"),
        ([("q", ""), ("r", "")], [("d", "")], [("q", "d")], "1 of 2 queries have no positive, the first is 'r'"),
        ([("q", "")], [], [], "0 documents"),
        ([("", "")], [("d", "")], [], "pair of an id and a text"),
        ([("q", "\ud800")], [("d", "")], [], "surrogate"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    queries: list[tuple[str, str]],
    documents: list[tuple[str, str]],
    positives: list[tuple[str, str]],
    message: str,
) -> None:
    with pytest.raises(TrainingDataError, match=message):
        TrainingSet.build(tmp_path / "set", queries, documents, positives)
    assert list(tmp_path.iterdir()) == []


def test_scores_and_candidates(tmp_path: Path) -> None:
    training = small(tmp_path)
    training.add_scores("a.b", np.array([1, np.nan, 3]))
    training.add_scores("a.b", np.array([4, np.nan, 6]))
    training.add_scores("z", np.zeros(3))
    again = TrainingSet.open(tmp_path / "set")
    assert again.teachers == ("a.b", "z")
    np.testing.assert_array_equal(again.scores("a.b"), np.array([4, np.nan, 6], np.float32))
    assert len(list((tmp_path / "set").glob("scores-a.b-*"))) == 1
    for name, scores in (("a/b", np.zeros(3)), ("n", np.zeros(2)), ("n", np.array([1, np.inf, 2]))):
        with pytest.raises(TrainingDataError):
            training.add_scores(name, scores)
    with pytest.raises(TrainingDataError, match=r"has no scores of 'n'.*a\.b, z"):
        training.scores("n")
    rows = np.array([1, 0, 1])
    with pytest.raises(TrainingDataError, match="replace=True"):
        training.set_candidates(rows, rows)
    with pytest.raises(TrainingDataError, match="are no pairs"):
        training.set_candidates(rows, rows[:2], replace=True)
    with pytest.raises(TrainingDataError, match="document rows from 0 to 3"):
        training.set_candidates(rows, np.array([0, 3, 1]), replace=True)
    training.set_candidates(rows, np.array([2, 1, 0]), replace=True)
    again = TrainingSet.open(tmp_path / "set")
    assert again.teachers == ()
    assert [again.candidates.of(row).tolist() for row in (0, 1)] == [[1], [2, 0]]


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Iterator[tuple[str, str]]:
        yield "d", "text"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        TrainingSet.build(tmp_path / "new", [("q", "")], failing(), [])
    assert list(tmp_path.iterdir()) == []
    training = small(tmp_path)
    training.add_scores("t", np.ones(3))

    def refuse(*_: object) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr("retrievers.training.sets.replace_file", refuse)
        with pytest.raises(OSError, match="no space"):
            training.add_scores("t", np.zeros(3))
        with pytest.raises(OSError, match="no space"):
            training.set_candidates(np.array([0]), np.array([0]), replace=True)
    again = TrainingSet.open(tmp_path / "set")
    assert again.scores("t").tolist() == [1, 1, 1]
    again.add_scores("t", np.zeros(3))
    assert TrainingSet.open(tmp_path / "set").scores("t").tolist() == [0, 0, 0]


def read_all(folder: Path) -> None:
    training = TrainingSet.open(folder)
    for part in (training.queries, training.documents):
        rows = list(range(len(part)))
        part.texts(rows)
        part.rows(part.ids(rows))


def test_damage_has_a_typed_error(tmp_path: Path) -> None:
    training = small(tmp_path)
    training.add_scores("t", np.ones(3))
    read_all(tmp_path / "set")
    files = [path for path in (tmp_path / "set").rglob("*") if path.is_file()]
    assert len(files) == 18
    for path in files:
        sound = path.read_bytes()
        path.write_bytes(sound[:-1])
        if path.name != "training-set.json":  # its last byte is a line end
            with pytest.raises(TrainingDataError):
                read_all(tmp_path / "set")
        path.unlink()
        with pytest.raises(TrainingDataError):
            read_all(tmp_path / "set")
        path.write_bytes(sound)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("queries/texts.npy", [0, 900, 6]),
        ("queries/order.npy", [7, 7]),
        ("positives-0-rows.npy", [0, 99]),
        ("positives-0-offsets.npy", [0, 3, 2]),
    ],
)
def test_numbers_that_point_outside(tmp_path: Path, name: str, values: list[int]) -> None:
    small(tmp_path)
    np.save(tmp_path / "set" / name, np.array(values, np.int64))
    with pytest.raises(TrainingDataError):
        read_all(tmp_path / "set")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1}', "[" * 100_000])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    small(tmp_path)
    (tmp_path / "set" / "training-set.json").write_text(text)
    with pytest.raises(TrainingDataError, match=r"training-set\.json"):
        TrainingSet.open(tmp_path / "set")


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    count = 200_000
    filler = "x" * 400  # 80 MB of texts
    tracemalloc.start()
    try:
        training = TrainingSet.build(
            tmp_path / "set",
            ((str(n), "") for n in range(count)),
            ((str(n), filler) for n in range(count)),
            ((str(n), str(count - 1 - n)) for n in range(count)),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert training.documents.bytes == count * len(filler)
    assert peak < 40e6
    assert training.positives.of(5).tolist() == [count - 6]
