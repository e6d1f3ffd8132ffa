"""What a SOURCE on the command line stands for: a reader of documents, and how many there are where that is cheap."""

from __future__ import annotations

import gzip
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from retrievers.lines import STANDARD_INPUT, Source, read_lines
from retrievers.readers import TEXT_PATTERNS, DocumentReader, read_csv, read_documents, read_jsonl
from retrievers.records import Fields, chosen, parse_record
from retrievers.text_folders import text_files

if TYPE_CHECKING:
    from retrievers.documents import Document

_PATIENCE = 2.0  # seconds that counting may take


def documents(
    source: str,
    id_field: str | None,
    text_field: str | None,
    title_field: str | None,
    metadata: Sequence[str] | None,
    delimiter: str | None,
) -> DocumentReader:
    """The reader of ``source``; ``"-"`` is JSON lines on standard input, which can be read once.

    Raises SourceNotFoundError, SourceError; typer.BadParameter where fields or a delimiter are named that do not apply.
    """
    names = {"id": id_field, "text": text_field, "title": title_field}
    fields = {key: name for key, name in names.items() if name is not None}
    picked = list(metadata) if metadata else None
    if source == STANDARD_INPUT:
        wanted = chosen(names["id"] or "id", names["text"] or "text", names["title"] or "title", picked)
        return DocumentReader("standard input", lambda: _standard_input(wanted))
    if not fields and picked is None and delimiter is None:
        return read_documents(source)
    found = Source.at(source)
    if found.path.is_dir():
        raise typer.BadParameter(f"{source} is a folder: fields are for JSONL, CSV and TSV files", param_hint="SOURCE")
    if found.extension == ".jsonl":
        if delimiter is not None:
            raise typer.BadParameter("JSON lines have no delimiter", param_hint="--delimiter")
        return read_jsonl(source, **fields, metadata=picked)
    return read_csv(source, **fields, metadata=picked, delimiter=delimiter)


def count_documents(source: str) -> int | None:
    """How many documents there are, where that takes at most two seconds to find out; None otherwise."""
    if source == STANDARD_INPUT:
        return None
    path = Path(source)
    if path.is_dir():
        corpora = [path / "corpus.jsonl", path / "corpus.jsonl.gz"]
        corpus = next((file for file in corpora if file.is_file()), None)
        if corpus is None:
            return _count(text_files(path, TEXT_PATTERNS))
        path = corpus
    # A record of a table may have several lines: only reading it tells.
    return _count_lines(path) if Source(source, path).extension == ".jsonl" else None


def _count_lines(path: Path) -> int | None:
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            return _count(line for line in file if not line.isspace())
    except (OSError, EOFError, zlib.error):
        return None  # whoever reads the documents says what is wrong


def _count(things: Iterator[object]) -> int | None:
    deadline = time.monotonic() + _PATIENCE
    number = 0
    for number, _ in enumerate(things, 1):
        if not number % 1000 and time.monotonic() > deadline:
            return None
    return number


def _standard_input(fields: Fields) -> Iterator[tuple[str, Document]]:
    for place, line in read_lines(STANDARD_INPUT):
        yield place, fields.document(parse_record(line, place), place)
