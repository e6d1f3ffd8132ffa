"""``train``: a recipe in, a plain sentence-transformers model out, which an index takes as its encoder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from retrievers.encoders.checkpoints import require_neural
from retrievers.encoders.model import NeuralModel, load, quiet, save
from retrievers.encoders.numerics import emulated
from retrievers.encoders.sparse import special_ids
from retrievers.errors import LeakError, RecipeError
from retrievers.training.batches import Batches, RandomBatches, SingleSourceBatches, TopicAwareBatches
from retrievers.training.development import ENCODERS, MEASURE, DevelopmentSet
from retrievers.training.ensemble import Ensemble
from retrievers.training.examples import Assembler, Examples
from retrievers.training.gradient_cache import CachedObjective
from retrievers.training.leaks import find_leaks
from retrievers.training.losses import Loss
from retrievers.training.models import starting_model
from retrievers.training.objective import Objective
from retrievers.training.objectives import (
    DualTeacher,
    InfoNCE,
    ListwiseKL,
    MarginMSE,
    OrthogonalProjection,
    Reweighting,
)
from retrievers.training.processes import process_count, process_rank
from retrievers.training.recipe import Recipe
from retrievers.training.sets import TrainingSet
from retrievers.training.sources import Sources, sources_of
from retrievers.training.sparsity import QUERY_TABLE, Penalty
from retrievers.training.teachers import LiveTeacher, live_teacher
from retrievers.training.topics import Topics, find_topics_of
from retrievers.training.trainer import (
    BEST,
    Loader,
    Loop,
    Progress,
    arguments_class,
    checkpoint_step,
    checkpoints,
    claim,
    trainer_class,
)

MODEL, TOPICS = "model", "topics.npz"
_TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Trained:
    """What a run gave.

    ``model`` is the folder of a plain sentence-transformers model, ``quality`` its nDCG@10 on the development set, None
    where the recipe names none, ``steps`` those it took, and ``command`` indexes with it.
    """

    model: Path
    quality: float | None
    steps: int
    command: str


def train(
    recipe: Recipe | str | Path,
    settings: Sequence[str] = (),
    *,
    device: str | None = None,
    report: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train a retriever by a recipe: an object, a TOML file, or the name of a shipped one, with ``settings`` laid over it.

    A run that was stopped goes on from its last checkpoint when it is started again with the same recipe, to the weights
    that it would have had: on one CPU process they are the same to the last bit. Under ``torchrun`` each process takes its
    share of every batch. ``report`` is called after each step, ``say`` with what a reader should know.

    Raises RecipeError for a recipe that cannot be run, TrainingDataError for a set that lacks what it needs, TrainingError
    where training breaks, MissingDependencyError without the extra ``train``.
    """
    found = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, settings)
    found.check()
    require_neural()
    data = TrainingSet.open(found.data.set)
    _check_data(found, data)
    sources = sources_of(data) if found.batches.scheme == "sources" else None  # it reads all ids
    if sources is not None:
        _source_batches(found, data, sources, np.arange(len(data)))  # refuses small sources before the work
    tell: Callable[[str], None] = say or (lambda _: None)
    development = DevelopmentSet.read(found.development) if found.development.data else None
    if development is not None:
        _check_leaks(found, data, development, tell)
    folder = Path(found.output)
    transformers.utils.logging.set_verbosity_error()
    arguments = _arguments(found, device)  # sets the processes up
    if arguments.use_cpu and emulated(_TYPES[found.optimiser.precision]):
        tell(
            f"optimiser.precision is {found.optimiser.precision!r}, which this processor imitates: steps take several times as "
            "long as in fp32"
        )
    if process_rank() == 0:
        claim(found, folder)
    _wait()
    done = folder / MODEL / "trained.json"
    if done.is_file():
        tell(f"{folder / MODEL} is trained already")
        return _trained(folder, json.loads(done.read_text(encoding="utf-8")))
    transformers.set_seed(found.seed)
    # Documents are counted for the weights of query terms, by sparse models alone.
    model = starting_model(found.model, _texts(data), device=device)
    examples = _examples(found, data)
    if found.batches.negatives:
        tell(str(examples.report))
    if found.loss.name == "orthogonal" and found.model.kind == "dense" and model.similarity_fn_name != "cosine":
        raise RecipeError(
            f"loss.name is 'orthogonal', which is of cosines, and {found.model.start} compares by "
            f"{model.similarity_fn_name}: start from another model, or choose another loss"
        )
    batches = _batches(found, data, sources, examples, model, folder, tell)
    neural = NeuralModel(
        model, found.model.kind, device=None, batch_size=32, dtype=None, max_batch_tokens=None, revision=None
    )
    objective = _objective(found, neural)
    guide: LiveTeacher | None = None
    if found.loss.in_batch_teacher:
        guide = live_teacher(found.loss.in_batch_teacher, training_set=data, device=device)
    assembler = Assembler(
        examples,
        batches,
        neural.preprocess,
        in_batch=objective.loss.in_batch,
        labels=found.loss.name == "orthogonal",
        guide=guide,
        rank=process_rank(),
        processes=process_count(),
    )
    loop = Loop(found, development, report)
    trainer = trainer_class(found.model.kind)(
        model=model, args=arguments, loss=objective, callbacks=[loop], data_collator=_as_it_is
    )
    for callback in (transformers.ProgressCallback, transformers.PrinterCallback):
        trainer.remove_callback(callback)
    trainer.batches = Loader(assembler, found.optimiser.steps * found.batches.accumulate)
    trainer.loop = loop
    trainer.penalty = _penalty(found)
    checkpoint = next(reversed(checkpoints(folder)), None)
    if checkpoint is not None:
        tell(f"going on from step {checkpoint_step(checkpoint)}")
    with quiet():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if process_rank() == 0:
        _finish(found, folder, model, development, data, int(trainer.state.global_step), loop)
    _wait()
    return _trained(folder, json.loads(done.read_text(encoding="utf-8")))


