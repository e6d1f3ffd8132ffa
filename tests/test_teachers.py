"""Teachers: encoders against the searches of their indexes, rerankers against themselves, files, and what is refused."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hashing import HashEncoder

from retrievers import Document, LexicalEncoder, MultiVectorReranker, Retriever
from retrievers.encoders import Encoder
from retrievers.errors import (
    EncoderError,
    ModelNotFoundError,
    QueryError,
    ScoreError,
    SourceNotFoundError,
    SpecError,
    TrainingDataError,
)
from retrievers.rerankers import CrossEncoderReranker
from retrievers.training import teachers as teachers_module
from retrievers.training.score_files import FileTeacher
from retrievers.training.sets import TrainingSet
from retrievers.training.teachers import (
    EncoderTeacher,
    LiveTeacher,
    RerankerTeacher,
    Teacher,
    live_teacher,
    load_teacher,
    teacher_name,
)

WORDS = [f"w{number}" for number in range(30)]


def documents() -> list[Document]:
    """40 documents of 0 to 12 words, two of them without any that counts."""
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, 13))) for _ in range(38)]
    return [Document(f"d {number:02d}", text) for number, text in enumerate([*texts, "", "the of"])]


def queries() -> list[tuple[str, str]]:
    rng = np.random.default_rng(6)
    return [(f"q{number}", " ".join(rng.choice(WORDS, size=3 + number))) for number in range(6)]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """6 queries; all documents are candidates of the first, none of the last, some of the others, in odd orders."""
    found, asked = documents(), queries()
    pairs = [("q0", document.id) for document in found]
    pairs += [(id, document.id) for at, (id, _) in enumerate(asked[1:-1], 2) for document in reversed(found[::at])]
    return TrainingSet.build(
        tmp_path_factory.mktemp("training") / "set", asked, found, [(id, found[0].id) for id, _ in asked], pairs
    )


def searched(retriever: Retriever, training: TrainingSet) -> list[Any]:
    """What an index says of each candidate; 0 for what shares no word."""
    given = []
    for query, lists in enumerate(map(training.candidates.of, range(len(training)))):
        hits = {hit.id: hit.score for hit in retriever.search(training.queries.text(query), k=40)}
        given.append(np.array([hits.get(id, 0.0) for id in training.documents.ids(lists)]))
    return given


@pytest.mark.parametrize(
    ("encoder", "tolerance"),
    [
        (LexicalEncoder(), 1e-5),
        (LexicalEncoder(language="none", k1=0.4, b=0.9), 1e-5),
        (HashEncoder("dense"), 1e-5),
        (HashEncoder("sparse"), 2e-3),  # of weights of 16 bits
        (HashEncoder("multi-vector"), 2e-3),  # of tokens as float16
    ],
    ids=["lexical", "lexical with options", "dense", "sparse", "multi-vector"],
)
def test_encoders_score_as_their_indexes(
    encoder: Encoder, tolerance: float, training: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teachers_module, "_DOCUMENTS", 7)  # several blocks
    teacher = load_teacher(encoder, name="one")
    assert isinstance(teacher, LiveTeacher)
    with Retriever.build(tmp_path / "idx", documents(), encoder=encoder) as retriever:
        wanted = searched(retriever, training)
    given = teacher.score(training, range(6))
    assert all(scores.dtype == np.float32 for scores in given)
    assert [len(scores) for scores in given] == [40, 20, 14, 10, 8, 0]
    for scores, theirs in zip(given, wanted, strict=True):
        np.testing.assert_allclose(scores, theirs, rtol=tolerance, atol=tolerance)
    assert any(scores.std() > 0.1 for scores in given[:-1])
    for one, other in zip(teacher.score(training, [4, 0]), [given[4], given[0]], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    # Every query with every document is the same numbers in another shape.
    texts = training.documents.texts(training.candidates.of(0))
    matrix = teacher.scores(training.queries.texts([0, 3]), texts)
    assert (matrix.dtype, matrix.shape) == (np.float32, (2, 40))
    np.testing.assert_allclose(matrix[0], given[0], rtol=1e-5, atol=1e-5)


def test_bm25_weighs_by_the_documents_of_the_set(training: TrainingSet, tmp_path: Path) -> None:
    teacher = EncoderTeacher(LexicalEncoder(), name="bm25")
    with pytest.raises(TrainingDataError, match=r"bm25 weighs terms by how rare they are.*pass training_set"):
        teacher.lists(["w1"], [["w1 w2"]])
    live = live_teacher("bm25", training_set=training)
    here = live.lists(["w1"], [["w1 w2"]])[0][0]
    (row,) = live.scores(["w1"], ["w1 w2"])
    assert row[0] == pytest.approx(here)
    # Another set, where every document holds the word: it says little there.
    other = TrainingSet.build(
        tmp_path / "set", [("q", "w1")], [("a", "w1 w2"), ("b", "w1")], [("q", "a")], [("q", "a")]
    )
    assert live.score(other, [0])[0][0] < here / 3
    assert live.score(training, [0])[0].tolist() == teacher.score(training, [0])[0].tolist()


def test_fingerprints_tell_what_scores_depend_on() -> None:
    encoders = [LexicalEncoder(), LexicalEncoder(k1=0.9), LexicalEncoder(b=0.1), LexicalEncoder(language="none")]
    encoders += [HashEncoder("dense"), HashEncoder("sparse"), HashEncoder("multi-vector"), HashEncoder("dense", "s ")]  # type: ignore[list-item]
    assert len({load_teacher(encoder).fingerprint for encoder in encoders}) == len(encoders)
    assert load_teacher("bm25").fingerprint == load_teacher(LexicalEncoder(), name="other").fingerprint


class Counted:
    """A reranker of one's own: how many letters a document has."""

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[Any]:
        return [np.array([len(document.text) for document in found], np.float32) for found in documents]


