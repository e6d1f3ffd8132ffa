"""The documents of a segment: what a store gives back, in every format, and that no damage makes it give anything but a
named error."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrievers import Document
from retrievers.columns import Column
from retrievers.errors import DocumentError, IndexDamagedError
from retrievers.indexes.sqlite_store import SqliteStore
from retrievers.indexes.store import FOLDER, DocumentStore, Entry, Known, Store, open_store, write_store

SIZE = 3000
FORMER = Path(__file__).parent / "data" / "format-1" / "lexical" / "segments" / "000001-0" / "documents.sqlite"
ODD = [
    Document("\t'\"", "x" * 1_000_000, metadata={"deep": [{"a": [1, 2.5, True]}], "": "", "漢": "字"}),
    Document(" ", "a\0b", title="\n", metadata={"n": None}),
    Document("Z" * 1000, "one"),
    Document("a", "", title="a title alone"),
    Document("a\0", "after a"),
    Document("é", "é"),
    Document("漢", "漢字", title="漢"),
    Document("\uffff", "below the next, which UTF-16 would order the other way round"),
    Document("\U00010000", "🙂"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some hundred kilobytes."""
    path = tmp_path_factory.mktemp("store")
    choose = random.Random(1)
    words = [f"word{number}" for number in range(300)]
    write_store(
        path,
        (
            Entry(
                row + 1, f"document {row + 1}", Document(f"id {row:05d}", " ".join(choose.choices(words, k=20)), **more)
            )
            for row in range(SIZE)
            for more in [{"title": "t", "metadata": {"n": row % 7}} if row % 2 else {}]
        ),
    )
    return path


def read_all(path: Path, size: int = SIZE, ids: list[str] | None = None) -> Counter[str]:
    """Everything a store can be asked; counts the questions that it refuses, and checks the form of the other answers."""
    refused: Counter[str] = Counter()
    messages: list[str] = []
    names = ids or [f"id {row:05d}" for row in range(size)]

    def ask(name: str, question: Callable[[Store], None]) -> None:
        try:
            question(store)
        except IndexDamagedError as error:
            messages.append(str(error))
            refused[name] += 1

    try:
        store = open_store(path, size)
    except IndexDamagedError:
        return Counter({"open": 1})
    for start in range(0, size, 150):
        rows = list(range(start, min(start + 150, size), 3))

        def documents(store: Store, rows: list[int] = rows) -> None:
            found = store.documents(rows)
            assert sorted(found) == rows
            for document in found.values():
                assert all(type(part) is str for part in (document.id, document.text, document.title))
                assert type(document.metadata) is dict

        def name_rows(store: Store, rows: list[int] = rows) -> None:
            found = store.ids(rows)
            assert sorted(found) == rows
            assert all(type(id) is str for id in found.values())

        def find(store: Store, ids: list[str] = names[start : start + 150]) -> None:
            for id, known in store.find(ids).items():
                assert id in ids
                assert 0 <= known.row < size
                assert type(known.ordinal) is int
                assert type(known.place) is str

        ask("documents", documents)
        ask("ids", name_rows)
        ask("find", find)

    def entries(store: Store) -> None:
        assert [row for row, _ in store.entries()] == list(range(size))

    def all_ids(store: Store) -> None:
        assert [row for row, _ in store.all_ids()] == list(range(size))

    def columns(store: Store) -> None:
        for field in store.fields():
            column = store.column(field)
            assert column is None or isinstance(column, Column)

    ask("entries", entries)
    ask("all ids", all_ids)
    ask("columns", columns)
    store.close()
    assert all(str(path) in message for message in messages)
    return refused


def spoil(data: bytes, choose: random.Random) -> bytes:
    spoilt = bytearray(data)
    for _ in range(choose.choice([1, 3, 30, 300])):
        at = choose.randrange(len(spoilt))
        length = choose.choice([1, 2, 8, 100])
        spoilt[at : at + length] = choose.choice([bytes(length), choose.randbytes(length), b"\xff" * length])
    return bytes(spoilt[: len(data)])


def test_a_sound_store_answers(folder: Path) -> None:
    assert read_all(folder) == {}
    store = DocumentStore(folder, SIZE)
    assert store.ids([7, 0]) == {7: "id 00007", 0: "id 00000"}
    assert store.find(["id 00007", "no such id", "", "zz"]) == {"id 00007": Known(7, 8, "document 8")}
    assert store.documents([1])[1].metadata == {"n": 1}
    assert store.fields() == ["n"]
    assert store.column("m") is None
    for row in (SIZE, -1):
        with pytest.raises(IndexDamagedError, match=f"lacks row {row}"):
            store.ids([0, row])
    with pytest.raises(IndexDamagedError, match=f"starts.npy holds int64 \\[{SIZE + 1}\\] where int64 \\[{SIZE}\\]"):
        DocumentStore(folder, SIZE - 1)


def test_whatever_goes_in_comes_back(tmp_path: Path) -> None:
    entries = [Entry(at, f"place {at} 漢", document) for at, document in enumerate(ODD, 1)]
    write_store(tmp_path, iter(entries))
    store = DocumentStore(tmp_path, len(ODD))
    assert [entry for _, entry in store.entries()] == entries
    assert [id for _, id in store.all_ids()] == [document.id for document in ODD]
    assert store.documents([8, 0, 2]) == {row: ODD[row] for row in (8, 0, 2)}
    wanted = [document.id for document in reversed(ODD)]
    known = store.find([*wanted, "", "b", "\ud800", "a\0\0", "\U0010ffff"])
    assert known == {id: Known(8 - at, 9 - at, f"place {9 - at} 漢") for at, id in enumerate(wanted)}
    assert store.fields() == ["", "deep", "n", "漢"]


