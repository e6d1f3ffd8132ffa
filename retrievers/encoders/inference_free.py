"""Making an inference-free sparse encoder: the weights of query tokens, and a model with a route for each side.

Geng et al. (2024), sections 3 and 4; the double logarithm is that of Shen et al. (2025).
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.encoders import checkpoints
from retrievers.encoders.checkpoints import require_neural
from retrievers.encoders.model import load, quiet
from retrievers.encoders.token_table import TokenTable, relu_weights
from retrievers.errors import EncoderError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNSEEN = 1.0
_NO_LIMIT = 1_000_000
_CHUNK = 256


def query_tokenizer(tokenizer: Any) -> Tokenizer:
    """A copy of a tokenizer's backend that cuts where sentence-transformers cuts a query, and never pads."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    if tokenizer.model_max_length > _NO_LIMIT:
        backend.no_truncation()
    else:
        backend.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    return backend


def query_table(
    module: Any, *, columns: int, special: Sequence[int], prompt: str, similarity: Literal["dot", "cosine"]
) -> TokenTable:
    """The table of a ``SparseStaticEmbedding`` module, as wide as the documents' vectors, ``columns``, at the least."""
    weights = module.weight.detach().float().cpu().numpy()
    return TokenTable(
        query_tokenizer(module.tokenizer),
        relu_weights(weights, columns, special),
        prompt=prompt,
        similarity=similarity,
    )


def corpus_idf(tokenizer: Any, corpus: Iterable[str | Document]) -> NDArray[np.float32]:
    """``ln(1 + (N - df + 1/2) / (df + 1/2))`` for every token id, float32 ``[vocabulary]``.

    ``df`` counts the texts of ``corpus`` that hold the token, ``N`` all texts; texts are read once, in full, and never
    held. A token that never occurs weighs 1, a special token 0. Raises EncoderError for an empty corpus or what is no
    text.
    """
    backend = query_tokenizer(tokenizer)
    backend.no_truncation()
    size = _vocabulary(tokenizer)
    frequency = np.zeros(size, dtype=np.int64)
    total = 0
    texts = _contents(corpus)
    while chunk := list(islice(texts, _CHUNK)):
        encodings = backend.encode_batch(chunk, add_special_tokens=False)
        found = [np.unique(np.asarray(encoding.ids, dtype=np.int64)) for encoding in encodings]
        frequency += np.bincount(np.concatenate(found), minlength=size)
        total += len(chunk)
    if total == 0:
        raise EncoderError("the corpus to count IDF over is empty: pass its texts, or a table of weights")
    weights = np.log1p((total - frequency + 0.5) / (frequency + 0.5))
    weights[frequency == 0] = UNSEEN
    return _without_special(tokenizer, weights)


def idf_weights(tokenizer: Any, idf: Any) -> NDArray[np.float32]:
    """Weights, float32 ``[vocabulary]``, from a corpus, a mapping of tokens or an array; see ``inference_free``."""
    if idf is None:
        raise EncoderError(
            "an inference-free encoder needs the weights of query tokens: pass idf=corpus (texts or Documents to "
            "count), {token: weight} or an array; numpy.ones(len(tokenizer)) for equal weights"
        )
    if isinstance(idf, str | bytes | Path):
        raise EncoderError(f"idf is the single text {str(idf)!r:.80}: pass a list of texts, or read the file yourself")
    if isinstance(idf, Mapping):
        return _from_mapping(tokenizer, idf)
    if hasattr(idf, "detach"):
        idf = idf.detach().float().cpu().numpy()
    if isinstance(idf, np.ndarray) and idf.dtype.kind in "fiu":
        return _from_array(tokenizer, idf)
    if not isinstance(idf, Iterable):
        raise EncoderError(f"idf is {type(idf).__name__}: pass texts, {{token: weight}} or an array of weights")
    items = iter(idf)
    first = next(items, None)
    if isinstance(first, int | float | np.number):
        return _from_array(tokenizer, np.array([first, *items], dtype=np.float64))
    return corpus_idf(tokenizer, items if first is None else chain([first], items))


def build_router(
    model: Any,
    idf: Any,
    *,
    tokenizer: Any,
    activation: str,
    head_divisor: float,
    max_seq_length: int | None,
    device: str | None,
    revision: str | None,
) -> Any:
    """A ``sentence_transformers.SparseEncoder`` that routes queries to a table and documents to the model."""
    require_neural()
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding

    if activation not in ("relu", "log1p_relu"):
        raise EncoderError(f"activation {activation!r} is not known: use 'relu' or 'log1p_relu'")
    documents = _document_modules(model, tokenizer, activation, revision)
    reader = documents[0]
    if getattr(reader.tokenizer, "backend_tokenizer", None) is None:
        raise EncoderError(
            "the model's tokenizer is pure Python, which a token table cannot hold: use a fast tokenizer"
        )
    weights = idf_weights(reader.tokenizer, idf)
    if head_divisor != 1.0:
        _divide_head(reader, head_divisor)
    queries = SparseStaticEmbedding(tokenizer=copy.deepcopy(reader.tokenizer), weight=torch.from_numpy(weights))
    if max_seq_length is not None:
        reader.max_seq_length = max_seq_length
    # Without a default route a text of neither side is refused, and never read as a document.
    router = Router.for_query_document([queries], documents, default_route=None, allow_empty_key=False)
    return SparseEncoder(modules=[router], similarity_fn_name="dot", device=device)


