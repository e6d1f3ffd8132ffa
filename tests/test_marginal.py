"""Marginalisation over demonstrations: numbers worked by hand, sums over all sequences, torch against numpy, gradients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.errors import TrainingDataError, TrainingError
from retrievers.training.marginal import log_sum_exp, marginalize_sequence, marginalize_token, retrieval_weights

BOTH = pytest.mark.parametrize("marginalize", [marginalize_token, marginalize_sequence])
Marginalize = Callable[..., Any]


def _case(seed: int, batch: int = 3, demonstrations: int = 4, length: int = 5) -> tuple[Any, Any, Any, Any]:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(batch, demonstrations)) * 3
    log_probs = -random.exponential(size=(batch, demonstrations, length))
    tokens = np.arange(length) < random.integers(1, length + 1, size=(batch, 1))
    exist = random.random((batch, demonstrations)) < 0.6
    exist[np.arange(batch), random.integers(0, demonstrations, batch)] = True
    return scores, log_probs, tokens, exist


def test_numbers_worked_by_hand() -> None:
    # p(z) = 3/4, 1/4; p(y_1|z) = 1/2, 1/10; p(y_2|z) = 1/4, 1.
    scores = np.array([[math.log(3), 0.0]])
    log_probs = np.log(np.array([[[1 / 2, 1 / 4], [1 / 10, 1.0]]]))
    tokens = np.ones((1, 2), bool)
    token = (3 / 4 / 2 + 1 / 4 / 10) * (3 / 4 / 4 + 1 / 4)  # 0.4 * 0.4375
    sequence = 3 / 4 * 1 / 8 + 1 / 4 * 1 / 10
    assert np.exp(marginalize_token(scores, log_probs, tokens)) == pytest.approx([token])
    assert np.exp(marginalize_sequence(scores, log_probs, tokens)) == pytest.approx([sequence])
    first = np.array([[True, False]])
    for marginalize in (marginalize_token, marginalize_sequence):
        assert np.exp(marginalize(scores, log_probs, first)) == pytest.approx([0.4])  # of one token both are the same
        assert np.exp(marginalize(scores, log_probs, tokens, first)) == pytest.approx([1 / 8])


@BOTH
def test_the_probabilities_of_all_sequences_sum_to_one(marginalize: Marginalize) -> None:
    """Three tokens, sequences of three, each token's distribution depending on all before it and the demonstration."""
    random, size, length, count = np.random.default_rng(0), 3, 3, 2
    tables = [random.normal(size=(count, *[size] * (place + 1))) for place in range(length)]
    tables = [table - log_sum_exp(table, table.ndim - 1)[..., None] for table in tables]
    sequences = list(itertools.product(range(size), repeat=length))
    log_probs = np.array(
        [[[tables[at][(k, *one[: at + 1])] for at in range(length)] for k in range(count)] for one in sequences]
    )
    scores = np.tile(random.normal(size=count), (len(sequences), 1))
    found = np.exp(marginalize(scores, log_probs, np.ones((len(sequences), length), bool)))
    assert found.sum() == pytest.approx(1.0, abs=1e-12)
    shares = np.exp(scores[0]) / np.exp(scores[0]).sum()
    each = np.exp(log_probs)
    direct = {
        marginalize_token: (shares[:, None] * each).sum(1).prod(1),
        marginalize_sequence: (shares * each.prod(2)).sum(1),
    }
    np.testing.assert_allclose(found, direct[marginalize], rtol=1e-12)


@BOTH
@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_torch_and_numpy_agree_and_loops_too(marginalize: Marginalize, seed: int) -> None:
    scores, log_probs, tokens, exist = _case(seed)
    found = marginalize(scores, log_probs, tokens, exist)
    tensors = [torch.from_numpy(part) for part in (scores, log_probs, tokens, exist)]
    np.testing.assert_allclose(marginalize(*tensors).numpy(), found, rtol=1e-12)
    for row in range(len(scores)):
        kept = [k for k in range(scores.shape[1]) if exist[row, k]]
        total = sum(math.exp(scores[row, k]) for k in kept)
        places = np.flatnonzero(tokens[row])
        terms = [(math.exp(scores[row, k]) / total, [math.exp(log_probs[row, k, i]) for i in places]) for k in kept]
        if marginalize is marginalize_token:
            direct = math.prod(sum(share * ps[at] for share, ps in terms) for at in range(len(places)))
        else:
            direct = sum(share * math.prod(ps) for share, ps in terms)
        assert found[row] == pytest.approx(math.log(direct), rel=1e-9)


