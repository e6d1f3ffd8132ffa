"""``retrievers mine``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from retrievers.cli import options
from retrievers.cli.progress import Meter


class Unfound(StrEnum):
    """What becomes of the finds of a search that missed every positive."""

    keep = "keep"
    drop = "drop"


def mine(
    training_set: Annotated[
        Path, typer.Argument(metavar="SET", help="The folder of a training set.", show_default=False)
    ],
    indexes: Annotated[
        list[Path],
        typer.Argument(metavar="INDEX...", help="Indexes of any kind over the same documents.", show_default=False),
    ],
    strata: Annotated[
        str, typer.Option(metavar="STRATA", help="How many to draw from which ranks of each index.")
    ] = "1-10:4,11-50:4,51-100:8",
    depth: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Documents to search for.  [default: the last of the strata]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed draws others.")] = 0,
    fraction: Annotated[
        float, typer.Option(metavar="X", help="Drop what scores above this part of the positive's score; 0 for never.")
    ] = 0.95,
    unfound: Annotated[
        Unfound, typer.Option(help="What to do with the finds of a search that missed every positive.")
    ] = Unfound.keep,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="TEACHER", help="bm25 or a model, whose scores tell false negatives by --margin."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(metavar="X", help="Drop what the teacher scores above its score of the positive less this."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Throw away the scores of the candidates that were there before.")
    ] = False,
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    dtype: options.Dtype = None,
) -> None:
    """Mine hard negatives for a training set: its candidates become the positives and what is drawn here.

    A run that was stopped goes on where it was when it is started again.

    \b
    Examples:
      retrievers mine set/ bm25-index/ dense-index/
      retrievers mine set/ dense-index/ --strata 1-20:8 --teacher cross-encoder/ms-marco-MiniLM-L6-v2 --margin 2
    """
    if (teacher is None) != (margin is None):
        raise typer.BadParameter("--teacher and --margin go together", param_hint="--margin")

    from retrievers.errors import TrainingDataError
    from retrievers.retriever import Retriever
    from retrievers.training.mining import mine as mined
    from retrievers.training.mining import steps
    from retrievers.training.negatives import Rules
    from retrievers.training.sets import TrainingSet
    from retrievers.training.strata import Strata
    from retrievers.training.teachers import live_teacher

    try:
        parts = Strata.parse(strata)
        rules = Rules(fraction=fraction or None, unfound=unfound.value, margin=margin)
    except TrainingDataError as error:
        raise typer.BadParameter(str(error)) from None
    found = TrainingSet.open(training_set)
    with Meter("opening", "batches", total=steps(found)) as meter:
        settings: dict[str, Any] = {"device": device, "dtype": dtype}
        judge = None
        if teacher is not None:
            judge = live_teacher(teacher, training_set=found, batch_size=batch_size, **settings)
        retrievers = [Retriever.open(path, **settings) for path in indexes]
        meter.phase("mining")
        report = mined(
            found,
            retrievers,
            strata=parts,
            depth=depth,
            seed=seed,
            rules=rules,
            teacher=judge,
            replace=replace,
            progress=meter,
        )
    typer.echo(str(report))
