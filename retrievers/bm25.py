"""BM25's two formulas: what an index over term frequencies needs in order to score.

The score of document ``d`` for a query is the sum over the query's terms ``t`` of

    query_tf(t) * idf(t) * tf(t, d) / (tf(t, d) + norm(d))

This is Robertson's BM25 with Lucene's idf, which is never negative, and without the constant factor ``k1 + 1``, which
orders nothing (bm25s calls it ``method="lucene"``). Sources: Robertson and Zaragoza, "The Probabilistic Relevance
Framework: BM25 and Beyond" (2009), section 3; Kamphuis et al., "Which BM25 Do You Mean?" (ECIR 2020), table 1, where
lengths are exact, not Lucene's one byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import SpecError


@dataclass(frozen=True)
class Bm25:
    """The parameters: ``k1 >= 0`` (how slowly repeats saturate) and ``0 <= b <= 1`` (how much length counts).

    Raises SpecError for other values.
    """

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        for name, highest in (("k1", math.inf), ("b", 1.0)):
            value: object = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= float(value) <= highest or math.isinf(float(value)):  # type: ignore[arg-type]
                wanted = "a number of 0 or more" if name == "k1" else "a number from 0 to 1"
                raise SpecError(f"bm25: {name}={value!r} is not {wanted}")
            object.__setattr__(self, name, float(value))  # type: ignore[arg-type]

    def idf(self, document_frequency: NDArray[Any], n: int) -> NDArray[np.float64]:
        """The weights, float64, of terms that stand in ``document_frequency`` (0 to ``n``) of ``n`` documents."""
        frequency = np.asarray(document_frequency, dtype=np.float64)
        return np.log1p((n - frequency + 0.5) / (frequency + 0.5))

    def norms(self, lengths: NDArray[Any], total_length: float, n: int) -> NDArray[np.float32]:
        """What stands beside the term frequency in the denominator, float32, for documents of these lengths.

        A length is the sum of a document's term frequencies; ``total_length`` is that of all ``n`` documents. In a
        collection without any term (``n`` or ``total_length`` 0) every length counts as 0.
        """
        average = total_length / n if n else 0.0
        ratio = np.asarray(lengths, dtype=np.float64) / average if average else np.zeros(np.shape(lengths))
        return (self.k1 * (1.0 - self.b + self.b * ratio)).astype(np.float32)
