"""The multi-vector indexes beside fast-plaid and MUVERA: recall against CPU time, building and size, on vectors of a real model.

The folder of vectors (--vectors) holds token vectors of real passages and of questions, from a model trained for MaxSim: d.f16
(float16 [tokens, 128]), off.npy (int64 [passages + 1]) and q.npz (values float32 [tokens, 128], offsets int64). --make encodes
it: the model is what `benchmarks/training.py --kinds multi-vector --rows distilled --work FOLDER` leaves in
FOLDER/runs/multi-vector-distilled-0/model, the collection any BEIR folder, such as that of wiki (its first passages, and its
first 1,000 queries).

Every contender builds in a process of its own (CPU and wall seconds, and the most memory that is no mapped file), and answers
in another, on one thread. Ours are built by Retriever.build within 2 GiB. fast-plaid gets an environment of its own in --work,
with the torch that it pins (5 GB: that torch has no CPU build on PyPI, and with another it crashes). MUVERA is the encodings of
Dhulipala et al. (2024), of 10,240 dimensions, in a FAISS index, with the best rescored in bfloat16: see
multi_vector_contenders.py. Each is asked over a grid of its own efforts, contenders in turns, 20 questions at a time; recall@10
is against exact MaxSim over the stored vectors. CPU time is that of the contender's process from the query's token vectors to
the rows. A build that takes more than 15 minutes of CPU is stopped, and told of. Outcomes are kept in --work, one file a
contender and size, so that a benchmark that was stopped goes on; to measure one again, delete its file.

Run: OMP_NUM_THREADS=1 python benchmarks/multi_vector_speed.py --work FOLDER --vectors FOLDER [--passages 12000 110000]
         [--ours "plaid(bits=2)" "plaid(bits=4, nprobe=32)" maxsim]
         [--peers "fast-plaid(nbits=4)" "muvera(quantiser=PQ2560x4fs)"]
Vectors: HF_HUB_OFFLINE=1 python benchmarks/multi_vector_speed.py --make --model FOLDER --data FOLDER --vectors FOLDER
Tables of what has been measured: the first command with --tables
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from multi_vector_contenders import K, TokenFolder

WORKER = Path(__file__).with_name("multi_vector_contenders.py")
FAST_PLAID = "fast-plaid==1.7.0.2110"
OURS = ("plaid(bits=2)", "plaid(bits=4)", "plaid(bits=2, vectors=none)", "plaid(bits=4, vectors=none)", "maxsim")
PEERS = (
    "fast-plaid(nbits=4)",
    "fast-plaid(nbits=8)",
    "fast-plaid(nbits=2)",
    "muvera(quantiser=PQ2560x4fs)",
    "muvera(quantiser=HNSW32_SQ8)",
)
TARGETS = (0.95, 0.99)
BLOCK = 20  # questions that a contender is asked before it is another's turn
SECONDS = 900  # of CPU, after which a build is stopped
MIB = 1 << 20


class Measured:
    """What is known of one contender at one size, in a file."""

    def __init__(self, work: Path, vectors: Path, name: str, passages: int) -> None:
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
        self.name, self.passages, self.work, self.vectors = name, passages, work, vectors
        self.place = work / f"{passages}" / slug
        self.file = self.place.with_name(f"{slug}.json")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {"asked": {}}

    def save(self) -> None:
        part = self.file.with_name(f"{self.file.name}.part")
        part.write_text(json.dumps(self.known))
        part.replace(self.file)

    @property
    def failed(self) -> str:
        return str(self.known.get("failed", ""))

    def command(self, work: str) -> tuple[list[str], dict[str, str]]:
        """Of the process that builds or serves: the command and its environment."""
        kind, options = parse(self.name)
        python = str(environment(self.work)) if kind == "fast-plaid" else sys.executable
        threads = {f"{what}_NUM_THREADS": "1" for what in ("OMP", "MKL", "RAYON", "OPENBLAS")}
        arguments = [work, kind, json.dumps(options), str(self.vectors), str(self.passages), str(self.place)]
        return [python, str(WORKER), *arguments], {**os.environ, **threads}

    def build(self) -> None:
        """Build, unless that is done, and keep what it took."""
        if "build" in self.known or self.failed:
            return
        subprocess.run(["rm", "-rf", str(self.place)], check=True)
        command, environ = self.command("build")
        anonymous, over = 0, False
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
        while process.poll() is None and not over:
            anonymous, over = max(anonymous, _anonymous(process.pid)), _cpu_seconds(process.pid) > SECONDS
            time.sleep(0.05)
        if over:
            process.kill()
            self.known["failed"] = f"not built within {SECONDS} s of CPU"
        elif process.returncode:
            raise SystemExit(f"{self.name}, {self.passages} passages: building ended with {process.returncode}")
        else:
            told = json.loads(process.stdout.read().splitlines()[-1]) if process.stdout else {}
            self.known["build"] = {**told, "anonymous": anonymous, **self._sizes()}
        process.wait()
        self.save()
        print(f"{self.name}, {self.passages:,} passages: {self.failed or self.known['build']}", flush=True)

    def _sizes(self) -> dict[str, int]:
        """Bytes of the index, and of the token vectors that it reads besides for rescoring."""
        kind = parse(self.name)[0]
        folder = next(self.place.glob("segments/*/index")) if kind == "ours" else self.place
        sizes = {path.name: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        values = sizes.pop("values.npy", 0) if "plaid" in self.name else 0
        if kind == "muvera":
            values = int(TokenFolder(self.vectors, self.passages).values.nbytes)
        return {"index": sum(sizes.values()), "vectors": values}


class Serving:
    """The process of a contender that answers, and what it has still to be asked."""

    def __init__(self, measured: Measured, truth: Sequence[set[int]]) -> None:
        self.measured, self.truth = measured, truth
        command, environ = measured.command("serve")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )  # fmt: skip
        self.asked: dict[str, Any] = measured.known["asked"]
        self.settings = [json.dumps(setting) for setting in self._read()]

    def _read(self) -> Any:
        for line in self.process.stdout or ():
            if line.startswith("["):
                return json.loads(line)
        raise SystemExit(f"{self.measured.name} ended with {self.process.wait()}")

    def block(self, last: int) -> None:
        """Ask the questions before ``last`` in every setting, but for what has been answered."""
        for setting in self.settings:
            mine = self.asked.setdefault(setting, {"cpu": [], "wall": [], "recall": []})
            first = len(mine["cpu"])
            if first >= last:
                continue
            if self.process.stdin is None:
                raise RuntimeError("no pipe")
            self.process.stdin.write(f"[{setting}, {first}, {last}]\n")
            self.process.stdin.flush()
            answers = self._read()
            for number, (rows, cpu, wall) in enumerate(answers, first):
                mine["cpu"].append(cpu)
                mine["wall"].append(wall)
                mine["recall"].append(len(self.truth[number] & set(rows)) / K)
            self.measured.save()

    def close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def parse(name: str) -> tuple[str, dict[str, Any]]:
    """The kind of a contender and its options: ``fast-plaid(nbits=4)``, ``muvera(quantiser=PQ2560x4fs)``, or a specification."""
    found = re.fullmatch(r"(fast-plaid|muvera)\((\w+)=(\w+)\)", name)
    return ("ours", {"spec": name}) if found is None else (found[1], {found[2]: found[3]})


def environment(work: Path) -> Path:
    """The Python of fast-plaid's environment, which is made where there is none."""
    place = work / "fast-plaid"
    python = place / "bin" / "python"
    if not (place / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", FAST_PLAID], check=True)
        (place / "made").touch()
    return python


def exact(work: Path, vectors: Path, passages: int, questions: int) -> list[set[int]]:
    """The rows of the best ``K`` of each question by MaxSim over the float16 vectors, computed in float32 by numpy alone."""
    file = work / f"{passages}" / f"exact-{questions}.npy"
    if not file.exists():
        tokens = TokenFolder(vectors, passages)
        asked = tokens.questions[:questions]
        bounds = np.cumsum([0, *(len(question) for question in asked)])[:-1]
        wide = np.ascontiguousarray(np.concatenate(asked).T)
        scores = np.empty((passages, len(asked)), np.float32)
        for first in range(0, passages, 64):
            offsets = tokens.offsets[first : first + 65]
            similarities = tokens.values[offsets[0] : offsets[-1]].astype(np.float32) @ wide
            highest = np.maximum.reduceat(similarities, offsets[:-1] - offsets[0], axis=0)
            scores[first : first + 64] = np.add.reduceat(highest, bounds, axis=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.argsort(-scores, axis=0, kind="stable")[:K].T)
    return [set(rows) for rows in np.load(file).tolist()]


def compare(work: Path, vectors: Path, names: Sequence[str], passages: int, questions: int) -> None:
    truth = exact(work, vectors, passages, questions)
    measured = [Measured(work, vectors, name, passages) for name in names]
    for one in measured:
        one.build()
    serving = [Serving(one, truth) for one in measured if not one.failed]
    for turn in range(-(-questions // BLOCK)):
        shift = turn % max(1, len(serving))
        for contender in serving[shift:] + serving[:shift]:
            contender.block(min(questions, (turn + 1) * BLOCK))
    for contender in serving:
        contender.close()


# --- tables ---


def curve(one: Measured, asked: int) -> Iterator[tuple[str, float, Any]]:
    """Each setting over the first ``asked`` questions: recall, and milliseconds, of CPU mean, p50 and p99, of wall time p50."""
    for setting, answers in one.known["asked"].items():
        cpu, wall = 1e3 * np.array(answers["cpu"][:asked]), 1e3 * np.array(answers["wall"][:asked])
        if len(cpu):
            times = cpu.mean(), np.median(cpu), np.quantile(cpu, 0.99), np.median(wall)
            yield setting, float(np.mean(answers["recall"][:asked])), times


def best(one: Measured, asked: int) -> list[tuple[str, float, Any]]:
    """The settings that no other one of the contender beats in both recall and mean CPU time."""
    found: list[tuple[str, float, Any]] = []
    for setting, recall, times in sorted(curve(one, asked), key=lambda at: (at[2][0], -at[1])):
        if not found or recall > found[-1][1]:
            found.append((setting, recall, times))
    return found


def tables(work: Path, vectors: Path, ours: Sequence[str], peers: Sequence[str], passages: int) -> None:
    measured = [Measured(work, vectors, name, passages) for name in (*ours, *peers)]
    offsets = np.load(vectors / "off.npy")
    tokens = int(offsets[passages])
    # Those that everything was asked: a benchmark that was stopped has asked some more.
    asked = min((len(at["cpu"]) for one in measured for at in one.known["asked"].values()), default=0)
    print(f"\n### {passages:,} passages, {tokens:,} tokens, {asked} questions, one thread\n")
    print("| contender | build CPU s | wall s | most memory, MiB | bytes a token | besides, vectors to rescore |")
    print("| --- | --- | --- | --- | --- | --- |")
    for one in measured:
        if "build" in one.known:
            spent = one.known["build"]
            figures = f"{spent['cpu']:.0f} | {spent['wall']:.0f} | {spent['anonymous'] / MIB:.0f}"
            print(f"| {one.name} | {figures} | {spent['index'] / tokens:.1f} | {spent['vectors'] / tokens:.0f} |")
        elif one.failed:
            print(f"| {one.name} | {one.failed} | | | | |")
    print("\nThe settings that no other one of the same contender beats in both recall and CPU time:\n")
    print(
        "| contender | setting | recall@10 | CPU ms, mean | p50 | p99 | wall ms, p50 |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    for one in measured:
        for setting, recall, times in best(one, asked):
            told = ", ".join(f"{key} {value}" for key, value in json.loads(setting).items()) or "–"
            print(f"| {one.name} | {told} | {recall:.3f} | " + " | ".join(f"{time:.2f}" for time in times) + " |")
    for target in TARGETS:
        cheapest = {
            one.name: next((at for at in best(one, asked) if at[1] >= target), None)
            for one in measured
            if one.known["asked"]
        }
        mine = min(
            (at[2][0] for name, at in cheapest.items() if at and name in ours and name != "maxsim"), default=None
        )
        print(f"\nThe cheapest setting with recall@10 of {target} or more, to the cheapest of ours:\n")
        print("| contender | setting | recall@10 | CPU ms, mean | ratio |\n| --- | --- | --- | --- | --- |")
        for name, at in cheapest.items():
            if at is None:
                most = max(
                    (recall for one in measured if one.name == name for _, recall, _ in curve(one, asked)), default=0
                )
                print(f"| {name} | not reached | {most:.3f} at most | | |")
            else:
                ratio = f"{at[2][0] / mine:.1f}" if mine else ""
                print(f"| {name} | {at[0]} | {at[1]:.3f} | {at[2][0]:.2f} | {ratio} |")


# --- vectors ---


def make(folder: Path, model: Path, data: Path, passages: int, questions: int) -> None:
    """Encode the first passages and queries of a BEIR folder; see the head of this file."""
    from retrievers import load_encoder, read_documents, read_queries

    encoder: Any = load_encoder(str(model))
    if encoder.kind != "multi-vector":
        raise SystemExit(f"{model} holds a {encoder.kind} encoder, and a multi-vector one is wanted")
    folder.mkdir(parents=True, exist_ok=True)
    queries = next(path for path in (data / "queries.jsonl", data / "queries.jsonl.gz") if path.exists())
    asked = encoder.encode_query([query.text for query in islice(read_queries(str(queries)), questions)])
    np.savez(folder / "q.npz", values=asked.values, offsets=asked.offsets)
    offsets, documents = [0], islice(read_documents(data), passages)
    with (folder / "d.f16").open("wb") as file:
        while batch := [document.content for document in islice(documents, 2000)]:
            vectors = encoder.encode_document(batch)
            file.write(vectors.values.astype(np.float16).tobytes())
            offsets += (vectors.offsets[1:] + offsets[-1]).tolist()
            print(f"{len(offsets) - 1:,} passages, {offsets[-1]:,} tokens", flush=True)
    np.save(folder / "off.npy", np.array(offsets))


def _anonymous(process: int) -> int:
    """Bytes of memory of a process that are no mapped file; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def _cpu_seconds(process: int) -> float:
    """CPU seconds of a process, all of its threads; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--vectors", type=Path, required=True, help="the folder of token vectors, read, or made by --make"
    )
    parser.add_argument("--work", type=Path, help="where indexes and outcomes are kept")
    parser.add_argument(
        "--passages", type=int, nargs="+", default=[12_000, 110_000], help="the first so many; of --make the most"
    )
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument(
        "--ours", nargs="*", default=OURS, help="specifications; nprobe and candidates are tried where left open"
    )
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--tables", action="store_true", help="print what has been measured")
    parser.add_argument("--make", action="store_true", help="encode --data with --model")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    if given.make:
        if given.model is None or given.data is None:
            parser.error("--make needs --model and --data")
        make(given.vectors, given.model, given.data, max(given.passages), 1000)
        return
    if given.work is None:
        parser.error("--work is needed")
    print(describe("faiss-cpu", "torch"), f"; {FAST_PLAID}")
    for passages in given.passages:
        if not given.tables:
            compare(given.work, given.vectors, (*given.ours, *given.peers), passages, given.questions)
        tables(given.work, given.vectors, given.ours, given.peers, passages)


if __name__ == "__main__":
    main()
