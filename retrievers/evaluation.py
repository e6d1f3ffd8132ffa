"""How good a retriever, or a run, is: measures by their names, query by query, and what a search costs.

Values are trec_eval's own, by way of ir-measures. A judged query for which nothing was found counts with the value that
trec_eval's ``-c`` gives it, mostly 0, and a query without any judgement is left out of the means; both are reported.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from retrievers.errors import MeasureError, MissingDependencyError, QrelsError, QueryError
from retrievers.runs import Run, ranking, run_of

if TYPE_CHECKING:
    from retrievers.documents import Hit

MEASURES = "nDCG@10 R@100 RR@10 AP"
"""The default measures."""

DEPTH = 100
"""How many hits a query are searched where the measures look no deeper."""

_TIMED = 1000  # queries that are also searched one at a time,
_TIMED_SECONDS = 30.0  # and for how long, where that leaves
_TIMED_LEAST = 10  # of them
_BATCH = 256  # queries that are searched at once


class Searcher(Protocol):
    """What can be evaluated: a :class:`retrievers.Retriever`, or anything with its ``search``."""

    def search(self, query: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The hits of each query, best first."""
        ...


@dataclass(frozen=True)
class Speed:
    """What searching took, encoding and reading the documents included.

    ``queries_per_second`` is that of all queries in batches; ``p50`` and ``p99`` are milliseconds of a query on its own,
    over ``timed`` queries.
    """

    queries_per_second: float
    p50: float
    p99: float
    timed: int


@dataclass(frozen=True)
class Evaluation:
    """The outcome of an evaluation.

    ``values`` holds for each measure the value of each judged query, ``means`` what trec_eval gives for all of them: the
    mean, or for counts the sum. ``unjudged`` are queries that were asked and have no judgement, which count for nothing;
    ``unasked`` judged queries that were not asked, and ``empty`` those for which nothing was found, which count with the
    value for no hits. ``absent`` holds for each query the judged documents that the index lacks, and is None where that is
    not known. ``memory`` is the most that the process has held, and ``size`` what the index takes on disk, in bytes.
    """

    values: Mapping[str, Mapping[str, float]]
    means: Mapping[str, float]
    run: Run = field(repr=False)
    unjudged: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    absent: Mapping[str, tuple[str, ...]] | None = None
    speed: Speed | None = None
    documents: int | None = None
    size: int | None = None
    memory: int | None = None


def evaluate(
    retriever: Searcher | Mapping[str, Mapping[str, float]],
    queries: Mapping[str, str] | None,
    qrels: Mapping[str, Mapping[str, int]],
    measures: str | Sequence[str] = MEASURES,
    *,
    k: int | None = None,
) -> Evaluation:
    """Search all queries and measure what was found; or measure a run, with ``queries`` None.

    ``queries`` is ``{query id: text}``, ``qrels`` ``{query id: {document id: grade}}``. ``measures`` are names of
    ir-measures, in a sequence or a string with spaces. ``k`` is the number of hits to search for, by default the deepest
    cut-off of the measures and at least 100.

    Raises MeasureError for a measure that is not known, QueryError and QrelsError where there are no queries or no
    judgements, or none of one for any of the other.
    """
    parsed = parse_measures(measures)
    if not qrels:
        raise QrelsError("there are no judgements: give qrels with one query or more")
    if isinstance(retriever, Mapping):
        if queries is not None:
            raise QueryError("a run has been searched already: pass None for its queries")
        run: Run = {query: dict(found) for query, found in retriever.items()}
        return _measured(run, qrels, parsed)
    if not queries:
        raise QueryError("there are no queries: give {query id: text} with one or more")
    depth = k if k is not None else max([DEPTH, *(cutoff for measure in parsed if (cutoff := _cutoff(measure)))])
    texts = list(queries.values())
    started = time.perf_counter()
    hits = [
        found
        for first in range(0, len(texts), _BATCH)
        for found in retriever.search(texts[first : first + _BATCH], depth)
    ]
    seconds = time.perf_counter() - started
    return _measured(
        run_of(queries, hits),
        qrels,
        parsed,
        absent=_absent(retriever, qrels),
        speed=_speed(retriever, texts, depth, len(texts) / max(seconds, 1e-9)),
        documents=len(retriever) if isinstance(retriever, Sized) else None,
        size=getattr(retriever, "size", None),
        memory=_peak_memory(),
    )


