"""What every encoder takes: a sequence of texts."""

from __future__ import annotations

from collections.abc import Sequence

from retrievers.errors import EncoderError


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises EncoderError for a single string (which would otherwise be read letter by letter), for an element that is no
    string, and for a lone surrogate, which no tokenizer can read; the message holds the position.
    """
    if isinstance(texts, str | bytes):
        raise EncoderError(f"expected a list of texts, got the single text {texts!r:.80}: write [text]")
    if not hasattr(texts, "__iter__"):
        raise EncoderError(f"expected a list of texts, got {type(texts).__name__}")
    checked = list(texts)
    for position, text in enumerate(checked):
        if not isinstance(text, str):
            raise EncoderError(f"text {position} is {type(text).__name__} {text!r:.80}: texts must be strings")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise EncoderError(
                    f"text {position} holds a lone surrogate at character {error.start}, which is no text: decode the "
                    "source with the right encoding"
                ) from error
    return checked
