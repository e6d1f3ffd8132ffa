"""What the neural encoders share: a sentence-transformers model, its fingerprint, and how its batches are computed."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrievers.encoders import adapters, batches, checkpoints
from retrievers.encoders.checkpoints import NeuralKind, require_neural
from retrievers.encoders.numerics import check_backend, check_sizes, emulated
from retrievers.encoders.texts import check_texts
from retrievers.encoders.workers import Workers
from retrievers.errors import EncoderError, IndexDamagedError, ModelNotFoundError
from retrievers.vectors import Vectors

if TYPE_CHECKING:
    from retrievers.encoders.dense import DenseEncoder
    from retrievers.encoders.multi_vector import MultiVectorEncoder
    from retrievers.encoders.sparse import SparseEncoder

Task = Literal["query", "document"]

CLASS_NAMES: dict[str, str] = {
    "dense": "DenseEncoder",
    "sparse": "SparseEncoder",
    "multi-vector": "MultiVectorEncoder",
}
#: The kinds of encoder by the class of sentence-transformers that is one.
LIBRARY_CLASSES: dict[NeuralKind, str] = {
    "dense": "SentenceTransformer",
    "sparse": "SparseEncoder",
    "multi-vector": "MultiVectorEncoder",
}
MODEL_FOLDER = "model"
_PROMPT_NAMES: dict[Task, tuple[str, ...]] = {"query": ("query",), "document": ("document", "passage", "corpus")}
# Measured on one core with models of 4 and 23 million parameters: a batch whose activations fit the cache is fastest.
# Where its head cannot be pooled in slices, a sparse model's logits take 4 bytes times the vocabulary for every token.
_CPU_TOKENS: dict[NeuralKind, int] = {"dense": 1024, "multi-vector": 1024, "sparse": 1024}
_ACCELERATOR_TOKENS: dict[NeuralKind, int] = {"dense": 16384, "multi-vector": 16384, "sparse": 4096}
_NO_LIMIT = 1_000_000  # tokenizers without a limit say 10^30


class NeuralModel:
    """A sentence-transformers model with what indexing needs of it.

    ``source`` is a folder, a name on the hub, or the sentence-transformers object, which is used as it is (and moved
    where ``device`` or ``dtype`` is given). Encoding may be called from several threads.

    ``backend`` and ``dtype`` say how it computes (:data:`retrievers.encoders.numerics.BACKENDS`), once :meth:`convert` was
    called. With ``workers`` above 1, so many processes encode documents, each with a copy of the model.

    ``language`` and ``query_language`` are for models with an adapter for each language: that of documents, and that of
    queries, by default the same. Where neither is given, it is the language that was saved with the model.
    """

    def __init__(
        self,
        source: Any,
        kind: NeuralKind,
        *,
        device: str | None,
        batch_size: int,
        dtype: str | None,
        max_batch_tokens: int | None,
        revision: str | None,
        backend: str = "torch",
        workers: int = 1,
        language: str | None = None,
        query_language: str | None = None,
    ) -> None:
        self._dtype = check_backend(backend, dtype)
        check_sizes(batch_size=batch_size, max_batch_tokens=max_batch_tokens, workers=workers)
        if backend != "torch" and device not in (None, "cpu"):
            raise EncoderError(
                f"the backend {backend!r} computes on the processor, not on {device}: leave one of them out"
            )
        self.kind = kind
        self.backend = backend
        self.batch_size = batch_size
        self.location: str | None = None
        self.revision = revision
        self._converted = False
        self._count = workers
        self._workers: Workers | None = None
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._fingerprint: str | None = None
        self._lock = threading.RLock()
        if isinstance(source, str | Path):
            self.model = self._load(source, "cpu" if backend != "torch" else device)
        else:
            self.model = _accept(source, kind)
            if device is not None:
                self.model.to(device)
        if self.model.device.type != "cpu" and (backend != "torch" or self._dtype == "int8"):
            raise EncoderError(
                f"backend={backend!r} with dtype={self._dtype!r} computes on the processor, and the model is on "
                f"{self.model.device}: give device='cpu', or choose float16 or bfloat16"
            )
        self._check_routes()
        #: The language of each side; empty for a model without adapters.
        self.languages = self._choose_languages(language, query_language)
        self.model.eval()
        budgets = _CPU_TOKENS if self.model.device.type == "cpu" else _ACCELERATOR_TOKENS
        self.max_batch_tokens = budgets[kind] if max_batch_tokens is None else max_batch_tokens

    def _load(self, source: str | Path, device: str | None) -> Any:
        checkpoint = checkpoints.find(source, revision=self.revision)
        refuse_other_kind(checkpoint, self.kind, self.revision)
        model = load(checkpoint.location, self.kind, device=device, revision=self.revision)
        self.location = str(Path(checkpoint.location).resolve()) if checkpoint.local else checkpoint.location
        if not checkpoint.local and self.revision is None:
            self.revision = getattr(getattr(model, "config", None), "_commit_hash", None)
        return model

    def _check_routes(self) -> None:
        """A model with a route for each side must have both: no side may quietly be served by the other's route."""
        if not hasattr(self.model[0], "sub_modules"):
            return
        for task in _PROMPT_NAMES:
            try:
                self.model.preprocess(["a"], task=task)
            except ValueError as error:
                raise EncoderError(f"the model has no route for a {task}: {error}") from error

    def _choose_languages(self, language: str | None, query_language: str | None) -> dict[Task, str]:
        asked = language if query_language is None else query_language
        wanted: dict[Task, str | None] = {"document": language, "query": asked}
        chosen = {task: adapters.choose_language(self.input_module(task), name) for task, name in wanted.items()}
        return {task: name for task, name in chosen.items() if name is not None}

    def language(self, task: Task, wanted: str | None = None) -> str | None:
        """The language that texts of this side are encoded in: ``wanted``, or the one that was chosen for the side.

        Raises EncoderError where the model has no adapter for it.
        """
        return self.languages.get(task) if wanted is None else adapters.choose_language(self.input_module(task), wanted)

    def convert(self) -> None:
        """Let the model compute as was asked for, after taking the fingerprint, which is that of the checkpoint.

        Another runtime or other numbers change the last digits of vectors, not what they mean: vectors of one model can be
        compared however they were computed.
        """
        dtype = self._dtype
        if dtype is None and self.backend == "torch" and self._count == 1:
            return
        _ = self.fingerprint
        if self._count > 1 and self.location is None:
            self._copy = tempfile.TemporaryDirectory(prefix="retrievers-model-")
            self._write(Path(self._copy.name))
        if self.backend != "torch":
            from retrievers.encoders import runtimes

            readers = self._readers()
            if not readers:
                raise EncoderError(f"the model has no layers to export to {self.backend}: leave backend out")
            for reader in readers:
                runtimes.install(reader, self.backend, dtype or "float32")
        elif dtype == "int8":
            from retrievers.encoders import int8

            heads = [reader.model.get_output_embeddings() for reader in self._readers()]
            self._converted = int8.convert(self.model, but=heads) > 0
            if not self._converted:
                raise EncoderError("the model has no linear layers to compute in int8: leave dtype out")
        if dtype is not None and dtype != "int8":
            self._cast(dtype)

    def _cast(self, dtype: str) -> None:
        import torch

        wanted = getattr(torch, dtype)
        self._converted = any(weight.dtype != wanted for weight in self.model.parameters())
        self.model.to(wanted)
        if self.model.device.type == "cpu" and emulated(dtype):
            warnings.warn(
                f"this processor has no {dtype} arithmetic: encoding takes several times as long as in float32; leave "
                "dtype out",
                stacklevel=4,
            )

    def _readers(self) -> list[Any]:
        """The modules that run a network of transformers over texts, each once."""
        modules = {id(reader): reader for reader in map(self.input_module, _PROMPT_NAMES)}
        return [reader for reader in modules.values() if hasattr(getattr(reader, "model", None), "base_model")]

    def share(self, texts: Sequence[str], **options: Any) -> Vectors | None:
        """The vectors of documents from the worker processes; None where there are none, or too few texts for them."""
        if self._count == 1:
            return None
        with self._lock:
            if self._workers is None:
                self._workers = Workers(self._count, self._described(), self.fingerprint)
        if not self._workers.enough(texts):
            return None
        return self._workers.encode_document(check_texts(texts), **options)

    def _described(self) -> dict[str, Any]:
        """What a worker process needs in order to make the same encoder."""
        import torch

        described: dict[str, Any] = {
            "kind": self.kind,
            "source": self._copy.name if self._copy is not None else self.location,
            "device": "cuda" if self.model.device.type == "cuda" else str(self.model.device),
            "threads": torch.get_num_threads(),
            "revision": None if self._copy is not None else self.revision,
            "backend": self.backend,
            "dtype": self._dtype,
            "batch_size": self.batch_size,
            "max_batch_tokens": self.max_batch_tokens,
        }
        if self.languages:
            described |= {"language": self.languages["document"], "query_language": self.languages["query"]}
        return described

    def close(self) -> None:
        """End the worker processes, if there are any; a later call starts them again."""
        if self._workers is not None:
            self._workers.close()

    @property
    def fingerprint(self) -> str:
        """Taken once, when first asked for."""
        from retrievers.encoders.fingerprint import fingerprint

        with self._lock:
            if self._fingerprint is None:
                self._fingerprint = fingerprint(self.model, self.kind, self.languages)
            return self._fingerprint

    def reference(self) -> dict[str, Any]:
        """How to find the model again; ``model`` is None for an object, which :meth:`store` writes out."""
        found = {
            "kind": self.kind,
            "model": self.location,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
        }
        if self.backend != "torch" or self._dtype is not None:
            found |= {"backend": self.backend, "dtype": self._dtype or "float32"}
        if self.languages:
            found |= {"language": self.languages["document"], "query_language": self.languages["query"]}
        return found

    def store(self, folder: Path) -> None:
        """Write the model itself below ``folder``, if there is no other place to find it again."""
        if self.location is None:
            self._write(folder / MODEL_FOLDER)

    def save(self, folder: str | Path) -> None:
        """Save as a sentence-transformers folder, to which :meth:`reference` points from then on."""
        if self._converted:
            raise EncoderError(f"the weights were converted to {self._dtype}: load the model without dtype to save it")
        self._write(Path(folder))
        self.location, self.revision = str(Path(folder).resolve()), None

    def _write(self, folder: Path) -> None:
        with self._lock, adapters.saved_language(self.input_module("document"), self.languages.get("document")):
            save(self.model, folder)

    def prompt(self, task: Task) -> str | None:
        """What goes before every text of this side, by the rule of sentence-transformers' own ``encode_query``."""
        prompts: Mapping[str, str] = self.model.prompts
        for name in _PROMPT_NAMES[task]:
            if name in prompts:
                return prompts[name]
        return None if self.model.default_prompt_name is None else prompts.get(self.model.default_prompt_name)

    def preprocess(self, texts: list[str], task: Task, language: str | None = None) -> dict[str, Any]:
        """The features of a batch, on the model's device; ``language`` is another than that of the side."""
        from sentence_transformers.util import batch_to_device

        with self._lock:  # a tokenizer's truncation and padding are set anew at each call, which no other may see
            features = self.model.preprocess(texts, prompt=self.prompt(task), task=task)
        moved: dict[str, Any] = batch_to_device(features, self.model.device)
        chosen = self.language(task, language)
        if chosen is not None:
            moved[adapters.IDS] = adapters.language_ids(self.input_module(task), chosen, moved["input_ids"])
        return moved

    def run(
        self, texts: Sequence[str], task: Task, language: str | None = None, /, **options: Any
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """The model's outputs batch by batch, long texts first, with the positions of a batch's texts in ``texts``.

        Where there are many texts a thread tokenizes the next while the model is at work. On a processor several batches
        are computed at a time, each by one thread: a batch is small enough for a core's cache, and threads that share it
        would wait for each other at every step, the more so where other processes are at work.
        """
        import torch

        checked = check_texts(texts)
        if self.model.training:
            self.model.eval()
        prepared = self._prepare(checked, task, language)
        if len(checked) > batches.CHUNK:
            prepared = batches.ahead(prepared)

        def compute(batch: tuple[NDArray[np.int64], dict[str, Any]]) -> tuple[NDArray[np.int64], dict[str, Any]]:
            positions, features = batch
            with torch.inference_mode():
                return positions, self.model(features, task=task, **options)

        yield from batches.side_by_side(prepared, compute, self._at_a_time())

    def _at_a_time(self) -> int:
        """How many batches are computed at a time. What torch does by itself in a thread, such as autocasting, stays there."""
        import torch

        alone = self.backend != "torch" or self.model.device.type != "cpu" or torch.is_autocast_enabled("cpu")
        return 1 if alone else torch.get_num_threads()

    def _prepare(
        self, texts: list[str], task: Task, language: str | None
    ) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """Features batch by batch; each text is tokenized once, with others of like length."""
        if len(texts) == 1:
            yield np.zeros(1, np.int64), self.preprocess(texts, task, language)
            return
        for chunk in batches.chunks(texts):
            features = self.preprocess([texts[position] for position in chunk], task, language)
            found = batches.cut(features, batch_size=self.batch_size, max_tokens=self.max_batch_tokens)
            if found is None:  # not a row a text, as where texts are put end to end
                for start in range(0, len(chunk), self.batch_size):
                    positions = chunk[start : start + self.batch_size]
                    yield positions, self.preprocess([texts[position] for position in positions], task, language)
            else:
                for rows, part in found:
                    yield chunk[rows], part

    def max_length(self, task: Task) -> int | None:
        """The number of tokens, special ones included, at which a text of this side is cut; None for no limit."""
        module = self.input_module(task)
        expansion = getattr(module, "query_expansion", None) if task == "query" else None
        if expansion is not None and expansion["strategy"] == "fixed":
            return int(expansion["length"])
        limit = getattr(module, f"{task}_length", None) or getattr(module, "max_seq_length", None)
        return None if limit is None or limit > _NO_LIMIT else int(limit)

    def input_module(self, task: Task) -> Any:
        """The module that reads the texts of this side."""
        first = self.model[0]
        if not hasattr(first, "sub_modules"):
            return first
        routes = first.sub_modules
        return (routes[task] if task in routes else next(iter(routes.values())))[0]


def refuse_other_kind(checkpoint: checkpoints.Checkpoint, kind: NeuralKind, revision: str | None = None) -> None:
    """Raises EncoderError where the checkpoint is of another kind, which sentence-transformers would convert.

    A conversion puts new, random layers on top: what comes out is no retriever until it is trained.
    """
    found = checkpoint.kind
    if found == kind:
        return
    place = checkpoint.location
    if found != "backbone":
        raise EncoderError(
            f"{place} was saved as a {found} encoder: load it with {CLASS_NAMES[found]}. As a {kind} encoder it would "
            "need new layers, which give nothing of use before training"
        )
    if kind == "multi-vector":
        raise EncoderError(
            f"{place} is a plain masked-language model: as a multi-vector encoder it would get a random projection. "
            "Build a sentence_transformers.MultiVectorEncoder from it, train that, and pass it"
        )
    if kind == "sparse":
        from retrievers.encoders.inference_free import require_head

        require_head(place, revision=revision)


def load(location: str, kind: NeuralKind, *, device: str | None, revision: str | None = None) -> Any:
    """The sentence-transformers model at ``location``; raises EncoderError where it cannot be loaded."""
    return load_as(LIBRARY_CLASSES[kind], location, f"a {kind} encoder", device=device, revision=revision)


def load_as(wanted: str, location: str, what: str, *, device: str | None, revision: str | None = None) -> Any:
    """The model at ``location`` as the class ``wanted`` of sentence-transformers, which messages call ``what``.

    Raises EncoderError where it cannot be loaded.
    """
    require_neural()
    import sentence_transformers
    import torch
    from safetensors import SafetensorError

    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise EncoderError(f"device {device!r} is not there: torch {torch.__version__} finds no GPU; leave device out")
    try:
        with quiet():
            return getattr(sentence_transformers, wanted)(location, device=device, revision=revision)
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise EncoderError(f"{location} cannot be loaded as {what}: {type(error).__name__}: {error}") from error


def save(model: Any, folder: Path) -> None:
    """Save a sentence-transformers model in the library's own format, without a model card."""
    with quiet():
        model.save(str(folder), create_model_card=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars that transformers draws while it loads and saves weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _accept(source: Any, kind: NeuralKind) -> Any:
    require_neural()
    import sentence_transformers

    for found, name in LIBRARY_CLASSES.items():
        if isinstance(source, getattr(sentence_transformers, name)):
            if found != kind:
                raise EncoderError(f"a sentence_transformers.{name} is a {found} encoder: use {CLASS_NAMES[found]}")
            return source
    if isinstance(source, sentence_transformers.CrossEncoder):
        raise EncoderError("a cross-encoder scores a query and a document together and gives no vectors to index")
    raise EncoderError(
        f"expected a folder, a name on the hub or a sentence-transformers model, got {type(source).__name__}"
    )


def load_model_encoder(
    spec: str | Path,
    *,
    device: str | None = None,
    batch_size: int = 256,
    dtype: str | None = None,
    language: str | None = None,
    query_language: str | None = None,
    **computing: Any,
) -> DenseEncoder | SparseEncoder | MultiVectorEncoder:
    """The encoder saved at ``spec``, a folder or a name on the hub; its kind comes from its saved configuration.

    The languages are for multi-vector models with an adapter for each, see :class:`MultiVectorEncoder`; ``computing`` holds
    further options of the encoders: ``backend``, ``workers``, ``max_batch_tokens``.

    Raises ModelNotFoundError where there is none, EncoderError where it is no encoder, or a plain masked-language
    model, which fits several kinds; MissingDependencyError where sentence-transformers is not installed.
    """
    require_neural()
    checkpoint = checkpoints.find(spec)
    if checkpoint.kind == "backbone":
        raise EncoderError(
            f"{spec} is a plain masked-language model, which could become any kind of encoder. Choose one from "
            f"retrievers.encoders: SparseEncoder({str(spec)!r}) for a SPLADE checkpoint; "
            f"SparseEncoder.inference_free({str(spec)!r}, corpus) for queries without a model; "
            f"DenseEncoder({str(spec)!r}) for mean pooling"
        )
    languages = _given(language=language, query_language=query_language)
    if languages and checkpoint.kind != "multi-vector":
        raise EncoderError(
            f"{spec} is a {checkpoint.kind} encoder: a language is chosen for multi-vector models with adapters alone"
        )
    encoder: DenseEncoder | SparseEncoder | MultiVectorEncoder = encoder_class(checkpoint.kind)(
        spec, device=device, batch_size=batch_size, dtype=dtype, **languages, **computing
    )
    return encoder


def open_neural(
    reference: Mapping[str, Any],
    folder: Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    workers: int = 1,
) -> DenseEncoder | SparseEncoder | MultiVectorEncoder:
    """The encoder that ``reference()`` described and ``save_query_side(folder)`` stored.

    An inference-free sparse encoder opens without torch, and loads its document model when a document is encoded.
    Raises ModelNotFoundError where the model is no longer where it was, IndexDamagedError for a broken reference.
    """
    kind = reference.get("kind")
    if kind not in CLASS_NAMES:
        raise IndexDamagedError(f"the encoder's reference names the kind {kind!r}, not one of {', '.join(CLASS_NAMES)}")
    if reference.get("table"):
        from retrievers.encoders.sparse import SparseEncoder

        return SparseEncoder.open_stored(reference, folder, device=device, dtype=dtype, workers=workers)
    languages = _given(language=reference.get("language"), query_language=reference.get("query_language"))
    encoder: DenseEncoder | SparseEncoder | MultiVectorEncoder = encoder_class(kind)(
        source_of(reference, folder),
        device=device,
        dtype=dtype,
        workers=workers,
        revision=reference.get("revision"),
        **languages,
    )
    if reference.get("model") is None:
        encoder.neural.location = None  # its files belong to the index, which may be moved as a whole
    return encoder


def source_of(reference: Mapping[str, Any], folder: Path) -> str | Path:
    """Where the model of a reference is: a folder, or a name on the hub."""
    model = reference.get("model")
    if model is None:
        source: str | Path = folder / MODEL_FOLDER
    elif isinstance(model, str):
        source = Path(model) if Path(model).is_absolute() else model
    else:
        raise IndexDamagedError(f"the encoder's reference names the model {model!r}, which is no path and no name")
    if isinstance(source, Path) and not source.is_dir():
        raise ModelNotFoundError(
            f"the model that the index was built with is no longer at {source}: put it back, or pass the encoder to "
            "Retriever.open(..., encoder=...)"
        )
    return source


def _given(**options: str | None) -> dict[str, str]:
    return {name: value for name, value in options.items() if value is not None}


def encoder_class(kind: Any) -> Any:
    """The encoder of a kind."""
    from retrievers.encoders.dense import DenseEncoder
    from retrievers.encoders.multi_vector import MultiVectorEncoder
    from retrievers.encoders.sparse import SparseEncoder

    return {"dense": DenseEncoder, "sparse": SparseEncoder, "multi-vector": MultiVectorEncoder}[kind]
