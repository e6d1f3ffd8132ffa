"""Training runs, from a recipe to a model that an index takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from models import copy_with, splade_folder
from typer.testing import CliRunner

from retrievers import Document, Retriever, demo
from retrievers.cli import app
from retrievers.errors import LeakError, RecipeError, TrainingDataError
from retrievers.training.recipe import Batches, Data, Development, Loss, Model, Optimiser, Recipe, Sparsity
from retrievers.training.sets import TrainingSet
from retrievers.training.sources import join

QUERIES, DOCUMENTS = 160, 400


def _documented() -> list[tuple[str, Document]]:
    """Docstrings whose first line can be the query of what comes after it."""
    found = []
    for document in demo.documents():
        first, _, rest = document.text.strip().partition("\n")
        if len(first) > 20 and len(rest.strip()) > 80:
            found.append((first.strip(), Document(document.id, rest.strip()[:600])))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of real docstrings with candidates of bm25 and two teachers, and a BEIR folder for development."""
    root = tmp_path_factory.mktemp("train")
    entries = list(islice({first: (first, document) for first, document in _documented()}.values(), DOCUMENTS))
    documents = [document for _, document in entries]
    asked = {f"q{n}": (first, document.id) for n, (first, document) in enumerate(entries)}
    training = dict(islice(asked.items(), QUERIES))
    development = dict(list(asked.items())[QUERIES : QUERIES + 40])
    with Retriever.build(root / "bm25", documents) as retriever:
        hits = {id: retriever.search(text, k=12) for id, (text, _) in training.items()}
    candidates = [(id, hit.id) for id, found in hits.items() for hit in found]
    candidates += [(id, positive) for id, (_, positive) in training.items()]
    made = TrainingSet.build(
        root / "set",
        ((id, text) for id, (text, _) in training.items()),
        documents,
        ((id, positive) for id, (_, positive) in training.items()),
        candidates,
    )
    scores = np.full(len(made.candidates.rows), np.nan, np.float32)
    draws = np.random.default_rng(0)
    for query in range(len(made)):
        span = made.candidates.span(query)
        rows = made.candidates.rows[span]
        known = {hit.id: hit.score for hit in hits[made.queries.id(query)]}
        scores[span] = [known.get(id, 0.0) for id in made.documents.ids(rows)]
        scores[span][np.isin(rows, made.positives.of(query))] += 10
    made.add_scores("lexical", scores)
    made.add_scores("noisy", scores + draws.normal(size=len(scores)).astype(np.float32))
    join({"one": made, "another": made}, root / "joined")
    beir = root / "beir"
    (beir / "qrels").mkdir(parents=True)
    _lines(beir / "corpus.jsonl", ({"_id": one.id, "title": "", "text": one.text} for one in documents))
    _lines(beir / "queries.jsonl", ({"_id": id, "text": text} for id, (text, _) in development.items()))
    grades = "".join(f"{id}\t{positive}\t1\n" for id, (_, positive) in development.items())
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + grades)
    return root


def _lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _recipe(folder: Path, output: str, **parts: object) -> Recipe:
    base = Recipe(
        name="test",
        output=str(folder / output),
        model=Model(start=str(splade_folder()), document_length=64),
        data=Data(set=str(folder / "set")),
        batches=Batches(size=8, negatives=0),
        optimiser=Optimiser(steps=6, rate=5e-4),
        development=Development(every=3),
    )
    return replace(base, **parts)  # type: ignore[arg-type]


