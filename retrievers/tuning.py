"""Weights for fusion, found on queries with judgements, and kept apart from the queries that they are evaluated on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from retrievers.errors import LeakError, MeasureError, QrelsError, SpecError
from retrievers.evaluation import measure_run, parse_measures
from retrievers.fusion import Fusion, tabulate
from retrievers.queries import check_count

_MOST_TRIALS = 500  # the grid of 3 parts in steps of 1/20 has 231 points, that of 4 has 1,771

Shares = tuple[int, ...]  # weights in whole units of 1 / (steps * parts), in which equal weights are whole too


@dataclass(frozen=True)
class Tuned:
    """Weights that were tuned: of what fusion, one a part, summing to 1; the value that ``measure`` had with them.

    ``tuned_on`` are the ids of the queries that they were tuned on: on those they look better than they are.
    """

    fusion: Fusion
    weights: tuple[float, ...]
    measure: str
    value: float
    tuned_on: frozenset[str] = field(repr=False)

    def refuse(self, queries: Iterable[str]) -> None:
        """Raise LeakError where one of these query ids is among those of the tuning."""
        leaked = sorted(self.tuned_on.intersection(queries))
        if leaked:
            raise LeakError(
                f"{len(leaked)} of the queries, such as {leaked[0]!r}, are among the {len(self.tuned_on)} that the weights "
                "were tuned on: evaluate on others"
            )


def tune(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    fusion: str | Fusion = "rrf",
    measure: str = "nDCG@10",
    steps: int = 20,
    depth: int | None = None,
) -> Tuned:
    """The weights with which the runs fuse best on the queries of ``qrels``; other queries of the runs are not looked at.

    ``qrels`` is ``{query id: {document id: grade}}``. All weights in steps of ``1 / steps``, and the equal ones, are tried
    for two parts and, as long as these are at most 500, for more; beyond that, weight is moved between two parts at a
    time, from equal weights on, while that makes the measure higher. Of weights with one value the nearest to equal are
    taken, and of those the ones with more for earlier parts: the outcome depends on nothing else. ``depth`` is that of
    :func:`retrievers.fusion.fuse`.

    Raises SpecError for a fusion that is not known, where there is no run, and for steps below 1, QueryError for a depth
    below 1, MeasureError for a measure that is not known or more than one, QrelsError where there are no judgements or no
    run has a judged query.
    """
    method = Fusion.parse(fusion)
    parts = len(runs)
    if not runs:
        raise SpecError("there is no run to fuse: give two or more")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise SpecError(f"steps is {steps!r}: it must be a whole number of at least 1")
    if depth is not None:
        check_count("depth", depth)
    measures = parse_measures(measure)
    if len(measures) != 1:
        raise MeasureError(f"{measure!r} names {len(measures)} measures: weights are tuned for one")
    if not qrels:
        raise QrelsError("there are no judgements: give qrels with one query or more")
    if not any(qrels.keys() & run.keys() for run in runs):
        raise QrelsError(f"none of the {len(qrels)} judged queries, such as {next(iter(qrels))!r}, is in a run")
    tables = {query: tabulate(method, runs, query, depth) for query in qrels}
    tried: dict[Shares, float] = {}

    def preference(shares: Shares) -> tuple[float, int, Shares]:
        if shares not in tried:
            factors = method.weigh(shares, parts)
            # Places for scores: exact, and all that a measure looks at.
            run = {
                query: {id: -float(place) for place, (id, _) in enumerate(table.ranked(factors)[:depth])}
                for query, table in tables.items()
            }
            _, means = measure_run(run, qrels, measures)
            tried[shares] = round(means[str(measures[0])], 12)  # values that differ by rounding are one
        return tried[shares], -sum((share - steps) ** 2 for share in shares), shares

    equal = (steps,) * parts
    if parts <= 2 or math.comb(steps + parts - 1, parts - 1) <= _MOST_TRIALS:
        best = max([equal, *_grid(parts, steps, parts)], key=preference)
    else:
        best = _climb(equal, parts, preference)
    return Tuned(
        method, tuple(share / (steps * parts) for share in best), str(measures[0]), tried[best], frozenset(qrels)
    )


def _grid(parts: int, steps: int, unit: int) -> Iterator[Shares]:
    """All ways to share out ``steps`` times ``unit``."""
    if parts == 1:
        yield (steps * unit,)
        return
    for first in range(steps + 1):
        for rest in _grid(parts - 1, steps - first, unit):
            yield (first * unit, *rest)


def _climb(start: Shares, unit: int, preference: Callable[[Shares], tuple[float, int, Shares]]) -> Shares:
    """Move shares between two parts at a time until no move is preferred."""
    best = start
    while True:
        before = best
        for giver in range(len(start)):
            for taker in range(len(start)):
                if giver != taker:
                    best = max(_moves(best, giver, taker, unit), key=preference)
        if best == before:
            return best


def _moves(shares: Shares, giver: int, taker: int, unit: int) -> list[Shares]:
    moved = [shares]
    for amount in {*range(unit, shares[giver], unit), shares[giver]}:
        changed = list(shares)
        changed[giver] -= amount
        changed[taker] += amount
        moved.append(tuple(changed))
    return moved
