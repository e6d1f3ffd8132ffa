"""Rerankers by themselves, against CrossEncoder.predict and exhaustive MaxSim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hashing import DIMENSION, HashEncoder
from reranking import Lengths, maxsim, predicted, words

from retrievers import (
    CrossEncoderReranker,
    DenseEncoder,
    Document,
    Hit,
    MultiVectorEncoder,
    MultiVectorReranker,
    Reranker,
)
from retrievers.errors import EncoderError, ModelNotFoundError, QueryError, ScoreError, VectorError
from retrievers.rerankers import as_reranker, reranked
from retrievers.vectors import TokenVectors

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

QUERIES = ["how do I list files", "", "aspirin and the blood " * 20, "東京 café", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.make_cross_encoder(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture(scope="module")
def cross(folder: Path) -> CrossEncoderReranker:
    return CrossEncoderReranker(folder, device="cpu")


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-vector model under a name that says something else."""
    return models.make_multi_vector(tmp_path_factory.mktemp("saved") / "cross-encoder")


def documents(n: int = len(models.TEXTS)) -> list[Document]:
    """The odd texts, some with titles, over and over with a number."""
    return [
        Document(
            f"d{at:03}",
            models.TEXTS[at % len(models.TEXTS)] + (f" {at}" if at >= len(models.TEXTS) else ""),
            title=["", "A title"][at % 2],
            metadata={"year": 2000 + at % 20},
        )
        for at in range(n)
    ]


def test_cross_encoder_scores_are_those_of_predict(cross: CrossEncoderReranker) -> None:
    from sentence_transformers import CrossEncoder

    found = documents()
    scores = cross.score(QUERIES, [found] * len(QUERIES))
    assert len({round(float(score), 4) for score in scores[0]}) > 5, "the scores of this model tell texts apart"
    for query, given in zip(QUERIES, scores, strict=True):
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, predicted(cross.model, query, found), atol=1e-5)
    assert isinstance(cross.model, CrossEncoder)


@pytest.mark.parametrize("activation", ["Identity", "Sigmoid", "Tanh"])
def test_prompts_and_activation_are_the_models(tmp_path: Path, activation: str) -> None:
    import torch

    folder = models.make_cross_encoder(
        tmp_path / "model",
        activation_fn=getattr(torch.nn, activation)(),
        prompts={"query": "please find: "},
        default_prompt_name="query",
    )
    reranker = CrossEncoderReranker(folder, device="cpu")
    found = documents()
    (scores,) = reranker.score(QUERIES[:1], [found])
    np.testing.assert_allclose(scores, predicted(reranker.model, QUERIES[0], found), atol=1e-5)
    plain = [(QUERIES[0], document.content) for document in found]
    bare = reranker.model.predict(plain, prompt="", show_progress_bar=False)
    assert np.abs(scores - bare).max() > 1e-3, "the prompt changes the scores of this model"
    other = reranker.model.predict(plain, activation_fn=torch.nn.Softplus(), show_progress_bar=False)
    assert np.abs(scores - other).max() > 1e-3, "the activation changes the scores of this model"


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batches_do_not_change_scores(folder: Path, cross: CrossEncoderReranker, batch_size: int) -> None:
    found = documents(40)
    lists = [found[:7], [], found[5:40], found[::-1], found[:1]]
    scores = CrossEncoderReranker(folder, device="cpu", batch_size=batch_size).score(QUERIES, lists)
    assert [given.shape for given in scores] == [(7,), (0,), (35,), (40,), (1,)]
    for query, of, given in zip(QUERIES, lists, scores, strict=True):
        (alone,) = cross.score([query], [of])
        np.testing.assert_allclose(given, alone, atol=1e-5)
        np.testing.assert_allclose(given, predicted(cross.model, query, of), atol=1e-5)


