"""Classification by demonstrations: probabilities by hand, tuning, scope, and what scikit-learn expects."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hashing import HashEncoder
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from retrievers import DemonstrationClassifier, Retriever, read_demonstrations
from retrievers.errors import DemonstrationError, QueryError

TEXTS = ["book a table", "book a room", "play a song", "play some music", "what is the weather", "will it rain"]
LABELS = ["book", "book", "play", "play", "weather", "weather"]


def _pool(collections: Path, name: str, part: str, step: int) -> tuple[list[str], list[str]]:
    file = collections / name / f"{part}.jsonl"
    path = file if file.exists() else file.with_suffix(".jsonl.gz")
    found = list(read_demonstrations(path, task=name, input="text", output="label"))[::step]
    return [one.input for one in found], [one.output for one in found]


def test_probabilities_are_a_softmax_over_hits() -> None:
    fitted = DemonstrationClassifier(HashEncoder("dense"), k=3, temperature=0.5).fit(TEXTS, LABELS)
    hits = fitted.retriever_.search("book some music", 3)
    weights = np.exp(np.array([hit.score for hit in hits]) / 0.5)
    expected = np.full(3, 0.01 / 3)
    for hit, weight in zip(hits, weights / weights.sum(), strict=True):
        expected[int(hit.id) // 2] += 0.99 * weight
    assert np.allclose(fitted.predict_proba(["book some music"])[0], expected)
    assert fitted.predict(["book some music"])[0] == ["book", "play", "weather"][int(expected.argmax())]


def test_where_nothing_is_found_labels_count_by_their_shares() -> None:
    fitted = DemonstrationClassifier(k=3).fit([*TEXTS, "book it"], [*LABELS, "book"])
    assert np.allclose(fitted.predict_proba(["zzz"]), [[3 / 7, 2 / 7, 2 / 7]])
    assert fitted.scope_score(["zzz", "book"]).tolist()[0] == 0


def test_the_temperature_is_the_best_on_texts_held_out(collections: Path) -> None:
    texts, labels = _pool(collections, "trec-questions", "train", 4)
    fitted = DemonstrationClassifier().fit(texts, labels)
    # Each text asked for in an index of all the others, one by one, for a sample of them.
    assert fitted.temperature_ is not None
    rows = range(0, len(texts), 25)
    losses = {}
    for factor in (0.05, 0.3, 1, 3, 20):
        fixed = clone(fitted).set_params(temperature=fitted.temperature_ * factor).fit(texts, labels)
        found = [fixed._neighbours([texts[row]], 16, np.array([row])) for row in rows]
        probable = np.concatenate([fixed._distribution(*one, fixed._scale) for one in found])
        losses[factor] = log_loss([labels[row] for row in rows], probable, labels=fitted.classes_)
    assert min(losses, key=losses.__getitem__) in (0.3, 1, 3)
    assert losses[1] < losses[0.05]
    assert losses[1] < losses[20]


@pytest.mark.parametrize(("name", "least"), [("banking77", 0.75), ("snips", 0.9), ("trec-questions", 0.7)])
def test_learns_real_tasks(collections: Path, name: str, least: float) -> None:
    texts, labels = _pool(collections, name, "train", 2)
    asked, truth = _pool(collections, name, "test", 3)
    assert DemonstrationClassifier().fit(texts, labels).score(asked, truth) >= least


def test_tells_what_is_out_of_scope(collections: Path) -> None:
    texts, labels = _pool(collections, "clinc150", "train", 3)
    asked, names = _pool(collections, "clinc150", "test", 3)
    truth = np.array(names)
    outside = truth == "oos"
    fitted = DemonstrationClassifier(out_of_scope="oos").fit(texts, labels)
    probable = fitted.predict_proba(asked)
    found = fitted.predict(asked)
    assert np.allclose(probable.sum(axis=1), 1)
    assert (found == fitted.classes_[probable.argmax(axis=1)]).all()
    # The mean of what is told outside and labelled rightly inside: .5 by refusing everything.
    plain = DemonstrationClassifier().fit(texts, labels).predict(asked) == truth
    told = found == truth
    assert (told[outside].mean() + told[~outside].mean()) / 2 > 0.65
    assert told[outside].mean() + told[~outside].mean() > plain[outside].mean() + plain[~outside].mean() + 0.2
    scores = fitted.scope_score(asked)
    higher = (scores[~outside][:, None] > scores[outside][None, :]).mean()
    assert higher > 0.7
    # Without an example of what is out of scope some 5% of what is in scope is refused.
    seen = np.array(labels) != "oos"
    unseen = DemonstrationClassifier(out_of_scope="oos").fit(np.array(texts)[seen], np.array(labels)[seen])
    assert "oos" in unseen.classes_
    refused = unseen.predict(asked) == "oos"
    assert refused[outside].mean() > 2 * refused[~outside].mean()


def test_labels_keep_their_type() -> None:
    fitted = DemonstrationClassifier(k=2).fit(np.array(TEXTS), np.array([3, 3, -1, -1, 7, 7]))
    assert fitted.classes_.tolist() == [-1, 3, 7]
    assert fitted.predict(np.array(["play music", "book"])).tolist() == [-1, 3]
    with_scope = DemonstrationClassifier(k=2, out_of_scope=-9).fit(TEXTS, [3, 3, -1, -1, 7, 7])
    assert with_scope.classes_.tolist() == [-9, -1, 3, 7]
    assert with_scope.predict(["zzz"]).tolist() == [-9]


def test_one_example_of_each_label() -> None:
    fitted = DemonstrationClassifier().fit(TEXTS[::2], LABELS[::2])
    assert fitted.temperature_ is None
    assert fitted.predict(["a song please", "the weather there"]).tolist() == ["play", "weather"]


def test_is_an_estimator_of_scikit_learn() -> None:
    check_estimator(
        DemonstrationClassifier()
    )  # which takes what is for tables of numbers for granted, and leaves it out
    unfitted = DemonstrationClassifier(k=2, temperature=1.0)
    assert clone(unfitted).get_params() == unfitted.get_params()
    for method in ("predict", "predict_proba", "scope_score"):
        with pytest.raises(NotFittedError):
            getattr(unfitted, method)(["text"])
    before = unfitted.get_params()
    assert unfitted.fit(TEXTS, LABELS) is unfitted
    assert unfitted.get_params() == before
    again = clone(unfitted).fit(TEXTS, LABELS)
    asked = ["book a song", "rain in the room", ""]
    assert (again.predict_proba(asked) == unfitted.predict_proba(asked)).all()
    assert (unfitted.predict_proba(asked[::-1])[::-1] == again.predict_proba(asked)).all()
    unfitted.fit(TEXTS[:4], LABELS[:4])  # a second fit forgets the first
    assert unfitted.classes_.tolist() == ["book", "play"]
    assert cross_val_score(DemonstrationClassifier(k=2), TEXTS * 3, LABELS * 3, cv=3).tolist() == [1.0, 1.0, 1.0]
    grid = GridSearchCV(make_pipeline(DemonstrationClassifier()), {"demonstrationclassifier__k": [1, 3]}, cv=2)
    assert grid.fit(TEXTS * 2, LABELS * 2).score(TEXTS, LABELS) == 1.0


def test_a_pickled_one_answers_alike_and_leaves_no_folder() -> None:
    fitted = DemonstrationClassifier(k=3).fit(TEXTS, LABELS)
    loaded = pickle.loads(pickle.dumps(fitted))
    asked = ["book a song", "rain"]
    assert (loaded.predict_proba(asked) == fitted.predict_proba(asked)).all()
    folders = [fitted.retriever_.path, loaded.retriever_.path]
    assert all(folder.exists() for folder in folders)
    assert isinstance(fitted.retriever_, Retriever)
    del fitted, loaded
    assert not any(folder.exists() for folder in folders)
    assert pickle.loads(pickle.dumps(DemonstrationClassifier(k=3))).k == 3


@pytest.mark.parametrize(
    ("texts", "labels", "told"),
    [
        ("book a table", ["a"], "got one str"),
        ([["book"], ["play"]], ["a", "b"], "text 0 is a list"),
        (np.zeros((2, 3)), ["a", "b"], r"shape \[2, 3\]"),
        (["a", "b"], ["a"], "2 texts came with labels of shape"),
        ([], [], "no text to learn from"),
        (["a", None], ["a", "b"], "text 1 is a NoneType"),
    ],
    ids=["string", "lists", "table", "labels", "empty", "none"],
)
def test_refuses_what_is_no_text(texts: object, labels: list[str], told: str) -> None:
    with pytest.raises(DemonstrationError, match=told):
        DemonstrationClassifier().fit(texts, labels)  # type: ignore[arg-type]


def test_refuses_parameters_that_make_no_sense() -> None:
    with pytest.raises(QueryError, match="k is 0"):
        DemonstrationClassifier(k=0).fit(TEXTS, LABELS)
    with pytest.raises(DemonstrationError, match="temperature is 0"):
        DemonstrationClassifier(temperature=0).fit(TEXTS, LABELS)
    with pytest.raises(DemonstrationError, match="out of scope"):
        DemonstrationClassifier(out_of_scope="book").fit(TEXTS[:2], LABELS[:2])
