"""Leaks: exact and near duplicates against brute force, on planted ones in real questions, and what is done about them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrievers.documents import Document
from retrievers.errors import LeakError, TrainingDataError
from retrievers.queries import read_queries
from retrievers.readers import read_beir
from retrievers.runs import read_qrels
from retrievers.training.leaks import find_leaks, refuse_leaks
from retrievers.training.near_duplicates import NearTexts, normal_form
from retrievers.training.readers import from_beir
from retrievers.training.sets import TrainingSet

short = st.lists(st.text("abé漢 ", max_size=12), max_size=8)


def grams(text: str) -> set[str]:
    padded = text.ljust(3, "\0")
    return {padded[at : at + 3] for at in range(len(padded) - 2)}


@given(short, short, st.sampled_from([0.5, 0.6, 0.75, 0.9, 1.0]))
def test_the_join_finds_what_brute_force_finds(asked: list[str], known: list[str], near: float) -> None:
    found = NearTexts(known, near).find(asked)
    wanted = {}
    for left, one in enumerate(asked):
        for right, other in enumerate(known):
            ratio = len(grams(one) & grams(other)) / len(grams(one) | grams(other))
            if ratio >= near - 1e-9:
                wanted[left, right] = pytest.approx(ratio)
    assert (
        dict(zip(zip(found.asked.tolist(), found.known.tolist(), strict=True), found.similarity, strict=True)) == wanted
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who was it?", "who  was IT"),
        ("Straße", "STRASSE!"),
        ("cafe\u0301", "Café"),
        ("ｆｕｌｌ width", "full\u200b-width"),
        ("it's", "it’s"),
        ("हिन्दी।", "हिन्दी"),
    ],
)
def test_forms_that_are_one(one: str, other: str) -> None:
    assert normal_form(one) == normal_form(other)


def test_forms_that_differ() -> None:
    assert len({normal_form(text) for text in ("हिन्दी", "हन्द", "???", "!!!", "a", "b", "1")}) == 7


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_case_spaces_and_punctuation_do_not_count(text: str) -> None:
    form = normal_form(text)
    if any(letter.isalnum() for letter in text):
        assert normal_form(f" {text} ?!") == form


def small(folder: Path) -> TrainingSet:
    return TrainingSet.build(
        folder / "set",
        [("a", "How tall is the tower of the old town hall?"), ("b", "Something else"), ("c", "What is it?")],
        [("d1", "The tower is 60 metres tall."), ("d2", "No."), ("d3", "It is this.")],
        [("a", "d1"), ("b", "d2"), ("c", "d3")],
    )


EVALUATION = {"e1": "how tall is the tower of the old town hall", "e2": "WHAT IS IT", "e3": "new"}
QRELS = {"e1": {"x1": 1, "x2": 0}, "e2": {"d3": 1, "x3": 2}, "e3": {"d2": 1}}


def test_pairs_match_by_text_and_by_id(tmp_path: Path) -> None:
    training = small(tmp_path)
    texts = {"x1": "the tower is 60 metres TALL", "x2": "The tower is 60 metres tall.", "x3": "another answer"}
    for documents in (texts, [Document(id, text) for id, text in texts.items()]):
        report = find_leaks(training, EVALUATION, QRELS, documents)
        assert [(leak.row, leak.query_id, leak.exact) for leak in report.queries] == [(0, "e1", True), (2, "e2", True)]
        assert [(pair.training_document, pair.document) for pair in report.pairs] == [("d1", "x1"), ("d3", "d3")]
        assert report.mask().tolist() == [True, False, True]


def test_leaks_are_refused_unless_told_otherwise(tmp_path: Path) -> None:
    training = small(tmp_path)
    with pytest.raises(LeakError, match=r"2 of 3 evaluation queries stand in 2 of 3 training queries .*allow=True"):
        refuse_leaks(training, EVALUATION, QRELS)
    assert len(refuse_leaks(training, EVALUATION, QRELS, allow=True).queries) == 2
    assert not refuse_leaks(training, {"e3": "new"}, QRELS)
    assert not find_leaks(training, {})
    with pytest.raises(TrainingDataError, match=r"near is 0\.2"):
        find_leaks(training, {}, near=0.2)


def test_planted_duplicates_in_real_questions_are_found(collections: Path, tmp_path: Path) -> None:
    squad = collections / "squad-dev"
    training = from_beir(squad, tmp_path / "set")
    rng = random.Random(5)
    rows = rng.sample(range(len(training)), 400)
    planted = {}
    for row in rows[:200]:
        planted[f"exact-{row}"] = "  " + training.queries.text(row).upper().replace(" ", "  ").rstrip("?") + " ?!"
    for row in rows[200:]:
        text = training.queries.text(row)
        at = rng.randrange(len(text))
        planted[f"near-{row}"] = text[:at] + rng.choice("qxz") + text[at + 1 :]
    report = find_leaks(training, planted, near=0.9)
    found = {(leak.query_id, leak.row): leak.exact for leak in report.queries}
    assert all(found[f"exact-{row}", row] for row in rows[:200])
    near = {row for row in rows[200:] if ratio(training, row, planted[f"near-{row}"]) >= 0.9}
    assert len(near) > 20
    assert {row for row in rows[200:] if (f"near-{row}", row) in found} == near


def ratio(training: TrainingSet, row: int, text: str) -> float:
    one, other = grams(normal_form(training.queries.text(row))), grams(normal_form(text))
    return len(one & other) / len(one | other)


def test_rewrites_of_real_questions_leak_with_their_answers(collections: Path, tmp_path: Path) -> None:
    squad = collections / "squad-dev"
    training = from_beir(squad, tmp_path / "set")
    rewrites = dict(read_queries(str(squad / "queries.disfluent.jsonl")))
    qrels = read_qrels(squad / "qrels" / "train.tsv")
    rewrites = {id: text for id, text in rewrites.items() if id in qrels}
    report = find_leaks(training, rewrites, qrels, read_beir(squad), near=0.7)
    own = {leak.query_id for leak in report.queries if leak.query_id == leak.training_id}
    wanted = {
        id
        for id, row in zip(rewrites, training.queries.rows(list(rewrites)).tolist(), strict=True)
        if ratio(training, row, rewrites[id]) >= 0.7
    }
    assert own == wanted
    assert len(own) > 100
    assert {pair.query.query_id for pair in report.pairs} >= own
    clean = find_leaks(training, {id: text for id, text in rewrites.items() if id not in wanted}, near=0.7)
    assert not any(leak.query_id == leak.training_id for leak in clean.queries)
    assert np.count_nonzero(report.mask()) == len({leak.row for leak in report.queries})
