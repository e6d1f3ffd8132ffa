"""Multi-vector encoders: one vector a token, compared by MaxSim (Khattab & Zaharia, 2020, ColBERT, section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.encoders import adapters
from retrievers.encoders.model import NeuralModel, Task
from retrievers.vectors import TokenVectors


class MultiVectorEncoder:
    """Encodes with a ``sentence_transformers.MultiVectorEncoder``; PyLate and Stanford ColBERT checkpoints load too.

    ``model`` is a folder, a name on the hub or the object itself. A batch holds at most ``batch_size`` texts and, with
    padding, ``max_batch_tokens`` tokens (None: a number that suits the device). ``device`` is torch's name
    for it, by default the accelerator if there is one.

    ``dtype`` is what the model computes in: ``"float32"``, ``"bfloat16"`` (or ``"bf16"``), ``"float16"`` or ``"int8"``;
    vectors are float32 all the same. ``backend`` is ``"torch"``, or on a processor ``"onnx"`` or ``"openvino"``, into which
    the layers are exported when the encoder is made. Neither changes the fingerprint. With ``workers`` above 1, so many
    processes encode documents, each with a copy of the model; a script that asks for them needs the usual
    ``if __name__ == "__main__":``.

    A model with an adapter for each language (X-MOD, ColBERT-XM) has to know which to use. ``language`` is that of
    documents and queries, ``query_language`` that of queries where it is another; by default it is the language that was
    saved with the model. Both are part of the fingerprint, and an index remembers them. A saved encoder keeps
    ``language``. Raises EncoderError where no language is chosen, where the model lacks it, or has no adapters.

    Prompts, lengths, query expansion, the tokens left out of documents and normalisation are the model's own. With
    ``similarity`` ``"maxsim"`` the vectors are as the model gives them; with ``"meanmaxsim"`` those of a query are
    divided by their number, so that the sum over query tokens, which every index takes, is the model's mean.
    """

    kind: Literal["multi-vector"] = "multi-vector"

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
        language: str | None = None,
        query_language: str | None = None,
    ) -> None:
        self.neural = NeuralModel(
            model,
            "multi-vector",
            device=device,
            batch_size=batch_size,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
            revision=revision,
            backend=backend,
            workers=workers,
            language=language,
            query_language=query_language,
        )
        self.similarity: Literal["maxsim", "meanmaxsim"] = self.neural.model.similarity_fn_name
        self.neural.convert()

    @property
    def model(self) -> Any:
        """The ``sentence_transformers.MultiVectorEncoder``."""
        return self.neural.model

    @property
    def fingerprint(self) -> str:
        """What an index remembers of the encoder that it was built with."""
        return self.neural.fingerprint

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that the model has adapters for; empty where it has none."""
        return adapters.languages_of(self.neural.input_module("query"))

    @property
    def language(self) -> str | None:
        """The language of documents; None for a model without adapters."""
        return self.neural.language("document")

    @property
    def query_language(self) -> str | None:
        """The language of queries; None for a model without adapters."""
        return self.neural.language("query")

    def encode_query(self, texts: Sequence[str], *, language: str | None = None) -> TokenVectors:
        """Token vectors of queries, expansion tokens included where the model expands.

        ``language`` is that of these queries, where it is another than the encoder's.
        """
        return self._encode(texts, "query", language)

    def encode_document(self, texts: Sequence[str], *, language: str | None = None) -> TokenVectors:
        """Token vectors of documents, without the tokens that the model leaves out (punctuation, as a rule).

        ``language`` is that of these documents, where it is another than the encoder's.
        """
        shared: Any = self.neural.share(texts, language=language)
        found: TokenVectors = self._encode(texts, "document", language) if shared is None else shared
        return found

    def _encode(self, texts: Sequence[str], task: Task, language: str | None = None) -> TokenVectors:
        self.neural.language(task, language)  # refuses one that the model lacks, whatever the texts
        parts: list[NDArray[np.float32] | None] = [None] * len(texts)
        for positions, features in self.neural.run(texts, task, language):
            values = features["token_embeddings"].float().cpu().numpy()
            kept = features["attention_mask"].bool().cpu().numpy()
            for row, position in enumerate(positions):
                parts[position] = values[row][kept[row]]
        if not parts:
            width = self._encode([""], task).values.shape[1]
            return TokenVectors(np.empty((0, width), np.float32), np.zeros(1, np.int64))
        found = [part for part in parts if part is not None]
        if task == "query" and self.similarity == "meanmaxsim":
            found = [part / np.float32(max(1, len(part))) for part in found]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(part) for part in found], dtype=np.int64)])
        return TokenVectors(np.concatenate(found), offsets)

    def query_tokens(self, text: str) -> list[str]:
        """The tokens of a query, one for each vector that :meth:`encode_query` gives, in order."""
        return self._tokens(text, "query")

    def document_tokens(self, text: str) -> list[str]:
        """The tokens of a document, one for each vector that :meth:`encode_document` gives, in order.

        Where the model merges the vectors of several tokens, no token stands for one: ``[pooled 0]`` and so on.
        """
        return self._tokens(text, "document")

    def _tokens(self, text: str, task: Task) -> list[str]:
        features = self.neural.preprocess([text], task)
        if "input_ids" not in features or self._merges(task):
            return [f"[pooled {number}]" for number in range(len(self._encode([text], task).values))]
        ids = features["input_ids"]
        for module in self.model:
            if type(module).__name__ == "MultiVectorMask":
                features = module(features, task=task)
        kept = ids[0][features["attention_mask"][0].bool()]
        tokens: list[str] = self.neural.input_module(task).tokenizer.convert_ids_to_tokens(kept.tolist())
        return tokens

    def _merges(self, task: Task) -> bool:
        return any(hasattr(module, "pool_one") and module.applies_to(task) for module in self.model)

    def close(self) -> None:
        """End the worker processes, if there are any."""
        self.neural.close()

    def reference(self) -> dict[str, Any]:
        """How to find the model again, as JSON."""
        return self.neural.reference()

    def save_query_side(self, folder: Path) -> None:
        """Write what :meth:`reference` cannot point to: the model itself, where it was given as an object."""
        self.neural.store(folder)

    def save(self, folder: str | Path) -> None:
        """Save as a folder that plain sentence-transformers loads, and refer to it from now on."""
        self.neural.save(folder)
