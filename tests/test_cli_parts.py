"""The parts of the command line: query files, runs, snippets, sizes, progress and vector files."""

from __future__ import annotations

import gzip
import io
import json
import re
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from retrievers import Document, Hit
from retrievers.cli import options, progress
from retrievers.cli.hits import TrecPrinter
from retrievers.cli.snippets import snippet
from retrievers.cli.vector_files import VectorFile
from retrievers.errors import DocumentError, QueryError, RunError
from retrievers.queries import Query, read_queries
from retrievers.vectors import TokenVectors, csr

QUERY_FILES = {
    "q.jsonl": '{"_id": "x", "text": "commit"}\n\n{"_id": 7, "text": "Tee", "more": 1}\n',
    "q.tsv": "x\tcommit\n7\tTee\n",
    "q.txt": "commit\n\nTee\n",
    "q.queries": '{"_id": "x", "text": "commit"}\n{"_id": "7", "text": "Tee"}\n',
    "q": "x\tcommit\n7\tTee\n",
}


@pytest.mark.parametrize("name", QUERY_FILES)
@pytest.mark.parametrize("zipped", [False, True])
def test_query_files(tmp_path: Path, name: str, zipped: bool) -> None:
    path = tmp_path / (name + (".gz" if zipped else ""))
    raw = b"\xef\xbb\xbf" + QUERY_FILES[name].replace("\n", "\r\n").encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if zipped else raw)
    ids = ["1", "2"] if name == "q.txt" else ["x", "7"]
    assert list(read_queries(str(path))) == [Query(ids[0], "commit"), Query(ids[1], "Tee")]


@pytest.mark.parametrize(
    ("name", "raw", "complaint"),
    [
        ("q.jsonl", b'{"_id": "a", "text": "x"}\n{"_id": "b"}\n', "line 2: field 'text'"),
        ("q.jsonl", b'{"_id": "", "text": "x"}\n', "line 1: field '_id'"),
        ("q.jsonl", b"[1]\n", "line 1: expected a JSON object"),
        ("q.jsonl", b"{\n", "line 1: not JSON"),
        ("q.tsv", b"a\tx\nb\n", "line 2: expected an id, a tab"),
        ("q.tsv", b"a\tx\na\ty\n", "query id 'a' came twice"),
        ("q.txt", b"fine\n\xff\n", "line 2: byte 1 of the line, 0xff, is not UTF-8"),
        ("q.txt.gz", gzip.compress(b"some lines\n" * 1000, mtime=0)[:-20], "is cut off here"),
        ("q.txt.gz", b"plain\n", "no sound gzip"),
    ],
)
def test_bad_query_files_name_the_line(tmp_path: Path, name: str, raw: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises((QueryError, DocumentError), match=re.escape(complaint)):
        list(read_queries(str(tmp_path / name)))


def scored(*scores: float) -> list[Hit]:
    return [Hit(f"d{n}", score, Document(f"d{n}", "")) for n, score in enumerate(scores)]


@given(
    st.lists(
        st.sampled_from([2.5, 1.0, 1.0000001, 0.0, -3.0, 1e-45, 3e38]) | st.floats(-1e3, 1e3, width=32), max_size=30
    )
)
@settings(max_examples=100, deadline=None)
def test_scores_of_a_run_strictly_decrease_and_hardly_move(values: list[float]) -> None:
    ranked = sorted((float(np.float32(value)) for value in values), reverse=True)
    with redirect_stdout(io.StringIO()) as output:
        TrecPrinter("t")(Query("q", "text"), scored(*ranked), None)
    rows = [line.split() for line in output.getvalue().splitlines()]
    assert [(row[0], row[2], row[3]) for row in rows] == [("q", f"d{n}", str(n + 1)) for n in range(len(ranked))]
    written = np.array([float(row[4]) for row in rows], np.float32)
    assert (written[1:] < written[:-1]).all()
    for value, score in zip(written.tolist(), ranked, strict=True):
        assert value <= score
        assert value == pytest.approx(score, rel=1e-5, abs=1e-30)


def test_a_run_refuses_white_space_by_name() -> None:
    with pytest.raises(RunError, match="query id 'a b'"):
        TrecPrinter("t")(Query("a b", "x"), [], None)
    with pytest.raises(RunError, match=r"document id 'd\\u20030'"):
        TrecPrinter("t")(Query("a", "x"), [Hit("d\u20030", 1.0, Document("d", ""))], None)


@given(st.text(max_size=300), st.text(max_size=30), st.integers(20, 200))
@settings(max_examples=150, deadline=None)
def test_snippets_are_short_and_mark_words(text: str, query: str, width: int) -> None:
    found = snippet(text, query, width)
    assert len(found.text) <= width + 8
    previous = 0
    for start, end in found.spans:
        assert previous <= start < end <= len(found.text)
        previous = end
        word = found.text[start:end].casefold()
        assert any(part and (word.startswith(part) or part.startswith(word)) for part in _words(query))


def _words(query: str) -> list[str]:
    return [query[a:b].casefold() for a in range(len(query)) for b in range(a + 1, len(query) + 1)]


def test_a_snippet_holds_the_words_of_the_query() -> None:
    text = "the start " * 60 + "where one undoes a commit in the branch " + "the end " * 60
    found = snippet(text, "how to undo a committed branch the", 100)
    assert "commit in the branch" in found.text
    assert found.text.startswith("... ")
    assert found.text.endswith(" ...")
    assert {found.text[a:b] for a, b in found.spans} >= {"commit", "branch", "undoes"}
    assert snippet("前に" * 100 + "京都の寺" + "後で" * 100, "京都", 40).spans


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("2GB", 2_000_000_000),
        ("2 gb", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("4g", 4_000_000_000),
        ("33554432", 32 << 20),
        ("33554432B", 32 << 20),
    ],
)
def test_memory_sizes(text: str, size: int) -> None:
    assert options.parse_memory(text) == size


