"""Fewer token vectors a document: means of near ones (token pooling, Clavié et al., 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrievers.vectors import TokenVectors


def pool(vectors: TokenVectors, factor: int) -> TokenVectors:
    """Of ``n`` tokens of a document about ``n // factor``: means of Ward clusters, as long as their tokens are in the mean.

    The first token stays as it is, since models put what they know of the whole text there. A factor of 1 changes nothing.
    """
    if factor == 1:
        return vectors
    kept: list[NDArray[np.float32]] = [vectors.values[:0]]
    sizes = np.zeros(len(vectors), np.int64)
    for number in range(len(vectors)):
        kept.append(_pooled(vectors[number], factor))
        sizes[number] = len(kept[-1])
    return TokenVectors(np.concatenate(kept), np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))


def _pooled(tokens: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    wanted = max(1, len(tokens) // factor)
    if len(tokens) <= 2 or wanted < 2:
        return tokens[: max(1, wanted)] if len(tokens) else tokens
    from scipy.cluster.hierarchy import fcluster, linkage  # takes a while to import, and few pool

    rest = tokens[1:]
    lengths = np.linalg.norm(rest, axis=1)
    unit = rest / np.maximum(lengths, np.float32(1e-12))[:, None]
    # Squared distances of unit vectors are twice the cosine distances, so Ward's order is that of cosines.
    owners = (
        fcluster(linkage(unit, "ward"), wanted - 1, "maxclust") - 1 if len(rest) > wanted - 1 else np.arange(len(rest))
    )
    count = int(owners.max()) + 1
    means = np.zeros((count, tokens.shape[1]), np.float32)
    np.add.at(means, owners, unit)
    sizes = np.bincount(owners, minlength=count)
    means *= (np.bincount(owners, lengths, count) / sizes / np.maximum(np.linalg.norm(means, axis=1), 1e-12))[:, None]
    first = np.full(count, len(rest), np.int64)
    np.minimum.at(first, owners, np.arange(len(rest)))
    return np.concatenate([tokens[:1], means[np.argsort(first)]]).astype(np.float32)
