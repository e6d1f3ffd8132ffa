"""Queries without a language model: the form of a demonstration's query, filled with the target passage's own words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from retrievers.documents import Document
from retrievers.encoders.lexical import LexicalEncoder, column
from retrievers.errors import GenerationError
from retrievers.retriever import Retriever
from retrievers.training.prompts import QueryPrompt
from retrievers.training.seeds import Seed, find_seeds

_WORD = re.compile(r"\w+(?:['’./+#-]\w+)*[+#]*")
_END = re.compile(r"[.!?;:]\s|[\n()\[\]{}\"“”|]")  # no phrase goes across
_BLOCK = 1024  # passages that are counted at a time
_READ = 400  # words of a passage that phrases are taken from
_COMMON = 3  # queries that begin or end alike make that a form
_FORM = 8  # words, below which a beginning or an ending is
_TITLE = 0  # the size of a slot that a title goes into
_HALF = 100  # words into a passage, where a word counts half of what it does at the beginning
_NEAR = 40  # words between the phrases of one query


@dataclass(frozen=True)
class _Form:
    """A query as pieces that stay, ``[slots + 1]``, with slots between them, of so many words that count, or ``_TITLE``;
    ``terms`` are those of the pieces.
    """

    pieces: tuple[str, ...]
    slots: tuple[int, ...]
    terms: frozenset[str]


@dataclass(frozen=True)
class _Phrase:
    """Words of a passage, ``[first, last)``, and how telling they are."""

    first: int
    last: int
    score: float


#: A form for demonstrations whose queries have no slot.
_BARE = _Form(("", ""), (3,), frozenset())


class ExtractiveGenerator:
    """Writes a query for the target of a prompt in the form of one of its demonstrations.

    What several seeds begin with ("What are the symptoms of") or end with is the form of a query; the rest are slots. Of a
    prompt's demonstrations the form is taken whose own words fit the target best, by how often they stand in the passages
    of such seeds and in passages at large; of equal ones that of the demonstration next to the target. Slots are filled
    with phrases of the target, of as many words and in their order there: those whose words are rare in the collection,
    frequent in the passage, and early. Where a seed's query names the title of its passage, the title of the target takes
    its place.

    ``pool`` holds the collection, by which rare words are told; it is read once. ``seeds`` are those of
    :func:`retrievers.training.augmentation.augment`. ``language`` is one of :class:`retrievers.LexicalEncoder` that puts
    spaces between words. What is written for a prompt depends on the prompt alone. Raises TrainingDataError as
    :func:`retrievers.training.seeds.find_seeds`.
    """

    def __init__(
        self, pool: Retriever, seeds: Iterable[tuple[str, str | Document]], *, language: str = "english"
    ) -> None:
        self._lexical = LexicalEncoder(language=language)
        self._terms_of: dict[str, tuple[str, ...]] = {}
        self._documents, self._frequency = self._counted(pool.snapshot.all_documents())
        known = find_seeds(seeds, pool)
        words = [tuple(word.casefold() for word in _WORD.findall(seed.query)) for seed in known]
        self._openings = _common(found[:size] for found in words for size in range(1, min(len(found), _FORM)))
        self._endings = _common(found[-size:] for found in words for size in range(1, min(len(found), _FORM)))
        titles = {seed.query: frozenset(self._lexical.tokenize(seed.document.title)) for seed in known}
        self._titles = titles
        self._odds = self._fitting(known)

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """A query for each prompt; empty where the target has no words for it.

        Raises GenerationError for a prompt that is a plain string, whose parts cannot be told.
        """
        found = []
        for number, prompt in enumerate(prompts):
            if not isinstance(prompt, QueryPrompt):
                raise GenerationError(
                    f"prompt {number} is a plain {type(prompt).__name__}, {prompt!r:.80}: the extractive generator reads the "
                    "parts of Prompts, as QueryTemplate.prompt makes them"
                )
            found.append(self._query(prompt))
        return found

    def _query(self, prompt: QueryPrompt) -> str:
        met = set(self._lexical.tokenize(prompt.target.content))
        forms = [self._form(query) for query, _ in reversed(prompt.demonstrations)]
        best = max([form for form in forms if form.slots] or [_BARE], key=lambda form: self._fit(form, met))
        filled = self._fillings(prompt.target, best.slots)
        if not any(filled):
            return ""
        parts = chain.from_iterable(zip(best.pieces, [*filled, ""], strict=True))
        return " ".join("".join(parts).split())

    def _form(self, query: str) -> _Form:
        found = list(_WORD.finditer(query))
        folded = tuple(match.group().casefold() for match in found)
        title = self._title_span(query, folded)
        sizes = range(1, len(found))
        opening = max((size for size in sizes if folded[:size] in self._openings), default=0)
        ending = max((size for size in sizes if folded[-size:] in self._endings), default=0)
        fixed = [not opening <= at < len(found) - ending and at not in title for at in range(len(found))]
        pieces: list[str] = []
        slots: list[int] = []
        end = at = 0
        while at < len(found):
            size, stop = 0, at + 1
            if at in title:
                stop = title.stop
            elif not fixed[at] and self._terms(folded[at]):
                size = 1
                for place in range(at + 1, len(found)):  # stop words between two words of a slot are in the slot
                    if fixed[place] or place in title:
                        break
                    if self._terms(folded[place]):
                        size, stop = size + 1, place + 1
            else:
                at = stop
                continue
            pieces.append(query[end : found[at].start()])
            slots.append(size)
            end, at = found[stop - 1].end(), stop
        terms = {term for word, stays in zip(folded, fixed, strict=True) if stays for term in self._terms(word)}
        return _Form((*pieces, query[end:]), tuple(slots), frozenset(terms))

    def _title_span(self, query: str, folded: Sequence[str]) -> range:
        """Where a seed's query names the title of its passage, whole; empty where it does not."""
        wanted = self._titles.get(query, frozenset())
        places = [at for at, word in enumerate(folded) if self._terms(word) and wanted.issuperset(self._terms(word))]
        if not wanted or {term for at in places for term in self._terms(folded[at])} != wanted:
            return range(0)
        return range(places[0], places[-1] + 1)

    def _fit(self, form: _Form, met: set[str]) -> float:
        return sum(self._odds[term][term in met] for term in form.terms if term in self._odds)

    def _fillings(self, target: Document, slots: Sequence[int]) -> list[str]:
        """What stands in each slot; fewer where the passage has no more phrases."""
        text = target.text
        words = _words(text)
        terms = [self._terms(text[start:end]) for start, end, _ in words]
        taken = set(self._lexical.tokenize(target.title)) if _TITLE in slots else set()
        chosen: list[_Phrase] = []
        for size in sorted((size for size in slots if size), reverse=True):
            best = _best_phrase(words, self._scores(terms, taken), size, chosen)
            if best is None:
                break
            chosen.append(best)
            taken.update(term for found in terms[best.first : best.last] for term in found)
        phrases = [text[words[one.first][0] : words[one.last - 1][1]] for one in sorted(chosen, key=_place)]
        rest = iter(phrases)
        filled = [target.title if size == _TITLE else next(rest, "") for size in slots]
        return [" ".join(phrase.split()) for phrase in filled]

    def _scores(self, terms: Sequence[tuple[str, ...]], taken: set[str]) -> list[float]:
        """How telling each word is; 0 for a stop word, and for one that is taken or that forms are made of."""
        times = Counter(term for found in terms for term in found)
        return [
            0.0
            if not found or any(term in taken or term in self._odds for term in found)
            else max(self._rarity(term) * math.sqrt(times[term]) for term in found) / (1 + at / _HALF)
            for at, found in enumerate(terms)
        ]

    def _terms(self, word: str) -> tuple[str, ...]:
        """The terms of a word, none for a stop word."""
        found = self._terms_of.get(word)
        if found is None:
            found = self._terms_of[word] = tuple(self._lexical.tokenize(word))
        return found

    def _rarity(self, term: str) -> float:
        frequency = self._frequency[column(term)]
        return math.log(1 + (self._documents - frequency + 0.5) / (frequency + 0.5))

    def _counted(self, passages: Iterable[Document]) -> tuple[int, Counter[int]]:
        """The number of passages, and how many of them have each term, by its column."""
        total, counts = 0, Counter[int]()
        rest = iter(passages)
        while block := list(islice(rest, _BLOCK)):
            vectors = self._lexical.encode_document([document.content for document in block])
            columns, times = np.unique(vectors.indices, return_counts=True)
            counts.update(dict(zip(columns.tolist(), times.tolist(), strict=True)))
            total += len(block)
        return total, counts

    def _fitting(self, seeds: Sequence[Seed]) -> dict[str, tuple[float, float]]:
        """For each term of the forms what it says for a form that a passage lacks it, or has it: log odds."""
        having: Counter[str] = Counter()
        asking: Counter[str] = Counter()
        for seed in seeds:
            terms = self._form(seed.query).terms
            met = set(self._lexical.tokenize(seed.document.content))
            asking.update(terms)
            having.update(terms & met)
        odds = {}
        for term, asked in asking.items():
            here = (having[term] + 0.5) / (asked + 1)
            there = (self._frequency[column(term)] + 0.5) / (self._documents + 1)
            odds[term] = math.log((1 - here) / (1 - there)), math.log(here / there)
        return odds