class Broken(Counted):
    def score(self, queries: Sequence[str], documents: Sequence[Sequence[Document]]) -> list[Any]:
        return [np.full(len(found), np.nan, np.float32) for found in documents]


def test_any_reranker_is_a_teacher(training: TrainingSet) -> None:
    with pytest.raises(EncoderError, match=r"Counted has no fingerprint.*pass fingerprint="):
        RerankerTeacher(Counted(), name="letters")
    teacher = RerankerTeacher(Counted(), name="letters", fingerprint="1")
    assert teacher.fingerprint == "1"
    given = teacher.score(training, [5, 3])
    assert [len(scores) for scores in given] == [0, 10]
    assert given[1].tolist() == [len(text) for text in training.documents.texts(training.candidates.of(3))]
    assert teacher.score(training, [5])[0].tolist() == []
    assert teacher.scores(["a", "b"], []).shape == (2, 0)
    assert teacher.scores(["a", "b"], ["xy"]).tolist() == [[2], [2]]
    with pytest.raises(ScoreError, match="Broken scored document '0' for query"):
        RerankerTeacher(Broken(), name="broken", fingerprint="1").score(training, [0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each kind."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    base = tmp_path_factory.mktemp("models")
    return {
        "dense": models.make_dense(base / "dense"),
        "sparse": models.make_splade(base / "splade"),
        "multi-vector": models.make_multi_vector(base / "late"),
        "cross-encoder": models.make_cross_encoder(base / "cross"),
    }


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector", "cross-encoder"])
def test_models_are_loaded_by_kind(kind: str, folders: dict[str, Path]) -> None:
    teacher = load_teacher(str(folders[kind]), device="cpu", batch_size=4)
    assert isinstance(teacher, EncoderTeacher if kind in ("dense", "sparse") else RerankerTeacher)
    assert teacher.name == folders[kind].name
    again = load_teacher(folders[kind], device="cpu", name="again")
    assert (again.name, again.fingerprint) == ("again", teacher.fingerprint)
    texts = ["aspirin thins the blood", "git lists files", ""]
    lists = teacher.lists(["blood", "files"], [texts, texts[:2]])
    assert [len(scores) for scores in lists] == [3, 2]
    np.testing.assert_allclose(teacher.scores(["blood", "files"], texts)[0], lists[0], rtol=1e-4, atol=1e-4)
    if kind == "cross-encoder":
        assert isinstance(teacher, RerankerTeacher)
        assert isinstance(teacher.reranker, CrossEncoderReranker)
        predicted = teacher.reranker.model.predict([("blood", text) for text in texts])
        np.testing.assert_allclose(lists[0], predicted, atol=1e-5)


def test_the_fingerprint_of_a_cross_encoder(folders: dict[str, Path]) -> None:
    import torch

    def of(change: Callable[[Any], object]) -> str:
        reranker = CrossEncoderReranker(folders["cross-encoder"], device="cpu")
        change(reranker.model)
        return load_teacher(reranker).fingerprint

    def shift(model: Any) -> None:
        with torch.no_grad():
            next(iter(model.parameters())).add_(1e-3)

    plain = of(lambda model: None)
    assert plain == of(lambda model: None) == load_teacher(folders["cross-encoder"], device="cpu").fingerprint
    changed = [
        of(shift),
        of(lambda model: setattr(model, "activation_fn", torch.nn.Tanh())),
        of(lambda model: setattr(model, "max_seq_length", 16)),
        of(lambda model: model.to(torch.bfloat16)),
    ]
    assert len({plain, *changed}) == 5


LINES = {
    "scores.jsonl": '{"query_id": "q1", "document_id": "d 00", "score": 1.5}\n\n'
    '{"query_id": "q1", "document_id": "d 04", "score": -2}\n'
    '{"query_id": "q1", "document_id": "d 04", "score": -2.0}\n'
    '{"query_id": "q0", "document_id": "nowhere", "score": 3}\n{"query_id": "gone", "document_id": "d 00", "score": 3}\n',
    "scores.tsv": "query-id\tcorpus-id\tscore\nq1\td 00\t1.5\nq1\td 04\t-2\nq0\tnowhere\t3\n",
    "plain.tsv": "q1\td 04\t-2\nq1\td 00\t1.5\n",
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("zipped", [False, True])
def test_files_of_scores(name: str, zipped: bool, training: TrainingSet, tmp_path: Path) -> None:
    path = tmp_path / (name + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(LINES[name].encode(), mtime=0) if zipped else LINES[name].encode())
    teacher = load_teacher(path)
    assert isinstance(teacher, FileTeacher)
    assert isinstance(teacher, Teacher)
    assert not isinstance(teacher, LiveTeacher)
    assert teacher.name == name.split(".")[0]
    given = teacher.score(training, [5, 1, 0])
    assert [len(scores) for scores in given] == [0, 20, 40]
    assert np.isnan(given[2]).all()
    known = dict(zip(training.documents.ids(training.candidates.of(1)), given[1], strict=True))
    assert (known.pop("d 00"), known.pop("d 04")) == (1.5, -2)
    assert np.isnan(list(known.values())).all()


def test_a_run_is_a_file_of_scores(tmp_path: Path) -> None:
    training = TrainingSet.build(
        tmp_path / "set", [("1", "x")], [("a", "x"), ("b", "y")], [("1", "a")], [("1", "b"), ("1", "a")]
    )
    path = tmp_path / "bm25.run.gz"
    path.write_bytes(gzip.compress(b"1 Q0 a 1 9.25 tag\n1\tQ0\tb\t2\t8e0\ttag\n", mtime=0))
    teacher = load_teacher(str(path))
    assert teacher.name == "bm25"
    assert teacher.score(training, [0])[0].tolist() == [8, 9.25]
    before = teacher.fingerprint
    path.write_bytes(gzip.compress(b"1 Q0 a 1 9.5 tag\n", mtime=0))
    assert load_teacher(str(path)).fingerprint != before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.jsonl", b'{"query_id": "q1"}\n', "s.jsonl, line 1: expected an object with query_id, document_id, score"),
        ("s.jsonl", b"\n{\n", "s.jsonl, line 2: expected an object"),
        ("s.jsonl", b'{"query_id": 1, "document_id": "d", "score": 1}', "query_id is 1, and ids are strings"),
        ("s.jsonl", b'{"query_id": "1", "document_id": "d", "score": NaN}', "the score nan is no finite number"),
        ("s.jsonl", b'{"query_id": "1", "document_id": "d", "score": true}', "the score True is no finite number"),
        ("s.jsonl", b'{"query_id": "1", "document_id": "d", "score": [1]}', "the score [1] is no finite number"),
        ("s.tsv", b"q1\td 00\t1\nq1\td 00\n", "s.tsv, line 2: expected query id, document id, score; got 'q1\\td 00'"),
        ("s.tsv", b"q1\td 00\t1e39\n", "the score '1e39' is no finite number that 32 bits hold"),
        ("s.tsv", b"q1\td 00\thigh\n", "s.tsv, line 1: the score 'high'"),
        ("s.run", b"q1 Q0 d 00 1 2.0 tag\n", "s.run, line 1: expected query id, Q0, document id, rank, score, tag"),
        ("s.tsv", b"q1\td 00\t1\nq1\td 00\t2\n", "two scores, 1 and 2, for query 'q1' and document 'd 00': keep one"),
        ("s.tsv", b"x\ty\t1\n", "has no score for a query and a document of"),
        ("s.tsv", b"q1\td 00\t1\n\xff\n", "s.tsv, line 2: byte 1 of the line, 0xff, is not UTF-8"),
        ("s.tsv.gz", b"plain", "s.tsv.gz, line 1: this is no sound gzip file"),
    ],
)
def test_files_that_are_refused(name: str, content: bytes, message: str, training: TrainingSet, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TrainingDataError, match=re.escape(message)):
        load_teacher(path).score(training, [1])


def test_what_is_no_teacher(tmp_path: Path) -> None:
    for missing in (tmp_path / "scores.tsv", str(tmp_path / "run.TREC.gz")):
        with pytest.raises(SourceNotFoundError, match="there is no such file of scores"):
            load_teacher(missing)
    with pytest.raises(ModelNotFoundError, match="no folder at"):
        load_teacher(str(tmp_path / "model"))
    with pytest.raises(SpecError, match="unknown parameter k2"):
        load_teacher("bm25(k2=1)")
    with pytest.raises(EncoderError, match="is no reranker"):
        load_teacher(3)  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match="use load_teacher"):
        EncoderTeacher(HashEncoder("multi-vector"), name="late")
    path = tmp_path / "s.tsv"
    path.write_text("q1\td 00\t1\n")
    with pytest.raises(TrainingDataError, match="holds scores of what was scored before, and here a model is needed"):
        live_teacher(path)
    for teacher in (EncoderTeacher(HashEncoder("dense"), name="d"), load_teacher(HashEncoder("multi-vector"))):
        assert isinstance(teacher, LiveTeacher)
        with pytest.raises(QueryError, match="got 2 queries and 1 sequences of documents"):
            teacher.lists(["a", "b"], [["c"]])
        assert teacher.lists([], []) == []
        assert teacher.scores([], ["c"]).shape == (0, 1)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("bm25", "bm25"),
        ("bm25(language=german, k1=0.9)", "bm25-language-german-k1-0.9"),
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "ms-marco-MiniLM-L6-v2"),
        ("runs/my scores.jsonl.gz", "my-scores"),
        ("models/東京/", "teacher"),
        ("x" * 300, "x" * 100),
    ],
)
def test_names(source: str, name: str) -> None:
    assert teacher_name(source) == name


def test_names_of_objects() -> None:
    assert load_teacher(MultiVectorReranker(HashEncoder("multi-vector"))).name == "MultiVectorReranker"
    assert load_teacher(HashEncoder("sparse")).name == "HashEncoder"
