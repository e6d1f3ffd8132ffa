"""Dense, multi-vector and SPLADE encoders against sentence-transformers itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from retrievers.errors import EncoderError

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from retrievers.encoders.dense import DenseEncoder
from retrievers.encoders.model import load_model_encoder
from retrievers.encoders.multi_vector import MultiVectorEncoder
from retrievers.encoders.sparse import SparseEncoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models.make_each(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: load_model_encoder(folder, device="cpu") for kind, folder in folders.items()}


def test_dense_equals_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(models.minilm_folder()), device="cpu")
    encoder = DenseEncoder(oracle)
    texts = models.TEXTS[:3]
    np.testing.assert_allclose(encoder.encode_document(texts), oracle.encode_document(texts), atol=1e-5)
    np.testing.assert_allclose(encoder.encode_query(texts), oracle.encode_query(texts), atol=1e-5)
    scores = encoder.encode_query(texts) @ encoder.encode_document(texts).T
    np.testing.assert_allclose(scores, oracle.similarity(oracle.encode(texts), oracle.encode(texts)), atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_dense_scores_are_the_models_similarity(folders: dict[str, Path], similarity: str) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(folders["dense"]), device="cpu", similarity_fn_name=similarity)
    encoder = DenseEncoder(oracle)
    assert encoder.similarity == similarity
    queries, documents = oracle.encode_query(models.TEXTS), oracle.encode_document(models.TEXTS)
    wanted = oracle.similarity(queries, documents).numpy()
    found = encoder.encode_query(models.TEXTS) @ encoder.encode_document(models.TEXTS).T
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("truncate", [None, 16])
def test_dense_prompts_and_truncation_are_the_models(folders: dict[str, Path], truncate: int | None) -> None:
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(folders["dense"]), device="cpu", truncate_dim=truncate)
    oracle.similarity_fn_name = "dot"
    encoder = DenseEncoder(oracle)
    bare = SentenceTransformer(str(folders["dense"]), device="cpu", prompts={"query": "", "document": ""})
    for name in ("encode_query", "encode_document"):
        found = getattr(encoder, name)(models.TEXTS)
        np.testing.assert_allclose(found, getattr(oracle, name)(models.TEXTS), atol=1e-5)
        plain = getattr(bare, name)(models.TEXTS)[:, : found.shape[1]]
        assert np.abs(found - plain).max() > 1e-2, "the prompt changes the vectors of this model"
    assert found.shape[1] == (truncate or 128)


def test_splade_equals_sentence_transformers(encoders: dict[str, Any]) -> None:
    encoder = encoders["sparse"]
    for name in ("encode_query", "encode_document"):
        wanted = getattr(encoder.model, name)(models.TEXTS, convert_to_sparse_tensor=False).numpy()
        np.testing.assert_allclose(getattr(encoder, name)(models.TEXTS).toarray(), wanted, atol=1e-5)


def test_splade_cosine_and_active_dimensions(folders: dict[str, Path]) -> None:
    from sentence_transformers import SparseEncoder as Oracle

    oracle = Oracle(str(folders["sparse"]), device="cpu", max_active_dims=8, similarity_fn_name="cosine")
    encoder = SparseEncoder(oracle)
    texts = models.TEXTS[:3]
    found = encoder.encode_document(texts)
    assert found.getnnz(axis=1).max() <= 8
    wanted = oracle.similarity(oracle.encode_query(texts), oracle.encode_document(texts)).numpy()
    scores = (encoder.encode_query(texts) @ found.T).toarray()
    np.testing.assert_allclose(scores[::2, ::2], wanted[::2, ::2], atol=1e-5)


def test_splade_terms_are_tokens(encoders: dict[str, Any]) -> None:
    encoder = encoders["sparse"]
    row = encoder.encode_document(["the heart and the blood"])
    assert {"heart", "blood"} <= set(encoder.terms(row.indices))
    assert encoder.terms([30521, 99999])[1] == "[99999]"


def test_multi_vector_equals_sentence_transformers(encoders: dict[str, Any]) -> None:
    encoder = encoders["multi-vector"]
    for name in ("encode_query", "encode_document"):
        wanted = getattr(encoder.model, name)(models.TEXTS, convert_to_numpy=True)
        found = getattr(encoder, name)(models.TEXTS)
        assert np.diff(found.offsets).tolist() == [len(vectors) for vectors in wanted]
        np.testing.assert_allclose(found.values, np.concatenate(wanted), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found.values, axis=1), 1, atol=1e-5)


def test_mean_max_sim_is_the_sum_over_query_tokens(folders: dict[str, Path]) -> None:
    from sentence_transformers import MultiVectorEncoder as Oracle

    oracle = Oracle(str(folders["multi-vector"]), device="cpu", similarity_fn_name="meanmaxsim")
    encoder = MultiVectorEncoder(oracle)
    texts = models.TEXTS[:3]
    queries, documents = encoder.encode_query(texts), encoder.encode_document(texts)
    found = [[(queries[i] @ documents[j].T).max(axis=1).sum() for j in range(3)] for i in range(3)]
    wanted = oracle.similarity(oracle.encode_query(texts), oracle.encode_document(texts)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tokens_stand_for_the_vectors(encoders: dict[str, Any]) -> None:
    encoder = encoders["multi-vector"]
    assert encoder.query_tokens("list, files")[:6] == ["[CLS]", "[unused0]", "list", ",", "files", "[SEP]"]
    assert encoder.query_tokens("list, files")[6:] == ["[MASK]"] * 10
    assert encoder.document_tokens("list, files") == ["[CLS]", "[unused1]", "list", "files", "[SEP]"]
    for text in models.TEXTS:
        assert len(encoder.query_tokens(text)) == len(encoder.encode_query([text])[0])
        assert len(encoder.document_tokens(text)) == len(encoder.encode_document([text])[0])


def test_pooled_tokens_are_named_as_such(folders: dict[str, Path]) -> None:
    from sentence_transformers import MultiVectorEncoder as Oracle
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    oracle = Oracle(str(folders["multi-vector"]), device="cpu")
    encoder = MultiVectorEncoder(Oracle(modules=[*oracle, HierarchicalTokenPooling(pool_factor=2)], device="cpu"))
    text = "aspirin inhibits the cyclooxygenase of blood"
    tokens = encoder.document_tokens(text)
    assert tokens[:2] == ["[pooled 0]", "[pooled 1]"]
    assert len(tokens) == len(encoder.encode_document([text])[0])
    assert "blood" in encoder.query_tokens(text)


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
def test_batches_do_not_change_the_vectors(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    for batch_size, tokens in ((1, 10_000), (3, 100), (100, 1)):
        other = type(encoder)(encoder.model, batch_size=batch_size, max_batch_tokens=tokens)
        for name in ("encode_query", "encode_document"):
            found, wanted = getattr(other, name)(models.TEXTS), getattr(encoder, name)(models.TEXTS)
            if kind == "multi-vector":
                assert found.offsets.tolist() == wanted.offsets.tolist()
                found, wanted = found.values, wanted.values
            elif kind == "sparse":
                found, wanted = found.toarray(), wanted.toarray()
            np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_batches_keep_to_the_budget(encoders: dict[str, Any]) -> None:
    encoder = DenseEncoder(encoders["dense"].model, batch_size=3, max_batch_tokens=60)
    texts = ["word " * length for length in (1, 50, 3, 90, 10, 12, 14, 2, 2, 2)]
    sizes = [
        (len(positions), features["input_ids"].shape[1])
        for positions, features in encoder.neural.run(texts, "document")
    ]
    assert sum(number for number, _ in sizes) == len(texts)
    assert all(number <= 3 and (number == 1 or number * width <= 60) for number, width in sizes)
    assert any(number > 1 for number, _ in sizes)


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
def test_threads_may_share_an_encoder(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    texts = models.TEXTS[:3]
    wanted = _plain(encoder.encode_query(texts))
    failures: list[BaseException] = []

    def work(texts_of_thread: list[str], side: str) -> None:
        try:
            for _ in range(5):
                found = getattr(encoder, side)(texts_of_thread)
                if side == "encode_query":
                    np.testing.assert_allclose(_plain(found), wanted, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(texts, "encode_query")) for _ in range(2)]
    threads.append(threading.Thread(target=work, args=(["other text " * 40], "encode_document")))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def _plain(found: Any) -> np.ndarray[Any, Any]:
    values = getattr(found, "values", found)
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values)


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_changes_neither_fingerprint_nor_type(
    encoders: dict[str, Any], folders: dict[str, Path], kind: str, dtype: str, tmp_path: Path
) -> None:
    encoder = load_model_encoder(folders[kind], device="cpu", dtype=dtype)
    assert encoder.fingerprint == encoders[kind].fingerprint
    found, wanted = (
        _plain(encoder.encode_query(models.TEXTS[:1])),
        _plain(encoders[kind].encode_query(models.TEXTS[:1])),
    )
    assert found.dtype == np.float32
    assert 0 < np.abs(found - wanted).max() < 0.2
    with pytest.raises(EncoderError, match="without dtype"):
        encoder.save(tmp_path / "converted")


@pytest.mark.parametrize(
    ("processor", "dtype", "slow"),
    [
        ({"architecture": "x86_64", "avx2": True}, "bfloat16", True),
        ({"architecture": "x86_64", "avx2": True}, "float16", True),
        ({"architecture": "x86_64", "avx2": True}, "float32", False),
        ({"architecture": "x86_64", "avx512_f": True}, "bfloat16", False),
        ({"architecture": "x86_64", "amx_fp16": True}, "float16", False),
        ({"architecture": "x86_64", "amx_fp16": True}, "bfloat16", True),
        ({"architecture": "aarch64"}, "bfloat16", False),
        ({}, "bfloat16", False),
    ],
)
def test_a_type_that_the_processor_imitates_is_warned_of(
    processor: dict[str, Any], dtype: str, slow: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model_encoder(folders["dense"], device="cpu", dtype=dtype)
    told = [str(one.message) for one in caught if "arithmetic" in str(one.message)]
    wanted = (
        f"this processor has no {dtype} arithmetic: encoding takes several times as long as in float32; leave dtype out"
    )
    assert told == [wanted] * slow


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
def test_fingerprint_survives_saving_and_use(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    encoder = load_model_encoder(folders[kind], device="cpu")
    fresh = encoder.fingerprint
    encoder.save(tmp_path / "again")
    again = load_model_encoder(tmp_path / "again", device="cpu")
    again.encode_query(["a text"])
    again.encode_document(["a text"])
    assert again.fingerprint == fresh
    used = type(encoder)(again.model)
    assert used.fingerprint == fresh, "using a model sets padding and truncation, which are not its identity"
    assert encoder.reference()["model"] == str((tmp_path / "again").resolve())


def test_fingerprint_is_the_same_in_another_process(folders: dict[str, Path]) -> None:
    encoder = load_model_encoder(folders["multi-vector"], device="cpu")
    code = (
        "import sys; from retrievers.encoders.model import load_model_encoder;"
        "print(load_model_encoder(sys.argv[1], device='cpu').fingerprint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders["multi-vector"])], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == encoder.fingerprint


def _change_weight(model: Any) -> None:
    import torch

    with torch.no_grad():
        next(model.parameters()).view(-1)[7] += 1e-3


def _change_tokenizer(model: Any) -> None:
    model.tokenizer.add_tokens(["zyzzyva"])


def _change_lowercasing(model: Any) -> None:
    from tokenizers.normalizers import BertNormalizer

    model.tokenizer.backend_tokenizer.normalizer = BertNormalizer(lowercase=False)


CHANGES: dict[str, Any] = {
    "weight": _change_weight,
    "weight type": lambda model: model.double(),
    "new token": _change_tokenizer,
    "normalizer": _change_lowercasing,
    "prompt": lambda model: model.prompts.update(query="q: "),
    "default prompt": lambda model: setattr(model, "default_prompt_name", "query"),
    "length": lambda model: setattr(model, "max_seq_length", 77),
    "query length": lambda model: setattr(model[0], "query_length", 9),
    "document length": lambda model: setattr(model[0], "document_length", 9),
    "pooling": lambda model: setattr(model[1], "pooling_mode", "cls"),
    "similarity": lambda model: setattr(model, "similarity_fn_name", "dot"),
    "dimensions": lambda model: setattr(model, "truncate_dim", 64),
    "padding side": lambda model: setattr(model.tokenizer, "padding_side", "left"),
    "network": lambda model: setattr(model[0].model.config, "hidden_act", "relu"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_tells_every_change(folders: dict[str, Path], change: str) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folders["dense"]), device="cpu")
    before = DenseEncoder(model).fingerprint
    CHANGES[change](model)
    assert DenseEncoder(model).fingerprint != before


def test_fingerprint_tells_what_multi_vector_models_leave_out(folders: dict[str, Path], tmp_path: Path) -> None:
    before = load_model_encoder(folders["multi-vector"], device="cpu").fingerprint
    other = shutil.copytree(folders["multi-vector"], tmp_path / "other")
    mask = next(other.glob("*_MultiVectorMask")) / "config.json"
    mask.write_text(json.dumps({**json.loads(mask.read_text()), "skiplist_words": ["."]}))
    assert load_model_encoder(other, device="cpu").fingerprint != before