def test_batches_hold_pairs_of_all_queries_longest_first(folder: Path) -> None:
    reranker = CrossEncoderReranker(folder, device="cpu", batch_size=8)
    shapes: list[tuple[int, ...]] = []
    reranker.model[0].register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0]["input_ids"].shape)))
    found = [Document(f"d{at}", "word " * (at + 1)) for at in range(10)]
    reranker.score(["one", "two", "three", "one"], [found] * 4)
    assert [rows for rows, _ in shapes] == [8, 8, 8, 6], "30 distinct pairs in batches of 8, each scored once"
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > widths[-1]


def test_equal_texts_have_equal_scores_whatever_their_batch(folder: Path) -> None:
    reranker = CrossEncoderReranker(folder, device="cpu", batch_size=2)
    found = [Document(name, text) for name, text in zip("gfedcba", ["x y", "z " * 30] * 3 + ["x y"], strict=True)]
    hits = [Hit(document.id, 0.0, document) for document in found]
    (best,) = reranked(["x"], [hits], reranker, 7)
    assert {hit.score for hit in best if hit.document.text == "x y"} == {best[[h.id for h in best].index("a")].score}
    assert len({hit.score for hit in best}) == 2
    groups = [[hit.id for hit in best if hit.document.text == text] for text in ("x y", "z " * 30)]
    assert groups == [["a", "c", "e", "g"], ["b", "d", "f"]]


def test_half_precision_scores_are_close_and_float32(folder: Path, cross: CrossEncoderReranker) -> None:
    import torch

    reranker = CrossEncoderReranker(folder, device="cpu", dtype="bfloat16")
    assert next(reranker.model.parameters()).dtype == torch.bfloat16
    (scores,) = reranker.score(QUERIES[:1], [documents()])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, cross.score(QUERIES[:1], [documents()])[0], atol=0.1)


def test_threads_wait_for_one_another_at_a_model(folder: Path, cross: CrossEncoderReranker) -> None:
    model = CrossEncoderReranker(folder, device="cpu").model
    inside: list[int] = []  # one entry for each call that is at work
    together: list[int] = []

    def enter(*_: Any) -> None:
        inside.append(1)
        together.append(len(inside))
        time.sleep(0.02)

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(lambda *_: inside.pop() and None)
    answers: dict[int, Any] = {}

    def ask(at: int) -> None:  # an object may be passed to many searches: each makes a reranker over one model
        answers[at] = CrossEncoderReranker(model).score(QUERIES[at : at + 1], [documents()])[0]

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(QUERIES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1] * len(QUERIES)
    for at, scores in enumerate(cross.score(QUERIES, [documents()] * len(QUERIES))):
        np.testing.assert_allclose(answers[at], scores, atol=1e-5)


def test_multi_vector_scores_are_exact_maxsim() -> None:
    found = [*words(40), Document("empty", ""), Document("twice", words(1)[0].text)]
    encoder = HashEncoder("multi-vector")
    queries = ["w1 w2 w3", "", "all w7 " * 30]
    lists = [found, found[:5], [*found[30:], found[0]]]
    scores = MultiVectorReranker(encoder).score(queries, lists)
    assert encoder.encoded == 41, "each distinct text is encoded once, though it comes in several lists"
    for query, of, given in zip(queries, lists, scores, strict=True):
        assert given.dtype == np.float32
        assert given.tolist() == [maxsim(query, document.content) for document in of]
    assert scores[0][40] == 0
    assert not scores[1].any()
    assert scores[0].any()
    assert [given.tolist() for given in MultiVectorReranker(encoder).score(["w1", "w2"], [[], []])] == [[], []]


def test_many_documents_are_encoded_in_portions() -> None:
    class Counting(HashEncoder):
        calls: list[int]

        def encode_document(self, texts: Sequence[str]) -> Any:
            self.calls.append(len(texts))
            return super().encode_document(texts)

    encoder = Counting("multi-vector")
    encoder.calls = []
    found = [Document(f"d{at}", f"w{at} w{at * 7 % 1300}") for at in range(1300)]
    (scores,) = MultiVectorReranker(encoder).score(["w3 w11"], [found])
    assert sum(encoder.calls) == 1300
    assert max(encoder.calls) < 1300
    assert scores.tolist() == [maxsim("w3 w11", document.text) for document in found]


