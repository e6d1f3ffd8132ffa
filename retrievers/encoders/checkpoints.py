"""What kind of encoder a saved model is, told from its saved configuration and never from its name."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retrievers.errors import EncoderError, MissingDependencyError, ModelNotFoundError

NeuralKind = Literal["dense", "sparse", "multi-vector"]
# A masked-LM checkpoint fits three encoders; "backbone" says that the user must choose.
Recognised = Literal["dense", "sparse", "multi-vector", "backbone", "cross-encoder"]

_MODEL_TYPES: dict[str, NeuralKind] = {
    "SentenceTransformer": "dense",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi-vector",
    "ColBERT": "multi-vector",
}
_SPARSE_MODULES = ("SpladePooling", "SparseStaticEmbedding", "SparseAutoEncoder", "MLMTransformer")
_OWNERS = ("sentence-transformers",)
_NO_CROSS_ENCODER = (
    "is a cross-encoder: it scores a query and a document together and gives no vectors to index. Use it to score or "
    "to teach, and an encoder to build the index"
)


@dataclass(frozen=True)
class Checkpoint:
    """A saved model: ``location`` is what sentence-transformers loads (a folder or a hub name)."""

    location: str
    kind: Recognised
    local: bool


def require_neural() -> None:
    """Raises MissingDependencyError where the packages of neural encoders are not installed."""
    # One text call after another hands the tokenizer few texts at a time; its threads would gain little, and warn at
    # every later fork. A user's own setting stands.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import sentence_transformers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"neural encoders need a package that is not installed ({error.name}): pip install 'tri-retrievers[neural]'"
        ) from error


def find(spec: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Locate the encoder ``spec`` (a folder, or a name on the hub) and say its kind.

    Raises ModelNotFoundError where there is none, EncoderError where it is no encoder of texts.
    """
    checkpoint = locate(spec, revision=revision)
    if checkpoint.kind == "cross-encoder":
        raise EncoderError(f"{checkpoint.location} {_NO_CROSS_ENCODER}")
    return checkpoint


def locate(spec: str | Path, *, revision: str | None = None, owners: Sequence[str] = _OWNERS) -> Checkpoint:
    """Locate any model that sentence-transformers loads, cross-encoders among them, and say its kind.

    A hub name without an owner is looked for among the models of ``owners``, in that order.
    Raises ModelNotFoundError where there is none, EncoderError where its kind is not known.
    """
    if not str(spec):
        raise ModelNotFoundError("the model's name is empty: give a folder, or a name on the hub")
    if isinstance(spec, Path) or Path(spec).exists():
        folder = Path(spec)
        if not folder.exists():
            raise ModelNotFoundError(f"no folder at {folder}: give the folder of a saved model, or a name on the hub")
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder} is a file: give the folder that the model was saved to")
        return Checkpoint(str(folder), _recognise(_local_files(folder), str(folder)), local=True)
    if spec.count("/") > 1 or spec.startswith((".", "~", "/")) or "\\" in spec:
        raise ModelNotFoundError(f"no folder at {spec}: give the folder of a saved model, or a name on the hub")
    require_neural()
    for name in _hub_names(spec, owners):
        files = _hub_files(name, revision)
        if files.present():
            return Checkpoint(name, _recognise(files, name), local=False)
    raise ModelNotFoundError(_not_found(spec))


@dataclass(frozen=True)
class _Files:
    """The configuration files of a model; None where it has no such file."""

    modules: Any
    transformers: Any
    sentence_transformers: Any
    stanford: bool

    def present(self) -> bool:
        return not (self.modules is None and self.transformers is None and self.sentence_transformers is None)


def _local_files(folder: Path) -> _Files:
    files = _Files(
        _json(folder / "modules.json"),
        _json(folder / "config.json"),
        _json(folder / "config_sentence_transformers.json"),
        (folder / "artifact.metadata").exists(),
    )
    if not files.present():
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ModelNotFoundError(
            f"{folder} holds no model: neither modules.json (sentence-transformers) nor config.json (transformers) is "
            f"there, but {held}"
        )
    return files


def _hub_files(name: str, revision: str | None) -> _Files:
    from huggingface_hub.errors import HfHubHTTPError
    from sentence_transformers.util import load_file_path

    def read(filename: str) -> Any:
        try:
            path = load_file_path(name, filename, revision=revision)
        except (HfHubHTTPError, OSError) as error:
            raise ModelNotFoundError(f"{_not_found(name)} ({type(error).__name__}: {error})") from error
        return None if path is None else _json(Path(path)) if filename.endswith(".json") else {}

    return _Files(
        read("modules.json"),
        read("config.json"),
        read("config_sentence_transformers.json"),
        read("artifact.metadata") is not None,
    )


def _hub_names(spec: str, owners: Sequence[str]) -> list[str]:
    """A name without an owner stands, as in sentence-transformers, for one of that organisation's models."""
    return [spec] if "/" in spec else [*(f"{owner}/{spec}" for owner in owners), spec]


def _not_found(name: str) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return (
            f"no folder {name!r}, and the hub's local cache does not hold a model of that name; HF_HUB_OFFLINE is set, "
            "so the hub was not asked: unset it, or give the folder of a saved model"
        )
    return (
        f"no folder {name!r}, and no model of that name could be had from the hub: check the name and the connection "
        "(a private model needs `hf auth login`), or give the folder of a saved model"
    )


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(f"{path} is no valid JSON ({error}): restore the model's folder") from error


def _recognise(files: _Files, place: str) -> Recognised:
    config = files.sentence_transformers if isinstance(files.sentence_transformers, dict) else {}
    backbone = files.transformers if isinstance(files.transformers, dict) else {}
    architectures = [str(name) for name in backbone.get("architectures") or []]
    model_type = config.get("model_type")
    if model_type == "CrossEncoder":
        return "cross-encoder"
    if model_type is not None and model_type not in _MODEL_TYPES:
        raise EncoderError(
            f"{place} was saved as a {model_type!r}; encoders are {', '.join(sorted(_MODEL_TYPES))} "
            "(see model_type in its config_sentence_transformers.json)"
        )
    if files.modules is None:
        if "HF_ColBERT" in architectures or files.stanford:
            return "multi-vector"
        return _plain(architectures, place)
    if model_type is not None and model_type != "SentenceTransformer":
        return _MODEL_TYPES[model_type]
    types = [str(module.get("type", "")) for module in files.modules if isinstance(module, dict)]
    names = [name.rsplit(".", 1)[-1] for name in types]
    if any(name in _SPARSE_MODULES for name in names):
        return "sparse"
    if "HF_ColBERT" in architectures or "MultiVectorMask" in names:
        return "multi-vector"
    if any(name.startswith("pylate.") for name in types) or "query_prefix" in config:
        return "multi-vector"
    return "dense"


def _plain(architectures: list[str], place: str) -> Recognised:
    """A folder of transformers alone, which says what network it is but not how its outputs become vectors."""
    named = ", ".join(architectures) or "no architecture"
    if any(name.endswith("ForSequenceClassification") for name in architectures):
        return "cross-encoder"
    if any(name.endswith("ForMaskedLM") for name in architectures):
        return "backbone"
    if any(name.endswith("Model") for name in architectures):
        return "dense"
    raise EncoderError(
        f"{place} is a plain transformers checkpoint ({named}), which is no text encoder as it is: wrap it in a "
        "sentence_transformers model of the kind that you want, and save or pass that"
    )
