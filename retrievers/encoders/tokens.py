"""Words: how the lexical encoder cuts text of any script.

- Text is folded first: NFKC (full-width letters, ligatures, half-width kana), case folding, the typographic apostrophe
  to ``'``; soft hyphens, joiners, direction marks and the Arabic tatweel are dropped. Accents stay: ``é`` is not ``e``.
- A word is a run of letters, numbers, combining marks and connectors (``_``). An apostrophe inside keeps it together
  (``don't``), every other sign parts it (``3.14`` gives ``3`` and ``14``). ``snake_case`` and ``camelCase`` are one
  word each.
- Scripts that put no space between words (:data:`UNSPACED`; and Hangul, whose particles hang on to the noun) are cut
  into runs and given as overlapping pairs of characters, a run of one character as itself; this is what Lucene's
  CJKAnalyzer does for Chinese, Japanese and Korean. Marks belong to the character before them. A query of a single
  character therefore finds it only where it stands alone.

Which characters are letters follows the Unicode tables of the ``regex`` package and of Python, so characters that are
new in Unicode may be cut in another way by another version; for all others the result is fixed by :data:`VERSION`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from operator import add

import regex

#: Changes whenever any text would be cut in another way: it is part of the encoder's fingerprint.
VERSION = 1

#: The scripts, by Unicode's names, whose runs are given as pairs of characters.
UNSPACED = ("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar")

# U+30FC, the prolonged sound mark, belongs to both kana scripts and therefore, for Unicode, to none.
_SCRIPTS = "[" + "".join(rf"\p{{{script}}}" for script in UNSPACED) + "\u30fc]"
_LETTER = r"\p{L}\p{N}\p{Pc}"
_RUN = rf"[{_SCRIPTS}&&[{_LETTER}]][[{_SCRIPTS}&&[{_LETTER}]]\p{{M}}]*"
_START, _REST = rf"[[{_LETTER}]--{_SCRIPTS}]", rf"[[{_LETTER}\p{{M}}]--{_SCRIPTS}]"

_ASCII_WORD = re.compile(r"\w+(?:'\w+)*", re.ASCII)
_SPACED_WORD = regex.compile(rf"[{_LETTER}][{_LETTER}\p{{M}}]*(?:'[{_LETTER}\p{{M}}]+)*", regex.V1)
_RUN_START = regex.compile(rf"[{_SCRIPTS}&&[{_LETTER}]]", regex.V1)
_WORD_OR_RUN = regex.compile(rf"(?:{_RUN}|{_START}{_REST}*(?:'{_REST}+)*)", regex.V1)
_CHARACTER = regex.compile(r"\P{M}\p{M}*")
_MARK = regex.compile(r"\p{M}")

# A quick test for text that needs _WORD_OR_RUN: blocks that together hold every letter of those scripts, and more.
_MAY_BE_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u19e0-\u19ff\u2e80-\ua4cf\ua960-\ua97f"
    "\ua9e0-\ua9ff\uaa60-\uaa7f\uac00-\ud7ff\uf900-\ufaff\U00010000-\U0010ffff]"
)

# Characters inside words that most writers leave out, or write in several ways.
_INVISIBLE = "\u00ad\u034f\u061c\u0640\u05f3\u05f4\u180e\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060"
_INVISIBLE += "\u2066\u2067\u2068\u2069\ufe0e\ufe0f\ufeff"
_FOLDED = dict.fromkeys(map(ord, _INVISIBLE), "") | {0x2019: "'", 0x02BC: "'"}
_UNFOLDED = re.compile("[\u2019\u02bc" + _INVISIBLE + "]")
_DOTTED = re.compile("i\u0307+")  # what case folding makes of the Turkish capital İ
# Persian parts the pieces of a word with a zero-width non-joiner, elsewhere it only chooses a glyph.
_PERSIAN_BREAK = regex.compile(r"(?<=\p{Arabic}\p{M}*)\u200c")

_ELIDED = {
    "catalan": "d l m n s t",
    "french": "c d j jusqu l lorsqu m n puisqu qu quoiqu s t",
    "irish": "b d m",
    "italian": "agl all bell c coll d dagl dall degl dell gl l m negl nell quell quest s sugl sull t un v",
}
_ELISIONS = {language: frozenset(heads.split()) for language, heads in _ELIDED.items()}
_POSSESSIVE = ("english", "porter")


def words(text: str) -> list[str]:
    """The words of a text, folded, in order, repeats and all; pairs of characters where the script has no spaces."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return cut(fold(text))


def fold(text: str) -> str:
    """The text with the differences taken out that do not make another word; folding twice changes nothing more."""
    if _UNFOLDED.search(text):
        text = _fold_marks(text)
    text = unicodedata.normalize("NFKC", text).casefold()
    if _UNFOLDED.search(text):
        text = _fold_marks(text)
    if "\u0307" in text:
        text = _DOTTED.sub("i", text)
    if "\u00b7" in text:  # Catalan's long l, which many write as a plain double one
        text = text.replace("l\u00b7l", "ll")
    return unicodedata.normalize("NFKC", text)


def cut(folded: str) -> list[str]:
    """The words of a text that is folded already; for ASCII the same as :func:`words`, by the general way."""
    # concurrent=False: for each match the package would give Python's lock away, and wait for it.
    if not _MAY_BE_UNSPACED.search(folded):
        found: list[str] = _SPACED_WORD.findall(folded, concurrent=False)
        return found
    marked = _MARK.search(folded) is not None
    parts: list[str] = []
    for part in _WORD_OR_RUN.findall(folded, concurrent=False):
        if _RUN_START.match(part):
            parts.extend(_pairs(_CHARACTER.findall(part) if marked else part))
        else:
            parts.append(part)
    return parts


def base(word: str, language: str) -> str:
    """The word without what elision or a possessive put on it: ``avion`` for French ``l'avion``, ``cat`` for ``cat's``.

    Done here rather than left to the stemmer, so that stop words are met behind an elision, and because Snowball's
    stemmers do it for some languages only, and not in every version.
    """
    if "'" not in word:
        return word
    if language in _POSSESSIVE:
        return word.removesuffix("'s")
    heads = _ELISIONS.get(language)
    if heads is not None:
        head, _, rest = word.partition("'")
        if head in heads:
            return rest
    return word


def _fold_marks(text: str) -> str:
    parted: str = _PERSIAN_BREAK.sub(" ", text)
    return parted.translate(_FOLDED)


def _pairs(characters: Sequence[str]) -> Iterable[str]:
    return characters if len(characters) == 1 else map(add, characters, characters[1:])
