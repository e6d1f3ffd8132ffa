"""Comparing systems with a baseline, query by query: differences, how sure they are, and where they are largest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from retrievers import significance
from retrievers.errors import ComparisonError
from retrievers.evaluation import Evaluation
from retrievers.runs import ranking
from retrievers.significance import RESAMPLES, TESTS, PValues

LISTED = 10
"""How many queries a system are listed, those that differ most."""

TOP = 5
"""How many hits of a listed query are named."""

_NAMED = 3  # queries or measures that stand in an error


@dataclass(frozen=True)
class Difference:
    """How a system differs from the baseline by one measure.

    ``mean`` is the system's mean over the judged queries and ``difference`` that less the baseline's, with its bootstrap
    ``interval`` of 95 %. ``p`` are the p-values by themselves, ``corrected`` those after Holm's correction over the
    systems. ``wins``, ``ties`` and ``losses`` count queries, and ``effect`` is Cohen's d_z, which can be infinite.
    """

    system: str
    measure: str
    mean: float
    difference: float
    interval: tuple[float, float]
    p: PValues
    corrected: PValues
    wins: int
    ties: int
    losses: int
    effect: float


@dataclass(frozen=True)
class QueryDifference:
    """A query on which a system and the baseline differ: their values, and the ids of their first hits."""

    query: str
    text: str | None
    system: str
    value: float
    baseline_value: float
    hits: tuple[str, ...]
    baseline_hits: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Systems measured on the same queries, beside a baseline.

    ``means`` holds for each measure the mean of each system, the baseline first. ``differences`` go by measure, then
    system. ``extremes`` are, for each system, the queries that differ most by ``measure``, the largest first.
    """

    baseline: str
    measure: str
    queries: int
    means: Mapping[str, Mapping[str, float]]
    differences: tuple[Difference, ...]
    extremes: tuple[QueryDifference, ...]
    evaluations: Mapping[str, Evaluation] = field(repr=False)

    @property
    def systems(self) -> tuple[str, ...]:
        """The names of the systems, the baseline first."""
        return tuple(self.evaluations)

    def latency(self, system: str) -> float | None:
        """The median time of a query in milliseconds, None where that was not measured."""
        speed = self.evaluations[system].speed
        return None if speed is None else speed.p50

    def document_bytes(self, system: str) -> float | None:
        """The bytes of the index on disk for each document, None where that is not known."""
        of = self.evaluations[system]
        return None if of.size is None or not of.documents else of.size / of.documents

    def to_json(self) -> dict[str, Any]:
        """The comparison as a JSON object, without the runs; an infinite effect is null."""
        return {
            "baseline": self.baseline,
            "measure": self.measure,
            "queries": self.queries,
            "systems": {
                system: {
                    "means": {measure: means[system] for measure, means in self.means.items()},
                    "p50_ms": self.latency(system),
                    "bytes_per_document": self.document_bytes(system),
                }
                for system in self.systems
            },
            "differences": [
                {
                    **asdict(one),
                    "interval": list(one.interval),
                    "effect": one.effect if math.isfinite(one.effect) else None,
                }
                for one in self.differences
            ],
            "extremes": [
                {**asdict(one), "hits": list(one.hits), "baseline_hits": list(one.baseline_hits)}
                for one in self.extremes
            ],
        }


