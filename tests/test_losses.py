"""Every loss against loops and numbers worked by hand, its gradients, and the guard of a run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retrievers.errors import TrainingError
from retrievers.training.guard import Guard
from retrievers.training.losses import (
    Targets,
    in_batch_margin_mse,
    infonce,
    known_positives,
    listwise_kl,
    margin_mse,
    near_positives,
    orthogonal_projection,
    reduce,
)
from retrievers.training.objectives import (
    DualTeacher,
    InfoNCE,
    ListwiseKL,
    MarginMSE,
    OrthogonalProjection,
    Reweighting,
    weighted,
)
from retrievers.training.scores import BatchScores

NAN = math.nan


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def _looped_infonce(scores: Tensor, target: Tensor, scale: float, out: Tensor) -> list[float]:
    found = []
    for row, wanted, gone in zip(scores.tolist(), target.tolist(), out.tolist(), strict=True):
        kept = [column for column in range(len(row)) if column == wanted or not gone[column]]
        shares = _softmax([scale * row[column] for column in kept])
        found.append(-math.log(shares[kept.index(wanted)]))
    return found


def _looped_margin(scores: Tensor, teacher: Tensor, scale: float) -> list[float]:
    found = []
    for mine, theirs in zip(scores.tolist(), teacher.tolist(), strict=True):
        squares = [
            (scale * (mine[0] - mine[j]) - (theirs[0] - theirs[j])) ** 2
            for j in range(1, len(mine))
            if not math.isnan(theirs[0] - theirs[j])
        ]
        found.append(sum(squares) / len(squares) if squares else 0.0)
    return found


def _looped_kl(scores: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float) -> list[float]:
    found = []
    for mine, theirs in zip(scores.tolist(), teacher.tolist(), strict=True):
        kept = [j for j in range(len(mine)) if not math.isnan(theirs[j])]
        if len(kept) < 2:
            found.append(0.0)
            continue
        wanted = _softmax([theirs[j] / teacher_temperature for j in kept])
        given_ = _softmax([mine[j] / temperature for j in kept])
        found.append(sum(p * (math.log(p) - math.log(q)) for p, q in zip(wanted, given_, strict=True)))
    return found


def _looped_in_batch(every: Tensor, guide: Tensor, first: int, scale: float) -> list[float]:
    found = []
    mine, theirs = every.tolist(), guide.tolist()
    for i in range(len(mine)):
        own, best = mine[i][first + i][0], theirs[i][first + i][0]
        halves = []
        for slots in ([0], list(range(1, every.shape[2]))):
            squares = [
                (scale * (own - mine[i][j][slot]) - (best - theirs[i][j][slot])) ** 2
                for j in range(every.shape[1])
                for slot in slots
                if j != first + i and not math.isnan(best - theirs[i][j][slot])
            ]
            halves.append(sum(squares) / len(squares) if squares else 0.0)
        found.append(sum(halves) / 2)
    return found


def _holes(values: Tensor, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return values.masked_fill(torch.rand(values.shape, generator=generator) < share, NAN)


shapes = st.tuples(st.integers(1, 5), st.integers(2, 6))


@given(shape=shapes, scale=st.floats(0.1, 20), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_infonce_is_its_definition(shape: tuple[int, int], scale: float, seed: int) -> None:
    scores = _random(*shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(shape[1], (shape[0],), generator=generator)
    out = torch.rand(shape, generator=generator) < 0.4
    found = infonce(scores, target, scale=scale, drop=out, reduction="none")
    assert found.tolist() == pytest.approx(_looped_infonce(scores, target, scale, out), rel=1e-9, abs=1e-9)


@given(shape=shapes, share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_distillation_is_its_definition(shape: tuple[int, int], share: float, seed: int) -> None:
    scores, teacher = _random(*shape, seed=seed), _holes(_random(*shape, seed=seed + 1), share, seed)
    margins = margin_mse(scores, teacher, scale=3.0, reduction="none")
    assert margins.tolist() == pytest.approx(_looped_margin(scores, teacher, 3.0), abs=1e-9)
    lists = listwise_kl(scores, teacher, temperature=0.7, teacher_temperature=1.3, reduction="none")
    assert lists.tolist() == pytest.approx(_looped_kl(scores, teacher, 0.7, 1.3), abs=1e-9)


@given(
    rows=st.integers(1, 4),
    more=st.integers(0, 3),
    first=st.integers(0, 3),
    candidates=st.integers(2, 4),
    share=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_the_in_batch_half_is_its_definition(
    rows: int, more: int, first: int, candidates: int, share: float, seed: int
) -> None:
    first = min(first, more)
    every = _random(rows, rows + more, candidates, seed=seed)
    guide = _holes(_random(rows, rows + more, candidates, seed=seed + 1), share, seed)
    found = in_batch_margin_mse(BatchScores.of(every, first), guide, scale=2.0, reduction="none")
    assert found.tolist() == pytest.approx(_looped_in_batch(every, guide, first, 2.0), abs=1e-9)


def test_infonce_by_hand() -> None:
    scores = torch.tensor([[math.log(6.0), math.log(3.0), 0.0]], dtype=torch.float64)
    target = torch.tensor([0])
    assert float(infonce(scores, target)) == pytest.approx(math.log(10 / 6))
    drop = torch.tensor([[True, True, False]])  # the target itself is never dropped
    assert float(infonce(scores, target, drop=drop)) == pytest.approx(math.log(7 / 6))
    assert float(infonce(scores, target, drop=torch.ones(1, 3, dtype=torch.bool))) == pytest.approx(0)


def test_the_false_negative_filter_by_hand() -> None:
    guide = torch.tensor([[5.0, 4.9, 4.0, 6.0, NAN], [NAN, 9.0, 9.0, 9.0, 9.0]])
    found = near_positives(guide, torch.tensor([0, 0]), 0.5)
    assert found.tolist() == [[False, True, False, True, False], [False] * 5]
    scores = torch.zeros(2, 5)
    rows = infonce(scores, torch.tensor([0, 0]), guide=guide, epsilon=0.5, reduction="none")
    assert rows.tolist() == pytest.approx([math.log(3), math.log(5)])


def test_known_positives_by_hand() -> None:
    documents = torch.tensor([[10, 11], [12, 10], [13, 12]])
    drop = known_positives(documents, [{10, 13}, {12}], first=0)
    assert drop.tolist() == [
        [[False, False], [False, True], [True, False]],
        [[False, False], [False, False], [False, True]],
    ]
    # The second process's query, whose target is the third row; a query without any known positive.
    assert known_positives(documents, [set()], first=2).tolist() == [[[False, False]] * 3]


def test_margins_by_hand() -> None:
    scores = torch.tensor([[1.0, 0.5, 0.0], [0.2, 0.2, 0.9]])
    teacher = torch.tensor([[9.0, 4.0, 1.0], [NAN, 1.0, 2.0]])
    # Margins of 10 * (0.5, 1) against (5, 8): (0 + 4) / 2. The second has no positive.
    rows = margin_mse(scores, teacher, scale=10.0, reduction="none")
    assert rows.tolist() == pytest.approx([2.0, 0.0])
    assert float(margin_mse(scores, teacher, scale=10.0)) == pytest.approx(1.0)


def test_lists_by_hand() -> None:
    teacher = torch.tensor([[math.log(3.0), 0.0, NAN], [1.0, NAN, NAN], [NAN, NAN, NAN]])
    rows = listwise_kl(torch.zeros(3, 3), teacher, reduction="none")
    assert rows.tolist() == pytest.approx([0.75 * math.log(1.5) + 0.25 * math.log(0.5), 0.0, 0.0], abs=1e-7)
    mask = torch.tensor([[True, False, True]])  # with the NaN out as well, one is left
    assert float(listwise_kl(torch.zeros(1, 3), teacher[:1], mask=mask)) == 0.0
    same = _random(2, 4)
    assert float(listwise_kl(same, 5.0 + same)) == pytest.approx(0)


def test_the_in_batch_half_by_hand() -> None:
    every = torch.tensor([[[3.0, 1.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    guide = torch.zeros(2, 2, 2)
    # Query 0: (3 - 2)^2 and (3 - 0)^2; query 1: (1 - 0)^2 twice.
    rows = in_batch_margin_mse(BatchScores.of(every), guide, reduction="none")
    assert rows.tolist() == [5.0, 1.0]
    assert float(in_batch_margin_mse(BatchScores.of(every[:1, :1]), guide[:1, :1])) == 0.0
    with pytest.raises(TrainingError, match="needs a negative"):
        in_batch_margin_mse(BatchScores.of(every[..., :1]), guide[..., :1])


def test_orthogonal_projection_by_hand() -> None:
    cosines, labels = torch.tensor([[0.5, -0.5], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, NAN]])
    assert orthogonal_projection(cosines, labels, reduction="none").tolist() == [0.25, 0.0]
    # Exact in batches of one: the mean of parts is the whole.
    parts = [orthogonal_projection(cosines[n : n + 1], labels[n : n + 1]) for n in range(2)]
    assert float(torch.stack(parts).mean()) == float(orthogonal_projection(cosines, labels))


EVERY, GUIDE = _random(3, 4, 2), _holes(_random(3, 4, 2, seed=1), 0.2, 3)
TEACHER = torch.tensor([[3.0, 1.0], [2.0, NAN], [0.5, 0.7]], dtype=torch.float64)
LOSSES = [
    InfoNCE(scale=2.0, epsilon=0.1),
    MarginMSE(scale=2.0),
    ListwiseKL(scale=2.0, temperature=0.5),
    ListwiseKL(in_batch=True),
    DualTeacher(scale=2.0),
    OrthogonalProjection(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_and_values_of_rows(loss: Any) -> None:
    drop = torch.zeros(3, 4, 2, dtype=torch.bool)
    drop[0, 3, 1] = True
    targets = Targets(TEACHER, GUIDE, drop)

    def rows(every: Tensor) -> Tensor:
        found: Tensor = loss(BatchScores.of(every, 1), targets, "none")
        return found

    every = EVERY.clone().requires_grad_()
    assert torch.autograd.gradcheck(rows, (every,))
    assert rows(EVERY).shape == (3,)
    torch.testing.assert_close(loss(BatchScores.of(EVERY, 1), targets), rows(EVERY).mean())


@pytest.mark.parametrize("loss", LOSSES[1:], ids=repr)
def test_rows_without_any_target_have_no_gradient(loss: Any) -> None:
    every = EVERY.clone().requires_grad_()
    nothing = Targets(torch.full((3, 2), NAN, dtype=torch.float64), torch.full((3, 4, 2), NAN, dtype=torch.float64))
    value = loss(BatchScores.of(every, 0), nothing)
    value.backward()
    assert float(value.detach()) == 0
    assert every.grad is not None
    assert every.grad.tolist() == torch.zeros(3, 4, 2).tolist()


def test_dual_teacher_is_the_sum_of_its_halves() -> None:
    scores = BatchScores.of(EVERY, 1)
    found = DualTeacher(scale=2.0, in_batch_weight=0.75)(scores, Targets(TEACHER, GUIDE))
    halves = margin_mse(scores.own, TEACHER, scale=2.0), in_batch_margin_mse(scores, GUIDE, scale=2.0)
    torch.testing.assert_close(found, halves[0] + 0.75 * halves[1])


def test_without_targets_the_first_candidate_is_the_positive() -> None:
    own = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert OrthogonalProjection()(BatchScores(own), Targets(), "none").tolist() == [0.25, 0.0]


def test_what_is_missing_is_named() -> None:
    scores = BatchScores(EVERY[:, 0])
    with pytest.raises(TrainingError, match="no scores of one: give it teacher or guide"):
        MarginMSE()(scores, Targets())
    with pytest.raises(TrainingError, match="its own only"):
        InfoNCE()(scores, Targets())
    with pytest.raises(TrainingError, match=r"shape \[3, 2\] and the targets \[3\]"):
        margin_mse(EVERY[:, 0], TEACHER[:, 0])
    with pytest.raises(TrainingError, match="reduction is 'sum'"):
        reduce(EVERY, "sum")  # type: ignore[arg-type]


def test_reweighting_by_hand() -> None:
    losses = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64, requires_grad=True)
    weighing = Reweighting(warmup=10, strength=0.5, cap=1.2)
    assert weighing.weights(losses, 9).tolist() == [1.0] * 4
    # Centred: -2, -1, 0, 3; over 3, times a half, from 1 on: 2/3, 5/6, 1, 3/2, and the last is cut to 1.2.
    weights = weighing.weights(losses, 10)
    assert weights.tolist() == pytest.approx([2 / 3, 5 / 6, 1.0, 1.2])
    assert not weights.requires_grad
    wanted = (weights * losses.detach()).sum() / weights.sum()
    found = weighted(losses, 10, weighing)
    torch.testing.assert_close(found.detach(), wanted)
    found.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.grad, weights / weights.sum())
    assert float(weighted(losses, 0, None).detach()) == 3.0
    assert weighing.weights(torch.full((3,), 2.0), 10).tolist() == [1.0] * 3  # all equal
    for options in ({"strength": 1.5}, {"strength": -0.1}, {"cap": 0.9}):
        with pytest.raises(TrainingError, match="strength lies in"):
            Reweighting(**options)


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_the_guard_stops_a_broken_loss_at_once(value: float) -> None:
    guard = Guard()
    with pytest.raises(
        TrainingError, match=r"step 0: the loss is (nan|inf); it is the first\. Lower the learning rate"
    ):
        guard.check_loss(0, value)
    guard.check_loss(6, torch.tensor(1.5))
    with pytest.raises(TrainingError, match=r"step 7: .* the one before was 1\.5"):
        guard.check_loss(7, value)


def test_the_guard_stops_an_explosion_that_lasts() -> None:
    guard = Guard(window=10, factor=20.0, patience=3)
    for step in range(10):
        guard.check_loss(step, 1.0)
    for step in (10, 11):
        guard.check_loss(step, 50.0)
    guard.check_loss(12, 1.0)  # a bad batch or two is no broken run
    for step in (13, 14):
        guard.check_loss(step, 50.0)
    other = Guard(window=10, factor=20.0, patience=3)
    other.restore(json.loads(json.dumps(guard.state())))
    for one in (guard, other):
        with pytest.raises(TrainingError, match=r"step 15: the loss is 50, 3 times in a row .*median of 1\. Lower"):
            one.check_loss(15, 50.0)


@pytest.mark.parametrize(
    ("count", "message"), [(0, "are empty.*Lower the weight of FLOPS"), (9, "all 9 entries active")]
)
def test_the_guard_stops_a_sparse_collapse(count: int, message: str) -> None:
    guard = Guard(patience=2)
    guard.check_sparse(3, torch.tensor([count, count]), 9)
    guard.check_sparse(4, torch.tensor([count, 5]), 9)
    guard.check_sparse(5, torch.tensor([count, count]), 9)
    with pytest.raises(TrainingError, match=f"step 6: .*{message}"):
        guard.check_sparse(6, torch.tensor([count, count]), 9)


def test_the_guard_stops_equal_scores() -> None:
    guard = Guard(patience=2)
    guard.check_scores(0, torch.tensor([[0.5]]))  # a single score is equal to nothing
    guard.check_scores(1, torch.full((2, 2), 0.7))
    guard.check_scores(2, torch.tensor([[0.7, 0.6]]))
    guard.check_scores(3, torch.full((2, 2), 0.7))
    with pytest.raises(TrainingError, match=r"step 4: all 4 scores .*the same vector.*Lower the learning rate"):
        guard.check_scores(4, torch.full((2, 2), 0.7))
