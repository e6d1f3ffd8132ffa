"""A fresh process: what is imported when, so that neither an import nor a first query waits for what it does not need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hashing import HashEncoder
from models import splade_folder

from retrievers import Document, Retriever, SparseEncoder

TEXTS = ["the river runs through the city", "a commit is undone", "changes are kept for later", "the city at night"]
DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(TEXTS)]
_IMPORT = """
import json, sys
before = set(sys.modules)
import retrievers
alone = [name for name in sys.modules if name.split(".")[0] not in sys.stdlib_module_names and name not in before]
from retrievers import Retriever
heavy = [name for name in ("torch", "faiss", "scipy", "tokenizers", "filelock", "rich", "typer") if name in sys.modules]
writing = [name for name in ("retrievers.writer", "concurrent.futures", "logging", "zipfile") if name in sys.modules]
print(json.dumps({"alone": alone, "heavy": heavy, "writing": writing}))
"""
_SEARCH = """
import json, sys
from hashing import HashEncoder
from retrievers import Retriever
path, kind = sys.argv[1:]
encoder = None
if kind in ("dense", "multi-vector"):
    encoder = HashEncoder(kind)
    encoder.encode_query(["warm"])
retriever = Retriever.open(path, encoder=encoder)
opened = set(sys.modules)
retriever.search("the river of the city", k=3)
print(json.dumps({"late": sorted(set(sys.modules) - opened), "torch": "torch" in sys.modules}))
"""


def run(code: str, *arguments: str) -> Any:
    place = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": place.rstrip(os.pathsep)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_package_imports_nothing_and_the_retriever_nothing_heavy() -> None:
    found = run(_IMPORT)
    assert sorted(found["alone"]) == ["retrievers", "retrievers.lazy"]
    assert found["heavy"] == []
    assert found["writing"] == []


@pytest.mark.parametrize(
    ("kind", "index"),
    [
        ("lexical", "inverted"),
        ("sparse", "inverted"),
        ("dense", "flat"),
        ("dense", "hnsw"),
        ("dense", "ivf"),
        ("multi-vector", "maxsim"),
        ("multi-vector", "plaid"),
    ],
)
def test_a_first_query_imports_nothing(kind: str, index: str, tmp_path: Path) -> None:
    encoder: Any = "bm25"
    if kind == "sparse":
        encoder = SparseEncoder.inference_free(splade_folder(), idf=TEXTS)
    elif kind != "lexical":
        encoder = HashEncoder(kind)  # type: ignore[arg-type]
    documents = DOCUMENTS if index != "ivf" else [Document(f"{n}", f"word{n % 97} {n}") for n in range(400)]
    Retriever.build(tmp_path / "idx", documents, encoder=encoder, index=index).close()
    found = run(_SEARCH, str(tmp_path / "idx"), kind)
    assert found["late"] == []
    assert not found["torch"]
