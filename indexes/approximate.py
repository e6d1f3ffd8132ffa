"""The kinds ``hnsw``, ``ivf``, ``ivfpq``, ``rabitq``, ``sq8`` and ``binary``: codes propose, the vectors decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError
from retrievers.indexes import accelerators, bitmaps
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.dense import load_stored, save_stored
from retrievers.indexes.exact import StoredVectors, check_search, nothing, place
from retrievers.indexes.parameters import check_parameters
from retrievers.indexes.protocol import Found
from retrievers.indexes.threads import pieces, shared
from retrievers.indexes.tuning import DEPTH, LEAST, Tuned, tune, tune_for
from retrievers.specs import Spec
from retrievers.vectors import Vectors

_FILE = "index.faiss"
_PAIRS = 1 << 21  # candidates that are held at a time
_SHARE = 8  # queries of a batch that a thread has at least
_SCANNED = 4  # where less than a fourth of the rows is live, too many steps of a search lead to the others


class ApproximateIndex:
    """Dense vectors, float32, by inner product; most, not always all, of the best rows, each with its exact score.

    - ``hnsw(m=32, ef_construction=200, ef_search=64)``: a graph of ``m`` links, ``2 m`` at the bottom.
    - ``ivf(nlist=auto, nprobe=auto)``: lists around ``nlist`` centroids, of which ``nprobe`` are searched.
    - ``ivfpq(nlist=auto, nprobe=auto, m=auto, nbits=8, candidates=auto)``: lists of ``m`` codes of ``nbits`` bits;
      ``candidates`` are scored exactly (by default 100 + 10 k).
    - ``rabitq(nlist=auto, nprobe=auto, nbits=1, candidates=auto)``: lists of RaBitQ codes of ``nbits`` bits a dimension
      (by default 100 + 10 k candidates).
    - ``sq8(candidates=auto)``: a scan of codes of 8 bits a dimension (by default 32 + 2 k).
    - ``binary(candidates=auto)``: a scan of codes of one bit a dimension, by Hamming distance (by default 200 + 20 k).

    All of them take ``recall``, such as ``hnsw(recall=0.95)``: ``ef_search``, ``nprobe`` and ``candidates`` are then set
    when the index is built, to find that share of the ten best; see :mod:`retrievers.indexes.tuning`. For more than ten
    hits, ``ef_search`` and ``candidates`` grow in proportion.

    A search with a filter is exact, and so is one for which fewer candidates are proposed than hits are wanted, or
    with more than three of four rows deleted.
    Building uses all cores; two builds of an ``hnsw`` index may differ in which rows they find, while one built index
    always gives the same answer. Vectors too few to train what the specification asks for get fewer lists, or are
    scanned: of a large collection, one segment may be small.
    """

    PARAMETERS = accelerators.PARAMETERS

    def __init__(self, stored: StoredVectors, spec: Spec, index: Any | None, tuned: Tuned | None = None) -> None:
        self.spec = spec
        self.size, self.dimension = stored.values.shape
        self._stored = stored
        self._index = index
        self._tuned = tuned
        self._settings = accelerators.settings(spec, self.size, self.dimension)
        if tuned is not None:
            self._settings |= tuned.values

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors, float32 ``[size, dimension]``; memory-mapped in an index that was loaded."""
        return self._stored.values

    @property
    def settings(self) -> dict[str, float]:
        """The parameters in force, those left to choose included.

        Of an index that was built for a recall also ``recall``, what was reached, and ``recall_queries``, by how many
        queries; neither where it is scanned, since that is exact.
        """
        if self._tuned is None:
            return dict(self._settings)
        return {**self._settings, "recall": self._tuned.recall, "recall_queries": self._tuned.queries}

    @classmethod
    def build(cls, vectors: Vectors, spec: Spec) -> Self:
        """Index float32 ``[n, dim]``; besides the array, which is kept, it takes up to 1.5 times its memory.

        Raises VectorError, SpecError.
        """
        check_parameters(spec, cls.PARAMETERS)
        return cls._trained(StoredVectors.of(vectors), spec)

    @classmethod
    def merge(cls, parts: Sequence[tuple[Self, NDArray[np.int64]]], spec: Spec) -> Self:
        """See :class:`retrievers.indexes.protocol.Index`; what proposes candidates is trained, and tuned, anew."""
        check_parameters(spec, cls.PARAMETERS)
        return cls._trained(StoredVectors.gathered([(part._stored, rows) for part, rows in parts]), spec)

    @classmethod
    def _trained(cls, stored: StoredVectors, spec: Spec) -> Self:
        accelerators.settings(spec, *stored.values.shape)  # refuses what does not fit, however few vectors there are
        if "recall" not in spec.parameters:
            return cls(stored, spec, accelerators.train(stored, spec))
        index = accelerators.train(stored, spec) if len(stored.values) >= LEAST else None
        return cls(stored, spec, index, None if index is None else tune(stored, index, spec))

    def save(self, folder: Path) -> None:
        """Write the index's files into an existing empty folder."""
        more: dict[str, Any] = {"accelerated": int(self._index is not None)}
        if self._tuned is not None:
            more["tuned"] = self._tuned.to_json()
        save_stored(folder, self._stored, more)
        if self._index is not None:
            accelerators.write(self._index, folder / _FILE)

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> Self:
        """Open what :meth:`save` wrote, the vectors memory-mapped. Raises IndexDamagedError, naming the file."""
        check_parameters(spec, cls.PARAMETERS)
        stored, meta = load_stored(folder)
        if meta.get("accelerated") not in (0, 1):
            raise IndexDamagedError(f"{folder} does not tell whether {_FILE} belongs to it: build the index again")
        if not meta["accelerated"]:
            return cls(stored, spec, None)
        tuned = Tuned.from_json(meta.get("tuned"), spec, str(folder)) if "recall" in spec.parameters else None
        return cls(stored, spec, accelerators.read(folder / _FILE, stored, spec), tuned)

    def search(self, queries: Vectors, k: int, *, allowed: Bitmap | None = None, live: Bitmap | None = None) -> Found:
        """The best ``k`` rows by inner product, as far as they are found, for each query (float32 ``[queries, dim]``).

        Raises VectorError for queries of another shape or type, QueryError for a ``k`` below 1 or bitmaps of another
        size, IndexDamagedError where the stored vectors turn out to hold what was never written.
        """
        mask = check_search(k, self.size, allowed, live)
        permitted = self.size if mask is None else bitmaps.cardinality(mask)
        count = self._candidates(k)
        if allowed is not None or self._index is None or count >= permitted or permitted * _SCANNED < self.size:
            return self._stored.scan(queries, k, mask)
        values = self._stored.check_queries(queries)
        if len(values) == 1:
            return self._search(values, k, count, permitted, mask)
        found = nothing(0)
        for best in shared(
            lambda piece: self._search(values[piece], k, count, permitted, mask),
            pieces(len(values), _PAIRS // count, _SHARE),
            start=lambda: accelerators.use_one_thread(self._index),
        ):
            found.rows.extend(best.rows)
            found.scores.extend(best.scores)
        return found

    def tune(self, queries: Vectors, recall: float, k: int, live: Bitmap | None = None) -> Tuned | None:
        """What it takes to find this share of the ``k`` best of these queries, on the average; None where all is scanned."""
        values = self._stored.check_queries(queries)
        if self._index is None:
            return None
        return tune_for(self._stored, self._index, self.spec, values, recall, k, live)

    def _candidates(self, k: int) -> int:
        if self._tuned is not None and k > DEPTH and "candidates" in self._settings:
            return -(-self._settings["candidates"] * k // DEPTH)
        return accelerators.candidates(self._settings, self.spec.name, k)

    def _search(self, queries: NDArray[np.float32], k: int, count: int, permitted: int, mask: Bitmap | None) -> Found:
        chosen = self._settings
        if self._tuned is not None and k > DEPTH and "ef_search" in chosen:
            chosen = {**chosen, "ef_search": -(-chosen["ef_search"] * k // DEPTH)}
        rows = accelerators.propose(self._index, chosen, queries, count, mask)
        found = self._stored.best(queries, rows, min(k, count))
        wanted = min(k, permitted)
        short = [number for number, some in enumerate(found.rows) if len(some) < wanted]
        if short:
            place(found, short, self._stored.scan(queries[short], k, mask))
        return found
