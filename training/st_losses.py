"""The losses in the trainers of sentence-transformers themselves, of any of the three kinds.

trainer = SentenceTransformerTrainer(model, arguments, dataset, loss=TrainerLoss(model, ListwiseKL(scale=20)))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from retrievers.errors import TrainingError
from retrievers.training.gradient_cache import CachedObjective, joined
from retrievers.training.losses import Loss, Targets
from retrievers.training.objective import Features, Objective
from retrievers.training.scores import Vectors, unit


class TrainerLoss(torch.nn.Module):
    """What ``loss=`` of a ``SentenceTransformerTrainer``, ``SparseEncoderTrainer`` or ``MultiVectorEncoderTrainer`` takes.

    The columns of the data set are a query, its positive and any number of negatives; ``label``, where there is one,
    holds the teacher's scores ``[b, c]`` of the positive and the negatives, in their order (of one candidate also
    ``[b]``). Vectors are scaled to length 1 first where the loss is one of cosines, and where a dense or sparse model
    compares by cosine.

    ``chunk`` texts are encoded at a time (gradient caching), 0: each column at once. ``special`` are columns of a sparse
    document that no query can hold, which are left out. ``regulariser`` gives what is added for the documents' vectors,
    ``([b * c, ...],)``, the candidates of one query after the other.
    """

    def __init__(
        self,
        model: Any,
        loss: Loss,
        *,
        chunk: int = 0,
        special: tuple[int, ...] = (),
        regulariser: Callable[[Vectors], Tensor] | None = None,
    ) -> None:
        super().__init__()
        kind = _kind(model)
        self.objective = (
            CachedObjective(model, kind, loss, chunk=chunk, special=special)
            if chunk
            else Objective(model, kind, loss, special=special)
        )
        self.regulariser = regulariser
        self._unit = kind != "multi-vector" and model.similarity_fn_name == "cosine"

    @property
    def model(self) -> Any:
        """The model, which trainers look for, and wrap."""
        return self.objective.model

    def forward(self, features: Iterable[Features], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar; raises TrainingError where the labels are not one a candidate."""
        query, *columns = features
        if not columns:
            raise TrainingError(
                "the data set has a single column of texts: it needs a query, and its positive after it"
            )
        queries = self.objective.encode(query, "query")
        documents = interleaved([self.objective.encode(column, "document") for column in columns])
        targets = Targets(teacher=_teacher(labels, len(queries[0]), len(columns)))
        found = documents
        if self._unit:
            queries, found = unit(queries, query=True), unit(documents, query=False)
        loss = self.objective.over(queries, found, targets).loss
        return loss if self.regulariser is None else loss + self.regulariser(documents)

    def get_config_dict(self) -> dict[str, Any]:
        """What model cards tell of the loss."""
        return {"loss": repr(self.objective.loss)}


def interleaved(columns: list[Vectors]) -> Vectors:
    """From ``c`` columns of ``b`` rows to ``b * c`` rows, the candidates of one query after the other."""
    count, rows = len(columns), len(columns[0][0])
    return tuple(part.reshape(count, rows, *part.shape[1:]).transpose(0, 1).flatten(0, 1) for part in joined(columns))


def _teacher(labels: Tensor | None, rows: int, candidates: int) -> Tensor | None:
    if labels is None:
        return None
    found = labels.unsqueeze(1) if labels.dim() == 1 else labels
    if found.shape != (rows, candidates):
        raise TrainingError(
            f"the labels have the shape {list(labels.shape)}, for {rows} queries with {candidates} candidates each: give "
            "the teacher's score of every candidate, the positive first, or no label"
        )
    return found.float()


def _kind(model: Any) -> str:
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder

    for kind, wanted in (
        ("sparse", SparseEncoder),
        ("multi-vector", MultiVectorEncoder),
        ("dense", SentenceTransformer),
    ):
        if isinstance(model, wanted):
            return kind
    raise TrainingError(
        f"{type(model).__name__} is no SentenceTransformer, SparseEncoder or MultiVectorEncoder: give one of these"
    )
