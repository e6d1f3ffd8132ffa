"""Labelled examples: the values that a bank holds, and reading them from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrievers.documents import Document, Metadata
from retrievers.errors import DemonstrationError
from retrievers.json_values import shown
from retrievers.lines import Source, StrPath, numbered_lines
from retrievers.records import listing, parse_record


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An example of a task: an input and the output that is right for it.

    ``id`` is unique in a bank; ``output`` is a label or a text. ``metadata`` is a JSON object, which filters see under
    ``metadata.``. With ``evaluation`` the example is evaluation data: a bank keeps it and never selects it.
    """

    id: str
    task: str
    input: str
    output: str
    metadata: Metadata = field(default_factory=dict)
    evaluation: bool = False


@dataclass(frozen=True, slots=True)
class Selected:
    """A demonstration that was selected: ``score`` is its score in the index, 0 where chance selected it."""

    demonstration: Demonstration
    score: float


def read_demonstrations(
    path: StrPath,
    *,
    task: str | None = None,
    id: str = "id",
    input: str = "input",
    output: str = "output",
    evaluation: bool = False,
) -> Iterator[Demonstration]:
    """The examples of a file with one JSON object a line (``.jsonl``, also with ``.gz``), one after the other.

    ``id``, ``input`` and ``output`` name fields; ``task`` is the task of those that have no field ``task``. A line without
    an id gets one, the task and the number of the line: ``banking77/17``. Integers count as their digits. ``evaluation``
    marks all of them as evaluation data; otherwise a field ``evaluation`` does. Members of a field ``metadata`` and all other
    fields are metadata.

    Raises SourceNotFoundError, DocumentError for lines that are no JSON objects, and DemonstrationError, naming file, line
    and field, for what is no example.
    """
    source = Source.at(path)
    return _read(source, task, {"id": id, "input": input, "output": output}, evaluation)


def _read(source: Source, task: str | None, names: Mapping[str, str], evaluation: bool) -> Iterator[Demonstration]:
    for number, line in numbered_lines(source):
        if line.strip():
            place = source.line(number)
            record = parse_record(line, place)
            id = record.pop(names["id"], None)
            input = _text(record.pop(names["input"], None), names["input"], place, record)
            output = _text(record.pop(names["output"], None), names["output"], place, record)
            named = record.pop("task", task)
            if named is None:
                raise DemonstrationError(
                    f"{place}: field 'task' is missing: name the task of the whole file (task=...)"
                )
            named = _text(named, "task", place, record)
            mark = record.pop("evaluation", False)
            if not isinstance(mark, bool):
                raise DemonstrationError(f"{place}: field 'evaluation' must be true or false, got {shown(mark)}")
            key = f"{named}/{number}" if id is None else _text(id, names["id"], place, record)
            inner = record.pop("metadata", {})
            if not isinstance(inner, dict):
                raise DemonstrationError(f"{place}: field 'metadata' must be an object, got {shown(inner)}")
            yield Demonstration(key, named, input, output, {**inner, **record}, evaluation or mark)


def _text(value: object, name: str, place: str, record: Mapping[str, Any]) -> str:
    if type(value) is int:
        return str(value)
    if value is None:
        raise DemonstrationError(f"{place}: field {name!r} is missing; besides, the line has {listing(sorted(record))}")
    if not isinstance(value, str):
        raise DemonstrationError(f"{place}: field {name!r} must be a string or an integer, got {shown(value)}")
    return value


def as_document(value: object, place: str) -> Document:
    """The document that stands for an example in an index; only its input is text. Raises DemonstrationError."""
    if not isinstance(value, Demonstration):
        raise DemonstrationError(f"{place}: expected a Demonstration, got {shown(value)}")
    for name in ("id", "task", "input", "output"):
        if not isinstance(getattr(value, name), str):
            raise DemonstrationError(f"{place}: {name} must be a string, got {shown(getattr(value, name))}")
    if not value.task:
        raise DemonstrationError(f"{place}: the task is empty: give the task a name")
    if not isinstance(value.evaluation, bool):
        raise DemonstrationError(f"{place}: evaluation must be true or false, got {shown(value.evaluation)}")
    if not isinstance(value.metadata, Mapping):
        raise DemonstrationError(f"{place}: metadata must be a dict, got {shown(value.metadata)}")
    inner = {"metadata": dict(value.metadata)} if value.metadata else {}
    return Document(
        value.id,
        value.input,
        metadata={"task": value.task, "output": value.output, "evaluation": value.evaluation, **inner},
    )


def from_document(document: Document) -> Demonstration:
    """The example that :func:`as_document` made a document of. Raises DemonstrationError for another document."""
    known = document.metadata
    task, output, mark = (known.get(name) for name in ("task", "output", "evaluation"))
    inner = known.get("metadata", {})
    if isinstance(task, str) and isinstance(output, str) and isinstance(mark, bool) and isinstance(inner, dict):
        return Demonstration(document.id, task, document.text, output, inner, mark)
    raise DemonstrationError(
        f"document {document.id!r} is no demonstration (it lacks a task, an output or the mark of evaluation data): "
        "open a folder that DemonstrationBank.build wrote"
    )
