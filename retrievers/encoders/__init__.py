"""Encoders turn texts into vectors: lexical (BM25), dense, multi-vector and sparse.

Any object with the four members of :class:`Encoder` can build an index. The ones defined here can also be found again when
the index is opened: :func:`load_encoder` reads what a user writes (``"bm25"``, a path, a hub name), and
:func:`open_encoder` what an index has stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from retrievers.bm25 import Bm25
from retrievers.errors import EncoderError, EncoderMismatchError, SpecError
from retrievers.specs import Spec
from retrievers.vectors import KINDS, Kind, Vectors

_WITH_OPTIONS = re.compile(r"\s*(\S.*?)\s*\(([^()]*=[^()]*)\)\s*\Z", re.DOTALL)
_MODEL_OPTIONS: dict[str, type] = {"backend": str, "dtype": str, "workers": int, "max_batch_tokens": int}


@runtime_checkable
class Encoder(Protocol):
    """What an index asks of an encoder."""

    @property
    def kind(self) -> Kind:
        """``"dense"``, ``"sparse"``, ``"multi-vector"`` or ``"lexical"``."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of everything that its vectors depend on; equal fingerprints promise equal vectors."""
        ...

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """The vectors of queries, in the order of ``texts`` (see :mod:`retrievers.vectors`)."""
        ...

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        """The vectors of documents, in the order of ``texts``."""
        ...


def load_encoder(
    spec: str | Path | Encoder,
    *,
    device: str | None = None,
    batch_size: int = 256,
    dtype: str | None = None,
    backend: str | None = None,
    workers: int | None = None,
    language: str | None = None,
    query_language: str | None = None,
) -> Encoder:
    """The encoder that a user names.

    ``spec`` is ``"bm25"`` (with options: ``"bm25(language=german, k1=0.9)"``), a folder or the hub name of a
    sentence-transformers model of any of the three kinds (with options of how it computes: ``"MODEL(backend=openvino,
    dtype=bf16, workers=2, max_batch_tokens=2048)"``), or an encoder, which is returned as it is. ``device``, ``batch_size``,
    ``dtype`` and ``backend`` are for models, see :class:`retrievers.DenseEncoder`; ``workers``, the processes that encode
    documents, is for all. ``language`` and ``query_language`` are for models with an adapter for each language
    (:class:`retrievers.MultiVectorEncoder`).

    Raises SpecError for bad options, ModelNotFoundError and EncoderError for what is no model.
    """
    if not isinstance(spec, str | Path):
        if language is not None or query_language is not None:
            raise EncoderError(
                f"the {type(spec).__name__} is made already: give it its language where it is made, or leave language out"
            )
        return check_encoder(spec)
    if isinstance(spec, str) and (parsed := _lexical_spec(spec)) is not None:
        if language is not None or query_language is not None:
            raise SpecError(
                "language is for models with an adapter for each; bm25 takes it as an option: 'bm25(language=german)'"
            )
        from retrievers.encoders.lexical import LexicalEncoder

        if workers is not None:
            parsed = Spec(parsed.name, {**parsed.parameters, **_once("workers", workers, parsed.parameters, spec)})
        return LexicalEncoder.from_spec(parsed)
    from retrievers.encoders.model import load_model_encoder

    place, options = _model_spec(spec)
    for name, value in (("dtype", dtype), ("backend", backend), ("workers", workers)):
        if value is not None:
            options |= _once(name, value, options, spec)
    return load_model_encoder(
        place, device=device, batch_size=batch_size, language=language, query_language=query_language, **options
    )


def _once(name: str, value: Any, options: Mapping[str, Any], spec: str | Path) -> dict[str, Any]:
    """An option that is given beside ``spec``, which must not give it as well."""
    if name in options:
        raise SpecError(f"{str(spec)!r} gives {name}, and it is given as {value!r} beside: leave one of them out")
    return {name: value}


def _model_spec(spec: str | Path) -> tuple[str | Path, dict[str, Any]]:
    """A model's place and the options behind it: ``models/mine(dtype=bf16)``; a folder may be called so itself."""
    if isinstance(spec, Path) or Path(spec).exists():
        return spec, {}
    match = _WITH_OPTIONS.match(spec)
    if match is None:
        return spec, {}
    options: dict[str, Any] = dict(Spec.parse(f"model({match.group(2)})").parameters)
    for name, value in options.items():
        if name not in _MODEL_OPTIONS:
            raise SpecError(f"{spec!r} gives {name}, and a model's options are {', '.join(_MODEL_OPTIONS)}")
        if type(value) is not _MODEL_OPTIONS[name]:
            raise SpecError(f"{name}={value} in {spec!r} is no {'number' if _MODEL_OPTIONS[name] is int else 'name'}")
    return match.group(1), options


