"""More training pairs from a few: queries are generated for passages like those of the seeds, in the style of pairs like them.

Source: Seo et al. (2024), "Retrieval-Augmented Data Augmentation for Low-Resource Domain Tasks" (RADA). The filter by
round trip is that of Alberti et al. (2019) and Dai et al. (2023, Promptagator).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retrievers.demonstrations import Demonstration, DemonstrationBank
from retrievers.documents import Document
from retrievers.errors import GenerationError, TrainingDataError
from retrievers.retriever import Retriever
from retrievers.training.generated import (
    AugmentationReport,
    Dropped,
    Generated,
    check_texts,
    fault,
    first_line,
    ranks_of,
    repeated,
)
from retrievers.training.mining import mine
from retrievers.training.near_duplicates import NearTexts
from retrievers.training.prompts import Generate, Pair, QueryPrompt, QueryTemplate
from retrievers.training.seeds import Seed, checked_pairs, find_seeds, text_key
from retrievers.training.sets import TrainingSet
from retrievers.training.strata import Strata, lot

SEED, GENERATED = "seed", "generated"
"""The sources of a training set's queries, before the slash in their ids: see :func:`retrievers.training.sources.sources_of`."""

NEAR = 0.9
"""From this Jaccard coefficient of character trigrams on, two queries are near-duplicates."""

_SEARCHED = 64  # passages that are searched with at once


@dataclass(frozen=True)
class Augmentation:
    """A training set of seeds and generated queries; ``generated`` are the latter in the order of the set."""

    training_set: TrainingSet
    generated: tuple[Generated, ...]
    report: AugmentationReport


