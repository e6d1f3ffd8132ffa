"""The models that training starts from: plain sentence-transformers models of the three kinds."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Iterable
from typing import Any

from retrievers.encoders import adapters, checkpoints
from retrievers.encoders.checkpoints import require_neural
from retrievers.encoders.inference_free import build_router
from retrievers.encoders.model import load, quiet
from retrievers.errors import EncoderError, RecipeError
from retrievers.training.recipe import Model

_SPACES = ("", "▁", "Ġ")  # what tokenizers write for the space before a word


def starting_model(recipe: Model, documents: Iterable[str], *, device: str | None = None) -> Any:
    """The sentence-transformers model that ``recipe`` names, on ``device``.

    A checkpoint of the same kind goes on from where it is. Any other is taken for its backbone: a dense model gets a
    pooling, a multi-vector model a new random projection of each token, a sparse one the backbone's own masked-language
    head, and weights of query terms counted over ``documents`` (which only that kind reads, once).

    A multi-vector model over a backbone with an adapter for each language has its embeddings and adapters frozen, and
    keeps the recipe's language as the one that it encodes where none is given.

    Raises ModelNotFoundError, RecipeError where the kinds do not go together or the language does not fit, EncoderError
    where a sparse model is to start from a checkpoint without a masked-language head.
    """
    require_neural()
    checkpoint = checkpoints.find(recipe.start)
    if recipe.kind == "sparse":
        return _sparse(recipe, checkpoint, documents, device)
    if checkpoint.kind == recipe.kind:
        model = load(checkpoint.location, recipe.kind, device=device)
    elif checkpoint.kind == "multi-vector":
        raise RecipeError(f"{recipe.start} is a multi-vector model, which does not become a {recipe.kind} one")
    elif recipe.kind == "dense":
        model = _dense(recipe, checkpoint, device)
    else:
        model = _multi_vector(recipe, checkpoint, device)
    reader = model[0]
    reader.query_length, reader.document_length = recipe.query_length, recipe.document_length
    expansion = getattr(reader, "query_expansion", None)
    if expansion is not None:  # a checkpoint's own: its length would stand above the recipe's, or contradict it
        fixed = expansion["strategy"] == "fixed"
        length = recipe.query_length if fixed else min(expansion["length"], recipe.query_length)
        reader.query_expansion = {**expansion, "length": length}
    if recipe.kind == "multi-vector":
        _set_tokens(model, recipe)
        _set_language(reader, recipe.language or None)
    return model


def _set_tokens(model: Any, recipe: Model) -> None:
    """Which tokens take part in scores: those that queries are filled up with, and not the punctuation of documents."""
    if recipe.query_expansion != "none":
        attended = recipe.query_expansion == "attended"
        model[0].query_expansion = {"strategy": "fixed", "attend": attended, "length": recipe.query_length}
    if recipe.skip_punctuation:
        for module in model:
            if type(module).__name__ == "MultiVectorMask":
                module.skiplist_words = punctuation(model.tokenizer.get_vocab())
                module.resolve_with_tokenizer(model.tokenizer)


def punctuation(vocabulary: Iterable[str]) -> list[str]:
    """The tokens that are one punctuation mark of any script, with or without a space before it, in order."""

    def is_mark(token: str) -> bool:
        return any(
            len(rest) == 1 and (rest in string.punctuation or unicodedata.category(rest).startswith("P"))
            for rest in (token.removeprefix(space) for space in _SPACES)
        )

    return sorted(filter(is_mark, vocabulary))


def _set_language(reader: Any, wanted: str | None) -> None:
    try:
        language = adapters.choose_language(reader, wanted)
    except EncoderError as error:
        raise RecipeError(f"model.language is {wanted or 'not set'}: {error}") from error
    if language is not None:
        reader.model.set_default_language(language)
        freeze_languages(reader)


def freeze_languages(reader: Any) -> None:
    """Freeze the embeddings, the adapters of all languages, and the layer norms that adapters have to themselves.

    Training then changes only what all languages share, so that it serves those that it has not seen (Louis et al., 2024,
    ColBERT-XM). Where adapters have no layer norm to themselves, and that of the shared layer stands before them too, it
    is shared, and trained.
    """
    frozen = [reader.model.base_model.embeddings]
    for layer in adapters.layers_of(reader):
        output = layer.output
        frozen.append(output.adapter_modules)
        if output.adapter_layer_norm is not None:
            frozen.append(output.adapter_layer_norm)
        for adapter in output.adapter_modules.values():
            # transformers puts what an adapter gives among float32 numbers, which fails under autocast.
            adapter.register_forward_hook(_as_given)
    for part in frozen:
        part.requires_grad_(False)


def _as_given(_: Any, given: tuple[Any, ...], found: Any) -> Any:
    return found.to(given[0].dtype)


def _sparse(recipe: Model, checkpoint: Any, documents: Iterable[str], device: str | None) -> Any:
    if checkpoint.kind == "sparse":
        model = load(checkpoint.location, "sparse", device=device)
        if hasattr(model[0], "sub_modules"):
            return model
    counted = documents if recipe.query_weights == "idf" else {}  # what is not named there weighs 1
    return build_router(
        checkpoint.location,
        counted,
        tokenizer=None,
        activation="relu",
        head_divisor=recipe.head_divisor,
        max_seq_length=recipe.document_length,
        device=device,
        revision=None,
    )


def _dense(recipe: Model, checkpoint: Any, device: str | None) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    reader = _backbone(checkpoint)
    modules: list[Any] = [reader, Pooling(reader.get_embedding_dimension(), pooling_mode=recipe.pooling)]
    if recipe.similarity == "cosine":
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, similarity_fn_name=recipe.similarity, device=device)


def _multi_vector(recipe: Model, checkpoint: Any, device: str | None) -> Any:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    reader = _backbone(checkpoint)
    projection = Dense(
        reader.get_embedding_dimension(),
        recipe.dimension,
        bias=False,
        activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings",
    )
    modules = [reader, projection, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=modules, device=device)


def _backbone(checkpoint: Any) -> Any:
    from sentence_transformers.base.modules import Transformer

    with quiet():
        return Transformer(checkpoint.location)
