"""The penalty on sparse vectors: against loops, by hand, and through a checkpoint."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.errors import TrainingError
from retrievers.training.recipe import Sparsity
from retrievers.training.sparsity import QUERY_TABLE, Controller, Penalty, flops, risen


def _vectors(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64).relu()


def _looped(documents: torch.Tensor, candidates: int, threshold: int) -> float:
    """The same from its definition."""
    rows = documents.tolist()
    total = 0.0
    for slot in range(candidates):
        mine = rows[slot::candidates]
        for entry in range(len(rows[0])):
            kept = [row[entry] if sum(w > 0 for w in row) > threshold else 0.0 for row in mine]
            total += (sum(kept) / len(mine)) ** 2
    return total


@given(
    queries=st.integers(1, 5),
    candidates=st.integers(1, 4),
    vocabulary=st.integers(1, 9),
    threshold=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_flops_is_its_definition(queries: int, candidates: int, vocabulary: int, threshold: int, seed: int) -> None:
    documents = _vectors(queries * candidates, vocabulary, seed)
    found = flops(documents, candidates, threshold=threshold)
    assert float(found) == pytest.approx(_looped(documents, candidates, threshold), rel=1e-5, abs=1e-7)


def test_flops_by_hand() -> None:
    documents = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    # Slot 0 has the means (2, 0, 1), slot 1 (0, 2, 0).
    assert float(flops(documents, 2)) == 4 + 1 + 4
    # One slot: (1, 1, 0.5).
    assert float(flops(documents)) == 2.25
    # With at most one non-zero spared only the first document is left, over two queries still.
    assert float(flops(documents, 2, threshold=1)) == 0.25 + 1
    assert float(flops(documents, 2, threshold=2)) == 0


def test_spared_documents_take_no_gradient() -> None:
    documents = torch.tensor([[1.0, 0.0, 2.0], [0.0, 4.0, 0.0]], requires_grad=True)
    flops(documents, threshold=1).backward()  # type: ignore[no-untyped-call]
    assert documents.grad is not None
    # d/dw_ij of (w_ij / 2)^2 is w_ij / 2.
    assert documents.grad.tolist() == [[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_half_precision_is_summed_in_single() -> None:
    documents = torch.full((3000, 2), 1e-3, dtype=torch.bfloat16)
    assert flops(documents).dtype == torch.float32
    assert float(flops(documents)) == pytest.approx(2 * float(documents[0, 0]) ** 2, rel=1e-4)


@pytest.mark.parametrize(("rows", "candidates"), [(5, 2), (0, 1), (3, 0)])
def test_ragged_slots_are_refused(rows: int, candidates: int) -> None:
    with pytest.raises(TrainingError, match=f"{rows} sparse vectors .* {candidates} candidates"):
        flops(torch.zeros(rows, 4), candidates)


def test_the_weight_rises_as_a_function_of_the_step_alone() -> None:
    penalty = Penalty(Sparsity(weight=0.08, rise=40), candidates=1)
    assert [penalty.weight(step) for step in (0, 10, 20, 40, 41, 10**9)] == pytest.approx(
        [0, 0.005, 0.02, 0.08, 0.08, 0.08]
    )
    assert penalty.weight(20) == penalty.weight(20) == risen(0.08, 20, 40)


def test_the_penalty_is_weighted() -> None:
    documents = _vectors(6, 5)
    penalty = Penalty(Sparsity(weight=0.5, rise=4, threshold=1), candidates=3)
    wanted = 0.5 * 0.25 * flops(documents, 3, threshold=1)
    torch.testing.assert_close(penalty(2, (documents,)), wanted)
    assert penalty.state() == {}


@pytest.mark.parametrize(("active", "grows"), [(400, True), (100, False)])
def test_the_controller_steers(active: int, grows: bool) -> None:
    controller = Controller(200)
    controller.observe(200)
    assert controller.factor == 1
    for _ in range(10):
        controller.observe(active)
    assert (controller.factor > 1) is grows
    for _ in range(5000):
        controller.observe(0 if not grows else 10**6)
    assert controller.factor == (1000 if grows else 1 / 1000)


def test_a_model_of_the_penalty_settles_at_the_target() -> None:
    controller, active = Controller(120), 3000.0
    for _ in range(3000):
        active += 0.05 * (600 / controller.factor - active)  # follows the weight, and late
        controller.observe(active)
    assert active == pytest.approx(120, rel=0.02)


def test_the_controller_goes_on_from_a_checkpoint() -> None:
    settings_ = Sparsity(weight=0.1, rise=2, target=3)
    whole, first, second = (Penalty(settings_, candidates=1) for _ in range(3))
    batches = [(_vectors(4, 12, seed),) for seed in range(10)]
    found = [float(whole(step, batch)) for step, batch in enumerate(batches)]
    before = [float(first(step, batches[step])) for step in range(5)]
    second.restore(json.loads(json.dumps(first.state())))
    after = [float(second(step, batches[step])) for step in range(5, 10)]
    assert before + after == found
    assert whole.weight(10) > 0.1


def test_the_controller_waits_for_the_rise_and_looks_at_training_only() -> None:
    penalty = Penalty(Sparsity(weight=0.1, rise=5, target=1), candidates=1)
    documents = (_vectors(4, 12),)
    penalty(4, documents)
    with torch.no_grad():
        penalty(5, documents)
    assert penalty.weight(5) == 0.1
    penalty(5, documents)
    assert penalty.weight(5) > 0.1


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(TrainingError, match="rise and candidates 1 or more"):
        Penalty(Sparsity(weight=-1.0), candidates=1)
    with pytest.raises(TrainingError, match="for 0 candidates"):
        Penalty(Sparsity(), candidates=0)
    with pytest.raises(TrainingError, match=r"target is 100 and sparsity\.threshold 150"):
        Penalty(Sparsity(threshold=150, target=100), candidates=1)
    with pytest.raises(TrainingError, match="target is 0"):
        Controller(0)


def test_the_pattern_of_the_query_table() -> None:
    assert re.search(QUERY_TABLE, "0.sub_modules.query.0.weight")
    assert not re.search(QUERY_TABLE, "0.sub_modules.document.0.model.cls.predictions.decoder.weight")
