"""Dense indexes over real vectors: recall against CPU time, ours beside bare FAISS, usearch and voyager.

All run on one thread, one question each in turn. Every contender of a kind searches at several
settings, so that what is printed is the whole curve. FAISS does what the kind does: the same index object, or one built alike,
searched with the same parameters, its candidates scored again by ``IndexRefineFlat`` where the kind scores them again.

Run: RETRIEVERS_SHARED=... HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 python benchmarks/dense_speed.py [--vectors FOLDER] [--count N]
[--kinds hnsw,binary,...] (vectors are read from FOLDER, or encoded into it first, which takes some 20 minutes;
pip install usearch voyager for those two)
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from dense_vectors import COUNT, Vectors, vectors
from machine import describe, quantile

from retrievers.indexes import bitmaps
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.dense import FlatIndex
from retrievers.indexes.kinds import parse_index_spec
from retrievers.indexes.tuning import tune

K, SEED, STRIDE = 10, 0, 7
Search = Callable[[Vectors], np.ndarray]
KINDS = ("flat", "hnsw", "ivf", "ivfpq", "rabitq", "sq8", "binary")
EFFORTS = {
    "hnsw": [{"ef_search": ef} for ef in (16, 32, 64, 128, 256)],
    "ivf": [{"nprobe": probes} for probes in (8, 32, 64, 128, 256)],
    "ivfpq": [{"nprobe": p, "candidates": c} for p, c in ((32, 50), (64, 100), (128, 200), (256, 200))],
    "rabitq": [{"nprobe": p, "candidates": c} for p, c in ((32, 50), (64, 100), (128, 200), (256, 200), (400, 400))],
    "sq8": [{"candidates": 20}],
    "binary": [{"candidates": count} for count in (100, 200, 400, 1000)],
}
PEER_EFFORTS = (16, 32, 64, 128, 256)


@dataclass
class Point:
    """One contender at one setting."""

    name: str
    setting: str
    search: Search
    build: float  # CPU seconds
    size: int  # bytes on disk
    pair: str = ""  # the setting that FAISS has, too


def main() -> None:
    arguments = parsed()
    faiss.omp_set_num_threads(1)
    documents, asked = vectors(arguments.vectors, arguments.count)
    asked = asked[np.random.default_rng(SEED).permutation(len(asked))[: arguments.queries]]
    print(describe("faiss-cpu", "usearch", "voyager"))
    print(f"{len(documents):,} vectors of {documents.shape[1]} dimensions, {len(asked)} questions, one thread\n")
    exact = FlatIndex.build(documents, parse_index_spec("flat", "dense"))
    truth = np.stack(exact.search(asked, K).rows)
    print("| index | setting | recall@10 | p50 ms | p99 ms | beside FAISS | build, CPU s | bytes a vector |")
    print("|" + " --- |" * 8)
    built: dict[str, ApproximateIndex] = {}
    for kind in arguments.kinds.split(","):
        peers = [*usearch(documents), *voyager(documents)] if kind == "hnsw" else []
        report([*contenders(kind, documents, built), *peers], asked, truth, len(documents))
    filters(exact, built, asked[:100])


def contenders(kind: str, documents: Vectors, built: dict[str, ApproximateIndex]) -> Iterator[Point]:
    """Ours and FAISS at equal parameters, setting by setting; the last one is chosen for a recall of .95.

    An index of an approximate kind is added to ``built``.
    """
    spec = parse_index_spec(kind, "dense")
    start = time.process_time()
    index: Any = (FlatIndex if kind == "flat" else ApproximateIndex).build(documents, spec)
    build = time.process_time() - start
    with tempfile.TemporaryDirectory() as place:
        index.save(Path(place))
        size = sum(path.stat().st_size for path in Path(place).rglob("*.*"))
    if kind == "flat":
        bare = faiss.IndexFlatIP(documents.shape[1])
        bare.add(documents)
        yield Point("flat", "", ours(index), build, size, pair="flat")
        yield Point("FAISS", "", lambda query: bare.search(query, K)[1][0], 0, documents.nbytes, pair="flat")
        return
    built[kind] = index
    start, spec = time.process_time(), parse_index_spec(f"{kind}(recall=0.95)", "dense")
    tuned = ApproximateIndex(
        index._stored, spec, index._index, tune(index._stored, index._index, spec)
    )  # not built again
    tuned_build = build + time.process_time() - start
    inner = of_faiss(index, documents) if kind in ("hnsw", "ivf") else index._index
    for effort in EFFORTS[kind]:
        text = ", ".join(f"{name}={value}" for name, value in effort.items())
        changed = ApproximateIndex(index._stored, parse_index_spec(f"{kind}({text})", "dense"), index._index)
        yield Point(kind, text, ours(changed), build, size, pair=text)
        yield Point("FAISS", text, bare_search(inner, kind, effort, documents), 0, size, pair=text)
    settings = ", ".join(f"{name}={value}" for name, value in tuned.settings.items())
    yield Point(f"{kind}(recall=0.95)", settings, ours(tuned), tuned_build, size)


def ours(index: FlatIndex | ApproximateIndex) -> Search:
    return lambda query: index.search(query, K).rows[0]


def of_faiss(index: ApproximateIndex, documents: Vectors) -> Any:
    """What FAISS has of the kinds that are our own, built alike."""
    dimension, chosen = documents.shape[1], index.settings
    if index.spec.name == "hnsw":
        bare = faiss.IndexHNSWFlat(dimension, int(chosen["m"]), faiss.METRIC_INNER_PRODUCT)
        bare.hnsw.efConstruction = int(chosen["ef_construction"])
    else:
        coarse = faiss.IndexFlatIP(dimension)
        bare = faiss.IndexIVFFlat(coarse, dimension, int(chosen["nlist"]), faiss.METRIC_INNER_PRODUCT)
        bare.cp.spherical = True
        bare.train(documents)
    bare.add(documents)
    return bare


def bare_search(inner: Any, kind: str, effort: dict[str, int], documents: Vectors) -> Search:
    """The search of FAISS alone with the same parameters."""
    if kind == "hnsw":
        graph = faiss.SearchParametersHNSW(efSearch=effort["ef_search"])
        return lambda query: inner.search(query, K, params=graph)[1][0]
    if kind == "ivf":
        lists = faiss.SearchParametersIVF(nprobe=effort["nprobe"])
        return lambda query: inner.search(query, K, params=lists)[1][0]
    count = effort["candidates"]
    if kind == "binary":  # FAISS has no such refinement: the products are those of numpy

        def binary(query: Vectors) -> np.ndarray:
            rows = inner._codes.search(np.packbits(query > inner._centre, axis=1), count)[1][0]
            return rows[np.argsort(-(documents[rows] @ query[0]))[:K]]

        return binary
    refined = refine(inner, documents)
    base = faiss.SearchParametersIVF(nprobe=effort["nprobe"]) if "nprobe" in effort else None
    options = {} if base is None else {"base_index_params": base}
    parameters = faiss.IndexRefineSearchParameters(k_factor=count / K, **options)
    return lambda query: refined.search(query, K, params=parameters)[1][0]


def refine(inner: object, documents: Vectors) -> faiss.IndexRefineFlat:
    return faiss.IndexRefineFlat(inner, faiss.swig_ptr(documents))


def usearch(documents: Vectors) -> Iterator[Point]:
    """usearch's graph in float32, float16 and int8, with the links and effort of ``hnsw``."""
    try:
        from usearch.index import Index
    except ImportError:
        return
    for dtype in ("f32", "f16", "i8"):
        start = time.process_time()
        index = Index(
            ndim=documents.shape[1], metric="cos", dtype=dtype, connectivity=32, expansion_add=200, expansion_search=64
        )
        index.add(np.arange(len(documents)), documents, threads=1)
        build = time.process_time() - start
        for effort in PEER_EFFORTS:

            def search(query: Vectors, index: object = index, effort: int = effort) -> np.ndarray:
                index.expansion_search = effort  # type: ignore[attr-defined]
                return index.search(query[0], K, threads=1).keys.astype(np.int64)  # type: ignore[attr-defined]

            yield Point(f"usearch {dtype}", f"expansion_search={effort}", search, build, index.serialized_length)


