"""How well the outputs of demonstrations predict the right one: labels by vote, texts by the words that they share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from retrievers.comparison_tables import aligned
from retrievers.significance import bootstrap_interval, paired_tests
from retrievers.training.answers import token_f1
from retrievers.training.near_duplicates import NearTexts

if TYPE_CHECKING:
    from retrievers.demonstrations import DemonstrationBank

_REPEATED = 2  # examples for each distinct output, from which on outputs are labels


def near_evaluation(bank: DemonstrationBank, inputs: Sequence[str]) -> int:
    """Mark the examples near an input as evaluation data; returns how many there are, those marked before included."""
    from retrievers.demonstrations.bank import NEAR

    known = NearTexts.of(inputs, NEAR).near([one.input for one in bank if one.evaluation])
    return len(known) + len(bank.mark_evaluation(inputs))


def compare(
    gold: Sequence[str], found: Mapping[str, Sequence[Sequence[str]]], outputs: Sequence[str], seed: int
) -> dict[str, Any]:
    """Measure the outputs of demonstrations, best first, that strategies selected for each test input.

    ``gold`` are the right outputs; ``outputs`` those of the bank, which tell whether they are labels. The first of the
    strategies is compared with ``random``. Returns a JSON object.
    """
    labels = len(outputs) >= _REPEATED * len(set(outputs))
    measures = LABELS if labels else TEXTS
    values = {
        name: {
            strategy: [measure(right, some) for right, some in zip(gold, selected, strict=True)]
            for strategy, selected in found.items()
        }
        for name, measure in measures.items()
    }
    strategy = next(iter(found))
    told: dict[str, Any] = {
        "outputs": "labels" if labels else "texts",
        "strategy": strategy,
        "inputs": len(gold),
        "without": sum(not selected for selected in found[strategy]),
        "measures": {},
    }
    for name, each in values.items():
        told["measures"][name] = {key: sum(some) / len(some) for key, some in each.items()}
        if strategy != "random":
            low, high = bootstrap_interval(each[strategy], each["random"], seed=seed)
            p = paired_tests(each[strategy], each["random"], seed=seed).randomisation
            told["measures"][name] |= {"interval": [low, high], "p": p}
    return told


def print_comparison(told: Mapping[str, Any], k: int) -> None:
    """Print what :func:`compare` found for people."""
    strategy = told["strategy"]
    head = [told["outputs"], *dict.fromkeys((strategy, "random"))]
    rows = [[*head, "difference", "p"] if strategy != "random" else head]
    for name, each in told["measures"].items():
        row = [name.replace("of k", f"of {k}"), *(f"{each[key]:.4f}" for key in head[1:])]
        if strategy != "random":
            low, high = each["interval"]
            row += [f"{each[strategy] - each['random']:+.4f} [{low:+.4f}, {high:+.4f}]", f"{each['p']:.4f}"]
        rows.append(row)
    for line in aligned(rows):
        typer.echo(line)
    if told["without"]:
        typer.echo(f"{told['without']:,} inputs have no demonstration, and count as wrong")


def majority(outputs: Sequence[str]) -> str | None:
    """The most frequent output, of equally frequent ones that of the best demonstration; None where there is none."""
    counts = Counter(outputs)  # in the order in which they come, which max keeps
    return max(counts, key=counts.__getitem__, default=None)


Measure = Callable[[str, Sequence[str]], float]

LABELS: dict[str, Measure] = {
    "majority of k": lambda right, outputs: float(majority(outputs) == right),
    "nearest": lambda right, outputs: float(outputs[:1] == [right]),
}
TEXTS: dict[str, Measure] = {
    "best F1 of k": lambda right, outputs: max((token_f1(text, right) for text in outputs), default=0.0),
    "nearest, F1": lambda right, outputs: token_f1(outputs[0], right) if outputs else 0.0,
}
