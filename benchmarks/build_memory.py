"""Millions of real texts are indexed with BM25 within a stated memory, each budget in a process of its own.

The texts are the passages of a corpus in the form of BEIR, such as benchmarks/debian_passages.py makes, cut into pieces of
at most 28 words; they are streamed, and never in memory together. Anonymous memory (RssAnon of /proc/self/status) is read fifty
times a second, before the build as well: the budget is for what the build adds, the interpreter and the encoder's memory of
words come on top. Memory-mapped files are in the peak resident memory, and outside of the budget: the system takes their
pages back where it needs them. Linux alone has both. Each build is followed by a merge under the same budget. The
benchmark fails where either adds more than the budget and --beside MiB for the encoder.

Run: python benchmarks/build_memory.py CORPUS.jsonl [--texts 2000000] [--memory 2048 256] [--workers 1] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import json
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
from typing import Any

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
    print("| budget, MiB | | s | CPU s | peak anonymous, MiB | added | peak resident | segments | on disk, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for memory, row in rows:
        for name, step in row["steps"].items():
            print(
                f"| {memory:,} | {name} | {step['seconds']:.0f} | {step['cpu']:.0f} | {step['peak'] / MIB:.0f} | "
                f"{(step['peak'] - row['before']) / MIB:.0f} | {step['resident']:.0f} | {step['segments']} | "
                f"{step['disk'] / 1e6:,.0f} |"
            )
    most = {memory: max(step["peak"] for step in row["steps"].values()) - row["before"] for memory, row in rows}
    over = [memory for memory, added in most.items() if added > (memory + given.beside) * MIB]
    if over:
        sys.exit(f"more was added than the budget and {given.beside} MiB: at {', '.join(map(str, over))} MiB")


def measured(given: argparse.Namespace, memory: int, place: Path) -> dict[str, Any]:
    """What a build in a process of its own tells of itself; the index is checked, and removed."""
    command = [sys.executable, __file__, str(given.corpus), "--build", str(place), "--memory", str(memory)]
    command += ["--texts", str(given.texts), "--workers", str(given.workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the build within {memory} MiB ended with exit status {done.returncode} (its errors are above)")
    shutil.rmtree(place)
    row: dict[str, Any] = json.loads(done.stdout)
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
    memory = given.memory[0] * MIB
    before = anonymous()
    watch = Watch()
    with Retriever.build(given.build, documents(), encoder=encoder, memory=memory) as retriever:
        steps = {"build": watch.stop() | outcome(given.build)}
        watch = Watch()
        retriever.merge(memory=memory)
        steps["merge"] = watch.stop() | outcome(given.build)
        if len(retriever) != given.texts or not retriever.search("documentation", k=10):
            sys.exit(f"the index holds {len(retriever)} documents of the corpus, where {given.texts} were asked for")
    print(json.dumps({"before": before, "steps": steps, **told}))


def outcome(index: Path) -> dict[str, int]:
    """The number of segments, and the bytes on disk."""
    files = [path for path in index.rglob("*") if path.is_file()]
    return {
        "segments": sum(1 for _ in (index / "segments").iterdir()),
        "disk": sum(path.stat().st_size for path in files),
    }


def pieces(corpus: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of the pieces of each passage."""
    with corpus.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            words = json.loads(line)["text"].split()
            for at in range(0, len(words), PIECE):
                yield f"{number}-{at // PIECE}", " ".join(words[at : at + PIECE])


class Watch:
    """What this process takes from now on; a thread samples its anonymous memory."""

    def __init__(self) -> None:
        self._most = anonymous()
        self._start, self._spent = time.perf_counter(), time.process_time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(0.02):
            self._most = max(self._most, anonymous())

    def stop(self) -> dict[str, float]:
        """Seconds, CPU seconds without those of workers, the peak in bytes, and in MiB that of resident memory so far."""
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._spent
        self._ended.set()
        self._thread.join()
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": seconds, "cpu": cpu, "peak": self._most, "resident": resident}


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