def parse_measures(measures: str | Sequence[str]) -> list[Any]:
    """The measures of ir-measures with these names, each once, in order.

    Raises MeasureError for a name that is not known and one whose provider is not installed, MissingDependencyError where
    ir-measures is not.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise MissingDependencyError(
            "measures need ir-measures: pip install 'tri-retrievers[evaluate]', or pip install ir-measures"
        ) from error
    names = measures.replace(",", " ").split() if isinstance(measures, str) else list(measures)
    if not names:
        raise MeasureError(f"no measure is named: give one or more, such as {MEASURES!r}")
    parsed: dict[Any, None] = {}
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            supported = ir_measures.DefaultPipeline.supports(measure)
        except (ValueError, NameError, KeyError, SyntaxError, AssertionError, TypeError) as error:
            raise MeasureError(
                f"there is no measure {name!r} ({error}): the names are those of ir-measures, such as {MEASURES}"
            ) from error
        if not supported:
            raise MeasureError(f"nothing that is installed computes {name!r}: see the providers of ir-measures")
        parsed[measure] = None
    return list(parsed)


def measure_run(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], measures: Sequence[Any]
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """The value of each parsed measure for each judged query, and over all of them.

    Raises RunError for NaN.
    """
    import ir_measures

    # By the places alone, so that every provider of ir-measures breaks ties as trec_eval does. pytrec_eval crashes on a
    # query without hits, which counts as one that is not there, and on one whose grades are all negative.
    ranked = {
        query: {id: float(-place) for place, (id, _) in enumerate(ranking(found), 1)}
        for query, found in run.items()
        if found
    }
    judged = {
        query: dict(grades) if any(grade >= 0 for grade in grades.values()) else dict.fromkeys(grades, 0)
        for query, grades in qrels.items()
        if grades
    }
    values: dict[str, dict[str, float]] = {str(measure): {} for measure in measures}
    totals = {measure: measure.aggregator() for measure in measures}
    for metric in ir_measures.iter_calc(list(measures), judged, ranked):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
        totals[metric.measure].add(metric.value)
    # In the order of the qrels, whatever the order in which providers answer.
    ordered = {name: {query: mine[query] for query in qrels if query in mine} for name, mine in values.items()}
    return ordered, {str(measure): float(total.result()) for measure, total in totals.items()}


def _measured(run: Run, qrels: Mapping[str, Mapping[str, int]], measures: Sequence[Any], **more: Any) -> Evaluation:
    if not any(grades for query, grades in qrels.items() if query in run):
        raise QrelsError(
            f"no query has a judgement: queries are such as {next(iter(run), None)!r}, and judged ones such as "
            f"{next(iter(qrels))!r}. Are they of one collection?"
        )
    values, means = measure_run(run, qrels, measures)
    return Evaluation(
        values,
        means,
        run,
        unjudged=tuple(query for query in run if query not in qrels),
        unasked=tuple(query for query in qrels if query not in run),
        empty=tuple(query for query, found in run.items() if not found),
        **more,
    )


def _cutoff(measure: Any) -> int | None:
    found = measure.params.get("cutoff")
    return found if isinstance(found, int) else None


def _absent(retriever: object, qrels: Mapping[str, Mapping[str, int]]) -> dict[str, tuple[str, ...]] | None:
    held = getattr(retriever, "held", None)
    if held is None:
        return None
    wanted = list(dict.fromkeys(id for grades in qrels.values() for id in grades))
    known = held(wanted)
    missing = {query: tuple(id for id in grades if id not in known) for query, grades in qrels.items()}
    return {query: ids for query, ids in missing.items() if ids}


def _speed(retriever: Searcher, texts: Sequence[str], k: int, rate: float) -> Speed:
    times: list[float] = []
    begun = time.perf_counter()
    # In an order of their own, so that a part of them stands for all.
    for text in random.Random(0).sample(texts, min(len(texts), _TIMED)):
        started = time.perf_counter()
        retriever.search([text], k)
        ended = time.perf_counter()
        times.append(1e3 * (ended - started))
        if ended - begun > _TIMED_SECONDS and len(times) >= _TIMED_LEAST:
            break
    p50, p99 = np.quantile(times, [0.5, 0.99], method="higher").tolist()
    return Speed(rate, p50, p99, len(times))


def _peak_memory() -> int | None:
    if os.name == "nt":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
