"""The models that training starts from: plain sentence-transformers models of the three kinds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from retrievers.encoders import checkpoints
from retrievers.encoders.checkpoints import require_neural
from retrievers.encoders.inference_free import build_router
from retrievers.encoders.model import load, quiet
from retrievers.errors import RecipeError
from retrievers.training.recipe import Model


def starting_model(recipe: Model, documents: Iterable[str], *, device: str | None = None) -> Any:
    """The sentence-transformers model that ``recipe`` names, on ``device``.

    A checkpoint of the same kind goes on from where it is. Any other is taken for its backbone: a dense model gets a
    pooling, a multi-vector model a new random projection of each token, a sparse one the backbone's own masked-language
    head, and weights of query terms counted over ``documents`` (which only that kind reads, once).

    Raises ModelNotFoundError, RecipeError where the kinds do not go together, EncoderError where a sparse model is
    to start from a checkpoint without a masked-language head.
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
    return model


def _sparse(recipe: Model, checkpoint: Any, documents: Iterable[str], device: str | None) -> Any:
    if checkpoint.kind == "sparse":
        model = load(checkpoint.location, "sparse", device=device)
        if hasattr(model[0], "sub_modules"):
            return model
    return build_router(
        checkpoint.location,
        documents,
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
