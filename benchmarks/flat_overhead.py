"""Retriever.search beside a bare FAISS call: flat index, 178,755 random unit vectors of 384 dimensions, the texts of wiki.

Encoding is left out on both sides: the encoder looks its vectors up. In turns, medians.

Run: RETRIEVERS_SHARED=... python benchmarks/flat_overhead.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import faiss
import numpy as np
from beir import folder
from machine import alternate, describe, quantile

from retrievers import Retriever, read_beir
from retrievers.vectors import Kind

DIMENSION, K, BATCHES = 384, 10, (1, 10, 100, 1000)


class Drawn:
    """Vectors drawn at random, the same ones in the order of the calls; a query is the number of its vector."""

    kind: Kind = "dense"
    fingerprint = "drawn"

    def __init__(self, queries: np.ndarray) -> None:
        self.rng = np.random.default_rng(0)
        self.queries = queries

    def encode_document(self, texts: Sequence[str]) -> np.ndarray:
        return unit(self.rng.standard_normal((len(texts), DIMENSION), dtype=np.float32))

    def encode_query(self, texts: Sequence[str]) -> np.ndarray:
        return self.queries[[int(text) for text in texts]]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def main() -> None:
    print(describe("faiss-cpu"), f"; {faiss.omp_get_max_threads()} FAISS threads")
    queries = unit(np.random.default_rng(1).standard_normal((BATCHES[-1], DIMENSION), dtype=np.float32))
    print(
        "\n| vectors | queries | faiss ms | retriever ms | median difference of neighbouring calls |\n|" + " --- |" * 5
    )
    # In the small index the scan is short, so that what is added to it can be told from noise.
    for size in (2000, None):
        some = islice(
            read_beir(folder("wiki")), size
        )  # streamed: objects kept here would only slow the garbage collector
        with tempfile.TemporaryDirectory() as place:
            retriever = Retriever.build(Path(place) / "idx", some, encoder=Drawn(queries), memory=8 << 30)
            compare(retriever, queries)


def compare(retriever: Retriever, queries: np.ndarray) -> None:
    (segment,) = retriever.snapshot.segments
    bare = faiss.IndexFlatIP(DIMENSION)
    bare.add(np.array(segment.index.vectors))
    names = [str(at) for at in range(len(queries))]
    hits = retriever.search(names, k=K)
    scores, rows = bare.search(queries, K)
    if same(segment, hits, rows) != len(queries) or gap(hits, scores) > 1e-6:
        raise SystemExit("the two do not find the same")
    for size in BATCHES:
        contenders = {
            "faiss": lambda at, n=size: bare.search(queries[at % 100 : at % 100 + n], K),
            "retriever": lambda at, n=size: retriever.search(names[at % 100 : at % 100 + n], k=K),
        }
        times = alternate(contenders, calls=300 if size == 1 else 1, rounds=1 if size == 1 else 25)
        a, b = (1e3 * quantile(times[name], 0.5) for name in ("faiss", "retriever"))
        pairs = zip(times["faiss"], times["retriever"], strict=True)
        more = 1e3 * quantile([ours - theirs for theirs, ours in pairs], 0.5)
        print(
            f"| {bare.ntotal:,} | {size:,} | {a:.2f} | {b:.2f} | {more:+.2f} ms, {100 * more / a:+.1f}% |", flush=True
        )


def same(segment: object, hits: list, rows: np.ndarray) -> int:
    ids = segment.store.ids(sorted({int(row) for row in rows.ravel()}))  # type: ignore[attr-defined]
    return sum(
        [hit.id for hit in found] == [ids[int(row)] for row in mine] for found, mine in zip(hits, rows, strict=True)
    )


def gap(hits: list, scores: np.ndarray) -> float:
    return max(
        abs(hit.score - score)
        for found, mine in zip(hits, scores, strict=True)
        for hit, score in zip(found, mine, strict=True)
    )


if __name__ == "__main__":
    main()