KINDS = {
    "contrastive": {},
    "filtered": {
        "batches": Batches(size=8, negatives=2, fraction=0.5, accumulate=2),
        "loss": Loss(in_batch_teacher="bm25", epsilon=0.5),
    },
    "cached": {
        "batches": Batches(size=8, negatives=0, chunk=4),
        "optimiser": Optimiser(steps=6, rate=5e-4, precision="bf16"),
    },
    "tas-balanced": {
        "batches": Batches(scheme="topics", size=8, topics=6, negatives=1, draw="balanced"),
        "loss": Loss(name="dual-teacher", scale=10.0, in_batch_teacher="bm25"),
    },
    "sources": {
        "set": "joined",
        "batches": Batches(scheme="sources", exponent=0.5, size=8, negatives=3, draw="balanced", accumulate=2),
        "loss": Loss(name="orthogonal", reweight=0.5),
    },
    "in-batch": {
        "batches": Batches(size=8, negatives=1, chunk=4),
        "loss": Loss(
            name="in-batch-kl", in_batch_teacher="bm25", teacher_temperature=2.0, reweight=1.0, reweight_cap=2.0
        ),
    },
    "inference-free": {
        "model": "sparse",
        "batches": Batches(size=4, negatives=3, draw="balanced"),
        "loss": Loss(name="kl", scale=1.0),
        "sparsity": Sparsity(weight=0.02, rise=4, threshold=10),
        "optimiser": Optimiser(steps=6, rate=2e-4, query_rate=1e-3, precision="bf16"),
    },
    "colbert": {
        "model": "multi-vector",
        "batches": Batches(size=4, negatives=3, draw="quantile"),
        "loss": Loss(name="kl", scale=1.0),
    },
}


def _parts(folder: Path, name: str) -> dict[str, object]:
    parts: dict[str, object] = dict(KINDS[name])
    place = folder / str(parts.pop("set", "set"))
    kind = parts.pop("model", "dense")
    parts["model"] = Model(start=str(splade_folder()), kind=kind, document_length=64, dimension=32)  # type: ignore[arg-type]
    parts["data"] = Data(set=str(place), teachers=("lexical", "noisy") if "loss" in parts else ())
    return parts


@pytest.mark.parametrize("name", list(KINDS))
def test_each_recipe_trains_a_model_that_an_index_takes(folder: Path, tmp_path: Path, name: str) -> None:
    from retrievers.training.run import train
    from retrievers.training.trainer import Progress

    seen: list[Progress] = []
    recipe = _recipe(tmp_path, "run", **_parts(folder, name))
    recipe = replace(recipe, development=Development(data=str(folder / "beir"), every=3, documents=60, average=2))
    done = train(recipe, device="cpu", report=seen.append)
    assert [progress.step for progress in seen] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(progress.loss) for progress in seen)
    assert (seen[-1].active is not None) == (name == "inference-free")
    documents = [Document("a", "list the files of a package"), Document("b", "the weather is lovely today")]
    with Retriever.build(tmp_path / "index", documents, encoder=str(done.model)) as retriever:
        assert retriever.search("list files", k=1)[0].id == "a"
    card = (done.model / "README.md").read_text(encoding="utf-8")
    assert f"nDCG@10 {done.quality:.4f}" in card
    assert 'name = "test"' in card
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["step"] for line in log if "nDCG@10" in line} == {3, 6}
    assert done.command.endswith(str(done.model))
    again = train(recipe, device="cpu")
    assert again == done