def voyager(documents: Vectors) -> Iterator[Point]:
    """voyager's graph in float32 and in 8 bits."""
    try:
        from voyager import Index, Space, StorageDataType
    except ImportError:
        return
    for dtype in (StorageDataType.Float32, StorageDataType.Float8):
        start = time.process_time()
        index = Index(Space.Cosine, documents.shape[1], M=32, ef_construction=200, storage_data_type=dtype)
        index.add_items(documents, num_threads=1)
        build, size = time.process_time() - start, len(index.as_bytes())
        for effort in PEER_EFFORTS:

            def search(query: Vectors, index: object = index, effort: int = effort) -> np.ndarray:
                return index.query(query[0], K, query_ef=effort)[0].astype(np.int64)  # type: ignore[attr-defined]

            yield Point(f"voyager {dtype.name}", f"query_ef={effort}", search, build, size)


def report(points: list[Point], asked: Vectors, truth: np.ndarray, n: int) -> None:
    """A line for each point: recall, CPU time, and the median of the differences from FAISS over the questions."""
    times = [[0.0] * len(asked) for _ in points]
    hits = [0] * len(points)
    for turn in range(len(asked)):
        for at, point in enumerate(points):
            # No two that follow one another ask the same: the second would find in the cache what the first had read.
            number = (turn + at * STRIDE) % len(asked)
            one = np.ascontiguousarray(asked[number][None])
            start = time.thread_time()
            rows = point.search(one)
            times[at][number] = 1e3 * (time.thread_time() - start)
            hits[at] += len(np.intersect1d(rows, truth[number]))
    for at, point in enumerate(points):
        beside = ""
        other = [number for number, theirs in enumerate(points) if theirs.name == "FAISS" and theirs.pair == point.pair]
        if other and point.name != "FAISS":
            more = quantile([mine - bare for mine, bare in zip(times[at], times[other[0]], strict=True)], 0.5)
            beside = f"{1e3 * more:+.0f} µs, {100 * more / quantile(times[other[0]], 0.5):+.0f}%"
        costs = "| |" if point.name == "FAISS" else f"| {point.build:.0f} | {point.size / n:,.0f}"
        print(
            f"| {point.name} | {point.setting} | {hits[at] / truth[: len(asked)].size:.3f} | {quantile(times[at], 0.5):.3f} "
            f"| {quantile(times[at], 0.99):.3f} | {beside} {costs} |",
            flush=True,
        )


