"""What demonstrations add to meta-training: small T5 models on held-out tasks, with demonstrations and without.

Tasks are the labels of banking77 and clinc150 in groups (7 and 10 labels each, drawn once), snips, the coarse classes of
trec-questions, nl2bash and text-to-sql; labels are written as text. A T5 from a configuration, of random weights, is
meta-trained on most of them, then tuned on a few examples of each class of a held-out task, of which also its
demonstrations come, and generates the labels of test questions. Both arms have the same model, examples, steps and seeds;
the one without has one row an example, with demonstrations there are k. What is compared beside them: the label of the
nearest demonstration by bm25, which a model that only copies would give.

Run: RETRIEVERS_SHARED=... python benchmarks/demonstrations_meta.py [--seeds 0 1 2] [--steps 800] [--k 0 3]
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beir import pool
from machine import describe

from retrievers import Demonstration, DemonstrationBank
from retrievers.training import Joiner, MetaTrainer, Schedule
from retrievers.training.answers import exact_match

Examples = list[Demonstration]
#: Test questions of a held-out task, and examples of a class that meta-training has.
TESTED, PER_CLASS = 100, 40
MAX_LENGTH, MAX_ANSWER = 128, 24
VOCABULARY = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800, help="steps of meta-training, of 16 examples each")
    parser.add_argument("--tuning", type=int, default=40, help="steps of tuning, of 16 examples each")
    parser.add_argument("--k", type=int, nargs="+", default=[0, 3], help="demonstrations of an input, of each arm")
    parser.add_argument("--shots", type=int, default=5, help="examples of each class of a held-out task")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    meta, held_out = _tasks()
    tokenizer = _tokenizer([one for some in meta.values() for one in some])
    meta = {name: _short(tokenizer, some) for name, some in meta.items()}
    print(describe("torch", "transformers"))
    print(f"{given}; {len(meta)} tasks of {sum(map(len, meta.values())):,} examples", flush=True)
    rows: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        memory = DemonstrationBank.build(Path(folder) / "meta", [one for some in meta.values() for one in some])
        for seed in given.seeds:
            few = {name: _few(train, given.shots, seed) for name, (train, _) in held_out.items()}
            shots = DemonstrationBank.build(
                Path(folder) / f"few-{seed}", [one for some in few.values() for one in some]
            )
            for name, (_, test) in held_out.items():
                rows.setdefault((name, "nearest label"), []).append(_nearest(shots, test, name))
            for k in given.k:
                arm = f"with {k}" if k else "without"
                trainer = _trainer(tokenizer, memory, k, seed, given.width)
                start = time.process_time()
                run = trainer.meta_train(meta, Schedule(given.steps, 16, rate=given.rate), exponent=0.5)
                last = statistics.fmean(run.losses[-50:])
                print(
                    f"seed {seed}, {arm}: {time.process_time() - start:.0f} s of processor time, loss {run.losses[0]:.2f} to "
                    f"{last:.2f}; {run.cuts}",
                    flush=True,
                )
                weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
                trainer.bank = shots
                for name, (_, test) in held_out.items():
                    trainer.model.load_state_dict(weights)
                    for moment in ("untuned", "tuned"):
                        if moment == "tuned":
                            trainer.tune(few[name], Schedule(given.tuning, 16, rate=given.rate / 2))
                        scores = trainer.evaluate(test, batch=50)
                        rows.setdefault((name, f"{arm}, {moment}"), []).append(scores.exact_match)
                        rows.setdefault((name, f"{arm}, {moment}, F1"), []).append(scores.token_f1)
                        if k:
                            copied = _copied(shots, test, scores.answers)
                            rows.setdefault((name, f"{arm}, {moment}, as nearest"), []).append(copied)
            shots.close()
            _table(rows, list(held_out))
        memory.close()


def _trainer(tokenizer: Any, bank: DemonstrationBank, k: int, seed: int, width: int) -> MetaTrainer:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    start = tokenizer.pad_token_id
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=width // 4,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.1,
            pad_token_id=start,
            decoder_start_token_id=start,
            eos_token_id=tokenizer.sep_token_id,
        )
    )
    return MetaTrainer(
        model, tokenizer, bank, k=k, own_task=True, max_length=MAX_LENGTH, max_answer=MAX_ANSWER, overlong="cut", seed=seed
    )  # fmt: skip


def _tasks() -> tuple[dict[str, Examples], dict[str, tuple[Examples, Examples]]]:
    """The tasks of meta-training, and those held out with their test questions."""
    meta: dict[str, Examples] = {}
    held_out: dict[str, tuple[Examples, Examples]] = {}
    for name, size, kept in (("banking77", 7, 2), ("clinc150", 10, 2)):
        train, test = _read(name, "train", "label"), _read(name, "test", "label")
        labels = sorted({one.output for one in train} - {"oos"})
        np.random.default_rng(0).shuffle(labels)
        groups = [labels[first : first + size] for first in range(0, len(labels), size)]
        for number, group in enumerate(groups):
            task = f"{name}-{number}"
            some = _of_labels(train, group, task)
            if number < kept:
                held_out[task] = some, _drawn(_of_labels(test, group, task))
            else:
                meta[task] = _few(some, PER_CLASS, 0)
    for name in ("snips", "trec-questions"):
        train, test = _read(name, "train", "label"), _read(name, "test", "label")
        labels = sorted({one.output for one in train})
        held_out[name] = _of_labels(train, labels, name), _drawn(_of_labels(test, labels, name))
    for name in ("nl2bash", "text-to-sql"):
        meta[name] = _drawn(_read(name, "train", "target"), 2000)
    return meta, held_out


def _read(name: str, split: str, output: str) -> Examples:
    return [replace(one, id=f"{split}/{one.id}", metadata={}) for one in pool(name, split, output)]


#: The coarse classes of trec-questions, in words.
_CLASSES = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "person",
    "LOC": "place",
    "NUM": "number",
}


def _of_labels(examples: Examples, labels: Sequence[str], task: str) -> Examples:
    return [replace(one, task=task, output=_words(one.output)) for one in examples if one.output in labels]


def _words(label: str) -> str:
    """A label as text: ``card_arrival`` and ``PlayMusic`` as words."""
    known = _CLASSES.get(label, label)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", known).replace("_", " ").lower()


def _drawn(examples: Examples, count: int = TESTED) -> Examples:
    places = np.random.default_rng(0).permutation(len(examples))[:count]
    return [examples[place] for place in sorted(places.tolist())]


def _few(examples: Examples, each: int, seed: int) -> Examples:
    """So many examples of each label."""
    met: Counter[str] = Counter()
    found = []
    for place in np.random.default_rng(seed).permutation(len(examples)).tolist():
        met[examples[place].output] += 1
        if met[examples[place].output] <= each:
            found.append(examples[place])
    return found


def _short(tokenizer: Any, examples: Examples) -> Examples:
    """Those whose outputs are short enough."""
    joiner = Joiner(tokenizer, causal=False, max_answer=1000)
    answers = joiner.answers(examples)
    return [one for one, ids in zip(examples, answers, strict=True) if len(ids) <= MAX_ANSWER]


def _tokenizer(examples: Examples) -> Any:
    """WordPiece, trained on the texts of meta-training; the trainer breaks ties by chance, so that runs differ a little."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast

    wordpiece = BertWordPieceTokenizer()
    texts = [f"question: {one.input} answer: {one.output} context:" for one in examples]
    wordpiece.train_from_iterator(texts, vocab_size=VOCABULARY, show_progress=False)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=wordpiece._tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )


