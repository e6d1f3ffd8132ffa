"""nDCG@10 of bm25 on real collections, beside bm25s (method "lucene") on the same tokens.

Run: RETRIEVERS_SHARED=... python benchmarks/lexical_quality.py [COLLECTION ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import bm25s
from beir import folder, ndcg, queries
from machine import describe

from retrievers import LexicalEncoder, Retriever, read_beir

NAMES = ("vaswani", "cranfield", "medline", "squad-dev", "medquad", "wiki")
DEPTH = 100


def main(names: list[str]) -> None:
    print(describe("bm25s", "PyStemmer", "ir-measures"))
    print(f"\n| collection | documents | queries | bm25 | bm25s | difference |\n|{' --- |' * 6}")
    encoder = LexicalEncoder()
    for name in names:
        texts, qrels = queries(name)
        documents = list(read_beir(folder(name)))
        ids = [document.id for document in documents]
        peer = bm25s.BM25(method="lucene", k1=encoder.bm25.k1, b=encoder.bm25.b)
        peer.index([encoder.tokenize(document.content) for document in documents], show_progress=False)
        with tempfile.TemporaryDirectory() as place:
            retriever = Retriever.build(Path(place) / "idx", documents)
            hits = retriever.search(list(texts.values()), k=DEPTH)
        ours = {query: {hit.id: hit.score for hit in found} for query, found in zip(texts, hits, strict=True)}
        theirs: dict[str, dict[str, float]] = {}
        for query, text in texts.items():
            tokens = encoder.tokenize(text)
            known = [token for token in tokens if token in peer.vocab_dict]
            if not known:
                theirs[query] = {}
                continue
            rows, scores = peer.retrieve([known], k=min(DEPTH, len(ids)), show_progress=False)
            pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            theirs[query] = {ids[row]: score for row, score in pairs if score > 0}
        a, b = ndcg(ours, qrels), ndcg(theirs, qrels)
        print(f"| {name} | {len(ids):,} | {len(texts):,} | {a:.4f} | {b:.4f} | {a - b:+.4f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