def _as_it_is(batch: Any) -> Any:
    """The loader's batches are whole already."""
    return batch


def _check_data(recipe: Recipe, data: TrainingSet) -> None:
    missing = [teacher for teacher in recipe.data.teachers if teacher not in data.teachers]
    if missing:
        raise RecipeError(
            f"data.teachers names {', '.join(missing)}, of which {data.path} has no scores: it has those of "
            f"{', '.join(data.teachers) or 'no teacher'}; run `retrievers score`"
        )
    if recipe.batches.negatives and not len(data.candidates.rows):
        raise RecipeError(
            f"batches.negatives is {recipe.batches.negatives}, and {data.path} has no candidates: run `retrievers mine`, or "
            "set it to 0"
        )
    if recipe.batches.negatives and recipe.batches.draw != "random" and not recipe.data.teachers:
        raise RecipeError(
            f"batches.draw is {recipe.batches.draw!r}, which reads the scores of teachers: name some in data.teachers, or "
            "set it to 'random'"
        )


def _source_batches(
    recipe: Recipe, data: TrainingSet, sources: Sources, queries: NDArray[np.int64]
) -> SingleSourceBatches:
    """Batches of one source each, of some queries."""
    numbers, size = sources.numbers[queries], recipe.batches.size
    for name, count in zip(sources.names, np.bincount(numbers, minlength=len(sources.names)).tolist(), strict=True):
        if count < size:
            raise RecipeError(
                f"the source {name!r} of {data.path} has {count:,} queries to train on, fewer than a batch of {size:,}: set "
                "batches.size to less, or make a set without it"
            )
    return SingleSourceBatches(numbers, size, exponent=recipe.batches.exponent, seed=recipe.seed)


