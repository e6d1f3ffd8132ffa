"""``retrievers evaluate``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrievers.cli import options
from retrievers.cli.failures import complain, warn_unfinished
from retrievers.cli.progress import Meter, print_rate

if TYPE_CHECKING:
    from retrievers.evaluation import Evaluation

MEASURES = "nDCG@10 R@100 RR@10 AP"
_NAMED = 5  # ids that stand in a warning


class Format(StrEnum):
    """What an evaluation prints."""

    text = "text"
    json = "json"


Data = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="A BEIR folder (queries.jsonl, qrels/SPLIT.tsv), or irds: and an ir-datasets id."
    ),
]
Split = Annotated[str, typer.Option(metavar="NAME", help="Which qrels of a BEIR folder.")]
Queries = Annotated[str | None, typer.Option(metavar="FILE", help="Queries, as `search --queries` reads them.")]
Qrels = Annotated[str | None, typer.Option(metavar="FILE", help="Judgements in TREC's form or BEIR's.")]
Measures = Annotated[str, typer.Option(metavar="NAMES", help="Measures by ir-measures' names.")]


def evaluate(
    system: Annotated[
        Path, typer.Argument(metavar="INDEX", help="The folder of an index, or a TREC run file.", show_default=False)
    ],
    data: Data = None,
    split: Split = "test",
    queries: Queries = None,
    qrels: Qrels = None,
    measures: Measures = MEASURES,
    k: Annotated[
        int | None, typer.Option("-k", min=1, metavar="N", help="Hits a query; by default what is measured.")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="text for people, or json with a value for every query.")
    ] = Format.text,
    save_run: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write what was found as a TREC run.")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Measure an index, or a run, on judged queries.

    \b
    Examples:
      retrievers evaluate idx --data beir/scifact
      retrievers evaluate idx --queries queries.tsv --qrels judgements.qrels --measures 'nDCG@10 RR'
      retrievers evaluate found.run --qrels judgements.qrels
    """
    from retrievers import evaluation, runs
    from retrievers.cli.tasks import read_task

    evaluation.parse_measures(measures)  # before the work begins
    if system.is_file():
        _, judged = read_task(data, split, queries, qrels, queries_needed=False)
        outcome = evaluation.evaluate(runs.read_run(system), None, judged, measures)
    else:
        from retrievers.retriever import Retriever

        texts, judged = read_task(data, split, queries, qrels, queries_needed=True)
        with Retriever.open(system, device=device, dtype=dtype) as retriever:
            if not retriever.complete:
                warn_unfinished(system, len(retriever))
            with Meter(f"searching {len(texts or ()):,} queries"):
                outcome = evaluation.evaluate(retriever, texts, judged, measures, k=k)
    if save_run is not None:
        runs.write_run(save_run, outcome.run)
    if format is Format.json:
        options.print_json(to_json(str(system), outcome))
    else:
        print_evaluation(outcome)
    warn(outcome)


def to_json(name: str, outcome: Evaluation) -> dict[str, Any]:
    """An evaluation as a JSON object, without its run."""
    speed = outcome.speed
    return {
        "system": name,
        "means": dict(outcome.means),
        "values": {measure: dict(values) for measure, values in outcome.values.items()},
        "queries": len(outcome.run),
        "unjudged": list(outcome.unjudged),
        "unasked": list(outcome.unasked),
        "empty": list(outcome.empty),
        "absent": None if outcome.absent is None else {query: list(ids) for query, ids in outcome.absent.items()},
        "queries_per_second": None if speed is None else speed.queries_per_second,
        "p50_ms": None if speed is None else speed.p50,
        "p99_ms": None if speed is None else speed.p99,
        "documents": outcome.documents,
        "bytes": outcome.size,
        "peak_memory_bytes": outcome.memory,
    }


def print_evaluation(outcome: Evaluation) -> None:
    """Print an evaluation for people."""
    width = max(map(len, outcome.means))
    judged = max(len(values) for values in outcome.values.values())
    typer.echo(f"{judged:,} judged {'query' if judged == 1 else 'queries'}")
    for measure, value in outcome.means.items():
        typer.echo(f"{measure:<{width}}  {value:.4f}")
    if outcome.speed is not None:
        speed = outcome.speed
        typer.echo(
            f"{print_rate(speed.queries_per_second)} queries/s in batches; one at a time p50 {speed.p50:.2f} ms, "
            f"p99 {speed.p99:.2f} ms ({speed.timed:,} timed)"
        )
    if outcome.documents is not None and outcome.size is not None:
        each = outcome.size / max(outcome.documents, 1)
        typer.echo(
            f"{options.counted(outcome.documents)}, {options.print_size(outcome.size)} on disk ({each:,.0f} bytes each)"
        )
    if outcome.memory is not None:
        typer.echo(f"at most {options.print_size(outcome.memory)} of memory")


def warn(outcome: Evaluation) -> None:
    """Say on standard error what an evaluation could not count as it was meant."""
    absent = [id for ids in (outcome.absent or {}).values() for id in ids]
    for ids, what in (
        (outcome.unjudged, "queries have no judgement and are left out"),
        (outcome.unasked, "judged queries were not asked and count as if nothing had been found"),
        (outcome.empty, "queries found nothing"),
        (absent, "judged documents are not in the index"),
    ):
        if ids:
            named = ", ".join(map(repr, ids[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
            complain(f"warning: {len(ids):,} {what}: {named}")
