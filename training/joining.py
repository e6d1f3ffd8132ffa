"""An input joined to a demonstration: the text, its tokens, and what has to be cut where they are too many."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

from retrievers.demonstrations import Demonstration, Selected
from retrievers.errors import TrainingDataError, TrainingError

Part = Literal["question", "answer", "context"]
Overlong = Literal["refuse", "cut"]
_WORD = re.compile(r"\S+")


class Form(Protocol):
    """How examples are written. What is to be cut is written anew: a text must not grow where its input shrinks."""

    def demonstration(self, example: Demonstration) -> str:
        """An example with its output."""
        ...

    def prompt(self, example: Demonstration, blank: str) -> str:
        """An example whose output is asked for, with ``blank`` in its place; a causal model goes on from the end of it."""
        ...


@dataclass(frozen=True)
class UnifiedQA:
    """``question: … answer: … context: …`` (Khashabi et al., 2020), the parts in this ``order``.

    The question is the input, and the context the string ``context`` in the metadata; without one the part is left out.
    """

    order: tuple[Part, ...] = ("question", "answer", "context")

    def demonstration(self, example: Demonstration) -> str:
        return self._text(example, example.output)

    def prompt(self, example: Demonstration, blank: str) -> str:
        return self._text(example, blank)

    def _text(self, example: Demonstration, answer: str) -> str:
        values = {"question": example.input, "answer": answer, "context": _context(example)}
        return " ".join(f"{part}: {values[part]}".rstrip() for part in self.order if part != "context" or values[part])


ANSWER_LAST = UnifiedQA(("question", "context", "answer"))
"""The form for causal models."""


@dataclass
class Cuts:
    """What was cut or left out for want of room, counted over everything that was joined: of an example that came in two
    epochs, twice."""

    examples: int = 0
    rows: int = 0
    demonstrations_cut: int = 0
    """Demonstrations whose context or input lost words; never their output."""
    demonstrations_dropped: int = 0
    """Demonstrations that had no room even so."""
    alone: int = 0
    """Examples that were left without any demonstration, because none was found (or asked for), or none had room."""
    inputs_cut: int = 0
    answers_cut: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in asdict(self).items())


class Joiner:
    """Writes an input with each of its demonstrations, one row for each, within a number of tokens.

    ``max_length`` bounds a row: the demonstration, the input, special tokens, and of causal models the answer, for which
    ``max_answer`` are set aside. Demonstrations are cut first, their context or else their input from its end, and
    dropped where they still do not fit. An input that is too long by itself, or an answer, raises TrainingDataError, or
    is cut and counted (``overlong="cut"``). ``cuts`` counts.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        causal: bool,
        form: Form | None = None,
        max_length: int = 512,
        max_answer: int = 64,
        overlong: Overlong = "refuse",
    ) -> None:
        if overlong not in ("refuse", "cut"):
            raise TrainingError(f"overlong is {overlong!r}: it is 'refuse' or 'cut'")
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        if end is None:
            raise TrainingError(
                "the tokenizer has neither an end-of-sequence nor a separator token to end answers with"
            )
        self.end: int = end
        self.pad: int = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.causal, self.overlong = causal, overlong
        self.max_answer = max_answer
        self.room = max_length - max_answer if causal else max_length
        self.cuts = Cuts()
        self._tokenizer = tokenizer
        self._form: Form = form or (ANSWER_LAST if causal else UnifiedQA())
        self._blank: str = "" if causal else tokenizer.mask_token or ""
        special = len(self._tokens([""])[0])
        if max_answer < 2 or self.room <= special:
            raise TrainingError(
                f"max_length {max_length} and max_answer {max_answer} leave no room: an answer has 2 tokens or more, and a row "
                f"{special} special ones" + (" besides the answer" if causal else "")
            )

    def join(self, examples: Sequence[tuple[Demonstration, Sequence[Selected]]]) -> list[list[tuple[list[int], float]]]:
        """The rows of each example: token ids, and the demonstration's score.

        An example without a demonstration, or with none that fits, has one row, the input alone, with the score 0.
        """
        texts = [
            self._with(one.demonstration, self._prompt(example)) for example, selected in examples for one in selected
        ]
        whole = iter(self._tokens(texts) if texts else [])
        found: list[list[tuple[list[int], float]]] = []
        for example, selected in examples:
            rows = []
            for one in selected:
                ids = next(whole)
                if len(ids) > self.room:
                    shorter = self._cut(one.demonstration, partial(self._with, prompt=self._prompt(example)))
                    self.cuts.demonstrations_cut += shorter is not None
                    self.cuts.demonstrations_dropped += shorter is None
                    if shorter is None:
                        continue
                    ids = shorter
                rows.append((ids, float(one.score)))
            if not rows:
                self.cuts.alone += 1
                rows.append((self._alone(example), 0.0))
            found.append(rows)
            self.cuts.examples += 1
            self.cuts.rows += len(rows)
        return found

    def answers(self, examples: Sequence[Demonstration]) -> list[list[int]]:
        """The tokens of the outputs, the end included, at most ``max_answer``."""
        # To a causal model an answer is a continuation, a word after a space.
        texts = [f" {one.output}" if self.causal else one.output for one in examples]
        found = self._tokenizer(texts, add_special_tokens=not self.causal, verbose=False)["input_ids"]
        answers = [ids if ids and ids[-1] == self.end else [*ids, self.end] for ids in found]
        for number, (one, ids) in enumerate(zip(examples, answers, strict=True)):
            if len(ids) > self.max_answer:
                self._refuse(one, "answer", len(ids), self.max_answer, "max_answer")
                self.cuts.answers_cut += 1
                answers[number] = ids[: self.max_answer]
        return answers

    def check(self, examples: Sequence[Demonstration]) -> None:
        """Raises TrainingDataError for the first input or answer that is too long, unless such are to be cut."""
        if self.overlong == "refuse":
            for first in range(0, len(examples), 1024):
                block = examples[first : first + 1024]
                for one, ids in zip(block, self._tokens([self._prompt(one) for one in block]), strict=True):
                    if len(ids) > self.room:
                        self._refuse(one, "input", len(ids), self.room, "max_length")
                self.answers(block)

    def _prompt(self, example: Demonstration) -> str:
        return self._form.prompt(example, self._blank)

    def _with(self, demonstration: Demonstration, prompt: str) -> str:
        return f"{self._form.demonstration(demonstration)} {prompt}"

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        found = self._tokenizer(texts, add_special_tokens=not self.causal, verbose=False)["input_ids"]
        start = self._tokenizer.bos_token_id
        if self.causal and start is not None:
            return [[start, *ids] for ids in found]
        return list(found)

    def _alone(self, example: Demonstration) -> list[int]:
        ids = self._tokens([self._prompt(example)])[0]
        if len(ids) <= self.room:
            return ids
        self._refuse(example, "input", len(ids), self.room, "max_length")
        self.cuts.inputs_cut += 1
        found = self._cut(example, self._prompt)
        if found is None:
            raise TrainingDataError(f"example {example.id!r}: not one word of the input fits into {self.room} tokens")
        return found

    def _cut(self, example: Demonstration, write: Callable[[Demonstration], str]) -> list[int] | None:
        """The most that fits of what is written of an example: a part of its context, or else, without it, of its input.

        None where not one word of the input fits.
        """
        for shorten, text, least in ((_with_context, _context(example), 0), (_with_input, example.input, 1)):
            most = len(_WORD.findall(text))
            found = None
            while least <= most:  # by halves: fewer words, fewer tokens
                words = (least + most) // 2
                ids = self._tokens([write(shorten(example, words))])[0]
                if len(ids) <= self.room:
                    found, least = ids, words + 1
                else:
                    most = words - 1
            if found is not None:
                return found
            example = _with_context(example, 0)
        return None

    def _refuse(self, example: Demonstration, what: str, length: int, most: int, setting: str) -> None:
        if self.overlong == "refuse":
            raise TrainingDataError(
                f"example {example.id!r} of task {example.task!r}: the {what} has {length:,} tokens, and there is room for "
                f"{most:,}: raise {setting}, leave the example out, or have it cut (overlong='cut')"
            )


def _context(example: Demonstration) -> str:
    found = example.metadata.get("context", "")
    return found if isinstance(found, str) else ""


def _with_context(example: Demonstration, words: int) -> Demonstration:
    """An example with so many words of its context."""
    return replace(example, metadata={**example.metadata, "context": _first(_context(example), words)})


def _with_input(example: Demonstration, words: int) -> Demonstration:
    return replace(example, input=_first(example.input, words))


def _first(text: str, words: int) -> str:
    """The first words of a text, the space between them as it was."""
    end = 0
    for number, match in enumerate(_WORD.finditer(text)):
        if number == words:
            break
        end = match.end()
    return text[:end]
