"""A snapshot: one commit of an index, open for reading and never changing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.documents import Document
from retrievers.errors import IndexDamagedError
from retrievers.indexes.files import check_quickly
from retrievers.indexes.kinds import parse_index_spec
from retrievers.indexes.manifest import ENCODER, Manifest
from retrievers.indexes.protocol import Found
from retrievers.indexes.segments import Segment, Statistics
from retrievers.specs import Spec
from retrievers.vectors import Kind, Vectors

Ranking = list[tuple[float, int, int]]
"""The best of one query, best first: score, number of the segment, row in it."""


class Snapshot:
    """The open segments of a commit, and what a search needs over all of them."""

    def __init__(self, root: Path, manifest: Manifest, reuse: Snapshot | None) -> None:
        self.root = root
        self.manifest = manifest
        self.kind: Kind = manifest.encoder["kind"]
        self.spec: Spec = parse_index_spec(manifest.index, self.kind)
        check_quickly(root / ENCODER, manifest.encoder_files)
        known = {} if reuse is None else {segment.record.name: segment for segment in reuse.segments}
        self.segments: list[Segment] = [
            Segment.open(root, record, self.spec, self.kind, known.get(record.name)) for record in manifest.segments
        ]
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

    def weigh(self, queries: Vectors) -> Vectors:
        """Query vectors as the index wants them: in a lexical index weighted by the live collection's statistics."""
        return queries if self._statistics is None else self._statistics.weigh(queries)

    def norms(self, number: int) -> NDArray[np.float32] | None:
        """The length normalisation of a segment's documents; None in other than lexical indexes."""
        return None if self._statistics is None else self._statistics.norms[number]

    def locate(self, id: str) -> tuple[int, int] | None:
        """The segment and row of the live document with this id."""
        for number, segment in enumerate(self.segments):
            known = segment.store.find([id]).get(id)
            if known is not None and segment.is_live(known.row):
                return number, known.row
        return None

    def combine(self, found: Sequence[tuple[int, Found]], queries: int, k: int) -> list[Ranking]:
        """The best ``k`` of each query over segments: by score, and by document id where scores are equal."""
        best: list[Ranking] = []
        for query in range(queries):
            ranking = [
                (score, number, row)
                for number, part in found
                for score, row in zip(part.scores[query].tolist(), part.rows[query].tolist(), strict=True)
            ]
            if len(found) > 1:
                ranking.sort(key=lambda hit: -hit[0])
                if len({hit[0] for hit in ranking}) < len(ranking):
                    ids = self._ids(ranking)
                    ranking.sort(key=lambda hit: (-hit[0], ids[hit[1], hit[2]]))
            best.append(ranking[:k])
        return best

    def documents(self, rankings: Sequence[Ranking]) -> dict[int, dict[int, Document]]:
        """The documents of rankings, by segment and row, each read once."""
        wanted = {(number, row) for ranking in rankings for _, number, row in ranking}
        rows: dict[int, list[int]] = {}
        for number, row in sorted(wanted):
            rows.setdefault(number, []).append(row)
        return {number: self.segments[number].store.documents(mine) for number, mine in rows.items()}

    def _ids(self, ranking: Ranking) -> dict[tuple[int, int], str]:
        rows: dict[int, list[int]] = {}
        for _, number, row in ranking:
            rows.setdefault(number, []).append(row)
        return {
            (number, row): id
            for number, wanted in rows.items()
            for row, id in self.segments[number].store.ids(wanted).items()
        }

    def close(self) -> None:
        for segment in self.segments:
            segment.close()
