"""The ``plaid`` kind: late interaction over compressed token vectors (PLAID, Santhanam et al., 2022, and WARP, Scheerer
et al., 2025).

Centroids lead from the tokens of a query to documents, codes of a few bits a dimension tell which of these are best, and the
best few are scored by the stored vectors, as every kind does. See :mod:`retrievers.indexes.residuals` for the codes.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, VectorError
from retrievers.indexes import bitmaps, kernels
from retrievers.indexes.arrays import load_array, load_meta
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import check_search, longest, nothing, place
from retrievers.indexes.maxsim import (
    MaxSimIndex,
    as_panels,
    check_token_vectors,
    offsets_of,
    portions,
    scan_level,
    take_queries,
)
from retrievers.indexes.parameters import AUTO, AnyParameter, Parameter, check_parameters
from retrievers.indexes.pooling import pool
from retrievers.indexes.protocol import Found
from retrievers.indexes.residuals import MOST_CENTROIDS, Codec, Codes, sample_size
from retrievers.indexes.threads import shared
from retrievers.specs import Spec
from retrievers.vectors import Vectors

_META = "plaid.json"
_TOKENS = 1 << 16  # that are read at a time
_SORTED = 1 << 24  # tokens whose lists are made at a time
_ON_DISK = 1 << 26  # bytes of vectors above which a merge gathers them in a file
_SCANNED = 4  # where less than a fourth of the rows is live, the lists lead to too many others
_ASKED = 1 << 12  # tokens of a query, above which the collection is scanned
_SHORTLISTED = 4  # documents scored by centroids for each that is scored by codes, as in PLAID
_ALIGNED = 64
_SHARE = 4  # queries of a batch that a thread has at least: it takes a tenth of a millisecond to start
LEAST_TOKENS = 1 << 16
"""A collection of fewer tokens is scanned, which is quicker there."""

_room = threading.local()


class PlaidIndex(MaxSimIndex):
    """Token vectors as a centroid and codes of ``bits`` bits a dimension; most, not always all, of the best rows.

    ``plaid(bits=2, vectors=float16, nprobe=auto, candidates=auto, pool=1)``: with ``vectors=float16`` the vectors are kept beside
    the codes, on disk, and every score is exact for them; with ``vectors=none`` what the codes stand for takes their place,
    and the index takes about a seventh of the space. ``nprobe`` lists are visited for each token of a query, and ``candidates``
    documents scored by their codes. ``pool=2`` keeps about half of the tokens of a document, as means of near ones.

    A search with a filter is exact, as is one for more hits than candidates, with more than three of four rows deleted, or
    of a segment of few tokens. The vectors are those that were given for as long as they are kept; without them a merge encodes
    anew what the codes stand for.
    """

    PARAMETERS: Mapping[str, Mapping[str, AnyParameter]] = {
        "plaid": {
            "bits": Parameter(2, choices=(1, 2, 4)),
            "vectors": Parameter("float16", choices=("float16", "none")),
            "nprobe": Parameter(AUTO, 1, 1 << 10),
            "candidates": Parameter(AUTO, 1, 1_000_000),
            "pool": Parameter(1, 1, 16),
        }
    }

    def __init__(
        self,
        values: NDArray[np.float16] | None,
        offsets: NDArray[np.int64],
        spec: Spec,
        longest: float,
        compressed: _Compressed | None,
        place: str = "the vectors",
    ) -> None:
        dimension = compressed.codec.dimension if compressed is not None else 0
        super().__init__(
            np.empty((0, dimension), np.float16) if values is None else values, offsets, None, spec, longest, place
        )
        self._kept = values is not None
        self._compressed = compressed

    @property
    def settings(self) -> dict[str, float]:
        """What was chosen, and how well the codes fit: nothing for a segment that is scanned.

        ``drift`` is the mean squared length of what the centroids leave of the vectors, divided by what they left of those that
        they were trained on: far above 1 a merge, which trains them anew, pays.
        """
        if self._compressed is None:
            return {}
        return {
            "centroids": len(self._compressed.codec.centroids),
            "bits": self._compressed.codec.bits,
            "nprobe": self._probes,
            "candidates": self._candidates(10),
            "drift": round(self._compressed.rest / max(self._compressed.trained_rest, 1e-12), 3),
        }

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec, like: Self | None = None) -> Self:
        """Index TokenVectors; those of a collection that has centroids, ``like``, are assigned to them.

        Raises VectorError, SpecError.
        """
        check_parameters(spec, cls.PARAMETERS)
        given = check_token_vectors(vectors)
        if given.values.shape[1] == 0:
            raise VectorError("token vectors need 1 dimension or more; got 0")
        given = pool(given, int(_given(spec, "pool")))
        with np.errstate(over="ignore"):
            values = given.values.astype(np.float16)
        if not np.isfinite(values).all():
            raise VectorError(
                "a token vector holds a number beyond 65504, too large for float16: normalise the vectors"
            )
        known = None if like is None or like.dimension != values.shape[1] else like._compressed
        return cls._from(values, given.offsets.astype(np.int64, copy=True), spec, known)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`; centroids are trained anew, on what is kept of the vectors."""
        check_parameters(spec, cls.PARAMETERS)
        dimensions = sorted({part.dimension for part, _ in parts})
        if len(dimensions) != 1:
            raise VectorError(f"indexes of one dimension can be merged, and these have {dimensions or 'none'}")
        sizes = np.zeros(sum(int(np.count_nonzero(rows >= 0)) for _, rows in parts), np.int64)
        for part, rows in parts:
            sizes[rows[rows >= 0]] = np.diff(part._offsets)[rows >= 0]
        offsets = offsets_of(sizes)
        values = _array((int(offsets[-1]), dimensions[0]))
        for part, rows in parts:
            for some in portions(part._offsets, np.flatnonzero(rows >= 0), _TOKENS):
                block, _, mine = part._block(some)
                values[np.arange(len(block)) + np.repeat(offsets[rows[some]] - offsets_of(mine)[:-1], mine)] = block
        return cls._from(values, offsets, spec, None)

    @classmethod
    def _from(
        cls, values: NDArray[np.float16], offsets: NDArray[np.int64], spec: Spec, known: _Compressed | None
    ) -> Self:
        most = longest(_blocks(values), values.shape[1])
        compressed = None
        if len(values) >= LEAST_TOKENS and most > 0:
            compressed = _Compressed.of(values, offsets, int(_given(spec, "bits")), known)
        kept = compressed is None or _given(spec, "vectors") == "float16"
        if not kept and compressed is not None:  # rounding may make longer what the codes stand for
            most = 1.01 * max(most, longest(compressed.decoded(), values.shape[1]))
        return cls(values if kept else None, offsets, spec, most, compressed)

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        meta = {
            "rows": self.size,
            "tokens": int(self._offsets[-1]),
            "dimension": self.dimension,
            "longest": self._longest,
            "kept": int(self._kept),
            "centroids": 0 if self._compressed is None else len(self._compressed.codec.centroids),
            "rest": 0.0 if self._compressed is None else self._compressed.rest,
            "trained_rest": 0.0 if self._compressed is None else self._compressed.trained_rest,
        }
        (folder / _META).write_text(json.dumps(meta) + "\n")
        np.save(folder / "offsets.npy", self._offsets)
        if self._kept:
            np.save(folder / "values.npy", self._values)
        if self._compressed is not None:
            for name, array in self._compressed.arrays().items():
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote, memory-mapped. Raises IndexDamagedError, naming the file."""
        check_parameters(spec, cls.PARAMETERS)
        whole = dict.fromkeys(("rows", "tokens", "dimension", "kept", "centroids"), int)
        meta = load_meta(folder / _META, {**whole, "longest": float, "rest": float, "trained_rest": float})
        count = meta["centroids"]
        if meta["dimension"] == 0 or meta["kept"] > 1 or (count and not _fits(count)) or not (count or meta["kept"]):
            raise IndexDamagedError(
                f"{folder / _META} describes {count} centroids of {meta['dimension']} dimensions, vectors kept: "
                f"{meta['kept']}; restore it, or build the index again"
            )
        offsets = load_array(folder / "offsets.npy", np.int64, (meta["rows"] + 1,))
        _check_rising(offsets, meta["tokens"], folder / "offsets.npy")
        values = None
        if meta["kept"]:
            values = load_array(folder / "values.npy", np.float16, (meta["tokens"], meta["dimension"]))
        compressed = _Compressed.load(folder, meta, int(_given(spec, "bits"))) if count else None
        return cls(values, offsets, spec, meta["longest"], compressed, str(folder))

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Bitmap | None = None,
        live: Bitmap | None = None,
        floor: NDArray[np.float32] | None = None,
    ) -> Found:
        """See :meth:`retrievers.indexes.maxsim.MaxSimIndex.search`; most of the best rows, where no filter is given.

        Threads share a batch, as many as :func:`retrievers.indexes.threads.granted` says; hits are those of one.
        """
        mask = check_search(k, self.size, allowed, live)
        given = self._check_queries(queries)
        permitted = len(self._filled) if mask is None else int(bitmaps.unpack(mask, self.size)[self._filled].sum())
        count = self._candidates(k)
        scan = allowed is not None or self._compressed is None or count >= permitted or permitted * _SCANNED < self.size
        if scan or np.diff(given.offsets).max(initial=0) > _ASKED:
            return super().search(queries, k, allowed=allowed, live=live, floor=floor)
        found = nothing(len(given))
        numbers = np.flatnonzero(np.diff(given.offsets)).tolist()

        def answer(number: int) -> bool:
            """Whether the lists led to enough rows: then the best of them are entered."""
            query = given[number]
            rows = self._propose(query, k, count, mask)
            if len(rows) < min(k, permitted):
                return False
            one = take_queries(given, np.array([number], np.int64))
            best = self._search(one, min(k, len(rows)), rows, scan_level(query, self), None)
            found.rows[number], found.scores[number] = best.rows[0], best.scores[0]
            return True

        answered = shared(answer, numbers, _SHARE)
        short = [number for number, enough in zip(numbers, answered, strict=True) if not enough]
        if short:
            some = np.array(short, np.int64)
            least = None if floor is None else floor[some]
            place(found, some, super().search(take_queries(given, some), k, allowed=allowed, live=live, floor=least))
        return found

    @property
    def _probes(self) -> int:
        given = _given(self.spec, "nprobe")
        count = 1 if self._compressed is None else len(self._compressed.codec.centroids)
        return min((16 if count < 1 << 14 else 32) if given == AUTO else int(given), count)

    def _candidates(self, k: int) -> int:
        given = _given(self.spec, "candidates")
        chosen = max(192, round(1.6 * self.size**0.5)) + 8 * k if given == AUTO else int(given)
        return max(_rescored(k, int(_given(self.spec, "bits"))), chosen)

    def _propose(self, query: NDArray[np.float32], k: int, count: int, mask: Bitmap | None) -> NDArray[np.int64]:
        """The rows to score, int64; fewer than are wanted, or none, where the lists do not lead to more."""
        compressed = self._compressed
        most = float(np.sqrt((query.astype(np.float64) ** 2).sum(axis=1).max())) * self._longest
        if compressed is None or not 1e-30 < most < 1e30:
            return np.empty(0, np.int64)
        level, panels = scan_level(query, self), None
        if level not in (0, kernels.INT16):
            asked = np.zeros((-(-len(query) // 32) * 32, query.shape[1]), np.float32)
            asked[: len(query)] = query
            panels = as_panels(asked)
        rows, scores = np.empty(count, np.int64), np.empty(count, np.float32)
        arguments = (
            level, *compressed.addressed(), np.ascontiguousarray(query), panels, 255 / most,
            compressed.lists, compressed.list_rows, self._offsets, mask, self._probes, _SHORTLISTED * count, rows, scores,
        )  # fmt: skip
        found = kernels.plaid_search(*arguments, _working_room(arguments))
        rows, scores = rows[:found], scores[:found]
        if found > (wanted := _rescored(k, compressed.codec.bits)):
            with np.errstate(invalid="ignore"):
                order = np.argsort(-scores, kind="stable")[:wanted]
            rows = np.sort(rows[order])
        return rows

    def _addressed(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.int64], NDArray[np.int64]]:
        if self._kept:
            return super()._addressed(rows)
        values, _, sizes = self._block(rows)
        return values, None, offsets_of(sizes)[:-1], sizes

    def _block(self, rows: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.float32] | None, NDArray[np.int64]]:
        if self._kept or self._compressed is None:
            return super()._block(rows)
        starts = self._offsets[rows]
        sizes = self._offsets[rows + 1] - starts
        return self._compressed.decode(starts, sizes), None, sizes


class _Compressed:
    """The codes of all tokens, and for each centroid the documents that have one of it."""

    def __init__(
        self,
        codec: Codec,
        codes: Codes,
        lists: NDArray[np.int64],
        list_rows: NDArray[np.uint32],
        rest: float,
        trained_rest: float,
    ) -> None:
        self.codec, self.codes = codec, codes
        self.lists, self.list_rows = lists, list_rows  # int64 [centroids + 1] into uint32
        self.rest, self.trained_rest = rest, trained_rest

    @classmethod
    def of(cls, values: NDArray[np.float16], offsets: NDArray[np.int64], bits: int, known: Self | None) -> Self:
        """Train on a sample, unless centroids are known already, and encode everything in a second pass."""
        tokens = len(values)
        rng = np.random.default_rng(0)
        if known is None or known.codec.bits != bits:
            chosen = np.sort(rng.choice(tokens, sample_size(tokens), replace=False))
            sample = np.concatenate([values[some].astype(np.float32) for some in _pieces(chosen)])
            codec, known = Codec.train(sample, tokens, bits), None
        else:
            codec = known.codec
        codes = Codes(
            np.empty(tokens, np.uint16), np.empty((tokens, codec.width), np.uint8), np.empty((tokens, 2), np.uint8)
        )
        rest = 0.0
        for first in range(0, tokens, _TOKENS):
            at = slice(first, first + _TOKENS)
            block = values[at].astype(np.float32)
            some = codec.encode(block)
            codes.centroids[at], codes.residuals[at], codes.steps[at] = some.centroids, some.residuals, some.steps
            rest += codec.rest(block, some) * len(block) / tokens
        lists, list_rows = _inverted(codes.centroids, offsets, len(codec.centroids))
        return cls(codec, codes, lists, list_rows, rest, rest if known is None else known.trained_rest)

    def addressed(self) -> tuple[Any, ...]:
        """What the kernels want to know of the codes."""
        codec, codes = self.codec, self.codes
        return (
            codec.dimension, codec.bits, codec.centroids, codes.centroids, codes.residuals, codes.steps, codec.tables,
            codec.levels,
        )  # fmt: skip

    def decode(self, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.float16]:
        """What the codes of some rows' tokens stand for, float16 ``[tokens, dimension]``."""
        decoded = np.empty((int(sizes.sum()), self.codec.dimension), np.float32)
        kernels.plaid_decode(*self.addressed(), np.ascontiguousarray(starts), sizes, decoded)
        with np.errstate(over="ignore", invalid="ignore"):
            return decoded.astype(np.float16)

    def decoded(self) -> Iterator[NDArray[np.float32]]:
        """What all codes stand for, some at a time."""
        tokens = len(self.codes.centroids)
        for first in range(0, tokens, _TOKENS):
            size = np.array([min(_TOKENS, tokens - first)], np.int64)
            yield self.decode(np.array([first], np.int64), size).astype(np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is kept, by name."""
        return {
            "centroids": self.codec.centroids,
            "tables": self.codec.tables,
            "levels": self.codec.levels,
            "codes": self.codes.centroids,
            "residuals": self.codes.residuals,
            "steps": self.codes.steps,
            "lists": self.lists,
            "list_rows": self.list_rows,
        }

    @classmethod
    def load(cls, folder: Path, meta: Mapping[str, Any], bits: int) -> Self:
        """Map what was saved. Raises IndexDamagedError, naming the file."""
        count, tokens, dimension = meta["centroids"], meta["tokens"], meta["dimension"]
        padded, width = -(-dimension // 32) * 32, -(-dimension * bits // 8)
        centroids = load_array(folder / "centroids.npy", np.uint16, (count, padded))
        tables = load_array(folder / "tables.npy", np.float32, (2, 256))
        levels = load_array(folder / "levels.npy", np.float32, (2**bits,))
        for name, array in (("tables", tables), ("levels", levels)):
            if not (np.abs(array) < 1e18).all():
                raise IndexDamagedError(
                    f"{folder / name}.npy holds NaN or what was never written: build the index again"
                )
        codes = Codes(
            load_array(folder / "codes.npy", np.uint16, (tokens,)),
            load_array(folder / "residuals.npy", np.uint8, (tokens, width)),
            load_array(folder / "steps.npy", np.uint8, (tokens, 2)),
        )
        list_rows = load_array(folder / "list_rows.npy", np.uint32, (None,))
        lists = load_array(folder / "lists.npy", np.int64, (count + 1,))
        _check_rising(lists, len(list_rows), folder / "lists.npy")
        codec = Codec(dimension, bits, centroids, tables, levels)
        return cls(codec, codes, lists, list_rows, meta["rest"], meta["trained_rest"])


def _given(spec: Spec, name: str) -> Any:
    return spec.parameters.get(name, PlaidIndex.PARAMETERS["plaid"][name].default)


def _rescored(k: int, bits: int) -> int:
    """How many rows are scored by their vectors, so that few of the best ``k`` are missed: the coarser the codes, the more."""
    return {1: 8 * k + 20, 2: 3 * k + 10, 4: k + k // 2 + 5}[bits]


def _fits(count: int) -> bool:
    return 32 <= count <= MOST_CENTROIDS and count & (count - 1) == 0


def _check_rising(offsets: NDArray[np.int64], last: int, path: Path) -> None:
    if offsets[0] != 0 or offsets[-1] != last or np.any(offsets[1:] < offsets[:-1]):
        raise IndexDamagedError(f"{path} does not rise from 0 to {last}: restore it, or build the index again")


def _array(shape: tuple[int, int]) -> NDArray[np.float16]:
    """Room for vectors; that of many lies in a file, which has no name and goes with the array."""
    if 2 * shape[0] * shape[1] < _ON_DISK:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile() as file:
        file.truncate(2 * shape[0] * shape[1])
        return np.memmap(file, np.float16, "r+", shape=shape)


def _blocks(values: NDArray[np.float16]) -> Iterator[NDArray[np.float32]]:
    for first in range(0, len(values), _TOKENS):
        yield values[first : first + _TOKENS].astype(np.float32)


def _pieces(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(numbers), _TOKENS):
        yield numbers[first : first + _TOKENS]


def _inverted(
    centroids: NDArray[np.uint16], offsets: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """For each centroid the rows that have a token of it, ascending and each once."""
    sizes = np.bincount(centroids, minlength=count)
    ends = np.cumsum(sizes)
    lengths, found = np.zeros(count, np.int64), [np.empty(0, np.uint32)]
    first = 0
    while first < count:
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + _SORTED, side="right")))
        tokens = np.flatnonzero((centroids >= first) & (centroids < last))
        rows = (np.searchsorted(offsets, tokens, side="right") - 1).astype(np.uint64)
        pairs = np.unique(centroids[tokens].astype(np.uint64) << np.uint64(32) | rows)
        lengths += np.bincount((pairs >> np.uint64(32)).astype(np.int64), minlength=count)
        found.append((pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        first = last
    return offsets_of(lengths), np.concatenate(found)


def _working_room(arguments: tuple[Any, ...]) -> NDArray[np.uint8] | None:
    """Room for one search, kept for the next one of this thread."""
    if not kernels.compiled():
        return None
    wanted = kernels.plaid_search(*arguments, None)
    room: NDArray[np.uint8] | None = getattr(_room, "bytes", None)
    if room is None or len(room) < wanted:
        raw = np.empty(wanted + _ALIGNED, np.uint8)
        room = raw[-raw.ctypes.data % _ALIGNED :][:wanted]
        _room.bytes = room
    return room
