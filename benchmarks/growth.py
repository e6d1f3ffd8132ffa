"""What a question costs as a collection grows ten and a hundred times, of every kind of index: a table and a plot.

Milliseconds of CPU time of one thread, from the text to hits with their documents, of the test questions of wiki (200 of them),
over the first so many passages of the collections. The encoders of every_kind.py take next to no time. ``--work`` keeps the
indexes.

Run: pip install matplotlib; RETRIEVERS_SHARED=... OMP_NUM_THREADS=1 python benchmarks/growth.py --work FOLDER
         [--texts FOLDER] [--documents bm25=650000 plaid=50000 ...] [--plot benchmarks/results/growth.svg]
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from beir import folder, queries
from every_kind import encoder_of, kept, parser
from machine import describe, quantile

from retrievers import Retriever

ASKED, ROUNDS = 200, 3


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--plot", type=Path, default=Path(__file__).parent / "results" / "growth.svg")
    options = arguments.parse_args()
    print(describe("faiss-cpu"), flush=True)
    corpora = [folder("wiki"), *options.texts]
    asked = list(queries("wiki")[0].values())[:ASKED]
    print(f"\nCPU milliseconds a question, the least of {ROUNDS}: p50 / p99 of {ASKED}.\n")
    print("| index | documents | a hundredth | a tenth | all | ten times cost | a hundred times |")
    print("|" + " --- |" * 7)
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for kind, most in options.documents:
        sizes = [most // 100, most // 10, most]
        found = [measured(kept(options.work, kind, size, corpora), kind, asked) for size in sizes]
        cells = " | ".join(f"{p50:.3f} / {p99:.3f}" for p50, p99 in found)
        middle = [p50 for p50, _ in found]
        print(
            f"| {kind} | {most:,} | {cells} | {middle[2] / middle[1]:.1f} | {middle[2] / middle[0]:.1f} |", flush=True
        )
        curves[kind] = sizes, middle
    draw(curves, options.plot)


def measured(path: Path, kind: str, asked: list[str]) -> tuple[float, float]:
    """p50 and p99 of the CPU milliseconds of a question."""
    least = [float("inf")] * len(asked)
    with Retriever.open(path, encoder=encoder_of(kind)) as retriever:
        for _ in range(ROUNDS + 1):  # the first fills what is remembered
            for at, text in enumerate(asked):
                start = time.thread_time()
                retriever.search(text)
                least[at] = min(least[at], 1e3 * (time.thread_time() - start))
    return quantile(least, 0.5), quantile(least, 0.99)


def draw(curves: dict[str, tuple[list[int], list[float]]], place: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for kind, (sizes, milliseconds) in curves.items():
        axes.loglog(sizes, milliseconds, marker="o", label=kind)
    axes.set_xlabel("documents")
    axes.set_ylabel("CPU milliseconds a question (p50), text to hits")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(place)
    print(f"\nplotted in {place}")


if __name__ == "__main__":
    main()
