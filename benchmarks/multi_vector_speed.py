"""The plaid index beside fast-plaid and MUVERA: recall against CPU time, building and size, on vectors trained for MaxSim.

The vectors are float16 token vectors of real passages, and the questions asked of them, as the library's own model gives them
(``--model``: what ``benchmarks/training.py --kinds multi-vector`` leaves in its folder, runs/multi-vector-distilled-0/model);
they are encoded once. The truth is exact MaxSim over them. Every contender searches on one thread and is asked each question in
turn with the others, setting by setting; CPU time is that of its process. fast-plaid (own environment, made here) and MUVERA
(Dhulipala et al., 2024: 20 repetitions of 5 hyperplanes and 16 dimensions, passages centred; 4-bit product quantisation by
FAISS, the best rescored in bfloat16 by the library's kernel) are asked over a range of settings. What was built is kept.

Run: RETRIEVERS_SHARED=... OMP_NUM_THREADS=1 python benchmarks/multi_vector_speed.py --work FOLDER --model FOLDER
         [--passages 12000 110000] [--questions 200] [--contenders plaid(bits=2) ... maxsim muvera fast-plaid]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__)
CORPUS = "wiki"
OURS = ("plaid(bits=2)", "plaid(bits=4)", "plaid(bits=2, vectors=none)", "maxsim")
EFFORTS = (
    (8, 100),
    (16, 200),
    (16, 300),
    (16, 400),
    (32, 400),
    (32, 800),
    (64, 1600),
)  # lists a token, documents scored by codes
FAST_PLAID = ((4, 256), (8, 1024), (8, 4096), (16, 4096), (32, 8192))  # lists a token, documents scored in full
RESCORED = (200, 300, 500, 1000, 2000)
TARGETS = (0.95, 0.99)
K = 10


class Stored:
    """Token vectors on disk, float16 ``[tokens, dimension]``, of the first ``n`` passages; and questions, float32."""

    def __init__(self, work: Path, n: int) -> None:
        offsets = np.load(work / "offsets.npy")[: n + 1].astype(np.int64)
        with np.load(work / "queries.npz") as queries:  # each access reads an array anew
            asked, bounds = queries["values"], queries["offsets"]
        self.offsets = offsets
        self.dimension = int(asked.shape[1])
        self.values = np.memmap(work / "values.f16", np.float16, "r", shape=(int(offsets[-1]), self.dimension))
        self.questions = [asked[start:end] for start, end in pairwise(bounds)]


def encode(work: Path, model: Path, n: int) -> None:
    """Encode the first passages of the collection and its questions, unless that is done."""
    if (work / "offsets.npy").exists() and len(np.load(work / "offsets.npy")) > n:
        return
    from retrievers import load_encoder, read_documents, read_queries

    encoder: Any = load_encoder(str(model))
    folder = Path(os.environ["RETRIEVERS_SHARED"]) / "data" / CORPUS
    asked = encoder.encode_query([query.text for query in islice(read_queries(folder / "queries.jsonl.gz"), 1000)])
    np.savez(work / "queries.npz", values=asked.values, offsets=asked.offsets)
    offsets = [0]
    with (work / "values.f16").open("wb") as file:
        documents = islice(read_documents(folder), n)
        while batch := [document.text for document in islice(documents, 2000)]:
            vectors = encoder.encode_document(batch)
            file.write(vectors.values.astype(np.float16).tobytes())
            offsets += (vectors.offsets[1:] + offsets[-1]).tolist()
    np.save(work / "offsets.npy", np.array(offsets))


# --- contenders: each a process that builds, and answers questions ---


class Ours:
    """An index of the library, built by Retriever.build from an encoder that has the vectors at hand."""

    def __init__(self, spec: str, stored: Stored, place: Path) -> None:
        from retrievers import Document, Retriever

        class AtHand:
            kind, fingerprint = "multi-vector", "at hand"

            def encode_document(self, texts: Sequence[str]) -> Any:
                from retrievers.vectors import TokenVectors

                rows = [int(text) for text in texts]
                at = slice(stored.offsets[rows[0]], stored.offsets[rows[-1] + 1])
                offsets = stored.offsets[rows[0] : rows[-1] + 2] - stored.offsets[rows[0]]
                return TokenVectors(stored.values[at].astype(np.float32), offsets)

            encode_query = encode_document

        documents = (Document(f"{row:09}", str(row)) for row in range(len(stored.offsets) - 1))
        if not place.exists():
            Retriever.build(place, documents, encoder=AtHand(), index=spec, memory=2 << 30).close()
        with Retriever.open(place, encoder=AtHand()) as retriever:
            retriever.merge(memory=64 << 30)
        self.index = Retriever.open(place, encoder=AtHand())._snapshot.segments[0].index
        self.folder = place
        self.compressed = spec.startswith("plaid")
        self.none = "none" in spec

    def settings(self) -> list[list[int]]:
        return [list(effort) for effort in EFFORTS] if self.compressed else [[]]

    def bytes_of(self) -> int:
        kept = {"values.npy"} if self.compressed else set()  # on disk alone, for the rows that are scored by them
        return sum(
            path.stat().st_size for path in self.folder.rglob("index/*.npy") if path.name not in kept or self.none
        )

    def ask(self, setting: Sequence[int], question: Any) -> list[int]:
        from retrievers.vectors import TokenVectors

        if self.compressed:
            effort = {"nprobe": setting[0], "candidates": setting[1]}
            spec = type(self.index.spec)(self.index.spec.name, {**self.index.spec.parameters, **effort})
            self.index.spec = spec
        rows: list[int] = self.index.search(TokenVectors(question, np.array([0, len(question)])), K).rows[0].tolist()
        return rows


class Muvera:
    """Fixed-dimensional encodings, quantised; the best by these are scored in bfloat16."""

    def __init__(self, stored: Stored, place: Path) -> None:
        import faiss

        self.stored = stored
        rng = np.random.default_rng(0)
        self.planes = rng.standard_normal((20, stored.dimension, 5)).astype(np.float32)
        self.signs = (rng.integers(0, 2, (20, stored.dimension, 16)) * 2 - 1).astype(np.float32) / 4
        some = stored.values[: 1 << 16].astype(np.float32)
        self.centre = some.mean(axis=0)
        if not place.exists():
            index = faiss.index_factory(20 * 32 * 16, "PQ2560x4fs", faiss.METRIC_INNER_PRODUCT)
            n = len(stored.offsets) - 1
            first = self._documents(0, min(n, 4000))
            index.train(first)
            index.add(first)
            for start in range(4000, n, 4000):
                index.add(self._documents(start, min(n, start + 4000)))
            faiss.write_index(index, str(place))
        self.index = faiss.read_index(str(place))
        self.place = place

    def _encode(self, tokens: Any, owners: Any, n: int, mean: bool) -> Any:
        """Sums (or means, empty buckets filled by the nearest token) of tokens by bucket, projected: float32 [n, 10240]."""
        shifted = tokens - self.centre if mean else tokens  # centred, passages keep their order for a query that is not
        out = np.empty((n, 20, 32, 16), np.float32)
        hamming = np.array([[bin(a ^ b).count("1") for b in range(32)] for a in range(32)])
        for repetition in range(20):
            buckets = ((shifted @ self.planes[repetition] > 0) << np.arange(5)).sum(axis=1)
            projected = shifted @ self.signs[repetition]
            sums, counts = np.zeros((n * 32, 16), np.float32), np.bincount(owners * 32 + buckets, minlength=n * 32)
            np.add.at(sums, owners * 32 + buckets, projected)
            if mean:
                sums /= np.maximum(counts, 1)[:, None]
                for row, bucket in zip(*np.nonzero(counts.reshape(n, 32) == 0), strict=True):
                    at = slice(*np.searchsorted(owners, [row, row + 1]))
                    if at.stop > at.start:
                        sums[row * 32 + bucket] = projected[at][hamming[bucket, buckets[at]].argmin()]
            out[:, repetition] = sums.reshape(n, 32, 16)
        return out.reshape(n, -1)

    def _documents(self, first: int, last: int) -> Any:
        offsets = self.stored.offsets[first : last + 1]
        owners = np.repeat(np.arange(last - first), np.diff(offsets))
        return self._encode(self.stored.values[offsets[0] : offsets[-1]].astype(np.float32), owners, last - first, True)

    def settings(self) -> list[list[int]]:
        return [[count] for count in RESCORED]

    def bytes_of(self) -> int:
        return self.place.stat().st_size

    def ask(self, setting: Sequence[int], question: Any) -> list[int]:
        from retrievers.indexes import kernels, maxsim

        query = self._encode(question, np.zeros(len(question), np.int64), 1, False)
        rows = np.sort(self.index.search(query, setting[0])[1][0])
        rows = rows[rows >= 0]
        starts = self.stored.offsets[rows]
        scores = np.empty((len(rows), 1), np.float32)
        kernels.maxsim_scores(
            kernels.maxsim_level(), self.stored.dimension, self.stored.values, None, starts,
            self.stored.offsets[rows + 1] - starts, maxsim.as_panels(question), np.array([0, len(question)]), scores,
        )  # fmt: skip
        best: list[int] = rows[np.argsort(-scores[:, 0], kind="stable")[:K]].tolist()
        return best


class FastPlaid:
    """The package fast-plaid, at its defaults but for the efforts."""

    def __init__(self, stored: Stored, place: Path) -> None:
        import torch
        from fast_plaid import search

        torch.set_num_threads(1)
        self.torch = torch
        self.index = search.FastPlaid(index=str(place), device="cpu")
        if not (place / "metadata.json").exists():
            rows = zip(stored.offsets[:-1], stored.offsets[1:], strict=True)
            self.index.create([torch.from_numpy(stored.values[a:b].astype(np.float32)) for a, b in rows])
        self.place = place

    def settings(self) -> list[list[int]]:
        return [list(setting) for setting in FAST_PLAID]

    def bytes_of(self) -> int:
        return sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file())

    def ask(self, setting: Sequence[int], question: Any) -> list[int]:
        found = self.index.search(
            self.torch.from_numpy(question)[None], K, n_ivf_probe=setting[0], n_full_scores=setting[1], show_progress=False,
            n_processes=1,
        )  # fmt: skip
        return [row for row, _ in found[0]]


def serve(work: Path, name: str, n: int) -> None:
    """One contender: builds, then answers lines of [setting, question] by [rows, CPU seconds]."""
    stored = Stored(work, n)
    place = work / f"{n}-{''.join(c if c.isalnum() else '-' for c in name)}"
    told = place.with_name(f"{place.name}.json")
    wall, cpu = time.perf_counter(), time.process_time()
    contender: Any = {"muvera": Muvera, "fast-plaid": FastPlaid}.get(name, lambda *at: Ours(name, *at))(stored, place)
    if not told.exists():
        spent = {"build_cpu": time.process_time() - cpu, "build_wall": time.perf_counter() - wall}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        told.write_text(
            json.dumps({**spent, "peak_mib": peak, "bytes": contender.bytes_of() / int(stored.offsets[-1])})
        )
    print(json.dumps({**json.loads(told.read_text()), "settings": contender.settings()}), flush=True)
    for line in sys.stdin:
        setting, number = json.loads(line)
        before = time.process_time()
        rows = contender.ask(setting, stored.questions[number])
        print(json.dumps([rows, time.process_time() - before]), flush=True)


# --- the comparison ---


def start(work: Path, name: str, n: int) -> tuple[Callable[[Any, int], Any], dict[str, Any]]:
    """A contender in a process of its own: how to ask it, and what it tells of itself."""
    python = sys.executable
    if name == "fast-plaid":
        python = str(work / "fast-plaid" / "bin" / "python")
        if not Path(python).exists():
            subprocess.run([sys.executable, "-m", "venv", str(work / "fast-plaid")], check=True)
            # It pins a torch, whose wheels bring gigabytes of CUDA; with the CPU build of another version it crashes.
            subprocess.run([python, "-m", "pip", "install", "-q", "fast-plaid"], check=True)
    threads = {f"{what}_NUM_THREADS": "1" for what in ("OMP", "MKL", "RAYON", "OPENBLAS")}
    process = subprocess.Popen(
        [python, str(HERE), "--work", str(work), "--serve", name, str(n)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads},
    )  # fmt: skip
    lines = answers(process)
    told = next(lines)

    def ask(setting: Any, number: int) -> Any:
        if process.stdin is None:
            raise RuntimeError("no pipe")
        process.stdin.write(json.dumps([setting, number]) + "\n")
        process.stdin.flush()
        return next(lines)

    return ask, told


def answers(process: subprocess.Popen[str]) -> Iterator[Any]:
    for line in process.stdout or ():
        if line.startswith(("[", "{")):
            yield json.loads(line)
    raise SystemExit(f"a contender ended with {process.wait()}")


def compare(work: Path, names: Sequence[str], n: int, questions: int) -> None:
    truth_ask, _ = start(work, "maxsim", n)
    truth = [set(truth_ask([], number)[0]) for number in range(questions)]
    running = {name: start(work, name, n) for name in names}
    jobs = [(name, setting) for name, (_, told) in running.items() for setting in told["settings"]]
    times: dict[str, list[float]] = {json.dumps(job): [] for job in jobs}
    found: dict[str, list[float]] = {json.dumps(job): [] for job in jobs}
    for number in range(questions):
        for turn in range(len(jobs)):
            name, setting = jobs[(turn + number) % len(jobs)]
            rows, seconds = running[name][0](setting, number)
            times[json.dumps((name, setting))].append(seconds)
            found[json.dumps((name, setting))].append(len(truth[number] & set(rows)) / K)
    print(f"\n{n:,} passages, {questions} questions, one thread\n")
    print("| contender | setting | recall@10 | CPU ms, p50 | p99 |\n| --- | --- | --- | --- | --- |")
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, setting in jobs:
        mine = sorted(times[json.dumps((name, setting))])
        recall, p50 = float(np.mean(found[json.dumps((name, setting))])), 1e3 * mine[len(mine) // 2]
        curves.setdefault(name, []).append((recall, p50))
        print(f"| {name} | {setting} | {recall:.3f} | {p50:.2f} | {1e3 * mine[int(0.99 * len(mine))]:.2f} |")
    print(
        "\n| contender | build CPU s | wall s | peak MiB | bytes a token |" + "".join(f" ms at {t} |" for t in TARGETS)
    )
    print("| --- | --- | --- | --- | --- |" + " --- |" * len(TARGETS))
    for name, (_, told) in running.items():
        cheapest = [min((ms for recall, ms in curves[name] if recall >= t), default=None) for t in TARGETS]
        cells = [f"{told[key]:.0f}" for key in ("build_cpu", "build_wall", "peak_mib")] + [f"{told['bytes']:.1f}"]
        cells += ["not reached" if ms is None else f"{ms:.2f}" for ms in cheapest]
        print(f"| {name} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where vectors and indexes are kept")
    parser.add_argument("--model", type=Path, help="a multi-vector model of the library")
    parser.add_argument("--passages", type=int, nargs="+", default=[12_000, 110_000])
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--contenders", nargs="+", default=[*OURS, "muvera", "fast-plaid"])
    parser.add_argument("--serve", nargs=2, metavar=("NAME", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.work, arguments.serve[0], int(arguments.serve[1]))
        return
    from machine import describe

    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.model is not None:
        encode(arguments.work, arguments.model, max(arguments.passages))
    print(describe("faiss-cpu", "torch"))
    for n in arguments.passages:
        compare(arguments.work, arguments.contenders, n, arguments.questions)


if __name__ == "__main__":
    main()