def test_a_store_of_nothing(tmp_path: Path) -> None:
    write_store(tmp_path, iter(()))
    store = DocumentStore(tmp_path, 0)
    assert (store.documents([]), store.ids([]), store.find(["a"]), store.fields()) == ({}, {}, {}, [])
    assert (list(store.entries()), list(store.all_ids())) == ([], [])


def test_a_page_of_zeros_is_refused_wherever_it_counts(folder: Path, tmp_path: Path) -> None:
    questions: Counter[str] = Counter()
    for path in sorted((folder / FOLDER).iterdir()):
        data = path.read_bytes()
        for start in range(0, len(data), 4096):
            shutil.copytree(folder / FOLDER, tmp_path / FOLDER, dirs_exist_ok=True)
            spoilt = data[:start] + bytes(min(4096, len(data) - start)) + data[start + 4096 :]
            (tmp_path / FOLDER / path.name).write_bytes(spoilt)
            refused = read_all(tmp_path)
            # Zeros within a text, or of the first value, are a text and a value too.
            assert refused or path.name in ("records.npy", "columns.npy"), (path, start)
            questions += refused
    assert {"open", "documents", "ids", "find", "entries", "all ids"} <= questions.keys()


@pytest.mark.parametrize("name", ["records.npy", "starts.npy", "columns.npy", "fields.json"])
@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_refused_or_harmless(folder: Path, tmp_path: Path, seed: int, name: str) -> None:
    shutil.copytree(folder / FOLDER, tmp_path / FOLDER)
    data = (folder / FOLDER / name).read_bytes()
    choose = random.Random(seed)
    for _ in range(20):
        (tmp_path / FOLDER / name).write_bytes(spoil(data, choose))
        read_all(tmp_path)


def test_a_part_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrievers.indexes.store._LONGEST", 10)
    write_store(tmp_path, [Entry(1, "line 1", Document("a", "a text of any length", title="0123456789"))])
    (tmp_path / "two").mkdir()
    with pytest.raises(DocumentError, match=r"line 1: an id, a title and metadata may take .*, and one takes 11"):
        write_store(tmp_path / "two", [Entry(1, "line 1", Document("a", "b", title="0123456789a"))])


@pytest.mark.parametrize("wrong", [(1 << 32) - 1, 1 << 31, 300])
@pytest.mark.parametrize("at", range(4))
def test_a_length_that_is_none_is_refused(folder: Path, tmp_path: Path, at: int, wrong: int) -> None:
    shutil.copytree(folder / FOLDER, tmp_path / FOLDER)
    records = np.load(tmp_path / FOLDER / "records.npy")
    records[8 + 4 * at : 12 + 4 * at] = np.frombuffer(wrong.to_bytes(4, "little"), np.uint8)
    np.save(tmp_path / FOLDER / "records.npy", records)
    store = DocumentStore(tmp_path, SIZE)
    with pytest.raises(
        IndexDamagedError, match=r"records\.npy holds no document in row 0: run `retrievers index verify`"
    ):
        store.documents([0])
    assert store.ids([1]) == {1: "id 00001"}


@pytest.mark.parametrize(
    "fields", [[], {"n": 3}, {"n": [0, 1]}, {"n": [0, 5, 4]}, {"n": [0, 1, 1 << 40]}, {"n": [0, True, 9]}]
)
def test_fields_that_are_none_are_refused(folder: Path, tmp_path: Path, fields: object) -> None:
    shutil.copytree(folder / FOLDER, tmp_path / FOLDER)
    (tmp_path / FOLDER / "fields.json").write_text(json.dumps(fields))
    with pytest.raises(IndexDamagedError, match=r"fields\.json holds"):
        DocumentStore(tmp_path, SIZE)


def test_the_store_of_format_1_is_read_and_its_damage_refused(tmp_path: Path) -> None:
    ids = ["apple", "empty", "pear", "Änderung", "東京"]
    shutil.copy(FORMER, tmp_path)
    assert read_all(tmp_path, len(ids), ids) == {}
    store = open_store(tmp_path, len(ids))
    assert isinstance(store, SqliteStore)
    assert store.find(["pear", "plum"]) == {"pear": Known(2, 5, "document 5")}
    assert store.fields() == ["deep", "deep.a", "lang", "n", "tags"]
    with pytest.raises(IndexDamagedError, match="lacks row 5"):
        store.ids([0, 5])
    store.close()
    data, choose = FORMER.read_bytes(), random.Random(1)
    questions: Counter[str] = Counter()
    spoilt = [data[:at] + bytes(4096) + data[at + 4096 :] for at in range(0, len(data), 4096)]
    for some in [*spoilt, *(spoil(data, choose) for _ in range(100))]:
        (tmp_path / FORMER.name).write_bytes(some)
        questions += read_all(tmp_path, len(ids), ids)
    assert {"open", "documents", "ids", "find", "entries"} <= questions.keys()
