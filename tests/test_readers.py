"""Readers: what comes back from each kind of file, and what each fault in one is called."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sources
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import failure, lines_file, table_file

from retrievers import read_beir, read_csv, read_documents, read_folder, read_jsonl, readers
from retrievers.documents import Document
from retrievers.errors import DocumentError, DuplicateIdError, RetrieversError, SourceError, SourceNotFoundError
from retrievers.readers import DocumentReader, entries

# Real collections


@pytest.mark.parametrize(("name", "count"), [("adi", 82), ("vaswani", 11_429)])
def test_real_collections_come_back_whole(name: str, count: int, collections: Path) -> None:
    folder = collections / name
    plain = folder / "corpus.jsonl"
    with plain.open(encoding="utf-8") if plain.exists() else gzip.open(f"{plain}.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    known = {"_id", "text", "title"}
    expected = [
        Document(r["_id"], r["text"], r.get("title", ""), {k: v for k, v in r.items() if k not in known})
        for r in records
    ]
    assert len(expected) == count
    assert list(read_beir(folder)) == expected
    assert list(read_documents(folder)) == expected
    corpus = plain if plain.exists() else Path(f"{plain}.gz")
    assert list(read_documents(str(corpus))) == expected
    assert [place for place, _ in read_jsonl(corpus).entries()] == [
        f"{corpus}, line {number}" for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("name", ["vaswani.csv", "vaswani.tsv", "vaswani.csv.gz", "vaswani.jsonl.gz"])
def test_real_documents_survive_every_format(name: str, collections: Path, tmp_path: Path) -> None:
    expected = list(read_beir(collections / "vaswani"))
    path = tmp_path / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if ".jsonl" in name:
            for document in expected:
                file.write(json.dumps({"id": document.id, "title": document.title, "text": document.text}) + "\n")
        else:
            writer = csv.writer(file, delimiter="\t" if ".tsv" in name else ",")
            writer.writerow(["text", "id", "title"])
            writer.writerows([document.text, document.id, document.title] for document in expected)
    assert list(read_documents(path)) == expected


# JSON lines


@settings(deadline=None, max_examples=60)
@given(documents=sources.documents, ascii_only=st.booleans())
def test_jsonl_gives_back_any_id_and_text(
    documents: list[Document], ascii_only: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    with path.open("w", encoding="utf-8", newline="") as file:
        for document in documents:
            record = {"id": document.id, "title": document.title, "text": document.text, "metadata": {"id": 1}}
            file.write(json.dumps(record, ensure_ascii=ascii_only) + "\n")
    found = list(read_documents(path))
    assert [(d.id, d.text, d.title) for d in found] == [(d.id, d.text, d.title) for d in documents]
    assert all(d.metadata == {"id": 1} for d in found)


def test_jsonl_takes_the_default_fields(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        {"id": "a", "text": "x", "title": "T", "year": 2020, "tags": ["u", None]},
        {"_id": "b", "text": ""},
        {"id": 12, "text": "y", "title": None, "metadata": {"year": 1, "metadata": {"deep": True}}, "kind": "k"},
        {"id": "c", "_id": "d", "text": "z", "metadata": None},
        {"id": "e", "text": "z", "metadata": "a string"},
        {"id": -(10**30), "text": "z", "metadata": {"same": [1]}, "same": [1]},
    )
    assert list(read_jsonl(path)) == [
        Document("a", "x", "T", {"year": 2020, "tags": ["u", None]}),
        Document("b", ""),
        Document("12", "y", "", {"year": 1, "metadata": {"deep": True}, "kind": "k"}),
        Document("c", "z", "", {"_id": "d"}),
        Document("e", "z", "", {"metadata": "a string"}),
        Document(f"{-(10**30)}", "z", "", {"same": [1]}),
    ]


def test_jsonl_takes_named_fields(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"url": "u", "body": "b", "head": "h", "text": "t", "id": 5, "metadata": {"year": 1}})
    named = read_jsonl(path, id="url", text="body", title="head")
    assert list(named) == [Document("u", "b", "h", {"year": 1, "text": "t", "id": 5})]
    picked = read_jsonl(path, id="url", text="body", metadata=("year", "url", "absent"))
    assert list(picked) == [Document("u", "b", "", {"year": 1, "url": "u"})]
    assert list(read_jsonl(path, metadata=[])) == [Document("5", "t")]
    assert next(iter(read_jsonl(path, metadata=["metadata"]))).metadata == {"metadata": {"year": 1}}


def test_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    path = lines_file(tmp_path, "", {"id": "a", "text": "x"}, "  \t\r", {"id": "b", "text": "y"}, "", {"id": "c"})
    found = read_jsonl(path).entries()
    assert [next(found)[0] for _ in range(2)] == [f"{path}, line 2", f"{path}, line 4"]
    with pytest.raises(DocumentError, match=r"docs\.jsonl, line 6: field 'text' is missing"):
        next(found)


def test_windows_line_ends_a_byte_order_mark_and_no_last_line_end(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\r\n{"id": "b", "text": "y"}')
    assert [document.id for document in read_jsonl(path)] == ["a", "b"]
    path.write_bytes(b"\xef\xbb\xbf\n")
    assert list(read_jsonl(path)) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "body": "b"}, "field 'text' is missing; the line has: body, id"),
        ({"text": "b"}, "field 'id' is missing; the line has: text"),
        ({}, "field 'id' is missing; the line has: no fields"),
        ({f"f{at:02}": 1 for at in range(30)}, "f18, f19 and 10 more"),
        ({"id": "a", "text": None}, "field 'text' is null"),
        ({"id": None, "text": "b"}, "field 'id' is null"),
        ({"_id": None, "text": "b"}, "field '_id' is null"),
        ({"id": "", "text": "b"}, "field 'id' is empty; every document needs an id"),
        ({"id": 1.5, "text": "b"}, "field 'id' must be a string or an integer, got number 1.5"),
        ({"id": True, "text": "b"}, "field 'id' must be a string or an integer, got boolean true"),
        ({"id": ["a"], "text": "b"}, "field 'id' must be a string or an integer, got list"),
        ({"id": "a", "text": 3}, "field 'text' must be a string, got number 3"),
        ({"id": "a", "text": ["b"]}, "field 'text' must be a string, got list"),
        ({"id": "a", "text": "b", "title": 3}, "field 'title' must be a string, got number 3"),
        (
            {"id": "a", "text": "b", "metadata": {"y": 1}, "y": True},
            "field 'y' stands beside 'metadata' as boolean true",
        ),
        ("[1]", "expected a JSON object, got list [1]; every line must be one JSON object"),
        ("null", "expected a JSON object, got null"),
        ("{'id': 1}", "not JSON: Expecting property name enclosed in double quotes at character 2"),
        ('{"id": "a", "text": "b"', "not JSON: Expecting ',' delimiter at character 25"),
        ('{"id": "a"} {}', "not JSON: Extra data at character 13"),
        ('{"id": "a", "text": "b", "x": NaN}', "NaN is no JSON value"),
        ('{"id": "a", "text": "b", "x": [-Infinity]}', "-Infinity is no JSON value"),
        ('{"id": "a", "text": "b", "x": 1e999}', "field 'metadata'.x is inf"),
        ('{"id": "a", "text": "b", "id": "c"}', "field 'id' comes twice"),
        ('{"id": "a", "text": "b", "x": {"y": 1, "y": 1}}', "field 'y' comes twice"),
        ('{"id": "a", "text": "\\ud800"}', "field 'text' holds a lone surrogate"),
        (f'{{"id": {"9" * 5000}, "text": "b"}}', "Exceeds the limit"),
        (f'{{"id": "a", "text": "b", "x": {"[" * 100_000}', "nested too deep"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_place(line: object, message: str, tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"id": "before", "text": "x"}, "", line, "not reached")
    said = failure(read_jsonl(path))
    assert said.startswith(f"{path}, line 3: ")
    assert message in said


@pytest.mark.parametrize("depth", [50, 300, 900, 950, 980, 990, 1000, 5000])
def test_deep_metadata_is_read_or_refused_and_never_a_crash(depth: int, tmp_path: Path) -> None:
    nested = "[" * depth + "]" * depth
    reader = read_jsonl(lines_file(tmp_path, f'{{"id": "a", "text": "b", "x": {nested}}}'))
    said, found = "", []
    try:
        found = list(reader)
    except DocumentError as error:
        said = str(error)
    assert len(found) == 1 or (depth > 100 and "nested too deep" in said)


def test_a_single_name_is_no_sequence_of_names(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"id": "a", "text": "b"})
    with pytest.raises(SourceError, match=r"write \['year'\]"):
        read_jsonl(path, metadata="year")
    with pytest.raises(SourceError, match=r"write \['year'\]"):
        read_csv(path, metadata="year", delimiter=",")
    with pytest.raises(SourceError, match=r"write \['\*\.rst'\]"):
        read_folder(tmp_path, patterns="*.rst")


# BEIR folders


def test_beir_merges_metadata_and_other_fields(tmp_path: Path) -> None:
    lines_file(
        tmp_path,
        {"_id": "a", "title": "T", "text": "x", "metadata": {"url": "u"}, "year": 3},
        {"_id": "b", "text": "y", "id": "other"},
        {"_id": 3, "text": "", "metadata": {}},
        name="corpus.jsonl",
    )
    assert list(read_beir(tmp_path)) == [
        Document("a", "x", "T", {"url": "u", "year": 3}),
        Document("b", "y", "", {"id": "other"}),
        Document("3", ""),
    ]


def test_beir_names_its_file(tmp_path: Path) -> None:
    lines_file(tmp_path, {"_id": "a", "text": "x"}, {"id": "b", "text": "y"}, name="corpus.jsonl")
    found = read_beir(f"{tmp_path}/").entries()
    assert next(found)[0] == f"{tmp_path}/corpus.jsonl, line 1"
    with pytest.raises(DocumentError, match=r"/corpus\.jsonl, line 2: field '_id' is missing; the line has: id, text"):
        next(found)
    conflict = {"_id": "a", "text": "x", "metadata": {"year": 1}, "year": "1"}
    lines_file(tmp_path, conflict, name="corpus.jsonl")
    assert "'year' stands beside 'metadata' as text \"1\" and within it as number 1" in failure(read_beir(tmp_path))


def test_beir_needs_a_folder_with_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"has neither corpus\.jsonl nor corpus\.jsonl\.gz"):
        read_beir(tmp_path)
    path = lines_file(tmp_path, {"_id": "a", "text": "x"}, name="corpus.jsonl")
    with pytest.raises(SourceError, match="is no folder: give the folder"):
        read_beir(path)


# Choosing a reader


def test_paths_that_are_no_source_say_what_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a.jsonl.zip").write_text("x")
    for name in ("empty", "notes.txt", "a.jsonl.zip"):
        with pytest.raises(SourceError, match=r"accepted are a BEIR folder .* \.jsonl, \.csv or \.tsv .* folder of"):
            read_documents(tmp_path / name)


@pytest.mark.parametrize("read", [read_documents, read_jsonl, read_csv, read_folder, read_beir])
def test_a_path_with_nothing_there_is_said_at_once(read: Callable[..., DocumentReader], tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"absent\.csv: there is no such file or folder") as caught:
        read(tmp_path / "absent.csv")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, RetrieversError)


@pytest.mark.parametrize("read", [read_jsonl, read_csv])
def test_a_folder_is_no_file(read: Callable[..., DocumentReader], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder, and a file was expected"):
        read(tmp_path)


def test_a_file_that_goes_away_is_said_when_it_is_read(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"id": "a", "text": "x"})
    reader = read_jsonl(path)
    path.unlink()
    with pytest.raises(SourceNotFoundError, match=r"docs\.jsonl: there is no such file"):
        list(reader)
    path.mkdir()
    with pytest.raises(SourceError, match="is a folder"):
        list(reader)


def test_places_hold_the_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines_file(tmp_path, {"id": "a", "text": "x"})
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "n.txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    given = {"./docs.jsonl": "./docs.jsonl, line 1", "sub//": "sub/n.txt", "./sub": "./sub/n.txt", ".": "./sub/n.txt"}
    found = {path: read_documents(path) for path in given}
    monkeypatch.chdir("/")  # a reader goes on after a change of the working directory
    assert {path: next(reader.entries())[0] for path, reader in found.items()} == given


# Bytes


def cut(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)[:-9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "d.jsonl",
            b'{"id": "a", "text": "x"}\n{"id": "b", "te\xe9"}\n',
            "line 2: byte 16 of the line, 0xe9, is not UTF-8",
        ),
        ("d.jsonl", b'{"id": "a", "text": "\xc3', "line 1: byte 22 of the line, 0xc3, is not UTF-8: convert the file"),
        (
            "d.jsonl",
            '{"id": "a"}'.encode("utf-16"),
            "line 1: byte 1 of the line, 0xff, is not UTF-8: the file looks like UTF-16",
        ),
        (
            "d.jsonl",
            gzip.compress(b"{}", mtime=0),
            "line 1: byte 2 of the line, 0x8b, is not UTF-8: the file looks like gzip",
        ),
        ("d.jsonl.gz", b'{"id": "a", "text": "x"}\n', "line 1: this is no sound gzip file"),
        ("d.jsonl.gz", b"", "the gzip file is cut off at its first byte"),
        ("d.jsonl.gz", cut(b'{"id": "a", "text": "x"}\n' * 9), "line 1: the gzip file is cut off here"),
        ("d.csv.gz", cut(b"id,text\na,b\n"), "line 1: the gzip file is cut off here"),
        (
            "d.jsonl.gz",
            gzip.compress(b'{"id": "a", "text": "x"}\n', mtime=0)[:-8] + bytes(8),
            "this is no sound gzip file: CRC",
        ),
        ("d.jsonl.gz", gzip.compress(b"x", mtime=0)[:10] + b"\xff" * 9, "this is no sound gzip file"),
    ],
)
def test_damaged_bytes_are_said_with_their_place(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = table_file(tmp_path, content, name)
    said = failure(read_documents(path))
    assert said.startswith(str(path))
    assert message in said


def test_what_comes_before_the_cut_of_a_gzip_file_is_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"id": f"{at}", "text": os.urandom(500).hex()}) + "\n" for at in range(2000))
    path = table_file(tmp_path, gzip.compress(lines.encode(), mtime=0)[:600_000], "docs.jsonl.gz")
    found: list[str] = []
    with pytest.raises(DocumentError, match=r"docs\.jsonl\.gz, line (\d+): the gzip file is cut off here") as caught:
        found.extend(place for place, _ in read_jsonl(path).entries())
    assert f"line {len(found) + 1}:" in str(caught.value) or not found


# Streaming


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz", "docs.csv"])
def test_the_first_document_comes_before_the_last_is_read(name: str, tmp_path: Path) -> None:
    good = 'id,text\na,b\n{broken"\n' if name.endswith(".csv") else '{"id": "a", "text": "b"}\n{broken\n'
    data = good.encode()
    path = table_file(tmp_path, gzip.compress(data, mtime=0) if name.endswith(".gz") else data, name)
    for stream in (read_documents(path).entries(), entries(read_documents(path))):
        assert next(stream) == (f"{path}, line {2 if name.endswith('.csv') else 1}", Document("a", "b"))
        with pytest.raises(DocumentError):
            next(stream)
    stream_of_documents = iter(read_documents(path))
    assert next(stream_of_documents) == Document("a", "b")


def peak(consume: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        consume()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["docs.jsonl", "docs.jsonl.gz", "docs.csv"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    def write(count: int) -> DocumentReader:
        path = tmp_path / f"{count}-{name}"
        with gzip.open(path, "wt") if name.endswith(".gz") else path.open("w") as file:
            if name.endswith(".csv"):
                file.write("id,text\n")
            for at in range(count):
                key = f"{at:0100}"
                file.write(f"{key},text\n" if name.endswith(".csv") else f'{{"id": "{key}", "text": "text"}}\n')
        return read_documents(path)

    def drain(stream: Iterator[Any]) -> None:
        for _ in stream:
            pass

    small, large = write(3_000), write(9_000)  # the small one fills every buffer
    assert peak(lambda: drain(large.entries())) < peak(lambda: drain(small.entries())) + 20_000
    assert peak(lambda: drain(iter(large))) < 700_000  # the ids alone would take 1.3 million bytes


def test_a_reader_reads_again_at_each_iteration(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"id": "a", "text": "x"})
    reader = read_jsonl(path)
    assert [document.id for document in reader] == ["a"]
    assert [document.id for document in reader] == ["a"]
    lines_file(tmp_path, {"id": "b", "text": "x"})
    first, second = iter(reader), iter(reader)
    assert next(first) == next(second) == Document("b", "x")
    assert repr(reader) == f"<DocumentReader of {path}>"


# Ids that come twice


def test_duplicates_are_refused_with_both_places(tmp_path: Path) -> None:
    path = lines_file(tmp_path, {"id": "1", "text": "x"}, "", {"id": "b", "text": "y"}, {"id": 1, "text": "z"})
    found = []
    with pytest.raises(DuplicateIdError) as caught:
        found.extend(document.id for document in read_jsonl(path))
    assert str(caught.value) == f"document id '1' came twice: {path}, line 1, and {path}, line 4; ids must differ"
    assert [document.id for _, document in read_jsonl(path).entries()] == ["1", "b", "1"]


def test_duplicates_in_a_table_are_refused_with_both_places(tmp_path: Path) -> None:
    path = table_file(tmp_path, 'id,text\na,"x\ny"\nb,z\nb,z\n')
    assert f"id 'b' came twice: {path}, line 4, and {path}, line 5" in failure(read_csv(path))


def test_a_collision_of_hashes_is_no_duplicate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_hash", lambda id_: len(id_))
    path = lines_file(tmp_path, *({"id": f"{at}", "text": "x"} for at in range(30)), {"id": "17", "text": "y"})
    found = []
    with pytest.raises(DuplicateIdError, match=r"'17' came twice: .*, line 18, and .*, line 31"):
        found.extend(document.id for document in read_jsonl(path))


@pytest.mark.parametrize("spread", [1, 24, 0x9E3779B97F4A7C15])
def test_every_duplicate_is_found_among_many(spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_hash", lambda id_: int(id_) * spread - (1 << 63))
    read = 0

    def source() -> Iterator[tuple[str, Document]]:
        for at in range(5000):
            yield f"place {at}", Document(f"{at}", "")
        yield "the end", Document(f"{read}", "")

    assert len(list(DocumentReader("numbers", lambda: (pair for pair in source() if pair[0] != "the end")))) == 5000
    for read in (0, 1, 681, 682, 683, 4999):
        with pytest.raises(DuplicateIdError, match=f"'{read}' came twice: place {read}, and the end"):
            list(DocumentReader("numbers", source))


def test_a_duplicate_in_what_can_be_read_only_once_is_refused_too() -> None:
    once = iter([("one", Document("a", "x")), ("two", Document("b", "x")), ("three", Document("a", "y"))])
    with pytest.raises(DuplicateIdError, match="a document before it, which can no longer be read, and three"):
        list(DocumentReader("a pipe", lambda: once))
