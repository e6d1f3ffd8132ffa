"""``retrievers train``: a recipe, what it learns from, and the topics of its queries."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrievers.cli import options
from retrievers.cli.failures import Verbs, complain
from retrievers.cli.progress import Meter, print_rate, print_time

if TYPE_CHECKING:
    from retrievers.training.trainer import Progress

_RUN = "run"
_EVERY = 50  # steps between two lines where standard error is no terminal


class _OrRecipe(Verbs):
    """What is no verb of the group is a recipe to run."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_OrRecipe,
    help="Train a retriever: `retrievers train RECIPE`, which is short for `retrievers train run RECIPE`.",
    no_args_is_help=True,
)


class Form(StrEnum):
    """What training data come in."""

    beir = "beir"
    columns = "columns"
    flagembedding = "flagembedding"
    pylate = "pylate"
    tevatron = "tevatron"


class Lonely(StrEnum):
    """What becomes of queries without a positive."""

    refuse = "refuse"
    drop = "drop"


@app.command(_RUN)
def run(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A TOML file, or contrastive, tas-balanced, inference-free or colbert.",
            show_default=False,
        ),
    ],
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Lay a value over the recipe's: optimiser.steps=500; repeat it."
        ),
    ] = None,
    device: options.Device = None,
    show: Annotated[bool, typer.Option("--show", help="Print the whole recipe, and train nothing.")] = False,
) -> None:
    """Train a model by a recipe; a run that was stopped goes on where its last checkpoint was.

    \b
    Examples:
      retrievers train contrastive --set model.start=bert-base-uncased --set data.set=set --set output=run
      retrievers train my-recipe.toml --set seed=1 --set output=run-1
      torchrun --nproc-per-node 2 -m retrievers train my-recipe.toml
    """
    from retrievers.training.recipe import Recipe

    found = Recipe.load(recipe, set or [])
    if show:
        typer.echo(found.to_toml(), nl=False)
        return
    found.check()
    from retrievers.training.run import train

    line = _Line()
    done = train(found, device=device, report=line, say=complain)
    line.end()
    quality = "" if done.quality is None else f", nDCG@10 {done.quality:.4f} on the development set"
    typer.echo(f"trained {done.steps:,} steps{quality}: {done.model}")
    typer.echo(f"index with it: {done.command}")


@app.command("set")
def make_set(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE...", help="BEIR folders, or JSONL files of one format.", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="SET", help="The folder to make.", show_default=False)
    ],
    form: Annotated[Form, typer.Option("--format", help="What the source holds.")] = Form.beir,
    split: Annotated[str, typer.Option(metavar="NAME", help="Which qrels of a BEIR folder.")] = "train",
    queries: Annotated[
        str | None, typer.Option(metavar="FILE", help="The queries that the lists of pylate name.")
    ] = None,
    documents: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="The documents that the lists of pylate name.")
    ] = None,
    qrels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What answers a query of pylate, in place of the first of its list."),
    ] = None,
    lonely: Annotated[Lonely, typer.Option(help="What to do with queries that have no positive.")] = Lonely.refuse,
) -> None:
    """Store a training set by ids, which `score`, `mine` and `train` take.

    Several sources become one set, in which ids begin with the name of their folder or file and a slash; recipes with
    batches.scheme = "sources" tell them apart by it.

    \b
    Examples:
      retrievers train set beir-folder/ -o set
      retrievers train set nq/ hotpotqa/ fever/ -o set
      retrievers train set triplets.jsonl -o set --format columns
      retrievers train set lists.jsonl -o set --format pylate --queries queries.jsonl --documents corpus.jsonl
    """
    for name, value in (("--queries", queries), ("--documents", documents), ("--qrels", qrels)):
        if form is Form.pylate and value is None and name != "--qrels":
            raise typer.BadParameter("--format pylate needs it for the texts of what lists name", param_hint=name)
        if form is not Form.pylate and value is not None:
            raise typer.BadParameter(f"it goes with --format pylate, not {form.value}", param_hint=name)
    if form is Form.pylate and len(sources) > 1:
        raise typer.BadParameter("--format pylate takes one file of lists", param_hint="SOURCE")

    from retrievers.training import readers
    from retrievers.training.sets import TrainingSet
    from retrievers.training.sources import join, source_name
    from retrievers.training.spool import work_folder

    def read(source: str, folder: Path) -> TrainingSet:
        if form is Form.beir:
            return readers.from_beir(source, folder, split, lonely=lonely.value)
        if form is Form.pylate:
            return readers.from_pylate(queries or "", documents or "", source, folder, qrels=qrels, lonely=lonely.value)
        readers_by_form = {
            Form.columns: readers.from_columns,
            Form.flagembedding: readers.from_flagembedding,
            Form.tevatron: readers.from_tevatron,
        }
        return readers_by_form[form](source, folder, lonely=lonely.value)

    if len(sources) == 1:
        found = read(sources[0], output)
    else:
        names = [source_name(source) for source in sources]
        named = dict(zip(names, sources, strict=True))
        if len(named) < len(sources):
            twice = next(name for name in names if names.count(name) > 1)
            raise typer.BadParameter(f"two of them are named {twice!r}: rename one", param_hint="SOURCE")
        with work_folder(output) as work:
            parts = {name: read(source, work / "parts" / name) for name, source in named.items()}
            join(parts, work / "set")
            (work / "set").replace(output)
        found = TrainingSet.open(output)
    typer.echo(
        f"{len(found):,} queries, {len(found.documents):,} documents, {len(found.positives.rows):,} positives, "
        f"{len(found.candidates.rows):,} candidates: {output}"
    )


