"""Inverted lists: scans beside those of FAISS, files of this version and of older ones, and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lists_cases import lists_case, run_damaged_lists, run_lists
from test_graph import clustered, found_share
from test_kernels import compiled_module, needs_compiled

from retrievers.errors import IndexDamagedError
from retrievers.indexes import _lists_numpy, bitmaps
from retrievers.indexes.approximate import ApproximateIndex
from retrievers.indexes.lists import Lists
from retrievers.indexes.sieve import Sieve
from retrievers.specs import Spec

IVF = Spec("ivf", {"nlist": 50, "nprobe": 10})


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_scan_of_lists_equals_its_twin_bit_for_bit(seed: int) -> None:
    case = lists_case(seed)
    assert run_lists(compiled_module(), case) == run_lists(_lists_numpy, case)
    run_damaged_lists(compiled_module(), seed)


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "twin"])
@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 0},
        {"codes": np.zeros((3, 2), np.int8)},
        {"bounds": np.zeros((2, 3), np.float32)},
        {"spread": np.zeros((1, 2), np.float32)},
        {"centroid_codes": np.zeros((3, 2), np.int8)},
        {"centroid_bounds": np.zeros((2, 3), np.float32)},
        {"centroid_spread": np.zeros((1, 2), np.float32)},
        {"rows": np.zeros(3, np.int32)},
        {"starts": np.zeros(0, np.int64)},
        {"queries": np.zeros(3, np.float32)},
        {"mask": np.zeros(2, np.uint8)},
        {"probes": 0},
        {"count": 0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_makes_lists_must_fit(module: str, change: dict[str, Any]) -> None:
    chosen = compiled_module() if module == "compiled" else _lists_numpy
    sieve, centroids = Sieve.of(np.eye(4, 2, dtype=np.float32)), Sieve.of(np.eye(2, dtype=np.float32))
    case: dict[str, Any] = {
        "dimension": 2,
        **vars(sieve),
        **{f"centroid_{name}": part for name, part in vars(centroids).items()},
        "rows": np.array([3, 0, 1, 2], np.int32),
        "starts": np.array([0, 2, 4]),
        "queries": np.array([[1, 0], [0, 1]], np.float32),
        "mask": None,
        "probes": 1,
        "count": 3,
    }
    assert run_lists(chosen, case) == (0, [[3, 0, -1], [1, 2, -1]])
    with pytest.raises(ValueError, match="fit"):
        run_lists(chosen, case | change)


@pytest.mark.parametrize("probes", [1, 5, 50])
def test_a_scan_by_codes_finds_what_faiss_finds_by_vectors(probes: int) -> None:
    vectors = clustered(6000, 48)
    vectors, queries = vectors[:5600], vectors[5600:]
    bare = faiss.IndexIVFFlat(faiss.IndexFlatIP(48), 48, 50, faiss.METRIC_INNER_PRODUCT)
    bare.train(vectors)
    bare.add(vectors)
    bare.nprobe = probes
    ours = ApproximateIndex.build(vectors, IVF)
    ours._settings["nprobe"] = probes
    ours._index = Lists.of_faiss(bare, Sieve.of(vectors), "the lists")
    assert ours._index.starts.tolist() == np.cumsum([0] + [bare.invlists.list_size(at) for at in range(50)]).tolist()
    wanted = bare.search(queries, 10)[1]
    found = ours.search(queries, 10).rows
    share = np.mean([np.isin(best[best >= 0], rows).mean() for best, rows in zip(wanted, found, strict=True)])
    assert share > 0.97  # of two centroids that are as near codes may choose the other
    assert probes < 50 or found_share(ours, vectors, queries) == 1


def older(folder: Path, vectors: Any) -> Any:
    """Make of a saved index one that older versions wrote; its lists, as FAISS has them."""
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], 50, faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    index.add(vectors)
    for place in (folder / "lists", folder / "centroids"):
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    for name in ("codes.npy", "bounds.npy", "spread.npy"):
        (folder / name).unlink()
    meta = json.loads((folder / "dense.json").read_text())
    del meta["sieved"]
    (folder / "dense.json").write_text(json.dumps(meta))
    faiss.write_index(index, str(folder / "index.faiss"))
    return index


def test_lists_of_an_older_version_are_scanned_the_same_way(tmp_path: Path) -> None:
    vectors = clustered(3000, 24)
    ApproximateIndex.build(vectors, IVF).save(tmp_path)
    bare = older(tmp_path, vectors)
    index = ApproximateIndex.load(tmp_path, IVF)
    of_faiss = Lists.of_faiss(bare, Sieve.of(vectors), "the lists")
    assert (index._index.propose(vectors[:50], 18, None, 10) == of_faiss.propose(vectors[:50], 18, None, 10)).all()
    live = bitmaps.pack(np.arange(3000) % 3 > 0)
    assert all((rows % 3 > 0).all() and len(rows) == 10 for rows in index.search(vectors[:50], 10, live=live).rows)
    (tmp_path / "again").mkdir()
    index.save(tmp_path / "again")
    again = ApproximateIndex.load(tmp_path / "again", IVF)
    for one, other in zip(index.search(vectors, 10).rows, again.search(vectors, 10).rows, strict=True):
        assert (one == other).all()
    ids = faiss.rev_swig_ptr(bare.invlists.get_ids(7), bare.invlists.list_size(7))
    for wrong in (int(ids[1]), 3000, -1):
        ids[0] = wrong
        faiss.write_index(bare, str(tmp_path / "index.faiss"))
        with pytest.raises(IndexDamagedError, match=r"index\.faiss holds lists that are not those of 3000 vectors"):
            ApproximateIndex.load(tmp_path, IVF)


def test_files_of_lists_that_do_not_fit_are_found(tmp_path: Path) -> None:
    vectors = clustered(2000, 16)
    ApproximateIndex.build(vectors, IVF).save(tmp_path)
    for path in sorted([*(tmp_path / "lists").iterdir(), *(tmp_path / "centroids").iterdir()]):
        sound = path.read_bytes()
        path.write_bytes(sound[:-1])
        with pytest.raises(IndexDamagedError, match=path.name):
            ApproximateIndex.load(tmp_path, IVF)
        path.unlink()
        with pytest.raises(IndexDamagedError, match=rf"{path.name} is missing"):
            ApproximateIndex.load(tmp_path, IVF)
        path.write_bytes(sound)
    with pytest.raises(IndexDamagedError, match=r"\[51, 16\]|\[52\]|centroids"):
        ApproximateIndex.load(tmp_path, Spec("ivf", {"nlist": 51}))
    for name, wrong in (("rows", 2000), ("rows", -1), ("starts", 2001), ("starts", -1)):
        path = tmp_path / "lists" / f"{name}.npy"
        sound = path.read_bytes()
        array = np.load(path)
        array[:] = wrong
        np.save(path, array)
        with pytest.raises(IndexDamagedError, match=r"lists holds rows that there are not"):
            ApproximateIndex.load(tmp_path, IVF).search(vectors[:1], 10)
        path.write_bytes(sound)
    assert len(ApproximateIndex.load(tmp_path, IVF).search(vectors[:1], 10).rows[0]) == 10
