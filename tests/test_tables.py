"""CSV and TSV files: what comes back, and what each fault in one is called."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
import sources
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import failure, table_file

from retrievers import read_csv, read_documents
from retrievers.documents import Document
from retrievers.errors import DocumentError, SourceError


@settings(deadline=None, max_examples=60)
@given(documents=sources.documents, tabs=st.booleans(), line_end=st.sampled_from(["\r\n", "\n"]))
def test_tables_give_back_any_id_and_text(
    documents: list[Document], tabs: bool, line_end: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / ("round.tsv" if tabs else "round.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        # Python 3.11 leaves a lone carriage return without quotation marks where it is not in the line end.
        quoting = csv.QUOTE_MINIMAL if line_end == "\r\n" else csv.QUOTE_ALL
        writer = csv.writer(file, delimiter="\t" if tabs else ",", lineterminator=line_end, quoting=quoting)
        writer.writerow(["id", "title", "text"])
        writer.writerows([document.id, document.title, document.text] for document in documents)
    assert list(read_documents(path)) == documents


def test_tables_take_columns_by_name(tmp_path: Path) -> None:
    path = table_file(tmp_path, 'url;body;head;year\nu;"a;""b""";h;007\n\nv;;;\n')
    reader = read_csv(path, id="url", text="body", title="head", delimiter=";")
    assert list(reader) == [
        Document("u", 'a;"b"', "h", {"year": "007"}),
        Document("v", "", "", {"year": ""}),
    ]
    picked = read_csv(path, id="url", text="body", metadata=["year", "url"], delimiter=";")
    assert [document.metadata for document in picked] == [{"year": "007", "url": "u"}, {"year": "", "url": "v"}]
    assert [document.title for document in picked] == ["", ""]


def test_the_delimiter_follows_from_the_name(tmp_path: Path) -> None:
    expected = [Document("a", "x, y", "", {"n": "1"})]
    assert list(read_csv(table_file(tmp_path, '_id,text,n\na,"x, y",1\n'))) == expected
    assert list(read_csv(table_file(tmp_path, "_id\ttext\tn\na\tx, y\t1\n", "docs.TSV"))) == expected
    packed = gzip.compress(b"\xef\xbb\xbf_id\ttext\tn\r\na\tx, y\t1\r\n", mtime=0)
    assert list(read_csv(table_file(tmp_path, packed, "docs.tsv.gz"))) == expected
    other = table_file(tmp_path, "id|text\n", "docs.txt")
    with pytest.raises(SourceError, match=r"ends neither in \.csv nor in \.tsv: say which delimiter"):
        read_csv(other)
    assert list(read_csv(other, delimiter="|")) == []


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n"])
def test_delimiters_that_cannot_be_are_refused(delimiter: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="must be one character"):
        read_csv(table_file(tmp_path, "id,text\n"), delimiter=delimiter)


def test_a_place_is_the_line_on_which_a_record_begins(tmp_path: Path) -> None:
    path = table_file(tmp_path, 'id,text\na,"one\ntwo\r\n\nfour"\n\nb,x\nc,"y\nz"\nd\n')
    found = read_csv(path).entries()
    assert next(found) == (f"{path}, line 2", Document("a", "one\ntwo\r\n\nfour"))
    assert next(found)[0] == f"{path}, line 7"
    assert next(found) == (f"{path}, line 8", Document("c", "y\nz"))
    with pytest.raises(DocumentError, match=r"docs\.csv, line 10: the record has 1 fields, and the header 2"):
        next(found)


def test_fields_may_be_larger_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    text = "word " * 100_000
    before = csv.field_size_limit(131_072)
    try:
        assert next(iter(read_csv(table_file(tmp_path, f"id,text\na,{text}\n")))).text == text
    finally:
        csv.field_size_limit(max(before, csv.field_size_limit()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the file is empty, and a header line is required"),
        ("\n\r\n", "line 1: the file is empty, and a header line is required"),
        ("id,body\na,b\n", "line 1: column 'text' is missing; the header has: id, body"),
        ("\nname,text\na,b\n", "line 2: column 'id' is missing; the header has: name, text"),
        ("id,text,x,x\n", "line 1: column 'x' comes twice in the header"),
        ("id,text\na,b,c\n", "line 2: the record has 3 fields, and the header 2"),
        ("id,text\na,b\nc\n", "line 3: the record has 1 fields, and the header 2"),
        ("id,text\na,b\n,c\n", "line 3: field 'id' is empty"),
        ('id,text\na,b\nc,"d\ne\n', "line 3: the record that begins here is not well formed: unexpected end of data"),
        ('id,text\na,"b" c\n', "line 2: the record that begins here is not well formed"),
        ("id,text\na,b\rc,d\n", "line 2: the record that begins here is not well formed"),
        (b'id,text\na,"b\n\xffc"\n', "line 3: byte 1 of the line, 0xff, is not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_place(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = table_file(tmp_path, content)
    assert f"{path}, {message}" in failure(read_csv(path))


def test_named_columns_must_exist(tmp_path: Path) -> None:
    path = table_file(tmp_path, "id,text\na,b\n")
    assert "column 'head' is missing; the header has: id, text" in failure(read_csv(path, title="head"))
    assert "column 'year' is missing" in failure(read_csv(path, metadata=["year"]))
    assert "column 'key' is missing" in failure(read_csv(path, id="key"))
