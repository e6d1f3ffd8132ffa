"""``retrievers fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrievers.cli.failures import complain

if TYPE_CHECKING:
    from retrievers.fusion import Fusion
    from retrievers.runs import Run

_MEASURE = "nDCG@10"


def fuse(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two TREC runs or more, plain or .gz.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="The TREC run to write.", show_default=False)
    ],
    fusion: Annotated[
        str, typer.Option(metavar="SPEC", help="rrf, rrf(k=60), or convex(normalise=min-max), z or none.")
    ] = "rrf",
    weights: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="A weight for each run: 0.3,0.7. Equal by default.")
    ] = None,
    depth: Annotated[
        int, typer.Option(min=1, metavar="N", help="Documents a query to take from each run, and to write.")
    ] = 1000,
    tune: Annotated[
        Path | None,
        typer.Option(
            metavar="QRELS", help="Find the weights on the judged queries of this file, and leave these out of FILE."
        ),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"What to tune for.  [default: {_MEASURE}]")
    ] = None,
    keep_tuned: Annotated[
        bool, typer.Option("--keep-tuned", help="Write the queries too that the weights were tuned on.")
    ] = False,
) -> None:
    """Fuse runs of the same queries into one.

    \b
    Examples:
      retrievers fuse bm25.run dense.run -o both.run
      retrievers fuse bm25.run dense.run -o both.run --fusion 'convex(normalise=z)' --weights 0.3,0.7
      retrievers fuse bm25.run dense.run -o both.run --fusion convex --tune qrels/train.tsv
    """
    if len(runs) < 2:
        raise typer.BadParameter("give two runs or more", param_hint="RUN")
    if tune is not None and weights is not None:
        raise typer.BadParameter("weights are given or tuned, and not both", param_hint="--tune")
    if tune is None and (keep_tuned or measure is not None):
        raise typer.BadParameter(
            "has no meaning without --tune", param_hint="--keep-tuned" if keep_tuned else "--measure"
        )
    if output.resolve() in [run.resolve() for run in runs]:
        raise typer.BadParameter(f"{output} is one of the runs to fuse", param_hint="-o")
    method, given = _method(fusion, weights, len(runs))

    from retrievers.fusion import fuse as fused_run
    from retrievers.runs import read_run, write_run

    read = [read_run(run) for run in runs]
    if tune is not None:
        read, given = _tuned(read, runs, tune, method, measure or _MEASURE, depth, keep_tuned=keep_tuned)
    run = fused_run(read, method, weights=given, depth=depth)
    write_run(output, run)
    typer.echo(f"fused {len(runs)} runs by {method} for {_queries(len(run))}: {output}")


def _method(fusion: str, weights: str | None, parts: int) -> tuple[Fusion, list[float] | None]:
    from retrievers.errors import SpecError
    from retrievers.fusion import Fusion

    try:
        method = Fusion.parse(fusion)
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint="--fusion") from None
    if weights is None:
        return method, None
    try:
        given = [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"{weights!r} is no list of numbers: write them as 0.3,0.7", param_hint="--weights"
        ) from None
    try:
        method.weigh(given, parts)
    except SpecError as error:
        raise typer.BadParameter(str(error), param_hint="--weights") from None
    return method, given


def _tuned(
    read: list[Run], names: list[Path], judged: Path, method: Fusion, measure: str, depth: int, *, keep_tuned: bool
) -> tuple[list[Run], list[float]]:
    """The runs without the queries of the tuning, and the weights."""
    from retrievers.errors import LeakError
    from retrievers.runs import read_qrels
    from retrievers.tuning import tune

    tuned = tune(read, read_qrels(judged), fusion=method, measure=measure, depth=depth)
    for name, weight in zip(names, tuned.weights, strict=True):
        typer.echo(f"{weight:.6g}  {name}")
    queries = {query for run in read for query in run}
    used = queries & tuned.tuned_on
    typer.echo(f"{tuned.measure} {tuned.value:.4f} with these weights, which were tuned on {_queries(len(used))}")
    if keep_tuned:
        complain(f"warning: {_queries(len(used))} of the tuning kept, whose values will be too high")
        return read, list(tuned.weights)
    if used == queries:
        raise LeakError(
            f"the weights were tuned on all {_queries(len(used))} of the runs, and none is left to write: tune on some of "
            "them, or give --keep-tuned"
        )
    complain(f"left out {_queries(len(used))} that the weights were tuned on; --keep-tuned keeps them")
    kept = [{query: found for query, found in run.items() if query not in used} for run in read]
    return kept, list(tuned.weights)


def _queries(number: int) -> str:
    return f"{number:,} query" if number == 1 else f"{number:,} queries"
