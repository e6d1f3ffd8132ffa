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

from retrievers.errors import EncoderError, ModelNotFoundError

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from retrievers.encoders.dense import DenseEncoder
from retrievers.encoders.model import load_model_encoder, open_neural
from retrievers.encoders.multi_vector import MultiVectorEncoder
from retrievers.encoders.sparse import SparseEncoder

PROMPTS = {"query": "query: ", "document": "passage: "}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved model of each kind, under names that say nothing."""
    base = tmp_path_factory.mktemp("saved")
    return {
        "dense": models.make_dense(base / "splade-colbert", prompts=PROMPTS),
        "sparse": models.make_splade(base / "cross-encoder"),
        "multi-vector": models.make_multi_vector(base / "model"),
    }


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


def test_kinds_are_recognised_whatever_the_folders_name(encoders: dict[str, Any]) -> None:
    assert {kind: encoder.kind for kind, encoder in encoders.items()} == {kind: kind for kind in encoders}
    assert load_model_encoder(models.minilm_folder(), device="cpu").kind == "dense"


def test_older_folders_are_recognised_by_their_modules(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind in ("sparse", "multi-vector"):
        name = "config_sentence_transformers.json"
        old = models.copy_with(folders[kind], tmp_path / kind, name, model_type=None)
        from retrievers.encoders.checkpoints import find

        assert find(old).kind == kind


def test_pylate_checkpoints_load(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["multi-vector"], tmp_path / "pylate")
    for name in ("_MultiVectorMask", "_Normalize"):
        shutil.rmtree(next(folder.glob(f"*{name}")))
    types = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    paths = ("", next(folder.glob("*_Dense")).name)
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(zip(paths, types, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 511, "do_lower_case": False}))
    config = {
        "model_type": "ColBERT",
        "query_prefix": "[unused0] ",
        "document_prefix": "[unused1] ",
        "query_length": 16,
        "document_length": 64,
        "attend_to_expansion_tokens": False,
        "skiplist_words": [",", "."],
        "prompts": {},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    encoder = load_model_encoder(folder, device="cpu")
    assert encoder.kind == "multi-vector"
    assert len(encoder.encode_query(["list, files"])[0]) == 16
    assert encoder.document_tokens("list, files") == ["[CLS]", "[unused1]", "list", "files", "[SEP]"]
    before = encoder.fingerprint
    encoder.save(tmp_path / "saved")
    again = load_model_encoder(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(
        again.encode_document(models.TEXTS).values, encoder.encode_document(models.TEXTS).values, atol=1e-6
    )
    assert again.fingerprint == before


def test_stanford_checkpoints_load(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = models.copy_with(
        models.splade_folder(), tmp_path / "stanford", "config.json", architectures=["HF_ColBERT"]
    )
    weights = load_file(folder / "model.safetensors")
    weights["linear.weight"] = torch.randn(24, 128, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = {"query_maxlen": 20, "doc_maxlen": 50, "attend_to_mask_tokens": False, "mask_punctuation": True}
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    encoder = load_model_encoder(folder, device="cpu")
    assert encoder.kind == "multi-vector"
    assert encoder.encode_query(["a query"])[0].shape == (20, 24)
    assert encoder.document_tokens("list, files") == ["[CLS]", "[unused1]", "list", "files", "[SEP]"]


def test_a_plain_masked_language_model_is_ambiguous() -> None:
    with pytest.raises(EncoderError, match=r"SparseEncoder\.inference_free.*DenseEncoder"):
        load_model_encoder(models.splade_folder())
    assert DenseEncoder(models.splade_folder(), device="cpu").encode_query(["a"]).shape == (1, 128)


def test_cross_encoders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    plain = models.copy_with(
        models.splade_folder(), tmp_path / "plain", "config.json", architectures=["BertForSequenceClassification"]
    )
    model = CrossEncoder(str(plain), device="cpu", num_labels=1)
    model.save(str(tmp_path / "saved"), create_model_card=False)
    for source in (plain, tmp_path / "saved"):
        with pytest.raises(EncoderError, match="cross-encoder"):
            load_model_encoder(source)
    with pytest.raises(EncoderError, match="cross-encoder"):
        DenseEncoder(model)


def test_a_checkpoint_is_not_converted_to_another_kind(folders: dict[str, Path], encoders: dict[str, Any]) -> None:
    with pytest.raises(EncoderError, match="load it with SparseEncoder"):
        DenseEncoder(folders["sparse"])
    with pytest.raises(EncoderError, match="load it with DenseEncoder"):
        SparseEncoder(folders["dense"])
    with pytest.raises(EncoderError, match="load it with DenseEncoder"):
        MultiVectorEncoder(folders["dense"])
    with pytest.raises(EncoderError, match="random projection"):
        MultiVectorEncoder(models.splade_folder())
    with pytest.raises(EncoderError, match="use DenseEncoder"):
        SparseEncoder(encoders["dense"].model)
    with pytest.raises(EncoderError, match="got dict"):
        DenseEncoder({})


def test_distances_are_refused(folders: dict[str, Path]) -> None:
    from sentence_transformers import SentenceTransformer

    for name in ("euclidean", "manhattan"):
        model = SentenceTransformer(str(folders["dense"]), device="cpu", similarity_fn_name=name)
        with pytest.raises(EncoderError, match=f"similarity is {name}.*inner product"):
            DenseEncoder(model)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder at"):
        load_model_encoder(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="no folder at"):
        load_model_encoder("./nowhere/at/all")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        load_model_encoder("no-such-owner/no-such-model")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        load_model_encoder("no-such-model")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ModelNotFoundError, match=r"holds no model: neither modules\.json.*notes\.txt"):
        load_model_encoder(tmp_path)
    with pytest.raises(ModelNotFoundError, match="is a file"):
        load_model_encoder(tmp_path / "notes.txt")


def test_broken_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    without = shutil.copytree(folders["dense"], tmp_path / "without")
    (without / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="cannot be loaded as a dense encoder"):
        load_model_encoder(without, device="cpu")
    short = shutil.copytree(folders["dense"], tmp_path / "short")
    (short / "model.safetensors").write_bytes((short / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(EncoderError, match="cannot be loaded as a dense encoder"):
        load_model_encoder(short, device="cpu")
    cut = shutil.copytree(folders["dense"], tmp_path / "cut")
    (cut / "modules.json").write_text("[{")
    with pytest.raises(EncoderError, match=r"modules\.json is no valid JSON"):
        load_model_encoder(cut, device="cpu")
    strange = models.copy_with(
        folders["dense"], tmp_path / "strange", "config_sentence_transformers.json", model_type="Oracle"
    )
    with pytest.raises(EncoderError, match="'Oracle'"):
        load_model_encoder(strange)
    decoder = models.copy_with(
        models.splade_folder(), tmp_path / "decoder", "config.json", architectures=["BertLMHeadModelForCausalLM"]
    )
    with pytest.raises(EncoderError, match="plain transformers checkpoint"):
        load_model_encoder(decoder)


def test_options_are_checked(folders: dict[str, Path]) -> None:
    with pytest.raises(EncoderError, match="batch_size is 0"):
        DenseEncoder(folders["dense"], batch_size=0)
    with pytest.raises(EncoderError, match="max_batch_tokens is -1"):
        DenseEncoder(folders["dense"], max_batch_tokens=-1)
    with pytest.raises(EncoderError, match="float8"):
        DenseEncoder(folders["dense"], dtype="float8")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        DenseEncoder(folders["dense"], device="no-such-device")


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
def test_a_saved_encoder_is_found_again(folders: dict[str, Path], kind: str, tmp_path: Path) -> None:
    encoder = load_model_encoder(folders[kind], device="cpu")
    reference = json.loads(json.dumps(encoder.reference()))
    encoder.save_query_side(tmp_path)
    assert list(tmp_path.iterdir()) == [], "a folder is referred to, not copied"
    again = open_neural(reference, tmp_path, device="cpu")
    assert (again.kind, again.fingerprint) == (kind, encoder.fingerprint)


def test_an_object_is_stored_with_the_index(encoders: dict[str, Any], tmp_path: Path) -> None:
    encoder = DenseEncoder(encoders["dense"].model)
    reference = json.loads(json.dumps(encoder.reference()))
    (tmp_path / "old").mkdir()
    encoder.save_query_side(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    again = open_neural(reference, tmp_path / "new", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    assert again.reference() == reference, "the index may move again"
    shutil.rmtree(tmp_path / "new" / "model")
    with pytest.raises(ModelNotFoundError, match="no longer at"):
        open_neural(reference, tmp_path / "new")