def test_long_work_prints_lines_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_FIRST", 0.05)
    with progress.Meter("indexing", total=4096, before=1024) as meter:
        meter(2048)
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert re.fullmatch(r"indexing: 2,048 of 4,096 documents, [\d,]+/s, 0:0\d left \(0:00 so far\)", lines[0])


def test_vector_files_hold_what_was_appended(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    dense = [rng.standard_normal((n, 4)).astype(np.float32) for n in (3, 1, 5)]
    with VectorFile(tmp_path / "d.npy", tmp_path / "d.ids", "dense") as file:
        for part in dense:
            file.append(["odd\nid\u2028"] * len(part), part)
        file.finish()
    assert (np.load(tmp_path / "d.npy", allow_pickle=False) == np.concatenate(dense)).all()
    assert [json.loads(line) for line in (tmp_path / "d.ids").read_text().split("\n")[:-1]] == ["odd\nid\u2028"] * 9
    tokens = [TokenVectors(dense[0], np.array([0, 2, 3])), TokenVectors(dense[2], np.array([0, 0, 5]))]
    with VectorFile(tmp_path / "m.npz", tmp_path / "m.ids", "multi-vector") as file:
        for one in tokens:
            file.append(["a", "b"], one)
        file.finish()
    with np.load(tmp_path / "m.npz", allow_pickle=False) as stored:
        assert (stored["values"] == np.concatenate([dense[0], dense[2]])).all()
        assert stored["offsets"].tolist() == [0, 2, 3, 3, 8]
    matrices = [csr(rng.random(4, np.float32), np.array([1, 5, 0, 9]), np.array([2, 2]), 10) for _ in range(2)]
    with VectorFile(tmp_path / "s.npz", tmp_path / "s.ids", "sparse") as file:
        for matrix in matrices:
            file.append(["a", "b"], matrix)
        file.finish()
    assert (sparse.load_npz(tmp_path / "s.npz").toarray() == sparse.vstack(matrices).toarray()).all()
    with VectorFile(tmp_path / "e.npz", tmp_path / "e.ids", "sparse") as file:
        file.finish()
    assert sparse.load_npz(tmp_path / "e.npz").shape == (0, 0)
