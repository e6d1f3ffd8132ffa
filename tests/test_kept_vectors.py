"""Vectors that are kept by row: the encoder's own, encoded once, shared, and not trusted further than they reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hashing import HashEncoder

from retrievers.errors import TrainingDataError
from retrievers.training.kept_vectors import FOLDER, KeptVectors
from retrievers.training.sets import TrainingSet
from retrievers.training.teachers import EncoderTeacher, batch_scores

Kind = Literal["dense", "sparse"]


@pytest.fixture
def training(tmp_path: Path) -> TrainingSet:
    """5 queries, 30 documents, one of them without a word, and lists that share documents."""
    documents = [(f"d{row}", f"word{row} common word{row % 7}") for row in range(29)] + [("empty", "")]
    pairs = [(f"q{query}", f"d{row}") for query in range(5) for row in range(query, 29, 2)]
    return TrainingSet.build(
        tmp_path / "set",
        [(f"q{query}", f"word{query} common") for query in range(5)],
        documents,
        [(f"q{query}", f"d{query}") for query in range(5)],
        pairs,
    )


def plain(vectors: Any) -> Any:
    return vectors if isinstance(vectors, np.ndarray) else vectors.toarray()


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_rows_are_the_encoders_vectors(kind: Kind, training: TrainingSet) -> None:
    encoder = HashEncoder(kind)
    kept = KeptVectors(training, encoder, "document")
    rows = [29, 3, 3, 17, 0]
    wanted = plain(encoder.encode_document(training.documents.texts(rows)))
    for _ in range(2):
        found = plain(kept.of(rows))
        np.testing.assert_array_equal(found, wanted[:, : found.shape[1]])
        assert not np.any(wanted[:, found.shape[1] :])
    assert plain(kept.of([])).shape[0] == 0


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_each_text_is_encoded_once(kind: Kind, training: TrainingSet) -> None:
    encoder = HashEncoder(kind)
    teacher = EncoderTeacher(encoder, name="one")
    first = teacher.score(training, range(5))
    assert encoder.encoded == len(np.unique(training.candidates.rows))
    assert encoder.encoded < len(training.candidates.rows)
    later = HashEncoder(kind)  # another process, another day: the same fingerprint
    again = EncoderTeacher(later, name="other").score(training, [4, 2])
    assert later.encoded == 0
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([first[4], first[2]]))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_batch_by_rows_is_a_batch_by_texts(kind: Kind, training: TrainingSet) -> None:
    teacher = EncoderTeacher(HashEncoder(kind), name="one")
    queries, documents = np.array([4, 1]), np.array([7, 29, 2])
    found = batch_scores(teacher, training, queries, documents)
    assert (found.dtype, found.shape) == (np.float32, (2, 3))
    wanted = teacher.scores(training.queries.texts(queries), training.documents.texts(documents))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.ptp(found) > 0.1


def test_two_who_hold_the_same_folder_share_it(training: TrainingSet) -> None:
    one, other = (KeptVectors(training, HashEncoder("dense"), "document") for _ in range(2))
    mine = one.of(range(10))
    encoder = HashEncoder("dense")
    third = KeptVectors(training, encoder, "document")
    theirs = other.of(range(5, 20))
    np.testing.assert_array_equal(theirs[:5], mine[5:])
    np.testing.assert_array_equal(third.of(range(20))[:10], mine)
    assert encoder.encoded == 0


def test_what_a_crash_cut_off_is_encoded_again(training: TrainingSet) -> None:
    wanted = KeptVectors(training, HashEncoder("dense"), "document").of(range(30))
    data = next(training.path.glob(f"{FOLDER}/*/data.bin"))
    with data.open("rb+") as file:
        file.truncate(data.stat().st_size // 2 + 3)
    encoder = HashEncoder("dense")
    np.testing.assert_array_equal(KeptVectors(training, encoder, "document").of(range(30)), wanted)
    assert 10 < encoder.encoded < 20
    np.testing.assert_array_equal(KeptVectors(training, encoder, "document").of(range(30)), wanted)


def test_places_of_another_set_are_refused(training: TrainingSet) -> None:
    KeptVectors(training, HashEncoder("dense"), "document").of([1])
    place = next(training.path.glob(f"{FOLDER}/*/places.npy"))
    np.save(place, np.zeros((3, 2), np.int64))
    with pytest.raises(TrainingDataError, match=r"places.npy is not that of a set with 30 rows: delete its folder"):
        KeptVectors(training, HashEncoder("dense"), "document")
