"""The models that mteb evaluates: the measures of the real ``mteb.evaluate`` against those of this library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

mteb = pytest.importorskip("mteb", reason="mteb is not installed: pip install 'tri-retrievers[mteb]'")

import models  # noqa: E402
from datasets import Dataset  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS  # noqa: E402
from mteb.models import CrossEncoderProtocol, EncoderProtocol, SearchProtocol  # noqa: E402
from mteb.types import PromptType  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from retrievers import (  # noqa: E402
    DenseEncoder,
    Document,
    HybridRetriever,
    MultiVectorEncoder,
    Retriever,
    SparseEncoder,
    read_beir,
)
from retrievers.errors import (  # noqa: E402
    DocumentError,
    DuplicateIdError,
    EncoderError,
    IndexClosedError,
    MissingDependencyError,
    QueryError,
    SpecError,
    UnknownIdError,
)
from retrievers.evaluation import evaluate  # noqa: E402
from retrievers.mteb_models import MtebModel, MtebRetriever  # noqa: E402
from retrievers.queries import read_queries  # noqa: E402
from retrievers.runs import read_qrels  # noqa: E402

CALL: dict[str, Any] = {
    "task_metadata": None,
    "hf_split": "test",
    "hf_subset": "default",
    "encode_kwargs": {},
    "num_proc": None,
}
MEASURES = {"nDCG@10": "ndcg_at_10", "R@10": "recall_at_10", "R@100": "recall_at_100", "AP@1000": "map_at_1000"}


class Collection(NamedTuple):
    documents: list[Document]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]

    @property
    def corpus(self) -> Dataset:
        return Dataset.from_list([{"id": one.id, "title": one.title, "text": one.text} for one in self.documents])

    @property
    def asked(self) -> Dataset:
        return Dataset.from_list([{"id": id, "text": text} for id, text in self.queries.items()])


def metadata(kind: str, name: str) -> Any:
    return mteb.TaskMetadata(
        name=name,
        description="A collection on this machine",
        dataset={"path": "local/collection", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10" if kind == "Retrieval" else "cosine_spearman",
        date=("1966-01-01", "1966-12-31"),
        license="not specified",
    )


def retrieval_task(collection: Collection, top_ranked: dict[str, list[str]] | None = None) -> Any:
    class Local(AbsTaskRetrieval):
        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            part = {
                "corpus": collection.corpus,
                "queries": collection.asked,
                "relevant_docs": collection.qrels,
                "top_ranked": top_ranked,
            }
            self.dataset = {"default": {"test": part}}
            self.data_loaded = True

    Local.metadata = metadata("Retrieval", "LocalRetrieval")
    return Local()


def scores(model: Any, task: Any, cache: Path) -> dict[str, Any]:
    result = mteb.evaluate(
        model, task, cache=mteb.ResultCache(cache_path=cache), co2_tracker=False, show_progress_bar=False
    )
    return dict(result.task_results[0].scores["test"][0])


def documents(*texts: str) -> list[Document]:
    return [Document(f"d{number}", text) for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def cranfield(collections: Path) -> Collection:
    """All of it."""
    folder = collections / "cranfield"
    queries = {query.id: query.text for query in read_queries(str(folder / "queries.jsonl"))}
    qrels = read_qrels(folder / "qrels" / "test.tsv")
    queries = {id: text for id, text in queries.items() if id in qrels}
    return Collection(list(read_beir(folder)), queries, qrels)


@pytest.fixture(scope="module")
def some(cranfield: Collection) -> Collection:
    """40 queries, the documents judged for them, and 60 more, each cut to 150 characters, which are quick to encode."""
    queries = dict(list(cranfield.queries.items())[:40])
    qrels = {id: cranfield.qrels[id] for id in queries}
    judged = {id for grades in qrels.values() for id in grades}
    others = [one for one in cranfield.documents if one.id not in judged][:60]
    kept = [one for one in cranfield.documents if one.id in judged] + others
    return Collection([Document(one.id, one.text[:150], one.title) for one in kept], queries, qrels)


def token_model() -> Any:
    """MiniLM's token vectors, normalised."""
    import sentence_transformers
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformer = Transformer(str(models.minilm_folder()))
    modules = [transformer, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return sentence_transformers.MultiVectorEncoder(modules=modules, device="cpu")


ENCODERS: dict[str, Callable[[], Any]] = {
    "dense": lambda: DenseEncoder(models.minilm_folder()),
    "sparse": lambda: SparseEncoder(models.splade_folder()),
    "multi-vector": lambda: MultiVectorEncoder(token_model()),
}


class Unknown:
    """Something that searches, and does not tell what it is."""

    def __init__(self, retriever: Retriever | None = None) -> None:
        self.search = None if retriever is None else retriever.search


def check_equal(model: Any, searcher: Any, collection: Collection, cache: Path) -> dict[str, Any]:
    ours = evaluate(searcher, collection.queries, collection.qrels, list(MEASURES), k=1000).means
    theirs = scores(model, retrieval_task(collection), cache)
    assert {name: theirs[key] for name, key in MEASURES.items()} == {name: round(ours[name], 5) for name in MEASURES}
    assert theirs["ndcg_at_10"] > 0.25
    return theirs


@pytest.mark.slow
def test_bm25_has_the_measures_of_our_evaluation(cranfield: Collection, tmp_path: Path) -> None:
    model = MtebModel("bm25", folder=tmp_path / "work")
    with Retriever.build(tmp_path / "idx", cranfield.documents) as retriever:
        check_equal(model, retriever, cranfield, tmp_path / "cache")
    assert list((tmp_path / "work").iterdir()) == []
    (result,) = (tmp_path / "cache").rglob("LocalRetrieval.json")
    assert model.encoder.fingerprint[:16] in result.parent.name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENCODERS)
