"""The command line as its users run it: real commands in processes of their own, on small real data."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
from hashing import HashEncoder
from models import make_dense
from scipy import sparse

from retrievers import Document, LexicalEncoder, Retriever
from retrievers.indexes.manifest import FORMAT
from retrievers.queries import read_queries

COMMAND = [sys.executable, "-m", "retrievers"]
DOCUMENTS = [
    {
        "_id": "git",
        "title": "Undoing",
        "text": "To undo the last commit, reset the branch.",
        "year": 2021,
        "lang": "en",
    },
    {"_id": "tea", "title": "Tee", "text": "Grüner Tee aus 京都 — frisch gebrüht.", "year": 2019, "lang": "de"},
    {"_id": "two words", "title": "", "text": "Committed changes stay in the branch.", "year": 2023, "lang": "en"},
]


def run(
    *arguments: object, input: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run ``retrievers`` to its end."""
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], input=input, capture_output=True, env=environment, timeout=120, check=False
    )


def succeed(*arguments: object, **options: Any) -> str:
    """Run ``retrievers``, which must succeed; returns its standard output."""
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def jsonl(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three documents, which no test changes."""
    folder = tmp_path_factory.mktemp("small")
    source = jsonl(folder / "docs.jsonl", DOCUMENTS)
    succeed("index", "build", source, "-o", folder / "idx")
    return folder / "idx"


@pytest.fixture(scope="module")
def adi(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the adi collection, which no test changes."""
    path = tmp_path_factory.mktemp("adi") / "idx"
    told = succeed("index", "build", collections / "adi", "-o", path)
    assert re.search(r"^indexed 82 documents in [\d.]+ s \([\d,.]+/s\), [\d.]+ [kM]B: ", told)
    assert f"search it: retrievers search {path} 'your question'" in told
    return path


def test_help_and_version_are_quick_and_import_nothing_heavy() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        told = succeed("--help")
        times.append(time.perf_counter() - started)
    print(f"retrievers --help: {min(times):.3f} s")
    assert all(verb in told for verb in ("index", "search", "encode", "doctor"))
    assert re.fullmatch(r"retrievers \d+\.\d+\.\d+\n", succeed("--version"))
    program = (
        "import sys, retrievers.cli;"
        "print(*{'numpy', 'scipy', 'rich', 'torch', 'faiss', 'sqlite3', 'Stemmer'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b""


@pytest.mark.parametrize("verb", ["build", "add", "delete", "merge", "info", "verify", "search", "encode", "doctor"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    words = [verb] if verb in ("search", "encode", "doctor") else ["index", verb]
    told = succeed(*words, "--help")
    assert f"retrievers {' '.join(words)}" in told.split("Example", 1)[1]


def test_a_run_is_what_the_library_finds_and_what_trec_eval_reads(adi: Path, collections: Path, tmp_path: Path) -> None:
    queries = collections / "adi" / "queries.jsonl"
    path = tmp_path / "run.trec"
    path.write_text(succeed("search", adi, "--queries", queries, "--format", "trec", "-k", 20, "--run-tag", "bm25"))
    read = list(ir_measures.read_trec_run(str(path)))  # type: ignore[no-untyped-call]
    with Retriever.open(adi) as retriever:
        for query in read_queries(str(queries)):
            mine = [scored for scored in read if scored.query_id == query.id]
            hits = retriever.search(query.text, 20)
            assert [scored.doc_id for scored in mine] == [hit.id for hit in hits]
            assert [scored.score for scored in mine] == pytest.approx([hit.score for hit in hits], rel=1e-5)
            scores = np.array([scored.score for scored in mine], np.float32)
            assert (scores[1:] < scores[:-1]).all()
    assert all(line.endswith(" bm25") for line in path.read_text().splitlines())
    qrels = next((collections / "adi" / "qrels").glob("*.tsv"))
    judged = [
        ir_measures.Qrel(line[0], line[1], int(line[2]))
        for line in (row.split("\t") for row in qrels.read_text().splitlines()[1:])
    ]
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], judged, read)
    assert measured[ir_measures.nDCG @ 10] > 0.4


def test_json_output_is_one_object_a_line(small: Path) -> None:
    lines = succeed("search", small, "commit", "京都", "zzz", "--format", "json").splitlines()
    first, second, third = map(json.loads, lines)
    assert first["query"] == "commit"
    assert {hit["id"] for hit in first["hits"]} == {"git", "two words"}
    (hit,) = second["hits"]
    assert hit == {
        "id": "tea",
        "score": hit["score"],
        "title": "Tee",
        "text": DOCUMENTS[1]["text"],
        "metadata": {"year": 2019, "lang": "de"},
    }
    assert hit["score"] > 0
    assert third == {"id": "3", "query": "zzz", "hits": []}


def test_text_output_has_rank_score_id_title_and_snippet(small: Path) -> None:
    told = succeed("search", small, "undo a commit", "-k", 1)
    assert re.fullmatch(r"  1  \d+\.\d{4}  git  Undoing\n     To undo the last commit, reset the branch\.\n", told)


def test_a_query_without_hits_says_so(small: Path) -> None:
    done = run("search", small, "zzz")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"no document matches 'zzz'\n")


def test_explanations_sum_to_the_score(small: Path) -> None:
    answer = json.loads(succeed("search", small, "undo the commit", "--format", "json", "--explain"))
    for hit in answer["hits"]:
        assert sum(part["score"] for part in hit["contributions"]) == pytest.approx(hit["score"], rel=1e-5)
    assert {part["term"] for part in answer["hits"][0]["contributions"]}
    assert re.search(r"\n     \+\d\.\d{4}  \w+", succeed("search", small, "undo the commit", "--explain"))


def test_filters_are_obeyed_and_bad_ones_are_bad_usage(small: Path) -> None:
    condition = json.dumps({"field": "year", "operator": ">=", "value": 2022})
    found = json.loads(succeed("search", small, "branch", "--filter", condition, "--format", "json"))
    assert [hit["id"] for hit in found["hits"]] == ["two words"]
    for bad, complaint in (
        ('{"field": year}', "at character 11"),
        ('{"field": "year", "operator": "~", "value": 1}', "operator"),
        ("[1]", "object"),
    ):
        done = run("search", small, "branch", "--filter", bad)
        assert done.returncode == 2
        assert complaint in done.stderr.decode()
    other = json.dumps({"field": "year", "operator": ">=", "value": "2022"})
    done = run("search", small, "branch", "--filter", other)
    assert done.returncode == 1  # a fault of the data, which only the search can find
    assert done.stderr.startswith(b"error: ")


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["search", "nowhere", "x"], 1, "nowhere is not an index"),
        (["search", "{idx}"], 2, "--queries"),
        (["search", "{idx}", "x", "--queries", "q.txt"], 2, "not both"),
        (["search", "{idx}", "--queries", "no.txt"], 1, "no.txt: there is no such file"),
        (["search", "{idx}", "x", "-k", "0"], 2, "-k"),
        (["search", "{idx}", "x", "--format", "xml"], 2, "--format"),
        (["search", "{idx}", "x", "--format", "trec", "--explain"], 2, "--explain"),
        (["search", "{idx}", "x", "--format", "trec", "--run-tag", "a b"], 2, "--run-tag"),
        (["search", "{idx}", "branch", "--format", "trec"], 1, "document id 'two words' holds white space"),
        (["index", "build", "{docs}", "-o", "{idx}"], 1, "is an index of 3 documents already"),
        (["index", "build", "no.jsonl", "-o", "new"], 1, "no.jsonl"),
        (["index", "build", "{docs}", "-o", "new", "--memory", "lots"], 2, "'lots' is no size"),
        (["index", "build", "{docs}", "-o", "new", "--memory", "1KB"], 2, "16MiB"),
        (["index", "build", "{docs}", "-o", "new", "--index", "hnsw"], 1, "hnsw"),
        (["index", "build", "{docs}", "-o", "new", "--encoder", "bm25(k1=-1)"], 1, "k1"),
        (["index", "build", "{docs}"], 2, "--output"),
        (["index", "delete", "{idx}"], 2, "--ids-file"),
        (["index", "delete", "{idx}", "git", "nobody"], 1, "nobody"),
        (["index", "add", "{idx}", "{docs}"], 1, "came twice"),
        (["index", "info", "nowhere"], 1, "nowhere is not an index"),
        (["index", "verify", "nowhere"], 1, "nowhere is not an index"),
        (["encode", "{docs}", "-o", "x.npy", "--encoder", "bm25"], 2, ".npz"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_failures_are_one_line_and_bad_usage_is_2(
    small: Path, tmp_path: Path, arguments: list[str], code: int, complaint: str
) -> None:
    places = {"{idx}": str(small), "{docs}": str(small.parent / "docs.jsonl"), "new": str(tmp_path / "new")}
    done = run(*(places.get(argument, argument) for argument in arguments))
    told = done.stderr.decode()
    assert done.returncode == code, told
    assert complaint in told
    assert "Traceback" not in told
    if code == 1:
        assert re.fullmatch(r"error: [^\n]+\n", told)
        assert not (tmp_path / "new" / "manifest.json").exists()


def test_a_traceback_comes_when_it_is_asked_for() -> None:
    told = run("search", "nowhere", "x", env={"RETRIEVERS_TRACEBACK": "1"}).stderr.decode()
    assert "Traceback" in told
    assert "IndexNotFoundError" in told


def test_an_unforeseen_error_is_one_line(small: Path, tmp_path: Path) -> None:
    # A module that breaks in a way nobody planned for stands in front of the real one.
    (tmp_path / "scipy").mkdir()
    (tmp_path / "scipy" / "__init__.py").write_text("raise KeyError('surprise')")
    done = run("search", small, "branch", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert re.fullmatch(rb"error: unexpected KeyError: 'surprise' \(set RETRIEVERS_TRACEBACK=1 .*\)\n", done.stderr)


def test_an_index_is_changed_and_described(small: Path, tmp_path: Path) -> None:
    index = tmp_path / "idx"
    shutil.copytree(small, index)
    more = [{"_id": f"n{n}", "text": f"river number {n}", "author": {"name": "Li"}} for n in range(3)]
    assert "added 3 documents" in succeed("index", "add", index, jsonl(tmp_path / "more.jsonl", more))
    assert "deleted 1 document:" in succeed("index", "delete", index, "n1")
    (tmp_path / "gone.txt").write_text("two words\nn2\n\n")
    assert f"{index} now has 3" in succeed("index", "delete", index, "--ids-file", tmp_path / "gone.txt")
    report = json.loads(succeed("index", "info", index, "--json"))
    assert (report["documents"], report["deleted"], report["segments"]) == (3, 3, 2)
    assert (report["kind"], report["complete"], report["format"], report["generation"]) == ("lexical", True, FORMAT, 5)
    year = report["fields"]["year"]
    assert (year["documents"], year["values"], year["types"], sorted(year["examples"])) == (
        3,
        3,
        ["number"],
        [2019, 2021, 2023],
    )
    told = succeed("index", "info", index)
    assert re.search(r"^documents +3 documents \(and 3 deleted, until a merge\)$", told, re.MULTILINE)
    assert re.search(r"^field +author\.name: text in 3 documents, 1 different: \"Li\"$", told, re.MULTILINE)
    assert "merged 2 segments into 1" in succeed("index", "merge", index)
    assert json.loads(succeed("index", "info", index, "--json"))["deleted"] == 0
    assert "is sound: 3 documents" in succeed("index", "verify", index)
    assert "deleted 1 document:" in succeed("index", "delete", index, "--ids-file", "-", input=b"tea\n")


def test_verify_names_the_damaged_file(small: Path, tmp_path: Path) -> None:
    index = tmp_path / "idx"
    shutil.copytree(small, index)
    victim = next(path for path in sorted(index.rglob("records.npy")))
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    done = run("index", "verify", index)
    assert done.returncode == 1
    assert str(victim) in done.stdout.decode()
    assert done.stderr.decode() == f"error: {index} has 1 fault\n"


def test_documents_come_from_standard_input_and_named_columns(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"key": n, "body": f"number {n}", "kind": "odd"}) + "\n" for n in ("a", "b")).encode()
    fields = ["--id-field", "key", "--text-field", "body", "--metadata-field", "kind"]
    told = succeed("index", "build", "-", "-o", tmp_path / "one", *fields, "--memory", "64MiB", input=lines)
    assert "indexed 2 documents" in told
    (tmp_path / "t.csv").write_text("key;body;kind\na;number a;odd\nb;number b;odd\n")
    succeed("index", "build", tmp_path / "t.csv", "-o", tmp_path / "two", *fields, "--delimiter", ";")
    for index in ("one", "two"):
        answer = json.loads(succeed("search", tmp_path / index, "number", "--format", "json"))
        assert [(hit["id"], hit["text"], hit["metadata"]) for hit in answer["hits"]] == [
            ("a", "number a", {"kind": "odd"}),
            ("b", "number b", {"kind": "odd"}),
        ]