@BOTH
def test_padding_changes_neither_values_nor_gradients(marginalize: Marginalize) -> None:
    scores, log_probs, tokens, exist = (torch.from_numpy(part) for part in _case(7))
    given_ = [scores.clone().requires_grad_(), log_probs.clone().requires_grad_()]
    found = marginalize(given_[0], given_[1], tokens, exist)
    found.sum().backward()
    for filler in (0.0, -math.inf, math.nan):
        wide_scores = torch.full((3, 6), filler, dtype=torch.float64)
        wide_scores[:, :4] = torch.where(exist, scores, filler)
        wide = torch.full((3, 6, 8), filler, dtype=torch.float64)
        wide[:, :4, :5] = torch.where(exist[:, :, None] & tokens[:, None, :], log_probs, filler)
        wide_tokens, wide_exist = torch.zeros(3, 8, dtype=torch.bool), torch.zeros(3, 6, dtype=torch.bool)
        wide_tokens[:, :5], wide_exist[:, :4] = tokens, exist
        wide_scores.requires_grad_()
        wide.requires_grad_()
        padded = marginalize(wide_scores, wide, wide_tokens, wide_exist)
        torch.testing.assert_close(padded, found)
        padded.sum().backward()
        for gradient, wanted in ((wide_scores.grad, given_[0].grad), (wide.grad, given_[1].grad)):
            assert gradient is not None
            assert wanted is not None
            assert gradient.isfinite().all()
            inside = gradient[tuple(slice(0, size) for size in wanted.shape)]
            torch.testing.assert_close(inside, wanted)
            assert float(gradient.abs().sum()) == pytest.approx(float(wanted.abs().sum()))  # none outside


@BOTH
def test_gradients_are_those_of_differences(marginalize: Marginalize) -> None:
    scores, log_probs, tokens, exist = (torch.from_numpy(part) for part in _case(3))
    assert torch.autograd.gradcheck(
        lambda one, other: marginalize(one, other, tokens, exist),
        (scores.requires_grad_(), log_probs.requires_grad_()),
    )


@BOTH
def test_impossible_tokens_leave_gradients_finite(marginalize: Marginalize) -> None:
    log_probs = torch.full((2, 2, 3), -1.0)
    log_probs[0, 1, 1] = -math.inf  # one demonstration rules it out
    log_probs[1, :, 2] = -math.inf  # all do
    log_probs.requires_grad_()
    scores = torch.zeros(2, 2, requires_grad=True)
    found = marginalize(scores, log_probs, torch.ones(2, 3, dtype=torch.bool))
    assert found[0].isfinite()
    assert found[1].isneginf()
    found.sum().backward()
    for value in (scores, log_probs):
        assert value.grad is not None
        assert value.grad.isfinite().all()
    assert np.isneginf(marginalize(np.zeros((1, 2)), np.full((1, 2, 1), -np.inf), np.ones((1, 1), bool)))[0]


def test_weights_are_a_softmax_of_what_exists() -> None:
    found = np.exp(retrieval_weights(np.array([[1.0, 2.0, 9.0]]), np.array([[True, True, False]])))
    np.testing.assert_allclose(found, [[1 / (1 + math.e), math.e / (1 + math.e), 0.0]])


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_what_cannot_be_marginalised_is_refused(kind: Callable[..., Any]) -> None:
    scores, log_probs, tokens = kind([[0.0], [0.0]]), kind([[[0.0]], [[0.0]]]), kind([[True], [True]])
    for marginalize in (marginalize_token, marginalize_sequence):
        with pytest.raises(TrainingDataError, match="example 1 has no demonstration"):
            marginalize(scores, log_probs, tokens, kind([[True], [False]]))
        with pytest.raises(TrainingDataError, match="example 1: the retrieval score of demonstration 0 is nan"):
            marginalize(kind([[0.0], [math.nan]]), log_probs, tokens)
        with pytest.raises(TrainingError, match=r"\[2, 1\], log-probabilities \[2, 1, 1\] and tokens \[1, 2\]"):
            marginalize(scores, log_probs, kind([[True, True]]))
        with pytest.raises(TrainingError, match="give one for each score"):
            marginalize(scores, log_probs, tokens, kind([[True, True], [True, True]]))
