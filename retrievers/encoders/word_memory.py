"""Token ids of short texts, put together from those of words that were met before.

A tokenizer of BERT's type treats what lies between two spaces by itself: it cleans, splits and looks up within it. The
words of questions come again, and a dictionary is ten times as quick as to cut them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REMEMBERED = 1 << 16  # words,
_LONGEST = 40  # of at most so many characters

# Below this many texts one thread is as fast, and a process that may fork later never starts the tokenizer's threads.
_BATCH = 64


class WordMemory:
    """The token ids that ``tokenizer.encode(text, add_special_tokens=False)`` gives; safe to share between threads.

    A tokenizer that may look across spaces, and a text that it cuts off, are asked as a whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parted = _parts_at_spaces(tokenizer)
        self._most: int | None = None if tokenizer.truncation is None else tokenizer.truncation["max_length"]
        self._known: dict[str, tuple[int, ...]] = {"": ()}

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, in order."""
        if self._parted:
            return [self._put_together(text) for text in texts]
        if len(texts) < _BATCH:
            return [self._whole(text) for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def _put_together(self, text: str) -> list[int]:
        found: list[int] = []
        known = self._known
        for word in text.split(" "):
            ids = known.get(word)
            if ids is None:
                ids = tuple(self._whole(word))
                if len(word) <= _LONGEST:
                    if len(known) >= _REMEMBERED:
                        known = self._known = {"": ()}
                    known[word] = ids
            found += ids
        if self._most is not None and len(found) > self._most:
            return self._whole(text)
        return found

    def _whole(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def _parts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether no token, and nothing that is done to the text before, can reach across a space."""
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    stages = (
        (tokenizer.normalizer, BertNormalizer),
        (tokenizer.pre_tokenizer, BertPreTokenizer),
        (tokenizer.model, WordPiece),
    )
    # Of an added token that is not ASCII the normaliser may make one with spaces.
    plain = all(
        token.content.isascii() and not any(letter.isspace() for letter in token.content)
        for token in tokenizer.get_added_tokens_decoder().values()
    )
    return plain and tokenizer.padding is None and all(isinstance(stage, kind) for stage, kind in stages)
