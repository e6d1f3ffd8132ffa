"""Printing what a search found: for people, as JSON lines, and as a TREC run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from retrievers.cli.failures import complain
from retrievers.cli.snippets import printable, snippet, spans
from retrievers.queries import Query

if TYPE_CHECKING:
    from retrievers.documents import Hit
    from retrievers.explanations import Contribution

_PARTS = 12  # contributions that are shown to people
_INDENT = " " * 5


class Printer(Protocol):
    """Prints the hits of one query; ``parts`` are the contributions to each hit's score, where they were asked for."""

    def __call__(self, query: Query, hits: Sequence[Hit], parts: Sequence[Sequence[Contribution]] | None) -> None: ...


def print_json(query: Query, hits: Sequence[Hit], parts: Sequence[Sequence[Contribution]] | None) -> None:
    """One JSON object a line."""
    found: list[dict[str, Any]] = []
    for number, hit in enumerate(hits):
        document = hit.document
        value: dict[str, Any] = {"id": hit.id, "score": hit.score, "title": document.title, "text": document.text}
        value["metadata"] = document.metadata
        if parts is not None:
            value["contributions"] = [
                {"term": part.term, "match": part.match, "score": part.score} for part in parts[number]
            ]
        found.append(value)
    print(json.dumps({"id": query.id, "query": query.text, "hits": found}, ensure_ascii=False))


class TrecPrinter:
    """Lines of a TREC run: query id, ``Q0``, document id, rank, score, tag."""

    def __init__(self, tag: str) -> None:
        self._tag = tag

    def __call__(self, query: Query, hits: Sequence[Hit], parts: Sequence[Sequence[Contribution]] | None) -> None:
        from retrievers.runs import run_lines

        sys.stdout.write("".join(run_lines(query.id, [(hit.id, hit.score) for hit in hits], self._tag)))


class TextPrinter:
    """A few lines for each hit; on a terminal, the query's words stand out."""

    def __init__(self, *, headings: bool) -> None:
        self._headings = headings
        self._terminal = sys.stdout.isatty()
        self._width = min(max(shutil.get_terminal_size((100, 24)).columns, 40), 120)

    def __call__(self, query: Query, hits: Sequence[Hit], parts: Sequence[Sequence[Contribution]] | None) -> None:
        if self._headings:
            self._print(printable(f"{query.id}: {query.text}"), [], "bold underline")
        if not hits:
            sys.stdout.flush()
            complain(f"no document matches {query.text!r:.200}")
        for rank, hit in enumerate(hits, 1):
            head = f"{rank:>3}  {hit.score:.4f}  {printable(hit.id)}"
            title = printable(hit.document.title)
            shift = len(head) + 2
            found = [(shift + start, shift + end) for start, end in spans(title, query.text)]
            self._print(f"{head}  {title}" if title else head, found, "bold")
            body = snippet(hit.document.text, query.text, 2 * (self._width - len(_INDENT)) - 10)
            if body.text:
                self._wrap(body.text, body.spans)
            if parts is not None:
                self._explain(parts[rank - 1])
        if self._headings:
            print()

    def _wrap(self, text: str, found: Sequence[tuple[int, int]]) -> None:
        """The snippet on two lines."""
        room = self._width - len(_INDENT)
        at = len(text)
        if at > room:
            space = text.rfind(" ", room // 2, room)
            at = space if space >= 0 else room
        for start, end in ((0, at), (at, len(text))):
            line = text[start:end]
            shift = len(_INDENT) - start - (len(line) - len(line.lstrip()))
            if line.strip():
                mine = [(a + shift, b + shift) for a, b in found if start <= a and b <= end]
                self._print(_INDENT + line.strip(), mine, "")

    def _explain(self, parts: Sequence[Contribution]) -> None:
        for part in parts[:_PARTS]:
            meeting = part.term if part.term == part.match else f"{part.term} ~ {part.match}"
            self._print(f"{_INDENT}{part.score:+.4f}  {printable(meeting)}", [], "dim")
        if len(parts) > _PARTS:
            rest = sum(part.score for part in parts[_PARTS:])
            self._print(f"{_INDENT}{rest:+.4f}  ({len(parts) - _PARTS} more)", [], "dim")
        if not parts:
            self._print(f"{_INDENT}(a dense score has no parts)", [], "dim")

    def _print(self, line: str, found: Sequence[tuple[int, int]], style: str) -> None:
        if not self._terminal:
            print(line)
            return
        from rich.console import Console
        from rich.text import Text

        text = Text(line, style=style)
        for start, end in found:
            text.stylize("bold yellow", start, end)
        Console(highlight=False).print(text, soft_wrap=True)
