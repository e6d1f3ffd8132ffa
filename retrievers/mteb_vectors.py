"""A dense encoder as mteb's tasks without a search use it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from retrievers.encoders import Encoder
from retrievers.mteb_inputs import check_precision


class DenseVectors:
    """The part of mteb's ``EncoderProtocol`` that a dense encoder answers."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        # As for DenseEncoder: where it is cosine, mteb may pass means of vectors, which no longer have length 1.
        self._cosine = getattr(encoder, "similarity", None) == "cosine"

    def encode(
        self,
        inputs: Iterable[Mapping[str, Sequence[str]]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Vectors, float32 ``[n, dim]``, of the texts in batches ``{"text": [...]}``, in order.

        With the ``prompt_type`` query they are encoded as queries, else as documents: texts that have no side take the
        document's, whose prompt, in most models, is the neutral one. Prompts come from the model, never from the task.
        Raises EncoderError for a ``precision`` other than float32.
        """
        check_precision(kwargs)
        texts = [text for batch in inputs for text in batch["text"]]
        if getattr(prompt_type, "value", prompt_type) == "query":
            return self._encoder.encode_query(texts)
        return self._encoder.encode_document(texts)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The similarity of each vector with each, a torch tensor ``[n, m]``: the encoder's, cosine or inner product."""
        functions = import_module("mteb.similarity_functions")
        return (functions.cos_sim if self._cosine else functions.dot_score)(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The similarity of each vector with the one at its place in the other, a torch tensor ``[n]``."""
        functions = import_module("mteb.similarity_functions")
        pairwise = functions.pairwise_cos_sim if self._cosine else functions.pairwise_dot_score
        return pairwise(embeddings1, embeddings2)
