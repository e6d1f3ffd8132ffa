"""Comparing systems: the library's result and its tables, the page, and ``retrievers compare`` as its users run it."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

from retrievers import Document, Retriever
from retrievers.cli.combination import combine
from retrievers.cli.compare import names
from retrievers.comparison import LISTED, compare
from retrievers.comparison_tables import WIDTH, csv_rows, p_text, text_table
from retrievers.errors import ComparisonError
from retrievers.evaluation import Evaluation, Speed
from retrievers.report import html_report, write_report
from retrievers.runs import write_run
from retrievers.significance import bootstrap_interval, effect_size, holm, paired_tests

COMMAND = [sys.executable, "-m", "retrievers", "compare"]
QUERIES = [f"q{n}" for n in range(12)]
BASE = [0.5, 0.5, 0.25, 1.0, 0.0, 0.0, 0.5, 0.75, 0.1, 0.3, 0.6, 0.2]
BETTER = [0.75, 0.5, 0.5, 1.0, 0.5, 0.0, 0.75, 1.0, 0.0, 0.5, 0.7, 0.9]
WORSE = [0.5, 0.25, 0.25, 0.5, 0.0, 0.0, 0.25, 0.75, 0.0, 0.1, 0.6, 0.2]


def evaluation(values: list[float], tag: str, queries: list[str] = QUERIES) -> Evaluation:
    run = {query: {f"{tag}{query}-{n}": 10.0 - n for n in range(7)} for query in queries}
    mine = dict(zip(queries, values, strict=True))
    halved = {query: value / 2 for query, value in mine.items()}
    return Evaluation({"nDCG@10": mine, "AP": halved}, {"nDCG@10": sum(values) / len(values)}, run)


def three() -> dict[str, Evaluation]:
    return {"better": evaluation(BETTER, "b"), "base": evaluation(BASE, "a"), "worse": evaluation(WORSE, "w")}


def test_a_comparison_holds_the_tests_of_every_measure_and_system() -> None:
    made = compare(three(), baseline="base")
    assert made.systems == ("base", "better", "worse")
    assert (made.baseline, made.measure, made.queries) == ("base", "nDCG@10", 12)
    found = {(one.measure, one.system): one for one in made.differences}
    assert list(found) == [(m, s) for m in ("nDCG@10", "AP") for s in ("better", "worse")]
    for (measure, system), one in found.items():
        factor = 0.5 if measure == "AP" else 1.0
        mine, base = [factor * v for v in {"better": BETTER, "worse": WORSE}[system]], [factor * v for v in BASE]
        assert one.mean == made.means[measure][system] == pytest.approx(sum(mine) / 12)
        assert one.difference == pytest.approx(sum(mine) / 12 - sum(base) / 12)
        assert one.p == paired_tests(mine, base)
        assert one.interval == bootstrap_interval(mine, base)
        assert one.effect == effect_size(mine, base)
    better, worse = found["nDCG@10", "better"], found["nDCG@10", "worse"]
    assert (better.wins, better.ties, better.losses) == (8, 3, 1)
    assert (worse.wins, worse.ties, worse.losses) == (0, 7, 5)
    for test in ("randomisation", "t", "wilcoxon"):
        raw = [getattr(better.p, test), getattr(worse.p, test)]
        assert [getattr(better.corrected, test), getattr(worse.corrected, test)] == holm(raw)
        assert holm(raw) != raw


def test_the_seed_and_the_number_of_draws_are_passed_on() -> None:
    queries = [f"q{n}" for n in range(30)]
    systems = {
        "a": evaluation([n % 5 / 10 for n in range(30)], "a", queries),
        "b": evaluation([n % 7 / 10 for n in range(30)], "b", queries),
    }
    (first, *_), (again, *_), (other, *_), (few, *_) = (
        compare(systems, seed=seed, resamples=resamples).differences
        for seed, resamples in ((1, 1000), (1, 1000), (2, 1000), (1, 50))
    )
    assert first == again
    assert first.p.randomisation != other.p.randomisation
    assert first.interval != other.interval
    assert (few.p.randomisation, few.interval) != (first.p.randomisation, first.interval)


def test_the_queries_that_differ_most_come_first_with_hits_and_texts() -> None:
    made = compare(three(), baseline="base", queries={"q11": "the last"})
    mine = [one for one in made.extremes if one.system == "better"]
    assert [one.query for one in mine] == ["q11", "q4", "q0", "q2", "q6", "q7", "q9", "q8", "q10"]
    assert (mine[0].text, mine[1].text) == ("the last", None)
    assert (mine[0].value, mine[0].baseline_value) == (0.9, 0.2)
    assert mine[0].hits == tuple(f"bq11-{n}" for n in range(5))
    assert mine[0].baseline_hits == tuple(f"aq11-{n}" for n in range(5))
    many = [f"q{n}" for n in range(20)]
    wide = compare(
        {"x": evaluation([0.0] * 20, "x", many), "y": evaluation([0.01 * (n + 1) for n in range(20)], "y", many)}
    )
    assert [one.query for one in wide.extremes] == [f"q{n}" for n in range(19, 9, -1)]
    assert len(wide.extremes) == LISTED


def test_a_measure_may_be_named_for_the_list() -> None:
    systems = three()
    systems["better"].values["AP"]["q5"] = 1.0  # type: ignore[index]
    assert compare(systems, baseline="base", measure="AP").extremes[0].query == "q5"
    assert compare(systems, baseline="base").extremes[0].query == "q11"


def test_the_baseline_is_by_default_the_first() -> None:
    made = compare(three())
    assert made.baseline == "better"
    assert {one.system for one in made.differences} == {"base", "worse"}


def test_systems_that_were_not_measured_alike_are_refused() -> None:
    short = evaluation(BASE[:-1], "s", QUERIES[:-1])
    with pytest.raises(ComparisonError, match="'base' was measured by nDCG@10 on 'q11', and 'short' was not"):
        compare({"base": evaluation(BASE, "a"), "short": short})
    with pytest.raises(ComparisonError, match="'base' was measured by nDCG@10 on 'q11', and 'short' was not"):
        compare({"short": short, "base": evaluation(BASE, "a")})
    with pytest.raises(ComparisonError, match="on 'q1', 'q2', 'q3' and 8 more, and"):
        compare({"base": evaluation(BASE, "a"), "one": evaluation([1.0], "s", ["q0"])})
    full = evaluation(BASE, "a")
    lacking = replace(full, values={"nDCG@10": full.values["nDCG@10"]})
    with pytest.raises(ComparisonError, match="'full' was measured by 'AP', and 'lacking' was not"):
        compare({"full": full, "lacking": lacking})
    with pytest.raises(ComparisonError, match=r"two systems or more, got \['base'\]"):
        compare({"base": full})
    with pytest.raises(ComparisonError, match="'nobody' is not among the systems: 'better', 'base', 'worse'"):
        compare(three(), baseline="nobody")
    with pytest.raises(ComparisonError, match="'RR' was not measured, but nDCG@10, AP"):
        compare(three(), measure="RR")
    with pytest.raises(ComparisonError, match="two judged queries or more, got 1"):
        compare({"x": evaluation([1.0], "x", ["q"]), "y": evaluation([0.0], "y", ["q"])})
    with pytest.raises(ComparisonError, match="'x' was evaluated by no measure"):
        compare({"x": replace(full, values={}), "y": replace(full, values={})})


def test_json_is_json_even_where_an_effect_is_infinite() -> None:
    systems = {"a": evaluation([0.0] * 12, "a"), "b": evaluation([0.5] * 12, "b")}
    made = compare(systems)
    told = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert told["differences"][0]["effect"] is None
    assert told["differences"][0]["p"] == {"randomisation": 2 / 2**12, "t": 0.0, "wilcoxon": 2 / 2**12}
    assert told["systems"]["b"]["means"] == {"nDCG@10": 0.5, "AP": 0.25}
    assert (told["baseline"], told["queries"], len(told["extremes"])) == ("a", 12, 10)
    assert csv_rows(made)[2][-3] == "inf"
    assert "+inf" in text_table(made)


def test_the_text_is_aligned_and_fits() -> None:
    systems = {f"{'folder/' * 20}system number {n}": evaluation(BETTER[n:] + BETTER[:n], "d" * 50) for n in range(3)}
    systems["\x1b[31mred"] = replace(
        evaluation(BASE, "a"), speed=Speed(100.0, 1.25, 9.0, 12), documents=10, size=12_345
    )
    text = text_table(compare(systems, queries={"q0": "long " * 100 + "\nand more"}))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\x1b" not in text
    head, *rows = lines[2:7]
    assert head.startswith("nDCG@10 ")
    for column in ("mean", "diff", "p t", "p Wilcoxon", "d_z"):
        end = head.index(column) + len(column)
        filled = rows if column == "mean" else rows[1:]
        assert all(re.search(r"[\d>]$", row[:end]) and row[end:][:1] in ("", " ") for row in filled)
    assert any(line.split() == ["\ufffd[31mred", "1.25", "1,234"] for line in lines)
    assert [p_text(0.05), p_text(0.0001), p_text(0.00009), p_text(1.0)] == ["0.0500", "0.0001", "<.0001", "1.0000"]


def test_csv_has_a_row_a_measure_and_system() -> None:
    made = compare(three(), baseline="base")
    header, *rows = csv_rows(made)
    assert {len(row) for row in rows} == {len(header)}
    assert [row[:2] for row in rows] == [[m, s] for m in ("nDCG@10", "AP") for s in ("base", "better", "worse")]
    told = dict(zip(header, rows[1], strict=True))
    one = made.differences[0]
    assert float(told["difference"]) == one.difference
    assert float(told["p_t"]) == one.p.t
    assert float(told["holm_wilcoxon"]) == one.corrected.wilcoxon
    assert (told["wins"], told["ties"], told["losses"]) == ("8", "3", "1")
    assert set(rows[0][3:]) == {""}


class Page(HTMLParser):
    """The tags of a page, and the text outside its plots and style."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


