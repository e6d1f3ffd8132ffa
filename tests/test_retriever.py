"""The retriever as its users see it, against an exhaustive search in plain Python."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers import Document, Retriever, verify
from retrievers.errors import (
    BuildChangedError,
    DocumentError,
    DuplicateIdError,
    EncoderError,
    EncoderMismatchError,
    FilterTypeError,
    IndexClosedError,
    IndexExistsError,
    IndexFormatError,
    IndexNotFoundError,
    QueryError,
    SpecError,
    UnknownIdError,
    VectorError,
    WriterLockedError,
)
from retrievers.filters import matches, parse_filter
from retrievers.indexes.manifest import FORMAT, Manifest
from retrievers.writer import Writer

KINDS = ["lexical", "dense", "sparse", "multi-vector"]
INDEXES = [
    ("lexical", "inverted"),
    ("lexical", "inverted(compact=true)"),
    ("sparse", "inverted"),
    ("sparse", "inverted(bits=8)"),
    ("dense", "flat"),
    ("dense", "hnsw"),
    ("dense", "ivf"),
    ("dense", "ivfpq"),
    ("dense", "rabitq"),
    ("dense", "sq8"),
    ("dense", "binary"),
    ("multi-vector", "maxsim"),
    ("multi-vector", "maxsim(dtype=int8)"),
]


def encoder(kind: str) -> Any:
    return "bm25" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]


def reopened(path: Path, kind: str) -> Retriever:
    return Retriever.open(path, encoder=None if kind == "lexical" else HashEncoder(kind))  # type: ignore[arg-type]


def collection(n: int, seed: int = 0) -> list[Document]:
    rng = np.random.default_rng(seed)
    words = [f"w{at}" for at in range(200)]
    return [
        Document(
            f"doc-{seed}-{at}",
            " ".join(rng.choice(words, size=int(rng.integers(1, 30)))),
            title=f"Title {at % 5}",
            metadata={"year": 2000 + at % 20, "lang": ["en", "de", "fr"][at % 3], "rank": at},
        )
        for at in range(n)
    ]


def ranking(retriever: Retriever, query: str, k: int, **options: Any) -> list[tuple[str, float]]:
    return [(hit.id, hit.score) for hit in retriever.search(query, k=k, **options)]


@pytest.mark.parametrize("kind", KINDS)
def test_changes_give_what_a_fresh_build_gives(kind: str, tmp_path: Path) -> None:
    first, later = collection(300), collection(200, seed=1)
    gone = [document.id for document in first[::3]] + [later[5].id]
    with Retriever.build(tmp_path / "changed", first, encoder=encoder(kind)) as changed:
        assert changed.add(later[:150]) == 150
        assert changed.add(later[150:]) == 50
        assert changed.delete(gone) == len(gone)
        left = [document for document in first + later if document.id not in set(gone)]
        with Retriever.build(tmp_path / "fresh", reversed(left), encoder=encoder(kind)) as fresh:
            queries = ["w1 w2 w3", "w7", "Title 3 w100 w150 w7 w7", "nothing here"]
            for query in queries:
                for k in (1, 10, 1000):
                    assert ranking(changed, query, k) == ranking(fresh, query, k)
            year = {"field": "year", "operator": ">=", "value": 2012}
            assert ranking(changed, "w1 w2 w3", 50, filter=year) == ranking(fresh, "w1 w2 w3", 50, filter=year)
            assert changed.merge() == 1
            for query in queries:
                assert ranking(changed, query, 50) == ranking(fresh, query, 50)
        assert verify(tmp_path / "changed") == []
        with reopened(tmp_path / "changed", kind) as again:
            assert len(again) == len(left)
            assert ranking(again, "w1 w2 w3", 50) == ranking(changed, "w1 w2 w3", 50)


@pytest.mark.parametrize(("kind", "index"), INDEXES)
def test_filters_are_exact_at_every_selectivity(kind: str, index: str, tmp_path: Path) -> None:
    documents = collection(700)
    with Retriever.build(tmp_path / "idx", documents[:500], encoder=encoder(kind), index=index) as retriever:
        retriever.add(documents[500:])
        retriever.delete([document.id for document in documents[::11]])
        live = [document for at, document in enumerate(documents) if at % 11]
        # Permitting everything is the exhaustive search.
        everything = {"field": "rank", "operator": ">=", "value": 0}
        for query in ("w1 w2 w3 w50", "w9 w11"):
            exhaustive = ranking(retriever, query, len(live), filter=everything)
            assert len(exhaustive) <= len(live)
            if kind in ("dense", "multi-vector"):
                assert len(exhaustive) == len(live)
            for bound in (-1, 0, 7, 70, 350, 690, 699, 10_000):
                condition = {"field": "rank", "operator": "<=", "value": bound}
                permitted = {d.id for d in live if matches(parse_filter(condition), d.metadata)}
                wanted = [hit for hit in exhaustive if hit[0] in permitted]
                for k in (1, 10, 1000):
                    assert ranking(retriever, query, k, filter=condition) == wanted[:k]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_the_order_of_ids(kind: str, tmp_path: Path) -> None:
    names = ["b", "a", "Z", "é", "10", "9", "aa", "日本", "\U0001f600", "A b"]
    with Retriever.build(
        tmp_path / "idx", [Document(name, "same text") for name in names[:5]], encoder=encoder(kind)
    ) as r:
        r.add([Document(name, "same text") for name in names[5:]])
        assert [hit.id for hit in r.search("same text", k=20)] == sorted(names)
        assert [hit.id for hit in r.search("same text", k=3)] == sorted(names)[:3]
        r.merge()
        assert [hit.id for hit in r.search("same text", k=3)] == sorted(names)[:3]


@pytest.mark.parametrize("kind", KINDS)
def test_batches_answer_as_single_queries_do(kind: str, tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", collection(400), encoder=encoder(kind)) as retriever:
        queries = [f"w{at} w{at * 7 % 200} w{at * 3 % 200}" for at in range(60)]
        many = retriever.search(queries, k=7)
        assert many == [retriever.search(query, k=7) for query in queries]
        assert retriever.search([], k=7) == []
        answers: dict[int, Any] = {}

        def ask(at: int) -> None:
            answers[at] = retriever.search(queries[at], k=7)

        threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(queries))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answers[at] for at in range(len(queries))] == many


@pytest.mark.parametrize("kind", KINDS)
def test_explanations_sum_to_the_score(kind: str, tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", collection(200), encoder=encoder(kind)) as retriever:
        for hit in retriever.search("w1 w2 w3", k=5):
            explanation = retriever.explain("w1 w2 w3", hit.id)
            assert explanation.score == hit.score
            if kind != "dense":
                assert sum(part.score for part in explanation.contributions) == pytest.approx(hit.score, rel=1e-5)
            if kind == "lexical":
                assert {part.term for part in explanation.contributions} <= {"w1", "w2", "w3"}
        with pytest.raises(UnknownIdError, match="no document with id 'nobody'"):
            retriever.explain("w1", "nobody")


ids = st.text(min_size=1, max_size=60).filter(lambda text: text.encode(errors="ignore").decode() == text)


@settings(max_examples=40, deadline=None)
@given(names=st.lists(ids, min_size=1, max_size=12, unique=True), data=st.data())
def test_any_id_and_text_come_back(
    names: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ids") / "idx"
    texts = [data.draw(st.text(max_size=40).filter(lambda t: t.encode(errors="ignore").decode() == t)) for _ in names]
    documents = [
        Document(name, text, metadata={"n": at, "deep": {"list": [at, None, "x"]}})
        for at, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    with Retriever.build(path, documents, encoder=HashEncoder("dense")) as retriever:
        assert {hit.id for hit in retriever.search("x", k=100)} == set(names)
        for document in documents:
            assert retriever.get(document.id) == document
            assert document.id in retriever
        retriever.delete(names[0])
        assert names[0] not in retriever
        with pytest.raises(UnknownIdError):
            retriever.get(names[0])


def test_long_ids_and_empty_texts_come_back(tmp_path: Path) -> None:
    documents = [Document("x" * 1000, ""), Document("a\tb c\n'd\"", "text"), Document("nul\0inside", "nul\0text")]
    with Retriever.build(tmp_path / "idx", documents) as retriever:
        for document in documents:
            assert retriever.get(document.id) == document
        assert [hit.id for hit in retriever.search("text")] == ["a\tb c\n'd\"", "nul\0inside"]
        assert len(retriever) == 3


def test_an_empty_collection_can_be_searched_and_filled(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", []) as retriever:
        assert retriever.search("anything") == []
        assert retriever.search(["a", "b"], filter={"field": "x", "operator": "==", "value": 1}) == [[], []]
        retriever.add([Document("a", "anything")])
        assert [hit.id for hit in retriever.search("anything")] == ["a"]
        retriever.delete("a")
        assert retriever.search("anything") == []
        assert len(retriever) == 0
        retriever.add([Document("a", "anything else")])
        assert retriever.get("a").text == "anything else"


def test_readers_keep_their_snapshot(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", collection(50)) as writer, Retriever.open(tmp_path / "idx") as reader:
        before = reader.search("w1 w2", k=100)
        writer.add([Document("new", "w1 w2")])
        writer.delete([hit.id for hit in before[:3]])
        writer.merge()
        assert reader.search("w1 w2", k=100) == before
        assert [reader.get(hit.id) for hit in before] == [hit.document for hit in before]
        assert reader.refresh() is True
        assert reader.refresh() is False
        assert reader.search("w1 w2", k=100) == writer.search("w1 w2", k=100)
        assert "new" in {hit.id for hit in reader.search("w1 w2", k=100)}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Retriever.build(tmp_path / "idx", collection(5)) as retriever, Writer.begin(tmp_path / "idx"):
        for change in (lambda: retriever.add([Document("x", "y")]), lambda: retriever.delete("x"), retriever.merge):
            with pytest.raises(WriterLockedError, match="being written"):
                change()


def test_duplicate_ids_are_refused_with_both_places(tmp_path: Path) -> None:
    lines = [{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "a", "text": "three"}]
    source = tmp_path / "docs.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    from retrievers import read_jsonl

    with pytest.raises(DuplicateIdError, match=r"docs\.jsonl, line 1.*docs\.jsonl, line 3"):
        Retriever.build(tmp_path / "idx", read_jsonl(source))
    assert not (tmp_path / "idx").exists()
    with Retriever.build(tmp_path / "idx", [Document("a", "x")]) as retriever:
        with pytest.raises(DuplicateIdError, match=r"document 1 \(already in the index\), and document 2"):
            retriever.add([Document("c", "x"), Document("a", "y")])
        with pytest.raises(DuplicateIdError, match="document 1, and document 2"):
            retriever.add([Document("c", "x"), Document("c", "y")])
        assert len(retriever) == 1
        assert "c" not in Retriever.open(tmp_path / "idx")


@pytest.mark.parametrize("kind", KINDS)
def test_duplicates_across_segments_are_refused(kind: str, tmp_path: Path) -> None:
    documents = [Document(f"d{at}", "w" * 3000) for at in range(6000)]
    with pytest.raises(DuplicateIdError, match="document 1, and document 6001"):
        Retriever.build(tmp_path / "idx", [*documents, documents[0]], encoder=encoder(kind), memory=16 << 20)


class StopError(Exception):
    pass


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi-vector"])
@pytest.mark.parametrize("stop_at", [10, 1024, 3000, 4999])
def test_a_stopped_build_encodes_nothing_twice(kind: Any, stop_at: int, tmp_path: Path) -> None:
    documents = [Document(f"d{at}", f"w{at % 97} w{at % 89} " * 20, metadata={"at": at}) for at in range(5000)]

    def stopping() -> Any:
        for at, document in enumerate(documents):
            if at == stop_at:
                raise StopError
            yield document

    first, second = HashEncoder(kind), HashEncoder(kind)
    with pytest.raises(StopError):
        Retriever.build(tmp_path / "idx", stopping(), encoder=first, memory=16 << 20)
    if first.encoded:
        with Retriever.open(tmp_path / "idx", encoder=second) as partial:
            assert not partial.complete
            assert len(partial) <= stop_at
    with Retriever.build(tmp_path / "idx", documents, encoder=second, memory=16 << 20) as resumed:
        assert first.encoded + second.encoded == len(documents)
        assert resumed.complete
        with Retriever.build(tmp_path / "whole", documents, encoder=HashEncoder(kind)) as whole:
            for query in ("w1 w2", "w96 w88"):
                assert ranking(resumed, query, 20) == ranking(whole, query, 20)


def test_a_stopped_build_refuses_other_documents_and_options(tmp_path: Path) -> None:
    documents = [Document(f"d{at}", "word " * 500) for at in range(8000)]

    def stopping() -> Any:
        yield from documents[:7000]
        raise StopError

    path = tmp_path / "idx"
    with pytest.raises(StopError):
        Retriever.build(path, stopping(), memory=16 << 20)
    assert len(Retriever.open(path)) > 0
    with pytest.raises(BuildChangedError, match="go on with the same one"):
        Retriever.build(path, documents, encoder="bm25(k1=2.0)", memory=16 << 20)
    changed = [Document("d0", "other words"), *documents[1:]]
    with pytest.raises(BuildChangedError, match="document 1: document 'd0' is not what it was"):
        Retriever.build(path, changed, memory=16 << 20)
    with pytest.raises(DuplicateIdError, match="document 2, and document 1"):
        Retriever.build(path, documents[1:], memory=16 << 20)
    with pytest.raises(BuildChangedError, match="only 10 of them came again"):
        Retriever.build(path, documents[:10], memory=16 << 20)
    with pytest.raises(BuildChangedError, match="was stopped"), Retriever.open(path) as partial:
        partial.add([Document("x", "y")])
    with Retriever.build(path, documents, memory=16 << 20) as retriever:
        assert len(retriever) == len(documents)


def test_paths_that_are_taken_are_refused(tmp_path: Path) -> None:
    Retriever.build(tmp_path / "idx", collection(3)).close()
    with pytest.raises(IndexExistsError, match="is an index of 3 documents already"):
        Retriever.build(tmp_path / "idx", collection(3))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(IndexExistsError, match="exists and is no index"):
        Retriever.build(tmp_path / "full", collection(3))
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert len(Retriever.build(tmp_path / "empty", collection(3))) == 3
    with pytest.raises(IndexNotFoundError, match="no such folder"):
        Retriever.open(tmp_path / "none")
    with pytest.raises(IndexNotFoundError, match=r"no manifest\.json"):
        Retriever.open(tmp_path / "full")


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    Retriever.build(tmp_path / "idx", collection(20), encoder=HashEncoder("dense")).close()
    with pytest.raises(EncoderMismatchError, match="Pass the encoder that built the index"):
        Retriever.open(tmp_path / "idx", encoder=HashEncoder("dense", salt="other "))
    with pytest.raises(EncoderMismatchError):
        Retriever.open(tmp_path / "idx", encoder=HashEncoder("sparse"))
    with Retriever.open(tmp_path / "idx") as retriever:
        assert retriever.get("doc-0-3").title == "Title 3"
        with pytest.raises(EncoderError, match="encoder object of your own"):
            retriever.search("w1")
    with pytest.raises(EncoderError, match="is no encoder"):
        Retriever.open(tmp_path / "idx", encoder=object())  # type: ignore[arg-type]


class _Delegate:
    """Has what another encoder has, without a member of its own."""

    def __init__(self, encoder: HashEncoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)


def test_an_encoder_may_hand_its_members_on(tmp_path: Path) -> None:
    encoder: Any = _Delegate(HashEncoder("dense"))
    with Retriever.build(tmp_path / "idx", collection(20), encoder=encoder) as retriever:
        assert retriever.search("w1", 1)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    Retriever.build(tmp_path / "idx", collection(3)).close()
    manifest = tmp_path / "idx" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', '"format": 99'))
    with pytest.raises(IndexFormatError, match=f"format 99, and this library reads up to {FORMAT}"):
        Retriever.open(tmp_path / "idx")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.search("x", k=0), QueryError, "k is 0"),
        (lambda r: r.search("x", k=2.5), QueryError, "k is 2.5"),
        (lambda r: r.search("x", k=True), QueryError, "k is True"),
        (lambda r: r.search(["x", 3]), QueryError, "query 1 is a int, 3"),
        (lambda r: r.search("x", filter={"field": "year", "operator": ">", "value": "2010"}), FilterTypeError, "year"),
        (lambda r: r.delete(["doc-0-1", "nobody", "noone"]), UnknownIdError, "'nobody', 'noone'"),
        (lambda r: r.add([Document("", "x")]), DocumentError, "document 1: field 'id' is empty"),
        (lambda r: r.add([Document("x", "y"), "z"]), DocumentError, "document 2: expected a Document, got str"),
        (lambda r: r.add([], memory=5), SpecError, "too small"),
    ],
)
def test_bad_calls_are_refused_and_change_nothing(
    call: Callable[[Retriever], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with Retriever.build(tmp_path / "idx", collection(30)) as retriever:
        before = ranking(retriever, "w1 w2 w3", 100)
        with pytest.raises(error, match=message):
            call(retriever)
        retriever.refresh()
        assert ranking(retriever, "w1 w2 w3", 100) == before
    with pytest.raises(IndexClosedError, match="is closed"):
        retriever.search("w1")


def test_kinds_that_do_not_fit_are_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="inverted"):
        Retriever.build(tmp_path / "idx", collection(3), encoder="bm25", index="hnsw")
    with pytest.raises(SpecError, match="flat"):
        Retriever.build(tmp_path / "idx", collection(3), encoder=HashEncoder("dense"), index="inverted")
    with pytest.raises(SpecError, match="maxsim"):
        Retriever.build(tmp_path / "idx", collection(3), encoder=HashEncoder("multi-vector"), index="plaid9")
    assert not (tmp_path / "idx").exists()


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("hnws", "there is no 'hnws'.*flat.*hnsw.*inverted.*maxsim.*plaid"),
        ("hnsw(m=none)", "m"),
        ("hnsw(links=32)", "links"),
        ("hnsw(m=32", r"hnsw\(m=32"),
    ],
)
def test_an_index_that_no_encoder_fills_is_refused_before_one_is_loaded(
    index: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrievers.retriever.load_encoder", never_loaded)
    with pytest.raises(SpecError, match=told):
        Retriever.build(tmp_path / "idx", collection(3), encoder="a-model", index=index)
    assert not (tmp_path / "idx").exists()


def test_a_place_that_is_taken_is_refused_before_an_encoder_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Retriever.build(tmp_path / "idx", collection(3)).close()
    monkeypatch.setattr("retrievers.retriever.load_encoder", never_loaded)
    with pytest.raises(IndexExistsError, match="3 documents already"):
        Retriever.build(tmp_path / "idx", collection(3), encoder="a-model")


def never_loaded(*_: Any, **__: Any) -> Any:
    raise AssertionError("the encoder was loaded")


class Broken(HashEncoder):
    def encode_document(self, texts: Any) -> Any:
        vectors = super().encode_document(texts)
        vectors[0, 0] = np.nan
        return vectors


def test_broken_vectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="NaN"):
        Retriever.build(tmp_path / "idx", collection(3), encoder=Broken("dense"))
    assert not (tmp_path / "idx").exists()


@pytest.mark.parametrize("index", ["bm25", "dense"])
def test_documents_are_replaced_in_one_commit(tmp_path: Path, index: str) -> None:
    encoder = "bm25" if index == "bm25" else HashEncoder("dense")
    documents = [Document(f"d{n}", f"word{n} common", metadata={"n": n}) for n in range(40)]
    with Retriever.build(tmp_path / "idx", documents, encoder=encoder) as retriever:
        generation = Manifest.read(tmp_path / "idx").generation
        changed = [Document(f"d{n}", f"changed{n} common", metadata={"n": -n}) for n in (3, 30)]
        assert retriever.replace(changed) == 2
        assert Manifest.read(tmp_path / "idx").generation == generation + 1
        assert len(retriever) == 40
        assert [retriever.get(one.id) for one in changed] == changed
        fresh = Retriever.build(
            tmp_path / "fresh", [*(one for one in documents if one.id not in ("d3", "d30")), *changed], encoder=encoder
        )
        for query in ("word3 common", "changed30 common", "common"):
            assert retriever.search(query, 40) == fresh.search(query, 40)
        fresh.close()
        for refused, error in (
            ([changed[0], Document("new", "text")], UnknownIdError),
            ([changed[0], changed[0]], DuplicateIdError),
            ([changed[0], Document("d4", 3)], DocumentError),  # type: ignore[arg-type]
        ):
            with pytest.raises(error):
                retriever.replace(refused)
        assert retriever.replace([]) == 0
        assert Manifest.read(tmp_path / "idx").generation == generation + 1
        assert retriever.get("d4") == documents[4]