_SCRIPT = """
import sys
from retrievers.training.recipe import Recipe
from retrievers.training.run import train
train(Recipe.load(sys.argv[1]), device="cpu")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="SIGKILL is of POSIX systems")
@pytest.mark.parametrize("name", ["tas-balanced", "inference-free", "sources"])
def test_a_killed_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path, name: str) -> None:
    recipes = []
    for output in ("whole", "killed"):
        recipe = _recipe(tmp_path, output, **_parts(folder, name))
        recipe = replace(
            recipe,
            # Autocast to bf16 keeps nothing from one step to the next, and some processors are slow at it.
            optimiser=replace(recipe.optimiser, steps=24, precision="fp32"),
            development=Development(data=str(folder / "beir"), every=4, documents=60),
        )
        recipes.append(tmp_path / f"{output}.toml")
        recipes[-1].write_text(recipe.to_toml(), encoding="utf-8")

    def run(recipe: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", _SCRIPT, str(recipe)], env=environment, stderr=subprocess.PIPE)

    whole = run(recipes[0])
    _, errors = whole.communicate(timeout=600)
    assert whole.returncode == 0, errors.decode()
    kills = 0
    for step in (4, 12):
        process = run(recipes[1])
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if any(int(path.name.rpartition("-")[2]) >= step for path in (tmp_path / "killed").glob("checkpoint-*")):
                time.sleep(0.05)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.communicate(timeout=300)
        kills += process.returncode == -signal.SIGKILL
    assert kills == 2
    last = run(recipes[1])
    _, errors = last.communicate(timeout=600)
    assert last.returncode == 0, errors.decode()
    one, other = (tmp_path / output / "model" for output in ("whole", "killed"))
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 5], ids=["whole batches", "gradient caching"])
def test_two_processes_take_the_steps_of_one(chunk: int, folder: Path, tmp_path: Path) -> None:
    start = copy_with(
        splade_folder(), tmp_path / "start", "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    losses = []
    for processes in (1, 2):
        recipe = _recipe(tmp_path, f"run-{processes}", **_parts(folder, "tas-balanced"))
        recipe = replace(
            recipe,
            model=replace(recipe.model, start=str(start)),
            optimiser=Optimiser(steps=20, rate=5e-4),
            loss=replace(recipe.loss, reweight=1.0),  # weights are those of the batch of both
            batches=replace(recipe.batches, chunk=chunk),
        )
        place = tmp_path / f"{processes}.toml"
        place.write_text(recipe.to_toml(), encoding="utf-8")
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [sys.executable, *command, str(script), str(place)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        log = (tmp_path / f"run-{processes}" / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in log])
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_training_ends_when_the_development_set_gains_no_more(folder: Path, tmp_path: Path) -> None:
    from retrievers.training.run import train

    recipe = _recipe(tmp_path, "run", data=Data(set=str(folder / "set")), optimiser=Optimiser(steps=50, rate=1e-12))
    recipe = replace(recipe, development=Development(data=str(folder / "beir"), every=2, documents=60, patience=2))
    done = train(recipe, device="cpu")
    assert done.steps == 6  # the first measurement is the best, and two more gain nothing at such a rate


@pytest.mark.parametrize(("precision", "said"), [("fp32", False), ("bf16", True)])
def test_a_precision_that_the_processor_imitates_is_said(
    precision: Literal["fp32", "bf16"], said: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from retrievers.training.run import train

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64"}, raising=False)
    wanted = Optimiser(steps=1, precision=precision)
    told: list[str] = []
    train(_recipe(tmp_path, "run", data=Data(set=str(folder / "set")), optimiser=wanted), device="cpu", say=told.append)
    assert any("which this processor imitates" in words for words in told) == said


def test_a_changed_recipe_does_not_go_on_with_the_run_of_another(folder: Path, tmp_path: Path) -> None:
    from retrievers.training.run import train

    recipe = _recipe(tmp_path, "run", data=Data(set=str(folder / "set")), optimiser=Optimiser(steps=1))
    train(recipe, device="cpu")
    with pytest.raises(RecipeError, match="another recipe"):
        train(replace(recipe, seed=1), device="cpu")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"data": {"teachers": ("absent",)}, "loss": Loss(name="margin-mse")},
            "no scores: it has those of lexical, noisy",
        ),
        ({"batches": Batches(negatives=1, draw="balanced")}, "reads the scores of teachers"),
        ({"loss": Loss(name="kl")}, "learns from teachers"),
        ({"loss": Loss(name="in-batch-kl")}, r"loss\.in_batch_teacher"),
        ({"loss": Loss(name="orthogonal"), "batches": Batches(negatives=0)}, "needs candidates"),
        ({"loss": Loss(name="orthogonal"), "model": Model(start="m", similarity="dot")}, "'dot': set that to 'cosine'"),
        ({"loss": Loss(name="orthogonal"), "model": Model(start="m", kind="sparse")}, "compare by dot product"),
        ({"loss": Loss(reweight=1.5)}, r"loss\.reweight is 1\.5"),
        ({"loss": Loss(reweight_cap=0.5)}, r"loss\.reweight_cap is 0\.5"),
        ({"batches": Batches(scheme="topics", exponent=0.5)}, r"batches\.exponent is for batches of one source"),
        ({"batches": Batches(scheme="sources", exponent=-1.0)}, r"batches\.exponent is -1\.0"),
        (
            {"batches": Batches(scheme="topics", fraction=0.5)},
            r"batches\.fraction is 0\.5, which is for random batches",
        ),
        ({"batches": Batches(scheme="sources")}, "query 'q0' .* has no source"),
        ({"batches": Batches(scheme="sources", size=500), "set": "joined"}, "the source 'one' .* has 160 queries"),
    ],
)
def test_what_a_recipe_lacks_is_said_before_the_work(
    folder: Path, tmp_path: Path, parts: dict[str, object], message: str
) -> None:
    from retrievers.training.run import train

    data = {"set": str(folder / str(parts.pop("set", "set"))), **parts.pop("data", {})}  # type: ignore[dict-item]
    parts.setdefault("batches", Batches(negatives=1))
    with pytest.raises((RecipeError, TrainingDataError), match=message):
        train(_recipe(tmp_path, "run", data=Data(**data), **parts))
    assert not (tmp_path / "run").exists()


def test_a_development_query_among_the_training_queries_is_refused(folder: Path, tmp_path: Path) -> None:
    from retrievers.training.run import train

    found = TrainingSet.open(folder / "set")
    leaking = tmp_path / "beir"
    (leaking / "qrels").mkdir(parents=True)
    (leaking / "corpus.jsonl").write_bytes((folder / "beir" / "corpus.jsonl").read_bytes())
    _lines(leaking / "queries.jsonl", [{"_id": "x", "text": found.queries.text(3).upper() + "."}])
    positive = found.documents.id(int(found.positives.of(3)[0]))
    (leaking / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\nx\t{positive}\t1\n")
    recipe = _recipe(tmp_path, "run", data=Data(set=str(folder / "set")), development=Development(data=str(leaking)))
    with pytest.raises(LeakError, match=r"data\.leaks"):
        train(recipe, device="cpu")
    allowed = replace(recipe, data=replace(recipe.data, leaks="allow"), optimiser=Optimiser(steps=1))
    assert train(allowed, device="cpu").steps == 1


def test_the_command_trains_and_says_how_to_index(folder: Path, tmp_path: Path) -> None:
    run = CliRunner()
    settings = {
        "model.start": str(splade_folder()),
        "data.set": str(folder / "set"),
        "output": str(tmp_path / "run"),
        "optimiser.steps": "2",
        "batches.size": "8",
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    done = run.invoke(app, ["train", "contrastive", *given, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    last = done.stdout.strip().splitlines()[-1]
    assert last == f"index with it: retrievers index build DOCUMENTS -o INDEX --encoder {tmp_path / 'run' / 'model'}"
    shown = run.invoke(app, ["train", "contrastive", *given, "--show"])
    assert "steps = 2" in shown.stdout
    wrong = run.invoke(app, ["train", "contrastive", "--set", "optimiser.step=2"])
    assert wrong.exit_code == 1
    assert "did you mean 'optimiser.steps'?" in wrong.output


def test_the_command_shows_topics(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["train", "topics", str(folder / "set"), "-k", "5", "--plot", str(tmp_path / "topics.svg")]
    )
    assert done.exit_code == 0, done.output
    assert f"topics of {QUERIES} queries" in done.stdout
    assert (tmp_path / "topics.svg").read_text(encoding="utf-8").startswith("<?xml")
