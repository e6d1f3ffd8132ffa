"""What is evaluated on: queries and judgements from files, from a BEIR folder, or by an id of ir-datasets."""

from __future__ import annotations

from pathlib import Path

import typer

from retrievers.cli.failures import complain
from retrievers.errors import MissingDependencyError, SourceNotFoundError
from retrievers.lines import plain_or_gzipped
from retrievers.queries import read_queries
from retrievers.runs import Qrels, read_qrels

_IRDS = "irds:"


def read_task(
    data: str | None, split: str, queries: str | None, qrels: str | None, *, queries_needed: bool
) -> tuple[dict[str, str] | None, Qrels]:
    """Queries by id (None where they are neither needed nor named) and judgements.

    ``data`` is a BEIR folder (``queries.jsonl`` and ``qrels/<split>.tsv``, plain or gzipped) or ``irds:`` and an id of
    ir-datasets; ``queries`` and ``qrels``, files, stand instead of what it has. Of its own queries, which may be those of
    all splits, only those with a judgement are taken; how many have none is said on standard error.

    Raises SourceNotFoundError and what :func:`read_queries` and :func:`read_qrels` raise; typer.BadParameter where
    something is not named.
    """
    if data is None:
        if qrels is None:
            raise typer.BadParameter("give --qrels FILE, or --data FOLDER", param_hint="--qrels")
        if queries_needed and queries is None:
            raise typer.BadParameter("give --queries FILE, or --data FOLDER", param_hint="--queries")
        return None if queries is None else _texts(queries), read_qrels(qrels)
    if data.startswith(_IRDS):
        found, judged = _from_ir_datasets(data.removeprefix(_IRDS))
        judged = judged if qrels is None else read_qrels(qrels)
    else:
        judged = read_qrels(_file(data, f"qrels/{split}.tsv") if qrels is None else qrels)
        found = _texts(_file(data, "queries.jsonl")) if queries is None else {}
    if queries is not None:
        return _texts(queries), judged
    texts = {id: text for id, text in found.items() if id in judged}
    if len(texts) < len(found):
        complain(f"{len(found) - len(texts):,} queries of {data} have no judgement here and are not asked")
    return texts, judged


def _texts(path: str) -> dict[str, str]:
    return {query.id: query.text for query in read_queries(path)}


def _file(folder: str, name: str) -> str:
    found = plain_or_gzipped(Path(folder) / name)
    if found is None:
        raise SourceNotFoundError(f"{folder} holds no {name}, plain or gzipped: give a BEIR folder, or name the files")
    return found


def _from_ir_datasets(name: str) -> tuple[dict[str, str], Qrels]:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingDependencyError(
            "ids of ir-datasets need that package: pip install 'tri-retrievers[ir-datasets]', or pip install ir-datasets"
        ) from error
    try:
        dataset = ir_datasets.load(name)
    except KeyError:
        raise SourceNotFoundError(f"ir-datasets has no {name!r}: see `ir_datasets list`") from None
    if not (dataset.has_queries() and dataset.has_qrels()):
        raise SourceNotFoundError(f"{name!r} of ir-datasets has no queries or no judgements: name a part that has")
    texts = {query.query_id: query.default_text() for query in dataset.queries_iter()}
    qrels: Qrels = {}
    for one in dataset.qrels_iter():
        qrels.setdefault(one.query_id, {})[one.doc_id] = int(one.relevance)
    return texts, qrels
