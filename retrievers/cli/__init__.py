"""The command line: the verbs of the library.

Everything heavy is imported inside a verb, so that ``retrievers --help`` answers at once. Results go to standard
output; progress, warnings and errors to standard error. Exit codes: 0; 1 for a failure, explained in one line; 2 for
bad usage; 130 for an interrupt.
"""

from __future__ import annotations

from typing import Annotated

import typer

from retrievers.cli import compare, demos, doctor, encode, evaluate, fuse, index, mine, score, search, train
from retrievers.cli.failures import Verbs, guard

app = typer.Typer(
    cls=Verbs,
    help="Build indexes and search them: lexical (BM25), dense, multi-vector and sparse.",
    epilog="Begin with: retrievers index build docs/ -o idx, then: retrievers search idx 'your question'",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: it answers in half the time, and any terminal and any encoding can show it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from retrievers import __version__

        typer.echo(f"retrievers {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


app.add_typer(index.app, name="index")
app.command("search")(search.search)
app.command("encode")(encode.encode)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("fuse")(fuse.fuse)
app.command("mine")(mine.mine)
app.command("score")(score.score)
app.add_typer(train.app, name="train")
app.add_typer(demos.app, name="demos")
app.command("doctor")(doctor.doctor)


def main() -> None:
    """The entry point of the ``retrievers`` command."""
    with guard():
        app(prog_name="retrievers")