def test_info_tells_how_thoroughly_an_index_that_was_built_for_a_recall_searches(tmp_path: Path) -> None:
    documents = [Document(f"d{n}", f"word{n % 89} word{n % 97} {n}") for n in range(700)]
    with Retriever.build(tmp_path / "idx", documents, encoder=HashEncoder("dense"), index="hnsw(recall=0.95)") as built:
        (segment,) = built._snapshot.segments  # type: ignore[union-attr]
        settings = segment.index.settings  # type: ignore[attr-defined]
    assert settings["recall"] >= 0.95
    report = json.loads(succeed("index", "info", tmp_path / "idx", "--json"))
    assert (report["index"], report["settings"]) == ("hnsw(recall=0.95)", [settings])
    told = succeed("index", "info", tmp_path / "idx")
    (line,) = [line for line in told.splitlines() if line.startswith("settings ")]
    parts = dict(part.rsplit(" ", 1) for part in line.removeprefix("settings").strip().split(", "))
    assert {name: float(value) for name, value in parts.items()} == settings
    assert {"m", "ef_construction", "ef_search", "recall", "recall_queries"} <= parts.keys()


def test_workers_build_and_encode_the_same(tmp_path: Path) -> None:
    values = [{"id": f"d{n}", "text": f"number {n} of many documents about {n % 7} things"} for n in range(300)]
    source = jsonl(tmp_path / "docs.jsonl", values)
    for count in (1, 2):
        index, vectors = tmp_path / f"idx{count}", tmp_path / f"vectors{count}.npz"
        told = succeed("index", "build", source, "-o", index, "--workers", count)
        assert "indexed 300 documents" in told
        succeed("encode", source, "-o", vectors, "--encoder", "bm25", "--workers", count)
    with np.load(tmp_path / "vectors1.npz") as one, np.load(tmp_path / "vectors2.npz") as two:
        assert one.files == two.files
        assert all(one[name].tobytes() == two[name].tobytes() for name in one.files)
    assert (tmp_path / "idx1" / "manifest.json").read_bytes() == (tmp_path / "idx2" / "manifest.json").read_bytes()
    more = jsonl(tmp_path / "more.jsonl", [{**value, "id": f"more {value['id']}"} for value in values])
    for count in (1, 2):
        assert "added 300 documents" in succeed("index", "add", tmp_path / f"idx{count}", more, "--workers", count)
    assert (tmp_path / "idx1" / "manifest.json").read_bytes() == (tmp_path / "idx2" / "manifest.json").read_bytes()
    assert run("index", "build", source, "-o", tmp_path / "new", "--workers", 0).returncode == 2
    assert run("index", "add", tmp_path / "idx1", more, "--workers", 0).returncode == 2


