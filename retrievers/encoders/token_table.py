"""Queries of inference-free sparse search: a tokenizer and a table of weights, without a model and without torch.

Geng et al. (2024), *Towards Competitive Search Relevance For Inference-Free Learned Sparse Retrievers*, section 3: a
query is the set of its token ids, each weighing ``relu(table[id])``. Neither repetition nor order counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers import vectors
from retrievers.encoders.texts import check_texts
from retrievers.encoders.word_memory import WordMemory
from retrievers.errors import EncoderError, IndexDamagedError, IndexFormatError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from tokenizers import Tokenizer

SETTINGS = "token_table.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "token_weights.npy"
FORMAT = 1


class TokenTable:
    """Turns queries into sparse vectors by look-up.

    ``weights`` is float32 ``[vocabulary]``, none negative; ``tokenizer`` must truncate to the length that queries are
    cut to, not pad, and stay as it is. ``prompt`` goes before every query. With ``similarity`` ``"cosine"`` rows have length 1.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        weights: NDArray[np.float32],
        *,
        prompt: str = "",
        similarity: Literal["dot", "cosine"] = "dot",
        fingerprint: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._words = WordMemory(tokenizer)
        self.weights = weights
        self.prompt = prompt
        self.similarity: Literal["dot", "cosine"] = similarity
        self.fingerprint = fingerprint

    @property
    def vocabulary(self) -> int:
        """The number of columns of a vector."""
        return len(self.weights)

    def encode_query(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """Sparse vectors, float32 ``[n, vocabulary]`` with sorted columns; raises EncoderError for what is no text."""
        prompted = [self.prompt + text for text in check_texts(texts)]
        kept: list[NDArray[np.int64]] = []
        for ids in self._words.ids(prompted):
            columns = np.array(sorted(set(ids)), np.int64)  # of a question: a third of np.unique's time
            kept.append(columns[self.weights[columns] > 0])
        indices = kept[0] if len(kept) == 1 else np.concatenate([np.zeros(0, np.int64), *kept])
        lengths = np.array([len(columns) for columns in kept], dtype=np.int64)
        data = self.weights[indices]
        if self.similarity == "cosine" and len(data):
            rows = np.repeat(np.arange(len(kept)), lengths)
            norms = np.sqrt(np.bincount(rows, weights=data.astype(np.float64) ** 2, minlength=len(kept)))
            data = (data / norms[rows]).astype(np.float32)
        return vectors.csr(data, indices, lengths, self.vocabulary)

    def terms(self, columns: Sequence[int]) -> list[str]:
        """The tokens that stand for these columns; a column beyond the tokenizer's vocabulary is named by number."""
        found = [self.tokenizer.id_to_token(int(column)) for column in columns]
        return [term if term is not None else f"[{column}]" for column, term in zip(columns, found, strict=True)]

    def save(self, folder: Path) -> None:
        """Write ``tokenizer.json``, ``token_weights.npy`` and ``token_table.json`` into an existing folder."""
        self.tokenizer.save(str(folder / TOKENIZER))
        np.save(folder / WEIGHTS, self.weights, allow_pickle=False)
        settings = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "prompt": self.prompt,
            "similarity": self.similarity,
            "vocabulary": self.vocabulary,
        }
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TokenTable:
        """Open what :meth:`save` wrote.

        Raises IndexDamagedError, naming the file, where one is missing or does not fit the others, and IndexFormatError
        where a newer version of the library wrote them.
        """
        from tokenizers import Tokenizer

        settings = _read_settings(folder / SETTINGS)
        weights = _read_weights(folder / WEIGHTS)
        path = folder / TOKENIZER
        try:
            tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except (OSError, ValueError) as error:
            raise IndexDamagedError(f"{path} holds no tokenizer ({error}): restore it, or build again") from error
        if settings["vocabulary"] != len(weights):
            raise IndexDamagedError(
                f"{folder / WEIGHTS} holds {len(weights)} weights, {SETTINGS} speaks of {settings['vocabulary']}: "
                "the files are not of one index"
            )
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= len(weights):
            raise IndexDamagedError(
                f"{path} gives token ids up to {largest}, {WEIGHTS} holds only {len(weights)} weights: the files are "
                "not of one index"
            )
        return cls(
            tokenizer,
            weights,
            prompt=settings["prompt"],
            similarity=settings["similarity"],
            fingerprint=settings["fingerprint"],
        )


def relu_weights(weights: NDArray[Any], columns: int, excluded: Sequence[int] = ()) -> NDArray[np.float32]:
    """``max(weights, 0)`` as float32, zero for the token ids ``excluded``, padded with zeros to ``columns``.

    Raises EncoderError where a weight is NaN or infinite.
    """
    if not np.isfinite(weights).all():
        first = int(np.flatnonzero(~np.isfinite(weights))[0])
        raise EncoderError(f"the token table holds {weights[first]} for token id {first}: train it again")
    table = np.zeros(max(columns, len(weights)), dtype=np.float32)
    table[: len(weights)] = np.maximum(weights, 0)
    inside = [token for token in excluded if token < len(table)]
    table[inside] = 0
    return table


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IndexDamagedError(f"{path} cannot be read ({error}): restore it, or build the index again") from error
    if not isinstance(settings, dict):
        raise IndexDamagedError(f"{path} holds no settings: restore it")
    version = settings.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise IndexFormatError(
            f"{path} has format {version}, this version reads up to {FORMAT}: upgrade tri-retrievers"
        )
    fits = (
        version == FORMAT
        and isinstance(settings.get("fingerprint"), str)
        and isinstance(settings.get("prompt"), str)
        and settings.get("similarity") in ("dot", "cosine")
        and isinstance(settings.get("vocabulary"), int)
    )
    if not fits:
        raise IndexDamagedError(f"{path} lacks a setting or holds one of a wrong type: restore it")
    return settings


def _read_weights(path: Path) -> NDArray[np.float32]:
    try:
        weights = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IndexDamagedError(f"{path} cannot be read ({error}): restore it, or build the index again") from error
    if not isinstance(weights, np.ndarray) or weights.dtype != np.float32 or weights.ndim != 1:
        raise IndexDamagedError(f"{path} must hold one row of float32 weights: restore it")
    if not np.isfinite(weights).all() or (len(weights) and weights.min() < 0):
        raise IndexDamagedError(f"{path} holds a negative or infinite weight, or NaN: restore it")
    return weights
