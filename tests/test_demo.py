"""The demo collection: real docstrings, under the names that Python itself gives them."""

from __future__ import annotations

import importlib
import inspect
import json
import stat
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from retrievers import demo, read_documents
from retrievers.documents import Document, check_document
from retrievers.errors import SourceNotFoundError

# Modules that are imported in any case, or that import without side effects.
_COMPARED = [
    "argparse",
    "collections",
    "contextlib",
    "calendar",
    "heapq",
    "inspect",
    "json",
    "configparser",
    "shutil",
    "textwrap",
]


@pytest.fixture(scope="module")
def found() -> list[Document]:
    return list(demo.documents())


def test_there_are_thousands_of_sound_passages(found: list[Document]) -> None:
    assert len(found) > 4000
    assert len({document.id for document in found}) == len(found)
    for document in found:
        check_document(document, document.id)
        assert document.text.strip() == document.text != ""
        assert set(document.metadata) == {"module", "kind", "line", "path"}
    kinds = Counter(document.metadata["kind"] for document in found)
    assert set(kinds) == {"module", "class", "function", "method"}
    assert min(kinds.values()) > 300


@pytest.mark.parametrize("name", _COMPARED)
def test_docstrings_are_those_that_python_has(name: str, found: list[Document]) -> None:
    module = importlib.import_module(name)
    by_id = {document.id: document for document in found if document.metadata["module"] == name}
    assert by_id[name].text == inspect.cleandoc(module.__doc__ or "").strip()
    assert by_id[name].title == name
    compared = 0
    for attribute, value in vars(module).items():
        documented = inspect.isclass(value) or inspect.isfunction(value)
        if attribute.startswith("_") or not documented or value.__module__ != name or value.__name__ != attribute:
            continue
        # Docstrings that are put together at run time are in no source.
        if not isinstance(value.__doc__, str) or f"{name}.{attribute}" not in by_id:
            continue
        document = by_id[f"{name}.{attribute}"]
        if inspect.isclass(value):
            assert document.title == document.id
            assert document.metadata["kind"] == "class"
        else:
            assert document.title.startswith(f"{document.id}(")
            assert document.metadata["kind"] == "function"
            if inspect.unwrap(value) is value:
                assert document.metadata["line"] == _line_of_def(value)
        assert document.text == inspect.cleandoc(value.__doc__).strip()
        compared += 1
    assert compared >= 2


def _line_of_def(function: object) -> int:
    lines, start = inspect.getsourcelines(function)  # type: ignore[arg-type]
    return start + next(at for at, line in enumerate(lines) if line.lstrip().startswith(("def ", "async def ")))


def test_places_lead_to_the_definitions(found: list[Document]) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    for document in found[::50]:
        path = document.metadata["path"]
        assert not Path(path).is_absolute()
        if document.metadata["kind"] == "module":
            assert document.metadata["line"] == 1
            continue
        line = (root / path).read_text(encoding="utf-8").splitlines()[document.metadata["line"] - 1]
        name = document.id.split("#")[0].rsplit(".", 1)[1]
        assert name in line
        assert ("class " if document.metadata["kind"] == "class" else "def ") in line


def test_names_and_signatures(found: list[Document]) -> None:
    by_id = {document.id: document for document in found}
    assert by_id["json.dumps"].title.startswith("json.dumps(obj, *, skipkeys=False, ")
    assert by_id["json.encoder.JSONEncoder.default"].title.endswith("default(self, o)")
    assert by_id["decimal.Decimal.quantize"].metadata["kind"] == "method"  # from the Python twin of a C module
    assert by_id["datetime.datetime.strptime"].metadata["module"] == "datetime"
    assert by_id["io"].text.startswith("The io module provides")  # the twin's own docstring is io#2


def test_tests_and_private_names_are_left_out(found: list[Document]) -> None:
    for document in found:
        parts = document.id.split("#")[0].split(".")
        assert not {"test", "tests", "idle_test"}.intersection(document.metadata["path"].split("/")[:-1])
        assert all(not part.startswith("_") or (part[:2] == part[-2:] == "__") for part in parts), document.id