EVIL = "<script>alert('x')</script> & \"$\\frac{\" \x00 京都"


def evil_page() -> tuple[str, Page]:
    systems = {
        name: replace(one, speed=Speed(1.0, 2.0 + at, 3.0, 4), documents=10, size=1000 * (at + 1))
        for at, (name, one) in enumerate(
            ((EVIL, evaluation(BASE, "a")), ("<b>", evaluation(BETTER, "<img src=x>")), ("_c", evaluation(WORSE, "c")))
        )
    }
    text = html_report(compare(systems, queries={"q11": EVIL, "q4": "<script>steal()</script>"}), title=EVIL)
    page = Page()
    page.feed(text)
    return text, page


def test_nothing_from_the_data_becomes_markup_in_the_page() -> None:
    text, page = evil_page()
    tags = {tag for tag, _ in page.tags}
    assert tags >= {"table", "svg", "h1"}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed"}
    assert "<script>steal()</script>" in page.words
    assert "<script>alert('x')</script> & \"$\\frac{\" \ufffd 京都" in page.words
    assert "<img src=x>q11-0" in page.words
    assert "\x00" not in text
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)


def test_the_page_loads_nothing() -> None:
    text, page = evil_page()
    for _, attributes in page.tags:
        for key, value in attributes.items():
            if key in ("src", "href", "xlink:href", "data"):
                assert value is not None
                assert value.startswith("#")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://', text)


