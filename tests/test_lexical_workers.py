"""Lexical encoding in several processes: the same vectors to the byte, and typed errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrievers import Document, Retriever, load_encoder
from retrievers.encoders.lexical import LexicalEncoder
from retrievers.errors import EncoderError, SpecError

OPTIONS: list[dict[str, Any]] = [{}, {"language": "german", "k1": 0.9}, {"language": "none"}, {"stopwords": False}]


def texts(n: int) -> list[str]:
    rng = np.random.default_rng(n)
    words = [
        "",
        "Häuser",
        "running",
        "the",
        "naïve",
        "日本語",
        "I'm",
        "x" * 300,
        "a.b.c",
        *(f"word{at}" for at in range(500)),
    ]
    return [" ".join(words[at] for at in rng.integers(len(words), size=size)) for size in rng.integers(0, 60, size=n)]


@pytest.fixture
def two() -> Iterator[LexicalEncoder]:
    encoder = LexicalEncoder(workers=2)
    yield encoder
    encoder.close()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("count", [2, 3])
def test_processes_give_the_same_bytes(options: dict[str, Any], count: int) -> None:
    alone, several = LexicalEncoder(**options), LexicalEncoder(**options, workers=count)
    assert several.fingerprint == alone.fingerprint
    assert several.reference() == alone.reference()
    assert several.spec == alone.spec
    for n in (0, 1, 1024, 1001):
        wanted, found = alone.encode_document(texts(n)), several.encode_document(texts(n))
        assert found.shape == wanted.shape
        for name in ("data", "indices", "indptr"):
            ours, theirs = getattr(found, name), getattr(wanted, name)
            assert ours.dtype == theirs.dtype
            assert ours.tobytes() == theirs.tobytes()
    assert several._pool is not None
    assert len(several._pool._pool) == count, "1,024 texts are enough for all"
    several.close()


def test_an_index_is_the_same_file_by_file(tmp_path: Path) -> None:
    documents = [Document(f"d{at}", text) for at, text in enumerate(texts(9000))]
    records = []
    for workers in (1, 2):
        encoder = load_encoder("bm25", workers=workers)
        with Retriever.build(tmp_path / str(workers), documents, encoder=encoder, memory=16 << 20) as retriever:
            records.append([segment.record for segment in retriever._snapshot.segments])  # type: ignore[union-attr]
        assert isinstance(encoder, LexicalEncoder)
        encoder.close()
    assert records[0] == records[1]
    assert len(records[0]) > 1


def test_what_is_added_is_encoded_by_the_processes_that_were_asked_for(tmp_path: Path) -> None:
    Retriever.build(tmp_path, [Document("first", "a text")]).close()
    with Retriever.open(tmp_path, workers=2) as retriever:
        retriever.add(Document(f"d{at}", text) for at, text in enumerate(texts(1024)))
        encoder = retriever.encoder
        assert isinstance(encoder, LexicalEncoder)
        assert encoder._pool is not None
        assert len(encoder._pool._pool) == 2
        encoder.close()


def test_a_process_that_ends_is_a_typed_error_and_the_next_call_begins_anew(two: LexicalEncoder) -> None:
    wanted = LexicalEncoder().encode_document(texts(500))
    two.encode_document(texts(500))
    assert two._pool is not None
    process, _ = two._pool._pool[1]
    process.kill()
    process.join()
    with pytest.raises(EncoderError, match="exit code -9"):
        two.encode_document(texts(500))
    assert (two.encode_document(texts(500)) != wanted).nnz == 0


def test_a_build_whose_process_ends_goes_on_where_it_was(two: LexicalEncoder, tmp_path: Path) -> None:
    documents = [Document(f"d{at}", text) for at, text in enumerate(texts(6000))]

    def killing() -> Iterator[Document]:
        for at, document in enumerate(documents):
            if at == 4000:
                assert two._pool is not None
                two._pool._pool[0][0].kill()
                two._pool._pool[0][0].join()
            yield document

    with pytest.raises(EncoderError, match="exit code -9"):
        Retriever.build(tmp_path / "idx", killing(), encoder=two)
    assert not Retriever.open(tmp_path / "idx").complete
    with Retriever.build(tmp_path / "idx", documents, encoder=two) as retriever:
        assert len(retriever) == len(documents)


def test_what_is_no_text_is_named_by_its_place(two: LexicalEncoder) -> None:
    wrong: Any = texts(300)
    wrong[257] = None
    with pytest.raises(EncoderError, match="text 257 is a NoneType"):
        two.encode_document(wrong)
    with pytest.raises(EncoderError, match="single string"):
        two.encode_document("one text " * 100)


def test_workers_are_asked_for_by_name_or_beside_it() -> None:
    for encoder in (load_encoder("bm25(workers=3)"), load_encoder("bm25", workers=3)):
        assert isinstance(encoder, LexicalEncoder)
        assert encoder.workers == 3
        assert str(encoder.spec) == "bm25"
    with pytest.raises(SpecError, match="leave one of them out"):
        load_encoder("bm25(workers=3)", workers=2)
    wrong: list[Any] = [0, -1, True, 1.5, "two"]
    for value in wrong:
        with pytest.raises(SpecError, match="no number of processes"):
            LexicalEncoder(workers=value)
