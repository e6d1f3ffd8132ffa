"""Start-up: the import, the command line's help, opening an index of every kind, and the first query beside later ones.

Every sample is a fresh process that opens an index and asks ten different questions of a real collection, each process
beginning at another one, so that each question comes first in one of them. The page cache and Python's compiled files
are warm: a first round is thrown away. Indexes are built once and kept in ``--work``; ``bm25`` of a million texts takes
two minutes and 1 GB.

Run: RETRIEVERS_SHARED=... OMP_NUM_THREADS=1 python benchmarks/startup.py --work FOLDER [--texts corpus.jsonl]
         [--documents bm25=1000000 flat=200000 ...]

``--texts`` adds a corpus (benchmarks/debian_passages.py makes a large one) to the Wikipedia introductions; where there are
too few texts, the longest are cut in two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from beir import folder, queries
from every_kind import kept, parser
from machine import describe

QUESTIONS = 10
_OPEN = """
import json, sys, time
start = time.perf_counter()
from retrievers import Retriever
imported = time.perf_counter()
from every_kind import encoder_of
kind, path, questions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
encoder = encoder_of(kind)
if encoder is not None:
    encoder.encode_query(questions)
marks = [time.perf_counter()]
retriever = Retriever.open(path, encoder=encoder)
marks.append(time.perf_counter())
for question in questions:
    retriever.search(question, k=10)
    marks.append(time.perf_counter())
print(json.dumps({"import": imported - start, "marks": marks, "torch": "torch" in sys.modules}))
"""


def main() -> None:
    arguments = parser(__doc__).parse_args()
    print(describe("scipy", "faiss-cpu", "typer"), flush=True)
    corpora = [folder("wiki"), *arguments.texts]
    asked = list(queries("wiki")[0].values())[:: 1834 // QUESTIONS][:QUESTIONS]
    imports: list[float] = []
    print("\n| index | documents | open | first query | tenth | first / tenth | first / later | torch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind, count in arguments.documents:
        index = kept(arguments.work, kind, count, corpora)
        opened(kind, index, asked)
        samples = [opened(kind, index, asked[turn:] + asked[:turn]) for turn in range(QUESTIONS)]
        imports += [sample["import"] for sample in samples]
        spans = [[1e3 * (after - before) for before, after in pairwise(sample["marks"])] for sample in samples]
        opening, first, tenth = (median(span[at] for span in spans) for at in (0, 1, QUESTIONS))
        # Every question comes once in every place: its first time beside the median of its other times.
        ratios = []
        for number in range(QUESTIONS):
            times = [spans[turn][1 + (number - turn) % QUESTIONS] for turn in range(QUESTIONS)]
            ratios.append(times[number] / median(times[:number] + times[number + 1 :]))
        torch = "yes" if any(sample["torch"] for sample in samples) else "no"
        print(
            f"| {kind} | {count:,} | {opening:.0f} ms | {first:.1f} ms | {tenth:.1f} ms | {first / tenth:.1f} | "
            f"{median(ratios):.1f} | {torch} |",
            flush=True,
        )
    print(
        "\n`first / later`: each question when it came first, by the median of its other nine times; the median of ten."
    )
    rows = {"from retrievers import Retriever, within the process": imports}
    for name, command in {
        "python alone, whole process": [sys.executable, "-c", "pass"],
        "import retrievers, whole process": [sys.executable, "-c", "import retrievers"],
        "import numpy, whole process": [sys.executable, "-c", "import numpy"],
        "from retrievers import Retriever, whole process": [sys.executable, "-c", "from retrievers import Retriever"],
        "retrievers --help, whole process": [str(Path(sys.executable).with_name("retrievers")), "--help"],
    }.items():
        run(command)
        rows[name] = [run(command)[0] for _ in range(QUESTIONS)]
    print(f"\n| step, median of {QUESTIONS} or more fresh processes | ms |\n| --- | --- |")
    for name, seconds in rows.items():
        print(f"| {name} | {1e3 * median(seconds):.1f} |")


def opened(kind: str, index: Path, questions: list[str]) -> dict[str, Any]:
    sample: dict[str, Any] = json.loads(run([sys.executable, "-c", _OPEN, kind, str(index), json.dumps(questions)])[1])
    return sample


def run(command: list[str]) -> tuple[float, str]:
    """Seconds and output of a process that finds the benchmarks' modules and may keep what it compiles, as users' do."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    here = str(Path(__file__).parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, environment.get("PYTHONPATH"))))
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - start, done.stdout


if __name__ == "__main__":
    main()
