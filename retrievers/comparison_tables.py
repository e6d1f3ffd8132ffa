"""A comparison as tables: plain text of 120 columns for people, and rows of CSV."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from retrievers.comparison import Comparison, Difference
from retrievers.significance import TESTS

WIDTH = 120
"""The columns of the text."""

_NAME = 30  # columns of a name of a system


def text_table(comparison: Comparison) -> str:
    """The comparison for people: a table a measure, what searching costs, and the queries that differ most."""
    return "\n".join(_lines(comparison)) + "\n"


def csv_rows(comparison: Comparison) -> list[list[str]]:
    """A header, and a row for each measure and system, the baseline's with its mean alone. Numbers are in full."""
    rows = [
        ["measure", "system", "mean", "difference", "low", "high"]
        + [f"p_{test}" for test in TESTS]
        + [f"holm_{test}" for test in TESTS]
        + ["wins", "ties", "losses", "effect", "p50_ms", "bytes_per_document"]
    ]
    for measure, means in comparison.means.items():
        for system in comparison.systems:
            costs = [
                "" if v is None else repr(v) for v in (comparison.latency(system), comparison.document_bytes(system))
            ]
            one = _of(comparison, measure, system)
            told = [""] * 13 if one is None else _numbers(one)
            rows.append([measure, system, repr(means[system]), *told, *costs])
    return rows


def p_text(p: float) -> str:
    """A p-value in six characters."""
    return f"{p:.4f}" if p >= 0.0001 else "<.0001"


def plain(text: str, width: int | None = None) -> str:
    """A text on one line, without characters that a terminal would obey or a file cannot hold, cut to ``width``."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    return line if width is None or len(line) <= width else f"{line[: max(width - 3, 0)]}..."


def _lines(comparison: Comparison) -> Iterator[str]:
    yield (
        f"{comparison.queries:,} judged queries, baseline {_name(comparison.baseline)}; "
        f"p-values are Holm-corrected over {_counted(len(comparison.systems) - 1, 'system')}"
    )
    for measure, means in comparison.means.items():
        yield ""
        rows = [
            [_name(measure), "mean", "diff", "95% interval", "p random.", "p t", "p Wilcoxon", "win/tie/loss", "d_z"]
        ]
        for system in comparison.systems:
            one = _of(comparison, measure, system)
            told = ["baseline"] if one is None else _cells(one)
            rows.append([_name(system), f"{means[system]:.4f}", *told])
        yield from aligned(rows)
    costs = [(s, comparison.latency(s), comparison.document_bytes(s)) for s in comparison.systems]
    if any(latency is not None or size is not None for _, latency, size in costs):
        yield ""
        yield from aligned(
            [
                ["cost", "p50 ms", "bytes/document"],
                *([_name(s), "-" if t is None else f"{t:.2f}", "-" if b is None else f"{b:,.0f}"] for s, t, b in costs),
            ]
        )
    for system in comparison.systems[1:]:
        yield from _extremes(comparison, system)


def _extremes(comparison: Comparison, system: str) -> Iterator[str]:
    found = [one for one in comparison.extremes if one.system == system]
    if not found:
        return
    yield ""
    yield plain(f"queries on which {system} differs most from {comparison.baseline} ({comparison.measure})", WIDTH)
    for one in found:
        numbers = f"{one.value - one.baseline_value:+.4f} = {one.value:.4f} - {one.baseline_value:.4f}  "
        words = one.query if one.text is None else f"{one.query}: {one.text}"
        yield numbers + plain(words, WIDTH - len(numbers))
        for name, hits in ((system, one.hits), (comparison.baseline, one.baseline_hits)):
            yield f"    {plain(f'{_name(name)}: ' + (', '.join(hits) or '(nothing found)'), WIDTH - 4)}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines whose columns are aligned: the first to the left, all others, which are numbers, to the right."""
    columns = max(map(len, rows))
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    widths = [max(len(row[at]) for row in full) for at in range(columns)]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in full
    ]


def _of(comparison: Comparison, measure: str, system: str) -> Difference | None:
    """The difference of a system by a measure; None for the baseline."""
    return next((one for one in comparison.differences if (one.measure, one.system) == (measure, system)), None)


def _cells(one: Difference) -> list[str]:
    low, high = one.interval
    return [
        f"{one.difference:+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        *(p_text(getattr(one.corrected, test)) for test in TESTS),
        f"{one.wins}/{one.ties}/{one.losses}",
        f"{one.effect:+.2f}" if math.isfinite(one.effect) else f"{one.effect:+}",
    ]


def _numbers(one: Difference) -> list[str]:
    numbers: list[float] = [one.difference, *one.interval]
    numbers += [getattr(one.p, test) for test in TESTS] + [getattr(one.corrected, test) for test in TESTS]
    return [repr(number) for number in [*numbers, one.wins, one.ties, one.losses, one.effect]]


def _name(system: str) -> str:
    """A name that fits its column; the end of a long one, which tells paths apart."""
    line = plain(system)
    return line if len(line) <= _NAME else f"...{line[3 - _NAME :]}"


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
