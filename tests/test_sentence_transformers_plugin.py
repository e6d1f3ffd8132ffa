"""Our losses and batches in the trainers of sentence-transformers, and against its own losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_dense, make_multi_vector, splade_folder
from torch import Tensor

from retrievers.encoders.model import load
from retrievers.errors import TrainingError
from retrievers.training.losses import Loss
from retrievers.training.models import starting_model
from retrievers.training.objectives import InfoNCE, ListwiseKL, MarginMSE, OrthogonalProjection
from retrievers.training.recipe import Model, Sparsity
from retrievers.training.sampler import TopicAwareBatchSampler
from retrievers.training.sparsity import Penalty
from retrievers.training.st_losses import TrainerLoss, interleaved
from retrievers.training.topics import Topics
from retrievers.training.trainer import arguments_class

SUBJECTS = ["cat", "tree", "car"]
ROWS = {
    "query": [f"{subject} number {n}" for n in range(4) for subject in SUBJECTS],
    "positive": [f"the {subject} that has the number {n}" for n in range(4) for subject in SUBJECTS],
    "negative": [f"something else than a {subject}, {n} times over" for n in range(4) for subject in SUBJECTS],
}
SCORES = [[5.0 + n, float(n % 3)] for n in range(12)]
TOPICS = Topics(np.tile(np.arange(3), 4), 3, np.zeros(12, np.float32), 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"dense": make_dense(root / "dense"), "multi-vector": make_multi_vector(root / "multi-vector")}


def _model(folders: dict[str, Path], kind: str) -> Any:
    if kind == "sparse":
        start = Model(start=str(splade_folder()), kind="sparse", document_length=32)
        return starting_model(start, ROWS["positive"], device="cpu")
    return load(str(folders[kind]), kind, device="cpu")  # type: ignore[arg-type]


def _features(model: Any, columns: list[str], rows: int = 4) -> list[dict[str, Any]]:
    tasks = ["query"] + ["document"] * (len(columns) - 1)
    return [model.preprocess(ROWS[name][:rows], task=task) for name, task in zip(columns, tasks, strict=True)]


def _train(model: Any, kind: str, loss: Any, folder: Path, *, labels: bool, **options: Any) -> float:
    import sentence_transformers
    from datasets import Dataset

    names = {"dense": "SentenceTransformer", "sparse": "SparseEncoder", "multi-vector": "MultiVectorEncoder"}
    arguments = arguments_class(kind)(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
        **options,
    )
    dataset = Dataset.from_dict({**ROWS, **({"label": SCORES} if labels else {})})
    trainer = getattr(sentence_transformers, f"{names[kind]}Trainer")(
        model=model, args=arguments, train_dataset=dataset, loss=loss
    )
    return float(trainer.train().training_loss)


@pytest.mark.parametrize(
    ("kind", "loss", "labels"),
    [
        ("dense", ListwiseKL(scale=20.0), True),
        ("multi-vector", InfoNCE(scale=1.0), False),
        ("sparse", ListwiseKL(temperature=5.0), True),
    ],
)
def test_two_steps_of_its_trainer(
    kind: str, loss: Loss, labels: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = _model(folders, kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {}
    regulariser = None
    if kind == "sparse":
        options["router_mapping"] = {"query": "query", "positive": "document", "negative": "document"}
        penalty = Penalty(Sparsity(weight=0.1), candidates=2)

        def regulariser(documents: tuple[Tensor, ...]) -> Tensor:
            return penalty(1, documents)

    wrapped = TrainerLoss(model, loss, chunk=0 if kind == "dense" else 3, regulariser=regulariser)
    found = _train(model, kind, wrapped, tmp_path, labels=labels, **options)
    assert math.isfinite(found)
    assert found > 0
    assert any((value != before[name]).any() for name, value in model.state_dict().items())


def test_batches_of_one_topic_in_its_trainer(folders: dict[str, Path], tmp_path: Path) -> None:
    model = _model(folders, "dense")
    loss = TrainerLoss(model, InfoNCE())
    subjects: list[set[int]] = []
    # The first token after [CLS] is the subject.
    loss.register_forward_pre_hook(lambda _module, given: subjects.append(set(given[0][0]["input_ids"][:, 1].tolist())))
    _train(model, "dense", loss, tmp_path, labels=False, batch_sampler=TopicAwareBatchSampler.of(TOPICS))
    assert [len(one) for one in subjects] == [1, 1]


def test_infonce_is_its_ranking_loss(folders: dict[str, Path]) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    model = _model(folders, "dense").eval()
    for columns in (["query", "positive"], ["query", "positive", "negative"]):
        features = _features(model, columns)
        wanted = MultipleNegativesRankingLoss(model, scale=20.0)([dict(one) for one in features], None)
        for chunk in (0, 3):
            found = TrainerLoss(model, InfoNCE(scale=20.0), chunk=chunk)(features)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_margin_mse_is_its_loss(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    model = load(str(make_dense(tmp_path / "dot", similarity_fn_name="dot")), "dense", device="cpu").eval()
    features, scores = _features(model, ["query", "positive", "negative"]), torch.tensor(SCORES[:4])
    wanted = MarginMSELoss(model)([dict(one) for one in features], scores[:, 0] - scores[:, 1])
    torch.testing.assert_close(TrainerLoss(model, MarginMSE())(features, scores), wanted, rtol=1e-4, atol=1e-5)


def test_a_loss_of_cosines_gets_cosines(tmp_path: Path) -> None:
    model = load(str(make_dense(tmp_path / "dot", similarity_fn_name="dot")), "dense", device="cpu").eval()
    features = _features(model, ["query", "positive"])
    with torch.no_grad():
        queries, documents = (model(dict(one))["sentence_embedding"] for one in features)
    cosines = torch.nn.functional.cosine_similarity(queries, documents)
    found = TrainerLoss(model, OrthogonalProjection())(features, torch.ones(4))
    torch.testing.assert_close(found.detach(), (1 - cosines).square().mean())


def test_columns_become_the_candidates_of_one_query_after_the_other() -> None:
    columns = [(torch.tensor([[1.0], [2.0]]),), (torch.tensor([[10.0], [20.0]]),)]
    assert interleaved(columns)[0].tolist() == [[1.0], [10.0], [2.0], [20.0]]
    tokens = [(torch.full((2, length, 3), float(length)), torch.ones(2, length).bool()) for length in (1, 2)]
    vectors, mask = interleaved(tokens)
    assert vectors.shape == (4, 2, 3)
    assert mask.tolist() == [[True, False], [True, True]] * 2


def test_what_does_not_fit_is_refused(folders: dict[str, Path]) -> None:
    model = _model(folders, "dense")
    features = _features(model, ["query", "positive", "negative"])
    loss = TrainerLoss(model, MarginMSE())
    with pytest.raises(TrainingError, match=r"shape \[4\], for 4 queries with 2 candidates"):
        loss(features, torch.zeros(4))
    with pytest.raises(TrainingError, match="a single column"):
        loss(features[:1])
    with pytest.raises(TrainingError, match="learns from a teacher"):
        loss(features)
    with pytest.raises(TrainingError, match="Identity is no SentenceTransformer"):
        TrainerLoss(torch.nn.Identity(), MarginMSE())
