"""What mteb files results under: names, and revisions that tell apart whatever gives other results."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from retrievers.encoders import identity
from retrievers.errors import MissingDependencyError
from retrievers.specs import Spec
from retrievers.vectors import Kind

_TYPES: Mapping[Kind, str] = {
    "lexical": "sparse",
    "sparse": "sparse",
    "dense": "dense",
    "multi-vector": "late-interaction",
}


def require_mteb() -> Any:
    """The package ``mteb``; raises MissingDependencyError, with the command that installs it, where it is missing."""
    try:
        return import_module("mteb")
    except ImportError as error:
        raise MissingDependencyError("mteb is not installed: pip install 'tri-retrievers[mteb]'") from error


def metadata(name: str, revision: str, encoder: Any, made_of: dict[str, str]) -> Any:
    """The metadata of a model; ``encoder`` is None where several, or none, are behind it."""
    found = import_module("mteb.models.model_meta")
    kind: Kind | None = getattr(encoder, "kind", None)
    neural = getattr(encoder, "neural", None)
    scoring = found.ScoringFunction
    similarity = None
    if kind is not None:
        inner = scoring.COSINE if getattr(encoder, "similarity", None) == "cosine" else scoring.DOT_PRODUCT
        similarity = scoring.MAX_SIM if kind == "multi-vector" else inner
    return found.ModelMeta.create_empty(
        {
            # mteb wants an organisation; ours keeps results apart from those published under a model's own name.
            "name": name if "/" in name else f"retrievers/{_clean(name)}",
            "revision": _clean(revision),
            "model_type": ["hybrid"] if kind is None else [_TYPES[kind]],
            "framework": ["NumPy"] if neural is None else ["Sentence Transformers", "PyTorch"],
            "similarity_fn_name": similarity,
            "max_tokens": None if neural is None else neural.max_length("document"),
            "use_instructions": neural is not None and bool(neural.prompt("query") or neural.prompt("document")),
            "loader_kwargs": made_of,
        }
    )


def revision_of(fingerprint: str, state: Any) -> str:
    """The start of a fingerprint, and a hash of all that changes results."""
    return f"{fingerprint[:16]}-{hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:12]}"


def state_of(searcher: Any) -> Any:
    """What the results of a searcher depend on, as JSON, the collection left out; None where it does not tell."""
    parts = getattr(searcher, "parts", None)
    if parts is not None:
        states = [state_of(part) for part in parts]
        settings = [repr(getattr(searcher, setting, None)) for setting in ("fusion", "weights", "depth")]
        return None if None in states else [type(searcher).__name__, states, settings]
    encoder, index = getattr(searcher, "encoder", None), getattr(searcher, "index", None)
    if encoder is not None and index is not None:
        return [identity(encoder), str(index), None]
    fingerprint = getattr(searcher, "fingerprint", None)
    return None if fingerprint is None else [type(searcher).__name__, fingerprint]


def label_of(encoder: Any) -> str:
    """What an encoder is called: its specification, or the last part of its path or hub name, or its class."""
    spec, neural = getattr(encoder, "spec", None), getattr(encoder, "neural", None)
    if isinstance(spec, Spec):
        return str(spec)
    location = getattr(neural, "location", None)
    return type(encoder).__name__.lower() if location is None else Path(location).name


def _clean(name: str) -> str:
    """A name without what cannot stand in that of a folder."""
    return re.sub(r"[^\w.=-]+", "-", name).strip("-") or "model"
