"""Whether a generated answer is right: exact match and token F1 (Rajpurkar et al., 2016), of labels, texts and code alike."""

from __future__ import annotations

import re
from collections import Counter

_TOKEN = re.compile(r"[^\W_]+|_|[^\w\s]")


def answer_tokens(text: str) -> list[str]:
    """What two answers are compared by: runs of letters and digits, and each other mark by itself, in lower case.

    White space counts for nothing: tokenizers lose it (``card_arrival`` comes back as ``card _ arrival``). Articles and
    punctuation stay, as commands need them.
    """
    return _TOKEN.findall(text.casefold())


def exact_match(answer: str, gold: str) -> float:
    """1 where both have the same tokens in the same order, 0 otherwise."""
    return float(answer_tokens(answer) == answer_tokens(gold))


def token_f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the answer's tokens, each as often as it comes; of two empty ones, 1."""
    found, wanted = Counter(answer_tokens(answer)), Counter(answer_tokens(gold))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())
