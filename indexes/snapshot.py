"""A snapshot: one commit of an index, open for reading and never changing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.conditions import Filter
from retrievers.documents import Document
from retrievers.errors import IndexDamagedError
from retrievers.indexes import bitmaps
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.files import check_quickly
from retrievers.indexes.kinds import parse_index_spec
from retrievers.indexes.manifest import ENCODER, Manifest
from retrievers.indexes.protocol import Found
from retrievers.indexes.segments import Segment, Statistics
from retrievers.indexes.store import Store
from retrievers.specs import Spec
from retrievers.vectors import Kind, Vectors

T = TypeVar("T")


class Ranking(NamedTuple):
    """The best of one query, best first: scores, and places, which number the rows of all segments one after the other."""

    scores: list[float]
    places: list[int]


class Threshold:
    """The ``k``-th best score of each query in the segments that were searched: nothing below it is a hit."""

    def __init__(self, queries: int, k: int) -> None:
        self._best = np.full((queries, k), -np.inf, np.float32)  # ascending

    @property
    def scores(self) -> NDArray[np.float32]:
        """float32 ``[queries]``, minus infinity where fewer than ``k`` rows were found."""
        return self._best[:, 0]

    def raise_by(self, found: Found) -> None:
        """Take in what was found in one more segment."""
        k = self._best.shape[1]
        for query, scores in enumerate(found.scores):
            self._best[query] = np.sort(np.concatenate([self._best[query], scores]))[-k:]


class Snapshot:
    """The open segments of a commit, and what a search needs over all of them."""

    def __init__(self, root: Path, manifest: Manifest, reuse: Snapshot | None) -> None:
        self.root = root
        self.manifest = manifest
        self.kind: Kind = manifest.encoder["kind"]
        self.spec: Spec = parse_index_spec(manifest.index, self.kind)
        check_quickly(root / ENCODER, manifest.encoder_files)
        known = (
            {}
            if reuse is None or reuse.spec != self.spec
            else {segment.record.name: segment for segment in reuse.segments}
        )
        self.segments: list[Segment] = []
        try:
            for record in manifest.segments:
                self.segments.append(Segment.open(root, record, self.spec, self.kind, known.get(record.name)))
        except BaseException:
            # Not left to the collector of garbage: the files of those that did open may be what another try lacks.
            shared = {id(segment.store) for segment in known.values()}
            for segment in self.segments:
                if id(segment.store) not in shared:
                    segment.close()
            raise
        sizes = [segment.size for segment in self.segments]
        self._starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()][: len(sizes)]
        self._statistics: Statistics | None = None
        if self.kind == "lexical":
            self._statistics = Statistics(self.segments, Bm25(**manifest.encoder["bm25"]))

    @classmethod
    def open(cls, root: Path, current: Snapshot | None = None) -> Snapshot:
        """Open the newest commit; ``current`` itself where that is the newest."""
        while True:
            manifest = Manifest.read(root)
            if current is not None and manifest == current.manifest:
                return current
            try:
                return cls(root, manifest, current)
            except IndexDamagedError:
                # A merge may have removed the folders between the reading of the manifest and theirs.
                if Manifest.read(root).generation == manifest.generation:
                    raise

    @property
    def dimension(self) -> int | None:
        """The dimension of the vectors, None where the collection is empty or the index does not tell."""
        for segment in self.segments:
            found: int | None = getattr(segment.index, "dimension", None)
            if found is not None:
                return found
        return None

    def uses_threshold(self, k: int) -> bool:
        """Whether a search for ``k`` hits saves work by a :class:`Threshold`."""
        return self.kind == "multi-vector" and len(self.segments) > 1 and k <= sum(one.size for one in self.segments)

    def weigh(self, queries: Vectors) -> Vectors:
        """Query vectors as the index wants them: in a lexical index weighted by the live collection's statistics."""
        return queries if self._statistics is None else self._statistics.weigh(queries)

    def norms(self, number: int) -> NDArray[np.float32] | None:
        """The length normalisation of a segment's documents; None in other than lexical indexes."""
        return None if self._statistics is None else self._statistics.norms[number]

    def prepare(self) -> None:
        """Do now what the first search would wait for."""
        for number, segment in enumerate(self.segments):
            segment.prepare(self.norms(number))

    def all_documents(self) -> Iterator[Document]:
        """The live documents, segment after segment, without holding them all."""
        for segment in self.segments:
            for entry in segment.entries():
                yield entry.document

    def permitted(self, condition: Filter | None) -> Iterator[tuple[int, Segment, Bitmap | None]]:
        """The segments in which a filter permits anything, with their numbers and bitmaps; all, without one, for None."""
        for number, segment in enumerate(self.segments):
            allowed = None
            if condition is not None:
                mask = segment.permitted(condition)
                if not mask.any():
                    continue
                allowed = bitmaps.pack(mask)
            yield number, segment, allowed

    def locate(self, id: str) -> tuple[int, int] | None:
        """The segment and row of the live document with this id."""
        for number, segment in enumerate(self.segments):
            known = segment.store.find([id]).get(id)
            if known is not None and segment.is_live(known.row):
                return number, known.row
        return None

    def held(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that belong to live documents."""
        return {
            id
            for segment in self.segments
            for id, known in segment.store.find(ids).items()
            if segment.is_live(known.row)
        }

    def combine(self, found: Sequence[tuple[int, Found]], queries: int, k: int) -> list[Ranking]:
        """The best ``k`` of each query over segments: by score, and by document id where scores are equal."""
        if len(found) == 1:
            ((number, only),) = found
            start = self._starts[number]
            return [
                Ranking(scores[:k].tolist(), (rows[:k] + start).tolist())
                for scores, rows in zip(only.scores, only.rows, strict=True)
            ]
        best: list[Ranking] = []
        for query in range(queries):
            scores = np.concatenate([part.scores[query] for _, part in found])
            places = np.concatenate([part.rows[query] + self._starts[number] for number, part in found])
            order = np.argsort(-scores, kind="stable")
            scores, places = scores[order], places[order]
            if np.any(scores[1:] == scores[:-1]):
                ids = self._gather(places, lambda store, rows: store.ids(rows))
                hits = [
                    (-score, ids[place], place) for score, place in zip(scores.tolist(), places.tolist(), strict=True)
                ]
                places = np.array([place for _, _, place in sorted(hits)], np.int64)
            best.append(Ranking(scores[:k].tolist(), places[:k].tolist()))
        return best

    def documents(self, rankings: Sequence[Ranking]) -> dict[int, Document]:
        """The documents of rankings, by place, each read once."""
        # Not np.unique: its first call imports numpy.ma, which takes longer than most searches.
        alone = len(rankings) == 1
        places = rankings[0].places if alone else sorted({place for ranking in rankings for place in ranking.places})
        if len(self.segments) == 1:
            return self.segments[0].store.documents(places)
        return self._gather(np.array(places, np.int64), lambda store, rows: store.documents(rows))

    def _gather(self, places: NDArray[np.int64], read: Callable[[Store, Sequence[int]], dict[int, T]]) -> dict[int, T]:
        """What ``read`` tells of the rows at these places, which differ, by place."""
        found: dict[int, T] = {}
        for segment, start in zip(self.segments, self._starts, strict=True):
            mine = places[(places >= start) & (places < start + segment.size)] - start
            if len(mine):
                told = read(segment.store, mine.tolist())
                found |= {row + start: value for row, value in told.items()} if start else told
        return found

    def close(self) -> None:
        for segment in self.segments:
            segment.close()
