"""Running teachers over candidate lists: nothing twice, also after a stop; what is refused; and ``retrievers score``."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder

from retrievers import LexicalEncoder
from retrievers.errors import TrainingDataError, WriterLockedError
from retrievers.training.blocks import Blocks, locked
from retrievers.training.scoring import score
from retrievers.training.sets import TrainingSet
from retrievers.training.teachers import load_teacher

COUNT = 12  # queries; query i has i candidates


class Rows:
    """A teacher whose score is a number made of query and document; it counts what it is asked, and may fail."""

    def __init__(self, name: str = "rows", fingerprint: str = "1", *, fails_at: int = COUNT, hole: int = -1) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.fails_at, self.hole = fails_at, hole
        self.asked: list[int] = []

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Any]:
        found = []
        for query in query_rows:
            if query == self.fails_at:
                raise RuntimeError("the power went")
            self.asked.append(query)
            scores = query * 100.0 + training_set.candidates.of(query)
            found.append(np.where(training_set.candidates.of(query) == self.hole, math.nan, scores))
        return found


@pytest.fixture
def training(tmp_path: Path) -> TrainingSet:
    return TrainingSet.build(
        tmp_path / "set",
        [(f"q{query}", f"word{query} common") for query in range(COUNT)],
        [(f"d{row}", f"word{row} common text " + "filler " * row) for row in range(COUNT)],
        [(f"q{query}", f"d{query}") for query in range(COUNT)],
        [(f"q{query}", f"d{COUNT - 1 - row}") for query in range(COUNT) for row in range(query)],
    )


def wanted(training: TrainingSet) -> list[float]:
    owners = np.repeat(np.arange(COUNT), training.candidates.lengths())
    return (owners * 100.0 + training.candidates.rows).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_scores_stand_beside_their_candidates(block: int, training: TrainingSet) -> None:
    seen: list[int] = []
    one, other = Rows("one"), Rows("other", hole=9)
    first, second = score(training, [one, other], block=block, progress=seen.append)
    again = TrainingSet.open(training.path)
    assert again.teachers == ("one", "other")
    assert again.scores("one").tolist() == wanted(training)
    holes = training.candidates.rows == 9
    np.testing.assert_array_equal(again.scores("other"), np.where(holes, np.nan, again.scores("one")))
    assert one.asked == other.asked == list(range(COUNT))
    assert str(first) == "one scored 66 of 66 candidates"
    assert (second.candidates, second.reused, second.missing) == (66, 0, int(holes.sum()))
    assert seen == sorted(seen)
    assert seen[-1] == 132
    assert len(seen) == {1: 22, 7: 14, 1000: 2}[block]


def test_a_run_that_was_stopped_goes_on(training: TrainingSet) -> None:
    before, stopped = Rows("before"), Rows(fails_at=5)
    with pytest.raises(RuntimeError, match="the power went"):
        score(training, [before, stopped], block=5)
    assert TrainingSet.open(training.path).teachers == ("before",)
    before, resumed = Rows("before"), Rows()
    reports = score(TrainingSet.open(training.path), [before, resumed], block=5)
    assert before.asked == []  # it was done
    # Blocks end with queries 3, 5, 6, ...: of the second the first query was lost.
    assert stopped.asked == [0, 1, 2, 3, 4]
    assert resumed.asked == list(range(4, COUNT))
    assert [report.reused for report in reports] == [66, 6]
    assert str(reports[0]) == "before scored 66 of 66 candidates, 66 taken from an earlier run"
    assert TrainingSet.open(training.path).scores("rows").tolist() == wanted(training)


def test_what_changed_is_scored_anew_and_nothing_else(training: TrainingSet) -> None:
    score(training, [Rows()])
    unchanged, changed, other_block = Rows(), Rows(fingerprint="2"), Rows(fingerprint="2")
    score(training, [unchanged])
    score(training, [changed])
    score(training, [other_block], block=9)
    assert (unchanged.asked, len(changed.asked), len(other_block.asked)) == ([], COUNT, COUNT)
    # Scores that were thrown away come back without asking; other candidates are scored.
    rows = training.candidates.rows.copy()
    owners = np.repeat(np.arange(COUNT), training.candidates.lengths())
    training.set_candidates(owners, rows, replace=True)
    again = Rows(fingerprint="2")
    score(training, [again], block=9)
    assert again.asked == []
    assert training.scores("rows").tolist() == wanted(training)
    training.set_candidates(owners, rows[::-1].copy(), replace=True)
    score(training, [again], block=9)
    assert len(again.asked) == COUNT
    assert training.scores("rows").tolist() == wanted(training)


def test_encoders_encode_nothing_again(training: TrainingSet) -> None:
    encoder = HashEncoder("dense")
    teachers = [load_teacher(encoder, name="dense"), load_teacher(LexicalEncoder(), name="bm25")]
    score(training, teachers)
    assert encoder.encoded == 11  # d0 is nobody's candidate
    scores = training.scores("dense").copy(), training.scores("bm25").copy()
    score(training, teachers)
    assert encoder.encoded == 11
    np.testing.assert_array_equal(training.scores("dense"), scores[0])
    np.testing.assert_array_equal(training.scores("bm25"), scores[1])


def test_damaged_blocks_are_scored_again(training: TrainingSet) -> None:
    score(training, [Rows()], block=20)
    files = sorted((training.path / "scoring" / "rows").glob("block-*.bin"))
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-9])
    files[2].write_bytes(b"")
    again = Rows()
    (report,) = score(training, [again], block=20)
    assert 0 < report.reused < 66
    assert training.scores("rows").tolist() == wanted(training)


def test_no_damage_of_a_block_goes_unseen(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "blocks", {"key": 1})
    arrays = {"rows": np.arange(5), "scores": np.linspace(0, 1, 4, dtype=np.float32)}
    blocks.save(0, arrays)
    (path,) = (tmp_path / "blocks").glob("*.bin")
    sound = path.read_bytes()
    assert blocks.load(1) is None
    for place in range(len(sound)):
        for flip in (0x01, 0x80):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ flip]) + sound[place + 1 :])
            assert blocks.load(0) is None
    path.write_bytes(sound)
    found = Blocks(tmp_path / "blocks", {"key": 1}).load(0)
    assert found is not None
    assert found.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
    assert Blocks(tmp_path / "blocks", {"key": 2}).load(0) is None


def test_candidates_that_change_meanwhile(training: TrainingSet) -> None:
    class Meddler(Rows):
        def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Any]:
            TrainingSet.open(training_set.path).set_candidates(np.array([0]), np.array([1]), replace=True)
            return super().score(training_set, query_rows)

    with pytest.raises(TrainingDataError, match="were changed meanwhile: score them anew"):
        score(training, [Meddler()])
    assert TrainingSet.open(training.path).teachers == ()


def test_one_process_a_teacher(training: TrainingSet) -> None:
    with locked(training.path / "scoring" / "rows.lock", "scoring"):
        with pytest.raises(
            WriterLockedError, match=r"another process is scoring .* with rows .*wait until it has ended"
        ):
            score(training, [Rows()])
        score(training, [Rows("other")])
    score(training, [Rows()])
    assert training.teachers == ("other", "rows")


class Wrong(Rows):
    """A teacher that gives other than it should."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Any]:
        given = super().score(training_set, query_rows)
        if self.what == "short":
            return given[:-1]
        given[3] = given[3][:-1] if self.what == "cut" else np.full(3, np.inf)
        return given


