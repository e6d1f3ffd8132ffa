"""What is minimised: texts to vectors, vectors to scores, scores to a loss, for the three kinds of model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrievers.encoders.vocabulary_head import install, pooled_heads
from retrievers.training.losses import Loss, Targets
from retrievers.training.objectives import Reweighting
from retrievers.training.processes import gather_rows, process_rank
from retrievers.training.scores import BatchScores, Vectors, every_score, own_scores, unit

Features = dict[str, Any]
Encode = Callable[[Features, str], Vectors]


@dataclass(frozen=True)
class Batch:
    """One step's share of this process; ``step`` counts batches, also where several make a step of the optimiser.

    ``queries`` are the features of ``b`` texts, ``documents`` those of ``b * c``: each query's candidates, its positive
    first, one query after the other. ``targets`` are those of the ``b`` queries, with the candidates of all processes.
    """

    step: int
    queries: Features
    documents: Features
    targets: Targets


@dataclass(frozen=True)
class Outcome:
    """The loss of a batch, and the vectors of its documents, which a penalty on sparse vectors reads."""

    loss: Tensor
    documents: Vectors
    scores: BatchScores


class Objective(torch.nn.Module):
    """The loss of a batch as a module that holds the model, in the way of sentence-transformers' losses.

    ``special`` are the columns of a sparse document that no query can hold, which are left out. With ``reweighting`` queries
    count by their loss. Vectors are scaled to length 1 where the loss is one of cosines.
    """

    def __init__(
        self,
        model: Any,
        kind: str,
        loss: Loss,
        *,
        special: tuple[int, ...] = (),
        reweighting: Reweighting | None = None,
    ) -> None:
        super().__init__()
        if kind == "sparse":
            install(model)
        self.model = model
        self.kind = kind
        self.loss = loss
        self.special = special
        self.reweighting = reweighting

    def encode(self, features: Features, side: str) -> Vectors:
        """The vectors of a side, ``"query"`` or ``"document"``, with a graph where gradients are on."""
        with pooled_heads():
            found = self.model(dict(features), task=side)
        if self.kind == "multi-vector":
            return found["token_embeddings"], found["attention_mask"].bool()
        vectors = found["sentence_embedding"]
        if vectors.layout != torch.strided:
            vectors = vectors.to_dense()
        if self.special and side == "document":
            columns = torch.tensor(self.special, device=vectors.device)
            vectors = vectors.index_fill(1, columns, 0.0)
        return (vectors,)

    def over(self, queries: Vectors, documents: Vectors, targets: Targets, step: int = 0) -> Outcome:
        """The loss of vectors; candidates of other processes take part where the loss reads the whole batch."""
        compared = documents
        if self.loss.cosine:
            queries, compared = unit(queries, query=True), unit(documents, query=False)
        if not self.loss.in_batch:
            scores = BatchScores(own_scores(queries, compared))
        else:
            everything: Vectors = tuple(gather_rows(part) for part in compared)
            first = process_rank() * len(queries[0])
            count = len(compared[0]) // len(queries[0])
            every = every_score(queries, everything)
            scores = BatchScores.of(every.reshape(len(every), -1, count), first)
        if self.reweighting is None:
            return Outcome(self.loss(scores, targets), documents, scores)
        return Outcome(self.reweighting(self.loss(scores, targets, "none"), step), documents, scores)

    def forward(self, batch: Batch) -> Outcome:
        """Encode both sides and take the loss."""
        queries, documents = self.encode(batch.queries, "query"), self.encode(batch.documents, "document")
        return self.over(queries, documents, batch.targets, batch.step)
