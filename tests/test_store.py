"""The SQLite file of a segment: what it gives back, and that no damaged page makes it give anything but a named error."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from retrievers import Document
from retrievers.columns import Column
from retrievers.errors import IndexDamagedError
from retrievers.indexes.store import NAME, DocumentStore, Entry, Known, write_store

SIZE = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some seventy pages: rows, ids and columns each take several."""
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


def read_all(path: Path) -> Counter[str]:
    """Everything a store can be asked; counts the questions that it refuses, and checks the form of the other answers."""
    refused: Counter[str] = Counter()
    messages: list[str] = []

    def ask(name: str, question: Callable[[DocumentStore], None]) -> None:
        try:
            question(store)
        except IndexDamagedError as error:
            messages.append(str(error))
            refused[name] += 1

    try:
        store = DocumentStore(path, SIZE)
    except IndexDamagedError:
        return Counter({"open": 1})
    for start in range(0, SIZE, 150):
        rows = list(range(start, start + 150, 3))
        ids = [f"id {row:05d}" for row in rows]

        def documents(store: DocumentStore, rows: list[int] = rows) -> None:
            found = store.documents(rows)
            assert sorted(found) == rows
            for document in found.values():
                assert all(type(part) is str for part in (document.id, document.text, document.title))
                assert type(document.metadata) is dict

        def names(store: DocumentStore, rows: list[int] = rows) -> None:
            found = store.ids(rows)
            assert sorted(found) == rows
            assert all(type(id) is str for id in found.values())

        def find(store: DocumentStore, ids: list[str] = ids) -> None:
            for id, known in store.find(ids).items():
                assert id in ids
                assert 0 <= known.row < SIZE
                assert type(known.ordinal) is int
                assert type(known.place) is str

        ask("documents", documents)
        ask("ids", names)
        ask("find", find)

    def entries(store: DocumentStore) -> None:
        assert [row for row, _ in store.entries()] == list(range(SIZE))

    def columns(store: DocumentStore) -> None:
        for field in store.fields():
            assert isinstance(store.column(field), Column)

    ask("entries", entries)
    ask("columns", columns)
    store.close()
    assert all(str(path) in message for message in messages)
    return refused


def test_a_sound_store_answers(folder: Path) -> None:
    assert read_all(folder) == {}
    store = DocumentStore(folder, SIZE)
    assert store.ids([7, 0]) == {7: "id 00007", 0: "id 00000"}
    assert store.find(["id 00007", "no such id"]) == {"id 00007": Known(7, 8, "document 8")}
    assert store.documents([1])[1].metadata == {"n": 1}
    assert store.fields() == ["n"]
    with pytest.raises(IndexDamagedError, match=f"lacks row {SIZE}"):
        store.ids([0, SIZE])
    store.close()


def test_a_page_of_zeros_is_refused_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    data = (folder / NAME).read_bytes()
    questions: Counter[str] = Counter()
    for page in range(len(data) // 4096):
        spoilt = bytearray(data)
        spoilt[page * 4096 : (page + 1) * 4096] = bytes(4096)
        (tmp_path / NAME).write_bytes(spoilt)
        questions += read_all(tmp_path)
    assert {"open", "documents", "ids", "find", "entries"} <= questions.keys()


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_refused_or_harmless(folder: Path, tmp_path: Path, seed: int) -> None:
    shutil.copy(folder / NAME, tmp_path)
    data = (folder / NAME).read_bytes()
    choose = random.Random(seed)
    for _ in range(20):
        spoilt = bytearray(data)
        for _ in range(choose.choice([1, 3, 30, 300])):
            at = choose.randrange(len(spoilt))
            length = choose.choice([1, 2, 8, 100])
            spoilt[at : at + length] = choose.choice([bytes(length), choose.randbytes(length), b"\xff" * length])
        (tmp_path / NAME).write_bytes(spoilt)
        read_all(tmp_path)
