"""Recipes: everything that a training run depends on, as a TOML file or an object.

A recipe names a training set, a model to start from, how batches are drawn, what is minimised and for how long. Shipped ones
are known by their name (``"contrastive"``, ``"tas-balanced"``, ``"inference-free"``, ``"colbert"``, ``"colbert-xm"``); settings
are laid over them as ``section.key=value``.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from retrievers.errors import RecipeError

_DISTILLING = ("margin-mse", "kl", "dual-teacher")  # losses that learn from the scores of candidates


@dataclass(frozen=True)
class Model:
    """What is trained. ``start`` is a folder or a name on the hub; ``kind`` ``"sparse"`` is inference-free.

    ``language`` is that of the training texts, for a multi-vector model over a backbone with an adapter for each language;
    adapters and embeddings are then kept as they are. ``query_expansion`` fills the queries of a multi-vector model up to
    ``query_length`` with mask tokens, which other tokens attend to (``"attended"``) or not (``"masked"``), and
    ``skip_punctuation`` leaves punctuation out of its documents; without them a checkpoint of the kind keeps its own way.
    """

    start: str = ""
    kind: Literal["dense", "sparse", "multi-vector"] = "dense"
    pooling: Literal["mean", "cls"] = "mean"
    similarity: Literal["cosine", "dot"] = "cosine"
    dimension: int = 128  # of a token's vector
    query_length: int = 32  # tokens
    document_length: int = 128  # tokens
    head_divisor: float = 1.0  # of a masked-language head, for sparse
    query_weights: Literal["idf", "uniform"] = "idf"  # of an inference-free model's query terms, to begin with
    language: str = ""
    query_expansion: Literal["none", "masked", "attended"] = "none"
    skip_punctuation: bool = False


@dataclass(frozen=True)
class Data:
    """``set`` is the folder of a training set; ``teachers`` weigh alike where ``weights`` is empty.

    ``leaks`` tells whether queries of the development set may stand among those of training.
    """

    set: str = ""
    teachers: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    normalise: Literal["min-max", "z", "none"] = "min-max"
    ensemble_scale: float = 30.0
    leaks: Literal["refuse", "allow"] = "refuse"


@dataclass(frozen=True)
class Batches:
    """``size`` queries a batch, over all processes; ``chunk`` texts are encoded at a time (gradient caching; 0: all).

    A step of the optimiser takes ``accumulate`` batches. With the scheme ``"sources"`` the queries of a batch are all of one
    source, which stands before a slash in their ids, as joined training sets have it. A source is drawn as often as
    its size to the power ``exponent``: 1 is in proportion, 0 each alike.
    """

    scheme: Literal["random", "topics", "sources"] = "random"
    size: int = 32
    topics: int = 100
    per_batch: int = 1
    over: Literal["uniform", "proportional"] = "uniform"
    topic_encoder: str = ""  # empty: the model that is trained, before training
    negatives: int = 1
    draw: Literal["balanced", "quantile", "random", "hardest"] = "random"
    exponent: float = 1.0
    fraction: float = 1.0  # of the queries, drawn anew each epoch, for random batches
    chunk: int = 0
    accumulate: int = 1


@dataclass(frozen=True)
class Loss:
    """``scale`` multiplies the student's scores; temperatures are those of the listwise KL divergence.

    ``margin-mse``, ``kl`` and ``dual-teacher`` learn from the teachers of ``data``; ``orthogonal`` brings the cosine of a
    positive to 1 and that of each negative to 0.

    ``in_batch_teacher`` is a model that scores each query with all passages of the batch: the one teacher of
    ``in-batch-kl``, the second one of ``dual-teacher``, and in ``infonce`` what tells false negatives, those that it scores
    above the positive less ``epsilon``.

    ``reweight``, from 0 (not at all) to 1, is how much more a query counts whose loss is above the mean of its batch, up to
    ``reweight_cap`` times as much, once the learning rate has warmed up: see
    :class:`~retrievers.training.objectives.Reweighting`.
    """

    name: Literal["infonce", "margin-mse", "kl", "in-batch-kl", "dual-teacher", "orthogonal"] = "infonce"
    scale: float = 20.0
    temperature: float = 1.0
    teacher_temperature: float = 1.0
    in_batch_weight: float = 0.75
    in_batch_teacher: str = ""
    epsilon: float = 0.0
    reweight: float = 0.0
    reweight_cap: float = 1.5


@dataclass(frozen=True)
class Sparsity:
    """The FLOPS penalty: its weight, the steps in which that rises, and the non-zeros below which a document is spared."""

    weight: float = 0.0
    rise: int = 1
    threshold: int = 0
    target: int = 0  # non-zeros that a controller steers to; 0 for a fixed weight


@dataclass(frozen=True)
class Optimiser:
    """AdamW with a linear warm-up; ``query_rate`` is that of the query table of an inference-free model, 0 to keep it."""

    steps: int = 1000
    rate: float = 2e-5
    query_rate: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.1  # of the steps
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    largest_gradient: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"


@dataclass(frozen=True)
class Development:
    """nDCG@10 of a real index of the BEIR folder ``data`` every ``every`` steps.

    The index holds the judged documents and others up to ``documents``. Training ends after ``patience`` measurements
    without a better one (0: never); the best checkpoint is kept, or the mean of the last ``average`` where that is better.
    """

    data: str = ""
    split: str = "dev"
    every: int = 100
    documents: int = 5000
    queries: int = 500
    patience: int = 0
    average: int = 1


@dataclass(frozen=True)
class Recipe:
    """A training run. ``output`` is the folder of its checkpoints, logs and, in ``model``, of what it has trained."""

    name: str = ""
    output: str = ""
    seed: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    batches: Batches = field(default_factory=Batches)
    loss: Loss = field(default_factory=Loss)
    sparsity: Sparsity = field(default_factory=Sparsity)
    optimiser: Optimiser = field(default_factory=Optimiser)
    development: Development = field(default_factory=Development)

    @classmethod
    def load(cls, source: str | Path, settings: Sequence[str] = ()) -> Self:
        """The recipe in a TOML file, or a shipped one by its name, with ``section.key=value`` laid over it.

        Raises RecipeError, which names the nearest known key, for an unknown one, a value of the wrong type and a number
        out of its range.
        """
        shipped = resources.files("retrievers.training") / "recipes" / f"{source}.toml"
        path = Path(source)
        if path.suffix != ".toml" and shipped.is_file():
            text, place = shipped.read_text(encoding="utf-8"), f"the recipe {source!r}"
        elif path.is_file():
            text, place = path.read_text(encoding="utf-8"), str(path)
        else:
            raise RecipeError(
                f"there is no recipe {str(source)!r}: give a TOML file, or one of {', '.join(shipped_names())}"
            )
        try:
            found = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{place} is no TOML: {error}") from error
        recipe = replace(cls(), name=path.stem)
        recipe = _laid_over(recipe, found, place, "")
        for setting in settings:
            recipe = _laid_over(recipe, _setting(setting), f"--set {setting}", "")
        return recipe

    def to_toml(self) -> str:
        """The recipe as TOML, every key of it."""
        values = asdict(self)
        plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
        sections = {key: value for key, value in values.items() if isinstance(value, dict)}
        lines = [f"{key} = {_toml(value)}" for key, value in plain.items()]
        for name, section in sections.items():
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in section.items())]
        return "\n".join(lines) + "\n"

    def check(self) -> None:
        """Raises RecipeError for what is missing, and for parts that do not go together."""
        for key, text in (("model.start", self.model.start), ("data.set", self.data.set), ("output", self.output)):
            if not text:
                raise RecipeError(f"{key} is not set: name it in the recipe, or with --set {key}=...")
        for key, value, least in (
            ("batches.size", self.batches.size, 2),
            ("batches.negatives", self.batches.negatives, 0),
            ("batches.topics", self.batches.topics, 1),
            ("batches.per_batch", self.batches.per_batch, 1),
            ("batches.chunk", self.batches.chunk, 0),
            ("batches.accumulate", self.batches.accumulate, 1),
            ("optimiser.steps", self.optimiser.steps, 1),
            ("development.every", self.development.every, 1),
            ("development.average", self.development.average, 1),
            ("sparsity.rise", self.sparsity.rise, 1),
        ):
            if value < least:
                raise RecipeError(f"{key} is {value}: it must be {least} or more")
        if not 0 < self.batches.fraction <= 1:
            raise RecipeError(f"batches.fraction is {self.batches.fraction}: it lies above 0, and at most at 1")
        if self.batches.fraction < 1 and self.batches.scheme != "random":
            raise RecipeError(
                f"batches.fraction is {self.batches.fraction}, which is for random batches, and batches.scheme is "
                f"{self.batches.scheme!r}: leave it out"
            )
        if not 0 <= self.batches.exponent < math.inf:
            raise RecipeError(
                f"batches.exponent is {self.batches.exponent}: it is 0 (each source alike) to 1 (in proportion), or more"
            )
        if self.batches.exponent != Batches().exponent and self.batches.scheme != "sources":
            raise RecipeError(
                f"batches.exponent is for batches of one source, and batches.scheme is {self.batches.scheme!r}: set it to "
                "'sources', or leave the exponent out"
            )
        self._check_loss()
        if self.data.weights and len(self.data.weights) != len(self.data.teachers):
            raise RecipeError(
                f"data.weights has {len(self.data.weights)} numbers for {len(self.data.teachers)} teachers"
            )
        wanted = self.sparsity
        if wanted.weight < 0 or (wanted.target and not wanted.weight):
            raise RecipeError(
                f"sparsity.weight is {wanted.weight} and target {wanted.target}: the weight is 0 or more, and a target needs "
                "one above 0 to begin with"
            )
        if wanted.threshold < 0 or (wanted.target and wanted.target <= wanted.threshold):
            raise RecipeError(
                f"sparsity.threshold is {wanted.threshold} and target {wanted.target}: the threshold is 0 or more, and a "
                "target lies above it"
            )
        for kind, keys in (
            ("multi-vector", ("language", "query_expansion", "skip_punctuation")),
            ("sparse", ("head_divisor", "query_weights")),
        ):
            for key in keys:
                if self.model.kind != kind and getattr(self.model, key) != getattr(Model(), key):
                    raise RecipeError(
                        f"model.{key} is for {kind} models, and model.kind is {self.model.kind!r}: leave it out"
                    )
        if self.model.kind != "sparse" and self.sparsity != Sparsity():
            raise RecipeError(f"[sparsity] is for sparse models, and model.kind is {self.model.kind!r}")

    def _check_loss(self) -> None:
        wanted = self.loss
        if wanted.name in _DISTILLING and not self.data.teachers:
            raise RecipeError(f"loss.name is {wanted.name!r}, which learns from teachers: name some in data.teachers")
        if wanted.name in (*_DISTILLING, "orthogonal") and self.batches.negatives < 1:
            raise RecipeError(
                f"loss.name is {wanted.name!r}, which needs candidates: set batches.negatives to 1 or more"
            )
        if wanted.name in ("dual-teacher", "in-batch-kl") and not wanted.in_batch_teacher:
            raise RecipeError(
                f"loss.name is {wanted.name!r}: name the model that scores the batch in loss.in_batch_teacher"
            )
        if wanted.in_batch_teacher and wanted.name not in ("dual-teacher", "in-batch-kl", "infonce"):
            raise RecipeError(
                f"loss.in_batch_teacher is set, and loss.name {wanted.name!r} reads no scores of the batch: leave it out"
            )
        if wanted.name == "orthogonal":
            if self.model.kind == "sparse":
                raise RecipeError(
                    "loss.name is 'orthogonal', which is of cosines, and sparse models compare by dot product: choose "
                    "another loss"
                )
            if self.model.kind == "dense" and self.model.similarity != "cosine":
                raise RecipeError(
                    f"loss.name is 'orthogonal', which is of cosines, and model.similarity {self.model.similarity!r}: set "
                    "that to 'cosine'"
                )
        if not 0 <= wanted.reweight <= 1:
            raise RecipeError(f"loss.reweight is {wanted.reweight}: it lies between 0 (not at all) and 1")
        if not 1 <= wanted.reweight_cap < math.inf:
            raise RecipeError(f"loss.reweight_cap is {wanted.reweight_cap}: it is 1 or more")


def shipped_names() -> list[str]:
    """The names of the recipes that come with the library."""
    places = (resources.files("retrievers.training") / "recipes").iterdir()
    return sorted(place.name.removesuffix(".toml") for place in places if place.name.endswith(".toml"))


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text}: write section.key=value")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a word without quotes, as shells leave it
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    found: dict[str, Any] = parsed
    return found


def _laid_over(target: Any, values: Mapping[str, Any], place: str, prefix: str) -> Any:
    known: dict[str, Field[Any]] = {one.name: one for one in fields(target)}
    types = get_type_hints(type(target))
    changed: dict[str, Any] = {}
    for key, value in values.items():
        full = prefix + key
        if key not in known:
            raise RecipeError(f"{place} sets {full!r}, which no recipe has{_nearest(full, target, prefix)}")
        current = getattr(target, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{place} sets {full} to {value!r}: it is a section, so set one of its keys")
            changed[key] = _laid_over(current, value, place, full + ".")
        else:
            changed[key] = _converted(value, types[key], full, place)
    return replace(target, **changed)


def _converted(value: Any, wanted: Any, key: str, place: str) -> Any:
    if get_origin(wanted) is Literal:
        choices = get_args(wanted)
        if value not in choices:
            raise RecipeError(f"{place} sets {key} to {value!r}: it is one of {', '.join(map(repr, choices))}")
        return value
    if get_origin(wanted) is tuple:
        inner = get_args(wanted)[0]
        items = value if isinstance(value, list) else [value]
        return tuple(_converted(item, inner, key, place) for item in items)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if type(value) is not wanted:
        raise RecipeError(f"{place} sets {key} to {value!r}: it must be of type {wanted.__name__}")
    return value


def _nearest(key: str, target: Any, prefix: str) -> str:
    names = list(_keys(Recipe(), ""))
    mine = [prefix + one.name for one in fields(target)]
    found = difflib.get_close_matches(key, mine, 1, 0.5) or difflib.get_close_matches(key, names, 1, 0.5)
    last = key.rsplit(".", 1)[-1]
    found = found or [name for name in names if name.rsplit(".", 1)[-1] == last][:1]
    return f": did you mean {found[0]!r}?" if found else f": its keys are {', '.join(mine)}"


def _keys(target: Any, prefix: str) -> Iterator[str]:
    for one in fields(target):
        value = getattr(target, one.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{one.name}.")
        else:
            yield prefix + one.name


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value)
