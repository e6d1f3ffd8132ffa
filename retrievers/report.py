"""A comparison as one HTML page that needs nothing else: tables, and plots as SVG inside it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from retrievers.comparison import Comparison, Difference
from retrievers.comparison_tables import p_text, plain
from retrievers.errors import MissingDependencyError
from retrievers.indexes.files import replace_file
from retrievers.significance import TESTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MANY = 2000  # points above which a scatter is drawn as a picture: an SVG of as many marks is slow to show
_LABEL = 40  # characters of a name in a plot
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.6em 0 1.6em }
th, td { padding: 0.25em 0.7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
th { border-bottom: 2px solid #888 }
th:first-child, td:first-child, td.words, th.words { text-align: left; overflow-wrap: anywhere }
small { color: #666 }
.plots { display: flex; flex-wrap: wrap; gap: 1em }
svg { max-width: 100%; height: auto }
"""


def write_report(path: str | Path, comparison: Comparison, *, title: str = "Comparison of retrievers") -> None:
    """Write the page of :func:`html_report` to a file, which appears whole or not at all."""
    replace_file(Path(path), html_report(comparison, title=title).encode())


def html_report(comparison: Comparison, *, title: str = "Comparison of retrievers") -> str:
    """The page: a table a measure, the values of each query against the baseline's, quality against costs, and the
    queries that differ most.

    It loads nothing from anywhere and runs no script, and whatever comes from the data is escaped. Raises
    MissingDependencyError where matplotlib is not installed.
    """
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{comparison.queries:,} judged queries; the baseline is <b>{_text(comparison.baseline)}</b>. p-values are "
        "two-sided, corrected by Holm's method over the systems (in grey: before the correction); intervals are 95&nbsp;% "
        "bootstrap intervals of the mean difference; d<sub>z</sub> is the mean difference in standard deviations.</p>",
    ]
    for measure, means in comparison.means.items():
        parts += [f"<h2>{_text(measure)}</h2>", _measure_table(comparison, measure, means)]
    others = comparison.systems[1:]
    parts += [
        f"<h2>Query by query: {_text(comparison.measure)}</h2>",
        "<p>Each point is a query; above the line the system is better than the baseline.</p>",
        _plots([_scatter(comparison, system) for system in others], "queries"),
        *_costs(comparison),
    ]
    for system in others:
        parts += _extremes(comparison, system)
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def require_plots() -> None:
    """Raise MissingDependencyError where matplotlib is not installed: before long work, say."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("reports need matplotlib: pip install 'tri-retrievers[evaluate]'") from error


def _text(value: str) -> str:
    return escape(plain(value), quote=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = ()) -> str:
    """A table of cells that are markup already; the columns ``words`` are set to the left."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f"<{tag}{' class=words' if at in words else ''}>{cell}</{tag}>" for at, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    return "<table>\n" + "\n".join([line(header, "th"), *(line(row, "td") for row in rows)]) + "\n</table>"


def _measure_table(comparison: Comparison, measure: str, means: Mapping[str, float]) -> str:
    found = {one.system: one for one in comparison.differences if one.measure == measure}
    header = ["system", "mean", "difference", "95&nbsp;% interval", "p, randomisation", "p, t", "p, Wilcoxon"]
    rows = []
    for system in comparison.systems:
        told = _cells(found[system]) if system in found else ["baseline", *[""] * 6]
        rows.append([_text(system), f"{means[system]:.4f}", *told])
    return _table([*header, "wins / ties / losses", "d<sub>z</sub>"], rows)


def _cells(one: Difference) -> list[str]:
    low, high = one.interval
    tests = (
        f"{escape(p_text(getattr(one.corrected, test)))} <small>{escape(p_text(getattr(one.p, test)))}</small>"
        for test in TESTS
    )
    return [
        f"{one.difference:+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        *tests,
        f"{one.wins} / {one.ties} / {one.losses}",
        f"{one.effect:+.2f}",
    ]


