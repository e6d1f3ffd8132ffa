"""The loops over postings, scores and documents: compiled where the extension was built, in numpy elsewhere, with one result.

The environment variable ``RETRIEVERS_KERNELS=numpy``, read once at import, chooses numpy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any

from retrievers.indexes import (
    _dense_numpy,
    _documents_numpy,
    _graph_numpy,
    _inverted_numpy,
    _lists_numpy,
    _maxsim_numpy,
    _plaid_numpy,
)
from retrievers.indexes._documents_numpy import HEAD as HEAD
from retrievers.indexes._documents_numpy import Part as Part


class Payload(IntEnum):
    """What stands beside a row in a posting, and so how a contribution is computed (float32 throughout)."""

    IMPACTS_16 = 0  # weight * decoded 16-bit float
    IMPACTS_8 = 1  # weight * code, the term's scale being part of the weight
    FREQUENCIES_8 = 2  # weight * (frequency / (frequency + norm of the row)), in this width and the two below
    FREQUENCIES_16 = 3
    FREQUENCIES_32 = 4


def _compiled() -> ModuleType | None:
    if os.environ.get("RETRIEVERS_KERNELS") == "numpy":
        return None
    try:
        return importlib.import_module("retrievers.indexes._kernels")
    except ImportError:
        return None


_module = _compiled()
_inverted: Any = _inverted_numpy if _module is None else _module
_dense: Any = _dense_numpy if _module is None else _module
_documents: Any = _documents_numpy if _module is None else _module
_graph: Any = _graph_numpy if _module is None else _module
_lists: Any = _lists_numpy if _module is None else _module
_maxsim: Any = _maxsim_numpy if _module is None else _module
_plaid: Any = _plaid_numpy if _module is None else _module

inverted_search: Callable[..., bool] = _inverted.inverted_search
"""The best rows of every query over postings; see :func:`retrievers.indexes._inverted_numpy.inverted_search`."""

inverted_prepare: Callable[..., Any] = _inverted.inverted_prepare
"""Postings to be searched again and again; see :func:`retrievers.indexes._inverted_numpy.inverted_prepare`."""

inverted_slices: Callable[..., Any] = _inverted.inverted_slices
"""Room for what searches by slices keep of postings; see :func:`retrievers.indexes._inverted_numpy.inverted_slices`."""

inverted_within: Callable[..., tuple[int, int, int, int, int, int, float]] = _inverted.inverted_within
"""The best rows of a query but for a part that is given up; see :func:`retrievers.indexes._inverted_numpy.inverted_within`."""

inverted_count: Callable[..., None] = _inverted.inverted_count
"""How many postings of each block are in a bitmap; see :func:`retrievers.indexes._inverted_numpy.inverted_count`."""

dense_offer: Callable[..., None] = _dense.dense_offer
"""The best rows of every query out of a block of scores; see :func:`retrievers.indexes._dense_numpy.dense_offer`."""

dense_scores: Callable[..., int] = _dense.dense_scores
"""The scores of pairs in float64; see :func:`retrievers.indexes._dense_numpy.dense_scores`."""

dense_best: Callable[..., int] = _dense.dense_best
"""The best of what was proposed; see :func:`retrievers.indexes._dense_numpy.dense_best`."""

dense_scan: Callable[..., int] = _dense.dense_scan
"""The best of all rows or of some; see :func:`retrievers.indexes._dense_numpy.dense_scan`."""

graph_search: Callable[..., int] = _graph.graph_search
"""The best nodes that a walk meets; see :func:`retrievers.indexes._graph_numpy.graph_search`."""

lists_search: Callable[..., int] = _lists.lists_search
"""The best rows of some lists; see :func:`retrievers.indexes._lists_numpy.lists_search`."""

documents_read: Callable[..., list[tuple[Any, ...]]] = _documents.documents_read
"""Parts of stored documents; see :func:`retrievers.indexes._documents_numpy.documents_read`."""

documents_made: Callable[..., dict[int, Any]] = _documents.documents_made
"""Stored documents as objects; see :func:`retrievers.indexes._documents_numpy.documents_made`."""

documents_find: Callable[..., list[int]] = _documents.documents_find
"""The rows of ids of stored documents; see :func:`retrievers.indexes._documents_numpy.documents_find`."""

maxsim_exact: Callable[..., bool] = _maxsim.maxsim_exact
"""The scores of pairs in float64; see :func:`retrievers.indexes._maxsim_numpy.maxsim_exact`."""

plaid_search: Callable[..., int] = _plaid.plaid_search
"""Candidates of one query; see :func:`retrievers.indexes._plaid_numpy.plaid_search`."""

plaid_decode: Callable[..., None] = _plaid.plaid_decode
"""What codes stand for; see :func:`retrievers.indexes._plaid_numpy.plaid_decode`."""


INT16 = 3
"""The level of late interaction in int16: where :func:`bytes_level` is 1, for :data:`MOST_INT16` dimensions at most."""

MOST_INT16 = 1 << 16


def compiled() -> bool:
    """Whether the compiled kernels are in use."""
    return _module is not None


def maxsim_level() -> int:
    """How late interaction can be scored in bfloat16: 0 not at all, 1 by AVX-512's dot products, 2 by AMX."""
    return 0 if _module is None else int(_module.maxsim_level())