def compare(
    evaluations: Mapping[str, Evaluation],
    *,
    baseline: str | None = None,
    measure: str | None = None,
    queries: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare systems, by name, with one of them: ``baseline``, by default the first.

    ``measure`` is the one by which queries are listed that differ most, by default the first of the measures. ``queries``
    are texts, ``{query id: text}``, for that list. ``resamples`` and ``seed`` are those of the randomisation test and of
    the bootstrap; the same seed gives the same comparison.

    Raises ComparisonError for fewer than two systems, a baseline or measure that is not among them, systems that were
    not measured by the same measures on the same queries, and fewer than two judged queries.
    """
    names = list(evaluations)
    if len(names) < 2:
        raise ComparisonError(f"a comparison needs two systems or more, got {names}")
    base = names[0] if baseline is None else baseline
    if base not in evaluations:
        raise ComparisonError(f"the baseline {base!r} is not among the systems: {', '.join(map(repr, names))}")
    ordered = {base: evaluations[base], **evaluations}
    _check_same(base, ordered)
    measures = list(ordered[base].values)
    listed = measures[0] if measure is None else measure
    if listed not in measures:
        raise ComparisonError(f"{listed!r} was not measured, but {', '.join(measures)}")
    ids = {name: list(ordered[base].values[name]) for name in measures}
    values = {
        name: {system: [of.values[name][id] for id in ids[name]] for system, of in ordered.items()} for name in measures
    }
    return Comparison(
        base,
        listed,
        len(ids[listed]),
        {name: {system: math.fsum(v) / len(v) for system, v in of.items()} for name, of in values.items()},
        tuple(one for name in measures for one in _differences(name, base, values[name], resamples, seed)),
        tuple(
            one
            for system in ordered
            if system != base
            for one in _extremes(system, base, ordered, ids[listed], values[listed], queries or {})
        ),
        ordered,
    )


def _differences(
    measure: str, base: str, values: Mapping[str, Sequence[float]], resamples: int, seed: int
) -> list[Difference]:
    others = [system for system in values if system != base]
    raw = {
        system: significance.paired_tests(values[system], values[base], resamples=resamples, seed=seed)
        for system in others
    }
    corrected = {test: significance.holm([getattr(raw[system], test) for system in others]) for test in TESTS}
    made = []
    for at, system in enumerate(others):
        apart = significance.differences(values[system], values[base])
        wins, losses = int((apart > 0).sum()), int((apart < 0).sum())
        made.append(
            Difference(
                system,
                measure,
                math.fsum(values[system]) / len(apart),
                float(apart.mean()),
                significance.bootstrap_interval(values[system], values[base], resamples=resamples, seed=seed),
                raw[system],
                PValues(**{test: corrected[test][at] for test in TESTS}),
                wins,
                len(apart) - wins - losses,
                losses,
                significance.effect_size(values[system], values[base]),
            )
        )
    return made


def _extremes(
    system: str,
    base: str,
    evaluations: Mapping[str, Evaluation],
    ids: Sequence[str],
    values: Mapping[str, Sequence[float]],
    texts: Mapping[str, str],
) -> list[QueryDifference]:
    apart = significance.differences(values[system], values[base])
    # A stable sort: of equal differences, those of the queries that come first.
    most = sorted((at for at in range(len(ids)) if apart[at] != 0), key=lambda at: -abs(apart[at]))[:LISTED]
    return [
        QueryDifference(
            ids[at],
            texts.get(ids[at]),
            system,
            values[system][at],
            values[base][at],
            _top(evaluations[system], ids[at]),
            _top(evaluations[base], ids[at]),
        )
        for at in most
    ]


def _top(evaluation: Evaluation, query: str) -> tuple[str, ...]:
    return tuple(id for id, _ in ranking(evaluation.run.get(query, {}))[:TOP])


def _check_same(base: str, evaluations: Mapping[str, Evaluation]) -> None:
    mine = evaluations[base].values
    if not mine:
        raise ComparisonError(f"{base!r} was evaluated by no measure: give one or more")
    for system, evaluation in evaluations.items():
        _check_equal("measured by", base, mine, system, evaluation.values)
        for measure in mine:
            _check_equal(f"measured by {measure} on", base, mine[measure], system, evaluation.values[measure])


def _check_equal(what: str, base: str, mine: Mapping[str, Any], system: str, other: Mapping[str, Any]) -> None:
    for has, lacks, apart in (
        (base, system, [name for name in mine if name not in other]),
        (system, base, [name for name in other if name not in mine]),
    ):
        if apart:
            named = ", ".join(map(repr, apart[:_NAMED])) + (f" and {len(apart) - _NAMED} more" * (len(apart) > _NAMED))
            raise ComparisonError(
                f"{has!r} was {what} {named}, and {lacks!r} was not: evaluate both with the same qrels and measures"
            )