def _costs(comparison: Comparison) -> list[str]:
    latency = {s: v for s in comparison.systems if (v := comparison.latency(s)) is not None}
    size = {s: v for s in comparison.systems if (v := comparison.document_bytes(s)) is not None}
    if not latency and not size:
        return []
    rows = [
        [_text(s), f"{latency[s]:.2f}" if s in latency else "", f"{size[s]:,.0f}" if s in size else ""]
        for s in comparison.systems
    ]
    plots = [
        _tradeoff(comparison, costs, label)
        for costs, label in ((latency, "median time of a query (ms)"), (size, "bytes on disk for each document"))
        if costs
    ]
    return [
        "<h2>Quality and costs</h2>",
        _table(["system", "p50 of a query (ms)", "bytes for each document"], rows),
        _plots(plots, "costs"),
    ]


def _extremes(comparison: Comparison, system: str) -> list[str]:
    rows = [
        [
            _text(one.query) if one.text is None else f"<b>{_text(one.query)}</b> {_text(one.text)}",
            f"{one.value:.4f}",
            f"{one.baseline_value:.4f}",
            f"{one.value - one.baseline_value:+.4f}",
            _text(", ".join(one.hits)),
            _text(", ".join(one.baseline_hits)),
        ]
        for one in comparison.extremes
        if one.system == system
    ]
    if not rows:
        return []
    name, base = _text(system), _text(comparison.baseline)
    return [
        f"<h2>Queries on which {name} differs most from {base} ({_text(comparison.measure)})</h2>",
        _table(
            ["query", name, base, "difference", f"first hits of {name}", f"first hits of {base}"], rows, words=(0, 4, 5)
        ),
    ]


def _figure(width: float, height: float) -> Figure:
    require_plots()
    # The figure alone, without pyplot: no window, no global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Figure, across: str, up: str) -> Axes:
    made = figure.add_subplot()
    # Names are no formulas: a dollar sign in one must not start mathematics.
    made.set_xlabel(_short(across), parse_math=False)
    made.set_ylabel(_short(up), parse_math=False)
    made.grid(alpha=0.3)
    return made


def _scatter(comparison: Comparison, system: str) -> Figure:
    mine = comparison.evaluations[system].values[comparison.measure]
    base = comparison.evaluations[comparison.baseline].values[comparison.measure]
    figure = _figure(4.6, 4.6)
    axes = _axes(figure, comparison.baseline, system)
    xs, ys = [base[query] for query in base], [mine[query] for query in base]
    low, high = min(xs + ys), max(xs + ys)
    axes.plot([low, high], [low, high], color="#999", linewidth=1, zorder=1)
    axes.scatter(xs, ys, s=22, alpha=0.45, linewidths=0, zorder=2, clip_on=False, rasterized=len(xs) > _MANY)
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def _tradeoff(comparison: Comparison, costs: Mapping[str, float], label: str) -> Figure:
    means = comparison.means[comparison.measure]
    figure = _figure(6.0, 4.2)
    axes = _axes(figure, label, f"mean {comparison.measure}")
    if min(costs.values()) > 0 and max(costs.values()) >= 10 * min(costs.values()):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    # A legend, since names beside points of equal cost would lie over each other.
    marks = "osD^vP*X"
    for at, (system, cost) in enumerate(costs.items()):
        axes.scatter([cost], [means[system]], s=60, marker=marks[at % len(marks)], color=f"C{at % 10}", label=f"{at}")
    handles, _ = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, [str(at) for at in range(len(costs))], loc="outside lower center", ncols=2, fontsize=9
    )
    for text, system in zip(legend.get_texts(), costs, strict=True):
        text.set_parse_math(False)
        text.set_text(_short(system))
    axes.margins(0.15)
    return figure


def _short(name: str) -> str:
    line = plain(name)
    return line if len(line) <= _LABEL else f"...{line[3 - _LABEL :]}"


def _plots(figures: Sequence[Figure], name: str) -> str:
    made = "\n".join(_svg(figure, f"{name}-{at}") for at, figure in enumerate(figures))
    return f'<div class="plots">\n{made}\n</div>'


def _svg(figure: Figure, name: str) -> str:
    """The figure as an ``<svg>`` element. ``name`` keeps the ids of several on a page apart."""
    import matplotlib

    out = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the letters, with fonts that have those which matplotlib's own has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL).rstrip()
