"""The on-disk format, pinned byte by byte, and the small indexes of every format so far, which must open for ever.

``python tests/test_format.py`` writes the indexes of a new format below ``tests/data/``; those of older ones stay as they are.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hashing import HashEncoder

from retrievers import Document, Retriever, verify
from retrievers.errors import DuplicateIdError
from retrievers.indexes.manifest import FORMAT

DATA = Path(__file__).parent / "data"
KINDS = {"lexical": "inverted", "sparse": "inverted", "dense": "flat", "multi-vector": "maxsim"}
DOCUMENTS = [
    Document("apple", "an apple is a fruit, and an apple pie is not", title="Apple", metadata={"n": 1, "tags": ["x"]}),
    Document("Änderung", "die Änderung der Änderung", metadata={"n": 2.5, "lang": "de", "deep": {"a": None}}),
    Document("東京", "東京は日本の首都です", metadata={"n": -3}),
    Document("empty", ""),
    Document("pear", "a pear is a fruit too"),
]
LATER = [Document("later", "an apple that came later", metadata={"n": 10})]
QUERIES = ["apple", "fruit pie", "Änderung", "日本 首都"]


def encoder(kind: str) -> Any:
    return "bm25(language=none)" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]


def build(path: Path, kind: str) -> dict[str, list[list[Any]]]:
    """A small index with two segments and a deletion, and what it answers."""
    with Retriever.build(path, DOCUMENTS, encoder=encoder(kind), index=KINDS[kind]) as retriever:
        retriever.add(LATER)
        retriever.delete("pear")
        return answers(retriever)


def answers(retriever: Retriever) -> dict[str, list[list[Any]]]:
    return {query: [[hit.id, hit.score] for hit in retriever.search(query, k=4)] for query in QUERIES}


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_so_far_opens_and_answers(kind: str, version: int) -> None:
    path = DATA / f"format-{version}" / kind
    assert verify(path) == []
    with Retriever.open(path, encoder=None if kind == "lexical" else encoder(kind)) as retriever:
        assert answers(retriever) == json.loads(path.with_suffix(".json").read_text())
        assert retriever.get("Änderung") == DOCUMENTS[1]


@pytest.mark.parametrize("kind", KINDS)
def test_golden_bytes(kind: str, tmp_path: Path) -> None:
    golden = DATA / f"format-{FORMAT}" / kind
    build(tmp_path / kind, kind)
    names = {path.relative_to(golden) for path in golden.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path / kind) for path in (tmp_path / kind).rglob("*") if path.is_file()}
    assert found - {Path("writer.lock")} == names - {Path("writer.lock")}
    for name in names:
        if name.name != "writer.lock":
            assert (tmp_path / kind / name).read_bytes() == (golden / name).read_bytes(), name


@pytest.mark.parametrize("version", range(1, FORMAT))
@pytest.mark.parametrize("kind", KINDS)
def test_an_older_format_is_written_on(kind: str, version: int, tmp_path: Path) -> None:
    shutil.copytree(DATA / f"format-{version}" / kind, tmp_path / kind)
    more = Document("plum", "a plum is a fruit", metadata={"n": 7})
    with Retriever.open(tmp_path / kind, encoder=None if kind == "lexical" else encoder(kind)) as retriever:
        retriever.add([more])
        retriever.delete("later")
        with pytest.raises(DuplicateIdError, match="already in the index"):
            retriever.add([DOCUMENTS[1]])
        mixed = answers(retriever)
        retriever.merge()
        merged = answers(retriever)
        kept = {document.id: document for document in [*DOCUMENTS, more] if document.id != "pear"}
        assert len(retriever) == len(kept)
        assert {id: retriever.get(id) for id in kept} == kept
        few = retriever.search("fruit", k=9, filter={"field": "n", "operator": ">", "value": 0})
    assert verify(tmp_path / kind) == []
    assert json.loads((tmp_path / kind / "manifest.json").read_text())["format"] == FORMAT
    assert not [*(tmp_path / kind).rglob("*.sqlite")]
    anew = tmp_path / "anew"
    with Retriever.build(anew, kept.values(), encoder=encoder(kind), index=KINDS[kind]) as retriever:
        assert answers(retriever) == mixed == merged
        assert retriever.search("fruit", k=9, filter={"field": "n", "operator": ">", "value": 0}) == few


if __name__ == "__main__":
    for kind in KINDS:
        path = DATA / f"format-{FORMAT}" / kind
        if path.exists():
            sys.exit(f"{path} exists: a written format does not change")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(build(path, kind), ensure_ascii=False, indent=1) + "\n")