def filters(exact: FlatIndex, built: dict[str, ApproximateIndex], asked: Vectors) -> None:
    """What a filtered search costs, which is a scan in every kind, and what each kind would find and cost without one.

    The latter is what it does about deleted rows: FAISS passes over them, with more effort; below a fourth it scans.
    """
    kinds = "".join(f" {kind}, p50 ms (recall) |" for kind in built)
    print(f"\n| permitted | exact, p50 ms | by everything |{kinds}\n|" + " --- |" * (3 + len(built)))
    rng = np.random.default_rng(SEED)
    for share in (0.001, 0.01, 0.1, 0.25, 0.5, 0.9):
        mask = bitmaps.pack(rng.random(exact.size) < share)
        searches: list[Callable[[Vectors], np.ndarray]] = [
            lambda query, mask=mask: exact.search(query, K, allowed=mask).rows[0],
            lambda query: exact.search(query, K).rows[0],
        ]
        searches += [
            lambda query, index=index, mask=mask: index.search(query, K, live=mask).rows[0] for index in built.values()
        ]
        times: list[list[float]] = [[] for _ in searches]
        hits = [0] * len(searches)
        for query in asked:
            for at, search in enumerate(searches):
                start = time.thread_time()
                rows = search(query[None])
                times[at].append(1e3 * (time.thread_time() - start))
                if at == 0:
                    right = rows
                hits[at] += len(np.intersect1d(rows, right))
        p50 = [quantile(some, 0.5) for some in times]
        cells = "".join(f" {p50[at]:.3f} ({hits[at] / hits[0]:.3f}) |" for at in range(2, len(searches)))
        print(
            f"| {bitmaps.cardinality(mask):,} ({share:.1%}) | {p50[0]:.3f} | {p50[0] / p50[1]:.3f} |{cells}", flush=True
        )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, default=Path("dense-vectors"), help="folder that keeps the vectors")
    parser.add_argument("--count", type=int, default=COUNT, help="documents")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", default=",".join(KINDS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
