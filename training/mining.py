"""Hard negatives: documents that retrievers rank high for a query and that do not answer it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError
from retrievers.indexes.manifest import Manifest
from retrievers.retriever import Retriever
from retrievers.training.blocks import Arrays, Blocks, digest, locked
from retrievers.training.negatives import REASONS, Found, MiningReport, Rules, choose
from retrievers.training.scoring import set_locked
from retrievers.training.sets import TrainingSet
from retrievers.training.strata import Strata
from retrievers.training.teachers import LiveTeacher

FOLDER = "mining"
DEFAULT_STRATA = Strata.parse("1-10:4,11-50:4,51-100:8")
_BATCH = 256  # queries of a batch
_HITS = 25_600  # hits, with their texts, that are held at once: those of a batch at a depth of 100
_TEXTS = 8192  # documents whose texts are compared at a time

Progress = Callable[[int], None]


def mine(
    training_set: TrainingSet,
    retrievers: Sequence[Retriever],
    *,
    strata: Strata | str = DEFAULT_STRATA,
    depth: int | None = None,
    seed: int = 0,
    rules: Rules | None = None,
    teacher: LiveTeacher | None = None,
    batch: int = _BATCH,
    replace: bool = False,
    progress: Progress | None = None,
) -> MiningReport:
    """Mine negatives with each retriever and store, for each query, its positives and then these as its candidates.

    Each retriever is asked for ``depth`` documents (by default the last rank of the strata), which must be those of the
    training set, by id. Its ranking, positives and all, counts the ranks. Out are the positives, documents whose text is that
    of a positive or of a negative drawn before (after white space and case are normalised), and what ``rules`` take for
    false negatives by the scores of *any* retriever. From each stratum of each retriever, in order, its count of what is
    left is drawn by :func:`retrievers.training.strata.lot`, a pure function of ``seed``, query and document; where
    ``rules.margin`` is set, ``teacher`` scores the drawn, and what it refuses is made up for by the next lots.

    Queries go in batches of ``batch``, so that memory does not grow with their number but for the lists themselves and 8
    bytes a document. What the retrievers found is kept below ``mining/`` of the training set's folder, by what the
    manifest of the index says (fingerprint of the encoder, generation, files), never by a name, and so is what was drawn:
    a process that is killed loses at most one batch, and other strata or rules search nothing anew. The folder may be
    deleted when nothing is mined. ``progress`` is
    called with the number of batches that are done; :func:`steps` tells how many there are.

    Raises TrainingDataError where an index is unfinished or holds other documents, options contradict each other, or
    scores of earlier candidates would be lost (``replace``); WriterLockedError while another process mines for this set.
    """
    drawn_from = Strata.parse(strata) if isinstance(strata, str) else strata
    wanted = drawn_from.depth if depth is None else depth
    limits = Rules() if rules is None else rules
    _check(training_set, retrievers, drawn_from, wanted, limits, teacher, batch, replace)
    root = training_set.path / FOLDER
    with locked(root / ".lock", f"mining for {training_set.path}"):
        keys = [_key(retriever) for retriever in retrievers]
        names = [hashlib.sha256(f"{key} {wanted} {batch}".encode()).hexdigest()[:24] for key in keys]
        finds = [
            Blocks(root / f"found-{name}", {"index": key, "depth": wanted, "batch": batch})
            for name, key in zip(names, keys, strict=True)
        ]
        draw_key = {
            "indexes": keys,
            "depth": wanted,
            "batch": batch,
            "strata": str(drawn_from),
            "seed": seed,
            "rules": str(limits),
            "teacher": None if teacher is None or limits.margin is None else teacher.fingerprint,
            "positives": digest(training_set.positives.offsets, training_set.positives.rows),
        }
        drawn = Blocks(root / "drawn", draw_key)
        texts: NDArray[np.uint64] | None = None
        counts: Counter[str] = Counter()
        queries: list[NDArray[np.int64]] = []
        documents: list[NDArray[np.int64]] = []
        for number, rows in enumerate(_batches(len(training_set), batch)):
            block = drawn.load(number)
            if block is None:
                texts = text_hashes(training_set) if texts is None else texts
                found = [
                    _found(blocks, number, training_set, retriever, rows, wanted)
                    for retriever, blocks in zip(retrievers, finds, strict=True)
                ]
                block = choose(training_set, rows, found, texts, drawn_from, seed, limits, teacher)
                drawn.save(number, block)
            counts.update({reason: int(block["counts"][:, at].sum()) for at, reason in enumerate(REASONS)})
            queries.append(block["queries"])
            documents.append(block["documents"])
            if progress is not None:
                progress(number + 1)
        return _store(training_set, queries, documents, counts, drawn_from.count * len(retrievers), replace)


def steps(training_set: TrainingSet, batch: int = _BATCH) -> int:
    """The number of batches of :func:`mine`."""
    return -(-len(training_set) // batch)


def text_hashes(training_set: TrainingSet) -> NDArray[np.uint64]:
    """A 64-bit hash for the text of each document, white space and case normalised, uint64 ``[documents]``.

    Two texts that differ share one with a chance of 1 in 2^64, which would cost one negative.
    """
    count = len(training_set.documents)
    hashes = np.empty(count, np.uint64)
    for first in range(0, count, _TEXTS):
        rows = np.arange(first, min(first + _TEXTS, count))
        normal = (" ".join(text.split()).casefold().encode() for text in training_set.documents.texts(rows))
        digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in normal)
        hashes[rows] = np.frombuffer(digests, "<u8")
    return hashes


def _check(
    training_set: TrainingSet,
    retrievers: Sequence[Retriever],
    strata: Strata,
    depth: int,
    rules: Rules,
    teacher: LiveTeacher | None,
    batch: int,
    replace: bool,
) -> None:
    if not retrievers:
        raise TrainingDataError("there is no retriever to mine with: give one index or more")
    if strata.depth > depth:
        raise TrainingDataError(
            f"the strata {strata} reach to rank {strata.depth}, and depth is {depth}: raise it to {strata.depth} or more"
        )
    if batch < 1:
        raise TrainingDataError(f"batch is {batch}: give a number of queries, 1 or more")
    if (rules.margin is None) != (teacher is None):
        raise TrainingDataError(
            "a margin needs a teacher that judges by it, and a teacher a margin: give both or neither"
        )
    _check_scored(training_set, replace)
    for retriever in retrievers:
        if not retriever.complete:
            raise TrainingDataError(f"the build of {retriever.path} was stopped: finish it before mining with it")


def _check_scored(training_set: TrainingSet, replace: bool) -> None:
    if training_set.teachers and not replace:
        raise TrainingDataError(
            f"{training_set.path} has scores of {', '.join(training_set.teachers)} for its candidates, which new "
            "candidates would throw away: pass replace=True (on the command line --replace)"
        )


def _key(retriever: Retriever) -> str:
    """What an index finds depends on: its manifest, less where the encoder was loaded from."""
    while True:
        manifest = Manifest.read(retriever.path)
        retriever.refresh()
        if Manifest.read(retriever.path) == manifest:  # nobody committed meanwhile: this is what the retriever has open
            break
    encoder = {key: value for key, value in manifest.encoder.items() if key != "reference"}
    segments = [repr(segment) for segment in manifest.segments]
    content = json.dumps([encoder, manifest.index, manifest.generation, segments], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _batches(queries: int, batch: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, queries, batch):
        yield np.arange(first, min(first + batch, queries))


def _found(
    blocks: Blocks,
    number: int,
    training_set: TrainingSet,
    retriever: Retriever,
    queries: NDArray[np.int64],
    depth: int,
) -> Found:
    arrays = blocks.load(number)
    if arrays is None:
        arrays = _search(training_set, retriever, queries, depth)
        blocks.save(number, arrays)
    return Found(arrays["rows"], arrays["scores"])


def _search(training_set: TrainingSet, retriever: Retriever, queries: NDArray[np.int64], depth: int) -> Arrays:
    rows = np.full((len(queries), depth), -1, np.int64)
    scores = np.full((len(queries), depth), np.nan, np.float32)
    each = max(1, _HITS // depth)
    for first in range(0, len(queries), each):
        hits = retriever.search(training_set.queries.texts(queries[first : first + each]), k=depth)
        ids = [hit.id for found in hits for hit in found]
        known = training_set.documents.rows(ids)
        if len(known) and (known < 0).all() and not _shares(training_set, retriever):
            raise TrainingDataError(
                f"{retriever.path} found {len(ids):,} documents, the first {ids[0]!r:.80}, and none of its documents is in "
                f"{training_set.path}: mine with an index over the documents of the training set"
            )
        start = 0
        for at, found in enumerate(hits, first):
            rows[at, : len(found)] = known[start : start + len(found)]
            scores[at, : len(found)] = [hit.score for hit in found]
            start += len(found)
    return {"rows": rows, "scores": scores}


def _shares(training_set: TrainingSet, retriever: Retriever) -> bool:
    """Whether an index holds any document of the training set: one that holds others as well may find only those."""
    documents = training_set.documents
    return any(
        retriever.held(documents.ids(range(first, min(first + _TEXTS, len(documents)))))
        for first in range(0, len(documents), _TEXTS)
    )


def _store(
    training_set: TrainingSet,
    queries: list[NDArray[np.int64]],
    documents: list[NDArray[np.int64]],
    counts: Counter[str],
    wanted: int,
    replace: bool,
) -> MiningReport:
    negatives = np.concatenate(queries)
    each = np.bincount(negatives, minlength=len(training_set))
    short = np.flatnonzero(each < wanted)
    good = training_set.positives
    owners = np.repeat(np.arange(len(good)), good.lengths())
    with set_locked(training_set):
        # Another process may have scored the earlier candidates since this set was opened.
        _check_scored(TrainingSet.open(training_set.path), replace)
        training_set.set_candidates(
            np.concatenate([owners, negatives]), np.concatenate([good.rows, *documents]), replace=replace
        )
    return MiningReport(
        queries=len(training_set),
        wanted=wanted,
        positives=len(good.rows),
        negatives=len(negatives),
        counts={reason: counts[reason] for reason in REASONS},
        short=len(short),
        none=int(np.sum(each == 0)),
        examples=tuple(training_set.queries.ids(short[:5])),
    )
