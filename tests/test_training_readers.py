"""Training sets from each format: what is read, what is scored, and what is refused, with its place."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import lines_file
from typer.testing import CliRunner

from retrievers.cli import app
from retrievers.documents import Document
from retrievers.errors import SourceNotFoundError, TrainingDataError
from retrievers.training.readers import from_beir, from_columns, from_flagembedding, from_pylate, from_tevatron
from retrievers.training.sets import TrainingSet
from retrievers.training.sources import join, sources_of


def shown(training: TrainingSet) -> dict[str, tuple[list[str], dict[str, float | None]]]:
    """Query texts with the texts of positives, and of candidates with their scores."""
    scores = training.scores("given").tolist() if training.teachers else [math.nan] * len(training.candidates.rows)
    found = {}
    for row in range(len(training)):
        own = scores[training.candidates.span(row)]
        listed = training.documents.texts(training.candidates.of(row))
        pairs = {text: None if math.isnan(score) else score for text, score in zip(listed, own, strict=True)}
        found[training.queries.text(row)] = training.documents.texts(training.positives.of(row)), pairs
    return found


def beir(folder: Path) -> Path:
    (folder / "qrels").mkdir()
    corpus = lines_file(
        folder, {"_id": "d 1", "title": "T", "text": "one"}, {"_id": "d2", "text": ""}, name="corpus.jsonl"
    )
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    corpus.unlink()
    lines_file(folder, *({"_id": id, "text": id.upper()} for id in ("q1", "q2", "q3")), name="queries.jsonl")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq2\td 1\t2\nq2\td2\t1\nq1\td2\t1\n")
    return folder


def test_beir(tmp_path: Path) -> None:
    source = beir(tmp_path)
    training = from_beir(source, tmp_path / "set")
    assert shown(training) == {"Q1": ([""], {}), "Q2": (["T one", ""], {})}
    assert training.queries.ids([0, 1]) == ["q1", "q2"]
    with pytest.raises(TrainingDataError, match=r"1 of 2 queries have no positive, .*'q1'.*lonely='drop'"):
        from_beir(source, tmp_path / "graded", least_grade=2)
    assert shown(from_beir(source, tmp_path / "graded", least_grade=2, lonely="drop")) == {"Q2": (["T one"], {})}
    with pytest.raises(SourceNotFoundError, match=r"qrels/dev\.tsv.*train\.tsv"):
        from_beir(source, tmp_path / "other", "dev")
    for text, message in (("q1\td9\t1\n", "'d9'"), ("q9\td2\t1\n", "'q9'"), ("q1 d2\n", r"train\.tsv, line 1")):
        (source / "qrels" / "train.tsv").write_text(text)
        with pytest.raises(TrainingDataError, match=message):
            from_beir(source, tmp_path / "bad")
    assert not list(tmp_path.glob("bad*"))


def test_a_real_beir_folder(collections: Path, tmp_path: Path) -> None:
    training = from_beir(collections / "squad-dev", tmp_path / "set")
    assert (len(training), len(training.documents), len(training.positives.rows)) == (4989, 2067, 4989)


ROWS: list[dict[str, Any]] = [
    {"query": "q", "positive": "p", "negative_10": "n10", "negative_2": "n2", "score": [3, 1, 2]},
    {"query": "q", "positive": "p2", "negative": "n2", "score": [2.5, 9.0]},
    {"anchor": "r", "positive": "p", "negative": None, "score": 0.5},
    {"query": "s", "positive": "q", "source": 7},
]
READ = {
    "q": (["p", "p2"], {"p": 3.0, "n2": 1.0, "n10": 2.0, "p2": 2.5}),
    "r": (["p"], {"p": 0.5}),
    "s": (["q"], {}),
}


def test_columns_from_rows_a_file_and_a_data_set(tmp_path: Path) -> None:
    training = from_columns(iter(ROWS[:2] + ROWS[3:]), tmp_path / "rows")
    assert shown(training) == {"q": READ["q"], "s": READ["s"]}
    assert len(training.documents) == 5
    rows = [
        {name: value for name, value in row.items() if name != "negative"} if "anchor" in row else row for row in ROWS
    ]
    assert shown(from_columns(lines_file(tmp_path, *rows), tmp_path / "file")) == READ
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"anchor": "q", "positive": "p", "negative": "n", "scores": [1.0, 0.5]}])
    for number, format in enumerate((None, "numpy")):
        read = from_columns(data.with_format(format), tmp_path / f"set-{number}")
        assert shown(read) == {"q": (["p"], {"p": 1.0, "n": 0.5})}


def test_margins(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "p", "negative": f"n{n}", "score": n / 2} for n in (1, 3)]
    assert shown(from_columns(rows, tmp_path / "one")) == {"q": (["p"], {"p": 0.0, "n1": -0.5, "n3": -1.5})}
    with pytest.raises(TrainingDataError, match=r"row 3: .*margins to another positive"):
        from_columns([*rows, {**rows[0], "positive": "other"}], tmp_path / "two")


@pytest.mark.parametrize("by_qrels", [False, True])
def test_pylate(tmp_path: Path, by_qrels: bool) -> None:
    documents = [Document(str(n), f"d{n}") for n in range(5)]
    lists = lines_file(tmp_path, {"query_id": 7, "document_ids": [2, "1", 3], "scores": [0.9, None, 0.1]})
    qrels = {"7": {"3": 2, "4": 1, "2": 0}} if by_qrels else None
    training = from_pylate({"7": "q", "8": "unused"}, documents, lists, tmp_path / "set", qrels=qrels)
    scores = {"d2": pytest.approx(0.9), "d1": None, "d3": pytest.approx(0.1)}
    wanted = (["d3", "d4"], {**scores, "d4": None}) if by_qrels else (["d2"], scores)
    assert shown(training) == {"q": wanted}
    assert len(training.documents) == 5


def test_pylate_refuses_ids_without_text(tmp_path: Path) -> None:
    row = {"query_id": "7", "document_ids": ["1"]}
    with pytest.raises(TrainingDataError, match=r"row 1: query '7'"):
        from_pylate({}, [Document("1", "d")], [row], tmp_path / "set")
    with pytest.raises(TrainingDataError, match="document"):
        from_pylate({"7": "q"}, [Document("2", "d")], [row], tmp_path / "set")


def test_flagembedding(tmp_path: Path) -> None:
    path = lines_file(
        tmp_path,
        {"query": "q", "pos": ["a", "b"], "neg": ["c"], "pos_scores": [1, 2], "neg_scores": [0.5], "id": "x"},
        {"query": "r", "pos": ["c"], "neg": ["a"], "pos_scores": None},
    )
    training = from_flagembedding(path, tmp_path / "set")
    assert shown(training) == {
        "q": (["a", "b"], {"a": 1.0, "b": 2.0, "c": 0.5}),
        "r": (["c"], {"c": None, "a": None}),
    }
    assert training.queries.id(0) == "x"
    assert len(training.documents) == 3


def tevatron(**changes: Any) -> dict[str, Any]:
    row = {
        "query_id": 1,
        "query": "q",
        "positive_passages": [{"docid": "a", "title": "T", "text": "one"}],
        "negative_passages": [{"docid": 2, "text": "two"}],
    }
    return {**row, **changes}


def test_tevatron(tmp_path: Path) -> None:
    training = from_tevatron([tevatron(), tevatron(query_id="2", query="r", negative_passages=[])], tmp_path / "set")
    assert shown(training) == {"q": (["T one"], {"T one": None, "two": None}), "r": (["T one"], {})}
    assert training.documents.ids([0, 1]) == ["a", "2"]
    assert training.teachers == ()


FLAG = {"query": "q", "pos": ["a"]}


@pytest.mark.parametrize(
    ("read", "line", "message"),
    [
        (from_columns, "{", "not JSON"),
        (from_columns, {"positive": "p"}, "'anchor' or 'query'"),
        (from_columns, {"query": "q", "anchor": "q", "positive": "p"}, "mean the same"),
        (from_columns, {"query": "q", "positive": 3}, "'positive' must hold text"),
        (from_columns, {"query": " ", "positive": "p"}, "blank"),
        (from_columns, {"query": "\ud800", "positive": "p"}, "surrogate"),
        (from_columns, {"query": "q", "positive": "p", "label": 0}, "'label' is not read"),
        (from_columns, {"query": "q", "positive": "p", "score": [1, 2, 3]}, "3 scores for 1 texts"),
        (from_columns, {"query": "q", "positive": "p", "score": 1e39}, "no finite 32-bit float"),
        (from_flagembedding, {**FLAG, "neg": "n"}, "must be a list of texts"),
        (from_flagembedding, {**FLAG, "pos_scores": [1, 2]}, "2 scores for 1 texts"),
        (from_flagembedding, {**FLAG, "pos_scores": [True]}, "no finite 32-bit float"),
        (from_tevatron, tevatron(query_id=None), "'query_id' is null"),
        (from_tevatron, tevatron(positive_passages=["a"]), "list of objects"),
        (from_tevatron, tevatron(query_id=""), "not empty"),
        (from_tevatron, tevatron(negative_passages=[{"docid": "a", "text": "another"}]), "two texts"),
        (from_tevatron, tevatron(query="another"), "came before with another text"),
    ],
)
def test_malformed_lines_have_a_place(
    tmp_path: Path, read: Callable[..., TrainingSet], line: Any, message: str
) -> None:
    sound = tevatron() if read is from_tevatron else FLAG | {"positive": "p"}
    path = lines_file(tmp_path, sound, "", line)
    with pytest.raises(TrainingDataError, match=message) as caught:
        read(path, tmp_path / "set")
    assert "docs.jsonl, line 3" in str(caught.value) or message == "two texts"
    assert [found.name for found in tmp_path.iterdir()] == ["docs.jsonl"]


def test_queries_without_positives(tmp_path: Path) -> None:
    rows = [FLAG, {"query": "r", "pos": [], "neg": ["a"]}]
    with pytest.raises(TrainingDataError, match=r"1 of 2 queries have no positive, the first is row 2"):
        from_flagembedding(rows, tmp_path / "set")
    assert len(from_flagembedding(rows, tmp_path / "set", lonely="drop")) == 1
    with pytest.raises(TrainingDataError, match="exists already"):
        from_flagembedding(rows, tmp_path / "set", lonely="drop")
    with pytest.raises(TrainingDataError, match="1 of 1 queries"):
        from_flagembedding(rows[1:], tmp_path / "none", lonely="drop")


def test_several_sources_become_one_set(tmp_path: Path) -> None:
    one = from_columns(
        [{"query": "q", "positive": "p", "negative": "n", "score": [2, 1]}, {"query": "r", "positive": "p"}],
        tmp_path / "one",
    )
    two = from_flagembedding([{"id": "x", "query": "q", "pos": ["p"], "neg": ["n", "m"]}], tmp_path / "two")
    two.add_scores("other", np.array([3.0, 2.0, 1.0]))
    joined = join({"left": one, "right": two}, tmp_path / "joined")
    assert joined.queries.ids(range(3)) == [*(f"left/{id}" for id in one.queries.ids(range(2))), "right/x"]
    assert len(joined.documents) == len(one.documents) + len(two.documents)
    positives = [joined.documents.texts(joined.positives.of(row)) for row in range(3)]
    candidates = [joined.documents.texts(joined.candidates.of(row)) for row in range(3)]
    assert (positives, candidates) == ([["p"]] * 3, [["p", "n"], [], ["p", "n", "m"]])
    assert joined.teachers == ("given", "other")
    np.testing.assert_array_equal(joined.scores("given"), [2, 1, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(joined.scores("other"), [np.nan, np.nan, 3, 2, 1])
    sources = sources_of(joined)
    assert (sources.names, sources.numbers.tolist()) == (("left", "right"), [0, 0, 1])
    with pytest.raises(TrainingDataError, match=r"query 'x' .* has no source"):
        sources_of(two)
    for sets, message in (({}, "nothing to join"), ({"a/b": one}, "'a/b' is no name"), ({"": one}, "'' is no name")):
        with pytest.raises(TrainingDataError, match=message):
            join(sets, tmp_path / "bad")
    with pytest.raises(TrainingDataError, match="exists already"):
        join({"left": one}, tmp_path / "joined")


def made(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["train", "set", *arguments])


def test_the_command_makes_sets_of_every_format(tmp_path: Path) -> None:
    place = lines_file(tmp_path, tevatron(), name="t.jsonl")
    assert made(str(place), "-o", str(tmp_path / "t"), "--format", "tevatron").exit_code == 0
    place = lines_file(tmp_path, FLAG, name="f.jsonl")
    assert made(str(place), "-o", str(tmp_path / "f"), "--format", "flagembedding").exit_code == 0
    place = lines_file(tmp_path, {"query": "q", "positive": "p"}, name="c.jsonl")
    assert made(str(place), "-o", str(tmp_path / "c"), "--format", "columns").exit_code == 0
    assert [len(TrainingSet.open(tmp_path / name)) for name in "tfc"] == [1, 1, 1]
    queries = lines_file(tmp_path, {"_id": "7", "text": "q"}, {"_id": "8", "text": "r"}, name="queries.jsonl")
    corpus = lines_file(tmp_path, *({"_id": str(n), "text": f"d{n}"} for n in range(4)), name="corpus.jsonl")
    rows = [{"query_id": 7, "document_ids": [1, 2], "scores": [1, 0]}, {"query_id": 8, "document_ids": [3]}]
    lists = lines_file(tmp_path, *rows, name="lists.jsonl")
    judged = tmp_path / "qrels.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\n7\t2\t1\n")
    given = [str(lists), "--format", "pylate", "--queries", str(queries), "--documents", str(corpus)]
    done = made(*given, "-o", str(tmp_path / "p"))
    assert done.exit_code == 0, done.output
    assert "2 queries, 4 documents, 2 positives, 2 candidates" in done.stdout
    lonely = made(*given, "-o", str(tmp_path / "judged"), "--qrels", str(judged))
    assert (lonely.exit_code, "have no positive" in lonely.output) == (1, True)
    done = made(*given, "-o", str(tmp_path / "judged"), "--qrels", str(judged), "--lonely", "drop")
    assert done.exit_code == 0, done.output
    assert shown(TrainingSet.open(tmp_path / "judged")) == {"q": (["d2"], {"d1": 1.0, "d2": 0.0})}


def test_the_command_joins_several_sources(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders.append(str(beir(tmp_path / name)))
    done = made(*folders, "-o", str(tmp_path / "set"))
    assert done.exit_code == 0, done.output
    found = TrainingSet.open(tmp_path / "set")
    assert found.queries.ids(range(4)) == ["one/q1", "one/q2", "two/q1", "two/q2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set", "two"]
    (tmp_path / "two" / "queries.jsonl").unlink()
    assert made(*folders, "-o", str(tmp_path / "other")).exit_code == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set", "two"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "--format", "pylate"], "--queries"),
        (["a", "--format", "pylate", "--queries", "q"], "--documents"),
        (["a", "b", "--format", "pylate", "--queries", "q", "--documents", "d"], "one file of lists"),
        (["a", "--qrels", "q"], "it goes with --format pylate"),
        (["x/train", "y/train"], "two of them are named 'train'"),
    ],
)
def test_what_the_command_is_not_given_is_said(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = made(*arguments, "-o", str(tmp_path / "set"))
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
