"""What a generator wrote: reading queries out of it, what is refused, and what became of it, counted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retrievers.documents import Document
from retrievers.encoders import tokens
from retrievers.errors import GenerationError
from retrievers.retriever import Retriever
from retrievers.training.near_duplicates import NearTexts, normal_form
from retrievers.training.negatives import MiningReport
from retrievers.training.seeds import text_key

REASONS = ("empty", "short", "long", "copied", "seed", "evaluation", "lost", "repeated")

_SAID = {
    "empty": "empty",
    "short": "with too few words",
    "long": "with too many words",
    "copied": "that hold the whole passage",
    "seed": "near the query of a seed or demonstration",
    "evaluation": "near an evaluation query",
    "lost": "that do not find their passage",
    "repeated": "near another generated query",
}
_SHOWN = 2
_ASKED = 256  # queries that are searched for at once


@dataclass(frozen=True)
class Generated:
    """A query that was kept, the id of its document, the number of its seed, and the rank at which it finds the document."""

    query: str
    document: str
    seed: int
    rank: int


@dataclass(frozen=True)
class AugmentationReport:
    """What became of the seeds, and of what was written, at each step.

    ``seeds`` were given, of which ``leaking`` are near evaluation queries and were left out; ``targets`` are passages that a
    query was asked for, one each; ``dropped`` counts what was written by the first reason that fits, in the order of
    ``REASONS``, and ``examples`` are a few such texts; ``kept`` are in the training set. ``mining`` tells of the negatives,
    where some were asked for.
    """

    seeds: int
    leaking: int
    targets: int
    dropped: dict[str, int]
    kept: int
    examples: dict[str, tuple[str, ...]]
    mining: MiningReport | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.kept:,} queries of {self.targets:,} generated ones, for as many passages, beside those of "
            f"{self.seeds - self.leaking:,} seeds"
        ]
        if self.leaking:
            lines.append(f"left out {self.leaking:,} seeds near evaluation queries")
        for reason in REASONS:
            if self.dropped[reason]:
                shown = ", ".join(f"{text!r:.60}" for text in self.examples[reason])
                lines.append(f"dropped {self.dropped[reason]:,} {_SAID[reason]}: {shown}")
        if self.mining is not None:
            lines.append(str(self.mining))
        return "\n".join(lines)


class Dropped:
    """Counts what is refused, and keeps a few examples."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {reason: [] for reason in REASONS}
        self._counts = dict.fromkeys(REASONS, 0)

    def add(self, reason: str, text: str) -> None:
        """Count a text under one of ``REASONS``."""
        self._counts[reason] += 1
        if len(self._texts[reason]) < _SHOWN:
            self._texts[reason].append(text)

    def counts(self) -> dict[str, int]:
        """How many there are under each reason."""
        return dict(self._counts)

    def examples(self) -> dict[str, tuple[str, ...]]:
        """The first ones under each reason that has any."""
        return {reason: tuple(texts) for reason, texts in self._texts.items() if texts}


def check_texts(texts: Any, wanted: int, first: int) -> list[str]:
    """What a generator gave for prompts, the first of which has the number ``first``.

    Raises GenerationError for what is not a list of as many strings.
    """
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise GenerationError(
            f"the generator gave a {type(texts).__name__}, {texts!r:.80}, for {wanted} prompts: it must give a list of strings"
        )
    found = list(texts)
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise GenerationError(
                f"the generator gave a {type(text).__name__}, {text!r:.80}, for prompt {first + number}: it must give a string "
                "for each prompt"
            )
    if len(found) != wanted:
        raise GenerationError(
            f"the generator gave {len(found)} texts for {wanted} prompts, from prompt {first} on: it must give one for each"
        )
    return found


def first_line(text: str) -> str:
    """The first line of a text that is not blank, its white space made single spaces."""
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")


def fault(query: str, passage: str, words: tuple[int, int]) -> str | None:
    """Why a query is refused by its form, one of ``REASONS``; None where it is not."""
    if not query:
        return "empty"
    length = len(tokens.words(query))
    if length < words[0]:
        return "short"
    copied = normal_form(passage)
    if copied and copied in normal_form(query):
        return "copied"
    return "long" if length > words[1] else None


def repeated(texts: Sequence[str], near: float) -> set[int]:
    """The places of texts that are near an earlier one that stays."""
    forms = [normal_form(text) for text in texts]
    matches = NearTexts(forms, near).find(forms)
    out: set[int] = set()
    for one, other in sorted(zip(matches.asked.tolist(), matches.known.tolist(), strict=True)):
        if other < one and other not in out:
            out.add(one)
    return out


def ranks_of(judge: Retriever, pairs: Sequence[tuple[str, Document]], rank: int) -> list[int | None]:
    """The rank, from 1, at which each query finds its document or one of the same text; None where it is not found."""
    found: list[int | None] = []
    for first in range(0, len(pairs), _ASKED):
        some = pairs[first : first + _ASKED]
        for (_, target), hits in zip(some, judge.search([query for query, _ in some], rank), strict=True):
            places = (
                at
                for at, hit in enumerate(hits, 1)
                if hit.id == target.id or text_key(hit.document) == text_key(target)
            )
            found.append(next(places, None))
    return found
