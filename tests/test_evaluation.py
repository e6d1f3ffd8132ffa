"""Evaluation against trec_eval, what it counts, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from retrievers import Document, Hit, Retriever, evaluate, write_run
from retrievers.cli import app
from retrievers.cli.tasks import read_task
from retrievers.errors import MeasureError, QrelsError, QueryError, RunError, SourceNotFoundError
from retrievers.evaluation import parse_measures
from retrievers.runs import ranking

MEASURES = {
    "nDCG@10": "ndcg_cut_10",
    "nDCG": "ndcg",
    "AP": "map",
    "AP@5": "map_cut_5",
    "R@3": "recall_3",
    "P@5": "P_5",
    "RR": "recip_rank",
    "Rprec": "Rprec",
    "Bpref": "bpref",
    "Success@1": "success_1",
}
ids = st.sampled_from([f"d{number}" for number in range(12)] + ["é", "z 1", "\U0001f642", "\ufffd"])
run_of_one = st.dictionaries(ids, st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 2.0, -1.0]) | st.floats(-5, 5), max_size=14)
runs = st.fixed_dictionaries({}, optional=dict.fromkeys(("q1", "q2", "q3"), run_of_one)).filter(bool)
qrels = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3"]), st.dictionaries(ids, st.integers(-2, 3), min_size=1), min_size=1
)


@settings(max_examples=300, deadline=None)
@given(runs, qrels)
def test_values_are_those_of_trec_eval(run: dict[str, dict[str, float]], judged: dict[str, dict[str, int]]) -> None:
    if not run.keys() & judged.keys():
        with pytest.raises(QrelsError, match="no query has a judgement"):
            evaluate(run, None, judged)
        return
    outcome = evaluate(run, None, judged, list(MEASURES))
    # The original run with its ties, straight to trec_eval, which reads scores as 32-bit floats. What crashes it is left
    # out: queries without hits, and those with negative grades alone, for which nothing is relevant.
    sound = {query: grades for query, grades in judged.items() if max(grades.values()) >= 0}
    found = {query: mine for query, mine in run.items() if mine}
    expected = pytrec_eval.RelevanceEvaluator(sound, set(MEASURES.values())).evaluate(found) if sound else {}
    for measure, name in MEASURES.items():
        for query in judged:
            wanted = expected.get(query, {}).get(name, 0.0)
            assert outcome.values[measure][query] == wanted, (measure, query)
        assert outcome.means[measure] == pytest.approx(sum(outcome.values[measure].values()) / len(judged), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(runs, qrels)
def test_a_cut_off_that_trec_eval_lacks_is_that_of_the_cut_run(
    run: dict[str, dict[str, float]], judged: dict[str, dict[str, int]]
) -> None:
    if not run.keys() & judged.keys():
        return
    cut = {query: dict(ranking(found)[:2]) for query, found in run.items() if found}
    sound = {query: grades for query, grades in judged.items() if max(grades.values()) >= 0}
    outcome = evaluate(run, None, judged, "RR@2")
    expected = pytrec_eval.RelevanceEvaluator(sound, {"recip_rank"}).evaluate(cut) if sound else {}
    for query in judged:
        wanted = expected.get(query, {}).get("recip_rank", 0.0)
        assert outcome.values["RR@2"][query] == pytest.approx(wanted, abs=1e-12)


def test_values_worked_by_hand() -> None:
    # Relevant at ranks 2 and 3 of graded 3 and 1: DCG = 3/log2(3) + 1/log2(4), ideal = 3/log2(2) + 1/log2(3).
    run = {"q": {"a": 9.0, "b": 8.0, "c": 7.0}}
    outcome = evaluate(run, None, {"q": {"b": 3, "c": 1, "x": -2}, "other": {"a": 1}}, "nDCG@10 RR@10 AP NumRet")
    assert outcome.values["nDCG@10"]["q"] == pytest.approx((3 / 1.5849625 + 0.5) / (3 + 1 / 1.5849625), abs=1e-6)
    assert outcome.values["RR@10"] == {"q": 0.5, "other": 0.0}
    assert outcome.values["AP"]["q"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert outcome.means["AP"] == pytest.approx((1 / 2 + 2 / 3) / 4)
    assert outcome.means["NumRet"] == 3
    assert outcome.unasked == ("other",)


class Fixed:
    """Something that searches: the same hits for a text at every call."""

    def __init__(self, found: dict[str, list[tuple[str, float]]]) -> None:
        self.found = found
        self.depths: set[int] = set()

    def search(self, query: Sequence[str], k: int = 10) -> list[list[Hit]]:
        self.depths.add(k)
        return [[Hit(id, score, Document(id, "")) for id, score in self.found[text][:k]] for text in query]


def test_the_order_of_the_hits_counts_where_scores_are_equal() -> None:
    searcher = Fixed({"one": [("a", 1.0), ("b", 1.0)]})
    outcome = evaluate(searcher, {"q": "one"}, {"q": {"a": 1}}, "RR")
    assert outcome.means["RR"] == 1.0
    assert evaluate({"q": {"a": 1.0, "b": 1.0}}, None, {"q": {"a": 1}}, "RR").means["RR"] == 0.5


def test_the_depth_is_that_of_the_measures() -> None:
    searcher = Fixed({"one": [("a", 1.0)]})
    for measures, k, wanted in [("nDCG@10", None, 100), ("R@1000 AP", None, 1000), ("R@1000", 7, 7)]:
        searcher.depths.clear()
        evaluate(searcher, {"q": "one"}, {"q": {"a": 1}}, measures, k=k)
        assert searcher.depths == {wanted}


def test_everything_left_out_is_reported(tmp_path: Path) -> None:
    documents = [Document("a", "red apple"), Document("b", "green pear")]
    with Retriever.build(tmp_path / "idx", documents) as retriever:
        queries = {"q1": "apple", "q2": "nothing here", "extra": "pear"}
        judged = {"q1": {"a": 1, "gone": 1}, "q2": {"b": 1}, "never": {"a": 1}}
        outcome = evaluate(retriever, queries, judged, "R@10")
        assert outcome.values["R@10"] == {"q1": 0.5, "q2": 0.0, "never": 0.0}
        assert outcome.means["R@10"] == pytest.approx(0.5 / 3)
        assert outcome.unjudged == ("extra",)
        assert outcome.unasked == ("never",)
        assert outcome.empty == ("q2",)
        assert outcome.absent == {"q1": ("gone",)}
        assert outcome.documents == 2
        assert outcome.size == sum(file.stat().st_size for file in (tmp_path / "idx").rglob("*") if file.is_file())
        assert outcome.memory is not None
        assert outcome.memory > 10_000_000
        assert outcome.speed is not None
        assert 0 < outcome.speed.p50 <= outcome.speed.p99
        assert outcome.speed.timed == 3
        retriever.delete("a")
        assert evaluate(retriever, queries, judged, "R@10").absent == {"q1": ("a", "gone"), "never": ("a",)}


@pytest.mark.parametrize(
    ("measures", "complaint"),
    [
        ("nDGC@10", "there is no measure 'nDGC@10'"),
        ("", "no measure is named"),
        ("P@ten", "there is no measure 'P@ten'"),
    ],
)
def test_unknown_measures_are_refused(measures: str, complaint: str) -> None:
    with pytest.raises(MeasureError, match=complaint):
        parse_measures(measures)


def test_bad_input_is_refused() -> None:
    with pytest.raises(QrelsError, match="no judgements"):
        evaluate({"q": {"a": 1.0}}, None, {})
    with pytest.raises(QueryError, match="no queries"):
        evaluate(Fixed({}), {}, {"q": {"a": 1}})
    with pytest.raises(QueryError, match="searched already"):
        evaluate({"q": {"a": 1.0}}, {"q": "text"}, {"q": {"a": 1}})
    with pytest.raises(QrelsError, match=r"such as 'q'.*such as '7'"):
        evaluate({"q": {"a": 1.0}}, None, {"7": {"a": 1}})
    with pytest.raises(RunError, match="NaN"):
        evaluate({"q": {"a": float("nan")}}, None, {"q": {"a": 1}})


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_on_a_real_collection(collections: Path, tmp_path: Path) -> None:
    data, index, run = collections / "cranfield", tmp_path / "idx", tmp_path / "found.run.gz"
    assert invoke("index", "build", data, "-o", index).exit_code == 0
    done = invoke("evaluate", index, "--data", data, "--format", "json", "--save-run", run)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["means"]["nDCG@10"] == pytest.approx(0.3592, abs=1e-4)
    assert len(found["values"]["nDCG@10"]) == 225
    again = invoke("evaluate", run, "--qrels", data / "qrels" / "test.tsv", "--format", "json")
    assert json.loads(again.stdout)["values"] == found["values"]
    text = invoke("evaluate", run, "--data", data, "--measures", "nDCG@10 AP")
    assert text.stdout.splitlines()[:2] == ["225 judged queries", f"nDCG@10  {found['means']['nDCG@10']:.4f}"]


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q": {"a": 1.0}})
    (tmp_path / "j").write_text("q 0 a 1\nlost 0 b 1\n")
    done = invoke("evaluate", tmp_path / "r", "--qrels", tmp_path / "j", "--measures", "nDGC")
    assert done.exit_code == 1
    assert "there is no measure 'nDGC'" in done.stderr
    done = invoke("evaluate", tmp_path / "r")
    assert done.exit_code == 2
    assert "--qrels" in done.stderr
    done = invoke("evaluate", tmp_path / "r", "--qrels", tmp_path / "j", "--measures", "RR")
    assert done.exit_code == 0
    assert "1 judged queries were not asked" in done.stderr
    assert "RR  0.5000" in done.stdout


def test_tasks_from_folders_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": id, "text": f"text of {id}"}) for id in ("a", "b", "c")]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\na\td\t1\n")
    (tmp_path / "more.tsv").write_text("b\tother text\n")
    (tmp_path / "more.qrels").write_text("b 0 d 2\n")
    data, queries, qrels = str(folder), str(tmp_path / "more.tsv"), str(tmp_path / "more.qrels")

    def task(*arguments: str | None) -> Any:
        return read_task(*arguments, queries_needed=False)  # type: ignore[arg-type]

    assert task(data, "dev", None, None) == ({"a": "text of a"}, {"a": {"d": 1}})
    assert "2 queries of" in capsys.readouterr().err
    assert task(data, "dev", None, qrels) == ({"b": "text of b"}, {"b": {"d": 2}})
    capsys.readouterr()
    assert task(data, "dev", queries, None) == ({"b": "other text"}, {"a": {"d": 1}})
    assert task(None, "dev", queries, qrels) == ({"b": "other text"}, {"b": {"d": 2}})
    assert task(None, "dev", None, qrels) == (None, {"b": {"d": 2}})
    assert capsys.readouterr().err == ""
    with pytest.raises(SourceNotFoundError, match=r"holds no qrels/test\.tsv"):
        task(data, "test", None, None)


def test_tasks_of_ir_datasets(tmp_path: Path) -> None:
    import ir_datasets
    from ir_datasets.formats import BaseQrels, BaseQueries, GenericQuery, TrecQrel

    class Queries(BaseQueries):
        def queries_iter(self) -> Any:
            yield from (GenericQuery("q1", "white whale"), GenericQuery("q2", "not judged"))

        def queries_cls(self) -> Any:
            return GenericQuery

    class Judgements(BaseQrels):
        def qrels_iter(self) -> Any:
            yield from (TrecQrel("q1", "d1", 2, "0"), TrecQrel("q1", "d2", -1, "0"))

        def qrels_cls(self) -> Any:
            return TrecQrel

        def qrels_defs(self) -> Any:
            return {}

    name = f"local/{tmp_path.name}"
    ir_datasets.registry.register(name, ir_datasets.Dataset(Queries(), Judgements()))
    Retriever.build(
        tmp_path / "index", [Document("d1", "the white whale"), Document("d2", "a harpoon")], encoder="bm25"
    )
    done = invoke(
        "evaluate", tmp_path / "index", "--data", f"irds:{name}", "--measures", "RR nDCG@10", "--format", "json"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["means"] == {"RR": 1.0, "nDCG@10": 1.0}
    assert "1 queries of irds" in done.stderr
    with pytest.raises(SourceNotFoundError, match="no-such/set"):
        read_task("irds:no-such/set", "test", None, None, queries_needed=True)
