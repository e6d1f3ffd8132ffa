"""Millions of real texts are indexed with BM25 within a stated memory, each budget in a process of its own.

The texts are the passages of a corpus in the form of BEIR, such as benchmarks/debian_passages.py makes, cut into pieces of
at most 28 words; they are streamed, and never in memory together. Anonymous memory (RssAnon of /proc/self/status) is read fifty
times a second, before the build as well: the budget is for what the build adds, the interpreter and the encoder's memory of
words come on top. Memory-mapped files are in the peak resident memory, and outside of the budget: the system takes their
pages back where it needs them. Linux alone has both. The benchmark fails where a build adds more than its budget and
--beside MiB for the encoder.

Run: python benchmarks/build_memory.py CORPUS.jsonl [--texts 2000000] [--memory 2048 256] [--workers 1] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MIB = 1 << 20
PIECE = 28  # words


def main() -> None:
    given = _arguments()
    if given.build:
        build(given)
        return
    from machine import describe

    print(describe("scipy", "PyStemmer"), flush=True)
    work = Path(tempfile.mkdtemp(prefix="build-memory-", dir=given.work))
    rows = []
    try:
        for memory in given.memory:
            rows.append((memory, measured(given, memory, work / str(memory))))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    size = rows[0][1]["bytes"] / MIB
    print(f"\n{rows[0][1]['texts']:,} texts of {size:,.0f} MiB, {given.workers} worker(s)\n")
    print("| budget, MiB | s | CPU s | before, MiB | peak anonymous | added | peak resident | segments | on disk, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for memory, row in rows:
        print(
            f"| {memory:,} | {row['seconds']:.0f} | {row['cpu']:.0f} | {row['before']:.0f} | {row['peak']:.0f} | "
            f"{row['peak'] - row['before']:.0f} | {row['resident']:.0f} | {row['segments']} | {row['disk'] / 1e6:,.0f} |"
        )
    over = [memory for memory, row in rows if row["peak"] - row["before"] > memory + given.beside]
    if over:
        sys.exit(f"more was added than the budget and {given.beside} MiB: at {', '.join(map(str, over))} MiB")


def measured(given: argparse.Namespace, memory: int, place: Path) -> dict[str, float]:
    """What a build in a process of its own tells of itself; the index is checked, and removed."""
    command = [sys.executable, __file__, str(given.corpus), "--build", str(place), "--memory", str(memory)]
    command += ["--texts", str(given.texts), "--workers", str(given.workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the build within {memory} MiB ended with exit status {done.returncode} (its errors are above)")
    shutil.rmtree(place)
    row: dict[str, float] = json.loads(done.stdout)
    print(json.dumps(row), flush=True)
    return row


def build(given: argparse.Namespace) -> None:
    from retrievers import Document, Retriever, load_encoder

    told = {"texts": 0, "bytes": 0}

    def documents() -> Iterator[Document]:
        for id, text in islice(pieces(given.corpus), given.texts):
            told["texts"] += 1
            told["bytes"] += len(text.encode())
            yield Document(id, text)

    encoder = load_encoder("bm25", workers=given.workers)
    before = anonymous()
    peak = Peak()
    start, spent = time.perf_counter(), os.times()
    with Retriever.build(given.build, documents(), encoder=encoder, memory=given.memory[0] * MIB) as retriever:
        seconds, now = time.perf_counter() - start, os.times()
        most = peak.stop()
        if len(retriever) != given.texts or not retriever.search("documentation", k=10):
            sys.exit(f"the index holds {len(retriever)} documents of the corpus, where {given.texts} were asked for")
        segments, disk = sum(1 for _ in (given.build / "segments").iterdir()), retriever.size
    row = {
        "seconds": seconds,
        "cpu": now.user + now.system - spent.user - spent.system,  # of this process, without workers
        "before": before / MIB,
        "peak": most / MIB,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "segments": segments,
        "disk": disk,
        **told,
    }
    print(json.dumps(row))


def pieces(corpus: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of the pieces of each passage."""
    with corpus.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            words = json.loads(line)["text"].split()
            for at in range(0, len(words), PIECE):
                yield f"{number}-{at // PIECE}", " ".join(words[at : at + PIECE])


class Peak:
    """The most anonymous memory of this process, sampled by a thread."""

    def __init__(self) -> None:
        self._most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, anonymous())

    def stop(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._most


def anonymous() -> int:
    """The bytes of anonymous memory that this process holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    sys.exit("/proc/self/status tells no RssAnon: this runs on Linux alone")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--texts", type=int, default=2_000_000)
    parser.add_argument("--memory", type=int, nargs="+", default=[2048, 256], help="budgets, MiB")
    parser.add_argument("--beside", type=int, default=128, help="MiB for the encoder's memory of words")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where the indexes lie while they are measured: some GB")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
