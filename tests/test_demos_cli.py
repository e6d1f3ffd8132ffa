"""``retrievers demos`` as its users run it: real commands in processes of their own, on small real data."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retrievers.cli.demo_quality import compare, majority, token_f1
from retrievers.cli.demos import Strategy
from retrievers.demonstrations import DemonstrationBank
from retrievers.demonstrations.selection import STRATEGIES

COMMAND = [sys.executable, "-m", "retrievers", "demos"]
ROWS = [
    ("Where is my new card?", "arrival"),
    ("My card has not come yet.", "arrival"),
    ("When will the card come?", "arrival"),
    ("How do I change my PIN?", "pin"),
    ("I forgot the PIN of my card", "pin"),
    ("Can I set another PIN at a machine?", "pin"),
]


def run(*arguments: object, input: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ``retrievers demos`` to its end."""
    return subprocess.run([*COMMAND, *map(str, arguments)], input=input, capture_output=True, timeout=120, check=False)


def succeed(*arguments: object, input: bytes = b"") -> str:
    """Run ``retrievers demos``, which must succeed; returns its standard output."""
    done = run(*arguments, input=input)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def fail(code: int, *arguments: object) -> str:
    """Run ``retrievers demos``, which must fail without a traceback; returns what it said."""
    done = run(*arguments)
    told = done.stderr.decode()
    assert done.returncode == code, told
    assert "Traceback" not in told
    return " ".join(told.split())