def _lexical_spec(text: str) -> Spec | None:
    """The options of ``bm25(...)``, or None where the text names something else (a hub name holds a slash or dash)."""
    try:
        spec = Spec.parse(text)
    except SpecError:
        if text.strip().startswith("bm25("):
            raise
        return None
    return spec if spec.name == "bm25" else None


def check_encoder(encoder: Any) -> Encoder:
    """Refuse an object that lacks a member of :class:`Encoder`, naming it.

    What hands its members on from another object (``__getattr__``) has them, though ``isinstance`` does not see it from
    Python 3.12 on.
    """
    missing = [
        name for name in ("kind", "fingerprint", "encode_query", "encode_document") if not hasattr(encoder, name)
    ]
    if missing:
        raise EncoderError(
            f"{type(encoder).__name__} is no encoder: it lacks {', '.join(missing)}. Pass 'bm25', a path, a hub name, "
            "or an object with kind, fingerprint, encode_query and encode_document"
        )
    if encoder.kind not in KINDS:
        raise EncoderError(f"{type(encoder).__name__} has kind {encoder.kind!r}; the kinds are {', '.join(KINDS)}")
    found: Encoder = encoder
    return found


def encode_query(encoder: Encoder, texts: Sequence[str], language: str | None = None) -> Vectors:
    """The vectors of queries, in ``language`` where it is not None.

    An encoder that can choose has ``languages``, and a keyword ``language`` of ``encode_query``. Raises EncoderError where
    a language is given for an encoder that has none.
    """
    if language is None:
        return encoder.encode_query(texts)
    if not getattr(encoder, "languages", ()):
        raise EncoderError(
            f"the queries' language is given as {language!r}, and the index's {type(encoder).__name__} has no adapters for "
            "languages: leave language out"
        )
    in_language: Any = encoder.encode_query
    found: Vectors = in_language(texts, language=language)
    return found


def store_encoder(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write what querying needs into ``folder`` and return the JSON object that :func:`open_encoder` reads.

    An encoder of the user's own has no ``reference``: it is stored by kind and fingerprint alone, and must be passed
    again when the index is opened.
    """
    reference = getattr(encoder, "reference", None)
    stored = {**identity(encoder), "reference": None if reference is None else reference()}
    save = getattr(encoder, "save_query_side", None)
    if save is not None:
        save(folder)
    return stored


def opens_quickly(stored: dict[str, Any]) -> bool:
    """Whether :func:`open_encoder` needs no model: for a lexical encoder, and the queries of an inference-free one."""
    reference = stored["reference"]
    return isinstance(reference, dict) and (stored["kind"] == "lexical" or bool(reference.get("table")))


def open_encoder(
    stored: dict[str, Any], folder: Path, *, device: str | None = None, dtype: str | None = None, workers: int = 1
) -> Encoder:
    """The encoder that an index was built with.

    Raises EncoderError where it was an object of the user's own, EncoderMismatchError where the model at the stored place
    is another one by now, and what loading the model raises.
    """
    reference = stored["reference"]
    if reference is None:
        raise EncoderError(
            "this index was built with an encoder object of your own: open it with Retriever.open(path, encoder=...)"
        )
    if stored["kind"] == "lexical":
        from retrievers.encoders.lexical import LexicalEncoder

        encoder: Encoder = LexicalEncoder.from_reference(reference, workers=workers)
    else:
        from retrievers.encoders.model import open_neural

        encoder = open_neural(reference, folder, device=device, dtype=dtype, workers=workers)
    check_same(encoder, stored)
    return encoder


def identity(encoder: Encoder) -> dict[str, Any]:
    """What must be equal for two encoders to be one: kind, fingerprint and, for a lexical one, how its terms are weighed."""
    found: dict[str, Any] = {"kind": encoder.kind, "fingerprint": encoder.fingerprint}
    if encoder.kind == "lexical":
        bm25 = getattr(encoder, "bm25", None) or Bm25()
        found["bm25"] = {"k1": bm25.k1, "b": bm25.b}
    return found


def check_same(encoder: Encoder, stored: dict[str, Any]) -> None:
    """Refuse an encoder that is not the one an index was built with."""
    ours, theirs = identity(encoder), {key: value for key, value in stored.items() if key != "reference"}
    if ours != theirs:
        raise EncoderMismatchError(
            f"the index was built with an encoder of {_print(theirs)}, and this one is of {_print(ours)}: its scores would "
            "mean nothing. Pass the encoder that built the index, or build the index again"
        )


def _print(identity: dict[str, Any]) -> str:
    parts = [f"kind {identity['kind']}", f"fingerprint {identity['fingerprint'][:12]}"]
    if "bm25" in identity:
        parts.append("k1={k1}, b={b}".format(**identity["bm25"]))
    return ", ".join(parts)
