"""``retrievers search``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrievers.cli import options
from retrievers.cli.failures import warn_unfinished
from retrievers.cli.progress import Meter

if TYPE_CHECKING:
    from retrievers.cli.hits import Printer
    from retrievers.queries import Query

_BATCH = 256  # queries that are encoded and searched at once
_RERANKED = 16  # with a reranker each takes a hundred times as long, and answers should come as they are found
_DEPTH = 100


class Format(StrEnum):
    """What a search prints."""

    text = "text"
    json = "json"
    trec = "trec"


def search(
    index: options.Index,
    query: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="The queries, each in quotes.", show_default=False),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Hits a query.")] = 10,
    filter: Annotated[
        str | None, typer.Option(metavar="JSON", help="Search only among the documents that a filter permits.")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="text for people, json (one object a line), trec (a run).")
    ] = Format.text,
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Read queries from BEIR's queries.jsonl(.gz), a .tsv (id, tab, query), or a file of one query a line; "
            "- for standard input.",
        ),
    ] = None,
    run_tag: Annotated[str, typer.Option(metavar="NAME", help="The last column of a trec run.")] = "retrievers",
    device: options.Device = None,
    dtype: options.Dtype = None,
    language: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The language of the queries, where it is another than the index remembers."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what each score is made of.")] = False,
    rerank: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Rerank with a cross-encoder or multi-vector model: a folder or a hub name."
        ),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"Hits that are reranked, {_DEPTH} by default.")
    ] = None,
) -> None:
    """Search an index.

    \b
    Examples:
      retrievers search idx 'how to undo a commit' -k 5
      retrievers search idx 'rivers' --filter '{"field": "year", "operator": ">=", "value": 2020}'
      retrievers search idx --queries queries.jsonl --format trec > run.trec
      retrievers search idx 'how to undo a commit' --rerank cross-encoder/ms-marco-MiniLM-L6-v2 --depth 50
    """
    if bool(query) == (queries is not None):
        raise typer.BadParameter("give a query in quotes, or --queries FILE, and not both", param_hint="QUERY")
    if explain and format is Format.trec:
        raise typer.BadParameter("a trec run has no room for explanations", param_hint="--explain")
    if explain and rerank is not None:
        raise typer.BadParameter("a reranker's scores have no parts to show", param_hint="--explain")
    if depth is not None and rerank is None:
        raise typer.BadParameter("it goes with --rerank MODEL", param_hint="--depth")
    reranked = _DEPTH if depth is None else depth
    if rerank is not None and reranked < k:
        raise typer.BadParameter(f"{reranked} is less than the {k} hits asked for with -k", param_hint="--depth")
    if not run_tag or any(character.isspace() for character in run_tag):
        raise typer.BadParameter(f"{run_tag!r} must be a word without white space", param_hint="--run-tag")
    condition = None if filter is None else _parse_filter(filter)
    wanted = _queries(query, queries)

    from retrievers.queries import batches
    from retrievers.rerankers import as_reranker
    from retrievers.retriever import Retriever

    with Retriever.open(index, device=device, dtype=dtype) as retriever:
        if not retriever.complete:
            warn_unfinished(index, len(retriever))
        reranker = None if rerank is None else as_reranker(rerank, device=device, dtype=dtype)
        show = _printer(format, run_tag, headings=queries is not None or len(query or ()) > 1)
        # A person who types queries wants each one's answer before the next, and is not kept waiting.
        typed = queries == "-" and sys.stdin.isatty()
        bar = queries is not None and not sys.stdout.isatty()
        many = _BATCH if reranker is None else _RERANKED
        done = 0
        with nullcontext() if typed else Meter("searching", "queries", bar=bar) as meter:
            for batch in batches(wanted, 1 if typed else many):
                texts = [one.text for one in batch]
                found = retriever.search(texts, k, filter=condition, rerank=reranker, depth=reranked, language=language)
                for one, hits in zip(batch, found, strict=True):
                    parts = None
                    if explain:
                        told = [retriever.explain(one.text, hit.id, language=language) for hit in hits]
                        parts = [explanation.contributions for explanation in told]
                    show(one, hits, parts)
                sys.stdout.flush()
                done += len(batch)
                if meter is not None:
                    meter(done)


def _parse_filter(text: str) -> dict[str, Any]:
    import json

    from retrievers.errors import FilterError
    from retrievers.filters import parse_filter

    try:
        value = json.loads(text)
        if isinstance(value, dict):
            parse_filter(value)
    except json.JSONDecodeError as error:
        place = f"at character {error.pos + 1}: ...{text[max(0, error.pos - 10) : error.pos + 10]}..."
        raise typer.BadParameter(f"not JSON ({error.msg} {place})", param_hint="--filter") from None
    except RecursionError:
        raise typer.BadParameter("nested too deeply", param_hint="--filter") from None
    except FilterError as error:
        raise typer.BadParameter(str(error), param_hint="--filter") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"a filter is a JSON object, got {text!r:.80}", param_hint="--filter")
    return value


def _queries(texts: list[str] | None, source: str | None) -> Iterator[Query]:
    from retrievers.queries import numbered, read_queries

    for text in texts or ():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(f"{text!r:.80} is not UTF-8", param_hint="QUERY") from None
    return numbered(texts or ()) if source is None else read_queries(source)


def _printer(format: Format, tag: str, *, headings: bool) -> Printer:
    from retrievers.cli import hits

    if format is Format.json:
        return hits.print_json
    return hits.TrecPrinter(tag) if format is Format.trec else hits.TextPrinter(headings=headings)