def maxsim_scores(*arguments: Any) -> None:
    """Fast scores of late interaction, off by what bfloat16, or int16, and float32 round.

    ``(level, dimension, longest, values, scales, starts, sizes, panels, steps, offsets, scores)``: a level of 1 up to
    :func:`maxsim_level`, or :data:`INT16`; for this one what no token of float16 exceeds in
    length (a row with one that does may get NaN); float16 or int8 ``[tokens, dimension]``, with float32 ``[tokens]`` for
    int8; int64 ``[rows]`` each; query tokens as bfloat16 in uint16 ``[panels, padded dimension / 2, 16, 2]``, or as int16
    alike and steps in float32 ``[panels * 16]``, else None; int64 ``[queries + 1]``; float32 ``[rows, queries]``, which is
    written. Raises ValueError where these do not fit together.
    """
    _required().maxsim_scores(*arguments)


def plaid_assign(*arguments: Any) -> None:
    """The centroid of the highest inner product with each vector, the first of equal ones, as far as the level tells.

    ``(level, dimension, vectors, centroids, nearest)``: a level of 1 up to :func:`maxsim_level`, or :data:`INT16`; float32
    ``[n, dimension]``; bfloat16 in uint16 ``[count, padded dimension]``, a multiple of 32 of them; int32 ``[n]``, which is
    written. Raises ValueError where these do not fit together.
    """
    _required().plaid_assign(*arguments)


def bytes_level() -> int:
    """Whether products of bytes can be taken: 1 where the kernels are compiled and the processor has AVX2, else 0."""
    return 0 if _module is None else int(_module.bytes_level())


def gelu(*arguments: Any) -> None:
    """The activation GELU, off by 3e-7 times a number at most: ``(values, out)``, float32 arrays of one size.

    Raises ValueError where they are not.
    """
    _required().gelu(*arguments)


def linear_bytes(*arguments: Any) -> None:
    """A linear layer in 8-bit integers.

    ``(inputs, outputs, values, panels, sums, steps, bias, out)``: float32 ``[rows, inputs]``; with inputs in groups of 128,
    the last one padded, and outputs in panels of 16: int8 ``[panels, groups, 32, 16, 4]``, the weights of four inputs beside
    one another; int16 ``[panels, groups, 2, 16, 2]``, sums of those whose products are summed in one place; float32
    ``[panels, groups, 16]`` steps and ``[panels * 16]``; float32 ``[rows, outputs]``, which is written: NaN where an input is
    no finite number or above 1e18. Raises ValueError where these do not fit together.
    """
    _required().linear_bytes(*arguments)


def vocabulary_bound(*arguments: Any) -> int:
    """How many entries of a vocabulary may have a logit of zero or more for some token, by products of 8-bit numbers.

    ``(entries, quads, codes, panels, corrections, factors, step, norm_slack, error_slack, found)``: uint8 ``[tokens, quads,
    4]``, with 64 added; int8 ``[panels, quads, 16, 4]``; int16 ``[panels, ceil(quads / 32), 16, 2]``, -64 times the sums of
    pairs; float32 ``[4, panels * 16]``: steps, bases, norms and errors; int32 ``[panels * 16]``, where these entries are
    written in order. Raises ValueError where these do not fit together.
    """
    return int(_required().vocabulary_bound(*arguments))


def _required() -> ModuleType:
    if _module is None:
        raise RuntimeError("the kernels are not compiled, or RETRIEVERS_KERNELS=numpy")
    return _module
