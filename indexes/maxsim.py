"""The ``maxsim`` kind: late interaction, computed for every document (Khattab and Zaharia, "ColBERT", 2020, section 3).

The score of a document is the sum, over the tokens of the query, of the highest inner product with any of its tokens.
As in :mod:`retrievers.indexes.exact`, a fast pass finds the rows that may be among the best, and each of these is scored
for itself in float64; so scores do not depend on what is scored together. The fast pass is in bfloat16 where the
processor multiplies that (AVX-512 or AMX), in int16 with AVX2, and in float32 elsewhere; what it rounds is in the bound
that decides which rows may be among the best.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, QueryError, SpecError, VectorError
from retrievers.indexes import bitmaps, kernels
from retrievers.indexes._maxsim_numpy import products
from retrievers.indexes.arrays import load_array, load_meta
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import (
    UNIT,
    Scored,
    check_search,
    fetched,
    highest,
    longest,
    nothing,
    place,
    settle,
    sift,
)
from retrievers.indexes.parameters import AnyParameter, Parameter, check_parameters
from retrievers.indexes.protocol import Found
from retrievers.indexes.threads import granted, shared
from retrievers.specs import Spec
from retrievers.vectors import TokenVectors, Vectors, check, take

_META = "maxsim.json"
_DTYPES: Mapping[str, type[Any]] = {"float16": np.float16, "int8": np.int8}
_LONGEST_SCORE = 1e34
_CELLS = 1 << 20  # similarities that are held at a time: they stay near the processor
_TOKENS = 1 << 12  # document tokens that are scored at a time
_TOGETHER = 256  # query tokens that are scored at a time
_TOGETHER_NARROW = 1 << 12  # by the kernel, where the documents' side has to be made for each time
_ROWS = 1 << 11  # rows between two looks for the best so far
_LANES = 16  # query tokens that the kernel takes beside one another
_STEP = 32  # what their dimensions are padded to
_LARGEST_NARROW = 1e37  # of a query's numbers: rounding them up must not reach infinity
_COPIED = 1 << 16  # tokens that are encoded at a time


class MaxSimIndex:
    """Token vectors as float16, or as int8 with a float32 scale for each token: ``maxsim`` or ``maxsim(dtype=int8)``.

    The search is exact for the vectors as they are stored. A document without tokens is never found, and a query
    without tokens finds nothing.
    """

    PARAMETERS: Mapping[str, Mapping[str, AnyParameter]] = {
        "maxsim": {"dtype": Parameter("float16", choices=tuple(_DTYPES))}
    }

    def __init__(
        self,
        values: NDArray[Any],
        offsets: NDArray[np.int64],
        scales: NDArray[np.float32] | None,
        spec: Spec,
        longest: float,
        place: str = "the vectors",
    ) -> None:
        self.spec = spec
        self.size = len(offsets) - 1
        self.dimension = int(values.shape[1])
        self._values = values
        self._offsets = offsets
        self._scales = scales  # float32 [tokens], for int8
        self._longest = longest  # an upper bound of the lengths of the stored token vectors
        self._place = place
        self._filled = np.flatnonzero(np.diff(offsets))

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index TokenVectors. Raises VectorError, SpecError."""
        dtype = _dtype(spec)
        given = check_token_vectors(vectors)
        tokens, dimension = given.values.shape
        if dimension == 0:
            raise VectorError("token vectors need 1 dimension or more; got 0")
        values = np.empty((tokens, dimension), _DTYPES[dtype])
        scales = np.empty(tokens, np.float32) if dtype == "int8" else None
        for first in range(0, tokens, _COPIED):
            at = slice(first, first + _COPIED)
            if scales is None:
                with np.errstate(over="ignore"):
                    values[at] = given.values[at]
            else:
                values[at], scales[at] = _codes(given.values[at])
        if scales is None and not np.isfinite(values).all():
            raise VectorError(
                "a token vector holds a number beyond 65504, too large for float16: normalise the vectors, or use "
                "maxsim(dtype=int8)"
            )
        return cls._of(values, given.offsets.astype(np.int64, copy=True), scales, spec)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`; the stored codes are taken over as they are.

        Raises SpecError where a part is stored in another type than ``spec`` asks for.
        """
        dtype = _dtype(spec)
        if any(_dtype(part.spec) != dtype for part, _ in parts):
            raise SpecError(f"{spec} cannot take over token vectors of another type: build the index again")
        dimensions = sorted({part.dimension for part, _ in parts})
        if len(dimensions) != 1:
            raise VectorError(f"indexes of one dimension can be merged, and these have {dimensions or 'none'}")
        lengths = np.zeros(sum(int(np.count_nonzero(rows >= 0)) for _, rows in parts), np.int64)
        for part, rows in parts:
            lengths[rows[rows >= 0]] = np.diff(part._offsets)[rows >= 0]
        offsets = offsets_of(lengths)
        values = np.empty((int(offsets[-1]), dimensions[0]), _DTYPES[dtype])
        scales = np.empty(len(values), np.float32) if dtype == "int8" else None
        for part, rows in parts:
            kept = np.flatnonzero(rows >= 0)
            for some in portions(part._offsets, kept, _COPIED):
                old, sizes = part._tokens_of(some)
                new = np.arange(int(sizes.sum())) + np.repeat(offsets[rows[some]] - offsets_of(sizes)[:-1], sizes)
                values[new] = part._values[old]
                if scales is not None and part._scales is not None:
                    scales[new] = part._scales[old]
        return cls._of(values, offsets, scales, spec)

    @classmethod
    def _of(
        cls, values: NDArray[Any], offsets: NDArray[np.int64], scales: NDArray[np.float32] | None, spec: Spec
    ) -> Self:
        def blocks() -> Iterator[NDArray[np.float32]]:
            for first in range(0, len(values), _TOKENS):
                block = values[first : first + _TOKENS].astype(np.float32)
                yield block if scales is None else block * scales[first : first + _TOKENS, None]

        return cls(values, offsets, scales, spec, longest(blocks(), values.shape[1]))

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        meta = {
            "rows": self.size,
            "tokens": len(self._values),
            "dimension": self.dimension,
            "longest": self._longest,
            "dtype": _dtype(self.spec),
        }
        (folder / _META).write_text(json.dumps(meta) + "\n")
        np.save(folder / "values.npy", self._values)
        np.save(folder / "offsets.npy", self._offsets)
        if self._scales is not None:
            np.save(folder / "scales.npy", self._scales)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote, memory-mapped. Raises IndexDamagedError, naming the file."""
        wanted = {"rows": int, "tokens": int, "dimension": int, "longest": float, "dtype": str}
        meta = load_meta(folder / _META, wanted)
        dtype = _dtype(spec)
        if meta["dtype"] != dtype or meta["dimension"] == 0:
            raise IndexDamagedError(
                f"{folder / _META} describes {meta['dtype']} of {meta['dimension']} dimensions, where {dtype} belongs: "
                "restore it, or build the index again"
            )
        values = load_array(folder / "values.npy", _DTYPES[dtype], (meta["tokens"], meta["dimension"]))
        offsets = load_array(folder / "offsets.npy", np.int64, (meta["rows"] + 1,))
        if offsets[0] != 0 or offsets[-1] != meta["tokens"] or np.any(offsets[1:] < offsets[:-1]):
            raise IndexDamagedError(
                f"{folder / 'offsets.npy'} does not rise from 0 to {meta['tokens']}: restore it, or build the index "
                "again"
            )
        scales = load_array(folder / "scales.npy", np.float32, (meta["tokens"],)) if dtype == "int8" else None
        return cls(values, offsets, scales, spec, meta["longest"], str(folder))

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Bitmap | None = None,
        live: Bitmap | None = None,
        floor: NDArray[np.float32] | None = None,
    ) -> Found:
        """The best ``k`` rows for each query (TokenVectors); rows that score below ``floor`` (one a query) may be missing.

        Raises VectorError for queries of another kind or dimension, QueryError for a ``k`` below 1 or bitmaps of
        another size, IndexDamagedError where the stored vectors turn out to hold what was never written.
        """
        mask = check_search(k, self.size, allowed, live)
        given = self._check_queries(queries)
        rows = self._filled
        if mask is not None:
            rows = rows[bitmaps.unpack(mask, self.size)[rows]]
        found = nothing(len(given))
        k = min(k, len(rows))
        if k:
            level = scan_level(given.values, self)
            # Without the kernel, products of matrices have threads of their own.
            threads = granted() if level and len(given) > 1 else 1
            share = -(-len(given.values) // threads)
            together = min(_TOGETHER_NARROW, max(_TOGETHER, share)) if level else _TOGETHER
            groups = list(_groups(given.offsets, together))

            def answer(some: NDArray[np.int64]) -> Found:
                least = None if floor is None else floor[some]
                return self._search(take_queries(given, some), k, rows, level, least)

            answered = shared(answer, groups) if threads > 1 else map(answer, groups)
            for some, best in zip(groups, answered, strict=True):
                place(found, some, best)
        return found

    def explain(self, query: Vectors, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """For each token of a query (TokenVectors of one text) the best token of a row, and their inner product.

        int64 and float32 ``[query tokens]``; of equally good tokens the first. The inner products sum to the score that
        a search gives. Both are empty where the row has no tokens.
        """
        given = self._check_queries(query)
        if len(given) != 1:
            raise VectorError(f"one query is explained at a time; got {len(given)}")
        if not 0 <= row < self.size:
            raise QueryError(f"row {row} is not in an index of {self.size} rows")
        if self._offsets[row] == self._offsets[row + 1]:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        wide = given.values.astype(np.float64)
        similarities = self._similarities(wide, row)
        best = similarities.max(axis=1)
        # Equal tokens may differ in the last bit, according to where they stand.
        slack = 1e-13 * self.dimension * self._longest * np.linalg.norm(wide, axis=1)
        return np.argmax(similarities >= (best - slack)[:, None], axis=1).astype(np.int64), best.astype(np.float32)

    def _check_queries(self, queries: Vectors) -> TokenVectors:
        given = check_token_vectors(queries)
        if given.values.shape[1] != self.dimension:
            raise VectorError(
                f"the queries have {given.values.shape[1]} dimensions, and the index holds {self.dimension}: "
                "search with the encoder that the index was built with"
            )
        return given

    def _search(
        self, queries: TokenVectors, k: int, rows: NDArray[np.int64], level: int, floor: NDArray[np.float32] | None
    ) -> Found:
        wide = queries.values.astype(np.float64)
        norms = np.sqrt((wide * wide).sum(axis=1))
        lengths = np.add.reduceat(norms, queries.offsets[:-1])
        if not lengths.max() * self._longest < _LONGEST_SCORE:
            raise VectorError(
                f"queries and token vectors of up to {self._longest:.3g} have inner products that float32 cannot hold: "
                "normalise the vectors"
            )
        terms = self.dimension + np.diff(queries.offsets) + 12
        error = terms * UNIT * lengths * self._longest + terms * 2.0**-126

        def score(numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return self._exact(queries, numbers, rows)

        fetch = fetched(k, len(rows))
        if level:
            # What is lost of the queries, and of documents, relative to their lengths: bfloat16 keeps 8 binary digits, a
            # step is a 32,767th of a token's length. Codes fit. 1.01 is for what rounding adds to the lengths.
            if level == kernels.INT16:
                codes, steps = _short(queries.values)
                kept, lost = codes * steps.astype(np.float64)[:, None], 0.52 / 32767 * self.dimension**0.5
            else:
                kept, lost = _wide(_narrow(queries.values)).astype(np.float64), 2.0**-8
                fetch = min(len(rows), 4 * fetch)
            off = np.sqrt(((wide - kept) ** 2).sum(axis=1)) + (norms * lost if self._scales is None else 0)
            error = 1.01 * (error + np.add.reduceat(off, queries.offsets[:-1]) * self._longest)

        def fast(taken: TokenVectors) -> Iterator[Scored]:
            return self._kernel_scores(taken, rows, level) if level else self._fast_scores(taken, rows)

        best = highest(fast(queries), self.size, len(queries), fetch, None)
        found, bounds, open_ = settle(*best, error, k, len(rows), score, floor)
        if len(open_):
            blocks = fast(take_queries(queries, open_))
            place(found, open_, sift(blocks, bounds[open_], k, lambda numbers, rows: score(open_[numbers], rows)))
        return found

    def _kernel_scores(self, queries: TokenVectors, rows: NDArray[np.int64], level: int) -> Iterator[Scored]:
        """Scores by way of bfloat16 or int16 of rows that have tokens, some at a time."""
        panels: tuple[NDArray[np.uint16], NDArray[np.float32] | None]
        if level == kernels.INT16:
            codes, steps = _short(queries.values)
            panels = _panels(codes.view(np.uint16)), np.pad(steps, (0, -len(steps) % _LANES))
        else:
            panels = as_panels(queries.values), None
        longest = 1.001 * self._longest  # which rounding reaches
        scores = np.empty((min(_ROWS, len(rows)), len(queries)), np.float32)
        for first in range(0, len(rows), _ROWS):
            some = rows[first : first + _ROWS]
            mine = scores[: len(some)]
            kernels.maxsim_scores(
                level, self.dimension, longest, *self._addressed(some), *panels, queries.offsets, mine
            )
            if not np.isfinite(mine).all():
                raise self._damaged()
            yield some, mine.T

    def _fast_scores(self, queries: TokenVectors, rows: NDArray[np.int64]) -> Iterator[Scored]:
        """Scores in float32 of rows that have tokens, some at a time."""
        tokens = np.ascontiguousarray(queries.values.T)
        room = max(1, min(_TOKENS, _CELLS // tokens.shape[1]))
        decoded = np.empty((room, self.dimension), np.float32)
        similarities = np.empty((room, tokens.shape[1]), np.float32)
        for some in portions(self._offsets, rows, room):
            block, scales, sizes = self._block(some)
            if len(block) > len(decoded):  # a single document that is longer than all that should be held
                decoded = np.empty((len(block), self.dimension), np.float32)
                similarities = np.empty((len(block), tokens.shape[1]), np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                _decode(block, decoded[: len(block)])
                mine = np.matmul(decoded[: len(block)], tokens, out=similarities[: len(block)])
                if scales is not None:
                    mine *= scales[:, None]
                highest = np.maximum.reduceat(mine, offsets_of(sizes)[:-1], axis=0)
                scores = np.add.reduceat(highest, queries.offsets[:-1], axis=1).T
            if not np.isfinite(scores).all():
                raise self._damaged()
            yield some, scores

    def _exact(self, queries: TokenVectors, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The score of each pair of a query and a row, which have tokens, computed for itself alone."""
        scores = np.empty(len(rows), np.float32)
        first, count = queries.offsets[numbers], queries.offsets[numbers + 1] - queries.offsets[numbers]
        if not kernels.maxsim_exact(self.dimension, *self._addressed(rows), queries.values, first, count, scores):
            raise self._damaged()
        return scores

    def _addressed(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.int64], NDArray[np.int64]]:
        """Stored tokens and their scales, and in them the first token of each of ``rows`` and how many it has."""
        starts = self._offsets[rows]
        return self._values, self._scales, starts, self._offsets[rows + 1] - starts

    def _block(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.int64]]:
        """The stored tokens of ``rows``, one row after the other, their scales, and how many each row has."""
        at, sizes = self._tokens_of(rows)
        return self._values[at], None if self._scales is None else self._scales[at], sizes

    def _similarities(self, query: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        """The inner products of query tokens and the stored tokens of a row, float64 ``[query tokens, tokens]``."""
        values, scales, _ = self._block(np.array([row], np.int64))
        similarities = products(query, values, scales)
        if not (np.abs(similarities) <= 1e37).all():
            raise self._damaged()
        return similarities

    def _tokens_of(self, rows: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        """Where the tokens of ``rows`` are stored (a slice, if they lie together), and how many each row has."""
        starts, sizes = self._offsets[rows], self._offsets[rows + 1] - self._offsets[rows]
        total = int(sizes.sum())
        if len(rows) and int(self._offsets[rows[-1] + 1] - starts[0]) == total and np.all(np.diff(rows) > 0):
            return slice(int(starts[0]), int(starts[0]) + total), sizes
        return np.repeat(starts - offsets_of(sizes)[:-1], sizes) + np.arange(total), sizes

    def _damaged(self) -> IndexDamagedError:
        return IndexDamagedError(
            f"{self._place} holds token vectors with NaN, infinity or a number that was not written there: "
            "restore it from a backup, or build the index again"
        )


def _dtype(spec: Spec) -> str:
    check_parameters(spec, MaxSimIndex.PARAMETERS)
    return str(spec.parameters.get("dtype", "float16"))


def level_for(queries: NDArray[np.float32]) -> int:
    """How queries can be scored in bfloat16 (:func:`retrievers.indexes.kernels.maxsim_level`): 0 for those beyond its range."""
    return kernels.maxsim_level() if np.abs(queries).max(initial=0) < _LARGEST_NARROW else 0


def scan_level(queries: NDArray[np.float32], index: MaxSimIndex) -> int:
    """How documents can be scored: as :func:`level_for` says, or in int16; 0 for float32."""
    level = level_for(queries)
    if level or not kernels.bytes_level() or np.abs(queries).max(initial=0) >= _LARGEST_NARROW:
        return level
    return kernels.INT16 if index.dimension <= kernels.MOST_INT16 and 1e-20 < index._longest < 1e20 else 0


def check_token_vectors(vectors: Vectors) -> TokenVectors:
    if not isinstance(vectors, TokenVectors):
        raise VectorError(f"a maxsim index takes TokenVectors; got {type(vectors).__name__}")
    check(vectors, "multi-vector", len(vectors))
    return vectors


def take_queries(queries: TokenVectors, numbers: NDArray[np.int64]) -> TokenVectors:
    return check_token_vectors(take(queries, numbers))


def portions(offsets: NDArray[np.int64], rows: NDArray[np.int64], room: int) -> Iterator[NDArray[np.int64]]:
    """``rows`` in portions of at most ``room`` tokens, or of one row."""
    ends = np.cumsum(offsets[rows + 1] - offsets[rows])
    first, before = 0, 0
    while first < len(rows):
        last = max(first + 1, int(np.searchsorted(ends, before + room, side="right")))
        yield rows[first:last]
        first, before = last, int(ends[last - 1])


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where parts of these sizes begin and end, int64 ``[n + 1]``."""
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    return offsets


def _codes(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Vectors as whole numbers from -127 to 127 of a scale each."""
    scales = np.abs(values).max(axis=1) / np.float32(127)
    scales[scales == 0] = 1
    return np.rint(values / scales[:, None]).clip(-127, 127).astype(np.int8), scales


def _decode(block: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Codes or float16 as float32; infinity and NaN become 65536 and more, which no sound vector holds."""
    if block.dtype == np.int8:
        np.copyto(out, block)
        return
    # Five times as fast as numpy's conversion: the bits moved to where float32 has them, and the exponent set right.
    bits = out.view(np.int32)
    np.copyto(bits, block.view(np.int16))
    bits <<= 13
    bits &= np.int32(-0x70002000)  # what copying the sign filled in goes
    out *= np.float32(2.0**112)


def _narrow(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of numbers that are finite; zero for those that are too small for its full precision."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16
    rounded[np.abs(values) < 2.0**-125] = 0
    return rounded.astype(np.uint16)


def _short(values: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Tokens as int16 times a step of their own, a 32,767th of their length; the codes of zeros are zeros."""
    steps = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1)) / 32767
    steps = np.maximum(steps, 2.0**-126).astype(np.float32)
    return np.rint(values / steps[:, None].astype(np.float64)).clip(-32767, 32767).astype(np.int16), steps


def _wide(narrow: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (narrow.astype(np.uint32) << 16).view(np.float32)


def as_panels(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Tokens as bfloat16, as the kernels take them: sixteen beside one another, two dimensions at a time."""
    return _panels(_narrow(values))


def _panels(narrow: NDArray[np.uint16]) -> NDArray[np.uint16]:
    tokens, dimension = narrow.shape
    full = np.zeros((-(-tokens // _LANES) * _LANES, -(-dimension // _STEP) * _STEP), np.uint16)
    full[:tokens, :dimension] = narrow
    return np.ascontiguousarray(full.reshape(-1, _LANES, full.shape[1] // 2, 2).transpose(0, 2, 1, 3))


def _groups(offsets: NDArray[np.int64], together: int) -> Iterator[NDArray[np.int64]]:
    """The queries that have tokens, in groups of at most ``together`` tokens, or of one query."""
    sizes = np.diff(offsets)
    group: list[int] = []
    tokens = 0
    for number in np.flatnonzero(sizes).tolist():
        if group and tokens + sizes[number] > together:
            yield np.array(group, np.int64)
            group, tokens = [], 0
        group.append(number)
        tokens += int(sizes[number])
    if group:
        yield np.array(group, np.int64)
