"""``retrievers score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retrievers.cli import options
from retrievers.cli.progress import Meter


def score(
    training_set: Annotated[
        Path, typer.Argument(metavar="SET", help="The folder of a training set.", show_default=False)
    ],
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="TEACHER",
            help="bm25, a model of any kind (a folder or hub name), or a file of scores (a TREC run, .jsonl or .tsv); "
            "repeat it for more.",
            show_default=False,
        ),
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What to call each teacher, in order; by default by the end of its path."),
    ] = None,
    block: Annotated[
        int, typer.Option(min=1, metavar="N", help="Candidates that are scored between two saves.")
    ] = 4096,
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    dtype: options.Dtype = None,
) -> None:
    """Score the candidates of a training set by teachers.

    A run that was stopped goes on where it was when it is started again, and what an unchanged teacher has scored before is
    taken as it is.

    \b
    Examples:
      retrievers score set/ --teacher bm25 --teacher cross-encoder/ms-marco-MiniLM-L6-v2
      retrievers score set/ --teacher ./reranker --name reranker --teacher scores.jsonl --name old
    """
    names: list[str | None] = [*name] if name else [None] * len(teacher)
    if len(names) != len(teacher):
        raise typer.BadParameter(
            f"{len(teacher)} teachers and {len(names)} names: name all or none", param_hint="--name"
        )

    from retrievers.training.scoring import score as scored
    from retrievers.training.sets import TrainingSet
    from retrievers.training.teachers import load_teacher

    found = TrainingSet.open(training_set)
    with Meter("loading the teachers", "candidates") as meter:
        teachers = [
            load_teacher(source, name=called, device=device, batch_size=batch_size, dtype=dtype)
            for source, called in zip(teacher, names, strict=True)
        ]
        meter.expect(len(found.candidates.rows) * len(teachers))
        meter.phase("scoring")
        reports = scored(found, teachers, block=block, progress=meter)
    for report in reports:
        typer.echo(str(report))