def _check_leaks(recipe: Recipe, data: TrainingSet, development: DevelopmentSet, say: Callable[[str], None]) -> None:
    leaks = find_leaks(data, development.queries, development.qrels, development.documents)
    if leaks and recipe.data.leaks == "refuse":
        raise LeakError(
            f"{data.path} and the development set {recipe.development.data}: {leaks}. Leave those training queries out "
            "(find_leaks(...).mask() names them), measure on others, or set data.leaks to 'allow'"
        )
    if leaks:
        say(str(leaks))


def _texts(data: TrainingSet) -> Iterator[str]:
    return (data.documents.text(row) for row in range(len(data.documents)))


def _examples(recipe: Recipe, data: TrainingSet) -> Examples:
    targets = None
    if recipe.data.teachers and recipe.batches.negatives:
        weights = recipe.data.weights or (1.0,) * len(recipe.data.teachers)
        scale = 1.0 if recipe.data.normalise == "none" else recipe.data.ensemble_scale
        ensemble = Ensemble(dict(zip(recipe.data.teachers, weights, strict=True)), recipe.data.normalise, scale)
        scores = {teacher: data.scores(teacher) for teacher in recipe.data.teachers}
        targets = ensemble.targets(scores, data.candidates.offsets)
    return Examples(
        data, negatives=recipe.batches.negatives, scheme=recipe.batches.draw, targets=targets, seed=recipe.seed
    )


def _batches(
    recipe: Recipe,
    data: TrainingSet,
    sources: Sources | None,
    examples: Examples,
    model: Any,
    folder: Path,
    say: Callable[[str], None],
) -> Batches:
    wanted = recipe.batches
    if wanted.scheme == "random":
        return RandomBatches(len(examples.queries), wanted.size, seed=recipe.seed, fraction=wanted.fraction)
    if sources is not None:
        return _source_batches(recipe, data, sources, examples.queries)
    place = folder / TOPICS
    if process_rank() == 0 and not place.is_file():
        _topics(recipe, data, examples, model).save(place)
    _wait()
    topics = Topics.load(place)
    say(f"{topics.count:,} topics of {len(topics):,} queries")
    return TopicAwareBatches(
        topics.assignment, wanted.size, topics_per_batch=wanted.per_batch, over=wanted.over, seed=recipe.seed
    )


def _topics(recipe: Recipe, data: TrainingSet, examples: Examples, model: Any) -> Topics:
    from retrievers.encoders import load_encoder

    named = recipe.batches.topic_encoder
    encoder = load_encoder(named) if named else ENCODERS[recipe.model.kind](model)
    texts = data.queries.texts(examples.queries)
    return find_topics_of(encoder, texts, recipe.batches.topics, seed=recipe.seed)


def _loss(recipe: Recipe) -> Loss:
    wanted = recipe.loss
    if wanted.name == "infonce":
        return InfoNCE(scale=wanted.scale, epsilon=wanted.epsilon)
    if wanted.name == "margin-mse":
        return MarginMSE(scale=wanted.scale)
    if wanted.name == "orthogonal":
        return OrthogonalProjection()
    if wanted.name == "dual-teacher":
        return DualTeacher(scale=wanted.scale, in_batch_weight=wanted.in_batch_weight)
    return ListwiseKL(
        scale=wanted.scale,
        temperature=wanted.temperature,
        teacher_temperature=wanted.teacher_temperature,
        in_batch=wanted.name == "in-batch-kl",
    )


def _reweighting(recipe: Recipe) -> Reweighting | None:
    """Weights from the end of the learning rate's warm-up on, which is told in batches."""
    if not recipe.loss.reweight:
        return None
    return Reweighting(
        warmup=_warmup(recipe) * recipe.batches.accumulate, strength=recipe.loss.reweight, cap=recipe.loss.reweight_cap
    )


def _warmup(recipe: Recipe) -> int:
    """The steps in which the learning rate rises."""
    return round(recipe.optimiser.warmup * recipe.optimiser.steps)