def test_a_real_multi_vector_model_gives_its_own_similarity(late: Path) -> None:
    encoder = MultiVectorEncoder(late, device="cpu")
    found = documents()
    scores = MultiVectorReranker(encoder).score(QUERIES, [found] * len(QUERIES))
    model = encoder.model
    contents = [document.content for document in found]
    wanted = model.similarity(model.encode_query(QUERIES), model.encode_document(contents)).numpy()
    np.testing.assert_allclose(np.stack(scores), wanted, atol=1e-4)


def test_what_a_reranker_is_made_of(folder: Path, late: Path, cross: CrossEncoderReranker) -> None:
    from sentence_transformers import MultiVectorEncoder as Model

    own = Lengths()
    assert isinstance(own, Reranker)
    assert as_reranker(own) is own
    assert as_reranker(cross) is cross
    made = as_reranker(cross.model)
    assert isinstance(made, CrossEncoderReranker)
    assert made.model is cross.model
    encoder = HashEncoder("multi-vector")
    over = as_reranker(encoder)
    assert isinstance(over, MultiVectorReranker)
    assert over.encoder is encoder
    for path in (folder, str(folder), folder.with_name("model-plain")):
        loaded = as_reranker(path, device="cpu", batch_size=5)
        assert isinstance(loaded, CrossEncoderReranker)
        assert loaded.batch_size == 5
        np.testing.assert_allclose(
            loaded.score(["a"], [documents()])[0], cross.score(["a"], [documents()])[0], atol=1e-5
        )
    for source in (late, str(late), Model(str(late), device="cpu")):
        loaded = as_reranker(source, device="cpu")
        assert isinstance(loaded, MultiVectorReranker)
        assert isinstance(loaded.encoder, MultiVectorEncoder)


def test_scores_that_order_nothing_are_refused(folder: Path) -> None:
    import torch

    broken = CrossEncoderReranker(folder, device="cpu")
    broken.model.activation_fn = lambda logits: logits / 0.0
    with pytest.raises(ScoreError, match=r"CrossEncoderReranker scored document 'd000' for query 'a' as -?inf"):
        broken.score(["a"], [documents()])
    with torch.no_grad():
        next(broken.model.parameters()).fill_(torch.nan)
    with pytest.raises(ScoreError, match=r"scored document 'd000' for query 'a' as nan"):
        broken.score(["a"], [documents()])


class Tokens:
    """A multi-vector encoder with as many dimensions and as large values a side as it was told."""

    kind = "multi-vector"

    def __init__(self, query: tuple[int, float], document: tuple[int, float]) -> None:
        self.query, self.document = query, document

    def encode_query(self, texts: Sequence[str]) -> TokenVectors:
        return self._give(len(texts), *self.query)

    def encode_document(self, texts: Sequence[str]) -> TokenVectors:
        return self._give(len(texts), *self.document)

    @staticmethod
    def _give(n: int, width: int, value: float) -> TokenVectors:
        return TokenVectors(np.full((n, width), value, np.float32), np.arange(n + 1, dtype=np.int64))


def test_broken_token_vectors_are_refused() -> None:
    found = [Document("x", "text")]
    assert MultiVectorReranker(Tokens((2, 3.0), (2, 5.0))).score(["q"], [found])[0].tolist() == [30]
    with pytest.raises(VectorError, match="queries of 2 dimensions and documents of 3"):
        MultiVectorReranker(Tokens((2, 1.0), (3, 1.0))).score(["q"], [found])
    with pytest.raises(VectorError, match="NaN or infinity"):
        MultiVectorReranker(Tokens((2, 1.0), (2, np.nan))).score(["q"], [found])
    with pytest.raises(VectorError, match="NaN or infinity"):
        MultiVectorReranker(Tokens((2, np.inf), (2, 1.0))).score(["q"], [found])
    with pytest.raises(ScoreError, match="scored document 'x' for query 'q' as inf"):
        MultiVectorReranker(Tokens((DIMENSION, 1e30), (DIMENSION, 1e30))).score(["q"], [found])


