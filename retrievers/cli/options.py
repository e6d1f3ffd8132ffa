"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

Index = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.", show_default=False)]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A BEIR folder, a .jsonl(.gz), .csv or .tsv file, a folder of .txt and .md files, "
        "or - for JSONL on standard input.",
        show_default=False,
    ),
]
IdField = Annotated[str | None, typer.Option(metavar="NAME", help="The field or column of the id.")]
TextField = Annotated[str | None, typer.Option(metavar="NAME", help="The field or column of the text.")]
TitleField = Annotated[str | None, typer.Option(metavar="NAME", help="The field or column of the title.")]
MetadataField = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="A field or column to keep for filters; repeat it for more.")
]
Delimiter = Annotated[str | None, typer.Option(metavar="CHAR", help="What separates the columns of a CSV file.")]
Memory = Annotated[
    str, typer.Option(metavar="SIZE", help="What documents and vectors may take at once: 512MiB, 2GiB, 2GB or bytes.")
]
Device = Annotated[str | None, typer.Option(metavar="NAME", help="Where a model runs: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[str | None, typer.Option(metavar="NAME", help="The model's numbers: float32, bf16, fp16 or int8.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Texts that a model encodes at once.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processes that encode documents, 1 by default; a model is copied."),
]
Language = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The texts' language, such as de_DE, for a model with an adapter for each."),
]
QueryLanguage = Annotated[
    str | None, typer.Option(metavar="NAME", help="The language of queries, where it is another than the documents'.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

DEFAULT_MEMORY = "2GiB"

_LEAST_MEMORY = 16 << 20
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?\s*\Z", re.IGNORECASE)
_POWERS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_memory(text: str) -> int:
    """A number of bytes: ``512MiB`` (binary), ``2GB`` (decimal) or plain bytes."""
    match = _SIZE.match(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size: write 512MiB, 2GiB, 2GB or a number of bytes")
    number, unit, binary = match.groups()
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()]) if unit else int(float(number))
    if size < _LEAST_MEMORY:
        raise typer.BadParameter(f"{text!r} is too small: give at least 16MiB")
    return size


def print_size(size: float) -> str:
    """A number of bytes in words: ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, thing: str = "document") -> str:
    """A number of things in words: ``1 document``, ``2,000 documents``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def folder_size(folder: Path) -> int:
    """The bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def print_json(value: Any) -> None:
    """Print a JSON value over several lines."""
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