def _objective(recipe: Recipe, neural: NeuralModel) -> Objective:
    model, kind = neural.model, neural.kind
    special = special_ids(neural) if kind == "sparse" else ()
    loss, reweighting = _loss(recipe), _reweighting(recipe)
    if recipe.batches.chunk:
        chunk = recipe.batches.chunk
        return CachedObjective(model, kind, loss, chunk=chunk, special=special, reweighting=reweighting)
    return Objective(model, kind, loss, special=special, reweighting=reweighting)


def _penalty(recipe: Recipe) -> Penalty | None:
    if recipe.model.kind != "sparse" or not recipe.sparsity.weight:
        return None
    return Penalty(recipe.sparsity, candidates=1 + recipe.batches.negatives)


def _arguments(recipe: Recipe, device: str | None) -> Any:
    wanted = recipe.optimiser
    rates = {}
    if recipe.model.kind == "sparse":
        rates = {QUERY_TABLE: wanted.query_rate}
    return arguments_class(recipe.model.kind)(
        output_dir=recipe.output,
        max_steps=wanted.steps,
        per_device_train_batch_size=recipe.batches.size,
        gradient_accumulation_steps=recipe.batches.accumulate,
        learning_rate=wanted.rate,
        learning_rate_mapping=rates,
        weight_decay=wanted.weight_decay,
        warmup_steps=_warmup(recipe),
        lr_scheduler_type=wanted.schedule,
        max_grad_norm=wanted.largest_gradient,
        bf16=wanted.precision == "bf16",
        fp16=wanted.precision == "fp16",
        seed=recipe.seed,
        save_strategy="no",  # the loop asks for checkpoints
        save_total_limit=max(2, recipe.development.average),
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ignore_data_skip=True,  # the loader begins where the checkpoint was made
        remove_unused_columns=False,
        use_cpu=device == "cpu" or not torch.cuda.is_available(),
        ddp_find_unused_parameters=True,
    )


def _finish(
    recipe: Recipe,
    folder: Path,
    model: Any,
    development: DevelopmentSet | None,
    data: TrainingSet,
    steps: int,
    loop: Loop,
) -> None:
    """Choose the weights, and save them with their card; whole or not at all."""
    quality, chosen = loop.best, model
    if development is not None and (folder / BEST).is_dir():
        chosen = load(str(folder / BEST), recipe.model.kind, device="cpu")
    if recipe.development.average > 1:
        mean = _averaged(recipe, folder)
        found = None if development is None else development.measure(mean, recipe.model.kind)
        if found is None or quality is None or found > quality:
            quality, chosen = found, mean
    from retrievers.training.card import card

    place = folder / (MODEL + ".new")
    shutil.rmtree(place, ignore_errors=True)
    chosen.eval()
    save(chosen, place)
    (place / "README.md").write_text(card(recipe, data, steps, quality), encoding="utf-8")
    (place / "trained.json").write_text(json.dumps({"steps": steps, MEASURE: quality}), encoding="utf-8")
    place.rename(folder / MODEL)


def _averaged(recipe: Recipe, folder: Path) -> Any:
    """The mean of the weights of the last checkpoints."""
    places = checkpoints(folder)[-recipe.development.average :]
    models = [load(str(place), recipe.model.kind, device="cpu") for place in places]
    weights = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([one[name].double() for one in weights]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in weights[-1].items()
    }
    models[-1].load_state_dict(mean)
    return models[-1]


def _trained(folder: Path, found: dict[str, Any]) -> Trained:
    place = folder / MODEL
    command = f"retrievers index build DOCUMENTS -o INDEX --encoder {shlex.quote(os.fspath(place))}"
    return Trained(place, found[MEASURE], int(found["steps"]), command)


def _wait() -> None:
    if process_count() > 1:
        torch.distributed.barrier()