def test_models_have_the_measures_of_our_evaluation(some: Collection, kind: str, tmp_path: Path) -> None:
    encoder = ENCODERS[kind]()
    assert encoder.kind == kind
    with Retriever.build(tmp_path / "idx", some.documents, encoder=encoder) as retriever:
        theirs = check_equal(MtebModel(encoder, folder=tmp_path / "work"), retriever, some, tmp_path / "cache")
        assert list((tmp_path / "work").iterdir()) == []
        again = scores(MtebRetriever(retriever), retrieval_task(some), tmp_path / "cache")
    assert {key: again[key] for key in MEASURES.values()} == {key: theirs[key] for key in MEASURES.values()}


@pytest.mark.slow
def test_a_hybrid_has_the_measures_of_our_evaluation(some: Collection, tmp_path: Path) -> None:
    with (
        Retriever.build(tmp_path / "lexical", some.documents) as lexical,
        Retriever.build(tmp_path / "dense", some.documents, encoder=ENCODERS["dense"]()) as dense,
    ):
        hybrid = HybridRetriever([lexical, dense])
        theirs = check_equal(MtebRetriever(hybrid), hybrid, some, tmp_path / "cache")
        alone = scores(MtebRetriever(lexical), retrieval_task(some), tmp_path / "cache")
    assert theirs["ndcg_at_10"] != alone["ndcg_at_10"]


@pytest.mark.slow
@pytest.mark.parametrize("index", ["flat", "hnsw(m=8)"])
def test_top_ranked_keeps_the_search_to_these_documents(
    some: Collection, prompted: Path, index: str, tmp_path: Path
) -> None:
    encoder = DenseEncoder(prompted)
    candidates = {query: [one.id for one in some.documents[at::40]] for at, query in enumerate(some.queries)}
    expected = {}
    with Retriever.build(tmp_path / "idx", some.documents, encoder=encoder) as retriever:
        for query, text in some.queries.items():
            hits = retriever.search(text, len(some.documents))
            expected[query] = [hit.id for hit in hits if hit.id in candidates[query]]
        assert all(len(expected[query]) == len(candidates[query]) for query in expected)
        for model in (MtebModel(encoder, index=index), MtebRetriever(retriever)):
            model.index(some.corpus, **CALL)
            run = model.search(some.asked, top_k=5, top_ranked=candidates, **CALL)
            assert {query: list(found) for query, found in run.items()} == {
                query: ids[:5] for query, ids in expected.items()
            }
        qrels = {query: {ids[0]: 1} for query, ids in expected.items()}
        reranking = retrieval_task(Collection(some.documents, some.queries, qrels), candidates)
        assert scores(MtebModel(encoder, index=index), reranking, tmp_path / "cache")["ndcg_at_1"] == 1.0
        full = retrieval_task(Collection(some.documents, some.queries, qrels))
        assert scores(MtebModel(encoder, index=index), full, tmp_path / "full")["ndcg_at_1"] < 0.5


