"""Dense encoders: one vector a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.encoders.model import NeuralModel, Task
from retrievers.errors import EncoderError


class DenseEncoder:
    """Encodes with a ``sentence_transformers.SentenceTransformer``.

    ``model`` is a folder, a name on the hub or the object itself. A batch holds at most ``batch_size`` texts and, with
    padding, ``max_batch_tokens`` tokens (None: a number that suits the device). ``device`` is torch's name
    for it, by default the accelerator if there is one.

    ``dtype`` is what the model computes in: ``"float32"``, ``"bfloat16"`` (or ``"bf16"``), ``"float16"`` or ``"int8"``;
    vectors are float32 all the same. ``backend`` is ``"torch"``, or on a processor ``"onnx"`` or ``"openvino"``, into which
    the layers are exported when the encoder is made. Neither changes the fingerprint. With ``workers`` above 1, so many
    processes encode documents, each with a copy of the model; a script that asks for them needs the usual
    ``if __name__ == "__main__":``.

    The score of two texts is the inner product of their vectors: where the model's similarity is cosine they have
    length 1. Raises EncoderError where the similarity is a distance, which no index here orders by.
    """

    kind: Literal["dense"] = "dense"

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
        self.neural = NeuralModel(
            model,
            "dense",
            device=device,
            batch_size=batch_size,
            dtype=dtype,
            max_batch_tokens=max_batch_tokens,
            revision=revision,
            backend=backend,
            workers=workers,
        )
        self.similarity = inner_product(self.neural.model.similarity_fn_name)
        self.neural.convert()

    @property
    def model(self) -> Any:
        """The ``SentenceTransformer``."""
        return self.neural.model

    @property
    def fingerprint(self) -> str:
        """What an index remembers of the encoder that it was built with."""
        return self.neural.fingerprint

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, float32 ``[n, dim]``; the model's query prompt goes before each text."""
        return self._encode(texts, "query")

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors, float32 ``[n, dim]``; the model's document prompt goes before each text."""
        shared: Any = self.neural.share(texts)
        found: NDArray[np.float32] = self._encode(texts, "document") if shared is None else shared
        return found

    def _encode(self, texts: Sequence[str], task: Task) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] | None = None
        for positions, features in self.neural.run(texts, task):
            found = features["sentence_embedding"].float().cpu().numpy()
            if self.model.truncate_dim is not None:
                found = found[:, : self.model.truncate_dim]
            if self.similarity == "cosine":
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            if vectors is None:
                vectors = np.empty((len(texts), found.shape[1]), dtype=np.float32)
            vectors[positions] = found
        if vectors is None:
            return np.empty((0, self._encode([""], task).shape[1]), dtype=np.float32)
        return vectors

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


def inner_product(similarity: str) -> Literal["cosine", "dot"]:
    """The similarity, if an inner product gives it; raises EncoderError for a distance."""
    if similarity == "cosine":
        return "cosine"
    if similarity == "dot":
        return "dot"
    raise EncoderError(
        f"the model's similarity is {similarity}: indexes order by inner product, so it must be cosine or dot. If the "
        "model was trained for one of these, set model.similarity_fn_name and save it"
    )
