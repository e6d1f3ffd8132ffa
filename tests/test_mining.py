"""Hard negatives: worked by hand, against exhaustive search, and that nothing is searched twice; ``retrievers mine``."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers import Document, Retriever
from retrievers.errors import TrainingDataError, WriterLockedError
from retrievers.training import mining as mining_module
from retrievers.training.blocks import locked
from retrievers.training.mining import mine, steps, text_hashes
from retrievers.training.negatives import Found, Rules, choose
from retrievers.training.sets import TrainingSet
from retrievers.training.strata import Strata, lot
from retrievers.training.teachers import LiveTeacher


class Numbers:
    """An encoder whose score is the number that a document begins with, whatever the query; a query "-" turns it round.

    ``asked`` are the queries that it has encoded; it breaks at the query ``fails``.
    """

    kind = "dense"

    def __init__(self, salt: str = "", fails: str = "") -> None:
        self.fingerprint = hashlib.sha256(salt.encode()).hexdigest()
        self.fails = fails
        self.asked: list[str] = []
        self.calls: list[int] = []

    def encode_query(self, texts: Sequence[str]) -> Any:
        self.calls.append(len(texts))
        if self.fails in texts:
            raise RuntimeError("the power went")
        self.asked += texts
        return np.array([[-1.0 if text.startswith("-") else 1.0] for text in texts], np.float32)

    def encode_document(self, texts: Sequence[str]) -> Any:
        return np.array([[float(text.split()[0])] for text in texts], np.float32)


class Judge:
    """A live teacher: the last number of a document's text."""

    name = "judge"
    fingerprint = "1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def score(self, training_set: TrainingSet, query_rows: Sequence[int]) -> list[Any]:
        raise AssertionError("mining scores texts")

    def lists(self, query_texts: Sequence[str], document_texts: Sequence[Sequence[str]]) -> list[Any]:
        self.asked += [text for texts in document_texts for text in texts]
        return [np.array([float(text.split()[-1]) for text in texts], np.float32) for texts in document_texts]

    def scores(self, query_texts: Sequence[str], document_texts: Sequence[str]) -> Any:
        return np.array(self.lists(query_texts, [document_texts] * len(query_texts)))


#: By score: b and c are above 95% of p's, p2 is the other positive, d has p's text, f has e's, n is at 95%.
TEXTS = {
    "b": "12 above 0",
    "c": "9.75 above too 0",
    "p": "10 the positive 7",
    "n": "9.5 not above 6",
    "e": "8 twin 1",
    "d": "10   The POSITIVE\t7",
    "f": "8 Twin  1",
    "g": "5 near by the teacher 5",
    "p2": "4 positive too 6",
    "h": "3 fine 2",
    "i": "2 fine too 3",
    "j": "-1 last 0",
}


def build(folder: Path, queries: list[tuple[str, str]], positives: dict[str, list[str]]) -> TrainingSet:
    pairs = [(id, good) for id, _ in queries for good in positives[id]]
    return TrainingSet.build(folder, queries, list(TEXTS.items()), pairs)


def index(folder: Path, encoder: Any = None, texts: dict[str, str] = TEXTS) -> Retriever:
    found = [Document(id, text) for id, text in texts.items()]
    return Retriever.build(folder, found, encoder=Numbers() if encoder is None else encoder)


def mined(training: TrainingSet) -> dict[str, list[str]]:
    """The candidates of each query, by id."""
    return {
        training.queries.id(query): training.documents.ids(training.candidates.of(query))
        for query in range(len(training))
    }


@pytest.fixture
def training(tmp_path: Path) -> TrainingSet:
    return build(tmp_path / "set", [("q", "anything"), ("r", "- reversed")], {"q": ["p", "p2"], "r": ["j"]})


