"""Rank strata: how many negatives to draw from which ranks, and the draw itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Self

from retrievers.errors import TrainingDataError

_STRATUM = re.compile(r"\s*(\d+)-(\d+):(\d+)\s*")


@dataclass(frozen=True)
class Stratum:
    """``count`` documents of the ranks ``first`` to ``last``, both included, counted from 1."""

    first: int
    last: int
    count: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}:{self.count}"


@dataclass(frozen=True)
class Strata:
    """Strata that do not overlap, by rank; ``str()`` and :meth:`parse` are inverses.

    Taking all negatives from the top gives the most false ones, and taking them at random the least to learn from; the
    pairs of inference-free sparse training are drawn from strata (Geng et al., 2024). Raises TrainingDataError for ranks
    that are out of order, overlap, or are too few for their count.
    """

    parts: tuple[Stratum, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise TrainingDataError("there is no stratum: write them as 1-10:4,11-50:4")
        before = 0
        for part in self.parts:
            if not before < part.first <= part.last:
                raise TrainingDataError(
                    f"the stratum {part} begins before rank {before + 1} or ends before it begins: strata go up from rank "
                    "1, and do not overlap"
                )
            if not 1 <= part.count <= part.last - part.first + 1:
                raise TrainingDataError(
                    f"the stratum {part} asks for {part.count} of {part.last - part.first + 1} documents: ask for 1 or more, "
                    "and for no more than there are"
                )
            before = part.last

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``1-10:4,11-50:4,51-100:8``. Raises TrainingDataError."""
        parts = []
        for one in text.split(","):
            match = _STRATUM.fullmatch(one)
            if match is None:
                raise TrainingDataError(
                    f"{one!r} in {text!r} is no stratum: write first rank-last rank:count, as 1-10:4"
                )
            parts.append(Stratum(*map(int, match.groups())))
        return cls(tuple(parts))

    def __str__(self) -> str:
        return ",".join(map(str, self.parts))

    @property
    def depth(self) -> int:
        """The last rank."""
        return self.parts[-1].last

    @property
    def count(self) -> int:
        """How many documents are drawn in all."""
        return sum(part.count for part in self.parts)


def lot(seed: int, query: str, document: str) -> bytes:
    """The lot of a document in the draw for a query: lots go from low to high.

    A hash of the seed and the two ids alone, so that neither the other documents, nor batches, nor processes change it.
    """
    found = blake2b(f"{seed} {len(query)} {query}".encode("utf-8", "surrogatepass"), digest_size=16)
    found.update(b"\0" + document.encode("utf-8", "surrogatepass"))
    return found.digest()