def _common(parts: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The parts of queries that several have."""
    return {part for part, count in Counter(parts).items() if count >= _COMMON}


def _place(phrase: _Phrase) -> int:
    return phrase.first


def _words(text: str) -> list[tuple[int, int, int]]:
    """The first words of a text: where each begins and ends, and the number of the stretch that it stands in."""
    ends = [match.start() for match in _END.finditer(text)]
    found = []
    stretch = 0
    for match in islice(_WORD.finditer(text), _READ):
        while stretch < len(ends) and ends[stretch] < match.start():
            stretch += 1
        found.append((match.start(), match.end(), stretch))
    return found


def _best_phrase(
    words: Sequence[tuple[int, int, int]], scores: Sequence[float], size: int, chosen: Sequence[_Phrase]
) -> _Phrase | None:
    """The most telling stretch of up to ``size`` words that count, near what is chosen and apart from it."""
    best: _Phrase | None = None
    for first in range(len(words)):
        if not scores[first] or (chosen and abs(chosen[0].first - first) > _NEAR):
            continue
        total, count = 0.0, 0
        for last in range(first, min(len(words), first + 2 * size)):
            if words[last][2] != words[first][2] or any(one.first <= last < one.last for one in chosen):
                break
            if scores[last]:
                total, count = total + scores[last], count + 1
                score = total / count * math.sqrt(count)  # a phrase that fills the slot, unless its words say little
                if best is None or score > best.score:
                    best = _Phrase(first, last + 1, score)
                if count == size:
                    break
    return best
