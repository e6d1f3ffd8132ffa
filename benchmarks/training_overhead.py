"""The time of a training step beside a bare PyTorch loop with the same model, batch and loss, in turns.

The bare loop tokenizes its texts, encodes them with the model, takes InfoNCE over the batch, and steps AdamW with clipped
gradients and a linear schedule, as anybody would write it. Training by the recipe "contrastive" does besides: draws that can be
gone on from, masks of known positives, the guard, logs. Medians of CPU time, which other work on the machine does
not change, over all steps of all rounds, the first of each left out.

Run: HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python benchmarks/training_overhead.py SET [--steps 60] [--rounds 3]
SET is a training set, such as the folder set/ that benchmarks/training.py makes.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import describe, package

from retrievers.training.models import starting_model
from retrievers.training.recipe import Model
from retrievers.training.run import train
from retrievers.training.sets import TrainingSet

BATCH, LEFT_OUT = 64, 10
LENGTHS = {"query_length": 32, "document_length": 96}


def ours(place: Path, steps: int) -> list[float]:
    """CPU seconds of each step of a recipe."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"model.start='{package('cognition')}'",
            f"data.set='{place}'",
            f"output='{folder}/run'",
            f"batches.size={BATCH}",
            f"optimiser.steps={steps}",
            *(f"model.{key}={value}" for key, value in LENGTHS.items()),
        ]
        train("contrastive", settings, device="cpu", report=lambda _: times.append(time.process_time()))
    return [after - before for before, after in itertools.pairwise(times)]


def bare(place: Path, steps: int) -> list[float]:
    """CPU seconds of each step of a plain loop."""
    found = TrainingSet.open(place)
    model = starting_model(Model(start=str(package("cognition")), **LENGTHS), [], device="cpu")
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    order = random.Random(0).sample(range(len(found)), steps * BATCH)
    times = [time.process_time()]
    for step in range(steps):
        rows = order[step * BATCH : (step + 1) * BATCH]
        queries = model.preprocess(found.queries.texts(rows), task="query")
        told = found.documents.texts([int(found.positives.of(row)[0]) for row in rows])
        documents = model.preprocess(told, task="document")
        one = model(queries, task="query")["sentence_embedding"]
        other = model(documents, task="document")["sentence_embedding"]
        loss = torch.nn.functional.cross_entropy(20 * one @ other.T, torch.arange(BATCH))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        times.append(time.process_time())
    return [after - before for before, after in itertools.pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(describe("sentence-transformers", "torch"), f"; {torch.get_num_threads()} threads")
    times: dict[str, list[float]] = {"bare": [], "recipe": []}
    for _ in range(arguments.rounds):
        for name, loop in (("bare", bare), ("recipe", ours)):
            times[name] += loop(arguments.set, arguments.steps)[LEFT_OUT:]
    medians = {name: statistics.median(mine) for name, mine in times.items()}
    for name, median in medians.items():
        print(f"{name}: {1e3 * median:.0f} ms of CPU a step, batch {BATCH}, median of {len(times[name])}")
    print(f"overhead {100 * (medians['recipe'] / medians['bare'] - 1):+.1f}%")


if __name__ == "__main__":
    main()