def jsonl(path: Path, rows: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of two tasks, of which one example is evaluation data."""
    folder = tmp_path_factory.mktemp("bank")
    cards = jsonl(folder / "cards.jsonl", ROWS)
    tea = jsonl(folder / "tea.jsonl", [("Tee aus 京都\tfür\nalle \x1b[1m", "a\tb"), ("a card for tea", "tea")])
    held_out = folder / "held-out.txt"
    held_out.write_text("my card HAS not come, yet!\n\nunheard of\n", encoding="utf-8")
    told = succeed(
        *("build", cards, tea, "-o", folder / "bank", "--task", "cards", "--task", "tea"),
        *("--input-field", "text", "--output-field", "label", "--evaluation", held_out),
    )
    assert "held 8 demonstrations in " in told
    assert "2 tasks: cards 6, tea 2\n" in told
    assert "1 of them are near 2 evaluation inputs, and are never selected" in told
    assert f"select from it: retrievers demos select {folder / 'bank'} 'your input'" in told
    return folder / "bank"


def test_select_prints_what_the_library_selects(bank: Path, tmp_path: Path) -> None:
    asked = ["where does my card stay", "a PIN for my card"]
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in asked), encoding="utf-8")
    with DemonstrationBank.open(bank) as opened:
        for extra, options in (
            ((), {}),
            (("--strategy", "balanced", "--task", "cards"), {"strategy": "balanced", "tasks": "cards"}),
            (
                ("--strategy", "random", "--seed", "3", "--per-task", "1"),
                {"strategy": "random", "seed": 3, "per_task": 1},
            ),
        ):
            expected = opened.select(asked, 3, order="nearest_first", **options)  # type: ignore[call-overload]
            told = succeed("select", bank, "--inputs", file, "--input-field", "text", "-k", 3, "--json", *extra)
            found = [json.loads(line) for line in told.splitlines()]
            assert [one["input"] for one in found] == asked
            for one, selected in zip(found, expected, strict=True):
                assert one["demonstrations"] == [
                    {
                        "id": each.demonstration.id,
                        "task": each.demonstration.task,
                        "score": each.score,
                        "input": each.demonstration.input,
                        "output": each.demonstration.output,
                        "metadata": {},
                    }
                    for each in selected
                ]
                assert "cards/2" not in [each["id"] for each in one["demonstrations"]]


def test_select_prints_a_line_for_each_and_a_table_on_a_terminal(bank: Path) -> None:
    told = succeed("select", bank, "Tee", "-k", 2)
    rank, score, *rest = told.rstrip("\n").split("\t")
    assert (rank, rest) == ("1", ["tea/1", "tea", "Tee aus 京都 für alle �[1m", "a b"])
    assert float(score) > 0
    # Read from standard input, with something that nothing is like.
    done = run("select", bank, "--inputs", "-", "-k", 1, input=b"PIN\nzzz\n")
    assert [line.split("\t")[3] for line in done.stdout.decode().splitlines()] == ["cards"]
    assert done.stderr.decode() == "no demonstration for 'zzz'\n"
    assert done.returncode == 0

    main, worker = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    started = subprocess.Popen(
        [*COMMAND, "select", str(bank), "new card", "Tee"], stdout=worker, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(worker)
    shown = b""
    while True:
        try:
            part = os.read(main, 1 << 16)
        except OSError:  # the other end has gone
            break
        if not part:
            break
        shown += part
    assert started.wait(60) == 0
    text = shown.decode()
    assert all(
        word in text for word in ("new card", "score", "task", "output", "Where is my new card?", "arrival", "京都")
    )
    assert "\x1b[1m," not in text
    assert "alle �[1m" in text  # no document commands a terminal


def test_what_cannot_be_done_is_told_in_one_line(bank: Path, tmp_path: Path) -> None:
    rows = jsonl(tmp_path / "rows.jsonl", ROWS)
    fields = ("--input-field", "text", "--output-field", "label")
    for told, words in (
        (fail(1, "build", rows, "-o", tmp_path / "b", *fields), "rows.jsonl, line 1: field 'task' is missing"),
        (fail(1, "build", rows, "-o", tmp_path / "b", "--task", "a"), "field 'input' is missing"),
        (fail(1, "build", rows, "-o", bank, "--task", "a", *fields), "an index of 8 documents already"),
        (
            fail(1, "build", rows, rows, "-o", tmp_path / "twice", "--task", "a", *fields),
            "'a/1' came twice: document 1, and document 7; ids must differ: lines without an id are numbered file by file",
        ),
        (fail(1, "build", tmp_path / "no.jsonl", "-o", tmp_path / "b"), "there is no such file"),
        (
            fail(
                1,
                "build",
                rows,
                "-o",
                tmp_path / "b",
                "--task",
                "a",
                *fields,
                "--evaluation",
                rows,
                "--input-field",
                "x",
            ),
            "rows.jsonl, line 1: field 'x' must hold a string; the line has",
        ),
        (fail(2, "build", rows, rows, rows, "-o", tmp_path / "b", "--task", "a", "--task", "b"), "2 names for 3 files"),
        (fail(2, "select", bank), "give an input in quotes, or --inputs FILE"),
        (fail(2, "select", bank, "x", "--task", "none"), "'none' is none of cards, tea"),
        (fail(1, "select", tmp_path / "nothing", "x"), "nothing"),
        (fail(1, "eval", bank, jsonl(tmp_path / "one.jsonl", ROWS[:1]), *fields), "a test needs two or more"),
    ):
        assert words in told
    assert not (tmp_path / "b").exists()


def test_eval_never_selects_the_test_and_beats_chance_on_real_questions(collections: Path, tmp_path: Path) -> None:
    source = collections / "trec-questions" / "train.jsonl"
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    pairs = [(row["text"], row["label"]) for row in rows[:1500]]
    known = [pairs[at] for at in random.Random(0).sample(range(1000), 20)]
    train = jsonl(tmp_path / "train.jsonl", pairs[:1000])
    test = jsonl(tmp_path / "test.jsonl", [(text.upper() + " ?", label) for text, label in known] + pairs[1000:1200])
    fields = ("--input-field", "text", "--output-field", "label")
    succeed("build", train, "-o", tmp_path / "bank", "--task", "trec", *fields)
    told = json.loads(succeed("eval", tmp_path / "bank", test, "-k", 5, "--json", *fields))
    assert (told["outputs"], told["inputs"], told["held"], told["strategy"]) == ("labels", 220, 1000, "nearest")
    assert told["near_test_inputs"] >= 20
    for measure in told["measures"].values():
        low, high = measure["interval"]
        assert 0 < low <= measure["nearest"] - measure["random"] <= high
        assert measure["p"] < 0.01
    # The same as by the library, without those that the test has.
    with DemonstrationBank.open(tmp_path / "bank") as opened:
        marked = {one.id for one in opened if one.evaluation}
        assert len(marked) == told["near_test_inputs"]
        lines = [json.loads(line) for line in test.read_text(encoding="utf-8").splitlines()]
        chosen = opened.select([line["text"] for line in lines], 1)
        assert not marked & {one.demonstration.id for selected in chosen for one in selected}
        right = [
            bool(some) and some[0].demonstration.output == line["label"]
            for some, line in zip(chosen, lines, strict=True)
        ]
    assert told["measures"]["nearest"]["nearest"] == pytest.approx(sum(right) / len(right))
    # Once more, as text: those that are marked by now are still counted.
    text = succeed("eval", tmp_path / "bank", test, "-k", 5, "--strategy", "random", *fields)
    assert f"220 test inputs; {told['near_test_inputs']} demonstrations of the bank are near one" in text
    random_share = told["measures"]["majority of k"]["random"]
    assert f"majority of 5  {random_share:.4f}" in text


def test_outputs_are_measured_by_votes_or_shared_words() -> None:
    assert majority(["b", "a", "a", "b"]) == "b"
    assert majority(["b", "a", "a"]) == "a"
    assert majority([]) is None
    assert token_f1("ls -l /tmp", "ls /tmp now") == pytest.approx(4 / 6)
    assert token_f1("a a b", "a b b") == pytest.approx(4 / 6)
    assert token_f1("?!", "?!") == 1
    assert token_f1("?!", "one") == 0
    found: dict[str, Any] = {"diverse": [["one two", "three"], []], "random": [["x"], ["five"]]}
    told = compare(["three four", "five"], found, ["one two", "three", "x", "five"], 0)
    assert (told["outputs"], told["without"]) == ("texts", 1)
    assert told["measures"]["best F1 of k"]["diverse"] == pytest.approx((2 / 3) / 2)
    assert told["measures"]["best F1 of k"]["random"] == 0.5
    assert told["measures"]["nearest, F1"]["diverse"] == 0
    labels = compare(["a", "b"], {"nearest": [["a", "b", "b"], ["b"]], "random": [[], []]}, ["a", "b"] * 2, 0)
    assert labels["outputs"] == "labels"
    assert labels["measures"]["majority of k"]["nearest"] == 0.5
    assert labels["measures"]["nearest"]["nearest"] == 1


def test_every_strategy_of_the_library_can_be_asked_for() -> None:
    assert tuple(Strategy) == STRATEGIES
