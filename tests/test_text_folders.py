"""Folders of text files: which files, in which order, under which titles, and what each fault is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sources import failure, lines_file

from retrievers import read_documents, read_folder
from retrievers.documents import Document
from retrievers.errors import SourceError, SourceNotFoundError
from retrievers.text_folders import markdown_title


def test_a_folder_gives_its_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.md", "a/z.txt", "a.txt", "a/b/c.md", "a-b/x.txt", "B.txt", "ü/ß 漢\t.txt", "a/skip.rst"]
    for name in [*names, ".hidden.txt", ".git/x.txt", "a/.cache/y.md"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"\ufeff# Head of {name}\r\ntext\n", encoding="utf-8", newline="")
    expected = sorted(name for name in names if not name.endswith(".rst"))
    found = list(read_folder(tmp_path).entries())
    assert [document.id for _, document in found] == expected
    assert [place for place, _ in found] == [f"{tmp_path}/{name}" for name in expected]
    by_id = {document.id: document for _, document in found}
    assert by_id["b.md"] == Document("b.md", "# Head of b.md\r\ntext\n", "Head of b.md", {"path": "b.md"})
    assert by_id["a/z.txt"].title == "z"
    assert by_id["ü/ß 漢\t.txt"].title == "ß 漢\t"
    assert [document.id for document in read_folder(tmp_path, patterns=["*.rst"])] == ["a/skip.rst"]
    assert [document.id for document in read_folder(tmp_path, patterns=["b/*"])] == ["a/b/c.md"]
    assert list(read_documents(tmp_path)) == [document for _, document in found]


def test_a_folder_takes_links_to_files_and_no_links_to_folders(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("x")
    (tmp_path / "link.txt").symlink_to("real.txt")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "loop.md").symlink_to(".")
    os.mkfifo(tmp_path / "pipe.txt")  # reading it would never end
    assert [document.id for document in read_folder(tmp_path)] == ["link.txt", "real.txt"]
    (tmp_path / "broken.txt").symlink_to("nowhere")
    with pytest.raises(SourceNotFoundError, match=r"broken\.txt: there is no such file"):
        list(read_folder(tmp_path))


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# One\n## Two\n", "One"),
        ("text\n\n### Three ###\n", "Three"),
        ("   # Indented\n", "Indented"),
        ("    # code\n\n# Real\n", "Real"),
        ("#hash tag\n#\n# C# #\n", "C#"),
        ("# Learn C#\n", "Learn C#"),
        ("####### seven\n# One\n", "One"),
        ("```sh\n# comment\n```\n# Real\n", "Real"),
        ("~~~~\n```\n# a\n~~~\n# b\n~~~~\n# Real\n", "Real"),
        ("```\n# never closed\n", ""),
        ("---\n# comment: x\ntitle: y\n---\n# Real\n", "Real"),
        ("---\n\n# After a rule\n", "After a rule"),
        ("Title\n=====\n", "Title"),
        ("text\n\nTitle\r\n---\r\n# Later\n", "Title"),
        ("- item\n---\n# Real\n", "Real"),
        ("| a |\n---\n# Real\n", "Real"),
        ("\n---\n\ntext\n", ""),
        ("", ""),
    ],
)
def test_the_title_of_markdown_is_its_first_heading(text: str, title: str) -> None:
    assert markdown_title(text) == title


def test_a_markdown_file_without_heading_is_titled_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.note.md").write_text("text")
    assert [document.title for document in read_folder(tmp_path)] == ["a.note"]


def test_what_is_wrong_with_a_text_file_is_said_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        "erste Zeile\nzweite Zeile ü\nM\u00fcll\n".encode() + "Gr\u00fc\u00dfe".encode("latin-1")
    )
    assert f"{tmp_path}/a.txt, line 4: byte 3 of the line, 0xfc, is not UTF-8" in failure(read_folder(tmp_path))


def test_a_file_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"n\xfcr.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system holds UTF-8 names alone")
    said = failure(read_folder(tmp_path))
    assert r"n\xfcr.txt: the name of the file is not UTF-8" in said
    said.encode()


def test_a_folder_must_be_one_and_hold_text(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no file that matches \*\.txt, \*\.md"):
        read_folder(tmp_path)
    with pytest.raises(SourceError, match="hold an empty one"):
        read_folder(tmp_path, patterns=["*.txt", ""])
    with pytest.raises(SourceError, match="is no folder"):
        read_folder(lines_file(tmp_path))
