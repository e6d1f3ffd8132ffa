"""Runs and qrels: their order, their files, and what is refused in them."""

from __future__ import annotations

import gzip
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers import Document, Hit
from retrievers.errors import DocumentError, QrelsError, RunError, SourceNotFoundError
from retrievers.runs import decreasing, ranking, read_qrels, read_run, run_of, write_run

words = st.text(st.characters(exclude_categories=["Cs", "Z", "Cc"]), min_size=1, max_size=8).filter(str.strip)
scores = st.one_of(st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 2.5, -3.0]), st.floats(-1e30, 1e30))
runs = st.dictionaries(words, st.dictionaries(words, scores, max_size=12), max_size=4)


def test_the_order_is_that_of_trec_eval() -> None:
    # Equal as 32-bit floats are "b" and "c": the later id comes first.
    assert [id for id, _ in ranking({"a": 2.0, "b": 1.0, "c": 1.0 + 1e-12, "d": 1.1})] == ["a", "d", "c", "b"]
    with pytest.raises(RunError, match="'x' has the score NaN"):
        ranking({"a": 1.0, "x": float("nan")})


def test_the_run_of_hits_keeps_their_order_where_scores_are_equal() -> None:
    hits = [Hit(id, score, Document(id, "")) for id, score in [("b", 3.0), ("a", 1.0), ("c", 1.0), ("d", 1.0)]]
    run = run_of(["q", "empty"], [hits, []])
    assert [id for id, _ in ranking(run["q"])] == ["b", "a", "c", "d"]
    assert run["q"]["a"] == 1.0
    assert run["q"]["c"] == np.nextafter(np.float32(1), np.float32(0))
    assert run["empty"] == {}


@given(st.lists(scores, max_size=30))
def test_decreasing_scores_never_rise_above_what_they_were(values: list[float]) -> None:
    ranked = sorted(np.array(values, np.float32).tolist(), reverse=True)
    lowered = decreasing(ranked)
    assert all(second < first for first, second in pairwise(lowered))
    assert all(after <= before for after, before in zip(lowered, ranked, strict=True))


@settings(max_examples=200, deadline=None)
@given(run=runs)
@pytest.mark.parametrize("name", ["found.run", "found.run.gz"])
def test_what_was_written_is_read_in_the_same_order(
    run: dict[str, dict[str, float]], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / name
    write_run(path, run)
    found = read_run(path)
    assert list(found) == [query for query in run if run[query]]
    for query, mine in found.items():
        assert [id for id, _ in ranking(mine)] == [id for id, _ in ranking(run[query])]
        assert len(set(np.array(list(mine.values()), np.float32).tolist())) == len(mine)
    write_run(path, found)
    assert read_run(path) == found


def test_the_file_is_plain_trec(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q1": {"b": 0.5, "a": 0.5, "c": 9.25}}, tag="mine")
    assert (tmp_path / "r").read_text() == ("q1 Q0 c 1 9.25 mine\nq1 Q0 b 2 0.5 mine\nq1 Q0 a 3 0.49999997 mine\n")
    write_run(tmp_path / "r.gz", {"q1": {"c": 9.25}})
    assert gzip.decompress((tmp_path / "r.gz").read_bytes()) == b"q1 Q0 c 1 9.25 retrievers\n"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r"
    write_run(path, {"q": {"a": 1.0}})
    before = path.read_bytes()
    for run, complaint in [
        ({"q": {"a": 1.0}, "a b": {"a": 1.0}}, "query id 'a b'"),
        ({"q": {"a": 1.0, "tab\there": 2.0}}, r"document id 'tab\there'"),
        ({"q": {"": 1.0}}, "document id ''"),
        ({"q": {"a": float("nan")}}, "NaN"),
    ]:
        with pytest.raises(RunError, match=re.escape(complaint)):
            write_run(path, run)
    with pytest.raises(RunError, match="tag 'two words'"):
        write_run(path, {"q": {"a": 1.0}}, tag="two words")
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("q Q0 a 1 2.0 t\nq Q0 b 2 nan t\n", "line 2: the score 'nan' is no finite number"),
        ("q Q0 a 1 inf t\n", "line 1: the score 'inf'"),
        ("q Q0 a 1 high t\n", "line 1: the score 'high'"),
        ("q Q0 a 1 2.0\n", "line 1: 5 columns, and a run has six"),
        ("q Q0 a 1 2.0 t t\n", "line 1: 7 columns"),
        ("q Q0 a 1 2.0 t\n\nq Q0 a 2 1.0 t\n", "line 3: document 'a' comes twice for query 'q'"),
    ],
)
def test_bad_runs_name_the_line(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "bad.run").write_text(text)
    with pytest.raises(RunError, match=re.escape(complaint)) as caught:
        read_run(tmp_path / "bad.run")
    assert "bad.run" in str(caught.value)


QRELS = {
    "trec.qrels": "q1 0 d1 2\nq1 0 d2 -1\n\nq2\t0\td1\t0\n",
    "beir.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t-1\nq2\td1\t0\n",
    "bare.tsv": "q1\td1\t2\nq1\td2\t-1\nq2\td1\t0\nq2\td1\t0\n",
}


@pytest.mark.parametrize("name", QRELS)
@pytest.mark.parametrize("zipped", [False, True])
def test_qrels_of_both_forms(name: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / (name + ".gz" * zipped)
    raw = QRELS[name].encode()
    path.write_bytes(gzip.compress(raw, mtime=0) if zipped else raw)
    assert read_qrels(path) == {"q1": {"d1": 2, "d2": -1}, "q2": {"d1": 0}}


def test_ids_with_spaces_come_back_from_beir_qrels(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\nq 1\tsome  document\t1\n")
    assert read_qrels(tmp_path / "q.tsv") == {"q 1": {"some  document": 1}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("q 0 d\n", "line 1: expected query id"),
        ("q\td\n", "line 1: expected query id"),
        ("q 0 d 1\nq 0 d high\n", "line 2: the grade 'high' is no whole number"),
        ("q 0 d 1.5\n", "line 1: the grade '1.5'"),
        ("q 0 d nan\n", "line 1: the grade 'nan'"),
        ("q 0 d 1\nq 0 e 1\nq 0 d 2\n", "have the grade 1 in"),
    ],
)
def test_bad_qrels_name_the_line(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "bad.qrels").write_text(text)
    with pytest.raises(QrelsError, match=re.escape(complaint)) as caught:
        read_qrels(tmp_path / "bad.qrels")
    assert "bad.qrels" in str(caught.value)
    if "the grade 1 in" in complaint:
        assert "line 1" in str(caught.value)
        assert "line 3" in str(caught.value)


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        read_run(tmp_path / "none.run")
    (tmp_path / "binary.run").write_bytes(b"q Q0 \xff 1 1 t\n")
    with pytest.raises(DocumentError, match="line 1"):
        read_run(tmp_path / "binary.run")