def test_what_cannot_be_scored_is_refused(cross: CrossEncoderReranker) -> None:
    for reranker in (cross, MultiVectorReranker(HashEncoder("multi-vector"))):
        with pytest.raises(EncoderError, match="single text 'query'"):
            reranker.score("query", [documents()])
        with pytest.raises(EncoderError, match="text 0 holds a lone surrogate"):
            reranker.score(["\ud800"], [documents()])
        with pytest.raises(QueryError, match="got 2 queries and 1 sequences of documents"):
            reranker.score(["a", "b"], [documents()])


def test_what_is_no_reranker_is_refused(folder: Path, late: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    dense = models.make_dense(tmp_path / "cross-encoder")
    with pytest.raises(EncoderError, match="saved as a dense encoder, not a cross-encoder: rerank with a cross-enc"):
        as_reranker(dense)
    with pytest.raises(EncoderError, match=r"saved as a multi-vector encoder, not .* rerank with MultiVectorReranker"):
        CrossEncoderReranker(late)
    with pytest.raises(EncoderError, match=r"plain masked-language model: .* no head"):
        as_reranker(models.splade_folder())
    many = models.make_cross_encoder(tmp_path / "many", num_labels=3)
    with pytest.raises(EncoderError, match="gives 3 labels for a pair"):
        as_reranker(many)
    with pytest.raises(EncoderError, match="gives 3 labels for a pair"):
        CrossEncoderReranker(CrossEncoder(str(many), device="cpu"))
    model = SentenceTransformer(str(dense), device="cpu")
    with pytest.raises(EncoderError, match=r"sentence_transformers\.CrossEncoder, got SentenceTransformer"):
        CrossEncoderReranker(model)
    for wrong, told in (
        (model, "SentenceTransformer is no reranker"),
        (DenseEncoder(model), "DenseEncoder of kind 'dense' is no reranker"),
        (Lengths, "class Lengths is no reranker"),
        (42, "int is no reranker. Pass a reranker, a CrossEncoder"),
    ):
        with pytest.raises(EncoderError, match=told):
            as_reranker(wrong)
    with pytest.raises(EncoderError, match="kind 'multi-vector', and this HashEncoder has kind 'dense'"):
        MultiVectorReranker(HashEncoder("dense"))
    with pytest.raises(EncoderError, match="kind 'multi-vector', and this str has none"):
        MultiVectorReranker(str(late))
    half = type("Half", (), {"kind": "multi-vector", "encode_query": len})()
    with pytest.raises(EncoderError, match="Half is no encoder: it lacks encode_document"):
        MultiVectorReranker(half)
    with pytest.raises(EncoderError, match="batch_size is 0"):
        CrossEncoderReranker(folder, batch_size=0)
    with pytest.raises(EncoderError, match="dtype 'float8' is not known"):
        CrossEncoderReranker(folder, dtype="float8")
    with pytest.raises(ModelNotFoundError, match="no folder at"):
        as_reranker(tmp_path / "nowhere")
    for name in ("no-such-owner/no-such-model", "no-such-model"):
        with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
            CrossEncoderReranker(name)
    (folder.with_name("model-plain") / "copy").mkdir(exist_ok=True)
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        as_reranker(folder.with_name("model-plain") / "copy")


def test_a_broken_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    cut = models.copy_with(folder, tmp_path / "cut", "config.json")
    (weights,) = cut.rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(EncoderError, match="cut cannot be loaded as a cross-encoder"):
        CrossEncoderReranker(cut, device="cpu")


def test_without_sentence_transformers_the_package_is_named(tmp_path: Path) -> None:
    for name in ("sentence_transformers", "torch"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('absent', name={name!r})")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"architectures": ["BertForSequenceClassification"]}))
    code = (
        "import sys; from retrievers import CrossEncoderReranker, MultiVectorReranker\n"
        "assert not {'torch', 'sentence_transformers'} & set(sys.modules)\n"
        "try: CrossEncoderReranker(sys.argv[1])\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.startswith("MissingDependencyError neural encoders need a package that is not installed")
    assert "pip install 'tri-retrievers[neural]'" in done.stdout
