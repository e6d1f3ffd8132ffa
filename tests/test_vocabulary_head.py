"""The pooled masked-language head against the plain one: values and gradients."""

from __future__ import annotations

import pytest
import torch
from models import TEXTS, splade_folder, without_dropout
from torch import Tensor

from retrievers.encoders import vocabulary_head
from retrievers.encoders.vocabulary_head import highest_logits, install, pooled_heads

BATCH, LENGTH, WIDTH, VOCABULARY = 4, 7, 12, 200


@pytest.fixture(autouse=True, params=["as on a processor", "as on an accelerator"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of the head run here: the second notes the places of the highest logits in its forward pass."""
    if request.param == "as on an accelerator":
        monkeypatch.setattr(vocabulary_head, "_keeps_places", lambda hidden: True)


def _inputs(*, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, weight, shift = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((BATCH, LENGTH, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[1, 4:] = 0  # padding on the right, on the left, and on both sides
    mask[2, :3] = 0
    mask[3, [0, 1, 5, 6]] = 0
    return hidden, weight, shift if bias else None, mask


def _plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.masked_fill(~mask.bool().unsqueeze(-1), -torch.inf).max(dim=1).values


def _gradients(found: Tensor, inputs: tuple[Tensor | None, ...]) -> list[Tensor]:
    slopes = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(2)
    ).relu()  # some are zero, as after a relu
    wanted = [one for one in inputs if one is not None and one.requires_grad]
    return list(torch.autograd.grad((found.float() * slopes).sum(), wanted))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("numbers", [1 << 19, 1, BATCH * LENGTH * 70])  # one slice; 64 and 70 entries, the last shorter
def test_it_is_the_plain_head(bias: bool, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vocabulary_head._SLICE_NUMBERS, "cpu", numbers)
    inputs = _inputs(bias=bias)
    found, wanted = highest_logits(*inputs), _plain(*inputs)
    torch.testing.assert_close(found, wanted)
    for mine, theirs in zip(_gradients(found, inputs), _gradients(wanted, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradients_against_differences() -> None:
    hidden, weight, bias, mask = _inputs(bias=True)
    assert bias is not None
    numbers = [one.detach().double().requires_grad_() for one in (hidden, weight[:9], bias[:9])]
    assert torch.autograd.gradcheck(lambda h, w, b: highest_logits(h, w, b, mask), numbers)


def test_padding_takes_no_gradient() -> None:
    inputs = _inputs(bias=True)
    to_hidden = _gradients(highest_logits(*inputs), inputs)[0]
    assert to_hidden[inputs[3] == 0].abs().max() == 0


def test_of_equal_logits_the_first_position_gets_the_gradient() -> None:
    hidden = torch.ones(1, 3, 2, requires_grad=True)
    weight = torch.ones(1, 2)
    highest_logits(hidden, weight, None, torch.tensor([[0, 1, 1]])).sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[[0, 0], [1, 1], [0, 0]]]


def test_a_row_without_tokens_harms_no_other() -> None:
    hidden, weight, bias, mask = _inputs(bias=True)
    mask[0] = 0
    found = highest_logits(hidden, weight, bias, mask)
    torch.testing.assert_close(found[1:], _plain(hidden, weight, bias, mask)[1:])
    assert found.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_it_computes_in_half_precision(bias: bool) -> None:
    inputs = _inputs(bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = highest_logits(*inputs), _plain(*inputs)
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=2**-6, atol=2**-6)
    for mine, theirs in zip(_gradients(found, inputs), _gradients(wanted, inputs), strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        # Of logits that are equal in half precision another may win, so that single entries differ.
        assert torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.97


def test_an_installed_model_gives_the_same_within_the_context_as_outside() -> None:
    from sentence_transformers import SparseEncoder

    model = without_dropout(SparseEncoder(str(splade_folder()), device="cpu"))
    names = set(model.state_dict())
    install(model)
    install(model)  # a second time changes nothing
    assert set(model.state_dict()) == names
    features = model.preprocess(TEXTS)

    def run() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        found = model(dict(features))["sentence_embedding"].to_dense()
        slopes = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
        (found * slopes).sum().backward()
        return found.detach(), {
            name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None
        }

    outside, wanted = run()
    with pooled_heads():
        inside, found = run()
    again, _ = run()
    assert (outside > 0).any()
    torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(again, outside, rtol=0, atol=0)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name] - value).norm() <= 1e-4 * value.norm() + 1e-6, name


def test_training_pools_the_head() -> None:
    """The logits of a batch would take a hundred times the memory of its vectors, and most of the time of a step."""
    from sentence_transformers import SparseEncoder

    from retrievers.training.objective import Objective
    from retrievers.training.objectives import InfoNCE

    model = without_dropout(SparseEncoder(str(splade_folder()), device="cpu"))
    features = model.preprocess(TEXTS)
    wanted = model(dict(features))["sentence_embedding"].to_dense()
    objective = Objective(model, "sparse", InfoNCE())
    shapes: list[torch.Size] = []
    head = model[0].model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    (found,) = objective.encode(features, "document")
    assert shapes == [(len(TEXTS), 1, found.shape[1])]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