def test_queries_from_standard_input(small: Path) -> None:
    lines = succeed("search", small, "--queries", "-", "--format", "trec", input=b"q1\tundo\nq2\tTee\n").splitlines()
    assert [line.split()[:4] for line in lines] == [["q1", "Q0", "git", "1"], ["q2", "Q0", "tea", "1"]]


@pytest.mark.parametrize("env", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_any_script_goes_in_and_out_in_any_locale(small: Path, env: dict[str, str]) -> None:
    assert "Grüner Tee aus 京都" in succeed("search", small, "Tee", env=env)
    answer = json.loads(succeed("search", small, "Tee", "--format", "json", env=env))
    assert answer["hits"][0]["text"] == DOCUMENTS[1]["text"]


def test_bytes_that_are_no_text_are_bad_usage(small: Path) -> None:
    done = subprocess.run([*COMMAND, "search", str(small), b"\xff"], capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert b"not UTF-8" in done.stderr


def test_a_closed_pipe_is_silent(adi: Path, collections: Path) -> None:
    command = [*COMMAND, "search", str(adi), "--queries", str(collections / "adi" / "queries.jsonl"), "-k", "80"]
    with subprocess.Popen([*command, "--format", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(60) == 0
    assert told == b""


def test_an_interrupted_build_goes_on(tmp_path: Path) -> None:
    index = tmp_path / "idx"
    values = [{"_id": f"d{n}", "text": f"word{n % 97} of document {n}"} for n in range(5000)]
    lines = [json.dumps(value).encode() + b"\n" for value in values]
    command = [*COMMAND, "index", "build", "-", "-o", str(index)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell that runs the tests in the background has them, and their children, ignore SIGINT.
    with subprocess.Popen(command, **pipes, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"".join(lines[:3000]))
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while len(list(index.glob("building/*.npz"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().decode()
        assert process.wait(60) == 130
        process.stdin.close()
    assert told == "stopped; run the same command to go on\n"
    done = run("search", index, "word1")
    assert done.returncode == 0
    assert f"warning: {index} is unfinished" in done.stderr.decode()
    assert "is unfinished" in run("index", "info", index).stderr.decode()
    assert "is unfinished" in run("index", "verify", index).stderr.decode()
    assert run("index", "add", index, "-", input=lines[0]).returncode == 1
    done = run(*command[3:], input=b"".join(lines))
    assert done.returncode == 0, done.stderr.decode()
    assert f"going on with the stopped build of {index}: 0 documents indexed already" in done.stderr.decode()
    assert run("index", "verify", index).stderr == b""
    assert json.loads(succeed("index", "info", index, "--json"))["documents"] == 5000


def on_a_terminal(*arguments: object) -> str:
    """Run ``retrievers`` on a terminal of 80 columns; returns all that it shows."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=child, stdout=child, stderr=child, env=environment
    ) as process:
        os.close(child)
        shown = b""
        while select.select([parent], [], [], 60)[0]:
            try:
                block = os.read(parent, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not block:
                break
            shown += block
        assert process.wait(60) == 0, shown.decode()
    os.close(parent)
    return shown.decode()


def test_a_terminal_shows_a_bar_and_the_words_of_the_query(small: Path, tmp_path: Path) -> None:
    shown = on_a_terminal("index", "build", small.parent / "docs.jsonl", "-o", tmp_path / "idx")
    assert "indexing" in shown
    assert " of 3 documents" in shown
    assert re.search(r"indexed 3 documents in", shown)
    shown = on_a_terminal("search", tmp_path / "idx", "undo a commit")
    assert re.search(r"\x1b\[[\d;]*mcommit\x1b\[0m", shown)


def test_nothing_in_a_document_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    nasty = {"_id": "a\nb\x1b[2J", "title": "\x1b]0;owned\x07", "text": "river \x1b[31mred\x9b1m\u202e rest"}
    succeed("index", "build", jsonl(tmp_path / "d.jsonl", [nasty]), "-o", tmp_path / "idx")
    told = succeed("search", tmp_path / "idx", "river")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", told)
    assert len(told.splitlines()) == 2


def test_encoded_documents_and_queries_are_what_the_encoder_gives(tmp_path: Path, small: Path) -> None:
    docs = small.parent / "docs.jsonl"
    told = succeed("encode", docs, "-o", tmp_path / "docs", "--encoder", "bm25")
    assert told.startswith("encoded 3 texts in ")
    contents = [f"{value['title']} {value['text']}".strip() for value in DOCUMENTS]
    wanted = LexicalEncoder().encode_document(contents)
    got: Any = sparse.load_npz(tmp_path / "docs.npz")
    assert got.shape == wanted.shape
    assert (got.indptr == wanted.indptr).all()
    assert (got.indices == wanted.indices).all()
    assert (got.data == wanted.data).all()
    ids = (tmp_path / "docs.ids.jsonl").read_text().splitlines()
    assert list(map(json.loads, ids)) == [value["_id"] for value in DOCUMENTS]
    (tmp_path / "q.tsv").write_text("q1\tundo a commit\n")
    succeed("encode", tmp_path / "q.tsv", "-o", tmp_path / "q.npz", "--encoder", "bm25", "--as", "query")
    assert sparse.load_npz(tmp_path / "q.npz").sum() == LexicalEncoder().encode_query(["undo a commit"]).sum()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "docs.ids.jsonl",
        "docs.npz",
        "q.ids.jsonl",
        "q.npz",
        "q.tsv",
    ]


def test_a_failed_encoding_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text('{"_id": "a", "text": "fine"}\n{"_id": "b"}\n')
    done = run("encode", source, "-o", tmp_path / "out" / "v.npz", "--encoder", "bm25")
    assert done.returncode == 1
    assert re.fullmatch(rb"error: [^\n]*d\.jsonl[^\n]*2[^\n]*\n", done.stderr)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path) -> None:
    values = [{"_id": f"d{n}", "text": " ".join(f"word{n * 50 + m}" for m in range(50))} for n in range(200)]
    source = jsonl(tmp_path / "d.jsonl", values)
    for arguments in (["encode", "-o", "out/v.npz", "--encoder", "bm25"], ["index", "build", "-o", "idx"]):
        done = subprocess.run(
            [*COMMAND, *arguments, str(source)],
            cwd=tmp_path,
            capture_output=True,
            check=False,
            timeout=60,
            # A limit on the size of files fails as a full disk does: in the middle of a write.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, 16 << 10)),
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 1
        assert done.stderr == b"error: File too large\n"
    assert list((tmp_path / "out").iterdir()) == []
    succeed("index", "build", source, "-o", tmp_path / "idx")
    assert "is sound" in succeed("index", "verify", tmp_path / "idx")


def test_an_index_is_tuned_by_a_file_of_questions(tmp_path: Path, small: Path) -> None:
    words = [f"word{number}" for number in range(15)]
    texts = [f"{a} {b} {c}" for a in words for b in words[:10] for c in words[:4]]
    source = jsonl(tmp_path / "docs.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    model = make_dense(tmp_path / "model")
    succeed("index", "build", source, "-o", tmp_path / "idx", "--encoder", model, "--index", "hnsw(recall=0.9)")
    told = json.loads(succeed("index", "info", tmp_path / "idx", "--json"))
    printed = succeed("index", "info", tmp_path / "idx")
    assert "recall" in printed
    assert told["index"] == "hnsw(recall=0.9)"
    (tmp_path / "questions.txt").write_text("how to undo a commit\nfind and sort\n")
    said = succeed("index", "tune", tmp_path / "idx", tmp_path / "questions.txt", "--recall", "0.8", "-k", "5")
    spec = json.loads(succeed("index", "info", tmp_path / "idx", "--json"))["index"]
    assert spec.startswith("hnsw(ef_search=")
    assert said == f"{tmp_path / 'idx'} is searched as {spec}\n"
    refused = run("index", "tune", small, tmp_path / "questions.txt")
    assert refused.returncode == 1
    assert b"cannot be tuned by questions" in refused.stderr
