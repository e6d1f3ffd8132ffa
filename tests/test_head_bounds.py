"""Bounds of a head's logits: no entry above zero is left out, whatever the numbers, and vectors stay what they were."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TEXTS, splade_folder
from numpy.typing import NDArray
from vocabulary_cases import run_damaged_vocabulary, run_vocabulary, vocabulary_case, wanted_vocabulary

from retrievers import SparseEncoder
from retrievers.encoders import head_bounds, vocabulary_head
from retrievers.encoders.head_bounds import HeadBounds

pytestmark = pytest.mark.skipif(not head_bounds.available(), reason="needs the compiled kernels, and AVX2")


def compiled_module() -> Any:
    return importlib.import_module("retrievers.indexes._kernels")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_kernel_equals_plain_sums(seed: int) -> None:
    case = vocabulary_case(seed)
    assert run_vocabulary(compiled_module(), case) == wanted_vocabulary(case)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_kernel_refuses_what_does_not_fit(seed: int) -> None:
    run_damaged_vocabulary(compiled_module(), seed)


def _head(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32]]:
    """Weights, biases and hidden states of any size and shape: single great dimensions, zeros, tokens along entries."""
    rng = np.random.default_rng(seed)
    dimension = int(rng.choice([1, 3, 4, 100, 128, 129, 260, 768]))
    entries, tokens = int(rng.choice([1, 16, 17, 90])), int(rng.choice([1, 2, 5, 6, 13]))
    weight, hidden = rng.standard_normal((entries, dimension)), rng.standard_normal((tokens, dimension))
    for numbers in (weight, hidden):
        if rng.random() < 0.3:
            numbers[:, rng.integers(dimension)] *= 50
        if rng.random() < 0.3:
            numbers[rng.integers(len(numbers))] = 0
        if rng.random() < 0.3:
            numbers[:] = np.sign(numbers)  # all of one size: sums are as great as they can be
        numbers *= float(rng.choice([1e-6, 1.0, 1e4]))
    if rng.random() < 0.5:  # the highest products that there are, and the lowest
        hidden[0] = weight[0] * float(rng.choice([-1.0, 1.0, 1e-3]))
    # Biases that put many logits near zero, where a bound that is too low would leave them out.
    shift = rng.standard_normal(entries) * 1e-3 - (hidden @ weight.T).max(axis=0)
    return (
        weight.astype(np.float32),
        None if rng.random() < 0.2 else shift.astype(np.float32),
        hidden.astype(np.float32),
    )


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_no_entry_above_zero_is_left_out(seed: int) -> None:
    weight, bias, hidden = _head(seed)
    shift = np.float32(0) if bias is None else bias
    logits = (hidden @ weight.T).max(axis=0) + shift  # in float32, as the head computes them
    wide = (hidden.astype(np.float64) @ weight.T.astype(np.float64)).max(axis=0) + shift
    for centre in (np.zeros(weight.shape[1], np.float32), hidden[0], hidden.mean(axis=0), -3 * hidden[-1]):
        found = HeadBounds(weight, bias, centre).candidates(hidden)
        assert found is not None
        assert set(np.flatnonzero((logits > 0) | (wide > 0))) <= set(found.tolist())


def test_bounds_leave_little() -> None:
    """Of the 30,522 entries of a trained head; else the test above would pass with bounds that leave everything."""
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    head = encoder.model[0].model.get_output_embeddings()
    hidden: list[NDArray[np.float32]] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: hidden.append(inputs[0][0].numpy()))
    vectors = [encoder.encode_document([text]) for text in TEXTS]
    handle.remove()
    states = hidden[-len(TEXTS) :]
    bounds = HeadBounds(head.weight.detach().numpy(), head.bias.detach().numpy(), np.concatenate(states).mean(axis=0))
    for vector, state in zip(vectors, states, strict=True):
        found = bounds.candidates(state)
        assert found is not None
        assert set(vector.indices.tolist()) <= set(found.tolist())
        assert len(found) < 0.05 * vector.shape[1]


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_what_is_no_number_has_no_bound(spoilt: float) -> None:
    weight, centre = np.ones((3, 5), np.float32), np.zeros(5, np.float32)
    bounds = HeadBounds(weight, None, centre)
    assert bounds.candidates(np.array([[1, 2, spoilt, 4, 5]], np.float32)) is None
    for at, numbers in enumerate((weight.copy(), np.zeros(3, np.float32), centre.copy())):
        numbers.flat[1] = spoilt
        given: list[Any] = [weight, None, centre]
        given[at] = numbers
        with pytest.raises(ValueError, match="not finite"):
            HeadBounds(*given)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many candidates each bounded text had, in the order in which they were computed."""
    counts: list[int] = []
    original = HeadBounds.candidates

    def counted(self: HeadBounds, hidden: NDArray[np.float32]) -> NDArray[np.int32] | None:
        found = original(self, hidden)
        counts.append(-1 if found is None else len(found))
        return found

    monkeypatch.setattr(HeadBounds, "candidates", counted)
    monkeypatch.setattr(vocabulary_head, "_LEAST_TOKENS", 1)
    return counts