def test_the_page_has_a_plot_a_system_and_one_a_cost(tmp_path: Path) -> None:
    _, page = evil_page()
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "clippath"]
    assert len(ids) == len(set(ids))
    plain = compare(three(), baseline="base")
    write_report(tmp_path / "page.html", plain)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == html_report(plain)
    assert text.count("<svg") == 2  # nothing is known of costs
    points = re.findall(r"<use [^>]*/>", text.split("<svg")[1])
    assert len(points) >= len(QUERIES)
    for one in plain.differences:
        assert f"{one.difference:+.4f}" in text


def test_a_page_without_matplotlib_names_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('not here')")
    program = "from retrievers.report import require_plots; require_plots()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=False)
    assert b"MissingDependencyError: reports need matplotlib: pip install 'tri-retrievers[evaluate]'" in done.stderr


def test_importing_is_light() -> None:
    program = (
        "import sys, retrievers.comparison, retrievers.report, retrievers.cli.compare;"
        "print(*{'scipy', 'matplotlib', 'ir_measures', 'torch'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b""


def test_names_are_the_shortest_that_differ() -> None:
    assert names(["x/bm25", "y/dense"]) == {"bm25": "x/bm25", "dense": "y/dense"}
    assert names(["x/idx", "y/idx", "run"]) == {"x/idx": "x/idx", "y/idx": "y/idx", "run": "run"}
    assert names(["/idx", "/a/idx"]) == {"/idx": "/idx", "a/idx": "/a/idx"}
    with pytest.raises(typer.BadParameter, match=r"'\./x' is given twice"):
        names(["./x", "x"])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def succeed(*arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection in BEIR's layout, an index of it and two runs."""
    folder = tmp_path_factory.mktemp("task")
    texts = [
        "undo the last commit",
        "green tea from Kyoto",
        "rivers of the north",
        "branch and merge",
        "tea and commit",
    ]
    Retriever.build(folder / "idx", [Document(f"d{n}", text) for n, text in enumerate(texts)]).close()
    asked = {"q0": "undo commit", "q1": "green tea", "q2": "northern rivers", "q3": "<script>merge</script>"}
    lines = (json.dumps({"_id": id, "text": text}) + "\n" for id, text in asked.items())
    (folder / "queries.jsonl").write_text("".join(lines))
    (folder / "qrels").mkdir()
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(4))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    write_run(folder / "one.run", {f"q{n}": {f"d{n}": 2.0, "d4": 1.0} for n in range(4)})
    write_run(folder / "two.run", {f"q{n}": {f"d{n}": 1.0, "d4": 2.0} for n in range(3)})
    return folder


def test_indexes_and_runs_are_compared(task: Path, tmp_path: Path) -> None:
    systems = [task / "idx", task / "one.run", task / "two.run"]
    page = tmp_path / "page.html"
    done = run(*systems, "--baseline", task / "two.run", "--data", task, "--format", "json", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "two.run: 1 judged queries were not asked" in done.stderr
    told = json.loads(done.stdout)
    assert (told["baseline"], told["queries"]) == ("two.run", 4)
    assert list(told["systems"]) == ["two.run", "idx", "one.run"]
    assert list(told["systems"]["idx"]["means"]) == ["nDCG@10", "R@100", "RR@10", "AP"]
    assert told["systems"]["one.run"]["means"]["RR@10"] == 1
    assert told["systems"]["two.run"]["means"]["RR@10"] == pytest.approx(3 / 8)
    assert told["systems"]["one.run"]["p50_ms"] is None
    assert told["systems"]["idx"]["p50_ms"] > 0
    assert told["systems"]["idx"]["bytes_per_document"] > 0
    assert "&lt;script&gt;merge" in page.read_text()
    assert "<script" not in page.read_text()
    files = ["--queries", task / "queries.jsonl", "--qrels", task / "qrels" / "test.tsv"]
    table = succeed(*systems, *files, "--measures", "RR AP", "--format", "csv", "--baseline", "two.run")
    rows = list(csv.DictReader(table.splitlines()))
    assert [(row["measure"], row["system"]) for row in rows][:3] == [
        ("RR", "two.run"),
        ("RR", "idx"),
        ("RR", "one.run"),
    ]
    assert float(rows[2]["difference"]) == pytest.approx(5 / 8)


def test_runs_alone_need_no_queries_and_print_a_table(task: Path) -> None:
    told = succeed(task / "one.run", task / "two.run", "--qrels", task / "qrels" / "test.tsv", "--measures", "RR@10")
    assert re.search(r"^RR@10 +mean +diff", told, re.MULTILINE)
    assert re.search(r"^two.run +0\.3750 +-0\.6250 .* 0/0/4 ", told, re.MULTILINE)
    assert "-1.0000 = 0.0000 - 1.0000  q3" in told


def test_collections_are_combined_by_rank(task: Path, tmp_path: Path) -> None:
    means = {"a": {"x": 0.9, "y": 0.5, "z": 0.5}, "b": {"z": 0.1, "x": 0.3, "y": 0.2}}
    for collection, found in means.items():
        told = {"systems": {system: {"means": {"AP": mean, "RR": -mean}} for system, mean in found.items()}}
        (tmp_path / f"{collection}.json").write_text(json.dumps(told))
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    told = json.loads(succeed("--combine", *files, "--format", "json"))
    assert told["collections"] == ["a.json", "b.json"]
    assert told["borda"]["AP"] == {"x": 4, "y": 1.5, "z": 0.5}
    assert told["borda"]["RR"] == {"x": 0, "y": 2.5, "z": 3.5}
    lines = succeed("--combine", *files, "--measures", "AP").splitlines()
    assert [line.split() for line in lines[1:]] == [["system", "AP"], ["x", "4"], ["y", "1.5"], ["z", "0.5"]]
    assert succeed("--combine", *files, "--measures", "AP", "--format", "csv").splitlines() == [
        "system,AP",
        "x,4.0",
        "y,1.5",
        "z,0.5",
    ]
    written = tmp_path / "written.json"
    qrels = task / "qrels" / "test.tsv"
    written.write_text(succeed(task / "one.run", task / "two.run", "--qrels", qrels, "--format", "json"))
    assert combine({"it": str(written)})["AP"] == {"one.run": 1, "two.run": 0}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "bad.json is not JSON"),
        ("[1]", "bad.json holds no comparison: give files that"),
        ('{"systems": {}}', "holds no comparison"),
        ('{"systems": {"x": {"means": {"AP": "high"}}}}', "the means of 'x' are no numbers"),
        ('{"systems": {"x": {"means": {"RR": 1}}}}', "'x' has no AP, but RR: name measures"),
        ('{"systems": {"y": {"means": {"AP": 1}}}}', "'good' has no score for 'y'"),
    ],
)
def test_what_cannot_be_combined_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "good.json").write_text('{"systems": {"x": {"means": {"AP": 0.5}}}}')
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ComparisonError, match=re.escape(complaint)):
        combine({"good": str(tmp_path / "good.json"), "bad": str(tmp_path / "bad.json")})


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["{one}"], 2, "give two systems or more"),
        (["{one}", "{one}"], 2, "is given twice"),
        (["{one}", "{two}"], 2, "--qrels"),
        (["{one}", "{idx}", "--qrels", "{qrels}"], 2, "--queries"),
        (["{one}", "{two}", "--qrels", "{qrels}", "--baseline", "zero.run"], 2, "'zero.run' is none of the systems"),
        (["{one}", "nowhere", "--qrels", "{qrels}"], 1, "nowhere is neither the folder of an index nor a run file"),
        (["{one}", "{two}", "--qrels", "{qrels}", "--measures", "XYZ"], 1, "there is no measure 'XYZ'"),
        (["{one}", "{qrels}", "--qrels", "{qrels}"], 1, "a run has six"),
        (["--combine", "a.json", "--html", "x.html"], 2, "--html"),
        (["--combine", "no.json"], 1, "no.json"),
        ([], 2, "SYSTEM"),
    ],
)
def test_failures_are_one_line_and_bad_usage_is_2(task: Path, arguments: list[str], code: int, complaint: str) -> None:
    places = {name: str(task / path) for name, path in
              {"{one}": "one.run", "{two}": "two.run", "{idx}": "idx", "{qrels}": "qrels/test.tsv"}.items()}  # fmt: skip
    done = run(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == code, done.stderr
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert re.fullmatch(r"error: [^\n]+\n", done.stderr)


def test_help_has_examples() -> None:
    assert "retrievers compare --combine" in succeed("--help")
