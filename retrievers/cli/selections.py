"""Printing demonstrations that were selected for an input: as a table, as lines, and as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrievers.cli.snippets import printable

if TYPE_CHECKING:
    from retrievers.demonstrations import Selected


def print_json(text: str, selected: Sequence[Selected]) -> None:
    """One JSON object a line."""
    shown = [
        {
            "id": one.demonstration.id,
            "task": one.demonstration.task,
            "score": one.score,
            "input": one.demonstration.input,
            "output": one.demonstration.output,
            "metadata": dict(one.demonstration.metadata),
        }
        for one in selected
    ]
    print(json.dumps({"input": text, "demonstrations": shown}, ensure_ascii=False))


def print_lines(selected: Sequence[Selected]) -> None:
    """A line for each: rank, score, id, task, input and output, apart by tabs."""
    for rank, one in enumerate(selected, 1):
        shown = one.demonstration
        parts = [str(rank), f"{one.score:.4f}", shown.id, shown.task, shown.input, shown.output]
        print("\t".join(map(printable, parts)))


def print_table(text: str, selected: Sequence[Selected]) -> None:
    """A table, for a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(printable(text)), title_justify="left", title_style="bold", show_lines=False)
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    for name in ("task", "input", "output"):
        table.add_column(name, overflow="fold")
    for rank, one in enumerate(selected, 1):
        shown = one.demonstration
        cells = [str(rank), f"{one.score:.4f}", shown.task, shown.input, shown.output]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console(highlight=False).print(table)
