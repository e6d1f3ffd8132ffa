"""Running teachers over the candidate lists of a training set, in blocks that outlive the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError
from retrievers.training.blocks import Arrays, Blocks, digest, locked
from retrievers.training.sets import TrainingSet, check_teacher_name
from retrievers.training.teachers import Teacher

FOLDER = "scoring"
_BLOCK = 4096  # candidates: a minute or so of a small cross-encoder on two cores

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scored:
    """What a teacher did: ``reused`` of the ``candidates`` were scored by an earlier run, ``missing`` have no score."""

    teacher: str
    candidates: int
    reused: int
    missing: int

    def __str__(self) -> str:
        parts = [f"{self.teacher} scored {self.candidates - self.missing:,} of {self.candidates:,} candidates"]
        parts += [f"{self.reused:,} taken from an earlier run"] if self.reused else []
        return ", ".join(parts)


def score(
    training_set: TrainingSet,
    teachers: Sequence[Teacher],
    *,
    block: int = _BLOCK,
    progress: Progress | None = None,
) -> list[Scored]:
    """Score all candidates by each teacher and store the scores in the training set, teacher by teacher.

    Queries are worked off in blocks of ``block`` candidates or a few more. A finished block is a file below
    ``scoring/<teacher>/`` of the training set's folder, so that a process that is killed loses at most one; a later call
    with the same teacher (by fingerprint), candidate lists and ``block`` takes what is there. Positives are scored where
    they stand among the candidates, as they do after mining. ``progress`` is called with the number of candidates
    that are done, over all teachers.

    Raises TrainingDataError where there are no candidates, two teachers have one name, a name cannot be stored, or a
    teacher gives other than a number (or NaN) for each candidate; WriterLockedError while another process scores
    with a teacher of the same name; and what the teachers raise.
    """
    names = [teacher.name for teacher in teachers]
    if block < 1:
        raise TrainingDataError(f"block is {block}: give a number of candidates, 1 or more")
    for name in names:
        check_teacher_name(name)  # before the work, not when its scores are stored
        if names.count(name) > 1:
            raise TrainingDataError(f"two teachers are called {name!r}: give each a name of its own")
    if not len(training_set.candidates.rows):
        raise TrainingDataError(f"{training_set.path} has no candidates to score: mine some first (`retrievers mine`)")
    done, reports = 0, []
    for teacher in teachers:
        reports.append(_score(training_set, teacher, block, done, progress))
        done += len(training_set.candidates.rows)
    return reports


@contextmanager
def set_locked(training_set: TrainingSet) -> Iterator[None]:
    """Hold the lock under which a training set's own files are replaced; waits for it, since that is soon done."""
    with locked(training_set.path / FOLDER / ".set.lock", f"changing {training_set.path}", wait=True):
        yield


def _score(training_set: TrainingSet, teacher: Teacher, block: int, before: int, progress: Progress | None) -> Scored:
    lists = training_set.candidates
    root = training_set.path / FOLDER
    key = {
        "fingerprint": teacher.fingerprint,
        "candidates": digest(lists.offsets, lists.rows),
        "block": block,
    }
    values = np.full(len(lists.rows), np.nan, np.float32)
    reused = 0
    with locked(root / f"{teacher.name}.lock", f"scoring {training_set.path} with {teacher.name}"):
        blocks = Blocks(root / teacher.name, key)
        for number, (first, last) in enumerate(_spans(lists.offsets, block)):
            span = slice(int(lists.offsets[first]), int(lists.offsets[last]))
            found = _sound(blocks.load(number), span.stop - span.start)
            if found is None:
                found = _scores(training_set, teacher, range(first, last))
                blocks.save(number, {"scores": found})
            else:
                reused += len(found)
            values[span] = found
            if progress is not None:
                progress(before + span.stop)
        # Teachers may be run by several processes at once, and each replaces the one manifest.
        with set_locked(training_set):
            now = TrainingSet.open(training_set.path).candidates
            if digest(now.offsets, now.rows) != key["candidates"]:
                raise TrainingDataError(
                    f"the candidates of {training_set.path} were changed meanwhile: score them anew"
                )
            training_set.add_scores(teacher.name, values)
    return Scored(teacher.name, len(values), reused, int(np.isnan(values).sum()))


def _spans(offsets: NDArray[np.int64], block: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries with ``block`` candidates or more, but for the last."""
    first, queries = 0, len(offsets) - 1
    while first < queries:
        last = min(queries, int(np.searchsorted(offsets, offsets[first] + block)))
        yield first, max(last, first + 1)
        first = max(last, first + 1)


def _sound(arrays: Arrays | None, wanted: int) -> NDArray[np.float32] | None:
    found = None if arrays is None else arrays.get("scores")
    return found if found is not None and found.shape == (wanted,) and found.dtype == np.float32 else None


def _scores(training_set: TrainingSet, teacher: Teacher, queries: range) -> NDArray[np.float32]:
    lists = training_set.candidates
    given = teacher.score(training_set, queries)
    if len(given) != len(queries):
        raise TrainingDataError(
            f"{teacher.name} gave scores for {len(given)} queries, and was asked about {len(queries)}"
        )
    for query, scores in zip(queries, given, strict=True):
        wanted = len(lists.of(query))
        if np.shape(scores) != (wanted,) or np.isinf(scores).any():
            raise TrainingDataError(
                f"{teacher.name} gave {np.shape(scores)} scores for the {wanted} candidates of query "
                f"{training_set.queries.id(query)!r}, or infinite ones: it must give a number or NaN for each"
            )
    return np.concatenate([np.asarray(scores, np.float32) for scores in given])
