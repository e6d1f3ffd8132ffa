"""Which checkpoints load as which encoder, which are refused, and with what words."""

from __future__ import annotations

import json
import shutil
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models.make_each(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: load_model_encoder(folder, device="cpu") for kind, folder in folders.items()}


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
