"""The ``inverted`` kind: postings searched exhaustively and exactly, for sparse encoders and for BM25.

:class:`InvertedIndex` holds impacts, the weights of a sparse encoder; :class:`LexicalIndex` holds term frequencies and
document lengths, so that BM25's statistics can follow the live collection. In both the score of a row is the float32
sum of its contributions in ascending order of terms, and a row that shares no term with the query is never found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, QueryError, SpecError, VectorError
from retrievers.indexes import kernels
from retrievers.indexes._inverted_numpy import contributions
from retrievers.indexes.arrays import load_array, load_meta
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.impacts import encode16
from retrievers.indexes.kernels import Payload
from retrievers.indexes.kinds import PARAMETERS
from retrievers.indexes.parameters import check_parameters
from retrievers.indexes.postings import MOST_ROWS, Chunk, Postings, assemble, from_vectors, merged
from retrievers.indexes.postings_search import Looked, ascending, search_postings, search_postings_within
from retrievers.indexes.protocol import Found
from retrievers.specs import Spec
from retrievers.vectors import Vectors, check, count, dimension

_META = "inverted.json"
_FREQUENCIES = {8: Payload.FREQUENCIES_8, 16: Payload.FREQUENCIES_16, 32: Payload.FREQUENCIES_32}
_DTYPES = {8: np.uint8, 16: np.uint16, 32: np.uint32}


class InvertedIndex:
    """Impacts: what sparse encoders give, as unsigned 16-bit floats or as 8-bit codes.

    The specification is ``inverted`` or ``inverted(bits=16)``: codes that depend on the weight alone
    (:mod:`retrievers.indexes.impacts`), so that a score is the same in whichever segment a document stands; or
    ``inverted(bits=8)``: half the payload, codes from 1 to 255 of a scale per term and segment. Weights below 2**-16
    are left out; those of 65520 and more are a VectorError. With ``compact=true`` the files are a quarter smaller, and are
    read and unpacked when they are opened, not mapped into memory; all else is the same.
    """

    def __init__(self, postings: Postings, spec: Spec, dimension: int, scales: NDArray[np.float32] | None) -> None:
        self.spec = spec
        self.size = postings.n
        self.dimension = dimension
        self._postings = postings
        self._scales = scales  # float32 [terms], for 8 bits
        starts = postings.block_start[:-1]
        self._block_max = np.maximum.reduceat(postings.payload, starts) if len(starts) else postings.payload[:0]

    @property
    def _kind(self) -> Payload:
        return Payload.IMPACTS_16 if self._scales is None else Payload.IMPACTS_8

    @cached_property
    def _prepared(self) -> Any:
        return self._postings.prepare(self._kind, scales=self._scales, block_max=self._block_max)

    @cached_property
    def _sliced(self) -> Any:
        return self._postings.slices()

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index a csr_matrix float32 ``[n, vocabulary]`` of weights of 0 or more."""
        bits = _bits(spec)
        _check_rows(vectors, "sparse")
        chunks = _coded(from_vectors(vectors), bits)
        if bits == 16:
            return cls(assemble(chunks, count(vectors), np.uint16), spec, dimension(vectors), None)
        return cls._of_scaled(chunks, count(vectors), spec, dimension(vectors))

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`: lossless for 16 bits; 8 bits are scaled anew, term by term.

        Raises SpecError where a part has other bits than ``spec``.
        """
        bits = _bits(spec)
        if any(_bits(part.spec) != bits for part, _ in parts):
            raise SpecError(f"{spec} cannot take over impacts of other bits: build the index again")
        n, dimension = _merged_shape(parts)
        chunks = merged([(part._postings, part._values, rows) for part, rows in parts])
        if bits == 16:
            return cls(assemble(chunks, n, np.uint16), spec, dimension, None)
        return cls._of_scaled(chunks, n, spec, dimension)

    @classmethod
    def _of_scaled(cls, chunks: Iterator[Chunk], n: int, spec: Spec, dimension: int) -> Self:
        scales = [np.empty(0, np.float32)]
        postings = assemble(_scaled(chunks, scales), n, np.uint8)
        return cls(postings, spec, dimension, np.concatenate(scales))

    def _values(self, low: int, high: int) -> NDArray[Any]:
        """Of the terms at places ``low`` to ``high`` the 16-bit codes, or the weights of 8-bit ones."""
        postings = self._postings
        start, stop = postings.block_start[postings.term_blocks[[low, high]]].tolist()
        codes = postings.payload[start:stop]
        if self._scales is None:
            return codes
        return np.repeat(self._scales[low:high], postings.counts_of(low, high)) * codes.astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        bits = 16 if self._scales is None else 8
        _save(folder, self._postings, self.spec, {"payload": "impacts", "bits": bits, "dimension": self.dimension})
        np.save(folder / "block_max.npy", self._block_max)
        if self._scales is not None:
            np.save(folder / "scales.npy", self._scales)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote. Raises IndexDamagedError, naming the file."""
        meta = _load_meta(folder, "impacts", (_bits(spec),))
        postings = Postings.load(folder, meta["rows"], _DTYPES[meta["bits"]], compact=_compact(spec))
        scales: NDArray[np.float32] | None = None
        if meta["bits"] == 8:
            scales = load_array(folder / "scales.npy", np.float32, (len(postings.terms),))
            if not (np.isfinite(scales) & (scales > 0)).all():
                raise IndexDamagedError(f"{folder / 'scales.npy'} holds a scale that is no positive number")
        index = cls.__new__(cls)  # __init__ would read every posting
        index.spec, index.size, index.dimension = spec, postings.n, meta["dimension"]
        index._postings, index._scales = postings, scales
        index._block_max = load_array(folder / "block_max.npy", postings.payload.dtype, (len(postings.block_range),))
        return index

    def search(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None, live: Bitmap | None = None) -> Found:
        """The best ``k`` rows of every query (csr_matrix float32 ``[queries, vocabulary]``): sums of products.

        Raises VectorError for queries of another vocabulary, QueryError for a ``k`` below 1 or bitmaps of another size.
        """
        mask = _mask(self.size, allowed, live)
        return search_postings(self._postings, self._prepared, _checked(queries, self.dimension), k, mask)

    def search_within(
        self,
        query: Vectors,
        k: int,
        *,
        give_up: float = 0.0,
        seconds: float = math.inf,
        least: float = 0.0,
        allowed: Bitmap | None = None,
        live: Bitmap | None = None,
    ) -> tuple[Found, Looked]:
        """The best ``k`` rows of one query among those that are read, and what was read.

        Slices of rows are read by the most that they can score, descending. A row that is not read scores less than
        ``1 / (1 - give_up)`` times the ``k``-th best score, or than so many times ``least``; except where the ``seconds``
        were over, which ends the search after the first slice or a later one. Raises what :meth:`search` raises.
        """
        mask = _mask(self.size, allowed, live)
        limits = least, give_up, seconds
        asked = _checked(query, self.dimension)
        return search_postings_within(self._postings, self._prepared, asked, k, mask, self._sliced, limits)

    def prepare(self) -> None:
        """Make now the room for what searches keep of the postings, which takes milliseconds of the first."""
        _ = self._prepared

    def explain(self, query: Vectors, row: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The terms that a query (csr_matrix of one row) and a row share, ascending, and what each adds to the score.

        Added up in float32 in this order, the contributions are the score that a search gives.
        """
        places, weights = _look_up(self._postings, query, self.dimension)
        if self._scales is not None:
            weights = weights * self._scales[places]
        at, shared = _common(self._postings, places, row, self.size)
        parts = contributions(self._kind, self._postings.payload[at], weights[shared], None)
        return self._postings.terms[places[shared]], parts


class LexicalIndex:
    """Term frequencies and document lengths: what a lexical encoder gives, for BM25 over the live collection.

    The specification is ``inverted``, or ``inverted(compact=true)`` for smaller files (:class:`InvertedIndex`).
    """

    def __init__(self, postings: Postings, spec: Spec, dimension: int, lengths: NDArray[np.int64]) -> None:
        self.spec = spec
        self.size = postings.n
        self.dimension = dimension
        self.lengths = lengths
        """The sum of the frequencies of each row, int64 ``[size]``."""
        self._postings = postings
        self._kind = _FREQUENCIES[8 * postings.payload.dtype.itemsize]
        self._prepared: tuple[NDArray[np.float32] | None, Any] = None, None  # for these norms
        self._sliced: tuple[NDArray[np.float32] | None, Any] = None, None

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index a csr_matrix float32 ``[n, vocabulary]`` of term frequencies: whole numbers of 0 or more."""
        check_parameters(spec, PARAMETERS["lexical"])
        _check_rows(vectors, "lexical")
        chunks, highest, n = list(from_vectors(vectors)), 0, count(vectors)
        lengths = np.zeros(n, np.int64)
        for _, rows, frequencies in chunks:
            if len(rows):
                highest = max(highest, int(frequencies.max()))
                if highest >= 2**32 or np.any(np.rint(frequencies) != frequencies):
                    raise VectorError("lexical vectors must hold term frequencies: whole numbers below 2**32")
                lengths += np.bincount(rows, weights=frequencies, minlength=n).astype(np.int64)
        postings = assemble(chunks, n, np.min_scalar_type(highest))
        return cls(postings, spec, dimension(vectors), lengths)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`; nothing is lost."""
        check_parameters(spec, PARAMETERS["lexical"])
        n, dimension = _merged_shape(parts)
        lengths = np.zeros(n, np.int64)
        for part, rows in parts:
            lengths[rows[rows >= 0]] = part.lengths[rows >= 0]
        widest = max((part._postings.payload.dtype for part, _ in parts), key=lambda dtype: dtype.itemsize)
        postings = assemble(merged([(part._postings, part._values, rows) for part, rows in parts]), n, widest)
        highest = int(postings.payload.max()) if len(postings.payload) else 0
        payload = postings.payload.astype(np.min_scalar_type(highest), copy=False)
        return cls(replace(postings, payload=payload), spec, dimension, lengths)

    def _values(self, low: int, high: int) -> NDArray[Any]:
        start, stop = self._postings.block_start[self._postings.term_blocks[[low, high]]].tolist()
        values: NDArray[Any] = self._postings.payload[start:stop]
        return values

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        bits = 8 * self._postings.payload.dtype.itemsize
        _save(folder, self._postings, self.spec, {"payload": "frequencies", "bits": bits, "dimension": self.dimension})
        np.save(folder / "lengths.npy", self.lengths)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote. Raises IndexDamagedError, naming the file."""
        check_parameters(spec, PARAMETERS["lexical"])
        meta = _load_meta(folder, "frequencies", (8, 16, 32))
        postings = Postings.load(folder, meta["rows"], _DTYPES[meta["bits"]], compact=_compact(spec))
        lengths = load_array(folder / "lengths.npy", np.int64, (postings.n,))
        if len(lengths) and lengths.min() < 0:
            raise IndexDamagedError(f"{folder / 'lengths.npy'} holds a negative length")
        return cls(postings, spec, meta["dimension"], lengths)

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        norms: NDArray[np.float32],
        allowed: Bitmap | None = None,
        live: Bitmap | None = None,
    ) -> Found:
        """The best ``k`` rows of every query (csr_matrix float32 ``[queries, vocabulary]`` of term weights).

        A term of weight ``w`` adds ``w * (tf / (tf + norms[row]))``; ``norms`` is float32 ``[size]``, 0 or more
        (:meth:`retrievers.bm25.Bm25.norms`). Raises VectorError for queries of another vocabulary, QueryError for a
        ``k`` below 1 or for bitmaps or norms that do not fit.
        """
        prepared = self.prepare(norms)
        mask = _mask(self.size, allowed, live)
        return search_postings(self._postings, prepared, _checked(queries, self.dimension), k, mask)

    def search_within(
        self,
        query: Vectors,
        k: int,
        *,
        norms: NDArray[np.float32],
        give_up: float = 0.0,
        seconds: float = math.inf,
        least: float = 0.0,
        allowed: Bitmap | None = None,
        live: Bitmap | None = None,
    ) -> tuple[Found, Looked]:
        """As :meth:`InvertedIndex.search_within`, with the ``norms`` of :meth:`search`."""
        prepared = self.prepare(norms)
        known, sliced = self._sliced
        if norms is not known:
            sliced = self._postings.slices()
            self._sliced = norms, sliced
        mask = _mask(self.size, allowed, live)
        limits = least, give_up, seconds
        asked = _checked(query, self.dimension)
        return search_postings_within(self._postings, prepared, asked, k, mask, sliced, limits)

    def explain(
        self, query: Vectors, row: int, norms: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The terms that a query (csr_matrix of one row) and a row share, ascending, and what each adds to the score.

        Added up in float32 in this order, the contributions are the score that a search with these norms gives.
        """
        self.prepare(norms)
        places, weights = _look_up(self._postings, query, self.dimension)
        at, shared = _common(self._postings, places, row, self.size)
        parts = contributions(self._kind, self._postings.payload[at], weights[shared], norms[row])
        return self._postings.terms[places[shared]], parts

    def document_frequencies(self, terms: NDArray[np.int64]) -> NDArray[np.int64]:
        """In how many rows each of ``terms`` (int64, any order) occurs, deleted rows included, int64."""
        places, known = self._postings.find(terms)
        counts = np.zeros(len(terms), np.int64)
        blocks = self._postings.term_blocks
        starts = self._postings.block_start
        at = places[known]
        counts[known] = starts[blocks[at + 1]] - starts[blocks[at]]
        return counts

    def frequencies_of(self, rows: Bitmap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The terms that occur in the rows of a bitmap, ascending, and in how many of them each does (int64 both)."""
        postings = self._postings
        mask = _mask(self.size, rows, None)
        counts = np.zeros(len(postings.block_range), np.int64)
        kernels.inverted_count(self.size, postings.ids, postings.block_start, postings.block_range, mask, counts)
        if not len(counts):
            return np.empty(0, np.int64), counts
        by_term = np.add.reduceat(counts, postings.term_blocks[:-1])
        found = np.flatnonzero(by_term)
        return postings.terms[found], by_term[found]

    def prepare(self, norms: NDArray[np.float32]) -> Any:
        """What searches with these norms keep of the postings; the room for it is made now, where they are new.

        Raises QueryError for norms that do not fit.
        """
        known, prepared = self._prepared
        if norms is known:
            return prepared
        if norms.dtype != np.float32 or norms.shape != (self.size,):
            raise QueryError(f"norms must be float32 [{self.size}], one of each row; got {norms.dtype} {norms.shape}")
        if len(norms) and not (norms.min() >= 0 and norms.max() < np.inf):
            raise QueryError("norms must be numbers of 0 or more")
        prepared = self._postings.prepare(self._kind, norms=norms)
        self._prepared = norms, prepared
        return prepared


def _bits(spec: Spec) -> int:
    check_parameters(spec, PARAMETERS["sparse"])
    return int(spec.parameters.get("bits", 16))


def _compact(spec: Spec) -> bool:
    return bool(spec.parameters.get("compact", False))


def _check_rows(vectors: Vectors, kind: Any) -> None:
    check(vectors, kind, count(vectors))
    if count(vectors) >= MOST_ROWS:
        raise VectorError(f"{count(vectors)} vectors are too many for one index")


def _merged_shape(parts: Sequence[tuple[Any, NDArray[np.int64]]]) -> tuple[int, int]:
    """Rows and dimension of what parts become."""
    dimensions = sorted({int(part.dimension) for part, _ in parts})
    if len(dimensions) != 1:
        raise VectorError(f"indexes of one vocabulary can be merged, and these have {dimensions or 'none'}")
    return sum(int(np.count_nonzero(rows >= 0)) for _, rows in parts), dimensions[0]


def _coded(chunks: Iterable[Chunk], bits: int) -> Iterator[Chunk]:
    """Weights as 16-bit codes, or as they are for other bits, without those that the codes cannot hold."""
    for columns, rows, weights in chunks:
        codes = encode16(weights)
        kept = codes > 0
        values = codes if bits == 16 else weights
        yield (columns, rows, values) if kept.all() else (columns[kept], rows[kept], values[kept])


def _scaled(chunks: Iterator[Chunk], scales: list[NDArray[np.float32]]) -> Iterator[Chunk]:
    """Weights as 8-bit codes; the scale of each term is appended to ``scales``."""
    for columns, rows, weights in chunks:
        if not len(columns):
            continue
        starts = np.flatnonzero(np.diff(columns, prepend=-1))
        scale = (np.maximum.reduceat(weights, starts) / np.float32(255)).astype(np.float32, copy=False)
        steps = weights / np.repeat(scale, np.diff(starts, append=len(columns)))
        scales.append(scale)
        yield columns, rows, np.clip(np.rint(steps), 1, 255).astype(np.uint8)


def _save(folder: Path, postings: Postings, spec: Spec, meta: dict[str, Any]) -> None:
    postings.save(folder, compact=_compact(spec))
    (folder / _META).write_text(json.dumps({"rows": postings.n, **meta}) + "\n")


def _load_meta(folder: Path, payload: str, bits: tuple[int, ...]) -> dict[str, Any]:
    path = folder / _META
    meta = load_meta(path, {"payload": str, "rows": int, "bits": int, "dimension": int})
    if meta["payload"] != payload or meta["bits"] not in bits or meta["rows"] >= MOST_ROWS:
        wanted = f"{payload} of {' or '.join(map(str, bits))} bits"
        raise IndexDamagedError(f"{path} describes {meta}, where {wanted} belong: build the index again")
    return meta


def _checked(queries: Any, vocabulary: int) -> Any:
    """The queries themselves. Raises VectorError where they are not for an index of this vocabulary."""
    check(queries, "sparse", queries.shape[0])
    if queries.shape[1] != vocabulary:
        raise VectorError(f"the queries have a vocabulary of {queries.shape[1]}, and the index one of {vocabulary}")
    return queries


def _look_up(postings: Postings, query: Any, vocabulary: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The places of the terms of a query (csr_matrix of one row) that the index holds, ascending, and their weights."""
    query = ascending(_checked(query, vocabulary))
    places, known = postings.find(query.indices.astype(np.int64, copy=False))
    known &= query.data > 0
    return places[known], query.data[known]


def _mask(size: int, allowed: Bitmap | None, live: Bitmap | None) -> Bitmap | None:
    for bitmap in (allowed, live):
        if bitmap is not None and (bitmap.dtype != np.uint8 or bitmap.shape != (-(-size // 8),)):
            raise QueryError(f"a bitmap of {size} rows has {-(-size // 8)} bytes; got {bitmap.dtype} {bitmap.shape}")
    if allowed is None or live is None:
        return live if allowed is None else allowed
    return allowed & live


def _common(
    postings: Postings, places: NDArray[np.int64], row: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the terms at ``places`` the postings of ``row``, and to which of the places they belong."""
    if not 0 <= row < size:
        raise QueryError(f"row {row} is not in an index of {size} rows")
    found = [
        (at, number) for number, place in enumerate(places.tolist()) if (at := postings.posting(place, row)) is not None
    ]
    pairs = np.array(found, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]