def test_mining_worked_by_hand(training: TrainingSet, tmp_path: Path) -> None:
    with index(tmp_path / "idx") as retriever:
        order = [hit.id for hit in retriever.search("anything", k=12)]
        assert order == ["b", "d", "p", "c", "n", "e", "f", "g", "p2", "h", "i", "j"]
        report = mine(training, [retriever], strata="1-12:12")
        # Each document whose text is new; of e and f the one with the lower lot.
        twin = min("ef", key=lambda id: lot(0, "q", id))
        assert mined(training)["q"][:2] == ["p", "p2"]
        assert sorted(mined(training)["q"][2:]) == sorted(["n", twin, "g", "h", "i", "j"])
        # Reversed, j has 1 and is the first: everything else scores less than 95% of that, from i's -2 on.
        twins = {min(pair, key=lambda id: lot(0, "r", id)) for pair in ("ef", "dp")}
        assert mined(training)["r"][0] == "j"
        assert set(mined(training)["r"][1:]) == set(TEXTS) - {"j", "e", "f", "d", "p"} | twins
        assert report.counts == {
            "strangers": 0,
            "positives": 3,
            "duplicates": 1,  # d of p
            "above": 2,  # b, c
            "margin": 0,
            "repeated": 3,
            "unfound": 0,
        }
        assert (report.queries, report.positives, report.negatives, report.wanted) == (2, 3, 15, 12)
        assert (report.short, report.none, report.examples) == (2, 0, ("q", "r"))
        assert str(report) == (
            "15 negatives and 3 positives for 2 queries\n"
            "dropped 3 that are positives\ndropped 1 with the text of a positive\n"
            "dropped 2 that score too close to the positive\ndropped 3 with the text of a negative drawn before\n"
            "2 queries have fewer than 12 negatives, 0 of them none: 'q', 'r'"
        )


def test_ranks_and_depth(training: TrainingSet, tmp_path: Path) -> None:
    with index(tmp_path / "idx") as retriever:
        # Ranks 6 to 9 hold e, f, g, p2, of which three are left, two with one text; 10 to 12 h, i, j.
        mine(training, [retriever], strata="6-9:4,10-12:1")
        negatives = mined(training)["q"][2:]
        assert len(negatives) == 3
        assert "g" in negatives[:2]
        assert {"e", "f"} & set(negatives[:2])
        assert negatives[2] == min("hij", key=lambda id: lot(0, "q", id))
        # A depth beyond the strata finds more to compare with: p2, at rank 9, is the best of this query's positives.
        other = build(tmp_path / "other", [("q", "anything")], {"q": ["p2"]})
        mine(other, [retriever], strata="1-6:6")
        assert len(mined(other)["q"]) == 1 + 5  # of b, d, p, c, n, e one has another's text
        report = mine(other, [retriever], strata="1-6:6", depth=9)
        assert mined(other)["q"] == ["p2"]
        assert (report.counts["above"], report.none) == (8, 1)


def test_what_becomes_of_searches_without_a_positive(tmp_path: Path) -> None:
    training = build(tmp_path / "set", [("q", "anything")], {"q": ["j"]})
    with index(tmp_path / "idx") as retriever:
        report = mine(training, [retriever], strata="1-3:3")
        assert (report.counts["unfound"], report.negatives) == (1, 2)
        report = mine(training, [retriever], strata="1-3:3", rules=Rules(unfound="drop"))
        assert (report.counts["unfound"], report.counts["above"], report.none) == (1, 3, 1)
        assert "no positive found in 1 searches" in str(report)
        report = mine(training, [retriever], strata="1-3:3", rules=Rules(fraction=None, unfound="drop"))
        assert (report.counts["unfound"], report.negatives) == (1, 2)


@pytest.mark.parametrize(
    ("positive", "fraction", "bound"), [(10.0, 0.95, 9.5), (-10.0, 0.95, -10.5), (4.0, 1.0, 4.0), (0.0, 0.5, 0.0)]
)
def test_bounds(positive: float, fraction: float, bound: float) -> None:
    assert Rules(fraction=fraction).bound(positive) == bound
    assert Rules(fraction=None).bound(positive) == float("inf")


