"""bm25 on the wiki collection: build time and memory, opening, and single queries beside bm25s with its numba backend.

Both engines get the same tokens; query time is measured from token ids (bm25s) and query vectors (ours) to the rows and
scores of the best 10, and for ours also from the text to hits with their documents. One thread each, in turns.

Run: RETRIEVERS_SHARED=... python benchmarks/lexical_speed.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np
from beir import folder, queries
from machine import alternate, describe, peak_memory, quantile

from retrievers import LexicalEncoder, Retriever, read_beir

K = 10
_BUILD = """
import sys, time
sys.path.insert(0, sys.argv[3])
from machine import peak_memory
from retrievers import Retriever, read_beir
start = time.perf_counter()
retriever = Retriever.build(sys.argv[1], read_beir(sys.argv[2]))
print(f"{time.perf_counter() - start:.1f} {peak_memory():.0f} {len(retriever)}")
"""


def main() -> None:
    print(describe("bm25s", "numba", "PyStemmer"))
    with tempfile.TemporaryDirectory() as place:
        index = Path(place) / "idx"
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", _BUILD, str(index), str(folder("wiki")), here]
        built = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        print(f"build: {built[0]} s, {built[1]} MiB at most, {built[2]} documents, {size / 1e6:.0f} MB on disk")
        opening = []
        for _ in range(11):
            start = time.perf_counter()
            Retriever.open(index).close()
            opening.append(time.perf_counter() - start)
        print(f"open: {1e3 * quantile(opening, 0.5):.1f} ms (median of 11, in a warm process)")
        speed(Retriever.open(index))


def speed(retriever: Retriever) -> None:
    encoder = LexicalEncoder()
    texts = list(queries("wiki")[0].values())
    peer = bm25s.BM25(method="lucene", k1=encoder.bm25.k1, b=encoder.bm25.b, backend="numba")
    peer.index([encoder.tokenize(document.content) for document in read_beir(folder("wiki"))], show_progress=False)
    tokens = [[peer.vocab_dict[t] for t in encoder.tokenize(text) if t in peer.vocab_dict] for text in texts]
    snapshot = retriever._current
    (segment,) = snapshot.segments
    norms = snapshot.norms(0)
    vectors = [snapshot.weigh(encoder.encode_query([text])) for text in texts]

    def ours(at: int) -> object:
        return segment.search(vectors[at], K, allowed=None, norms=norms)

    def theirs(at: int) -> object:
        return peer.retrieve([tokens[at]], k=K, show_progress=False, n_threads=1)

    def whole(at: int) -> object:
        return retriever.search(texts[at], k=K)

    for at in range(20):  # numba compiles at its first call
        found, (_, scores) = (
            segment.search(vectors[at], K, allowed=None, norms=norms),
            peer.retrieve([tokens[at]], k=K, show_progress=False, n_threads=1),
        )
        n = len(found.scores[0])
        np.testing.assert_allclose(found.scores[0], scores[0][:n], rtol=1e-4)
    contenders = {"retrievers, index": ours, "bm25s, numba": theirs, "retrievers, text to hits": whole}
    times = alternate(contenders, calls=len(texts), rounds=3)
    print(f"\n{len(texts)} queries, k = {K}\n\n| engine | p50 ms | p99 ms | p50 to bm25s |\n| --- | --- | --- | --- |")
    base = quantile(times["bm25s, numba"], 0.5)
    for name, seconds in times.items():
        p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
        print(f"| {name} | {1e3 * p50:.3f} | {1e3 * p99:.3f} | {p50 / base:.2f} |")
    print(f"\nmemory of this process at most {peak_memory():.0f} MiB (bm25s included)")


if __name__ == "__main__":
    main()
