"""Lines of text from a file or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from retrievers.errors import DocumentError
from retrievers.lines import Source, numbered_lines

STANDARD_INPUT = "-"


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without their ends, each with its place (``q.tsv, line 17``).

    ``source`` is a path (``.gz`` is unpacked) or ``"-"``. Raises DocumentError for what is not UTF-8 or is cut,
    SourceNotFoundError, SourceError for a folder.
    """
    for place, line in _standard_input() if source == STANDARD_INPUT else _file(source):
        if line.strip():
            yield place, line.rstrip("\r\n")


def _file(path: str) -> Iterator[tuple[str, str]]:
    source = Source.at(path)
    for number, line in numbered_lines(source):
        yield source.line(number), line


def _standard_input() -> Iterator[tuple[str, str]]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        place = f"standard input, line {number}"
        try:
            yield place, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{place}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8: convert it"
            ) from None