def test_names_that_come_again_are_numbered(found: list[Document]) -> None:
    ids = {document.id for document in found}
    again = [id_ for id_ in ids if "#" in id_]
    assert again
    for id_ in again:
        name, number = id_.split("#")
        assert name in ids
        assert number == "2" or f"{name}#{int(number) - 1}" in ids


def test_nothing_is_imported(found: list[Document]) -> None:
    assert {"turtle", "idlelib.run", "tkinter"} <= {document.metadata["module"] for document in found}
    assert not {"antigravity", "this", "turtle", "idlelib.run"}.intersection(sys.modules)


def test_a_python_without_sources_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        monkeypatch.setattr(sysconfig, "get_path", lambda name, folder=folder: str(folder))
        with pytest.raises(SourceNotFoundError, match="has no sources of the standard library"):
            next(demo.documents())


def test_definitions_under_conditions_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = '''"""  A module.

      Indented.
    """
if x:
    def dumps(a, /, b: int = 1, *c, d=lambda: 0, **e) -> None:
        "First."
        def inner():
            "Not reached."
else:
    try:
        async def dumps(): "Second."
    except E:
        def dumps(): "Third."
    finally:
        def dumps(): pass
with y:
    class K:
        "A class."
        for z in t:
            def __init__(self): "\\d"
        class L:
            """ """
            @property
            def p(self): "P."
        def _q(self): "Private."
class _P:
    def public(self): "Of a private class."
'''
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(source)
    (tmp_path / "json" / "bad.py").write_text("def f(:")
    (tmp_path / "json" / "bytes.py").write_bytes(b"x = '\xff\x00'")
    (tmp_path / "unknown.py").write_text('"""Not of the standard library."""')
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({"json"}))
    found = {document.id: document for document in demo.documents()}
    assert {id_: (document.title, document.text, document.metadata["kind"]) for id_, document in found.items()} == {
        "json": ("json", "A module.\n\nIndented.", "module"),
        "json.dumps": ("json.dumps(a, /, b: int=1, *c, d=lambda: 0, **e)", "First.", "function"),
        "json.dumps#2": ("json.dumps()", "Second.", "function"),
        "json.dumps#3": ("json.dumps()", "Third.", "function"),
        "json.K": ("json.K", "A class.", "class"),
        "json.K.__init__": ("json.K.__init__(self)", "\\d", "method"),
        "json.K.L.p": ("json.K.L.p(self)", "P.", "method"),
    }
    assert found["json.K.L.p"].metadata == {"module": "json", "kind": "method", "line": 25, "path": "json/__init__.py"}


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "retrievers.demo", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, check=False)


def test_the_command_writes_what_a_reader_reads(found: list[Document], tmp_path: Path) -> None:
    (tmp_path / "my docs.jsonl").write_text("old")
    done = command("my docs.jsonl", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    next_command = "retrievers index build 'my docs.jsonl' -o 'my docs'"
    assert done.stdout == f"wrote {len(found):,} documents; next: {next_command}\n"
    assert list(read_documents(tmp_path / "my docs.jsonl")) == found  # in another process: the order is no accident
    lines = (tmp_path / "my docs.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == len(found)
    assert set(json.loads(lines[0])) == {"id", "title", "text", "metadata"}
    assert [path.name for path in tmp_path.iterdir()] == ["my docs.jsonl"]
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1  # what the umask says, as for any file


def test_what_stops_the_command_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text("old")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "absent"))
    with pytest.raises(SourceNotFoundError):
        demo.write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    done = command("docs.txt", folder=tmp_path)
    assert done.returncode == 2
    assert "must end in .jsonl, got 'docs.txt'" in done.stderr
    done = command("absent/docs.jsonl", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert command(folder=tmp_path).returncode == 2
