"""Multi-vector models with an adapter for each language (ColBERT-XM): choosing one, indexing, searching, training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from typer.testing import CliRunner

from retrievers import Document, Retriever
from retrievers.cli import app
from retrievers.errors import EncoderError, EncoderMismatchError, RecipeError, SpecError
from retrievers.training.recipe import Model, Recipe
from retrievers.training.sets import TrainingSet

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from retrievers.encoders import load_encoder
from retrievers.encoders.dense import DenseEncoder
from retrievers.encoders.multi_vector import MultiVectorEncoder

DOCUMENTS = [Document(f"d{number}", text) for number, text in enumerate(models.TEXTS) if text.strip()]
QUERY = "the weather of today"
SIDES = ("encode_query", "encode_document")


@pytest.fixture(scope="module")
def xmod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with two languages, of which none is chosen."""
    return models.make_xmod(tmp_path_factory.mktemp("xmod"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multi-vector model over such a backbone, saved with English."""
    return models.make_adapted(tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def undecided(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved without a language."""
    return models.copy_with(folder, tmp_path_factory.mktemp("undecided") / "m", "config.json", default_language=None)


def encoder(folder: Path, *languages: str) -> MultiVectorEncoder:
    return MultiVectorEncoder(
        folder, device="cpu", **dict(zip(("language", "query_language"), languages, strict=False))
    )


def test_each_language_is_that_of_transformers(folder: Path) -> None:
    from sentence_transformers import MultiVectorEncoder as Oracle

    oracle = Oracle(str(folder), device="cpu")
    ours = encoder(folder)
    for language in models.LANGUAGES:
        oracle[0].model.set_default_language(language)
        for side in SIDES:
            wanted = getattr(oracle, side)(models.TEXTS, convert_to_numpy=True)
            found = getattr(ours, side)(models.TEXTS, language=language)
            np.testing.assert_allclose(found.values, np.concatenate(wanted), atol=1e-5)
            np.testing.assert_array_equal(
                found.values, getattr(encoder(folder, language), side)(models.TEXTS).values, strict=True
            )


@pytest.mark.parametrize("side", SIDES)
def test_switching_changes_the_vectors_and_leaves_no_trace(folder: Path, side: str) -> None:
    ours = encoder(folder)
    assert (ours.languages, ours.language, ours.query_language) == (models.LANGUAGES, "en_XX", "en_XX")
    encode = getattr(ours, side)
    english, german = (encode(models.TEXTS, language=language).values for language in models.LANGUAGES)
    assert np.abs(english - german).max(axis=1).min() > 1e-3, "every token"
    np.testing.assert_array_equal(encode(models.TEXTS).values, english)
    assert ours.model[0].model.config.default_language == "en_XX"


def test_queries_may_have_another_language_than_documents(folder: Path) -> None:
    both, german = encoder(folder, "de_DE", "en_XX"), encoder(folder, "de_DE")
    assert (both.language, both.query_language) == ("de_DE", "en_XX")
    assert (german.language, german.query_language) == ("de_DE", "de_DE")
    np.testing.assert_array_equal(
        both.encode_document(models.TEXTS).values, german.encode_document(models.TEXTS).values
    )
    np.testing.assert_array_equal(
        both.encode_query(models.TEXTS).values, german.encode_query(models.TEXTS, language="en_XX").values
    )


def test_languages_are_part_of_the_fingerprint_however_they_are_chosen(folder: Path, undecided: Path) -> None:
    languages = [("en_XX",), ("de_DE",), ("de_DE", "en_XX"), ("en_XX", "de_DE")]
    found = [encoder(folder, *chosen).fingerprint for chosen in languages]
    assert len(set(found)) == 4
    assert found == [encoder(undecided, *chosen).fingerprint for chosen in languages]
    assert encoder(folder).fingerprint == found[0]


def test_threads_may_encode_different_languages_with_one_model(folder: Path) -> None:
    ours = encoder(folder)
    wanted = {language: ours.encode_document(models.TEXTS, language=language).values for language in models.LANGUAGES}
    failures: list[BaseException] = []

    def work(language: str) -> None:
        try:
            for _ in range(10):
                np.testing.assert_array_equal(
                    ours.encode_document(models.TEXTS, language=language).values, wanted[language]
                )
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(language,)) for language in models.LANGUAGES * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_queries_are_filled_with_masks_and_punctuation_is_left_out(folder: Path) -> None:
    ours = encoder(folder)
    tokens = ours.query_tokens("a, b.")
    assert len(tokens) == 32
    assert tokens[-20:] == ["<mask>"] * 20
    assert {",", "▁,", "."} & set(ours.document_tokens("a, b . , c.")) == set()
    assert {",", "."} & set(tokens)
    assert ours.model[0].query_expansion["attend"]


def test_punctuation_is_of_any_script_and_of_one_mark() -> None:
    from retrievers.training.models import punctuation

    vocabulary = ["a", ",", "▁,", "Ġ!", "$", "。", "؟", "...", "##s", "▁", "Ġ", "<s>", "1", "▁a"]
    assert punctuation(vocabulary) == sorted([",", "▁,", "Ġ!", "$", "。", "؟"])


def test_a_recipe_sets_the_tokens_of_a_checkpoint_or_leaves_them(tmp_path: Path) -> None:
    from retrievers.training.models import starting_model

    place = models.make_multi_vector(tmp_path / "model")  # 16 masks that are not attended to, ASCII punctuation
    left = starting_model(Model(start=str(place), kind="multi-vector"), (), device="cpu")
    assert left[0].query_expansion == {"strategy": "fixed", "attend": False, "token": None, "length": 32}
    assert "。" not in left[2].skiplist_words
    wanted = Model(start=str(place), kind="multi-vector", query_expansion="attended", skip_punctuation=True)
    given = starting_model(wanted, (), device="cpu")
    assert given[0].query_expansion["attend"]
    assert "。" in given[2].skiplist_words
    assert MultiVectorEncoder(given).document_tokens("a, b。") == ["[CLS]", "[unused1]", "a", "b", "[SEP]"]


def test_a_dense_model_uses_the_language_that_was_saved_with_it(tmp_path: Path) -> None:
    found = []
    for language in models.LANGUAGES:
        place = models.make_xmod(tmp_path / language, default_language=language)
        found.append(DenseEncoder(place, device="cpu"))
    assert np.abs(found[0].encode_query([QUERY]) - found[1].encode_query([QUERY])).max() > 1e-3
    assert found[0].fingerprint != found[1].fingerprint


def test_a_saved_encoder_keeps_its_language(undecided: Path, tmp_path: Path) -> None:
    from sentence_transformers import MultiVectorEncoder as Oracle

    ours = encoder(undecided, "de_DE")
    ours.save(tmp_path / "saved")
    assert ours.model[0].model.config.default_language is None
    again = encoder(tmp_path / "saved")
    assert (again.language, again.fingerprint) == ("de_DE", ours.fingerprint)
    plain = Oracle(str(tmp_path / "saved"), device="cpu").encode_query([QUERY], convert_to_numpy=True)
    np.testing.assert_allclose(plain[0], ours.encode_query([QUERY]).values, atol=1e-5)


@pytest.mark.parametrize("given", ["folder", "object"])
def test_an_index_remembers_its_languages(folder: Path, tmp_path: Path, given: str) -> None:
    ours = encoder(folder, "de_DE", "en_XX")
    if given == "object":
        ours = MultiVectorEncoder(ours.model, language="de_DE", query_language="en_XX")
    with Retriever.build(tmp_path / "idx", DOCUMENTS, encoder=ours) as built:
        wanted = built.search(QUERY, k=3)
    with Retriever.open(tmp_path / "idx", device="cpu") as retriever:
        found: Any = retriever.encoder
        assert (found.language, found.query_language) == ("de_DE", "en_XX")
        assert retriever.search(QUERY, k=3) == wanted
        german = retriever.search(QUERY, k=3, language="de_DE")
        assert [hit.score for hit in german] != [hit.score for hit in wanted]
        assert [hit.score for hit in retriever.search([QUERY], k=3, language="en_XX")[0]] == [
            hit.score for hit in wanted
        ]
        told = retriever.explain(QUERY, german[0].id, language="de_DE")
        assert told.score == pytest.approx(german[0].score, rel=1e-6)
        retriever.add([Document("more", models.TEXTS[0])])
        assert {hit.score for hit in retriever.search(QUERY, k=20) if hit.id in ("more", "d0")} == {
            hit.score for hit in retriever.search(QUERY, k=20) if hit.id == "d0"
        }
        with pytest.raises(EncoderError, match="no adapter for the language 'fr_XX', but for en_XX, de_DE"):
            retriever.search(QUERY, language="fr_XX")
    with pytest.raises(EncoderMismatchError):
        Retriever.open(tmp_path / "idx", encoder=encoder(folder, "en_XX"))


def test_what_does_not_fit_is_named(folder: Path, undecided: Path, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="none is chosen: give one of en_XX, de_DE"):
        encoder(undecided)
    with pytest.raises(EncoderError, match="no adapter for the language 'de', but for en_XX, de_DE"):
        encoder(undecided, "de")
    with pytest.raises(EncoderError, match="no adapter for the language 'fr_XX'"):
        encoder(undecided, "de_DE", "fr_XX")
    with pytest.raises(EncoderError, match="no adapter for the language 'fr_XX'"):
        encoder(folder).encode_document([], language="fr_XX")
    with pytest.raises(EncoderError, match="no adapter for the language 'xx', but"):
        encoder(models.copy_with(folder, tmp_path / "odd", "config.json", default_language="xx"))
    plain = models.make_multi_vector(tmp_path / "plain")
    with pytest.raises(EncoderError, match="'de_DE' is given, and the model has no adapters"):
        encoder(plain, "de_DE")
    with pytest.raises(EncoderError, match="'de_DE' is given, and the model has no adapters"):
        encoder(plain).encode_query(["a"], language="de_DE")
    with pytest.raises(EncoderError, match="is a dense encoder: a language is chosen for multi-vector models"):
        load_encoder(models.minilm_folder(), language="en_XX")
    with pytest.raises(SpecError, match=r"bm25\(language=german\)"):
        load_encoder("bm25", language="german")
    with pytest.raises(EncoderError, match="made already"):
        load_encoder(encoder(folder), language="de_DE")
    with pytest.raises(EncoderError, match="none is chosen"):
        DenseEncoder(models.make_xmod(tmp_path / "xmod"), device="cpu")
    with Retriever.build(tmp_path / "idx", DOCUMENTS) as retriever, pytest.raises(EncoderError, match="LexicalEncoder"):
        retriever.search(QUERY, language="de_DE")


def test_the_command_line_passes_languages_on(undecided: Path, tmp_path: Path) -> None:
    run = CliRunner()
    source, index = tmp_path / "docs.jsonl", str(tmp_path / "idx")
    _lines(source, ({"id": one.id, "text": one.text} for one in DOCUMENTS))
    build = ["index", "build", str(source), "-o", index, "--encoder", str(undecided), "--device", "cpu"]
    refused = run.invoke(app, build)
    assert refused.exit_code == 1
    assert "give one of en_XX, de_DE" in refused.output
    done = run.invoke(app, [*build, "--language", "de_DE", "--query-language", "en_XX"])
    assert done.exit_code == 0, done.output
    assert "de_DE, queries in en_XX" in run.invoke(app, ["index", "info", index]).stdout

    def scores(*options: str) -> list[float]:
        found = run.invoke(app, ["search", index, QUERY, "--format", "json", "--device", "cpu", *options])
        assert found.exit_code == 0, found.output
        return [hit["score"] for hit in json.loads(found.stdout)["hits"]]

    assert scores() == scores("--language", "en_XX") != scores("--language", "de_DE")
    assert run.invoke(app, ["search", index, QUERY, "--language", "de_DE", "--explain"]).exit_code == 0
    vectors = []
    for language in models.LANGUAGES:
        place = tmp_path / f"{language}.npz"
        encode = ["encode", str(source), "-o", str(place), "--encoder", str(undecided), "--language", language]
        assert run.invoke(app, encode).exit_code == 0
        vectors.append(np.load(place)["values"])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set of 24 sentences, a BEIR folder for development, both English."""
    root = tmp_path_factory.mktemp("training")
    words = ["aspirin", "blood", "debian", "file", "fox", "package", "picture", "today", "weather", "word"]
    texts = [f"{words[n % 10]} {words[(n * 3 + 1) % 10]} of {words[(n // 3) % 10]}, {n}" for n in range(24)]
    documents = [Document(f"d{n}", f"this is about {text}.") for n, text in enumerate(texts)]
    queries = [(f"q{n}", text) for n, text in enumerate(texts)]
    positives = [(f"q{n}", f"d{n}") for n in range(24)]
    negatives = [(f"q{n}", f"d{(n + 5) % 24}") for n in range(24)]
    TrainingSet.build(root / "set", queries[:16], documents, positives[:16], [*positives[:16], *negatives[:16]])
    (root / "beir" / "qrels").mkdir(parents=True)
    _lines(root / "beir" / "corpus.jsonl", ({"_id": one.id, "title": "", "text": one.text} for one in documents))
    _lines(root / "beir" / "queries.jsonl", ({"_id": id, "text": text} for id, text in queries[16:]))
    grades = "".join(f"q{n}\td{n}\t1\n" for n in range(16, 24))
    (root / "beir" / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + grades)
    return root


def _lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _recipe(training: Path, start: Path, output: Path) -> Recipe:
    """The shipped recipe, made small."""
    recipe = Recipe.load("colbert-xm", [f"model.start={start}", "model.language=en_XX", f"output={output}"])
    return replace(
        recipe,
        data=replace(recipe.data, set=str(training / "set")),
        batches=replace(recipe.batches, size=4),
        optimiser=replace(recipe.optimiser, steps=4, rate=1e-2),
        development=replace(recipe.development, data=str(training / "beir"), every=2, average=2),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("own_norm", [False, True])
def test_training_changes_what_languages_share_and_nothing_else(
    training: Path, tmp_path: Path, precision: str, own_norm: bool
) -> None:
    from transformers import AutoModel

    from retrievers.training.run import train

    start = models.make_xmod(tmp_path / "start", adapter_layer_norm=own_norm)
    recipe = _recipe(training, start, tmp_path / "run")
    recipe = replace(recipe, optimiser=replace(recipe.optimiser, precision=precision))
    recipe = replace(recipe, batches=replace(recipe.batches, chunk=3 if precision == "bf16" else 0))
    done = train(recipe, device="cpu")
    before, after = (AutoModel.from_pretrained(place) for place in (start, done.model))
    assert after.config.default_language == "en_XX"
    kept, changed = set(), set()
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, weights in old.items():
        (kept if weights.equal(new[name]) else changed).add(name)
    frozen = {name for name in old if "adapter" in name or name.startswith("embeddings.")}
    unused = {name for name in old if name.startswith("pooler.")}
    # The bias of keys adds the same to every score of a query, which a softmax takes away.
    inert = {name for name in old if name.endswith("attention.self.key.bias")}
    assert sum("adapter_modules.de_DE" in name for name in frozen) == 8
    assert any("adapter_layer_norm" in name for name in frozen) == own_norm
    assert frozen | unused <= kept <= frozen | unused | inert
    ours = encoder(done.model)
    assert ours.language == "en_XX"
    assert ours.encode_query([QUERY])[0].shape == (32, 128)
    assert len(ours.encode_document(["a " * 400])[0]) == 256
    again = encoder(done.model, "de_DE")
    assert np.abs(again.encode_query([QUERY]).values - ours.encode_query([QUERY]).values).max() > 1e-3
    with Retriever.build(tmp_path / "idx", DOCUMENTS, encoder=again) as retriever:
        assert len(retriever.search(QUERY, k=3)) == 3


def test_training_goes_on_from_what_was_trained(folder: Path, tmp_path: Path) -> None:
    from retrievers.training.models import starting_model

    wanted = Model(start=str(folder), kind="multi-vector", query_length=20, language="de_DE")
    model = starting_model(wanted, (), device="cpu")
    assert model[0].model.config.default_language == "de_DE"
    assert model[0].query_expansion["length"] == 20
    model.save(str(tmp_path / "model"), create_model_card=False)
    again = encoder(tmp_path / "model")
    assert again.language == "de_DE"
    assert len(again.encode_query([QUERY])[0]) == 20
    trained = [name for name, weights in model.named_parameters() if weights.requires_grad]
    assert not any("adapter" in name or "embeddings" in name for name in trained)
    assert any(name.startswith("1.") for name in trained), "the projection"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"language": "fr_XX"}, "model.language is fr_XX: the model has no adapter for the language 'fr_XX', but for"),
        ({"language": ""}, "model.language is not set: .* none is chosen: give one of en_XX, de_DE"),
        ({"start": "splade"}, "model.language is en_XX: .* the model has no adapters for languages"),
        ({"kind": "dense"}, "model.language is for multi-vector models, and model.kind is 'dense'"),
        (
            {"kind": "dense", "language": "", "query_expansion": "none", "skip_punctuation": True},
            "model.skip_punctuation is for multi-vector models",
        ),
    ],
    ids=["unknown", "unset", "without adapters", "another kind", "punctuation"],
)
def test_a_recipe_whose_language_does_not_fit_is_refused(
    training: Path, xmod: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    from retrievers.training.run import train

    recipe = _recipe(training, xmod, tmp_path / "run")
    if "start" in settings:
        settings = {"start": str(models.splade_folder())}
    with pytest.raises(RecipeError, match=message):
        train(replace(recipe, model=replace(recipe.model, **settings)), device="cpu")
