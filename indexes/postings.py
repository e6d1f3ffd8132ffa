"""Postings: which rows each term stands in, with something beside each row.

Terms (any int64 of 0 or more) ascend. The rows of a term are cut into *blocks*, one for each range of 65,536 rows in
which the term occurs, so that a row is 16 bits: its place within the range. The arrays, one ``.npy`` file each:

===============  =====================  =====================================================================
``terms``        int64 ``[T]``          strictly ascending
``term_blocks``  int64 ``[T + 1]``      term ``t`` owns blocks ``term_blocks[t]`` to ``term_blocks[t + 1]``, 1 or more
``block_range``  uint32 ``[B]``         the range of each block, ascending within a term
``block_start``  int64 ``[B + 1]``      block ``b`` owns postings ``block_start[b]`` to ``block_start[b + 1]``
``ids``          uint16 ``[P]``         rows within their range, ascending within a block
``payload``      uint8/16/32 ``[P]``    impacts or frequencies (:mod:`retrievers.indexes.inverted`)
===============  =====================  =====================================================================

*Compact* files hold, in the place of ``ids``, by how much each is above the one before it, modulo 65,536, whichever block
that is in: ``gaps``, uint8 ``[P]``, where 255 stands for the next number of ``long_gaps``, uint16. That is about a byte less
a posting; the ids are added up when the files are opened, and take their two bytes of memory then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, VectorError
from retrievers.indexes import kernels
from retrievers.indexes.arrays import are_offsets, load_array, rises
from retrievers.indexes.kernels import Payload

Chunk = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]
"""Postings as terms, rows and values, sorted by term, then row."""

MOST_ROWS = 1 << 40
"""No index may have so many rows."""

_ROW_BITS = 40
_CHUNK = 1 << 18  # postings that are held unpacked: some 20 MB
_COUNTED = 1 << 20  # columns up to which they are sorted by counting
_LONG = 255
_ADDED = 1 << 18  # gaps that are added up at a time, in a cache


@dataclass(frozen=True, eq=False)
class Postings:
    """The arrays above, of ``n`` rows."""

    n: int
    terms: NDArray[np.int64]
    term_blocks: NDArray[np.int64]
    block_range: NDArray[np.uint32]
    block_start: NDArray[np.int64]
    ids: NDArray[np.uint16]
    payload: NDArray[Any]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many postings each term has, int64 ``[T]``."""
        return self.counts_of(0, len(self.terms))

    def counts_of(self, low: int, high: int) -> NDArray[np.int64]:
        """The same for the terms at places ``low`` to ``high``."""
        return np.diff(self.block_start[self.term_blocks[low : high + 1]])

    def find(self, terms: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The places of ``terms`` among the index's, and whether they are there at all (where not, the place is 0)."""
        places = self.terms.searchsorted(terms)
        if not len(self.terms):
            return places, np.zeros(len(terms), np.bool_)
        np.minimum(places, len(self.terms) - 1, out=places)
        known = self.terms[places] == terms
        places[~known] = 0
        return places, known

    def posting(self, place: int, row: int) -> int | None:
        """Where the posting of a row in the term at ``place`` is, None where the row does not hold the term."""
        first, last = int(self.term_blocks[place]), int(self.term_blocks[place + 1])
        block = first + int(np.searchsorted(self.block_range[first:last], np.uint32(row >> 16)))
        if block == last or int(self.block_range[block]) != row >> 16:
            return None
        start, stop = int(self.block_start[block]), int(self.block_start[block + 1])
        at = start + int(np.searchsorted(self.ids[start:stop], np.uint16(row & 0xFFFF)))
        return at if at < stop and int(self.ids[at]) == row & 0xFFFF else None

    def prepare(
        self,
        kind: Payload,
        *,
        scales: NDArray[np.float32] | None = None,
        block_max: NDArray[Any] | None = None,
        norms: NDArray[np.float32] | None = None,
    ) -> Any:
        """What searches take, see :func:`retrievers.indexes._inverted_numpy.inverted_prepare`.

        The compiled search keeps in it up to a byte for each posting, and those of common terms; nothing at first.
        """
        return kernels.inverted_prepare(
            int(kind), self.n, self.ids, self.payload, self.term_blocks, self.block_start, self.block_range, self.terms,
            scales, block_max, norms,
        )  # fmt: skip

    def slices(self) -> Any:
        """What searches by slices keep of these postings, empty at first; it too belongs to one payload and set of norms."""
        return kernels.inverted_slices(self.n, len(self.terms), len(self.ids))

    def save(self, folder: Path, *, compact: bool) -> None:
        """Write the arrays into a folder."""
        for name in ("terms", "term_blocks", "block_range", "block_start", "payload"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        if compact:
            gaps, long_gaps = _gaps(self.ids)
            np.save(folder / "gaps.npy", gaps)
            np.save(folder / "long_gaps.npy", long_gaps)
        else:
            np.save(folder / "ids.npy", self.ids)

    @classmethod
    def load(cls, folder: Path, n: int, payload: Any, *, compact: bool) -> Postings:
        """Map the arrays into memory and check all but the ids and the payload (of dtype ``payload``).

        Raises IndexDamagedError, naming the file, where an array has another type or size than belongs there, or where
        offsets do not rise, or point outside.
        """
        terms = load_array(folder / "terms.npy", np.int64, (None,))
        term_blocks = load_array(folder / "term_blocks.npy", np.int64, (len(terms) + 1,))
        block_range = load_array(folder / "block_range.npy", np.uint32, (None,))
        block_start = load_array(folder / "block_start.npy", np.int64, (len(block_range) + 1,))
        ids = _added_up(folder) if compact else load_array(folder / "ids.npy", np.uint16, (None,))
        codes = load_array(folder / "payload.npy", payload, (len(ids),))
        _require(folder / "terms.npy", rises(terms) and (not len(terms) or terms[0] >= 0), "terms that ascend")
        _require(folder / "term_blocks.npy", are_offsets(term_blocks, len(block_range)), "offsets of blocks")
        _require(folder / "block_start.npy", are_offsets(block_start, len(ids)), "offsets of postings")
        lengths = np.diff(block_start)
        _require(folder / "block_start.npy", not len(lengths) or lengths.max() <= 1 << 16, "blocks of 65,536 rows")
        inside = np.ones(max(len(block_range) - 1, 0), np.bool_)
        inside[term_blocks[1:-1] - 1] = False  # between the last block of a term and the first of the next
        steps = np.diff(block_range.astype(np.int64))
        ascends = not len(block_range) or (int(block_range.max()) << 16 < n and bool((steps[inside] > 0).all()))
        _require(folder / "block_range.npy", ascends, f"the ranges of {n} rows")
        return cls(n, terms, term_blocks, block_range, block_start, ids, codes)


def _require(path: Path, holds: Any, what: str) -> None:
    if not holds:
        raise IndexDamagedError(f"{path} does not hold {what}: restore it, or build the index again")


def _gaps(ids: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """The ids as compact files hold them."""
    gaps = np.empty(len(ids), np.uint8)
    longer = [np.empty(0, np.uint16)]
    for first in range(0, len(ids), _ADDED):
        some = ids[first : first + _ADDED]
        steps = np.empty_like(some)
        steps[:1] = some[:1] - ids[first - 1 : first] if first else some[:1]  # modulo 2 ** 16, as all of them
        np.subtract(some[1:], some[:-1], out=steps[1:])
        gaps[first : first + _ADDED] = np.minimum(steps, _LONG)
        longer.append(steps[steps >= _LONG])
    return gaps, np.concatenate(longer)


def _added_up(folder: Path) -> NDArray[np.uint16]:
    """The ids of compact files. Raises IndexDamagedError, naming the file, where one is longer than the other says."""
    gaps = load_array(folder / "gaps.npy", np.uint8, (None,))
    longer = load_array(folder / "long_gaps.npy", np.uint16, (None,))
    ids = np.empty(len(gaps), np.uint16)
    last, used = np.zeros(1, np.uint16), 0
    for first in range(0, len(gaps), _ADDED):
        steps = gaps[first : first + _ADDED].astype(np.uint16)
        places = np.flatnonzero(steps == _LONG)
        if used + len(places) > len(longer):
            break
        steps[places] = longer[used : used + len(places)]
        used += len(places)
        steps[:1] += last
        np.cumsum(steps, dtype=np.uint16, out=ids[first : first + _ADDED])
        last = ids[first + len(steps) - 1 : first + len(steps)]
    else:
        if used == len(longer):
            return ids
    raise IndexDamagedError(
        f"{folder / 'long_gaps.npy'} does not hold as many numbers as {folder / 'gaps.npy'} asks for: restore both, or "
        "build the index again"
    )


def from_vectors(vectors: Any) -> Iterator[Chunk]:
    """The non-zeros of a csr_matrix, each term whole; entries that a row holds twice are added up.

    Raises VectorError for a column that is negative, or beyond the matrix.
    """
    n, width = vectors.shape
    columns = vectors.indices
    if len(columns) and not 0 <= (least := int(columns.min())) <= (most := int(columns.max())) < width:
        raise VectorError(
            f"a sparse vector has the column {least if least < 0 else most}: columns are 0 to {width - 1}"
        )
    if width > _COUNTED:
        order = np.argsort(columns, kind="stable")
        rows = np.repeat(np.arange(n, dtype=np.int64), np.diff(vectors.indptr))
        yield _summed(columns[order].astype(np.int64, copy=False), rows[order], vectors.data[order])
        return
    turned = vectors.tocsc()  # by counting: a tenth of the time of sorting
    starts = turned.indptr.astype(np.int64, copy=False)
    low = 0
    while low < width:
        high = max(low + 1, int(np.searchsorted(starts, starts[low] + _CHUNK, side="right")) - 1)
        terms = np.repeat(np.arange(low, high, dtype=np.int64), np.diff(starts[low : high + 1]))
        some = slice(int(starts[low]), int(starts[high]))
        yield _summed(terms, turned.indices[some].astype(np.int64), turned.data[some])
        low = high


def _summed(terms: NDArray[np.int64], rows: NDArray[np.int64], values: NDArray[Any]) -> Chunk:
    """Sorted postings without zeros, each row once."""
    present = values != 0
    if not present.all():
        terms, rows, values = terms[present], rows[present], values[present]
    first = np.ones(len(terms), np.bool_)
    first[1:] = (terms[1:] != terms[:-1]) | (rows[1:] != rows[:-1])
    if first.all():
        return terms, rows, values
    starts = np.flatnonzero(first)
    return terms[starts], rows[starts], np.add.reduceat(values, starts)


def assemble(chunks: Iterable[Chunk], n: int, payload: Any) -> Postings:
    """Postings of ``n`` rows from chunks whose terms ascend from chunk to chunk; values become dtype ``payload``."""
    terms, blocks_of, ranges, sizes, ids, values = ([_EMPTY] for _ in range(6))
    for columns, rows, codes in chunks:
        if not len(columns):
            continue
        new_term = np.ones(len(columns), np.bool_)
        new_term[1:] = columns[1:] != columns[:-1]
        new_block = new_term.copy()
        new_block[1:] |= (rows[1:] >> 16) != (rows[:-1] >> 16)
        starts = np.flatnonzero(new_block)
        terms.append(columns[new_term])
        blocks_of.append(np.diff(np.flatnonzero(new_term[starts]), append=len(starts)))
        ranges.append(rows[starts] >> 16)
        sizes.append(np.diff(starts, append=len(columns)))
        ids.append(rows.astype(np.uint16))  # the low 16 bits
        values.append(codes.astype(payload, copy=False))
    return Postings(
        n,
        np.concatenate(terms),
        _cumulated(blocks_of),
        np.concatenate(ranges).astype(np.uint32),
        _cumulated(sizes),
        np.concatenate([part.astype(np.uint16, copy=False) for part in ids]),
        np.concatenate([part.astype(payload, copy=False) for part in values]),
    )


def merged(
    parts: Sequence[tuple[Postings, Callable[[int, int], NDArray[Any]], NDArray[np.int64]]],
) -> Iterator[Chunk]:
    """The postings of several indexes together, some millions at a time, each term whole.

    A part is its postings, a function that gives the values of the terms from one place to another, and the new row of
    each of its rows (-1: dropped).
    """
    terms = np.unique(np.concatenate([_EMPTY, *(part.terms for part, _, _ in parts)]))
    totals = np.zeros(len(terms) + 1, np.int64)
    for part, _, _ in parts:
        totals[1:][np.searchsorted(terms, part.terms)] += part.counts
    totals = np.cumsum(totals)
    low = 0
    while low < len(terms):
        high = max(low + 1, int(np.searchsorted(totals, totals[low] + _CHUNK, side="right")) - 1)
        pieces = [_piece(part, values, rows, terms[low:high]) for part, values, rows in parts]
        keys = np.concatenate([piece[0] for piece in pieces])
        order = np.argsort(keys, kind="stable")  # each piece is sorted as a rule: a merge of runs
        keys = keys[order]
        yield (
            terms[low + (keys >> _ROW_BITS)],
            keys & (MOST_ROWS - 1),
            np.concatenate([piece[1] for piece in pieces])[order],
        )
        low = high


_EMPTY = np.empty(0, np.int64)


def _piece(
    part: Postings, values: Callable[[int, int], NDArray[Any]], rows: NDArray[np.int64], terms: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """One part's postings of ``terms``: place in ``terms`` and new row, as one number; and their values."""
    low, high = np.searchsorted(part.terms, [terms[0], terms[-1] + 1]).tolist()
    first, last = part.term_blocks[[low, high]].tolist()
    start, stop = part.block_start[[first, last]].tolist()
    base = np.repeat(part.block_range[first:last].astype(np.int64) << 16, np.diff(part.block_start[first : last + 1]))
    new = rows[base + part.ids[start:stop]]
    places = np.repeat(np.searchsorted(terms, part.terms[low:high]), part.counts_of(low, high))
    kept = new >= 0
    return (places[kept] << _ROW_BITS) | new[kept], values(low, high)[kept]


def _cumulated(lengths: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(lengths), dtype=np.int64)])
