"""Score matrices of the three kinds of encoder: what every loss of training is a function of.

What a batch was encoded to is a tuple: ``(vectors [rows, dim],)`` for dense and sparse encoders, and
``(vectors [rows, length, dim], mask [rows, length])`` for multi-vector ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrievers.errors import TrainingError

Vectors = tuple[Tensor, ...]

_BLOCK = 1 << 24  # token similarities that are held at once


def dense_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Dot products ``[B, n]`` of ``queries`` ``[B, dim]`` with ``documents`` ``[n, dim]``."""
    return queries @ documents.T


def sparse_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Dot products ``[B, n]`` of vectors over the vocabulary, ``[B, V]`` and ``[n, V]``; sparse layouts are made dense.

    The query side may be a table of IDF: the score is then ``sum of idf(t) * w_t(d) over t in q`` (Geng et al., 2024).
    """
    return _dense(queries) @ _dense(documents).T


def maxsim_scores(queries: Tensor, query_mask: Tensor, documents: Tensor, document_mask: Tensor) -> Tensor:
    """Late-interaction scores ``[B, n]``: the sum over query tokens of the best dot product with a document's tokens.

    ``queries`` ``[B, Lq, dim]``, ``documents`` ``[n, Ld, dim]``, masks ``[B, Lq]`` and ``[n, Ld]``, true for a token.
    Masked tokens are out before the maximum is taken; a document without any token scores 0. Khattab and Zaharia (2020).
    """
    if documents.shape[1] == 0 or queries.shape[1] == 0:
        return queries.new_zeros(len(queries), len(documents))
    each = max(1, queries.shape[1] * documents.shape[0] * documents.shape[1])
    rows = max(1, _BLOCK // each)
    parts = [
        _summed(
            torch.einsum("bqe,nde->bnqd", queries[start : start + rows], documents),
            query_mask[start : start + rows, None],
            document_mask[None],
        )
        for start in range(0, len(queries), rows)
    ]
    return torch.cat(parts) if parts else queries.new_zeros(0, len(documents))


def paired_dense_scores(queries: Tensor, documents: Tensor) -> Tensor:
    """Dot products ``[B, c]`` of each query, ``[B, dim]``, with its own ``c`` documents, ``[B, c, dim]``."""
    return torch.einsum("be,bce->bc", _dense(queries), _dense(documents))


def paired_maxsim_scores(queries: Tensor, query_mask: Tensor, documents: Tensor, document_mask: Tensor) -> Tensor:
    """``maxsim_scores`` ``[B, c]`` of each query with its own documents, ``[B, c, Ld, dim]`` under ``[B, c, Ld]``."""
    if documents.shape[2] == 0 or queries.shape[1] == 0:
        return queries.new_zeros(documents.shape[:2])
    found = torch.einsum("bqe,bcde->bcqd", queries, documents)
    return _summed(found, query_mask[:, None], document_mask)


def _summed(similarities: Tensor, query_mask: Tensor, document_mask: Tensor) -> Tensor:
    """``[B, c, Lq, Ld]`` to ``[B, c]``; the masks broadcast to ``[B, c, Lq]`` and ``[B, c, Ld]``."""
    kept = document_mask.bool().unsqueeze(-2)
    # ``max`` remembers places only, where ``amax`` would keep all similarities for the backward pass.
    best = similarities.masked_fill(~kept, -torch.inf).max(dim=-1).values
    return best.masked_fill(~(kept.any(dim=-1) & query_mask.bool()), 0.0).sum(dim=-1)


def _dense(vectors: Tensor) -> Tensor:
    return vectors if vectors.layout == torch.strided else vectors.to_dense()


@dataclass(frozen=True)
class BatchScores:
    """Scores of a batch of ``B`` queries that have ``c`` candidates each, the positive first.

    ``own`` ``[B, c]`` is each query with its own candidates. ``every`` ``[B, N, c]`` is each query with the candidates
    of all ``N`` queries, over all processes: ``every[i, first + i]`` is ``own[i]``. None where it was not asked for.
    """

    own: Tensor
    every: Tensor | None = None
    first: int = 0

    @classmethod
    def of(cls, every: Tensor, first: int = 0) -> BatchScores:
        """From the scores ``[B, N, c]`` of every query with all candidates."""
        rows = torch.arange(len(every), device=every.device)
        return cls(own=every[rows, first + rows], every=every, first=first)

    def required(self) -> Tensor:
        """``every``; raises TrainingError where it was not computed."""
        if self.every is None:
            raise TrainingError("the loss needs scores of each query with the whole batch, and has its own only")
        return self.every

    def own_places(self) -> Tensor:
        """A mask ``[B, N]``, true where a query meets its own candidates."""
        every = self.required()
        columns = torch.arange(every.shape[1], device=every.device)
        rows = torch.arange(every.shape[0], device=every.device)
        return columns.unsqueeze(0) == self.first + rows.unsqueeze(1)


def own_scores(queries: Vectors, documents: Vectors) -> Tensor:
    """Scores ``[B, c]``; ``documents`` holds the candidates of one query after the other, ``B * c`` rows."""
    count = _candidates(queries, documents)
    grouped = [part.reshape(len(queries[0]), count, *part.shape[1:]) for part in documents]
    if len(queries) == 1:
        return paired_dense_scores(queries[0], grouped[0])
    return paired_maxsim_scores(queries[0], queries[1], grouped[0], grouped[1])


def every_score(queries: Vectors, documents: Vectors) -> Tensor:
    """Scores ``[B, n]`` of every query with every document."""
    if len(queries) == 1:
        return sparse_scores(queries[0], documents[0])
    return maxsim_scores(queries[0], queries[1], documents[0], documents[1])


def unit(vectors: Vectors, *, query: bool) -> Vectors:
    """The vectors at length 1, so that scores are cosines.

    Those of multi-vector queries are also divided by the number of tokens: MaxSim is then the mean cosine.
    """
    first = torch.nn.functional.normalize(vectors[0], dim=-1)
    if len(vectors) == 1 or not query:
        return (first, *vectors[1:])
    tokens = vectors[1].bool().sum(dim=1).clamp(min=1)
    return (first / tokens[:, None, None], *vectors[1:])


def _candidates(queries: Vectors, documents: Vectors) -> int:
    rows, found = len(queries[0]), len(documents[0])
    if rows == 0 or found % rows:
        raise TrainingError(f"{found} documents are no whole number of candidates for each of {rows} queries")
    return found // rows