def test_a_teacher_refuses_by_a_margin(training: TrainingSet, tmp_path: Path) -> None:
    judge = Judge()
    assert isinstance(judge, LiveTeacher)
    with index(tmp_path / "idx") as retriever:
        # The lower of p's 7 and p2's 6, less 2: what is above 4 goes, which are n and g.
        report = mine(training, [retriever], strata="1-12:12", rules=Rules(margin=2.0), teacher=judge)
        assert set(mined(training)["q"][2:]) - {"e", "f"} == {"h", "i", "j"}
        assert report.counts["margin"] == 2 + 9  # j's 0 less 2 is below all
        assert mined(training)["r"] == ["j"]
        # What is refused is made up for by the next lots of the stratum.
        mine(training, [retriever], strata="8-12:2", rules=Rules(margin=2.0), teacher=judge)
        lots = sorted("ghij", key=lambda id: lot(0, "q", id))
        assert mined(training)["q"][2:] == [id for id in lots if id != "g"][:2]
        # Neither searched nor scored again.
        asked = len(judge.asked)
        mine(training, [retriever], strata="8-12:2", rules=Rules(margin=2.0), teacher=judge)
        assert len(judge.asked) == asked
        judge.fingerprint = "2"
        mine(training, [retriever], strata="8-12:2", rules=Rules(margin=2.0), teacher=judge)
        assert len(judge.asked) > asked


def test_several_retrievers_draw_in_turn(training: TrainingSet, tmp_path: Path) -> None:
    class Turned(Numbers):
        def encode_document(self, texts: Sequence[str]) -> Any:
            return -super().encode_document(texts)

    with index(tmp_path / "one") as one, index(tmp_path / "two", Turned("turned")) as two:
        report = mine(training, [one, two], strata="1-5:1,6-12:2", seed=3)
        # The second ranks the other way round, where p2 with -4 is the best positive: what is above -4.2 goes too.
        assert (report.wanted, report.counts["positives"]) == (6, 3)
        out = {"b", "c", "d"} | {"h", "i", "j"}
        assert set(mined(training)["q"][2:]) == {"n", "g", *({"e", "f"} & set(mined(training)["q"]))}
        assert not out & set(mined(training)["q"])
        assert len(mined(training)["q"]) == 2 + 3