def test_top_ranked_with_bm25_has_the_scores_of_the_whole_collection() -> None:
    corpus = Collection(documents("red cat", "red dog", "blue cat cat", "green"), {"q": "red cat", "r": "cat"}, {})
    model = MtebModel()
    model.index(corpus.corpus, **CALL)
    full = model.search(corpus.asked, top_k=10, **CALL)
    assert set(full["q"]) == {"d0", "d1", "d2"}
    model.index(corpus.corpus, **CALL)
    kept = model.search(corpus.asked, top_k=10, top_ranked={"q": ["d1", "d3", "d2", "d1", "gone"]}, **CALL)
    assert kept == {"q": {id: full["q"][id] for id in full["q"] if id != "d0"}, "r": {}}


def test_equal_scores_keep_the_order_of_the_hits(tmp_path: Path) -> None:
    # By the bare scores, which are equal, mteb would put d1 first.
    collection = Collection(documents("same words", "same words", "others"), {"q": "same"}, {"q": {"d0": 1}})
    with Retriever.build(tmp_path / "idx", collection.documents) as retriever:
        first, second = retriever.search("same")
        assert (first.id, second.id, first.score) == ("d0", "d1", second.score)
        for number, model in enumerate((MtebModel(), MtebRetriever(retriever))):
            assert scores(model, retrieval_task(collection), tmp_path / f"cache{number}")["ndcg_at_1"] == 1.0


