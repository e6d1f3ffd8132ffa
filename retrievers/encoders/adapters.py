"""Backbones with an adapter for each language in every layer (Pfeiffer et al., 2022, X-MOD, section 3).

The layers are shared; which language a text is said to be in decides through which adapters it goes. A retriever trained in
one language serves another by that switch alone (Louis et al., 2024, ColBERT-XM). The language goes with each batch, as
``lang_ids``, and never into the model, so that threads may encode different languages with one model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from retrievers.errors import EncoderError

IDS = "lang_ids"  # as transformers calls them


def languages_of(reader: Any) -> tuple[str, ...]:
    """The languages for which the model of a reading module has adapters, in the order of their ids; often none."""
    backbone = getattr(reader, "model", None)
    if getattr(getattr(backbone, "config", None), "model_type", None) != "xmod":
        return ()
    return tuple(layers_of(reader)[0].output.adapter_modules)


def layers_of(reader: Any) -> Any:
    """The layers of a backbone with adapters, whichever head it has."""
    return reader.model.base_model.encoder.layer


def choose_language(reader: Any, wanted: str | None) -> str | None:
    """The language ``wanted``, or that which was saved with the model; None for a model without adapters.

    Raises EncoderError where the model lacks the language or any adapter, and where no language is chosen.
    """
    names = languages_of(reader)
    if not names:
        if wanted is not None:
            raise EncoderError(f"the language {wanted!r} is given, and the model has no adapters for languages")
        return None
    chosen = reader.model.config.default_language if wanted is None else wanted
    if chosen is None:
        raise EncoderError(
            f"the model has an adapter for each language, and none is chosen: give one of {', '.join(names)}, or set "
            "default_language in the model's config.json"
        )
    if chosen not in names:
        raise EncoderError(f"the model has no adapter for the language {chosen!r}, but for {', '.join(names)}")
    found: str = chosen
    return found


def language_ids(reader: Any, language: str, tokens: Any) -> Any:
    """The adapter of each token, int64 of the shape of ``tokens`` and on its device."""
    import torch

    return torch.full_like(tokens, languages_of(reader).index(language), dtype=torch.long)


@contextmanager
def saved_language(reader: Any, language: str | None) -> Iterator[None]:
    """Within this context the model is saved with ``language`` as what it encodes where none is given."""
    if language is None:
        yield
        return
    config = reader.model.config
    before, config.default_language = config.default_language, language
    try:
        yield
    finally:
        config.default_language = before
