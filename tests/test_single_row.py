"""A sparse matrix of one row, which is made without scipy's constructor, is what the constructor makes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from retrievers.vectors import csr


@pytest.mark.parametrize("vocabulary", [9, 2**62])
@pytest.mark.parametrize("columns", [[], [3], [1, 4, 8], [8, 1, 4], [4, 4, 1]])
def test_a_row_is_what_the_constructor_makes(columns: list[int], vocabulary: int) -> None:
    data = np.arange(1, len(columns) + 1, dtype=np.float32)
    indices, lengths = np.array(columns, np.int64), np.array([len(columns)], np.int64)
    made = csr(data, indices, lengths, vocabulary)
    expected = csr_matrix((data.copy(), indices.copy(), np.array([0, len(columns)])), shape=(1, vocabulary))
    assert type(made) is csr_matrix
    assert made.shape == expected.shape
    assert vars(made).keys() == vars(expected).keys()
    for name in ("data", "indices", "indptr"):
        assert getattr(made, name).dtype == getattr(expected, name).dtype
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name))
    assert made.has_sorted_indices == expected.has_sorted_indices
    assert made.has_canonical_format == expected.has_canonical_format
    assert made.sum() == expected.sum()


def test_rows_share_nothing() -> None:
    rows = [
        csr(np.array([value], np.float32), np.array([at], np.int64), np.array([1], np.int64), 5)
        for at, value in enumerate((2.0, 3.0))
    ]
    assert [row.toarray().tolist() for row in rows] == [[[2, 0, 0, 0, 0]], [[0, 3, 0, 0, 0]]]


def test_fewer_values_than_stated_are_refused() -> None:
    with pytest.raises(ValueError, match="index pointer"):
        csr(np.ones(1, np.float32), np.array([1], np.int64), np.array([2], np.int64), 9)
