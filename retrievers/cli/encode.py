"""``retrievers encode``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from retrievers.cli import options
from retrievers.cli.progress import Meter, print_rate

_BATCH = 1024  # texts that are encoded and written at once


class Side(StrEnum):
    """Which side of an encoder to use: prompts, lengths and, in some models, weights differ."""

    query = "query"
    document = "document"


def encode(
    source: options.Source,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A .npy (dense) or .npz file.", show_default=False)
    ],
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="bm25, or a model: a folder or a hub name.", show_default=False)
    ],
    side: Annotated[
        Side, typer.Option("--as", help="document, or query: SOURCE is then what `search --queries` takes.")
    ] = Side.document,
    device: options.Device = None,
    batch_size: options.BatchSize = 256,
    dtype: options.Dtype = None,
    workers: options.Workers = None,
    language: options.Language = None,
    id_field: options.IdField = None,
    text_field: options.TextField = None,
    title_field: options.TitleField = None,
    delimiter: options.Delimiter = None,
) -> None:
    """Write the vectors of documents or queries to a file.

    Dense vectors become a .npy file, sparse and lexical ones an .npz file for scipy.sparse.load_npz, multi-vector ones
    an .npz file of values and offsets. The ids go into a .ids.jsonl file beside it, one JSON string a line.

    \b
    Example:
      retrievers encode corpus.jsonl -o corpus.npy --encoder sentence-transformers/all-MiniLM-L6-v2
    """
    from retrievers.cli.sources import count_documents, documents
    from retrievers.cli.vector_files import SUFFIXES, VectorFile
    from retrievers.encoders import load_encoder

    if side is Side.query and any((id_field, text_field, title_field, delimiter)):
        raise typer.BadParameter("fields are for documents", param_hint="--as query")
    with Meter("loading the encoder", "texts") as meter:
        model = load_encoder(
            encoder, device=device, batch_size=batch_size, dtype=dtype, workers=workers, language=language
        )
        path, ids_path = _paths(output, SUFFIXES[model.kind], model.kind)
        if side is Side.query:
            texts = _queries(source)
            run = model.encode_query
        else:
            found = documents(source, id_field, text_field, title_field, None, delimiter)
            texts = ((document.id, document.content) for document in found)
            run = model.encode_document
            meter.expect(count_documents(source))
        meter.phase("encoding")
        started = time.monotonic()
        done = 0
        with VectorFile(path, ids_path, model.kind) as file:
            for ids, contents in _batches(texts):
                file.append(ids, run(contents))
                done += len(ids)
                meter(done)
            size = file.finish()
    seconds = time.monotonic() - started
    typer.echo(
        f"encoded {options.counted(done, 'text')} in {seconds:.1f} s ({print_rate(done / max(seconds, 1e-3))}/s), "
        f"{options.print_size(size)}: {path} and {ids_path}"
    )


def _paths(output: Path, suffix: str, kind: str) -> tuple[Path, Path]:
    found = output.suffix.lower()
    if found in (".npy", ".npz"):
        if found != suffix:
            raise typer.BadParameter(f"{kind} vectors go into a {suffix} file, not {found}", param_hint="--output")
        return output, output.with_suffix(".ids.jsonl")
    return output.with_name(output.name + suffix), output.with_name(output.name + ".ids.jsonl")


def _queries(source: str) -> Iterator[tuple[str, str]]:
    from retrievers.queries import read_queries

    for query in read_queries(source):
        yield query.id, query.text


def _batches(texts: Iterator[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    ids: list[str] = []
    contents: list[str] = []
    for id, content in texts:
        ids.append(id)
        contents.append(content)
        if len(ids) == _BATCH:
            yield ids, contents
            ids, contents = [], []
    if ids:
        yield ids, contents
