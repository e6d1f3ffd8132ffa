"""``retrievers compare``."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrievers.cli import options
from retrievers.cli.evaluate import MEASURES, Data, Measures, Qrels, Queries, Split
from retrievers.cli.failures import complain, warn_unfinished
from retrievers.cli.progress import Meter

if TYPE_CHECKING:
    from retrievers.evaluation import Evaluation

_MANIFEST = "manifest.json"


class Format(StrEnum):
    """What a comparison prints."""

    text = "text"
    json = "json"
    csv = "csv"


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...",
            help="Folders of indexes and TREC run files; with --combine, files that --format json wrote.",
            show_default=False,
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(metavar="SYSTEM", help="What the others are compared with; by default the first.")
    ] = None,
    data: Data = None,
    split: Split = "test",
    queries: Queries = None,
    qrels: Qrels = None,
    measures: Measures = MEASURES,
    format: Annotated[Format, typer.Option(help="text for people, json, or csv with a row a system.")] = Format.text,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page with tables and plots.")] = None,
    combine: Annotated[
        bool, typer.Option("--combine", help="Rank systems over several collections, one JSON file each (Borda).")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Compare indexes and runs on the same queries, with paired significance tests.

    \b
    Examples:
      retrievers compare bm25-idx dense-idx other.run --data beir/scifact --html report.html
      retrievers compare a.run b.run --baseline b.run --qrels judgements.qrels --format json > scifact.json
      retrievers compare --combine scifact.json nfcorpus.json
    """
    named = names(systems)
    if combine:
        _refuse_with_combine(baseline=baseline, data=data, queries=queries, qrels=qrels, html=html)
        _combine(named, None if measures == MEASURES else measures, format)
        return
    if len(systems) < 2:
        raise typer.BadParameter("give two systems or more", param_hint="SYSTEM")
    base = _baseline(baseline, named)
    from retrievers import comparison, comparison_tables, evaluation
    from retrievers.cli.tasks import read_task

    evaluation.parse_measures(measures)  # before the work begins
    if html is not None:
        from retrievers.report import require_plots

        require_plots()
    for path in named.values():
        _check_system(path)
    texts, judged = read_task(
        data, split, queries, qrels, queries_needed=any(Path(path).is_dir() for path in named.values())
    )
    outcomes: dict[str, Evaluation] = {}
    for name, path in named.items():
        outcomes[name] = _evaluate(path, texts, judged, measures, device, dtype)
        _warn(name, outcomes[name])
    made = comparison.compare(outcomes, baseline=base, queries=texts)
    if html is not None:
        from retrievers.report import write_report

        write_report(html, made)
    if format is Format.json:
        options.print_json(made.to_json())
    elif format is Format.csv:
        _print_csv(comparison_tables.csv_rows(made))
    else:
        typer.echo(comparison_tables.text_table(made), nl=False)


def names(paths: Sequence[str]) -> dict[str, str]:
    """Each path by the shortest end of it that no other has: ``x/bm25`` and ``y/dense`` are ``bm25`` and ``dense``."""
    parts = [Path(path).absolute().parts for path in paths]
    named: dict[str, str] = {}
    for path, mine in zip(paths, parts, strict=True):
        if parts.count(mine) > 1:
            raise typer.BadParameter(f"{path!r} is given twice", param_hint="SYSTEM")
        size = next(n for n in range(1, len(mine) + 1) if sum(other[-n:] == mine[-n:] for other in parts) == 1)
        named["/".join(mine[-size:]) if size < len(mine) else str(Path(*mine))] = path
    return named


def _baseline(given: str | None, named: dict[str, str]) -> str:
    if given is None:
        return next(iter(named))
    for name, path in named.items():
        if given == name or Path(given).absolute() == Path(path).absolute():
            return name
    raise typer.BadParameter(f"{given!r} is none of the systems: {', '.join(named)}", param_hint="--baseline")


def _check_system(path: str) -> None:
    """Fail before the first search, which may be long, for what the last would fail for."""
    from retrievers.errors import SourceNotFoundError

    if not Path(path).is_file() and not (Path(path) / _MANIFEST).is_file():
        raise SourceNotFoundError(f"{path} is neither the folder of an index nor a run file")


def _evaluate(
    path: str,
    texts: dict[str, str] | None,
    judged: dict[str, dict[str, int]],
    measures: str,
    device: str | None,
    dtype: str | None,
) -> Evaluation:
    from retrievers import evaluation, runs

    if Path(path).is_file():
        return evaluation.evaluate(runs.read_run(path), None, judged, measures)
    from retrievers.retriever import Retriever

    with Retriever.open(path, device=device, dtype=dtype) as retriever:
        if not retriever.complete:
            warn_unfinished(path, len(retriever))
        with Meter(f"searching {path}"):
            return evaluation.evaluate(retriever, texts, judged, measures)


def _warn(name: str, outcome: Evaluation) -> None:
    absent = sum(map(len, (outcome.absent or {}).values()))
    for count, what in (
        (len(outcome.unjudged), "queries have no judgement and are left out"),
        (len(outcome.unasked), "judged queries were not asked and count as if nothing had been found"),
        (len(outcome.empty), "queries found nothing"),
        (absent, "judged documents are not in the index"),
    ):
        if count:
            complain(f"warning: {name}: {count:,} {what}")


def _refuse_with_combine(**others: object) -> None:
    for name, value in others.items():
        if value is not None:
            raise typer.BadParameter("does not go with --combine, which searches nothing", param_hint=f"--{name}")


def _combine(named: dict[str, str], measures: str | None, format: Format) -> None:
    from retrievers.cli.combination import combine
    from retrievers.comparison_tables import aligned, plain

    wanted = None if measures is None else measures.replace(",", " ").split()
    ranks = combine(named, wanted)
    if format is Format.json:
        options.print_json({"collections": list(named), "borda": ranks})
        return
    header = ["system", *ranks]
    systems = sorted(next(iter(ranks.values())), key=lambda system: -next(iter(ranks.values()))[system])
    if format is Format.csv:
        _print_csv([header, *([system, *(repr(found[system]) for found in ranks.values())] for system in systems)])
        return
    typer.echo(f"Borda counts over {options.counted(len(named), 'collection')}: {', '.join(map(plain, named))}")
    rows = ([plain(system), *(f"{found[system]:g}" for found in ranks.values())] for system in systems)
    for line in aligned([header, *rows]):
        typer.echo(line)


def _print_csv(rows: Sequence[Sequence[str]]) -> None:
    csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
