"""What proposes candidates: FAISS' indexes ``ivfpq``, ``rabitq`` and ``sq8``, and ours, ``hnsw``, ``ivf`` and ``binary``.

What they propose for a query depends on the query and on the built index, never on the other queries of the batch or on
threads: FAISS searches lists query by query, and :func:`propose` keeps it from switching to matrix products
when it chooses the lists.

Sources: HNSW, Malkov and Yashunin, 2018; inverted lists and product quantisation, Jégou et al., 2011; RaBitQ, Gao
and Long, 2024 (without its random rotation, which on vectors of MiniLM costs time and finds no more).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import IndexDamagedError, SpecError
from retrievers.indexes.bitmaps import Bitmap
from retrievers.indexes.exact import StoredVectors, import_faiss
from retrievers.indexes.graph import Graph
from retrievers.indexes.lists import Lists
from retrievers.indexes.parameters import AUTO, AnyParameter, Fraction, Parameter
from retrievers.indexes.sieve import Sieve
from retrievers.indexes.signs import SignCodes, nearest
from retrievers.specs import Spec, Value

TUNED = ("ef_search", "nprobe", "candidates")
"""The parameters that a target for the recall sets, in the kinds that have them."""

_RECALL = {"recall": Fraction(TUNED)}
_CANDIDATES = {"candidates": Parameter(AUTO, 1, 1_000_000)}
_LISTS = {
    "nlist": Parameter(AUTO, 1, 1 << 24),
    "nprobe": Parameter(AUTO, 1, 1 << 24),
}
PARAMETERS: Mapping[str, Mapping[str, AnyParameter]] = {
    "hnsw": {
        "m": Parameter(32, 2, 512),
        "ef_construction": Parameter(200, 1, 100_000),
        "ef_search": Parameter(64, 1, 1_000_000),
        **_RECALL,
    },
    "ivf": {**_LISTS, **_RECALL},
    "ivfpq": {
        **_LISTS,
        "m": Parameter(AUTO, 1, 1 << 16),
        "nbits": Parameter(8, 4, 12),
        **_CANDIDATES,
        **_RECALL,
    },
    "rabitq": {**_LISTS, "nbits": Parameter(1, 1, 8), **_CANDIDATES, **_RECALL},
    "sq8": {**_CANDIDATES, **_RECALL},
    "binary": {**_CANDIDATES, **_RECALL},
}
"""The parameters of each approximate kind."""

POINTS = 39
"""The least number of vectors that FAISS wants for each centroid that it trains."""

_AUTOMATIC = {
    "ivfpq": (100, 10),
    "rabitq": (100, 10),
    "sq8": (32, 2),
    "binary": (200, 20),
}  # so many, and so many a hit
_TRAINED = 64  # vectors for each list that k-means looks at: more make it slower, hardly better
_SEED = 1234
_QUERY_BITS = 8  # of rabitq: a query in fewer is no quicker; one that is not quantised takes forty times as long
_TOGETHER = 4  # queries whose lists are chosen together: of more FAISS multiplies matrices, which rounds differently


def settings(spec: Spec, n: int, dimension: int) -> dict[str, int]:
    """The parameters of ``spec`` for ``n`` vectors, what is left to choose filled in; lists never outnumber n / 39.

    Raises SpecError where ``m`` of ``ivfpq`` does not divide ``dimension``.
    """
    known = PARAMETERS[spec.name]
    given: dict[str, Value] = {key: what.default for key, what in known.items() if what.default is not None}
    given |= {key: value for key, value in spec.parameters.items() if key != "recall"}
    chosen = {key: int(value) for key, value in given.items() if value != AUTO}
    if "nlist" in given:
        most = max(1, n // POINTS)
        chosen["nlist"] = min(chosen.get("nlist", round(4 * n**0.5)), most)
        chosen["nprobe"] = min(chosen.get("nprobe", max(8, chosen["nlist"] // 16)), chosen["nlist"])
    if spec.name == "ivfpq":
        divisors = [m for m in range(1, dimension + 1) if dimension % m == 0]
        chosen.setdefault("m", max(m for m in divisors if m == 1 or m <= dimension // 4))
        if dimension % chosen["m"]:
            near = sorted(divisors, key=lambda m: abs(m - chosen["m"]))[:3]
            raise SpecError(
                f"{spec}: m={chosen['m']} must divide the {dimension} dimensions of the vectors; "
                f"the nearest that do are {', '.join(map(str, sorted(near)))}"
            )
    return chosen


def train(stored: StoredVectors, spec: Spec) -> Any | None:
    """What proposes candidates among all vectors; None where they are too few for it, and scanning them is quicker anyway."""
    faiss = import_faiss()
    n, dimension = stored.values.shape
    chosen = settings(spec, n, dimension)
    if n == 0 or (spec.name == "ivfpq" and n < 2 ** chosen["nbits"]):
        return None
    if spec.name == "binary":
        return SignCodes.build(stored.values)
    if spec.name == "hnsw":
        return Graph.build(stored.values, _sieve(stored), chosen["m"], chosen["ef_construction"])
    if spec.name == "sq8":
        index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    else:
        coarse = faiss.IndexFlatIP(dimension)
        if spec.name == "ivf":
            index = faiss.IndexIVFFlat(coarse, dimension, chosen["nlist"], faiss.METRIC_INNER_PRODUCT)
        elif spec.name == "rabitq":
            index = faiss.IndexIVFRaBitQ(
                coarse, dimension, chosen["nlist"], faiss.METRIC_INNER_PRODUCT, True, chosen["nbits"]
            )
        else:
            index = faiss.IndexIVFPQ(
                coarse, dimension, chosen["nlist"], chosen["m"], chosen["nbits"], faiss.METRIC_INNER_PRODUCT
            )
            index.pq.cp.min_points_per_centroid = 1
            index.pq.cp.seed = _SEED
        index.cp.min_points_per_centroid = 1
        index.cp.max_points_per_centroid = _TRAINED
        index.cp.seed = _SEED
        index.cp.spherical = True
    index.train(stored.values)
    if spec.name == "ivf":
        return Lists.build(stored.values, _sieve(stored), index.quantizer)
    index.add(stored.values)
    return ready(index)


def _sieve(stored: StoredVectors) -> Sieve:
    """The codes of vectors, made for those of older indexes, which have none."""
    return Sieve.of(stored.values) if stored.sieve is None else stored.sieve


def ready(index: Any) -> Any:
    """Set what a search needs and a file does not keep."""
    if hasattr(index, "qb"):
        index.qb = _QUERY_BITS
    return index


def candidates(chosen: Mapping[str, int], name: str, k: int) -> int:
    """How many candidates to ask for ``k`` hits: the coarser the codes, the more."""
    if name not in _AUTOMATIC:
        return k + 8
    if "candidates" in chosen:
        return max(chosen["candidates"], k)
    base, each = _AUTOMATIC[name]
    return base + each * k


def propose(
    index: Any, chosen: Mapping[str, int], queries: NDArray[np.float32], count: int, live: Bitmap | None
) -> NDArray[np.int64]:
    """``count`` candidates for each query, int64 ``[queries, count]``, -1 where there are fewer."""
    if isinstance(index, SignCodes):
        return index.propose(queries, count, live)
    if isinstance(index, Graph):
        return index.propose(queries, count, live, chosen["ef_search"])
    if isinstance(index, Lists):
        return index.propose(queries, count, live, chosen["nprobe"])
    selector = None if live is None else import_faiss().IDSelectorBitmap(np.ascontiguousarray(live))
    if "nlist" in chosen:
        parameters = _parameters(chosen["nprobe"], selector)
        if len(queries) > _TOGETHER:
            return _from_lists(index, chosen["nprobe"], queries, count, parameters)
    else:
        parameters = None if selector is None else import_faiss().SearchParameters(sel=selector)
    return nearest(index, queries, count, np.float32, parameters)


def use_one_thread(index: Any) -> None:
    """Keep FAISS from starting threads of its own where ``index`` is one of its, and called from this thread."""
    if not isinstance(index, Graph | Lists):
        import_faiss().omp_set_num_threads(1)


def _parameters(probes: int, selector: Any | None) -> Any:
    return _unselective(probes) if selector is None else _made(nprobe=probes, sel=selector)


@lru_cache(maxsize=64)  # making them takes as long as scanning a short list; searches only read them
def _unselective(probes: int) -> Any:
    return _made(nprobe=probes)


def _made(**options: Any) -> Any:
    return import_faiss().SearchParametersIVF(**options)


def _from_lists(
    index: Any, probes: int, queries: NDArray[np.float32], count: int, parameters: Any
) -> NDArray[np.int64]:
    faiss = import_faiss()
    coarse = index.quantizer
    found = [coarse.search(queries[at : at + _TOGETHER], probes) for at in range(0, len(queries), _TOGETHER)]
    nearness = np.concatenate([nearness for nearness, _ in found])
    lists = np.concatenate([lists for _, lists in found])
    scores, rows = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
    queries, lists, nearness, scores, rows = map(np.ascontiguousarray, (queries, lists, nearness, scores, rows))
    pointers = [faiss.swig_ptr(array) for array in (lists, nearness, scores, rows)]
    index.search_preassigned_c(len(queries), faiss.swig_ptr(queries), count, *pointers, False, parameters)
    return rows


def write(index: Any, path: Path) -> None:
    """Write what proposes candidates: a FAISS index to ``path``, others beside it."""
    if isinstance(index, Graph | Lists):
        index.save(path.parent)
    elif isinstance(index, SignCodes):
        index.write(path)
    else:
        import_faiss().write_index(index, str(path))


def read(path: Path, stored: StoredVectors, spec: Spec) -> Any:
    """Read what :func:`write` wrote and check it against the vectors. Raises IndexDamagedError.

    Older versions wrote graphs and lists as FAISS does.
    """
    n, dimension = stored.values.shape
    chosen = settings(spec, n, dimension)
    if spec.name == "hnsw" and not path.exists():
        return Graph.load(path.parent, _sieve(stored))
    if spec.name == "ivf" and not path.exists():
        return Lists.load(path.parent, n, dimension, chosen["nlist"])
    faiss = import_faiss()
    if not path.is_file():
        raise _damaged(path, "is missing")
    if spec.name == "binary":
        return SignCodes.read(path, n, dimension)
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise _damaged(path, f"is no FAISS index ({str(error).splitlines()[-1]:.200})") from error
    kinds = {
        "hnsw": faiss.IndexHNSWFlat,
        "ivf": faiss.IndexIVFFlat,
        "ivfpq": faiss.IndexIVFPQ,
        "rabitq": faiss.IndexIVFRaBitQ,
        "sq8": faiss.IndexScalarQuantizer,
    }
    held = type(index).__name__, index.ntotal, index.d, index.metric_type
    wanted = kinds[spec.name].__name__, n, dimension, faiss.METRIC_INNER_PRODUCT
    if held != wanted:
        raise _damaged(path, f"holds {held} (type, vectors, dimension, metric) where {wanted} belong")
    if spec.name == "hnsw":
        return Graph.of_faiss(index.hnsw, _sieve(stored), str(path))
    if "nlist" in chosen and (index.nlist != chosen["nlist"] or index.quantizer.ntotal != index.nlist):
        raise _damaged(path, f"has {index.nlist} lists where {chosen['nlist']} belong")
    if spec.name == "rabitq" and index.rabitq.nb_bits != chosen["nbits"]:
        raise _damaged(path, f"has codes of {index.rabitq.nb_bits} bits where {chosen['nbits']} belong")
    if spec.name == "ivf":
        return Lists.of_faiss(index, _sieve(stored), str(path))
    return ready(index)


def _damaged(path: Path, what: str) -> IndexDamagedError:
    return IndexDamagedError(f"{path} {what}: restore it from a backup, or build the index again")