def augment(
    seeds: Iterable[tuple[str, str | Document]],
    pool: Retriever,
    generate: Generate,
    folder: str | Path,
    *,
    examples: DemonstrationBank | Iterable[tuple[str, str | Document]] = (),
    evaluation: Iterable[str] = (),
    targets: int = 20,
    depth: int = 100,
    demonstrations: int = 4,
    template: QueryTemplate | None = None,
    words: tuple[int, int] = (2, 64),
    near: float = NEAR,
    judge: Retriever | None = None,
    rank: int = 10,
    negatives: Strata | str | None = None,
    batch: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Augmentation:
    """Generate queries for passages of a collection, from some 10 to 100 pairs of it, and store a training set of both.

    ``seeds`` are pairs of a query and its passage, a text or a Document, of the collection that ``pool`` holds. For each,

    1. the ``demonstrations - 1`` pairs whose passages are most like its own are retrieved from the other seeds and
       ``examples``: more pairs of a query and a passage, of this collection or another. Of a
       :class:`~retrievers.demonstrations.DemonstrationBank`, whose inputs must be passages and outputs their queries, they are
       all taken, by its own index;
    2. ``targets`` passages are drawn, by ``seed``, from the ``depth`` that ``pool`` finds for its passage. No passage is the
       target of two seeds, or says what a seed's or another target does;
    3. ``generate``, any callable, gets lists of up to ``batch`` prompts, which are strings, written by ``template`` of
       demonstrations, the seed's own pair last, and a target. Of each text that it gives the first line is the query.

    Then queries are dropped that have fewer or more ``words`` than these, or hold their passage as a whole; that are
    near a query of a seed or demonstration, or one of ``evaluation``; whose passage is not among the first ``rank`` that
    ``judge`` (by default ``pool``) finds for them, by its id or one of the same text; and that are near one kept before.
    Two queries are near where the Jaccard coefficient of their character trigrams is ``near`` or more. Seeds and examples
    that are near a query of ``evaluation`` are left out at the start.

    The training set in ``folder`` holds all documents of the pool, under their ids, and queries under ``seed/0``, ... and
    ``generated/0``, ..., so that batches can be drawn by source. With ``negatives``, strata of ranks, ``judge`` mines its
    candidates as :func:`retrievers.training.mining.mine` does. ``progress`` is called with the number of queries that were
    generated so far. Nothing but ``generate`` is left to chance: the same arguments give the same set.

    Raises TrainingDataError for options out of range, seeds that are none or not in the pool, and a judge with
    other documents; GenerationError where ``generate`` gives anything but a string for each prompt, or nothing is kept.
    """
    _check(targets, depth, demonstrations, words, near, rank, batch, seed)
    if Path(folder).exists():  # before the work, which may be long
        raise TrainingDataError(f"{folder} exists already: remove it, or give another folder")
    if isinstance(evaluation, str):
        raise TrainingDataError(f"evaluation is the string {evaluation!r:.80}: give a list of queries")
    if not pool.complete:
        raise TrainingDataError(f"the build of {pool.path} was stopped: finish it before augmenting with it")
    strata = Strata.parse(negatives) if isinstance(negatives, str) else negatives
    given = find_seeds(seeds, pool)
    secret = NearTexts.of(evaluation, near)
    leaking = secret.near([one.query for one in given])
    known = [one for number, one in enumerate(given) if number not in leaking]
    if not known:
        raise TrainingDataError(
            f"of {len(given)} seeds {len(leaking)} are near evaluation queries, which leaves none: give pairs of the "
            "collection that are no part of the evaluation"
        )
    checked = pool if judge is None else judge
    found = _targets(known, pool, targets, depth, seed)
    if found and not checked.held(target.id for _, target in found):
        raise TrainingDataError(
            f"{checked.path} holds none of the {len(found)} targets: judge by an index of the collection"
        )
    shown = _demonstrations(known, examples, pool, demonstrations - 1, secret)
    writer = QueryTemplate() if template is None else template
    prompts = [
        writer.prompt([*shown[number], (known[number].query, known[number].document.content)], target)
        for number, target in found
    ]
    dropped = Dropped()
    texts = [first_line(text) for text in _texts(generate, prompts, batch, progress)]
    kept = _by_form(texts, prompts, words, dropped)
    seen = {query for pairs in shown for query, _ in pairs} | {one.query for one in known}
    kept = _apart(kept, texts, NearTexts.of(sorted(seen), near), "seed", dropped)
    kept = _apart(kept, texts, secret, "evaluation", dropped)
    ranks = ranks_of(checked, [(texts[at], prompts[at].target) for at in kept], rank)
    for at, place in zip(kept, ranks, strict=True):
        if place is None:
            dropped.add("lost", texts[at])
    back = {at: place for at, place in zip(kept, ranks, strict=True) if place is not None}
    again = repeated([texts[at] for at in back], near)
    for number, at in enumerate(back):
        if number in again:
            dropped.add("repeated", texts[at])
    made = tuple(
        Generated(texts[at], prompts[at].target.id, found[at][0], place)
        for number, (at, place) in enumerate(back.items())
        if number not in again
    )
    report = AugmentationReport(len(given), len(leaking), len(found), dropped.counts(), len(made), dropped.examples())
    if not made:
        raise GenerationError(
            f"none of {len(found)} generated queries is kept ({'; '.join(str(report).splitlines()[1:])}): mend the generator or "
            "its template, or raise rank"
        )
    training_set = _stored(folder, known, made, pool)
    if strata is not None:
        report = replace(report, mining=mine(training_set, [checked], strata=strata, seed=seed))
    return Augmentation(training_set, made, report)


def _check(
    targets: int,
    depth: int,
    demonstrations: int,
    words: tuple[int, int],
    near: float,
    rank: int,
    batch: int,
    seed: int,
) -> None:
    for name, value, least in (
        ("targets", targets, 1),
        ("depth", depth, 1),
        ("demonstrations", demonstrations, 1),
        ("rank", rank, 1),
        ("batch", batch, 1),
        ("seed", seed, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise TrainingDataError(f"{name} is {value!r}: give a whole number, {least} or more")
    if targets > depth:
        raise TrainingDataError(
            f"targets is {targets}, drawn from a depth of {depth}: raise depth to {targets} or more"
        )
    if not 1 <= words[0] <= words[1]:
        raise TrainingDataError(f"words is {words!r}: give the fewest and the most of a query, 1 or more")
    if not 0.5 <= near <= 1:
        raise TrainingDataError(f"near is {near!r}: it is a Jaccard coefficient from 0.5 to 1")


def _targets(seeds: Sequence[Seed], pool: Retriever, targets: int, depth: int, seed: int) -> list[tuple[int, Document]]:
    """Passages to ask queries for, each with the number of its seed."""
    taken = {text_key(one.document) for one in seeds}
    found: list[tuple[int, Document]] = []
    for first in range(0, len(seeds), _SEARCHED):
        some = seeds[first : first + _SEARCHED]
        hits = pool.search([one.document.content for one in some], depth)
        for number, (one, near) in enumerate(zip(some, hits, strict=True), first):
            lots = {hit.id: lot(seed, one.query, hit.id) for hit in near}
            drawn = 0
            for document in sorted((hit.document for hit in near), key=lambda document: lots[document.id]):
                if drawn < targets and text_key(document) not in taken and document.content.strip():
                    taken.add(text_key(document))
                    found.append((number, document))
                    drawn += 1
    return found


def _demonstrations(
    seeds: Sequence[Seed],
    examples: DemonstrationBank | Iterable[tuple[str, str | Document]],
    pool: Retriever,
    count: int,
    secret: NearTexts,
) -> list[list[Pair]]:
    """The pairs that are shown beside each seed, the nearest last, none of them near an evaluation query."""
    passages = [one.document.content for one in seeds]
    if not count:
        return [[] for _ in seeds]
    if isinstance(examples, DemonstrationBank):
        return _selected(examples, passages, count, secret)
    more = [
        (query, passage.content if isinstance(passage, Document) else passage)
        for query, passage in checked_pairs(examples, "example")
    ]
    pairs = [*((one.query, passage) for one, passage in zip(seeds, passages, strict=True)), *more]
    with (
        tempfile.TemporaryDirectory(prefix="retrievers-augmentation-") as place,
        DemonstrationBank.build(
            f"{place}/bank",
            (Demonstration(str(at), "pairs", passage, query) for at, (query, passage) in enumerate(pairs)),
            encoder=pool.encoder,
        ) as bank,
    ):
        return _selected(bank, passages, count, secret)


def _selected(bank: DemonstrationBank, passages: Sequence[str], count: int, secret: NearTexts) -> list[list[Pair]]:
    # A bank selects nothing that is near its input, and so not the pair of the passage itself.
    found = []
    for selected in bank.select(passages, count):
        leaking = secret.near([one.demonstration.output for one in selected])
        found.append(
            [
                (one.demonstration.output, one.demonstration.input)
                for at, one in enumerate(selected)
                if at not in leaking
            ]
        )
    return found


def _texts(
    generate: Generate, prompts: Sequence[QueryPrompt], batch: int, progress: Callable[[int], None] | None
) -> Iterator[str]:
    for first in range(0, len(prompts), batch):
        some = list(prompts[first : first + batch])
        yield from check_texts(generate(list(some)), len(some), first)
        if progress is not None:
            progress(first + len(some))


def _by_form(
    texts: Sequence[str], prompts: Sequence[QueryPrompt], words: tuple[int, int], dropped: Dropped
) -> list[int]:
    kept = []
    for at, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        reason = fault(text, prompt.target.text or prompt.target.title, words)
        if reason is None:
            kept.append(at)
        else:
            dropped.add(reason, text)
    return kept


def _apart(kept: Sequence[int], texts: Sequence[str], known: NearTexts, reason: str, dropped: Dropped) -> list[int]:
    near = known.near([texts[at] for at in kept])
    for number, at in enumerate(kept):
        if number in near:
            dropped.add(reason, texts[at])
    return [at for number, at in enumerate(kept) if number not in near]


def _stored(folder: str | Path, seeds: Sequence[Seed], made: Sequence[Generated], pool: Retriever) -> TrainingSet:
    ids = {query: f"{SEED}/{number}" for number, query in enumerate(dict.fromkeys(one.query for one in seeds))}
    pairs = [(ids[one.query], one.document.id) for one in seeds]
    more = [(f"{GENERATED}/{number}", one) for number, one in enumerate(made)]
    return TrainingSet.build(
        folder,
        [*((id, query) for query, id in ids.items()), *((id, one.query) for id, one in more)],
        pool.snapshot.all_documents(),
        [*pairs, *((id, one.document) for id, one in more)],
    )
