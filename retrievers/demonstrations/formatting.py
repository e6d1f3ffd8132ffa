"""Demonstrations and an input as text for a model: in UnifiedQA's form, as chat messages, or by a template.

Source of the default form: Khashabi et al., "UnifiedQA" (Findings of EMNLP 2020), as Mueller et al. (2023) write
demonstrations: ``question: ... answer: ... context: ...``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, TypeVar

from retrievers.demonstrations.examples import Demonstration, Selected
from retrievers.errors import DemonstrationError
from retrievers.queries import check_count

FIELDS = ("input", "output", "task", "context")

Message = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Template:
    """How a demonstration and how the input are written; ``separator`` stands between them.

    Fields are ``{input}``, ``{task}``, ``{context}`` (of ``metadata``, empty where there is none), ``{metadata[name]}``,
    and in a demonstration ``{output}``; ``{{`` is a brace. Raises DemonstrationError for other fields, and for a
    demonstration without ``{output}``.
    """

    demonstration: str
    query: str
    separator: str = "\n"

    def __post_init__(self) -> None:
        for what, text, known in (("demonstration", self.demonstration, FIELDS), ("query", self.query, _ASKED)):
            for name in _names(what, text):
                if name.partition("[")[0] not in (*known, "metadata"):
                    raise DemonstrationError(
                        f"the template of the {what} has the field {name!r}; known are {', '.join(known)}, metadata[name]"
                    )
        if "output" not in _names("demonstration", self.demonstration):
            raise DemonstrationError(
                "the template of the demonstration lacks {output}: a model could not learn from it"
            )

    def write(self, one: Demonstration) -> str:
        """A demonstration as text. Raises DemonstrationError where it lacks a metadata field."""
        return self._fill(self.demonstration, one)

    def ask(self, one: Demonstration) -> str:
        """The input of an example as text, without its output."""
        return self._fill(self.query, one)

    def join(self, demonstrations: Sequence[Demonstration], one: Demonstration) -> str:
        """Demonstrations and the input, in this order."""
        return self.separator.join([*map(self.write, demonstrations), self.ask(one)])

    def _fill(self, text: str, one: Demonstration) -> str:
        context = one.metadata.get("context", "")
        values = {"input": one.input, "output": one.output, "task": one.task, "context": context}
        try:
            # Values are not looked at again, so that braces in them stay what they are.
            return text.format(**values, metadata=one.metadata).strip()
        except (LookupError, TypeError, AttributeError) as error:
            raise DemonstrationError(f"{_place(one)} lacks the metadata {error} of the template {text!r}") from None


@dataclass(frozen=True)
class _UnifiedQA(Template):
    """UnifiedQA's form, without ``context:`` where there is none."""

    def _fill(self, text: str, one: Demonstration) -> str:
        if not one.metadata.get("context"):
            text = text.removesuffix(_CONTEXT)
        return super()._fill(text, one)


@dataclass(frozen=True)
class Prompt:
    """What was written: ``text`` or chat ``messages``, by which demonstrations, and what the budget left out.

    ``tokens`` counts those of the whole; None where no tokenizer was given.
    """

    text: str
    messages: list[Message]
    kept: list[Selected]
    dropped: list[Selected]
    tokens: int | None


def write_prompt(
    input: str | Demonstration,
    selected: Sequence[Selected],
    *,
    template: Template | str = "unifiedqa",
    budget: int | None = None,
    tokenizer: Any = None,
) -> Prompt:
    """Demonstrations, in the order given, and then the input, as one text.

    ``template`` is ``"unifiedqa"`` or a :class:`Template`. With a ``budget`` of tokens whole demonstrations are dropped until
    the prompt fits, the farthest (lowest score; of equal ones, the one farther from the input) first. ``tokenizer`` counts:
    an object with ``encode(text)``, such as those of transformers, tokenizers and tiktoken, or any callable from a
    text to a number or a sequence of tokens.

    Raises DemonstrationError where the input alone does not fit, and for a budget without a tokenizer.
    """
    form = _template(template)
    asked = _example(input)
    length = _counter(tokenizer)

    def write(kept: Sequence[Selected]) -> tuple[str, int | None]:
        text = form.join([one.demonstration for one in kept], asked)
        return text, None if length is None else length(text)

    kept, dropped, (text, tokens) = _fit(selected, budget, length is not None, write)
    return Prompt(text, [{"role": "user", "content": text}], kept, dropped, tokens)


def write_chat(
    input: str | Demonstration,
    selected: Sequence[Selected],
    *,
    system: str | None = None,
    budget: int | None = None,
    tokenizer: Any = None,
) -> Prompt:
    """Demonstrations and the input as chat messages: an input is the user's, an output the assistant's.

    A ``context`` in the metadata follows its input after an empty line.
    ``system`` comes first, where it is given. ``budget`` and ``tokenizer`` are those of :func:`write_prompt`; a tokenizer with
    a chat template counts with what the template adds, any other the contents alone. Raises DemonstrationError.
    """
    asked = _example(input)
    length = _counter(tokenizer)
    templated = bool(getattr(tokenizer, "chat_template", None))

    def write(kept: Sequence[Selected]) -> tuple[list[Message], int | None]:
        messages = [] if system is None else [{"role": "system", "content": system}]
        for one in kept:
            messages.append({"role": "user", "content": _said(one.demonstration)})
            messages.append({"role": "assistant", "content": one.demonstration.output})
        messages.append({"role": "user", "content": _said(asked)})
        if length is None:
            return messages, None
        if templated:
            return messages, length(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return messages, sum(length(message["content"]) for message in messages)

    kept, dropped, (messages, tokens) = _fit(selected, budget, length is not None, write)
    return Prompt("\n".join(message["content"] for message in messages), messages, kept, dropped, tokens)


def _fit(
    selected: Sequence[Selected],
    budget: int | None,
    counted: bool,
    write: Callable[[Sequence[Selected]], tuple[T, int | None]],
) -> tuple[list[Selected], list[Selected], tuple[T, int | None]]:
    if budget is not None:
        check_count("budget", budget)
        if not counted:
            raise DemonstrationError(
                f"a budget of {budget} tokens needs a tokenizer that counts them: pass tokenizer=..."
            )
    kept = list(selected)
    dropped: list[Selected] = []
    while True:
        written = write(kept)
        if budget is None or written[1] is None or written[1] <= budget:
            return kept, dropped, written
        if not kept:
            raise DemonstrationError(
                f"the input alone takes {written[1]} tokens, and the budget is {budget}: raise it, or shorten the input"
            )
        farthest = min(range(len(kept)), key=lambda place: (kept[place].score, _remoteness(kept, place)))
        dropped.append(kept.pop(farthest))


def _remoteness(kept: Sequence[Selected], place: int) -> int:
    """Where a demonstration stands from its better end: of equal scores the last of a nearest-first order goes first."""
    descending = kept[0].score > kept[-1].score
    return -place if descending else place


def _template(value: Template | str) -> Template:
    if isinstance(value, Template):
        return value
    if value != "unifiedqa":
        raise DemonstrationError(f"template is {value!r}: it must be 'unifiedqa' or a Template(demonstration, query)")
    return UNIFIED_QA


def _example(input: str | Demonstration) -> Demonstration:
    if isinstance(input, Demonstration):
        return input
    if not isinstance(input, str):
        raise DemonstrationError(
            f"the input is a {type(input).__name__}, {input!r:.80}: give a string or a Demonstration"
        )
    return Demonstration("", "", input, "")


def _said(one: Demonstration) -> str:
    context = one.metadata.get("context")
    return f"{one.input}\n\n{context}" if context else one.input


def _place(one: Demonstration) -> str:
    return f"demonstration {one.id!r}" if one.id else "the input"


def _names(what: str, text: str) -> list[str]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise DemonstrationError(f"the template of the {what}, {text!r}, cannot be read: {error}") from None
    return [name for _, name, _, _ in parts if name is not None]


def _counter(tokenizer: Any) -> Callable[[str], int] | None:
    if tokenizer is None:
        return None
    encode = getattr(tokenizer, "encode", tokenizer)
    if not callable(encode):
        raise DemonstrationError(
            f"tokenizer is a {type(tokenizer).__name__}: it must have encode(text), or be callable with a text"
        )

    def count(text: str) -> int:
        found = encode(text)
        if isinstance(found, Mapping):  # a transformers tokenizer that was called
            found = found["input_ids"]
        return found if isinstance(found, int) else len(found)

    return count


_ASKED = ("input", "task", "context")
_CONTEXT = " context: {context}"
UNIFIED_QA: Template = _UnifiedQA(
    "question: {input} answer: {output}" + _CONTEXT, "question: {input} answer:" + _CONTEXT
)
"""``question: ... answer: ... context: ...``; the input has an empty answer, and no ``context:`` where it has none."""
