"""The contenders of multi_vector_speed.py: each builds in a process of its own, and answers questions in another.

This file is also run by the Python of fast-plaid's environment, which has neither this library nor FAISS: what only one
contender needs is imported where it is used.

Run by multi_vector_speed.py: python multi_vector_contenders.py build|serve NAME OPTIONS VECTORS PASSAGES FOLDER
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

K = 10
EFFORTS = {"nprobe": (4, 8, 16, 32, 64), "candidates": (50, 100, 200, 400, 800, 1600)}
"""Values of what an index of ours may be asked with, every pair of them, where its specification leaves them open."""
PROBED = ((1, 256), (2, 256), (4, 256), (4, 1024), (8, 1024), (8, 4096), (16, 4096), (32, 8192))
"""For fast-plaid, as its ``n_ivf_probe`` and ``n_full_scores``; by default it takes 8 and 4096."""
RESCORED = (100, 200, 300, 500, 700, 1000, 1500, 2000, 4000, 8000, 16000)
MEMORY = 2 << 30  # bytes: the budget that an index of ours is built in

Setting = dict[str, int]


class TokenFolder:
    """Token vectors on disk, float16 ``[tokens, dimension]``, of the first ``n`` passages; and questions, float32.

    ``d.f16`` holds the numbers, ``off.npy`` where passages begin (int64 ``[passages + 1]``), and ``q.npz`` the questions
    (``values`` float32 ``[tokens, dimension]``, ``offsets`` int64).
    """

    def __init__(self, folder: Path, n: int) -> None:
        self.offsets = np.load(folder / "off.npy")[: n + 1].astype(np.int64)
        if len(self.offsets) <= n:
            raise SystemExit(f"{folder} holds {len(self.offsets) - 1} passages, not {n}")
        with np.load(folder / "q.npz") as questions:
            values, bounds = questions["values"], questions["offsets"]
        self.dimension = int(values.shape[1])
        self.values = np.memmap(folder / "d.f16", np.float16, "r", shape=(int(self.offsets[-1]), self.dimension))
        self.questions = [np.ascontiguousarray(values[start:end]) for start, end in pairwise(bounds)]

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Contender(Protocol):
    """What builds into ``place`` (a folder), and answers from it."""

    def __init__(self, options: Mapping[str, Any], tokens: TokenFolder, place: Path) -> None: ...

    def build(self) -> None: ...

    def open(self) -> None: ...

    def settings(self) -> list[Setting]: ...

    def search(self, question: Any, setting: Setting) -> Sequence[int]:
        """The best rows for float32 ``[tokens, dimension]``."""
        ...


class Ours:
    """An index of the library, built by Retriever.build, in ``MEMORY``, from an encoder that has the vectors at hand."""

    def __init__(self, options: Mapping[str, Any], tokens: TokenFolder, place: Path) -> None:
        from retrievers.indexes.kinds import PARAMETERS, index_class
        from retrievers.specs import Spec

        self.tokens, self.place = tokens, place
        self.spec = Spec.parse(options["spec"])
        known = PARAMETERS["multi-vector"][self.spec.name]
        self.open_ = [name for name in EFFORTS if name in known and name not in self.spec.parameters]
        # How hard to search is no part of what is built.
        built = {name: value for name, value in self.spec.parameters.items() if name not in EFFORTS}
        self.built = Spec(self.spec.name, built)
        self.kind = index_class(self.spec, "multi-vector")
        self.indexes: dict[str, Any] = {}

    def build(self) -> None:
        from retrievers import Document, Retriever

        documents = (Document(f"{row:09}", str(row)) for row in range(len(self.tokens)))
        with Retriever.build(
            self.place, documents, encoder=AtHand(self.tokens), index=str(self.built), memory=MEMORY
        ) as retriever:
            retriever.merge(memory=64 << 30)  # a kind that is not built as one segment is compared as one

    def open(self) -> None:
        folders = list(self.place.glob("segments/*/index"))
        if len(folders) != 1:
            raise SystemExit(f"{self.place} has {len(folders)} segments, and one can be compared")
        for setting in self.settings():
            spec = type(self.spec)(self.spec.name, {**self.spec.parameters, **setting})
            self.indexes[json.dumps(setting)] = self.kind.load(folders[0], spec)

    def settings(self) -> list[Setting]:
        found: list[Setting] = [{}]
        for name in self.open_:
            found = [{**setting, name: value} for setting in found for value in EFFORTS[name]]
        return found

    def search(self, question: Any, setting: Setting) -> Sequence[int]:
        from retrievers.vectors import TokenVectors

        query = TokenVectors(question, np.array([0, len(question)]))
        rows: list[int] = self.indexes[json.dumps(setting)].search(query, K).rows[0].tolist()
        return rows


class AtHand:
    """An encoder of passages that are told by their numbers, in a row."""

    kind: Literal["multi-vector"] = "multi-vector"
    fingerprint = "at hand"

    def __init__(self, tokens: TokenFolder) -> None:
        self.tokens = tokens

    def encode_document(self, texts: Sequence[str]) -> Any:
        from retrievers.vectors import TokenVectors

        first, last = int(texts[0]), int(texts[-1]) + 1
        offsets = self.tokens.offsets[first : last + 1]
        return TokenVectors(self.tokens.values[offsets[0] : offsets[-1]].astype(np.float32), offsets - offsets[0])

    encode_query = encode_document


class Muvera:
    """Fixed-dimensional encodings in the FAISS index of a factory string; the best are scored in bfloat16 by our kernel.

    Dhulipala et al., "MUVERA: Multi-Vector Retrieval via Fixed Dimensional Encodings" (2024), section 2: hyperplanes part the
    space into buckets; of a query a bucket holds the sum of its tokens, of a passage their mean, or where it has none there,
    the token that is nearest by Hamming distance; each bucket is projected by random signs. The tokens of passages are centred,
    which changes no order of passages; those of queries are not, which would.
    """

    REPETITIONS, PLANES, WIDTH = 20, 5, 16
    TOGETHER = 500  # passages
    TRAINED = 10_240  # passages that the quantiser is trained on: 40 for each of 256 centroids

    def __init__(self, options: Mapping[str, Any], tokens: TokenFolder, place: Path) -> None:
        self.tokens, self.place, self.factory = tokens, place, str(options["quantiser"])
        rng = np.random.default_rng(0)
        self.planes = rng.standard_normal((tokens.dimension, self.REPETITIONS * self.PLANES), np.float32)
        signs = rng.integers(0, 2, (tokens.dimension, self.REPETITIONS * self.WIDTH)) * 2 - 1
        self.signs = (signs / np.sqrt(self.WIDTH)).astype(np.float32)
        self.centre = tokens.values[: 1 << 16].astype(np.float32).mean(axis=0)
        self.buckets = 1 << self.PLANES
        numbers = np.arange(self.buckets, dtype=np.uint8)
        self.distances = np.bitwise_count(numbers[:, None] ^ numbers)
        self.bases = np.arange(self.REPETITIONS) * self.buckets

    def build(self) -> None:
        import faiss

        self.place.mkdir()
        index = faiss.index_factory(
            self.REPETITIONS * self.buckets * self.WIDTH, self.factory, faiss.METRIC_INNER_PRODUCT
        )
        n = len(self.tokens)
        if not index.is_trained:
            if hasattr(index, "pq"):
                index.pq.cp.min_points_per_centroid = (
                    1  # a small collection is told of by its size, not by 1,280 warnings
                )
            chosen = np.sort(np.random.default_rng(1).choice(n, min(n, self.TRAINED), replace=False))
            parts = np.array_split(chosen, -(-len(chosen) // self.TOGETHER))
            index.train(np.concatenate([self.encode_passages(part) for part in parts]))
        for first in range(0, n, self.TOGETHER):
            index.add(self.encode_passages(np.arange(first, min(n, first + self.TOGETHER))))
        faiss.write_index(index, str(self.place / "index.faiss"))

    def open(self) -> None:
        import faiss

        self.index: Any = faiss.read_index(str(self.place / "index.faiss"))
        self.graph = hasattr(self.index, "hnsw")

    def _hashed(self, values: Any) -> tuple[Any, Any]:
        """Of each token the buckets, int64 ``[tokens, repetitions]``, and what stands for it there, ``[..., width]``."""
        bits = (values @ self.planes > 0).reshape(len(values), self.REPETITIONS, self.PLANES)
        buckets = bits @ (1 << np.arange(self.PLANES))
        return buckets, (values @ self.signs).reshape(len(values), self.REPETITIONS, self.WIDTH)

    def encode_query(self, values: Any) -> Any:
        """Float32 ``[1, repetitions * buckets * width]``."""
        buckets, projected = self._hashed(values)
        sums = np.zeros((self.REPETITIONS * self.buckets, self.WIDTH), np.float32)
        np.add.at(sums, (self.bases + buckets).ravel(), projected.reshape(-1, self.WIDTH))
        return sums.reshape(1, -1)

    def encode_passages(self, rows: Any) -> Any:
        """Float32 ``[rows, repetitions * buckets * width]``."""
        from scipy.sparse import csr_matrix

        starts, sizes = self.tokens.offsets[rows], np.diff(self.tokens.offsets)[rows]
        owners = np.repeat(np.arange(len(rows)), sizes)
        at = np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(len(owners))
        buckets, projected = self._hashed(self.tokens.values[at].astype(np.float32) - self.centre)
        flat = projected.reshape(-1, self.WIDTH)
        cells = (owners[:, None] * (self.REPETITIONS * self.buckets) + self.bases + buckets).ravel()
        numbers = np.arange(len(cells))
        count = len(rows) * self.REPETITIONS * self.buckets
        sums = csr_matrix((np.ones(len(cells), np.float32), (cells, numbers)), shape=(count, len(cells))) @ flat
        sizes_of = np.bincount(cells, minlength=count)
        sums /= np.maximum(sizes_of, 1)[:, None]
        some = np.full(count, -1)
        some[cells[::-1]] = numbers[::-1]  # the first token of each bucket
        filled = (sizes_of > 0).reshape(-1, self.buckets)
        nearest = np.where(filled[:, None, :], self.distances, np.uint8(255)).argmin(axis=2)
        taken = np.take_along_axis(some.reshape(-1, self.buckets), nearest, axis=1).ravel()
        empty = (sizes_of == 0) & (taken >= 0)
        sums[empty] = flat[taken[empty]]
        return sums.reshape(len(rows), -1)

    def settings(self) -> list[Setting]:
        return [{"rescored": count} for count in RESCORED if count < len(self.tokens)]

    def search(self, question: Any, setting: Setting) -> Sequence[int]:
        from retrievers.indexes import kernels
        from retrievers.indexes.maxsim import as_panels

        tokens = self.tokens
        if self.graph:
            self.index.hnsw.efSearch = setting["rescored"]
        rows = np.sort(self.index.search(self.encode_query(question), setting["rescored"])[1][0])
        rows = rows[rows >= 0]
        starts = tokens.offsets[rows]
        scores = np.empty((len(rows), 1), np.float32)
        bounds = np.array([0, len(question)])
        arrays = tokens.values, None, starts, tokens.offsets[rows + 1] - starts, as_panels(question), bounds, scores
        kernels.maxsim_scores(kernels.maxsim_level(), tokens.dimension, *arrays)
        best: list[int] = rows[np.argsort(-scores[:, 0], kind="stable")[:K]].tolist()
        return best


class FastPlaid:
    """The package fast-plaid."""

    def __init__(self, options: Mapping[str, Any], tokens: TokenFolder, place: Path) -> None:
        import torch
        from fast_plaid.search import FastPlaid as Index

        torch.set_num_threads(1)
        self.torch, self.options, self.tokens = torch, options, tokens
        self.index = Index(index=str(place), device="cpu")

    def build(self) -> None:
        # It takes all passages at once.
        passages = [
            self.torch.from_numpy(np.array(self.tokens.values[start:end]))
            for start, end in pairwise(self.tokens.offsets)
        ]
        self.index.create(passages, nbits=int(self.options["nbits"]))

    def open(self) -> None:
        pass

    def settings(self) -> list[Setting]:
        return [{"n_ivf_probe": probed, "n_full_scores": scored} for probed, scored in PROBED]

    def search(self, question: Any, setting: Setting) -> Sequence[int]:
        query = self.torch.from_numpy(question)[None]
        found = self.index.search(query, top_k=K, show_progress=False, n_processes=1, **setting)
        return [row for row, _ in found[0]]


KINDS: dict[str, type[Contender]] = {"ours": Ours, "muvera": Muvera, "fast-plaid": FastPlaid}


def build(contender: Contender) -> dict[str, float]:
    wall, cpu = time.perf_counter(), _cpu()
    contender.build()
    return {"cpu": _cpu() - cpu, "wall": time.perf_counter() - wall}


def serve(contender: Contender, questions: Sequence[Any]) -> Iterator[Any]:
    """Its settings; then for each line of [setting, first, last] the rows, CPU seconds and wall seconds of these questions."""
    contender.open()
    yield contender.settings()
    for line in sys.stdin:
        setting, first, last = json.loads(line)
        contender.search(questions[first], setting)  # what another contender has driven out of the caches comes back
        answers = []
        for number in range(first, last):
            wall, cpu = time.perf_counter(), time.process_time()
            rows = contender.search(questions[number], setting)
            answers.append((rows, time.process_time() - cpu, time.perf_counter() - wall))
        yield answers


def _cpu() -> float:
    """CPU seconds of this process, all of its threads, and of those that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    work, name, options, vectors, passages, place = sys.argv[1:]
    tokens = TokenFolder(Path(vectors), int(passages))
    contender = KINDS[name](json.loads(options), tokens, Path(place))
    if work == "build":
        print(json.dumps({**build(contender), "version": version(name) if name == "fast-plaid" else ""}), flush=True)
    else:
        for answer in serve(contender, tokens.questions):
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