def require_head(location: str, *, revision: str | None = None) -> None:
    """Raises EncoderError where the checkpoint lacks weights that its masked-language model needs.

    transformers would draw them at random and only log it, and the encoder would give noise.
    """
    require_neural()
    from safetensors import SafetensorError
    from transformers import AutoModelForMaskedLM

    try:
        with quiet():
            _, info = AutoModelForMaskedLM.from_pretrained(
                location, output_loading_info=True, revision=revision or "main"
            )
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
        raise EncoderError(f"{location} cannot be loaded as a masked-language model: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise EncoderError(
            f"{location} has no masked-language head: its saved weights lack {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}, which would be random. A sparse encoder reads that head's "
            "logits: start from a checkpoint that was published with it"
        )


def _document_modules(model: Any, tokenizer: Any, activation: str, revision: str | None) -> list[Any]:
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

    if isinstance(model, SparseEncoder):
        return _side_of(model)
    if not isinstance(model, str | Path):
        return [_wrap(model, tokenizer), SpladePooling("max", activation)]
    checkpoint = checkpoints.find(model, revision=revision)
    if checkpoint.kind == "sparse":
        return _side_of(load(checkpoint.location, "sparse", device="cpu", revision=revision))
    require_head(checkpoint.location, revision=revision)
    with quiet():
        reader = Transformer(
            checkpoint.location,
            transformer_task="fill-mask",
            model_kwargs={"revision": revision},
            processor_kwargs={"revision": revision},
            config_kwargs={"revision": revision},
        )
    return [reader, SpladePooling("max", activation)]


def _side_of(model: Any) -> list[Any]:
    """The modules that read documents in an existing sparse encoder, its own pooling included."""
    first = model[0]
    if hasattr(first, "sub_modules"):
        if "document" not in first.sub_modules:
            raise EncoderError(f"the model has no route named 'document', but {', '.join(first.sub_modules)}")
        modules = [*first.sub_modules["document"], *list(model)[1:]]
    else:
        modules = list(model)
    if type(modules[-1]).__name__ != "SpladePooling":
        raise EncoderError(
            f"the model ends in {type(modules[-1]).__name__}, whose columns are no tokens: no token table matches them"
        )
    return modules


def _wrap(model: Any, tokenizer: Any) -> Any:
    from sentence_transformers.sparse_encoder.modules import Transformer

    name = type(model).__name__
    if not hasattr(model, "save_pretrained") or not name.endswith("ForMaskedLM"):
        raise EncoderError(
            f"got {name}: an inference-free encoder is made from a masked-language model (a class that ends in "
            "ForMaskedLM), a folder, a name on the hub, or a sentence_transformers.SparseEncoder"
        )
    if tokenizer is None:
        raise EncoderError(f"{name} was passed without its tokenizer: pass tokenizer=")
    with tempfile.TemporaryDirectory() as folder, quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return Transformer(folder, transformer_task="fill-mask")


def _divide_head(reader: Any, divisor: float) -> None:
    """Divide all logits by ``divisor`` through the head's last normalisation and the output bias.

    The output matrix stays as it is, because it is tied to the embeddings of the input.
    """
    import torch

    if not divisor > 0:
        raise EncoderError(f"head_divisor is {divisor}: it must be above 0 (16 is reported to work)")
    network = reader.model
    head = network.get_output_embeddings()
    norms = [m for n, m in network.named_modules() if type(m).__name__.endswith("LayerNorm") and _in_head(n)]
    probe = {"input_ids": torch.tensor([list(range(min(16, head.weight.shape[0])))])}
    probe = {name: value.to(head.weight.device) for name, value in probe.items()}
    network.eval()
    with torch.no_grad():
        before = network(**probe).logits
        scaled = [p for norm in norms[-1:] for p in norm.parameters()] + ([] if head.bias is None else [head.bias])
        for parameter in {id(parameter): parameter for parameter in scaled}.values():
            parameter /= divisor
        after = network(**probe).logits
    if not torch.allclose(after * divisor, before, rtol=1e-3, atol=1e-3):
        raise EncoderError(f"head_divisor is not known for {type(network).__name__}: leave it at 1 and scale the head")


def _in_head(name: str) -> bool:
    return name.split(".")[0] in ("cls", "lm_head", "head", "vocab_layer_norm", "predictions", "generator_predictions")


def _vocabulary(tokenizer: Any) -> int:
    vocabulary = tokenizer.get_vocab()
    size, largest = len(vocabulary), max(vocabulary.values(), default=-1)
    if largest >= size:
        raise EncoderError(
            f"the tokenizer has {size} tokens but ids up to {largest}: sentence-transformers holds a table only for "
            "ids without gaps"
        )
    return size


def _without_special(tokenizer: Any, weights: NDArray[Any]) -> NDArray[np.float32]:
    return relu_weights(weights, len(weights), tokenizer.all_special_ids)


def _contents(corpus: Iterable[str | Document]) -> Iterator[str]:
    for position, item in enumerate(corpus):
        text = item.content if isinstance(item, Document) else item
        if not isinstance(text, str):
            raise EncoderError(f"text {position} of the corpus is {type(item).__name__}: pass texts or Documents")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise EncoderError(f"text {position} of the corpus holds a lone surrogate, which is no text") from error
        yield text


def _from_mapping(tokenizer: Any, idf: Mapping[str, float]) -> NDArray[np.float32]:
    vocabulary = tokenizer.get_vocab()
    weights = np.full(_vocabulary(tokenizer), UNSEEN, dtype=np.float64)
    for token, weight in idf.items():
        if token not in vocabulary:
            raise EncoderError(f"idf gives a weight to {token!r}, which is no token of the model's vocabulary")
        weights[vocabulary[token]] = weight
    return _without_special(tokenizer, weights)


def _from_array(tokenizer: Any, idf: NDArray[Any]) -> NDArray[np.float32]:
    size = _vocabulary(tokenizer)
    if idf.shape != (size,):
        raise EncoderError(f"idf has the shape {list(idf.shape)}; the model's vocabulary wants [{size}]")
    return _without_special(tokenizer, idf)