@app.command()
def topics(
    training_set: Annotated[
        Path, typer.Argument(metavar="SET", help="The folder of a training set.", show_default=False)
    ],
    encoder: Annotated[str, typer.Option(metavar="NAME", help="What embeds the queries: bm25, or a model.")] = "bm25",
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many topics to find.")] = 100,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Another seed finds others.")] = 0,
    shown: Annotated[int, typer.Option("--show", min=1, metavar="N", help="Topics to print, the largest first.")] = 20,
    examples: Annotated[int, typer.Option(min=0, metavar="N", help="Queries to print of each.")] = 3,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the sizes of all: .svg, .png or .pdf.")
    ] = None,
    device: options.Device = None,
    batch_size: options.BatchSize = 32,
    dtype: options.Dtype = None,
) -> None:
    """Show the topics that topic-aware batches would be drawn from: sizes, and the queries nearest to each centre.

    \b
    Examples:
      retrievers train topics set -k 50
      retrievers train topics set --encoder ./model --plot topics.svg
    """
    from retrievers.encoders import load_encoder
    from retrievers.training.sets import TrainingSet
    from retrievers.training.topics import describe_topics, find_topics_of, plot_topics

    found = TrainingSet.open(training_set)
    texts = found.queries.texts(range(len(found)))
    with Meter("loading the encoder", "queries") as meter:
        model = load_encoder(encoder, device=device, batch_size=batch_size, dtype=dtype)
        meter.phase("finding topics")
        clusters = find_topics_of(model, texts, k, seed=seed)
    table = describe_topics(clusters, texts, examples)
    typer.echo(f"{clusters.count:,} topics of {len(clusters):,} queries")
    for topic in table.topics[:shown]:
        typer.echo(f"{topic.size:>7,}  " + " | ".join(" ".join(text.split())[:60] for text in topic.examples))
    if len(table.topics) > shown:
        typer.echo(f"and {len(table.topics) - shown:,} smaller ones; --show N prints more")
    for advice in table.advice:
        complain(advice)
    if plot is not None:
        plot_topics(clusters, plot)
        typer.echo(f"the sizes are drawn in {plot}")


class _Line:
    """How training stands: one line that is written over on a terminal, a new one now and then elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._width = 0

    def __call__(self, progress: Progress) -> None:
        parts = [f"step {progress.step:,} of {progress.steps:,}", f"loss {progress.loss:.4f}"]
        if progress.active is not None:
            parts.append(f"{progress.active:.0f} active terms")
        if not math.isnan(progress.queries_per_second):  # as it is after the first step
            parts.append(f"{print_rate(progress.queries_per_second)} queries/s")
            parts.append(f"{print_time(progress.seconds_left)} left")
        if progress.quality is not None:
            parts.append(f"nDCG@10 {progress.quality:.4f}")
        text = ", ".join(parts)
        if self._live:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        elif progress.step % _EVERY == 0 or progress.step in (1, progress.steps):
            complain(text)

    def end(self) -> None:
        """Leave the line."""
        if self._live and self._width:
            sys.stderr.write("\n")
