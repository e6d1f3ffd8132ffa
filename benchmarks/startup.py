"""Start-up: the import, the command line's help, and opening an index, each in fresh processes, medians.

Run: RETRIEVERS_SHARED=... python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from beir import folder
from machine import describe, quantile

from retrievers import Retriever, read_beir

_OPEN = """
import sys, time
start = time.perf_counter()
from retrievers import Retriever
imported = time.perf_counter()
retriever = Retriever.open(sys.argv[1])
opened = time.perf_counter()
retriever.search("Which river runs through the city?", k=10)
first = time.perf_counter()
for _ in range(9):
    retriever.search("Which river runs through the city?", k=10)
before = time.perf_counter()
retriever.search("Which river runs through the city?", k=10)
tenth = time.perf_counter() - before
print(imported - start, opened - imported, first - opened, tenth)
"""
ROUNDS = 11


def main() -> None:
    print(describe("typer"))
    with tempfile.TemporaryDirectory() as place:
        index = str(Path(place) / "idx")
        Retriever.build(index, read_beir(folder("wiki"))).close()
        samples = [
            [float(part) for part in run([sys.executable, "-c", _OPEN, index])[1].split()] for _ in range(ROUNDS)
        ]
    rows = dict(
        zip(
            ("import Retriever", "open (wiki)", "first search", "eleventh search"),
            zip(*samples, strict=True),
            strict=True,
        )
    )
    rows["import retrievers, whole process"] = tuple(
        run([sys.executable, "-c", "import retrievers"])[0] for _ in range(ROUNDS)
    )
    rows["python alone, whole process"] = tuple(run([sys.executable, "-c", "pass"])[0] for _ in range(ROUNDS))
    command = str(Path(sys.executable).with_name("retrievers"))
    rows["retrievers --help, whole process"] = tuple(run([command, "--help"])[0] for _ in range(ROUNDS))
    print(f"\n| step, median of {ROUNDS} fresh processes | ms |\n| --- | --- |")
    for name, seconds in rows.items():
        print(f"| {name} | {1e3 * quantile(list(seconds), 0.5):.1f} |")


def run(command: list[str]) -> tuple[float, str]:
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - start, done.stdout


if __name__ == "__main__":
    main()
