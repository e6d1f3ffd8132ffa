"""Sparse encoders: one weight a vocabulary entry, either with a model on both sides or on the documents' side alone."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from retrievers import vectors
from retrievers.encoders.dense import inner_product
from retrievers.encoders.model import NeuralModel, Task, source_of
from retrievers.encoders.token_table import TokenTable
from retrievers.errors import EncoderMismatchError, IndexDamagedError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from retrievers.documents import Document


class SparseEncoder:
    """Encodes with a ``sentence_transformers.SparseEncoder``.

    ``model`` is a folder, a name on the hub or the object itself: a SPLADE model, which reads both sides, or a router
    whose queries are a look-up in a table (see :meth:`inference_free`). The latter answers queries without torch, and,
    opened from an index, loads its model only when a document is encoded.

    A batch holds at most ``batch_size`` texts and, with padding, ``max_batch_tokens`` tokens (None: a number that suits
    the device). ``device`` is torch's name for it, by default the accelerator if there is one.

    ``dtype``, ``backend`` and ``workers`` are as in :class:`DenseEncoder`. The vocabulary's head stays in torch with each of
    them, where it is pooled over positions in slices, and in float32 with ``"int8"``. In float32 on a processor it computes
    only the entries that may be above zero, which changes no vector by more than float32 rounds.

    The score of two texts is the inner product of their vectors; with the similarity cosine these have length 1. Weights
    below zero, which only a trained table of queries can hold, count as zero.
    """

    kind: Literal["sparse"] = "sparse"

    def __init__(
        self,
        model: Any,
        *,
        device: str | None = None,
        batch_size: int = 256,
        dtype: str | None = None,
        max_batch_tokens: int | None = None,
        revision: str | None = None,
        backend: str = "torch",
        workers: int = 1,
    ) -> None:
        self._options: dict[str, Any] = {
            "device": device,
            "batch_size": batch_size,
            "dtype": dtype,
            "max_batch_tokens": max_batch_tokens,
            "backend": backend,
            "workers": workers,
        }
        self._lock = threading.Lock()
        self._stored: tuple[Mapping[str, Any], Path] | None = None
        self._neural: NeuralModel | None = NeuralModel(model, "sparse", revision=revision, **self._options)
        self.similarity: Literal["cosine", "dot"] = inner_product(self._neural.model.similarity_fn_name)
        self._width: int | None = None
        self._special: tuple[int, ...] = ()
        self.table: TokenTable | None = self._build_table(self._neural)
        if self.table is not None:
            self._width = self.table.vocabulary
        self._neural.convert()
        _pool_heads(self._neural)

    @classmethod
    def inference_free(
        cls,
        model: Any,
        idf: Iterable[str] | Iterable[Document] | Mapping[str, float] | NDArray[np.floating[Any]],
        *,
        tokenizer: Any = None,
        activation: Literal["relu", "log1p_relu"] = "relu",
        head_divisor: float = 1.0,
        max_seq_length: int | None = None,
        device: str | None = None,
        batch_size: int = 256,
        dtype: str | None = None,
        max_batch_tokens: int | None = None,
        revision: str | None = None,
    ) -> Self:
        """An encoder whose queries need no model, from any masked-language model (Geng et al., 2024).

        ``model`` is a folder, a name on the hub, a ``sentence_transformers.SparseEncoder`` (whose document side is
        taken), or a model of transformers together with its ``tokenizer``. ``idf`` is a collection to count (texts or
        Documents, read once, each in full), or the weights themselves: ``{token: weight}``, where a token left out
        weighs 1, or an array ``[vocabulary]``. Counted weights are ``ln(1 + (N - df + 1/2) / (df + 1/2))``, and 1 for a
        token that never occurs; special tokens weigh 0.

        ``activation`` is that of SPLADE, or the ``log1p(log1p(relu))`` of Shen et al. (2025). ``head_divisor`` divides
        the logits once and for all: newer backbones give such large ones that training cannot start; 16 is reported to
        mend that. Documents are cut at ``max_seq_length`` tokens, by default where the model cuts.

        Raises EncoderError where the checkpoint lacks the weights of a masked-language head, or ``idf`` does not fit.
        """
        from retrievers.encoders.inference_free import build_router

        built = build_router(
            model,
            idf,
            tokenizer=tokenizer,
            activation=activation,
            head_divisor=head_divisor,
            max_seq_length=max_seq_length,
            device=device,
            revision=revision,
        )
        return cls(built, batch_size=batch_size, dtype=dtype, max_batch_tokens=max_batch_tokens)

    @classmethod
    def open_stored(
        cls,
        reference: Mapping[str, Any],
        folder: Path,
        *,
        device: str | None = None,
        dtype: str | None = None,
        workers: int = 1,
    ) -> Self:
        """Open the query side that :meth:`save_query_side` wrote; the model is loaded when a document is encoded."""
        table = TokenTable.load(folder)
        if table.fingerprint != reference.get("fingerprint"):
            raise IndexDamagedError(
                f"{folder} holds the token table of another encoder ({table.fingerprint[:12]}) than the index names "
                f"({str(reference.get('fingerprint'))[:12]}): restore the folder"
            )
        encoder = cls.__new__(cls)
        encoder._options = {
            "device": device,
            "batch_size": 256,
            "dtype": dtype,
            "max_batch_tokens": None,
            "workers": workers,
        }
        encoder._lock = threading.Lock()
        encoder._stored = (dict(reference), folder)
        encoder._neural = None
        encoder.similarity = table.similarity
        encoder._width = table.vocabulary
        encoder._special = ()
        encoder.table = table
        return encoder

    @property
    def neural(self) -> NeuralModel:
        """The model, loaded now if it was not needed before.

        Raises ModelNotFoundError where it is gone, EncoderMismatchError where it is no longer what the index was built
        with.
        """
        with self._lock:
            if self._neural is None:
                self._neural = self._load_stored()
            return self._neural

    def _load_stored(self) -> NeuralModel:
        if self._stored is None:
            raise AttributeError("neural")
        reference, folder = self._stored
        source = source_of(reference, folder)
        neural = NeuralModel(source, "sparse", revision=reference.get("revision"), **self._options)
        if neural.fingerprint != reference["fingerprint"]:
            raise EncoderMismatchError(
                f"the model at {source} has changed since the index was built (fingerprint {neural.fingerprint[:12]}, "
                f"the index has {reference['fingerprint'][:12]}): put the old model back, or build the index again"
            )
        if reference.get("model") is None:
            neural.location = None
        self._special = special_ids(neural)
        neural.convert()
        _pool_heads(neural)
        return neural

    @property
    def model(self) -> Any:
        """The ``sentence_transformers.SparseEncoder``."""
        return self.neural.model

    @property
    def fingerprint(self) -> str:
        """What an index remembers of the encoder that it was built with."""
        if self._stored is not None:
            return str(self._stored[0]["fingerprint"])
        return self.neural.fingerprint

    @property
    def vocabulary(self) -> int:
        """The number of columns of a vector."""
        if self._width is None:
            self._width = self._measure(self.neural)
        return self._width

    def encode_query(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """Sparse vectors, float32 ``[n, vocabulary]``, none negative, columns sorted."""
        if self.table is not None:
            return self.table.encode_query(texts)
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """Sparse vectors, float32 ``[n, vocabulary]``, none negative, columns sorted.

        With a table for queries the columns of special tokens, which no query can hold, are left out.
        """
        shared: Any = self.neural.share(texts)
        found: csr_matrix[np.float32] = self._encode(texts, "document") if shared is None else shared
        return found

    def _encode(self, texts: Sequence[str], task: Task) -> csr_matrix[np.float32]:
        neural, width = self.neural, self.vocabulary
        from retrievers.encoders.vocabulary_head import pooled_heads

        parts: list[csr_matrix[np.float32]] = []
        places: list[NDArray[np.int64]] = []
        with pooled_heads():
            for positions, features in neural.run(texts, task, **_limit(neural)):
                places.append(positions)
                parts.append(self._compress(neural, features["sentence_embedding"], width, task))
        if not parts:
            return vectors.csr(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), width)
        stacked: Any = vectors.concatenate(parts)
        order = np.empty(len(texts), dtype=np.int64)
        order[np.concatenate(places)] = np.arange(len(texts))
        found: csr_matrix[np.float32] = stacked[order]
        found.sort_indices()
        return found

    def _compress(self, neural: NeuralModel, values: Any, width: int, task: Task) -> csr_matrix[np.float32]:
        import torch

        limit = neural.model.max_active_dims
        if limit is not None:
            from sentence_transformers.util import select_max_active_dims

            values = select_max_active_dims(values, max_active_dims=limit)
        values = values.float()
        kept = ~(values <= 0)  # true for NaN, which must come to light and not become a zero
        if self.table is not None and task == "document":
            kept[:, [token for token in self._special if token < kept.shape[1]]] = False
        if self.similarity == "cosine":
            values = torch.nn.functional.normalize(values * kept, dim=1)
        lengths = kept.sum(dim=1).cpu().numpy().astype(np.int64)
        columns = kept.nonzero()[:, 1].cpu().numpy().astype(np.int64)
        return vectors.csr(values[kept].cpu().numpy(), columns, lengths, width)

    def _build_table(self, neural: NeuralModel) -> TokenTable | None:
        from retrievers.encoders.inference_free import query_table

        route = neural.input_module("query")
        if not _looks_up(neural):
            return None
        self._special = special_ids(neural)
        return query_table(
            route,
            columns=self._measure(neural),
            special=self._special,
            prompt=neural.prompt("query") or "",
            similarity=self.similarity,
        )

    def _measure(self, neural: NeuralModel) -> int:
        _, features = next(neural.run([""], "document", **_limit(neural)))
        return int(features["sentence_embedding"].shape[1])

    def terms(self, columns: Sequence[int]) -> list[str]:
        """What these columns stand for: tokens, or ``[feature 7]`` where the model has no column a token."""
        if self.table is not None:
            return self.table.terms(columns)
        if any(type(module).__name__ == "SparseAutoEncoder" for module in self.model.modules()):
            return [f"[feature {column}]" for column in columns]
        found = self.neural.input_module("document").tokenizer.convert_ids_to_tokens([int(c) for c in columns])
        return [f"[{column}]" if term is None else str(term) for column, term in zip(columns, found, strict=True)]

    def close(self) -> None:
        """End the worker processes, if there are any."""
        if self._neural is not None:
            self._neural.close()

    def reference(self) -> dict[str, Any]:
        """How to find the model again, as JSON."""
        if self._stored is not None:
            return dict(self._stored[0])
        return {**self.neural.reference(), "table": self.table is not None}

    def save_query_side(self, folder: Path) -> None:
        """Write the token table, if queries are a look-up, and the model itself, where it was given as an object."""
        if self.table is not None:
            self.table.fingerprint = self.fingerprint
            self.table.save(folder)
        if self._stored is None or self._stored[0].get("model") is None:
            self.neural.store(folder)

    def save(self, folder: str | Path) -> None:
        """Save as a folder that plain ``sentence_transformers.SparseEncoder`` loads, and refer to it from now on."""
        self.neural.save(folder)
        if self._stored is not None:
            self._stored = None


def _pool_heads(neural: NeuralModel) -> None:
    from retrievers.encoders import vocabulary_head

    vocabulary_head.install(neural.model)


def _limit(neural: NeuralModel) -> dict[str, int]:
    limit = neural.model.max_active_dims
    return {} if limit is None else {"max_active_dims": limit}


def _looks_up(neural: NeuralModel) -> bool:
    """Whether a query is nothing but a look-up in a table, so that no model is needed for it."""
    first = neural.model[0]
    routes = getattr(first, "sub_modules", {})
    if "query" not in routes or first.route_mappings or len(neural.model) != 1 or neural.model.max_active_dims:
        return False
    route = routes["query"]
    tokenizer = getattr(route[0], "tokenizer", None)
    return (
        len(route) == 1
        and type(route[0]).__name__ == "SparseStaticEmbedding"
        and getattr(tokenizer, "backend_tokenizer", None) is not None
    )


def special_ids(neural: NeuralModel) -> tuple[int, ...]:
    """The ids of special tokens, of which an inference-free query holds none."""
    return tuple(sorted(set(neural.input_module("query").tokenizer.all_special_ids)))
