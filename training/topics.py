"""Topics: queries in clusters, found once before training; batches are drawn from them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.encoders import Encoder
from retrievers.errors import TrainingDataError, VectorError
from retrievers.indexes.exact import import_faiss
from retrievers.indexes.files import replace_file
from retrievers.training.batches import generator
from retrievers.vectors import TokenVectors, Vectors, check, count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1
ENOUGH = 39
"""Queries a topic, on average, below which FAISS holds k-means to be unreliable."""

_PROJECTED = 256  # dimensions that sparse vectors are brought to
_COLUMNS = 1 << 15  # columns that are projected at a time
_TEXTS = 1 << 12  # queries that are encoded at a time
_SAMPLED = 256  # queries a topic that train its centroid
_HELD = 1 << 30  # bytes of vectors up to which no query is encoded twice
_SAMPLE = 31  # no two purposes of one seed share a stream
_LARGEST = 1e15  # sums of squares of larger values could overflow float32
_NAMES = ("format", "assignment", "distances", "wanted")


@dataclass(frozen=True, eq=False)
class Topics:
    """Which topic each query belongs to.

    ``assignment`` is int64 ``[queries]``, from 0 to ``count - 1``, and no topic is empty. ``distances``, float32
    ``[queries]``, tell how far a query is from the centroid of its topic, in squared Euclidean distance (for spherical
    k-means 2 minus twice the cosine). ``wanted`` is the number of topics that was asked for: more than ``count``
    where clusters came out empty, as they do where many queries are the same.
    """

    assignment: NDArray[np.int64]
    count: int
    distances: NDArray[np.float32]
    wanted: int

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.assignment)

    def sizes(self) -> NDArray[np.int64]:
        """How many queries each topic has, int64 ``[count]``."""
        return np.bincount(self.assignment, minlength=self.count).astype(np.int64, copy=False)

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file, which appears whole or not at all."""
        out = io.BytesIO()
        np.savez(out, format=FORMAT, assignment=self.assignment, distances=self.distances, wanted=self.wanted)
        replace_file(Path(path), out.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote. Raises TrainingDataError where there is no such file, or it is damaged."""
        mend = "restore the file, or find the topics again"
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: np.asarray(file[name]) for name in _NAMES}
        except FileNotFoundError:
            raise TrainingDataError(f"there are no topics at {path}: find them first, and save them") from None
        except _DAMAGE as error:
            raise TrainingDataError(f"{path} does not hold topics ({error}): {mend}") from error
        version, assignment, distances, wanted = (found[name] for name in _NAMES)
        if version.shape or int(version) != FORMAT:
            raise TrainingDataError(f"{path} was written by another version of the library: find the topics again")
        fits = assignment.dtype == np.int64 and distances.dtype == np.float32 and wanted.shape == ()
        if not fits or assignment.ndim != 1 or assignment.shape != distances.shape or not len(assignment):
            raise TrainingDataError(f"{path} does not hold topics (its arrays do not fit each other): {mend}")
        number = int(assignment.max()) + 1
        whole = assignment.min() >= 0 and number <= len(assignment) and np.bincount(assignment).all()
        if not whole or number > int(wanted):
            raise TrainingDataError(f"{path} does not hold topics (they are not numbered from 0): {mend}")
        return cls(assignment, number, distances, int(wanted))


@dataclass(frozen=True)
class Topic:
    """A topic as a line of a table: how many queries it has, and those nearest to its centroid, the nearest first."""

    topic: int
    size: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class TopicTable:
    """The topics, the largest first, and what is to be said about them: empty where all is well."""

    topics: tuple[Topic, ...]
    advice: tuple[str, ...]


def find_topics(vectors: Vectors, k: int, *, seed: int = 0, spherical: bool = False) -> Topics:
    """Cluster the vectors of queries by k-means (FAISS; Lloyd's algorithm from random queries, 25 rounds).

    ``vectors`` are float32 ``[n, dim]``. Those of other kinds are brought into that form: sparse ones by a random
    projection to 256 dimensions that ``seed`` determines (Achlioptas, "Database-friendly random projections", 2003),
    multi-vectors by the mean of their token vectors. ``spherical`` clusters by angle: vectors and centroids are scaled to
    length 1. Of more than 256 queries a topic, a random 256 a topic train the centroids.

    The same vectors, ``k`` and ``seed`` give the same topics; another number of threads may change the last bit of
    a distance, and with it the topic of a query midway between two centroids. Topics are therefore found once, saved, and
    read by every process.

    Raises TrainingDataError where ``k`` is below 1 or above the number of queries, VectorError for vectors that are not
    well formed, and MissingDependencyError where faiss is not installed.
    """
    points = _dense(vectors, seed)
    _check_k(k, len(points))
    chosen = _sample(len(points), k, seed)
    some = points if len(chosen) == len(points) else points[chosen]
    return _topics(_Means(some, k, seed, spherical), [points])


def find_topics_of(encoder: Encoder, texts: Sequence[str], k: int, *, seed: int = 0, spherical: bool = False) -> Topics:
    """:func:`find_topics` of the vectors that an encoder of any kind gives for queries.

    Where their vectors would take more than a GiB, those of the random 256 a topic alone are held at once, and these queries
    are encoded twice.
    """
    _check_k(k, len(texts))

    def encoded(rows: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(rows), _TEXTS):
            yield _dense(encoder.encode_query([texts[row] for row in rows[start : start + _TEXTS]]), seed)

    width = next(encoded(range(1))).shape[1]
    chosen = _sample(len(texts), k, seed)
    if len(texts) * width * 4 <= _HELD or len(chosen) == len(texts):
        return find_topics(np.concatenate([*encoded(range(len(texts)))]), k, seed=seed, spherical=spherical)
    means = _Means(np.concatenate([*encoded(chosen)]), k, seed, spherical)
    return _topics(means, encoded(range(len(texts))))


class _Means:
    """The centroids of some points, to which all are assigned."""

    def __init__(self, points: NDArray[np.float32], k: int, seed: int, spherical: bool) -> None:
        faiss = import_faiss()
        self._spherical = spherical
        points = self._scaled(points)
        folded = int(np.random.SeedSequence(seed).generate_state(1)[0]) & 0x7FFFFFFF  # FAISS takes 31 bits
        # FAISS would print its warning of few points from C; describe_topics says it.
        self._found = faiss.Kmeans(
            points.shape[1], k, niter=25, seed=folded, spherical=spherical, min_points_per_centroid=1
        )
        self._found.train(points)
        self.wanted = k

    def assign(self, points: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The nearest centroid of each point, and the squared distance to it."""
        nearness, found = self._found.assign(self._scaled(points))
        return found, np.maximum(2 - 2 * nearness if self._spherical else nearness, 0).astype(np.float32)

    def _scaled(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        largest = max(float(points.max(initial=0.0)), -float(points.min(initial=0.0)))
        if largest > _LARGEST:
            raise VectorError(f"vectors hold {largest:g}, too large to be clustered in float32: scale them down")
        if self._spherical:
            lengths = np.sqrt(np.einsum("ij,ij->i", points, points, dtype=np.float64))[:, None]
            points = (points / np.where(lengths > 0, lengths, 1)).astype(np.float32)
        return np.ascontiguousarray(points)


def _topics(means: _Means, blocks: Iterable[NDArray[np.float32]]) -> Topics:
    found, distances = (np.concatenate(part) for part in zip(*map(means.assign, blocks), strict=True))
    used, assignment = np.unique(found, return_inverse=True)
    return Topics(assignment.astype(np.int64), len(used), distances, means.wanted)


def _sample(count: int, k: int, seed: int) -> NDArray[np.int64]:
    """The rows that train ``k`` centroids, ascending."""
    if count <= _SAMPLED * k:
        return np.arange(count)
    chosen = generator(seed, _SAMPLE).choice(count, _SAMPLED * k, replace=False)
    return np.sort(chosen).astype(np.int64, copy=False)


def _check_k(k: int, count: int) -> None:
    if not 1 <= k <= count:
        raise TrainingDataError(
            f"{k} topics of {count} queries: give 1 to {count} (at most {max(1, count // ENOUGH)} for {ENOUGH} queries in "
            "each)"
        )


def describe_topics(topics: Topics, texts: Sequence[str], examples: int = 3) -> TopicTable:
    """The sizes of topics, and the ``examples`` queries of each that are nearest to its centroid.

    ``texts`` are those of the queries. Raises TrainingDataError where there are not as many.
    """
    if len(texts) != len(topics):
        raise TrainingDataError(f"{len(texts)} texts for the topics of {len(topics)} queries: give all, in their order")
    sizes = topics.sizes()
    order = np.lexsort((topics.distances, topics.assignment))
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    lines = [
        Topic(topic, size, tuple(texts[int(row)] for row in order[firsts[topic] :][: min(max(examples, 0), size)]))
        for topic, size in enumerate(sizes.tolist())
    ]
    advice = []
    if topics.wanted > topics.count:
        advice.append(
            f"{topics.wanted - topics.count:,} of {topics.wanted:,} clusters came out empty: many queries may be the same, "
            "or there are fewer topics"
        )
    if len(topics) < ENOUGH * topics.count:
        advice.append(
            f"{len(topics) / topics.count:.1f} queries a topic, and k-means wants {ENOUGH}: ask for at most "
            f"{max(1, len(topics) // ENOUGH):,} topics"
        )
    return TopicTable(tuple(sorted(lines, key=lambda line: (-line.size, line.topic))), tuple(advice))


def plot_topics(topics: Topics, path: str | Path) -> None:
    """Draw the sizes of the topics, the largest first, into a file that appears whole or not at all.

    The name ends with ``.svg``, ``.png`` or ``.pdf``. Raises TrainingDataError for another, and MissingDependencyError
    where matplotlib is not installed.
    """
    place = Path(path)
    form = place.suffix.lower().removeprefix(".")
    if form not in ("svg", "png", "pdf"):
        raise TrainingDataError(f"a plot cannot be written to {place}: give a name that ends with .svg, .png or .pdf")
    out = io.BytesIO()
    _bars(topics).savefig(out, format=form)
    replace_file(place, out.getvalue())


def _bars(topics: Topics) -> Figure:
    from retrievers.report import require_plots

    require_plots()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    sizes = np.sort(topics.sizes())[::-1]
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(np.arange(1, len(sizes) + 1), sizes, width=0.8 if len(sizes) <= 60 else 1.0)
    axes.axhline(float(sizes.mean()), color="#999", linewidth=1, label=f"mean: {sizes.mean():.1f}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{len(sizes):,} topics, the largest first")
    axes.set_ylabel("queries")
    axes.margins(x=0.01)
    axes.legend()
    return figure


_DAMAGE = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    SyntaxError,  # of an array's header
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    MemoryError,
    RuntimeError,  # NotImplementedError is one: a way of compressing that no one uses
    UnicodeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def _dense(vectors: Any, seed: int) -> NDArray[np.float32]:
    """Vectors of any kind as float32 ``[n, dim]``."""
    if isinstance(vectors, np.ndarray):
        check(vectors, "dense", vectors.shape[0] if vectors.ndim else 0)
        return vectors
    if isinstance(vectors, TokenVectors):
        check(vectors, "multi-vector", count(vectors))
        lengths = np.diff(vectors.offsets)
        sums = np.zeros((len(vectors), vectors.values.shape[1]), np.float32)
        filled = np.flatnonzero(lengths)
        if len(filled):
            sums[filled] = np.add.reduceat(vectors.values, vectors.offsets[filled], axis=0)
        return sums / np.maximum(lengths, 1).astype(np.float32)[:, None]
    if getattr(vectors, "format", None) != "csr":
        raise VectorError(
            f"topics are found of a float32 array [n, dim], a csr_matrix or TokenVectors; got {type(vectors).__name__}"
        )
    check(vectors, "sparse", count(vectors))
    return _projected(vectors, seed)


def _projected(vectors: Any, seed: int) -> NDArray[np.float32]:
    from scipy.sparse import csr_matrix

    # Only columns in use: those of a lexical encoder are hashes, among billions. The signs of a column are a function of
    # the seed and the column, so that batches of queries are projected alike.
    columns, places = np.unique(vectors.indices, return_inverse=True)
    narrow = csr_matrix((vectors.data, places, vectors.indptr), shape=(vectors.shape[0], len(columns))).tocsc()
    out = np.zeros((vectors.shape[0], _PROJECTED), np.float32)
    for start in range(0, len(columns), _COLUMNS):
        out += narrow[:, start : start + _COLUMNS] @ _signs(columns[start : start + _COLUMNS], seed)
    return out


def _signs(columns: NDArray[Any], seed: int) -> NDArray[np.float32]:
    """Signs over the root of the number of dimensions, float32 ``[columns, dimensions]``, from hashed counters."""
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    words: NDArray[np.uint64] = columns.astype(np.uint64)[:, None] * np.uint64(_PROJECTED // 64)
    words = np.asarray(words + np.arange(1, _PROJECTED // 64 + 1, dtype=np.uint64), np.uint64)
    state: NDArray[np.uint64] = np.asarray(words * np.uint64(0x9E3779B97F4A7C15) + key, np.uint64)
    # The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    bits = np.unpackbits(state.astype("<u8").view(np.uint8), axis=1)
    return np.where(bits, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(_PROJECTED))
