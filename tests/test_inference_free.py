"""Inference-free sparse encoders: the table against sentence-transformers' router, IDF against hand-worked numbers."""

from __future__ import annotations

import gzip
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.documents import Document
from retrievers.errors import (
    EncoderError,
    EncoderMismatchError,
    IndexDamagedError,
    IndexFormatError,
    ModelNotFoundError,
)

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from retrievers.encoders.model import load_model_encoder, open_neural
from retrievers.encoders.sparse import SparseEncoder
from retrievers.encoders.token_table import TokenTable

CORPUS = ["The blood, the heart.", "Blood pressure", "the heart of the matter", "[SEP] packages"]


@pytest.fixture(scope="module")
def encoder() -> SparseEncoder:
    return SparseEncoder.inference_free(models.splade_folder(), CORPUS, device="cpu")


@pytest.fixture(scope="module")
def saved(encoder: SparseEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router") / "model"
    other = SparseEncoder(encoder.model)
    other.save(folder)
    return folder


def weight(encoder: SparseEncoder, token: str) -> float:
    assert encoder.table is not None
    return float(encoder.table.weights[encoder.model.tokenizer.convert_tokens_to_ids(token)])


def test_idf_is_the_hand_worked_one(encoder: SparseEncoder) -> None:
    assert weight(encoder, "blood") == pytest.approx(math.log(1 + 2.5 / 2.5))  # in 2 of 4 texts
    assert weight(encoder, "pressure") == pytest.approx(math.log(1 + 3.5 / 1.5))  # in 1
    assert weight(encoder, "the") == pytest.approx(math.log(1 + 2.5 / 2.5))  # twice in one text counts once
    assert weight(encoder, ".") == pytest.approx(math.log(1 + 3.5 / 1.5))
    assert weight(encoder, "library") == 1.0  # in none
    assert all(weight(encoder, token) == 0 for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"))


def test_a_query_is_the_set_of_its_tokens(encoder: SparseEncoder) -> None:
    found = encoder.encode_query(["Blood blood PRESSURE [SEP] blood", ""])
    assert sorted(encoder.terms(found[0].indices)) == ["blood", "pressure"]
    assert found[0].max() == pytest.approx(math.log(1 + 3.5 / 1.5))
    assert found[1].nnz == 0


def test_a_recipe_may_begin_with_equal_weights() -> None:
    from retrievers.training.models import starting_model
    from retrievers.training.recipe import Model

    wanted = Model(start=str(models.splade_folder()), kind="sparse", query_weights="uniform")
    found = SparseEncoder(starting_model(wanted, CORPUS, device="cpu"))
    assert [weight(found, token) for token in ("blood", "pressure", "library", "[SEP]")] == [1, 1, 1, 0]


def test_weights_come_in_other_forms(encoder: SparseEncoder) -> None:
    import torch

    assert encoder.table is not None
    table = encoder.table.weights
    for idf in (table, table.tolist(), torch.from_numpy(table), (text for text in CORPUS)):
        other = SparseEncoder.inference_free(encoder.model, idf)
        assert other.table is not None
        np.testing.assert_array_equal(other.table.weights, table)
    documents = [Document(str(number), text, title="heart") for number, text in enumerate(CORPUS)]
    assert weight(SparseEncoder.inference_free(encoder.model, documents), "heart") == pytest.approx(
        math.log(1 + 0.5 / 4.5)
    )
    named = SparseEncoder.inference_free(encoder.model, {"blood": 3.0, "the": -2.0, "[SEP]": 5.0})
    assert [weight(named, token) for token in ("blood", "the", "library", "[SEP]")] == [3.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("idf", "message"),
    [
        (None, "needs the weights"),
        ([], "empty"),
        ("corpus.jsonl", "single text"),
        (["text", 3], "text 1 of the corpus is int"),
        (["lone \ud800"], "surrogate"),
        ({"no such token": 1.0}, "no token"),
        (np.ones(7), r"\[7\].*\[30522\]"),
        (np.full(30522, np.nan), "nan for token id 0"),
        (5, "idf is int"),
    ],
)
def test_weights_that_do_not_fit_are_refused(encoder: SparseEncoder, idf: Any, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        SparseEncoder.inference_free(encoder.model, idf)


def test_the_table_equals_the_router_on_real_queries(encoder: SparseEncoder, collections: Path) -> None:
    path = next((collections / "squad-dev").glob("queries.jsonl*"))
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    queries = [json.loads(line)["text"] for line in content.splitlines()[:500]]
    assert len(queries) == 500
    queries[7] = "long " * 600 + "tail"
    found = encoder.encode_query(queries)
    wanted = encoder.model.encode_query(queries).coalesce()
    rows, columns = wanted.indices().numpy()
    np.testing.assert_array_equal(np.repeat(np.arange(500), np.diff(found.indptr)), rows)
    np.testing.assert_array_equal(found.indices, columns)
    np.testing.assert_array_equal(found.data, wanted.values().numpy())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=70))
def test_the_table_equals_the_router_on_any_text(encoder: SparseEncoder, texts: list[str]) -> None:
    wanted = encoder.model.encode_query(["pad", *texts], convert_to_sparse_tensor=False).numpy()[1:]
    np.testing.assert_array_equal(encoder.encode_query(texts).toarray(), wanted)


def test_prompts_and_lengths_of_queries_are_the_routers(encoder: SparseEncoder) -> None:
    from sentence_transformers import SparseEncoder as Oracle

    copied = SparseEncoder.inference_free(encoder.model, CORPUS).model
    copied[0].sub_modules["query"][0].tokenizer.model_max_length = 5
    oracle = Oracle(modules=list(copied), prompts={"query": "heart pressure: "}, device="cpu")
    found = SparseEncoder(oracle).encode_query(["blood matter packages"])
    wanted = oracle.encode_query(["blood matter packages"], convert_to_sparse_tensor=False).numpy()
    np.testing.assert_array_equal(found.toarray(), wanted)
    assert sorted(encoder.terms(found.indices)) == [":", "blood", "heart", "matter", "pressure"]


def test_documents_equal_the_routers_without_special_tokens(encoder: SparseEncoder) -> None:
    wanted = encoder.model.encode_document(models.TEXTS, convert_to_sparse_tensor=False).numpy()
    special = encoder.model.tokenizer.all_special_ids
    assert wanted[:, special].max() >= 0
    wanted[:, special] = 0
    np.testing.assert_allclose(encoder.encode_document(models.TEXTS).toarray(), wanted, atol=1e-5)


def test_special_tokens_are_dropped_where_the_model_activates_them(encoder: SparseEncoder) -> None:
    import torch

    own = SparseEncoder.inference_free(models.splade_folder(), CORPUS, device="cpu")
    with torch.no_grad():
        own.model[0].sub_modules["document"][0].model.get_output_embeddings().bias[101] += 100
    assert own.model.encode_document(["a"], convert_to_sparse_tensor=False)[0, 101] > 1
    assert own.encode_document(["a"])[0, 101] == 0


def test_plain_sentence_transformers_loads_what_is_saved(encoder: SparseEncoder, saved: Path) -> None:
    from sentence_transformers import SparseEncoder as Oracle

    oracle = Oracle(str(saved), device="cpu")
    for name in ("encode_query", "encode_document"):
        texts = [text for text in models.TEXTS if text.strip()]
        wanted = getattr(oracle, name)(texts, convert_to_sparse_tensor=False).numpy()
        wanted[:, encoder.model.tokenizer.all_special_ids] = 0
        np.testing.assert_allclose(getattr(encoder, name)(texts).toarray(), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="route"):
        oracle.encode("neither a query nor a document")
    again = load_model_encoder(saved, device="cpu")
    assert isinstance(again, SparseEncoder)
    assert again.table is not None
    assert again.fingerprint == encoder.fingerprint


def test_a_trained_table_below_zero_counts_as_zero(saved: Path) -> None:
    import torch

    encoder = load_model_encoder(saved, device="cpu")
    before = encoder.fingerprint
    table = encoder.model[0].sub_modules["query"][0]
    blood = table.tokenizer.convert_tokens_to_ids("blood")
    with torch.no_grad():
        table.weight[blood] = -1.0
    trained = SparseEncoder(encoder.model)
    assert trained.encode_query(["blood"]).nnz == 0
    assert trained.fingerprint != before


def test_a_checkpoint_without_its_head_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    with pytest.raises(EncoderError, match=r"no masked-language head.*cls\.predictions"):
        SparseEncoder.inference_free(models.minilm_folder(), CORPUS)
    # The class in config.json promises a head that the weights lack.
    AutoModel.from_pretrained(models.splade_folder()).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(models.splade_folder()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertForMaskedLM"]}))
    for make in (lambda: SparseEncoder.inference_free(tmp_path, CORPUS), lambda: SparseEncoder(tmp_path)):
        with pytest.raises(EncoderError, match="no masked-language head"):
            make()


def test_models_of_transformers_are_taken(encoder: SparseEncoder) -> None:
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    folder = models.splade_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder)
    other = SparseEncoder.inference_free(model, CORPUS, tokenizer=tokenizer, device="cpu")
    texts = models.TEXTS[:3]
    np.testing.assert_allclose(
        other.encode_document(texts).toarray(), encoder.encode_document(texts).toarray(), atol=1e-5
    )
    with pytest.raises(EncoderError, match="without its tokenizer"):
        SparseEncoder.inference_free(model, CORPUS)
    with pytest.raises(EncoderError, match="ForMaskedLM"):
        SparseEncoder.inference_free(AutoModel.from_pretrained(folder), CORPUS, tokenizer=tokenizer)


def test_activation_divisor_and_length(encoder: SparseEncoder) -> None:
    folder, texts = models.splade_folder(), models.TEXTS[2:5:2]
    plain = encoder.encode_document(texts).toarray()
    double = SparseEncoder.inference_free(folder, CORPUS, activation="log1p_relu", device="cpu")
    np.testing.assert_allclose(double.encode_document(texts).toarray(), np.log1p(plain), atol=1e-5)
    divided = SparseEncoder.inference_free(folder, CORPUS, head_divisor=16, device="cpu")
    np.testing.assert_allclose(
        divided.encode_document(texts).toarray(), np.log1p(np.expm1(plain) / 16), rtol=1e-3, atol=1e-4
    )
    short = SparseEncoder.inference_free(folder, CORPUS, max_seq_length=8, device="cpu")
    np.testing.assert_allclose(
        short.encode_document(["word " * 100]).toarray(), encoder.encode_document(["word " * 6]).toarray(), atol=1e-5
    )
    assert short.encode_query(["a b c d e f g h i j"]).nnz == 10, "queries are cut elsewhere than documents"
    for wrong in ({"activation": "gelu"}, {"head_divisor": 0.0}):
        with pytest.raises(EncoderError, match=next(iter(wrong))):
            SparseEncoder.inference_free(folder, CORPUS, **wrong)


def test_queries_need_neither_model_nor_torch(encoder: SparseEncoder, saved: Path, tmp_path: Path) -> None:
    stored = load_model_encoder(saved, device="cpu")
    stored.save_query_side(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "token_table.json",
        "token_weights.npy",
        "tokenizer.json",
    ]
    code = """
import json, sys
from pathlib import Path
from retrievers.encoders.model import open_neural
encoder = open_neural(json.loads(sys.argv[1]), Path(sys.argv[2]))
found = encoder.encode_query(["blood pressure of the heart"])
loaded = [name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules]
print(json.dumps([found.indices.tolist(), found.data.tolist(), encoder.fingerprint, encoder.vocabulary, loaded,
                  encoder.terms(found.indices)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(stored.reference()), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    indices, data, fingerprint, vocabulary, loaded, terms = json.loads(done.stdout)
    wanted = encoder.encode_query(["blood pressure of the heart"])
    assert (indices, data) == (wanted.indices.tolist(), wanted.data.tolist())
    assert (fingerprint, vocabulary, loaded) == (encoder.fingerprint, 30522, [])
    assert terms == encoder.terms(wanted.indices)


def test_the_document_model_is_loaded_when_needed(encoder: SparseEncoder, saved: Path, tmp_path: Path) -> None:
    moving = shutil.copytree(saved, tmp_path / "model")
    stored = load_model_encoder(moving, device="cpu")
    index = tmp_path / "index"
    index.mkdir()
    stored.save_query_side(index)
    opened = open_neural(stored.reference(), index, device="cpu")
    assert opened.reference() == stored.reference()
    np.testing.assert_allclose(
        opened.encode_document(models.TEXTS).toarray(), encoder.encode_document(models.TEXTS).toarray(), atol=1e-5
    )

    path = next(moving.glob("query_0_*")) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = open_neural(stored.reference(), index, device="cpu")
    assert changed.encode_query(["blood"]).nnz == 1
    with pytest.raises(EncoderMismatchError, match="has changed since the index was built"):
        changed.encode_document(["blood"])

    shutil.rmtree(moving)
    gone = open_neural(stored.reference(), index, device="cpu")
    assert gone.encode_query(["blood"]).nnz == 1
    with pytest.raises(ModelNotFoundError, match="no longer at"):
        gone.encode_document(["blood"])


def test_an_encoder_without_a_folder_is_stored_whole(encoder: SparseEncoder, tmp_path: Path) -> None:
    other = SparseEncoder(encoder.model)
    other.save_query_side(tmp_path)
    opened = open_neural(json.loads(json.dumps(other.reference())), tmp_path, device="cpu")
    np.testing.assert_allclose(
        opened.encode_document(["blood"]).toarray(), encoder.encode_document(["blood"]).toarray(), atol=1e-6
    )
    assert opened.reference() == other.reference()


def test_cosine_queries_have_length_one(encoder: SparseEncoder) -> None:
    from sentence_transformers import SparseEncoder as Oracle

    cosine = SparseEncoder(Oracle(modules=list(encoder.model), similarity_fn_name="cosine", device="cpu"))
    found = cosine.encode_query(["blood pressure", "", "heart"])
    norms = np.sqrt(found.multiply(found).sum(axis=1)).A1
    np.testing.assert_allclose(norms, [1, 0, 1], atol=1e-6)


@pytest.fixture
def table(encoder: SparseEncoder, tmp_path: Path) -> Path:
    assert encoder.table is not None
    encoder.table.save(tmp_path)
    return tmp_path


def test_a_table_comes_back_as_it_was(encoder: SparseEncoder, table: Path) -> None:
    assert encoder.table is not None
    again = TokenTable.load(table)
    np.testing.assert_array_equal(again.weights, encoder.table.weights)
    assert (again.prompt, again.similarity) == ("", "dot")
    assert again.encode_query(["blood " * 600]).nnz == 1


@pytest.mark.parametrize("name", ["token_table.json", "token_weights.npy", "tokenizer.json"])
def test_damaged_tables_are_named(table: Path, name: str) -> None:
    content = (table / name).read_bytes()
    for damaged in (None, b"", content[: len(content) // 2], b"null", b"{}"):
        if damaged is None:
            (table / name).unlink()
        else:
            (table / name).write_bytes(damaged)
        with pytest.raises(IndexDamagedError, match=name):
            TokenTable.load(table)


def test_tables_that_do_not_fit_are_refused(table: Path) -> None:
    weights = np.load(table / "token_weights.npy")
    for wrong in (weights[:-1], weights.astype(np.float64), weights[None], -weights, np.full_like(weights, np.inf)):
        np.save(table / "token_weights.npy", wrong)
        with pytest.raises(IndexDamagedError, match="token_weights"):
            TokenTable.load(table)
    np.save(table / "token_weights.npy", weights[:100])
    settings_path = table / "token_table.json"
    held = json.loads(settings_path.read_text())
    settings_path.write_text(json.dumps({**held, "vocabulary": 100}))
    with pytest.raises(IndexDamagedError, match="token ids up to 30521"):
        TokenTable.load(table)
    settings_path.write_text(json.dumps({**held, "format": 2}))
    with pytest.raises(IndexFormatError, match="upgrade"):
        TokenTable.load(table)
    settings_path.write_text(json.dumps({**held, "prompt": 3}))
    with pytest.raises(IndexDamagedError, match="wrong type"):
        TokenTable.load(table)


def test_a_table_of_another_encoder_is_refused(saved: Path, table: Path) -> None:
    reference = load_model_encoder(saved, device="cpu").reference()
    with pytest.raises(IndexDamagedError, match="another encoder"):
        open_neural({**reference, "fingerprint": "0" * 64}, table)
    with pytest.raises(IndexDamagedError, match="kind 'odd'"):
        open_neural({"kind": "odd"}, table)
