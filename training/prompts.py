"""Prompts that ask for the query of a passage: demonstrations, each a passage with its query, and then the passage."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from retrievers.documents import Document
from retrievers.errors import TrainingDataError

Pair = tuple[str, str]
"""A query and a passage that answers it."""

Generate = Callable[[list[str]], Sequence[str]]
"""Texts for prompts, one for each, in their order: a language model, say, or an ExtractiveGenerator."""


class QueryPrompt(str):
    """A prompt, which is a string, with what it was made of.

    ``target`` is the document that a query is wanted for, and ``demonstrations`` are pairs of a query and its passage, of
    which the last stands next to the target.
    """

    __slots__ = ("demonstrations", "target")

    demonstrations: tuple[Pair, ...]
    target: Document

    def __new__(cls, text: str, demonstrations: Sequence[Pair], target: Document) -> Self:
        prompt = super().__new__(cls, text)
        prompt.demonstrations, prompt.target = tuple(demonstrations), target
        return prompt


@dataclass(frozen=True)
class QueryTemplate:
    """How a prompt is written: each demonstration, and then the target, with ``between`` in between.

    ``{passage}`` and ``{query}`` stand for the texts; braces themselves are doubled. White space in passages becomes
    single spaces, and passages end after ``longest`` characters, at the end of a word. Raises TrainingDataError for a form
    that lacks one of its texts or has others.
    """

    demonstration: str = "Passage: {passage}\nQuery: {query}"
    target: str = "Passage: {passage}\nQuery:"
    between: str = "\n\n"
    longest: int = 1000

    def __post_init__(self) -> None:
        for name, form, wanted in (
            ("demonstration", self.demonstration, {"passage", "query"}),
            ("target", self.target, {"passage"}),
        ):
            try:
                found = {field for _, field, _, _ in string.Formatter().parse(form) if field is not None}
            except ValueError as error:
                raise TrainingDataError(
                    f"the template's {name} {form!r:.80} is not well formed ({error}): double the braces that stand for "
                    "themselves"
                ) from None
            if found != wanted:
                raise TrainingDataError(
                    f"the template's {name} {form!r:.80} must hold {_fields(wanted)}, and has {_fields(found) or 'neither'}"
                )
        if self.longest < 1:
            raise TrainingDataError(f"the template's longest is {self.longest}: give a number of characters, 1 or more")

    def prompt(self, demonstrations: Sequence[Pair], target: Document) -> QueryPrompt:
        """The prompt that asks for a query for ``target``."""
        parts = [
            self.demonstration.format(passage=self._cut(passage), query=" ".join(query.split()))
            for query, passage in demonstrations
        ]
        parts.append(self.target.format(passage=self._cut(target.content)))
        return QueryPrompt(self.between.join(parts), demonstrations, target)

    def _cut(self, passage: str) -> str:
        text = " ".join(passage.split())
        if len(text) <= self.longest:
            return text
        # Of a word that alone is longer, its beginning: the passage is not left empty.
        return text[: self.longest + 1].rpartition(" ")[0] or text[: self.longest]


def _fields(names: set[str]) -> str:
    return " and ".join(f"{{{name}}}" for name in sorted(names, reverse=True))
