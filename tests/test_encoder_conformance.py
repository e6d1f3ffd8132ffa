"""One suite over every encoder: what an index may rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from retrievers import vectors
from retrievers.errors import EncoderError, RetrieversError

NAMES = ("dense", "onnx", "openvino", "multi-vector", "adapters", "splade", "inference-free", "lexical")
SIDES = ("encode_query", "encode_document")


@pytest.fixture(scope="module", params=NAMES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_encoder(request.param, tmp_path_factory.mktemp("models"))


def make_encoder(name: str, folder: Path) -> Any:
    if name == "lexical":
        lexical = pytest.importorskip("retrievers.encoders.lexical", reason="the lexical encoder is not there")
        return lexical.LexicalEncoder()
    if name == "dense":
        from retrievers.encoders.dense import DenseEncoder

        return DenseEncoder(models.minilm_folder(), device="cpu")
    if name in ("onnx", "openvino"):
        for package in ("onnx", "onnxruntime") if name == "onnx" else ("openvino",):
            pytest.importorskip(package, reason=f"{package} is not installed: pip install 'tri-retrievers[{name}]'")
        from retrievers.encoders.dense import DenseEncoder

        return DenseEncoder(models.minilm_folder(), backend=name)
    if name == "multi-vector":
        from retrievers.encoders.multi_vector import MultiVectorEncoder

        return MultiVectorEncoder(models.make_multi_vector(folder / "multi-vector"), device="cpu")
    if name == "adapters":
        from retrievers.encoders.multi_vector import MultiVectorEncoder

        return MultiVectorEncoder(models.make_adapted(folder), device="cpu", language="de_DE", query_language="en_XX")
    from retrievers.encoders.sparse import SparseEncoder

    if name == "splade":
        return SparseEncoder(models.splade_folder(), device="cpu")
    return SparseEncoder.inference_free(models.splade_folder(), models.TEXTS, device="cpu")


def rows(found: Any) -> list[Any]:
    """The vectors one by one, in a form that numpy compares."""
    if isinstance(found, vectors.TokenVectors):
        return [found[row] for row in range(len(found))]
    if isinstance(found, np.ndarray):
        return list(found)
    dense = []
    for row in range(found.shape[0]):
        part = found[row]
        order = np.argsort(part.indices)
        dense.append(dict(zip(part.indices[order].tolist(), part.data[order].tolist(), strict=True)))
    return dense


def assert_same(found: list[Any], wanted: list[Any], atol: float) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, dict):
            keys = sorted(set(one) | set(other))
            one, other = ([side.get(key, 0.0) for key in keys] for side in (one, other))
        np.testing.assert_allclose(one, other, atol=atol)


def test_kind_is_known(encoder: Any) -> None:
    assert encoder.kind in vectors.KINDS


@pytest.mark.parametrize("side", SIDES)
def test_vectors_are_well_formed(encoder: Any, side: str) -> None:
    found = getattr(encoder, side)(models.TEXTS)
    vectors.check(found, encoder.kind, len(models.TEXTS))
    assert vectors.dimension(found) == vectors.dimension(encoder.encode_document(["a text"]))
    if encoder.kind in ("sparse", "lexical"):
        assert found.has_canonical_format or found.has_sorted_indices


@pytest.mark.parametrize("side", SIDES)
def test_same_texts_give_the_same_vectors(encoder: Any, side: str) -> None:
    encode = getattr(encoder, side)
    assert_same(rows(encode(models.TEXTS)), rows(encode(models.TEXTS)), atol=0)


@pytest.mark.parametrize("side", SIDES)
def test_order_is_kept_and_neighbours_do_not_matter(encoder: Any, side: str) -> None:
    encode = getattr(encoder, side)
    together = rows(encode(models.TEXTS))
    alone = [rows(encode([text]))[0] for text in models.TEXTS]
    assert_same(together, alone, atol=2e-5)
    assert_same(rows(encode(models.TEXTS[::-1]))[::-1], together, atol=2e-5)


@pytest.mark.parametrize("side", SIDES)
def test_a_very_long_text_is_taken(encoder: Any, side: str) -> None:
    found = getattr(encoder, side)(["short", models.LONG])
    vectors.check(found, encoder.kind, 2)
    assert_same(rows(found)[1:], rows(getattr(encoder, side)([models.LONG])), atol=2e-5)


@pytest.mark.parametrize("side", SIDES)
def test_different_texts_differ(encoder: Any, side: str) -> None:
    encode = getattr(encoder, side)
    first, second = rows(encode(["aspirin and blood", "debian package files"]))
    with pytest.raises(AssertionError):
        assert_same([first], [second], atol=1e-3)


@pytest.mark.parametrize("side", SIDES)
def test_no_texts_give_no_vectors(encoder: Any, side: str) -> None:
    encode = getattr(encoder, side)
    found = encode([])
    vectors.check(found, encoder.kind, 0)
    assert vectors.dimension(found) == vectors.dimension(encode(["a text"]))


@pytest.mark.parametrize("side", SIDES)
def test_tuples_and_other_sequences_are_taken(encoder: Any, side: str) -> None:
    encode = getattr(encoder, side)
    assert_same(rows(encode(("one text", "two texts"))), rows(encode(["one text", "two texts"])), atol=0)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("texts", ["a single text", ["a text", None], ["a text", 3], [b"bytes"]])
def test_what_is_no_list_of_texts_is_refused(encoder: Any, side: str, texts: Any) -> None:
    with pytest.raises(RetrieversError):
        getattr(encoder, side)(texts)


@pytest.mark.parametrize("side", SIDES)
def test_a_lone_surrogate_is_refused_by_name_or_encoded(encoder: Any, side: str) -> None:
    texts = ["a text", "lone \ud800 half"]
    try:
        found = getattr(encoder, side)(texts)
    except EncoderError:
        return
    vectors.check(found, encoder.kind, 2)


def test_fingerprint_is_a_stable_hex_string(encoder: Any) -> None:
    before = encoder.fingerprint
    encoder.encode_document(["a text"])
    encoder.encode_query(["a text"])
    assert encoder.fingerprint == before
    assert int(before, 16) >= 0


def test_fingerprints_tell_encoders_apart(tmp_path: Path) -> None:
    found = {make_encoder(name, tmp_path).fingerprint for name in ("multi-vector", "splade", "inference-free")}
    assert len(found) == 3
