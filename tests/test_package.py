"""The wheel, installed alone in a fresh environment: every module imports, and searching needs no model library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from models import splade_folder

from retrievers import Document, Retriever, SparseEncoder

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    Document("undo", "git reset moves the branch back and undoes the last commit", metadata={"lang": "en"}),
    Document("stash", "git stash keeps changes for later", metadata={"lang": "en"}),
    Document("zurück", "git reset nimmt den letzten Commit zurück", metadata={"lang": "de"}),
]
QUERY = "how do I undo the last commit"
_IMPORT_ALL = """
import importlib, json, pkgutil, sys
import retrievers
names = ["retrievers"] + [found.name for found in pkgutil.walk_packages(retrievers.__path__, "retrievers.")]
lacking = []
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            absent = error.__cause__ or error
            if absent.name not in ("torch", "transformers", "sentence_transformers", "sklearn"):
                raise
            lacking.append(name)
heavy = [name for name in ("torch", "transformers", "sentence_transformers", "faiss") if name in sys.modules]
print(json.dumps({"names": names, "lacking": lacking, "heavy": heavy}))
"""
#: Modules of classes that extend those of torch and its kin: what uses them imports them within a function.
_OF_TORCH = {
    "retrievers.demonstrations.classifier",  # of scikit-learn, which comes with the same extra
    *(f"retrievers.encoders.{name}" for name in ("int8", "runtimes", "vocabulary_head")),
    *(
        f"retrievers.training.{name}"
        for name in (
            "answering",
            "examples",
            "few_shot",
            "gradient_cache",
            "guard",
            "losses",
            "meta",
            "meta_checkpoints",
            "objective",
            "objectives",
            "processes",
            "run",
            "sampler",
            "scores",
            "sparsity",
            "st_losses",
            "trainer",
        )
    ),
}
_SEARCH = """
import importlib.util, json, sys
absent = [n for n in ("torch", "transformers", "sentence_transformers") if importlib.util.find_spec(n) is None]
from retrievers import Retriever
hits = [Retriever.open(path).search(sys.argv[1], k=3) for path in sys.argv[2:]]
print(json.dumps({"absent": absent, "hits": [[(hit.id, hit.score) for hit in found] for found in hits]}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and its plain dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    # Of a copy: two workers that build in one checkout take each other's files away.
    source = shutil.copytree(
        ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "*.so")
    )
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    assert "abi3" in wheel.name
    venv.create(folder / "env", with_pip=True)
    interpreter = folder / "env" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    subprocess.run(
        [interpreter, "-m", "pip", "install", "-q", "-c", constraints, wheel], check=True, capture_output=True
    )
    return interpreter


def run(python: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # From another folder, so that the checkout cannot be imported by accident.
    done = subprocess.run(
        [python, *arguments], capture_output=True, text=True, env=environment, cwd=python.parent, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_module_imports_without_a_model_library_but_those_that_extend_torch(python: Path) -> None:
    found = json.loads(run(python, "-c", _IMPORT_ALL))
    modules = {
        "retrievers." + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
        if folder == "retrievers"
        else f"retrievers.{folder}.{path.stem}"
        for folder in ("retrievers", "indexes", "training")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules <= set(found["names"])
    assert "retrievers.indexes._kernels" in found["names"]
    assert set(found["lacking"]) == _OF_TORCH
    assert found["heavy"] == []


@pytest.mark.slow
def test_lexical_and_inference_free_search_need_no_model_library(python: Path, tmp_path: Path) -> None:
    encoder = SparseEncoder.inference_free(splade_folder(), idf=[document.content for document in DOCUMENTS])
    paths = [tmp_path / "lexical", tmp_path / "sparse"]
    expected = []
    for path, model in zip(paths, ("bm25", encoder), strict=True):
        with Retriever.build(path, DOCUMENTS, encoder=model) as retriever:
            expected.append([[hit.id, hit.score] for hit in retriever.search(QUERY, k=3)])
    found = json.loads(run(python, "-c", _SEARCH, QUERY, *map(str, paths)))
    assert found["absent"] == ["torch", "transformers", "sentence_transformers"]
    assert found["hits"] == expected
    assert all(hits[0][0] == "undo" for hits in expected)


@pytest.mark.slow
def test_the_command_is_installed(python: Path) -> None:
    command = python.with_name("retrievers")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "index" in done.stdout
    assert "search" in done.stdout
