"""``retrievers index``: building an index, changing it, and asking what it is."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrievers.cli import options
from retrievers.cli.failures import complain, warn_unfinished
from retrievers.cli.progress import Meter, print_rate

if TYPE_CHECKING:
    from retrievers.retriever import Retriever

app = typer.Typer(help="Build an index, change it, ask what it is.", no_args_is_help=True)


@app.command()
def build(
    source: options.Source,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="INDEX", help="The folder to make.", show_default=False)
    ],
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="bm25, 'bm25(language=german)', or a model: a folder or a hub name.")
    ] = "bm25",
    index: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Such as 'hnsw(m=32)'; by default the exact kind that fits.")
    ] = None,
    memory: options.Memory = options.DEFAULT_MEMORY,
    device: options.Device = None,
    batch_size: options.BatchSize = 256,
    dtype: options.Dtype = None,
    workers: options.Workers = None,
    language: options.Language = None,
    query_language: options.QueryLanguage = None,
    id_field: options.IdField = None,
    text_field: options.TextField = None,
    title_field: options.TitleField = None,
    metadata_field: options.MetadataField = None,
    delimiter: options.Delimiter = None,
) -> None:
    """Build an index; one that was stopped goes on where it was.

    \b
    Examples:
      retrievers index build docs/ -o idx
      retrievers index build corpus.jsonl -o idx --encoder sentence-transformers/all-MiniLM-L6-v2 --index 'hnsw(m=32)'
    """
    limit = options.parse_memory(memory)
    from retrievers.cli.sources import count_documents, documents

    found = documents(source, id_field, text_field, title_field, metadata_field, delimiter)
    before = _stopped(output)
    try:
        with Meter("loading the encoder") as meter:
            from retrievers.encoders import load_encoder
            from retrievers.indexes.kinds import check_index_spec
            from retrievers.retriever import Retriever

            check_index_spec(index)
            model = load_encoder(
                encoder,
                device=device,
                batch_size=batch_size,
                dtype=dtype,
                workers=workers,
                language=language,
                query_language=query_language,
            )
            meter.expect(count_documents(source), before)
            meter.phase("indexing")
            started = time.monotonic()
            with Retriever.build(output, found, encoder=model, index=index, memory=limit, progress=meter) as retriever:
                count = len(retriever)
            seconds = time.monotonic() - started
    except KeyboardInterrupt:
        complain("stopped; run the same command to go on")
        raise typer.Exit(130) from None
    rate = print_rate((count - before) / max(seconds, 1e-3))
    size = options.print_size(options.folder_size(output))
    typer.echo(f"indexed {options.counted(count - before)} in {seconds:.1f} s ({rate}/s), {size}: {output}")
    if before:
        typer.echo(f"with the {before:,} of the stopped build that makes {options.counted(count)}")
    typer.echo(f"search it: retrievers search {shlex.quote(str(output))} 'your question'")


@app.command()
def add(
    index: options.Index,
    source: options.Source,
    memory: options.Memory = options.DEFAULT_MEMORY,
    device: options.Device = None,
    dtype: options.Dtype = None,
    workers: options.Workers = None,
    id_field: options.IdField = None,
    text_field: options.TextField = None,
    title_field: options.TitleField = None,
    metadata_field: options.MetadataField = None,
    delimiter: options.Delimiter = None,
) -> None:
    """Add documents to an index: all of them, or none.

    \b
    Example:
      retrievers index add idx more.jsonl
    """
    limit = options.parse_memory(memory)
    from retrievers.cli.sources import count_documents, documents

    found = documents(source, id_field, text_field, title_field, metadata_field, delimiter)
    started = time.monotonic()
    with Meter("adding", total=count_documents(source)) as meter, _open(index, device, dtype, workers) as retriever:
        added = retriever.add(found, memory=limit, progress=meter)
        count = len(retriever)
    seconds = time.monotonic() - started
    rate = print_rate(added / max(seconds, 1e-3))
    typer.echo(f"added {options.counted(added)} in {seconds:.1f} s ({rate}/s): {index} now has {count:,}")


@app.command()
def delete(
    index: options.Index,
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="The ids.", show_default=False)] = None,
    ids_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Read ids from a file, one a line; - for standard input.")
    ] = None,
) -> None:
    """Delete documents by id: all of them, or, where one is unknown, none.

    \b
    Examples:
      retrievers index delete idx doc-17 doc-18
      retrievers index delete idx --ids-file gone.txt
    """
    if bool(ids) == (ids_file is not None):
        raise typer.BadParameter("give ids, or --ids-file FILE, and not both", param_hint="ID")
    from retrievers.lines import read_lines

    wanted = list(ids or ()) if ids_file is None else [line for _, line in read_lines(ids_file)]
    with _open(index) as retriever:
        if wanted:
            retriever.delete(wanted)
        count = len(retriever)
    typer.echo(f"deleted {options.counted(len(set(wanted)))}: {index} now has {count:,}")


@app.command()
def merge(index: options.Index, memory: options.Memory = options.DEFAULT_MEMORY) -> None:
    """Fold the segments of an index into fewer, and give back the room of deleted documents.

    \b
    Example:
      retrievers index merge idx
    """
    limit = options.parse_memory(memory)
    from retrievers.indexes.manifest import Manifest

    before, size = len(Manifest.read(index).segments), options.folder_size(index)
    with Meter("merging"), _open(index) as retriever:
        left = retriever.merge(memory=limit)
        count = len(retriever)
    sizes = f"{options.print_size(size)} to {options.print_size(options.folder_size(index))}"
    typer.echo(
        f"merged {options.counted(before, 'segment')} into {left:,}, {sizes}: {index} has {options.counted(count)}"
    )


@app.command()
def tune(
    index: options.Index,
    questions: Annotated[
        Path,
        typer.Argument(
            metavar="QUESTIONS", help="A file of questions: .jsonl (BEIR), .tsv or .txt.", show_default=False
        ),
    ],
    recall: Annotated[float, typer.Option(metavar="SHARE", help="Of the best documents, that are to be found.")] = 0.95,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many best documents count.")] = 10,
) -> None:
    """Set how thoroughly an approximate index searches, by questions like those that it will be asked.

    \b
    Example:
      retrievers index tune idx questions.txt --recall 0.95
    """
    from retrievers.queries import read_queries

    asked = [query.text for query in read_queries(str(questions))]
    with Meter(f"tuning by {options.counted(len(asked), 'question')}"), _open(index) as retriever:
        values = retriever.tune(asked, recall=recall, k=k)
        spec = str(retriever.index)
    typer.echo(f"{index} is searched as {spec}" if values else f"{index} is scanned, which is exact: nothing to set")


@app.command()
def info(index: options.Index, as_json: options.AsJson = False) -> None:
    """Say what an index holds and how it was built.

    \b
    Example:
      retrievers index info idx
    """
    from retrievers.cli.information import examine, print_information

    report = examine(index)
    if as_json:
        options.print_json(report)
    else:
        print_information(report)
    if not report["complete"]:
        warn_unfinished(index, report["documents"])


@app.command()
def verify(index: options.Index) -> None:
    """Read every byte of an index and print each fault; the exit code is 1 where there is one.

    \b
    Example:
      retrievers index verify idx
    """
    from retrievers.indexes.manifest import Manifest
    from retrievers.indexes.verification import verify as find_faults

    size = options.folder_size(index)
    with Meter(f"reading {options.print_size(size)}"):
        faults = find_faults(index)
    for fault in faults:
        typer.echo(fault)
    if faults:
        complain(f"error: {index} has {options.counted(len(faults), 'fault')}")
        raise typer.Exit(1)
    manifest = Manifest.read(index)
    if not manifest.complete:
        warn_unfinished(index, manifest.documents)
    typer.echo(f"{index} is sound: {options.counted(manifest.documents)}, {options.print_size(size)}")


def _open(index: Path, device: str | None = None, dtype: str | None = None, workers: int | None = None) -> Retriever:
    from retrievers.retriever import Retriever

    return Retriever.open(index, device=device, dtype=dtype, workers=workers or 1)


def _stopped(output: Path) -> int:
    """How many documents a stopped build has indexed at ``output``, which is said; 0 where there was none.

    Raises IndexExistsError where a build cannot begin there.
    """
    from retrievers.writer import check_place

    manifest = check_place(output)
    if manifest is None:
        return 0
    complain(
        f"going on with the stopped build of {output}: {options.counted(manifest.documents)} indexed already, "
        "and what else was encoded is used again"
    )
    return manifest.documents
