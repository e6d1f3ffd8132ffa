"""Linear layers and the activation of models that compute in 8-bit integers."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from retrievers.encoders.int8 import Gelu, Int8Linear, convert
from retrievers.indexes import kernels


@pytest.fixture(params=["kernel", "float32"])
def multiplied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """By what layers in int8 multiply."""
    if request.param == "float32":
        monkeypatch.setattr(kernels, "bytes_level", lambda: 0)
    elif not kernels.bytes_level():
        pytest.skip("needs the compiled kernels, and AVX2")
    return str(request.param)


@pytest.mark.usefixtures("multiplied")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [1, 64, 200, 1536])
def test_int8_layers_multiply_nearly_as_floats_do(bias: bool, inputs: int) -> None:
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(inputs, 33, bias=bias)
    values = torch.randn(3, 5, inputs, generator=generator) * torch.logspace(-3, 3, 15).view(3, 5, 1)
    values[1, 2] = 0
    with torch.inference_mode():
        found, wanted = Int8Linear(linear)(values), linear(values)
    assert found.shape == wanted.shape
    assert found.dtype == torch.float32
    assert ((found - wanted).abs() <= most_apart(linear, values)).all()
    apart = torch.linalg.vector_norm(found - wanted, dim=-1) / torch.linalg.vector_norm(wanted, dim=-1).clamp_min(1e-9)
    assert apart.max() < 0.03, "tokens of all sizes keep their precision"


def most_apart(linear: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    """How far a layer may be off whose factors are off by half a step, with steps as int8.py says, and by rounding."""
    weights, rows = (
        torch.nn.functional.pad(one, (0, -one.shape[-1] % 128)).unflatten(-1, (-1, 128))
        for one in (linear.weight.detach(), values)
    )

    def half(most: torch.Tensor, grouped: torch.Tensor, norm: int) -> torch.Tensor:
        norms = torch.linalg.vector_norm(grouped.unflatten(-1, (2, 16, 2, 2)), dim=(-3, -1)).amax(dim=(-2, -1))
        return 0.5 * torch.maximum(most, norms / norm) * 1.001

    of_weights = half(weights.unflatten(-1, (64, 2)).abs().sum(-1).amax(-1) / 127, weights, 167)
    span = rows.amax(-1).clamp_min(0) - rows.amin(-1).clamp_max(0)
    of_rows = half(span / 254, rows, 189)
    sizes = weights.abs().sum(-1), rows.abs().sum(-1)
    return (
        of_rows @ sizes[0].T
        + sizes[1] @ of_weights.T
        + 128 * (of_rows @ of_weights.T)
        + 1e-6 * (sizes[1] @ sizes[0].T)
        + 1e-6
    )


@pytest.mark.parametrize("rows", [1, 7, 600])
def test_the_kernel_and_float32_multiply_the_same_numbers(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.bytes_level():
        pytest.skip("needs the compiled kernels, and AVX2")
    generator = torch.Generator().manual_seed(2)
    linear = torch.nn.Linear(300, 50)
    values = torch.randn(rows, 300, generator=generator)
    values[:, 7] = 60.0  # an outlier
    values[0] = 3.0  # and what has the highest sums, with weights as even
    linear.weight.data[0] = 0.7
    linear.weight.data[1] = -0.7
    fast = Int8Linear(linear)
    monkeypatch.setattr(kernels, "bytes_level", lambda: 0)
    slow = Int8Linear(linear)
    with torch.inference_mode():
        found, wanted = fast(values), slow(values)
    # A step that is rounded the other way moves a number that lies between two of its multiples.
    assert torch.linalg.vector_norm(found - wanted) < 1e-3 * torch.linalg.vector_norm(wanted)
    assert (found - wanted).abs()[0, :2].max() < 1e-5 * wanted[0, 0].abs()


def test_int8_layers_give_each_row_what_it_has_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    layer, rows = Int8Linear(torch.nn.Linear(200, 20)), torch.randn(1111, 200, generator=generator)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = layer(rows)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat([layer(row.unsqueeze(0)) for row in rows]))
    assert layer(rows[:0]).shape == (0, 20)
    assert torch.equal(layer(rows.t().contiguous().t()), together), "however they lie in memory"


@pytest.mark.usefixtures("multiplied")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_int8_layers_tell_rows_that_are_no_numbers(value: float) -> None:
    layer, rows = Int8Linear(torch.nn.Linear(200, 20)), torch.ones(9, 200)
    wanted = layer(rows)
    rows[4, 150] = value
    found = layer(rows)
    assert found[4].isnan().all()
    assert torch.equal(found[:4], wanted[:4])
    assert torch.equal(found[5:], wanted[5:])


def test_gelu_is_that_of_torch_in_float64() -> None:
    if not kernels.bytes_level():
        pytest.skip("needs the compiled kernels, and AVX2")
    values = torch.cat([torch.linspace(-40, 40, 1_000_002), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30])])
    found = Gelu()(values.view(-1, 3)).view(-1)
    wanted = torch.nn.functional.gelu(values.double())
    assert ((found - wanted).abs() <= 3e-7 * values.abs()).all()
    assert Gelu()(torch.tensor([float("nan")])).isnan()


def test_int8_replaces_the_activation_that_it_knows() -> None:
    if not kernels.bytes_level():
        pytest.skip("needs the compiled kernels, and AVX2")
    from transformers.activations import ACT2FN

    others = [torch.nn.GELU("tanh"), ACT2FN["gelu_new"], ACT2FN["gelu_python"], ACT2FN["relu"]]
    network = torch.nn.Sequential(torch.nn.GELU(), ACT2FN["gelu"], *others)
    assert convert(network) == 0
    assert [type(one) for one in network] == [Gelu, Gelu, *map(type, others)]


def test_int8_leaves_alone_what_it_is_told_to_and_what_is_no_plain_layer() -> None:
    class Other(torch.nn.Linear):
        pass

    kept = torch.nn.Linear(4, 4)
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), Other(4, 4), torch.nn.Sequential(kept, torch.nn.Linear(4, 4)))
    assert convert(network, but=[kept]) == 2
    assert [type(network[0]), type(network[1]), type(network[2][1])] == [Int8Linear, Other, Int8Linear]
    assert network[2][0] is kept