def test_a_query_that_finds_nothing_counts_as_zero(tmp_path: Path) -> None:
    queries, qrels = {"q": "word", "none": "zebra"}, {"q": {"d0": 1}, "none": {"d1": 1}}
    collection = Collection(documents("a word", "other text"), queries, qrels)
    assert scores(MtebModel(), retrieval_task(collection), tmp_path)["ndcg_at_10"] == 0.5


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dense model with prompts."""
    folder = tmp_path_factory.mktemp("prompted") / "model"
    return models.make_dense(folder, prompts={"query": "find this: ", "document": "text: "})


def test_protocols(prompted: Path, tmp_path: Path) -> None:
    dense = MtebModel(prompted)
    lexical = MtebModel("bm25")
    sparse = MtebModel(SparseEncoder(models.splade_folder()))
    several = MtebModel(models.make_multi_vector(tmp_path / "tokens"))
    with Retriever.build(tmp_path / "idx", documents("a", "b")) as retriever:
        existing = MtebRetriever(retriever)
    for model, searches_only in ((dense, False), (lexical, True), (sparse, True), (several, True), (existing, True)):
        assert isinstance(model, SearchProtocol)
        assert isinstance(model, EncoderProtocol) != searches_only
        assert hasattr(model, "encode") != searches_only
        assert not isinstance(model, CrossEncoderProtocol)
        assert not hasattr(model, "predict")
    types = [model.mteb_model_meta.model_type for model in (dense, lexical, sparse, several, existing)]
    assert types == [["dense"], ["sparse"], ["sparse"], ["late-interaction"], ["sparse"]]
    assert str(several.mteb_model_meta.similarity_fn_name.value) == "MaxSim"
    assert dense.mteb_model_meta.use_instructions
    assert not lexical.mteb_model_meta.use_instructions
    assert type(dense.mteb_model_meta).model_validate(dense.mteb_model_meta.model_dump())  # what create_empty skips


def test_dense_models_encode_each_side_with_its_prompt(prompted: Path) -> None:
    model, encoder = MtebModel(prompted), DenseEncoder(prompted)
    texts = [text for text in models.TEXTS if text.strip()]
    loader = DataLoader(Dataset.from_dict({"text": texts}), batch_size=3)
    call = {key: CALL[key] for key in ("task_metadata", "hf_split", "hf_subset")}
    queries = model.encode(loader, prompt_type=PromptType.query, batch_size=32, **call)
    others = model.encode(loader, prompt_type=PromptType.document, **call)
    np.testing.assert_allclose(queries, encoder.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(others, encoder.encode_document(texts), atol=1e-6)
    np.testing.assert_array_equal(model.encode(loader, **call), others)
    assert np.abs(queries - others).max() > 0.01
    expected = queries @ others.T
    np.testing.assert_allclose(np.asarray(model.similarity(3 * queries, others)), expected, atol=1e-5)
    np.testing.assert_allclose(np.asarray(model.similarity_pairwise(queries, 2 * others)), np.diag(expected), atol=1e-5)


def test_the_search_uses_the_prompts(prompted: Path) -> None:
    collection = Collection(documents("one text", "another"), {"q": "which text"}, {})
    model, encoder = MtebModel(prompted), DenseEncoder(prompted)
    model.index(collection.corpus, **CALL)
    run = model.search(collection.asked, top_k=2, **CALL)
    expected = encoder.encode_document(["one text", "another"]) @ encoder.encode_query(["which text"])[0]
    bare = encoder.encode_document(["one text", "another"]) @ encoder.encode_document(["which text"])[0]
    np.testing.assert_allclose([run["q"]["d0"], run["q"]["d1"]], expected, atol=1e-5)
    assert np.abs(expected - bare).max() > 1e-3


@pytest.mark.slow
def test_a_similarity_task_without_search(tmp_path: Path) -> None:
    pairs = [
        ("a cat sits outside", "a cat is in the garden", 4.0),
        ("a man plays a guitar", "the stock market fell", 0.0),
        ("she cooks dinner", "a woman is preparing a meal", 4.5),
        ("the plane takes off", "an aircraft on the ground", 2.0),
        ("he reads a book", "two dogs run", 0.5),
    ]
    first, second, grades = map(list, zip(*pairs, strict=True))

    class LocalSimilarity(AbsTaskSTS):
        min_score, max_score = 0, 5

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "score": grades})
            self.dataset = {"test": rows}
            self.data_loaded = True

    LocalSimilarity.metadata = metadata("STS", "LocalSimilarity")
    encoder = DenseEncoder(models.minilm_folder())
    cosines = (encoder.encode_document(first) * encoder.encode_document(second)).sum(axis=1)
    expected = spearmanr(cosines, grades).statistic
    assert scores(MtebModel(encoder), LocalSimilarity(), tmp_path)["cosine_spearman"] == pytest.approx(
        expected, abs=1e-5
    )


def test_revisions_tell_models_apart(prompted: Path, tmp_path: Path) -> None:
    other = models.make_dense(tmp_path / "model", prompts={"query": "ask: "})  # a folder of the same name
    made = {
        "bm25": MtebModel("bm25"),
        "k1": MtebModel("bm25(k1=0.9)"),
        "dense": MtebModel(prompted),
        "other prompts": MtebModel(other),
        "other index": MtebModel(prompted, index="hnsw(m=8)"),
        "other type": MtebModel(prompted, dtype="bfloat16"),
    }
    revisions = {label: model.mteb_model_meta.revision for label, model in made.items()}
    assert len(set(revisions.values())) == len(made)
    assert made["dense"].mteb_model_meta.name == made["other prompts"].mteb_model_meta.name == "retrievers/model"
    assert all(revisions[label].startswith(model.encoder.fingerprint[:16]) for label, model in made.items())
    assert MtebModel(DenseEncoder(prompted)).mteb_model_meta.revision == revisions["dense"]
    assert MtebModel("bm25", name="mine").mteb_model_meta.name == "retrievers/mine"
    assert MtebModel("bm25", name="org/mine").mteb_model_meta.name == "org/mine"


def test_revisions_tell_retrievers_apart(tmp_path: Path) -> None:
    with (
        Retriever.build(tmp_path / "one", documents("a")) as one,
        Retriever.build(tmp_path / "two", documents("a"), encoder="bm25(k1=0.9)") as two,
    ):
        assert MtebRetriever(one).mteb_model_meta.revision == MtebModel().mteb_model_meta.revision
        assert MtebRetriever(one).mteb_model_meta.name == "retrievers/one"

        def hybrid(weights: tuple[float, ...] | None, *parts: Retriever) -> str:
            fused = HybridRetriever(parts, weights=weights)
            return str(MtebRetriever(fused).mteb_model_meta.revision)

        assert len({hybrid(None, one, two), hybrid(None, two, one), hybrid((1.0, 2.0), one, two)}) == 3
        assert hybrid(None, one, two) == hybrid(None, one, two)
        # Nothing tells these two apart: each gets a revision of its own, unless one is given.
        unknown = [MtebRetriever(Unknown(one)).mteb_model_meta.revision for _ in range(2)]
        assert unknown[0] != unknown[1]
        assert MtebRetriever(Unknown(one), revision="v1").mteb_model_meta.revision == "v1"


def test_a_retriever_must_hold_the_corpus(tmp_path: Path) -> None:
    corpus = Collection(documents("a cat", "a dog", "a bird"), {"q": "cat"}, {})
    less = MtebRetriever(Retriever.build(tmp_path / "less", corpus.documents[:1]))
    with pytest.raises(UnknownIdError, match=r"lacks 2 of the 3 documents of the corpus, the first with id 'd1'"):
        less.index(corpus.corpus, **CALL)
    more = [*corpus.documents, Document("extra", "cat cat")]
    with Retriever.build(tmp_path / "more", more) as retriever:
        with pytest.raises(UnknownIdError, match="1 documents more than the 3 of the corpus"):
            MtebRetriever(retriever).index(corpus.corpus, **CALL)
        blind = MtebRetriever(Unknown(retriever))  # cannot say what it holds until it is found
        with pytest.raises(IndexClosedError, match="call index before search"):
            blind.search(corpus.asked, top_k=5, **CALL)
        blind.index(corpus.corpus, **CALL)
        with pytest.raises(UnknownIdError, match="id 'extra', which the corpus lacks"):
            blind.search(corpus.asked, top_k=5, **CALL)


def test_an_index_is_gone_after_its_search_and_after_a_failed_build(tmp_path: Path) -> None:
    corpus = Collection(documents("a cat", "a dog"), {"q": "cat"}, {})
    model = MtebModel(folder=tmp_path)
    model.index(corpus.corpus, **CALL)
    model.index(corpus.corpus, **CALL)
    assert len(list(tmp_path.iterdir())) == 1
    assert list(model.search(corpus.asked, top_k=5, **CALL)["q"]) == ["d0"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IndexClosedError, match="call index before each search"):
        model.search(corpus.asked, top_k=5, **CALL)
    with pytest.raises(DuplicateIdError):
        model.index(Collection([*corpus.documents, corpus.documents[0]], {}, {}).corpus, **CALL)
    assert list(tmp_path.iterdir()) == []
    model.index(corpus.corpus, **CALL)
    model.close()
    assert list(tmp_path.iterdir()) == []


def test_titles_instructions_and_conversations() -> None:
    corpus = Dataset.from_list(
        [{"id": "a", "title": "zebra", "text": "stripes"}, {"id": "b", "title": None, "text": "plain"}]
    )
    model = MtebModel()
    model.index(corpus, **CALL)
    asked = Dataset.from_list(
        [{"id": "1", "text": "unrelated", "instruction": "zebra"}, {"id": "2", "text": "plain", "instruction": None}]
    )
    run = model.search(asked, top_k=5, **CALL)
    assert {query: list(found) for query, found in run.items()} == {"1": ["a"], "2": ["b"]}
    model.index(corpus, **CALL)
    turns = [{"role": "user", "content": "zebra"}, {"role": "assistant", "content": "what of it"}]
    talk = Dataset.from_list([{"id": "1", "text": turns}])
    assert list(model.search(talk, top_k=5, **CALL)["1"]) == ["a"]
    model.index(corpus, **CALL)
    talk = Dataset.from_list([{"id": "1", "text": ["what", "plain"], "instruction": "stripes"}])
    assert set(model.search(talk, top_k=5, **CALL)["1"]) == {"a", "b"}


def test_what_is_refused() -> None:
    corpus = Collection(documents("a cat"), {"q": "cat"}, {})
    model = MtebModel()
    precise = {**CALL, "encode_kwargs": {"precision": "int8"}}
    with pytest.raises(EncoderError, match="precision='int8' is not applied"):
        model.index(corpus.corpus, **precise)
    with pytest.raises(DocumentError, match="document 'x' of the corpus has no text"):
        model.index(Dataset.from_list([{"id": "x", "image": "y"}]), **CALL)
    model.index(corpus.corpus, **CALL)
    with pytest.raises(QueryError, match="query 'q' has no text"):
        model.search(Dataset.from_list([{"id": "q", "text": None}]), top_k=5, **CALL)
    with pytest.raises(SpecError, match="flat takes vectors of dense encoders"):
        MtebModel("bm25", index="flat")


def test_mteb_is_imported_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys, retrievers.mteb_models; sys.exit(any(name in sys.modules for name in ('mteb', 'torch', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
    monkeypatch.setitem(sys.modules, "mteb", None)
    for make in (MtebModel, lambda: MtebRetriever(Unknown())):
        with pytest.raises(MissingDependencyError, match=r"pip install 'tri-retrievers\[mteb\]'"):
            make()
