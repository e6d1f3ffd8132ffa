"""The fingerprint of a neural encoder: what tells two models apart that would give different vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Settings that say how to compute, where a checkpoint came from, or what the weights already tell.
_NOT_IDENTITY = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "architectures",
        "dtype",
        "torch_dtype",
        "use_cache",
        "gradient_checkpointing",
        "attn_implementation",
        "_attn_implementation",
        "_commit_hash",
        "unpad_inputs",
        "chunk_size",
        "frozen",
        "embedding_dimension",
    }
)


def fingerprint(model: Any, kind: str, languages: Mapping[Any, str] | None = None) -> str:
    """SHA-256, as 64 hexadecimal digits, over everything that decides the vectors that ``model`` gives.

    ``model`` is a sentence-transformers model. Counted are its weights (names, types, shapes, bytes), tokenizers,
    prompts, lengths, the settings of every module, the similarity and the kind; not the device, the path, or versions.
    ``languages`` of a model with adapters are counted in the place of the one that was saved with it.
    """
    import torch

    digest = hashlib.sha256()
    settings = {
        "kind": kind,
        "similarity": model.similarity_fn_name,
        "prompts": sorted(model.prompts.items()),
        "default_prompt_name": model.default_prompt_name,
        "truncate_dim": getattr(model, "truncate_dim", None),
        "max_active_dims": getattr(model, "max_active_dims", None),
        "languages": languages or None,
        "modules": [
            [name, *_module(module, saved_language=not languages)]
            for name, module in model.named_modules()
            if _is_part(module)
        ],
    }
    digest.update(json.dumps(_canonical(settings), sort_keys=True, ensure_ascii=True).encode())
    state = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def _is_part(module: Any) -> bool:
    return hasattr(module, "get_config_dict") or hasattr(module, "tokenizer")


def _module(module: Any, *, saved_language: bool) -> list[Any]:
    described: list[Any] = [type(module).__name__]
    if hasattr(module, "get_config_dict"):
        described.append(module.get_config_dict())
    for name in ("max_seq_length", "query_length", "document_length", "query_expansion"):
        described.append(getattr(module, name, None))
    backbone: Any = getattr(getattr(module, "model", None), "config", None)
    if hasattr(backbone, "to_diff_dict"):
        settings = backbone.to_diff_dict()
        if not saved_language:
            settings.pop("default_language", None)
        described.append(settings)
    if not hasattr(module, "sub_modules"):  # a Router only passes on what its parts have
        described.append(_tokenizer(getattr(module, "tokenizer", None)))
    return described


def _tokenizer(tokenizer: Any) -> Any:
    if tokenizer is None:
        return None
    if hasattr(tokenizer, "to_str"):
        return _serialised(tokenizer)
    special = sorted((name, str(token)) for name, token in getattr(tokenizer, "special_tokens_map", {}).items())
    sides = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "model_max_length")]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = _serialised(backend) if backend is not None else sorted(tokenizer.get_vocab().items())
    return [content, special, sides]


def _serialised(tokenizer: Any) -> str:
    # Without truncation and padding: transformers sets both anew at each call, so they only tell what was last done.
    described: dict[str, Any] = json.loads(tokenizer.to_str())
    described.pop("truncation", None)
    described.pop("padding", None)
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """Options at None are left out, so that a library which gains an option does not change every fingerprint."""
    if isinstance(value, Mapping):
        return {
            str(key): _canonical(inner)
            for key, inner in value.items()
            if str(key) not in _NOT_IDENTITY and inner is not None
        }
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