def _whole(monkeypatch: pytest.MonkeyPatch, encoder: SparseEncoder, texts: list[str]) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr(head_bounds, "available", lambda: False)
        return encoder.encode_document(texts)


def _assert_same(found: Any, wanted: Any) -> None:
    assert (found.indptr == wanted.indptr).all()
    assert (found.indices == wanted.indices).all()
    np.testing.assert_allclose(found.data, wanted.data, rtol=1e-4, atol=1e-5)


def test_vectors_are_those_of_the_whole_head(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    encoder = SparseEncoder(str(splade_folder()), device="cpu", batch_size=8)
    texts = list({*TEXTS, "another", " ".join(TEXTS) * 3})
    encoder.encode_document(["the first pass sees whether the head is the last of the model"])
    assert calls == []
    found = encoder.encode_document(texts)
    assert len(calls) == len(texts)
    _assert_same(found, _whole(monkeypatch, encoder, texts))
    assert len(calls) == len(texts)
    _assert_same(encoder.encode_query(texts), found)
    assert len(calls) == 2 * len(texts)


def test_changed_weights_get_bounds_of_their_own(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    head = encoder.model[0].model.get_output_embeddings()
    before = [encoder.encode_document(TEXTS) for _ in range(2)][1]
    with torch.no_grad():
        head.bias += 1.0  # which brings many entries above zero
        head.weight *= 1.1
    after = encoder.encode_document(TEXTS)
    assert len(calls) == 2 * len(TEXTS)
    assert after.nnz > 2 * before.nnz
    _assert_same(after, _whole(monkeypatch, encoder, TEXTS))
    head.weight.data *= 1.1  # which torch does not count
    _assert_same(encoder.encode_document(TEXTS), _whole(monkeypatch, encoder, TEXTS))
    head.weight = torch.nn.Parameter(head.weight.detach() * 0.9)
    _assert_same(encoder.encode_document(TEXTS), _whole(monkeypatch, encoder, TEXTS))
    encoder.model.train()
    encoder.model.eval()
    _assert_same(encoder.encode_document(TEXTS), _whole(monkeypatch, encoder, TEXTS))
    assert len(calls) == 5 * len(TEXTS)


def test_a_head_that_something_follows_is_computed_whole(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    """A model may add to what its output layer gives: then entries below zero count."""
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    plain = encoder.model[0].model
    original = plain.forward

    def shifted(*arguments: Any, **options: Any) -> Any:
        outputs = original(*arguments, **options)
        outputs.logits = outputs.logits + 1.0
        return outputs

    monkeypatch.setattr(plain, "forward", shifted)
    found = [encoder.encode_document(TEXTS) for _ in range(2)][1]
    assert calls == []
    _assert_same(found, _whole(monkeypatch, encoder, TEXTS))


def test_a_head_that_reads_little_makes_no_bounds(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    """They take the time of some hundred tokens: a few questions are answered sooner without them."""
    monkeypatch.setattr(vocabulary_head, "_LEAST_TOKENS", 20)
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    for _ in range(10):
        encoder.encode_query(["search"])  # 3 tokens
    assert len(calls) == 3


def test_an_activation_that_is_not_known_gets_the_whole_head(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(vocabulary_head, "_CUT_AT_ZERO", ())
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    for _ in range(2):
        encoder.encode_document(TEXTS)
    assert calls == []


def test_bounds_that_leave_too_much_are_given_up(monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(vocabulary_head, "_MOST_CANDIDATES", 0.001)
    encoder = SparseEncoder(str(splade_folder()), device="cpu", batch_size=32)
    texts = [f"text number {number}" for number in range(32)]
    found = [encoder.encode_document(texts) for _ in range(3)]
    assert len(calls) == 32
    _assert_same(found[1], found[2])


def test_a_hidden_state_that_is_no_number_comes_to_light(calls: list[int]) -> None:
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    positions = encoder.model[0].model.bert.embeddings.position_embeddings.weight
    for bounded in (0, len(TEXTS)):  # once before there are bounds, once after
        encoder.encode_document(TEXTS)
        assert len(calls) == bounded
        with torch.no_grad():
            sound, positions[1] = positions[1].clone(), torch.nan
        assert np.isnan(encoder.encode_document(["search"]).data).any()
        with torch.no_grad():
            positions[1] = sound
    assert calls[-1] == -1


def test_a_gradient_takes_the_whole_head(calls: list[int]) -> None:
    encoder = SparseEncoder(str(splade_folder()), device="cpu")
    encoder.encode_document(TEXTS)
    with vocabulary_head.pooled_heads():
        found = encoder.model(encoder.model.preprocess(TEXTS))["sentence_embedding"].to_dense()
    assert found.requires_grad
    assert calls == []
