"""Texts that are the same, or nearly so, by the Jaccard coefficient of their character trigrams: an exact join.

Two sets with Jaccard coefficient ``t`` or more share a member among the first ``n - ceil(t * n) + 1`` of each, in any
one order of all members (the prefix filter: Chaudhuri, Ganti and Kaushik, "A primitive operator for similarity joins in
data cleaning", ICDE 2006; Bayardo, Ma and Srikant, "Scaling up all pairs similarity search", WWW 2007, section 4). With
the rarest members first, few pairs are left to be compared in full. Unlike MinHash it misses none.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self

import numpy as np
import regex
from numpy.typing import NDArray

_OTHER = regex.compile(r"(?:[^\p{L}\p{M}\p{N}]|\p{Default_Ignorable_Code_Point})+")
_ASCII = {code: None for code in range(128) if not chr(code).isalnum()}
_BITS = 21  # of a character
_AT_ONCE = 1 << 20  # trigrams of pairs that are compared at a time
_ASKED = 1 << 14  # texts that are compared with the table at a time
_SLACK = 1e-9  # lengths and ratios are compared as floats

Ints = NDArray[np.int64]


def normal_form(text: str) -> str:
    """The letters, marks and digits of a text in lower case (Unicode NFKC and case folding), without spaces.

    Where there are none, such as in ``"???"``, the text in NFKC without its spaces.
    """
    if text.isascii():
        return text.translate(_ASCII).lower() or "".join(text.split())
    # Folding brings forth what NFKC joins, NFKC what folding changes, and a mark may follow another letter once what
    # stood between has gone: a second round settles them.
    folded = _fold(text)
    return _fold(_OTHER.sub("", folded)) or "".join(folded.split())


def _fold(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", folded).casefold())


class Trigrams(NamedTuple):
    """The distinct trigrams of texts: those of text ``i`` are ``values[offsets[i]:offsets[i + 1]]``, ascending."""

    offsets: Ints
    values: Ints


def trigrams(texts: Sequence[str]) -> Trigrams:
    """The distinct character trigrams of texts that are in normal form; a shorter text counts as one trigram.

    A trigram is an int64 that holds its three code points, so that no two are confused.
    """
    joined = "".join(text if len(text) >= 3 else text.ljust(3, "\0") for text in texts)
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    lengths = np.array([max(len(text), 3) for text in texts], np.int64)
    if not len(codes):
        return Trigrams(np.zeros(1, np.int64), np.empty(0, np.int64))
    values = (codes[:-2] << 2 * _BITS) | (codes[1:-1] << _BITS) | codes[2:]
    owner = np.repeat(np.arange(len(texts)), lengths)[:-2]
    whole = owner == np.repeat(np.arange(len(texts)), lengths)[2:]
    values, owner = values[whole], owner[whole]
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    values, owner = values[new], owner[new]
    return Trigrams(np.searchsorted(owner, np.arange(len(texts) + 1)).astype(np.int64), values)


def jaccard(left: str, right: str) -> float:
    """The coefficient of two texts in normal form: shared trigrams by all trigrams."""
    one, other = (set(trigrams([text]).values.tolist()) for text in (left, right))
    return len(one & other) / len(one | other)


class Matches(NamedTuple):
    """Pairs of a text asked for and a text of the table, by position, with their coefficients (float64)."""

    asked: Ints
    known: Ints
    similarity: NDArray[np.float64]


class NearTexts:
    """A table of texts in normal form that finds those within ``near`` of others.

    Memory is some 50 bytes for each distinct trigram of each text of the table.
    """

    def __init__(self, texts: Sequence[str], near: float) -> None:
        grams = trigrams(texts)
        self._near = near
        self._sizes = np.diff(grams.offsets)
        vocabulary, inverse, counts = np.unique(grams.values, return_inverse=True, return_counts=True)
        by_rarity = np.argsort(counts, kind="stable")
        rank = np.empty(len(counts), np.int64)
        rank[by_rarity] = np.arange(len(counts))
        self._vocabulary, self._rank = vocabulary, rank
        self._width = len(vocabulary) + 1
        owner = np.repeat(np.arange(len(texts)), self._sizes)
        ranks = rank[inverse.reshape(-1)] + 1  # 0 stands for trigrams that no text of the table has
        self._members = np.sort(owner * self._width + ranks)
        owner, ranks = np.divmod(self._members, self._width)
        prefix = self._prefix(owner, self._sizes)
        order = np.lexsort((owner[prefix], ranks[prefix]))
        self._keys, self._owners = ranks[prefix][order], owner[prefix][order]

    @classmethod
    def of(cls, texts: Iterable[str], near: float) -> Self:
        """A table of texts as they are written."""
        return cls([normal_form(text) for text in texts], near)

    def find(self, texts: Sequence[str]) -> Matches:
        """All pairs of these texts, in normal form, and those of the table whose coefficient is ``near`` or more."""
        grams = trigrams(texts)
        sizes = np.diff(grams.offsets)
        owner = np.repeat(np.arange(len(texts)), sizes)
        at = np.minimum(np.searchsorted(self._vocabulary, grams.values), max(len(self._vocabulary) - 1, 0))
        ranks = np.zeros(len(grams.values), np.int64)
        if len(self._vocabulary):
            known = self._vocabulary[at] == grams.values
            ranks[known] = self._rank[at[known]] + 1
        order = np.argsort(owner * self._width + ranks, kind="stable")
        owner, ranks = owner[order], ranks[order]
        prefix = self._prefix(owner, sizes) & (ranks > 0)
        keys, asked = ranks[prefix], owner[prefix]
        starts = np.searchsorted(self._keys, keys)
        counts = np.searchsorted(self._keys, keys, side="right") - starts
        found = [
            self._verify(pair // len(self._sizes), pair % len(self._sizes), grams.offsets, ranks)
            for pair in self._pairs(asked, starts, counts, sizes)
        ]
        if not found:
            return Matches(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))
        left, right, similarity = (np.concatenate(part) for part in zip(*found, strict=True))
        _, first = np.unique(left * len(self._sizes) + right, return_index=True)
        return Matches(left[first], right[first], similarity[first])

    def near(self, texts: Sequence[str]) -> set[int]:
        """The places of those of these texts, as they are written, that are within ``near`` of one of the table."""
        return {
            first + place
            for first in range(0, len(texts), _ASKED)
            for place in self.find([normal_form(text) for text in texts[first : first + _ASKED]]).asked.tolist()
        }

    def _prefix(self, owner: Ints, sizes: Ints) -> NDArray[np.bool_]:
        """Which members are in the prefix of their text; ``owner`` ascends, the rarest members of each come first."""
        starts = np.cumsum(sizes) - sizes
        lengths = sizes - np.ceil(self._near * sizes - _SLACK).astype(np.int64) + 1
        inside: NDArray[np.bool_] = np.arange(len(owner)) - starts[owner] < lengths[owner]
        return inside

    def _pairs(self, asked: Ints, starts: Ints, counts: Ints, sizes: Ints) -> Iterator[Ints]:
        """Distinct pairs that share a member of their prefixes and may be near by their sizes, some at a time."""
        totals = np.cumsum(counts)
        first = 0
        while first < len(asked):
            before = int(totals[first - 1]) if first else 0
            last = max(int(np.searchsorted(totals, before + _AT_ONCE, side="right")), first + 1)
            some = counts[first:last]
            within = np.arange(int(some.sum())) - np.repeat(np.cumsum(some) - some, some)
            left = np.repeat(asked[first:last], some)
            right = self._owners[np.repeat(starts[first:last], some) + within]
            one, other = sizes[left], self._sizes[right]
            fits = np.minimum(one, other) >= self._near * np.maximum(one, other) - _SLACK
            pairs = np.unique(left[fits] * len(self._sizes) + right[fits])
            step = max(1, _AT_ONCE // max(1, int(sizes.max())))
            for begin in range(0, len(pairs), step):
                yield pairs[begin : begin + step]
            first = last

    def _verify(self, left: Ints, right: Ints, offsets: Ints, ranks: Ints) -> tuple[Ints, Ints, NDArray[np.float64]]:
        counts = offsets[left + 1] - offsets[left]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        wanted = np.repeat(right, counts) * self._width + ranks[np.repeat(offsets[left], counts) + within]
        at = np.minimum(np.searchsorted(self._members, wanted), len(self._members) - 1)
        shared = np.bincount(
            np.repeat(np.arange(len(left)), counts), weights=self._members[at] == wanted, minlength=len(left)
        )
        similarity = shared / (counts + self._sizes[right] - shared)
        near = similarity >= self._near - _SLACK
        return left[near], right[near], similarity[near]