def by_hand(
    training: TrainingSet, query: int, found: Sequence[Found], at: int, strata: Strata, seed: int, rules: Rules
) -> list[int]:
    """The negatives of a query, document after document."""
    ids, positives = training.documents.ids, set(training.positives.of(query).tolist())

    def text(row: int) -> str:
        return " ".join(training.documents.text(row).lower().split())

    rankings = [
        [(row, score) for row, score in zip(f.rows[at].tolist(), f.scores[at].tolist(), strict=True)] for f in found
    ]
    out = set(positives) | {-1}
    for ranking in rankings:
        good = [score for row, score in ranking if row in positives]
        for row, score in ranking:
            if rules.fraction is None:
                continue
            if (not good and rules.unfound == "drop") or (good and score > rules.bound(max(good))):
                out.add(row)
    texts = {text(row) for row in positives}
    judged = min(float(text(row).split()[-1]) for row in positives)
    negatives: list[int] = []
    for ranking in rankings:
        for part in strata.parts:
            pool = [row for row, _ in ranking[part.first - 1 : part.last] if row not in out]
            taken = 0
            for row in sorted(pool, key=lambda row: lot(seed, training.queries.id(query), ids([row])[0])):
                if taken == part.count or row in negatives or row in out or text(row) in texts:
                    continue
                texts.add(text(row))
                if rules.margin is not None and float(text(row).split()[-1]) > judged - rules.margin:
                    out.add(row)
                    continue
                negatives.append(row)
                taken += 1
    return negatives


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """8 queries over 30 documents with 12 texts."""
    rng = np.random.default_rng(0)
    return TrainingSet.build(
        tmp_path_factory.mktemp("crowd") / "set",
        [(f"q{query}", "") for query in range(8)],
        [(f"d{row}", f"{' ' * (row % 3)}Text {'X' if row % 2 else 'x'} {row % 12}") for row in range(30)],
        [(f"q{query}", f"d{row}") for query in range(8) for row in rng.choice(30, 1 + query % 3, replace=False)],
    )


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_any_finds_give_what_they_give_by_hand(crowd: TrainingSet, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    depth = data.draw(st.integers(1, 20))
    found = []
    for _ in range(data.draw(st.integers(1, 3))):
        rows = np.array([rng.permutation(np.arange(-3, 30))[:depth] for _ in range(8)]).clip(min=-1)
        scores = -np.sort(-rng.normal(size=rows.shape).round(1).astype(np.float32), axis=1)
        gone = np.arange(depth) >= rng.integers(0, depth + 1, size=8)[:, None]
        found.append(Found(np.where(gone, -1, rows), np.where(gone, np.nan, scores).astype(np.float32)))
    edges = sorted(data.draw(st.sets(st.integers(0, depth), min_size=2, max_size=4))) if depth > 1 else [0, 1]
    parts = [f"{low + 1}-{high}:{rng.integers(1, high - low + 1)}" for low, high in pairwise(edges)]
    strata = Strata.parse(",".join(parts))
    rules = Rules(
        fraction=data.draw(st.sampled_from([None, 0.5, 0.95, 1.0])),
        unfound=data.draw(st.sampled_from(["keep", "drop"])),
        margin=data.draw(st.sampled_from([None, -3.0, 0.0, 2.0])),
    )
    block = choose(
        crowd, np.arange(8), found, text_hashes(crowd), strata, 7, rules, None if rules.margin is None else Judge()
    )
    wanted = [by_hand(crowd, query, found, query, strata, 7, rules) for query in range(8)]
    assert block["documents"].tolist() == [row for rows in wanted for row in rows]
    assert block["queries"].tolist() == [query for query, rows in enumerate(wanted) for _ in rows]


@pytest.mark.parametrize("kind", ["lexical", "dense", "sparse", "multi-vector"])
@pytest.mark.parametrize("batch", [1, 5, 256])
def test_every_kind_against_one_search_at_a_time(kind: Any, batch: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    words = [f"w{number}" for number in range(25)]
    found = [Document(f"d{row}", " ".join(rng.choice(words, 8)) + f" {row % 7}") for row in range(60)]
    asked = [(f"q{query}", " ".join(rng.choice(words, 3))) for query in range(11)]
    training = TrainingSet.build(
        tmp_path / "set", asked, found, [(id, f"d{rng.integers(60)}") for id, _ in asked for _ in range(2)]
    )
    encoder = "bm25" if kind == "lexical" else HashEncoder(kind)
    strata, rules = Strata.parse("1-5:2,6-20:3"), Rules(fraction=0.9)
    with Retriever.build(tmp_path / "idx", found, encoder=encoder) as retriever:
        report = mine(training, [retriever], strata=strata, depth=30, seed=2, rules=rules, batch=batch)
        for query, (id, text) in enumerate(asked):
            hits = retriever.search(text, k=30)
            rows = np.full((1, 30), -1)
            rows[0, : len(hits)] = training.documents.rows([hit.id for hit in hits])
            scores = np.full((1, 30), np.nan, np.float32)
            scores[0, : len(hits)] = [hit.score for hit in hits]
            wanted = by_hand(training, query, [Found(rows, scores)], 0, strata, 2, rules)
            good = training.positives.of(query).tolist()
            assert training.candidates.of(query).tolist() == good + wanted, id
    assert report.negatives == len(training.candidates.rows) - len(training.positives.rows)


def test_dense_mining_against_exhaustive_search(tmp_path: Path) -> None:
    encoder = HashEncoder("dense")
    rng = np.random.default_rng(8)
    found = [Document(f"d{row:02d}", " ".join(f"w{n}" for n in rng.integers(0, 40, 6))) for row in range(50)]
    asked = [(f"q{query}", f"w{query} w{query + 1}") for query in range(9)]
    training = TrainingSet.build(
        tmp_path / "set", asked, found, [(id, f"d{7 * at % 50:02d}") for at, (id, _) in enumerate(asked)]
    )
    with Retriever.build(tmp_path / "idx", found, encoder=encoder) as retriever:
        mine(training, [retriever], strata="1-10:10", depth=50, rules=Rules(fraction=0.8))
    every = encoder.encode_query([text for _, text in asked]) @ encoder.encode_document([d.text for d in found]).T
    for query, scores in enumerate(every):
        good = int(training.positives.of(query)[0])
        bound = scores[good] - 0.2 * abs(scores[good])
        ranked = sorted(range(50), key=lambda row: (-scores[row], row))[:10]
        wanted = {row for row in ranked if row != good and scores[row] <= bound and found[row].text != found[good].text}
        assert set(training.candidates.of(query).tolist()) == wanted | {good}


def test_draws_depend_on_seed_query_and_document_alone(tmp_path: Path) -> None:
    queries = [(f"q{number}", f"query {number}") for number in range(40)]
    training = build(tmp_path / "set", queries, {id: ["p"] for id, _ in queries})
    with index(tmp_path / "idx") as retriever:
        draws = {}
        for seed, batch in ((0, 256), (0, 7), (1, 256)):
            mine(training, [retriever], strata="8-12:1", seed=seed, batch=batch)
            draws[seed, batch] = mined(training)
        assert draws[0, 256] == draws[0, 7] != draws[1, 256]
        # Each of g, p2, h, i, j about as often as the others.
        drawn = Counter(found[1] for draw in (draws[0, 256], draws[1, 256]) for found in draw.values())
        assert set(drawn) == {"g", "p2", "h", "i", "j"}
        assert min(drawn.values()) >= 6
        fewer = build(tmp_path / "fewer", queries[5:8], {id: ["p"] for id, _ in queries})
        mine(fewer, [retriever], strata="8-12:1")
        assert mined(fewer) == {id: draws[0, 256][id] for id, _ in queries[5:8]}


def ten(folder: Path) -> TrainingSet:
    queries = [(f"q{number}", f"query {number}") for number in range(10)]
    return build(folder, queries, {id: ["p"] for id, _ in queries})


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    training, seen = ten(tmp_path / "set"), list[int]()
    index(tmp_path / "idx").close()
    with (
        Retriever.open(tmp_path / "idx", encoder=Numbers(fails="query 7")) as retriever,
        pytest.raises(RuntimeError, match="the power went"),
    ):
        mine(training, [retriever], batch=3, strata="1-12:4", progress=seen.append)
    assert seen == [1, 2]
    assert len(TrainingSet.open(training.path).candidates.rows) == 0
    encoder = Numbers()
    with Retriever.open(tmp_path / "idx", encoder=encoder) as retriever:
        report = mine(TrainingSet.open(training.path), [retriever], batch=3, strata="1-12:4", progress=seen.append)
        assert encoder.asked == [f"query {number}" for number in (6, 7, 8, 9)]
        assert seen[2:] == [1, 2, 3, 4]
        assert steps(training, 3) == 4
        whole = ten(tmp_path / "whole")
        assert mine(whole, [retriever], batch=3, strata="1-12:4") == report
    assert mined(TrainingSet.open(training.path)) == mined(whole)


def test_nothing_is_searched_twice(tmp_path: Path) -> None:
    training, encoder = ten(tmp_path / "set"), Numbers()
    with index(tmp_path / "idx", encoder) as retriever:

        def searched(**options: Any) -> int:
            before = len(encoder.asked)
            mine(training, [retriever], **{"strata": "1-12:3", **options})
            return len(encoder.asked) - before

        assert searched() == 10
        assert searched() == 0
        assert searched(strata="1-6:1,7-12:5", seed=9, rules=Rules(fraction=0.5)) == 0
        assert searched(strata="1-6:1", depth=12) == 0
        assert searched(strata="1-6:1") == 10  # another depth
        retriever.add([Document("new", "1 more")])
        assert searched() == 10  # another index
        with Retriever.open(tmp_path / "idx", encoder=encoder) as other:
            other.delete("new")
        assert searched() == 10  # changed by another than the one at hand
        (tmp_path / "idx").rename(tmp_path / "moved")
        with Retriever.open(tmp_path / "moved", encoder=encoder) as moved:
            before = len(encoder.asked)
            mine(training, [moved], strata="1-12:3")
            assert len(encoder.asked) == before  # the same index in another place
    # Another model under the same path.
    other_encoder = Numbers("other")
    with index(tmp_path / "idx", other_encoder) as retriever:
        mine(training, [retriever], strata="1-12:3")
    assert len(other_encoder.asked) == 10


def test_few_hits_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining_module, "_HITS", 40)
    training, encoder = ten(tmp_path / "set"), Numbers()
    with index(tmp_path / "idx", encoder) as retriever:
        mine(training, [retriever], strata="1-12:3")
    assert encoder.calls == [3, 3, 3, 1]
    again = ten(tmp_path / "again")
    monkeypatch.undo()
    with Retriever.open(tmp_path / "idx", encoder=encoder) as retriever:
        mine(again, [retriever], strata="1-12:3")
    assert mined(again) == mined(training)


def test_an_index_may_hold_more_than_the_set(training: TrainingSet, tmp_path: Path) -> None:
    with index(tmp_path / "idx", texts={**TEXTS, **{f"x{n}": f"{n} other" for n in range(20, 60)}}) as retriever:
        report = mine(training, [retriever], strata="1-12:3", batch=1)  # for q nothing but strangers
        assert report.counts["strangers"] == 12
        assert mined(training)["q"] == ["p", "p2"]
        report = mine(training, [retriever], strata="1-52:30")
        assert report.counts["strangers"] == 80
        assert len(mined(training)["q"]) == 2 + 6
    with (
        index(tmp_path / "alien", texts={f"x{n}": f"{n} other" for n in range(5)}) as retriever,
        pytest.raises(
            TrainingDataError, match=r"none of its documents is in .*mine with an index over the documents of"
        ),
    ):
        mine(training, [retriever])


def test_what_is_refused(training: TrainingSet, tmp_path: Path) -> None:
    judge = Judge()
    with index(tmp_path / "idx") as retriever:
        cases: list[tuple[Callable[[], object], str]] = [
            (lambda: mine(training, []), "there is no retriever to mine with: give one index or more"),
            (lambda: mine(training, [retriever], depth=99), "reach to rank 100, and depth is 99: raise it to 100"),
            (lambda: mine(training, [retriever], batch=0), "batch is 0: give a number of queries, 1 or more"),
            (lambda: mine(training, [retriever], teacher=judge), "a teacher a margin: give both or neither"),
            (lambda: mine(training, [retriever], rules=Rules(margin=1)), "give both or neither"),
            (lambda: Rules(fraction=0.0), "fraction is 0.0: give a number above 0 and at most 1, or None"),
            (lambda: Rules(unfound="ask"), "unfound is 'ask': choose keep or drop"),  # type: ignore[arg-type]
            (lambda: Rules(margin=float("nan")), "margin is nan: give a number in the units of the teacher's scores"),
            (lambda: Strata.parse("1-10"), "'1-10' in '1-10' is no stratum: write first rank-last rank:count"),
            (lambda: Strata.parse("1-5:2,5-9:1"), "the stratum 5-9:1 begins before rank 6"),
            (lambda: Strata.parse("0-5:2"), "the stratum 0-5:2 begins before rank 1"),
            (lambda: Strata.parse("1-5:6"), "the stratum 1-5:6 asks for 6 of 5 documents"),
            (lambda: Strata(()), "there is no stratum: write them as 1-10:4,11-50:4"),
        ]
        for wrong, message in cases:
            with pytest.raises(TrainingDataError, match=re.escape(message)):
                wrong()
        with (
            locked(training.path / "mining" / ".lock", "mining"),
            pytest.raises(WriterLockedError, match="another process is mining for"),
        ):
            mine(training, [retriever])
        mine(training, [retriever])
        other = TrainingSet.open(training.path)
        training.add_scores("t", np.zeros(len(training.candidates.rows)))
        for late in (training, other):  # the one that has not seen the scores does not throw them away either
            with pytest.raises(TrainingDataError, match=r"has scores of t for its candidates.*replace=True"):
                mine(late, [retriever], strata="1-9:2")
        mine(other, [retriever], strata="1-9:2", replace=True)
        assert TrainingSet.open(training.path).teachers == ()
    assert str(Strata.parse(" 1-10:4, 11-50:4")) == "1-10:4,11-50:4"


def test_an_index_whose_build_was_stopped(training: TrainingSet, tmp_path: Path) -> None:
    def documents() -> Any:
        for number in range(3000):
            yield Document(f"d{number}", f"{number} " + "long " * 4000)
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        Retriever.build(tmp_path / "idx", documents(), encoder=Numbers(), memory=16 << 20)
    with (
        Retriever.open(tmp_path / "idx", encoder=Numbers()) as retriever,
        pytest.raises(TrainingDataError, match="was stopped: finish it before mining with it"),
    ):
        mine(training, [retriever])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retrievers", "mine", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = [f"w{number}" for number in range(20)]
    found = [Document(f"d{row}", " ".join(rng.choice(words, 6))) for row in range(40)]
    asked = [(f"q{query}", " ".join(rng.choice(words, 3))) for query in range(6)]
    positives = [(id, f"d{at}") for at, (id, _) in enumerate(asked)]
    stored, wanted = (TrainingSet.build(tmp_path / name, asked, found, positives) for name in ("set", "wanted"))
    paths = [tmp_path / "one", tmp_path / "two"]
    retrievers = [
        Retriever.build(path, found, encoder=encoder)
        for path, encoder in zip(paths, ("bm25", "bm25(k1=0)"), strict=True)
    ]
    arguments = [stored.path, *paths, "--strata", "1-5:1,6-20:2", "--seed", 4, "--fraction", 0.9, "--unfound", "drop"]
    done = run(*arguments)
    report = mine(wanted, retrievers, strata="1-5:1,6-20:2", seed=4, rules=Rules(fraction=0.9, unfound="drop"))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{report}\n")
    assert mined(TrainingSet.open(stored.path)) == mined(wanted)
    done = run(*arguments, "--depth", 30, "--teacher", "bm25", "--margin", 0.5)
    assert (done.returncode, done.stderr) == (0, "")
    assert "that the teacher puts too close to the positive" in done.stdout
    for retriever in retrievers:
        retriever.close()
    stored = TrainingSet.open(stored.path)
    stored.add_scores("t", np.zeros(len(stored.candidates.rows)))
    done = run(*arguments)
    assert done.returncode == 1
    assert "pass replace=True (on the command line --replace)" in done.stderr
    assert run(*arguments, "--replace", "--fraction", 0).returncode == 0


def test_the_command_says_what_is_wrong(training: TrainingSet, tmp_path: Path) -> None:
    index(tmp_path / "idx", "bm25").close()
    for options, code, message in (
        (["--margin", 1], 2, "--teacher and --margin go together"),
        (["--strata", "1-2"], 2, "is no stratum"),
        (["--fraction", 2], 2, "fraction is 2.0: give a number above 0 and at most 1"),
        (["--depth", 5], 1, "error: the strata 1-10:4,11-50:4,51-100:8 reach to rank 100, and depth is 5"),
        ([tmp_path / "none"], 1, "none is not an index: there is no such folder"),
    ):
        done = run(training.path, tmp_path / "idx", *options)
        told = " ".join(done.stderr.replace("│", " ").split())
        assert (done.returncode, message in told) == (code, True), told
    assert "retrievers mine" in run("--help").stdout.split("Example", 1)[1]
