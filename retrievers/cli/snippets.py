"""Snippets: the stretch of a text that holds most of a query's words, and where in it they are."""

from __future__ import annotations

import re
from typing import NamedTuple

# Scripts that write no spaces are looked at character by character.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
_LONGEST = 200_000  # characters of a text that are looked at
_LEAST_STEM = 4


class Snippet(NamedTuple):
    """A line of text and the spans (start, end) in it that match the query."""

    text: str
    spans: list[tuple[int, int]]


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would obey."""
    return _CONTROL.sub("\ufffd", _SPACE.sub(" ", text).strip())


def snippet(text: str, query: str, width: int) -> Snippet:
    """The stretch of about ``width`` characters that holds the most of the query's words, the long ones first."""
    line = printable(text[:_LONGEST])
    words = {match.group().casefold() for match in _WORD.finditer(query)}
    found = [
        (match.start(), match.end(), word)
        for match in _WORD.finditer(line)
        if (word := _meets(match.group().casefold(), words)) is not None
    ]
    start = _best_start(found, width) if len(line) > width else 0
    if start:
        start = max(0, start - width // 5)
        space = line.find(" ", start, start + width // 5)
        start = space + 1 if start and space >= 0 else start
    end = min(len(line), start + width)
    if end < len(line):
        space = line.rfind(" ", start + width // 2, end)
        end = space if space >= 0 else end
    before, after = "... " if start else "", " ..." if end < len(line) else ""
    shift = len(before) - start
    spans = [(a + shift, b + shift) for a, b, _ in found if a >= start and b <= end]
    return Snippet(f"{before}{line[start:end]}{after}", spans)


def spans(text: str, query: str) -> list[tuple[int, int]]:
    """Where a short text (already printable) matches the query."""
    words = {match.group().casefold() for match in _WORD.finditer(query)}
    return [m.span() for m in _WORD.finditer(text) if _meets(m.group().casefold(), words) is not None]


def _meets(word: str, words: set[str]) -> str | None:
    """The word of the query that this one is, or shares its beginning with (committed, commit)."""
    if word in words:
        return word
    if len(word) < _LEAST_STEM:
        return None
    for wanted in words:
        if len(wanted) >= _LEAST_STEM and (word.startswith(wanted) or wanted.startswith(word)):
            return wanted
    return None


def _best_start(found: list[tuple[int, int, str]], width: int) -> int:
    """Where the window begins that has the most of the query's words, by their characters; 0 where there are none."""
    best, best_start = 0, 0
    inside: dict[str, int] = {}
    first = 0
    for _, end, word in found:
        inside[word] = inside.get(word, 0) + 1
        while end - found[first][0] > width - width // 5 and found[first][2] in inside:
            left = found[first][2]
            inside[left] -= 1
            if not inside[left]:
                del inside[left]
            first += 1
            if first >= len(found):
                break
        score = sum(map(len, inside))
        if score > best:
            best, best_start = score, found[first][0]
    return best_start