def _nearest_labels(bank: DemonstrationBank, test: Examples) -> list[str]:
    """The label of the nearest demonstration of each, empty where none shares a word with it."""
    found = bank.select(test, 1, tasks=test[0].task)
    return [some[0].demonstration.output if some else "" for some in found]


def _nearest(bank: DemonstrationBank, test: Examples, task: str) -> float:
    labels = _nearest_labels(bank, test)
    return statistics.fmean(exact_match(label, one.output) for label, one in zip(labels, test, strict=True))


def _copied(bank: DemonstrationBank, test: Examples, answers: list[str]) -> float:
    """The share of answers that are the label of the nearest demonstration."""
    return statistics.fmean(map(exact_match, answers, _nearest_labels(bank, test)))


def _table(rows: dict[tuple[str, str], list[float]], tasks: list[str]) -> None:
    names = list(dict.fromkeys(name for _, name in rows))
    count = len(next(iter(rows.values())))
    print(
        f"\nexact match (F1 where it says so), mean of {count} seeds; the mean of tasks with the deviation over seeds"
    )
    print("| | " + " | ".join(tasks) + " | mean |\n|---|" + "---|" * (len(tasks) + 1))
    for name in names:
        values = [rows[task, name] for task in tasks]
        means = [statistics.fmean(some) for some in zip(*values, strict=True)]
        spread = f" ± {statistics.stdev(means):.3f}" if len(means) > 1 else ""
        cells = [f"{statistics.fmean(some):.3f}" for some in values]
        print(f"| {name} | " + " | ".join(cells) + f" | {statistics.fmean(means):.3f}{spread} |", flush=True)


if __name__ == "__main__":
    main()
