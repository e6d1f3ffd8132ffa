"""Gradient caching: the gradients of the whole batch, with few texts at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TEXTS, make_dense, make_multi_vector, splade_folder, without_dropout
from torch import Tensor

from retrievers.encoders.model import load
from retrievers.errors import TrainingError
from retrievers.training.gradient_cache import CachedObjective, chunks, joined
from retrievers.training.losses import Loss, Targets
from retrievers.training.models import starting_model
from retrievers.training.objective import Batch, Features, Objective
from retrievers.training.objectives import InfoNCE, ListwiseKL
from retrievers.training.recipe import Model
from retrievers.training.scores import Vectors
from retrievers.training.sparsity import flops

QUERIES = ["list files", "thin blood", "", "quick brown fox", "weather"]
DOCUMENTS = [text[:200] for text in TEXTS]  # two for each query
TARGETS = Targets(teacher=torch.tensor([[3.0, 0.0], [1.0, 2.0], [0.5, 0.1], [2.0, 1.0], [4.0, 0.0]]))
CHUNK = 3
LOSSES: dict[str, Loss] = {
    "dense": InfoNCE(scale=0.5),
    "sparse": ListwiseKL(temperature=5.0),
    "multi-vector": InfoNCE(scale=2.0),
}


@pytest.fixture(scope="module", params=LOSSES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model") / kind
    if kind == "dense":
        return load(str(make_dense(folder)), "dense", device="cpu")
    if kind == "multi-vector":
        return load(str(make_multi_vector(folder)), "multi-vector", device="cpu")
    return starting_model(Model(start=str(splade_folder()), kind="sparse", document_length=48), DOCUMENTS, device="cpu")


def _batch(model: Any) -> Batch:
    return Batch(0, model.preprocess(QUERIES, task="query"), model.preprocess(DOCUMENTS, task="document"), TARGETS)


def _gradients(objective: Objective, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    objective.model.zero_grad()
    outcome = objective(batch)
    loss = outcome.loss
    if objective.kind == "sparse":  # what a penalty gives comes back through the cache as well
        loss = loss + 0.1 * flops(outcome.documents[0], 2)
    loss.backward()
    found = {name: value.grad.clone() for name, value in objective.model.named_parameters() if value.grad is not None}
    return float(loss.detach()), found


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert any(value.abs().max() > 0 for value in theirs.values())
    scale = max(float(value.norm()) for value in theirs.values())
    for name, value in theirs.items():
        assert (mine[name] - value).norm() <= 1e-4 * value.norm() + 1e-6 * scale, name


def _counted(model: Any) -> tuple[list[int], Callable[[], None]]:
    rows: list[int] = []
    hook = model[0].register_forward_pre_hook(lambda _module, given: rows.append(len(given[0]["input_ids"])))
    return rows, hook.remove


def test_gradients_are_those_of_the_whole_batch(model: Any, kind: str) -> None:
    without_dropout(model)
    batch = _batch(model)
    loss, wanted = _gradients(Objective(model, kind, LOSSES[kind]), batch)
    rows, remove = _counted(model)
    cached, found = _gradients(CachedObjective(model, kind, LOSSES[kind], chunk=CHUNK), batch)
    remove()
    assert cached == pytest.approx(loss, rel=1e-5)
    _same(found, wanted)
    assert max(rows) == CHUNK
    assert sum(rows) == 2 * (len(QUERIES) + len(DOCUMENTS))  # each text twice


class _Chunked(Objective):
    """Chunks with their whole graph kept."""

    def encode(self, features: Features, side: str) -> Vectors:
        return joined([super(_Chunked, self).encode(part, side) for part in chunks(features, CHUNK)])


def test_dropout_is_the_same_when_a_chunk_is_encoded_again(model: Any, kind: str) -> None:
    batch = _batch(model)
    model.train()
    torch.manual_seed(3)
    loss, wanted = _gradients(_Chunked(model, kind, LOSSES[kind]), batch)
    after = torch.rand(1)
    torch.manual_seed(3)
    cached, found = _gradients(CachedObjective(model, kind, LOSSES[kind], chunk=CHUNK), batch)
    assert torch.rand(1) == after  # nor do the numbers drawn later change
    without_dropout(model)
    without, _ = _gradients(_Chunked(model, kind, LOSSES[kind]), batch)
    assert cached == loss
    assert cached != pytest.approx(without, rel=1e-4)
    _same(found, wanted)


def test_without_gradients_each_text_is_encoded_once(model: Any, kind: str) -> None:
    without_dropout(model)
    batch = _batch(model)
    rows, remove = _counted(model)
    with torch.no_grad():
        outcome = CachedObjective(model, kind, LOSSES[kind], chunk=CHUNK)(batch)
    remove()
    assert not outcome.loss.requires_grad
    assert sum(rows) == len(QUERIES) + len(DOCUMENTS)


def test_chunks_of_other_lengths_are_filled_up() -> None:
    first = torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)
    second = torch.ones(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    vectors, mask = joined([first, second])
    assert vectors.shape == (3, 4, 3)
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True] * 4]
    assert vectors[0, 2:].abs().max() == 0


def test_chunks_by_hand() -> None:
    features = {"input_ids": torch.arange(10).reshape(5, 2), "modality": "text"}
    found = list(chunks(features, 2))
    assert [one["input_ids"].tolist() for one in found] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert all(one["modality"] == "text" for one in found)


def test_what_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="of 1 texts they hold"):
        list(chunks({"input_ids": torch.zeros(1, 20), "cu_seq_lens_q": torch.zeros(4)}, 2))
    with pytest.raises(TrainingError, match="hold no tensors"):
        list(chunks({"modality": "text"}, 2))
    with pytest.raises(TrainingError, match="chunk is 0"):
        CachedObjective(torch.nn.Identity(), "dense", InfoNCE(), chunk=0)