def test_what_is_refused(training: TrainingSet, tmp_path: Path) -> None:
    for teachers, message in (
        ([Rows("a"), Rows("a")], "two teachers are called 'a': give each a name of its own"),
        ([Rows("a/b")], "'a/b' is no name of a teacher: use letters, digits"),
        ([Wrong("short")], "rows gave scores for 11 queries, and was asked about 12"),
        ([Wrong("cut")], "rows gave (2,) scores for the 3 candidates of query 'q3', or infinite ones"),
        ([Wrong("infinite")], "rows gave (3,) scores for the 3 candidates of query 'q3', or infinite ones"),
    ):
        with pytest.raises(TrainingDataError, match=re.escape(message)):
            score(training, teachers)
    with pytest.raises(TrainingDataError, match="block is 0: give a number of candidates, 1 or more"):
        score(training, [Rows()], block=0)
    bare = TrainingSet.build(tmp_path / "bare", [("q", "a")], [("d", "a")], [("q", "d")])
    with pytest.raises(TrainingDataError, match=r"has no candidates to score: mine some first \(`retrievers mine`\)"):
        score(bare, [Rows()])
    assert training.teachers == ()


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retrievers", "score", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command(training: TrainingSet, tmp_path: Path) -> None:
    scores = tmp_path / "old scores.tsv"
    scores.write_text("q1\td11\t0.5\nq2\td10\t-1\n")
    arguments = [training.path, "--teacher", "bm25", "--teacher", scores]
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "bm25 scored 66 of 66 candidates\nold-scores scored 2 of 66 candidates\n"
    again = run(*arguments, "--name", "lexical", "--name", "old-scores")
    assert again.stdout.splitlines() == [
        "lexical scored 66 of 66 candidates",
        "old-scores scored 2 of 66 candidates, 66 taken from an earlier run",
    ]
    stored = TrainingSet.open(training.path)
    assert stored.teachers == ("bm25", "lexical", "old-scores")
    score(training, [load_teacher("bm25", name="here")])
    np.testing.assert_array_equal(stored.scores("bm25"), training.scores("here"))
    np.testing.assert_array_equal(stored.scores("lexical"), training.scores("here"))
    np.testing.assert_array_equal(stored.scores("old-scores")[:3], [0.5, math.nan, -1])


def test_the_command_says_what_is_wrong(training: TrainingSet, tmp_path: Path) -> None:
    done = run(training.path, "--teacher", "bm25", "--teacher", "bm25", "--name", "one")
    assert (done.returncode, "2 teachers and 1 names: name all or none" in done.stderr) == (2, True)
    for arguments, message in (
        ([training.path, "--teacher", tmp_path / "none.jsonl"], "none.jsonl: there is no such file of scores"),
        ([tmp_path, "--teacher", "bm25"], "holds no training set: build one with TrainingSet.build"),
        ([training.path, "--teacher", "bm25", "--teacher", "bm25"], "two teachers are called 'bm25'"),
    ):
        done = run(*arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
    told = run("--help").stdout
    assert "retrievers score" in told.split("Example", 1)[1]
