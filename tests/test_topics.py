"""Topics: k-means finds what is there, alike for a seed, of vectors of every kind; files, tables and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder

from retrievers import LexicalEncoder
from retrievers.errors import TrainingDataError, VectorError
from retrievers.training.topics import Topics, describe_topics, find_topics, find_topics_of, plot_topics
from retrievers.vectors import TokenVectors, Vectors

pytest.importorskip("faiss", reason="faiss is not installed")

#: 5 clusters of 40 queries, far apart, mixed up.
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(5), 40))


def points(spread: float = 0.1) -> Any:
    rng = np.random.default_rng(2)
    return (10 * np.eye(5, 8)[LABELS] + spread * rng.standard_normal((200, 8))).astype(np.float32)


def sparse() -> Any:
    """20 columns a cluster, among millions; a query has 8 of its own."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(3)
    columns = np.concatenate([rng.choice(20, 8, replace=False) + 1_000_003 * label for label in LABELS])
    return csr_matrix((np.ones(1600, np.float32), (np.repeat(np.arange(200), 8), columns)), shape=(200, 10**7))


def tokens() -> TokenVectors:
    lengths = np.arange(200) % 3 + 1
    return TokenVectors(
        np.repeat(points(), lengths, axis=0), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    )


def same(assignment: Any, labels: Any) -> bool:
    """Whether two assignments are one, but for the names."""
    return len(set(zip(assignment.tolist(), labels.tolist(), strict=True))) == len(set(assignment.tolist())) == 5


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("make", [points, sparse, tokens])
def test_clusters_are_found_in_vectors_of_every_kind(make: Any, spherical: bool) -> None:
    vectors: Vectors = make()
    # Lloyd's algorithm depends on where it starts: of ten seeds the tightest.
    found = min((find_topics(vectors, 5, seed=seed, spherical=spherical) for seed in range(10)), key=tightness)
    assert same(found.assignment, LABELS)
    assert (found.count, found.wanted, len(found)) == (5, 5, 200)
    assert found.sizes().tolist() == [40] * 5
    assert (found.assignment.dtype, found.distances.dtype) == (np.int64, np.float32)


def tightness(topics: Topics) -> float:
    return float(topics.distances.sum())


def test_topics_are_a_function_of_vectors_and_seed() -> None:
    vectors = (
        np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    )  # no clusters: any start another end
    one, again, other = (find_topics(vectors, 12, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(one.assignment, again.assignment)
    np.testing.assert_array_equal(one.distances, again.distances)
    assert (one.assignment != other.assignment).any()
    projected, anew = find_topics(sparse(), 5, seed=1), find_topics(sparse(), 5, seed=1)
    np.testing.assert_array_equal(projected.assignment, anew.assignment)


def test_distances_are_those_to_the_mean() -> None:
    vectors = points(2.0)
    found = find_topics(vectors, 4)
    centroids = np.array([vectors[found.assignment == topic].mean(axis=0) for topic in range(4)])
    squared = ((vectors[:, None] - centroids) ** 2).sum(axis=2)
    np.testing.assert_allclose(found.distances, squared.min(axis=1), rtol=1e-3)
    np.testing.assert_array_equal(found.assignment, squared.argmin(axis=1))


def test_topics_of_texts_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word{label} word{label} other{row}" for row, label in enumerate(LABELS.tolist())]
    for encoder in (HashEncoder("dense"), LexicalEncoder()):
        whole = find_topics_of(encoder, texts, 5, seed=3)
        with monkeypatch.context() as patched:
            patched.setattr("retrievers.training.topics._TEXTS", 17)
            np.testing.assert_array_equal(find_topics_of(encoder, texts, 5, seed=3).assignment, whole.assignment)
            # A sample of ten queries a topic trains the centroids: of vectors that are all held, and of those that are not.
            patched.setattr("retrievers.training.topics._SAMPLED", 10)
            held = find_topics_of(encoder, texts, 5, seed=3)
            patched.setattr("retrievers.training.topics._HELD", 0)
            apart = find_topics_of(encoder, texts, 5, seed=3)
            np.testing.assert_array_equal(apart.assignment, held.assignment)
            np.testing.assert_allclose(apart.distances, held.distances, atol=1e-5)
            assert (held.distances != whole.distances).any()


def test_files(tmp_path: Path) -> None:
    found = find_topics(points(), 5)
    path = tmp_path / "topics.npz"
    found.save(path)
    loaded = Topics.load(path)
    assert (loaded.count, loaded.wanted) == (5, 5)
    np.testing.assert_array_equal(loaded.assignment, found.assignment)
    np.testing.assert_array_equal(loaded.distances, found.distances)
    with pytest.raises(TrainingDataError, match="there are no topics at"):
        Topics.load(tmp_path / "none.npz")
    sound = path.read_bytes()
    for damaged in (b"", b"text", sound[:-30], sound[:400] + b"\xff" + sound[401:]):
        path.write_bytes(damaged)
        with pytest.raises(TrainingDataError, match="does not hold topics"):
            Topics.load(path)
    np.savez(path, format=2, assignment=found.assignment, distances=found.distances, wanted=5)
    with pytest.raises(TrainingDataError, match="another version of the library"):
        Topics.load(path)
    np.savez(path, format=1, assignment=found.assignment + 1, distances=found.distances, wanted=9)
    with pytest.raises(TrainingDataError, match="they are not numbered from 0"):
        Topics.load(path)


def test_the_table_and_its_advice() -> None:
    topics = Topics(np.array([1, 0, 1, 1]), 2, np.array([3, 0, 1, 2], np.float32), 3)
    table = describe_topics(topics, ["far", "alone", "near", "middle"], examples=2)
    assert [(line.topic, line.size, line.examples) for line in table.topics] == [
        (1, 3, ("near", "middle")),
        (0, 1, ("alone",)),
    ]
    assert table.advice == (
        "1 of 3 clusters came out empty: many queries may be the same, or there are fewer topics",
        "2.0 queries a topic, and k-means wants 39: ask for at most 1 topics",
    )
    assert describe_topics(find_topics(points(), 2), [""] * 200).advice == ()
    with pytest.raises(TrainingDataError, match="3 texts for the topics of 4 queries"):
        describe_topics(topics, ["a", "b", "c"])


def test_equal_queries_leave_clusters_empty() -> None:
    found = find_topics(np.repeat(np.eye(2, dtype=np.float32), 20, axis=0), 6)
    assert found.wanted == 6
    assert found.count < 6
    assert (found.sizes() > 0).all()


def test_a_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    plot_topics(find_topics(points(), 5), tmp_path / "sizes.svg")
    assert "<svg" in (tmp_path / "sizes.svg").read_text()
    with pytest.raises(TrainingDataError, match=r"ends with .svg, .png or .pdf"):
        plot_topics(find_topics(points(), 5), tmp_path / "sizes.txt")


@pytest.mark.parametrize(
    ("vectors", "k", "kind", "message"),
    [
        (np.ones((78, 2), np.float32), 0, TrainingDataError, "0 topics of 78 queries: give 1 to 78 (at most 2 for 39"),
        (np.ones((3, 2), np.float32), 4, TrainingDataError, "4 topics of 3 queries: give 1 to 3"),
        (np.full((3, 2), np.nan, np.float32), 1, VectorError, "NaN or infinity"),
        (np.full((3, 2), 1e30, np.float32), 1, VectorError, "too large to be clustered in float32"),
        (np.ones((3, 2)), 1, VectorError, "float32 array [n, dim]"),
        ([[1.0]], 1, VectorError, "got list"),
    ],
)
def test_what_is_refused(vectors: Any, k: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        find_topics(vectors, k)
