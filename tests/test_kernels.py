"""The compiled kernels against their numpy twins: the same bits, and no step outside a buffer whatever they hold."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.indexes import _dense_numpy, kernels, maxsim
from retrievers.indexes import _inverted_numpy as twin
from retrievers.indexes.bitmaps import pack
from retrievers.indexes.impacts import encode16
from retrievers.indexes.postings import assemble

SOURCES = Path(__file__).parent.parent / "indexes"
needs_compiled = pytest.mark.skipif(
    not kernels.compiled(), reason="the kernels are not compiled, or RETRIEVERS_KERNELS=numpy"
)


def compiled_module() -> Any:
    return importlib.import_module("retrievers.indexes._kernels")


def random_case(seed: int) -> dict[str, Any]:
    """Arguments of ``inverted_search``: few rows or several ranges, rare terms and dense ones, ties everywhere."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 9, 100, 20_000, 65_536, 65_537, 90_000, 140_000]))
    kind = int(rng.integers(5))
    terms = int(rng.integers(1, 14))
    highest = [65_535, 255, 255, 65_535, 2**32 - 1][kind]
    few = rng.random() < 0.5  # few values: ties everywhere
    chunks = []
    for term in range(terms):
        rows = np.flatnonzero(rng.random(n) < rng.choice([1 / n, 0.0005, 0.02, 0.4, 0.95, 1.0]))
        if not len(rows):
            continue
        if kind == 0:
            codes = rng.choice([40_000, 32_768], len(rows)) if few else rng.integers(1, 50_000, len(rows))
        else:
            codes = rng.integers(1, 3 if few else min(highest, 400) + 1, len(rows))
        codes[rng.integers(len(rows))] = highest if rng.random() < 0.3 and kind != 0 else codes[0]
        chunks.append((np.full(len(rows), 3 * term, np.int64), rows.astype(np.int64), codes))
    payload_type = [np.uint16, np.uint8, np.uint8, np.uint16, np.uint32][kind]
    postings = assemble(chunks, n, payload_type)
    lists = [np.sort(rng.permutation(len(postings.terms))[: rng.integers(15)]) for _ in range(rng.integers(4))]
    slots = np.concatenate([np.empty(0, np.int64), *lists]).astype(np.int64)
    share = rng.choice([0.0, 0.001, 0.3, 0.9, 1.0])
    norms = rng.choice([0.4, 1.2, 1.9], n) if few else rng.gamma(4.0, 0.3, n)
    starts = postings.block_start[:-1]
    return {
        "kind": kind,
        "n": n,
        "k": int(rng.choice([1, 2, 10, 100, 256, 257, n, n + 5])),
        "ids": postings.ids,
        "payload": postings.payload,
        "term_blocks": postings.term_blocks,
        "block_start": postings.block_start,
        "block_range": postings.block_range,
        "block_max": np.maximum.reduceat(postings.payload, starts)
        if kind < 2 and len(starts)
        else postings.payload[:0],
        "norms": norms.astype(np.float32) if kind > 1 else None,
        "mask": None if rng.random() < 0.5 else pack(rng.random(n) < share),
        "slots": slots,
        "weights": rng.choice([0.5, 2.0, 7.25], len(slots)).astype(np.float32)
        if few
        else (rng.random(len(slots)).astype(np.float32) ** 4 + np.float32(1e-6)) * np.float32(9),
        "offsets": np.concatenate([np.zeros(1, np.int64), np.cumsum([len(some) for some in lists], dtype=np.int64)]),
    }


def run(module: Any, case: dict[str, Any], *, plain: bool = False) -> list[tuple[list[int], bytes]]:
    """What a module's ``inverted_search`` answers, ``plain`` without anything prepared: rows, and scores bit by bit."""
    queries, k = len(case["offsets"]) - 1, case["k"]
    rows, scores = np.full(queries * k, -7, np.int64), np.full(queries * k, -7, np.float32)
    counts = np.zeros(queries, np.int64)
    prepared = module.inverted_prepare(case["n"], case["ids"], case["term_blocks"], case["block_start"])
    if plain:
        prepared = None
    for _ in range(2):  # what is prepared is made by the first and used by the second
        module.inverted_search(*case.values(), rows, scores, counts, prepared)
    return [
        (rows[i * k : i * k + count].tolist(), scores[i * k : i * k + count].tobytes())
        for i, count in enumerate(counts.tolist())
    ]


def damaged_case(seed: int) -> dict[str, Any]:
    """A case one or more of whose arrays hold anything at all, at the right sizes or at others."""
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    for name in rng.choice(list(case), rng.integers(1, 4), replace=False):
        value = case[name]
        if not isinstance(value, np.ndarray):
            continue
        value = case[name] = value.copy()
        how = rng.integers(5)
        if how == 0 and len(value):  # a few items flipped
            at = rng.integers(len(value), size=3)
            noise = rng.integers(0, 256, 3 * value.itemsize, dtype=np.uint8)
            value[at] = noise.view(value.dtype)
        elif how == 1:  # rubbish
            noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8)
            case[name] = noise.view(value.dtype)
        elif how == 2:  # cut
            case[name] = value[: rng.integers(len(value) + 1)].copy()
        elif how == 3:  # swapped
            case[name] = value[::-1].copy()
        else:  # of another size
            case[name] = np.concatenate([value, value, value[:1]])
    return case


def run_damaged(module: Any, case: dict[str, Any]) -> None:
    """Rows of the index and a ValueError are both fine; reading or writing elsewhere is not."""
    with contextlib.suppress(ValueError):
        assert all(0 <= row < case["n"] for rows, _ in run(module, case) for row in rows)


def count_case(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    case = random_case(seed)
    return {
        "n": case["n"],
        "ids": case["ids"],
        "block_start": case["block_start"],
        "block_range": case["block_range"],
        "mask": pack(rng.random(case["n"]) < rng.choice([0.0, 0.001, 0.5, 1.0])),
    }


def run_count(module: Any, case: dict[str, Any]) -> list[int]:
    counts = np.full(len(case["block_range"]), -7, np.int64)
    module.inverted_count(*case.values(), counts)
    return [int(count) for count in counts]


def offer_case(seed: int) -> dict[str, Any]:
    """Arguments of several calls of ``dense_offer``: blocks of rows, ties everywhere or nowhere, NaN and infinity."""
    rng = np.random.default_rng(seed)
    n, queries = int(rng.choice([1, 5, 70, 300])), int(rng.choice([0, 1, 4, 63, 64, 65, 130]))
    scores = rng.standard_normal((n, queries)).astype(np.float32)
    if rng.random() < 0.5:
        scores = np.round(scores).astype(np.float32)
    if rng.random() < 0.3:
        scores[rng.random(scores.shape) < 0.1] = rng.choice([np.nan, -np.inf, np.inf])
    rows = np.flatnonzero(rng.random(n) < rng.choice([0.3, 1.0])).astype(np.int64)
    mask = None if rng.random() < 0.5 else pack(rng.random(n) < rng.choice([0.0, 0.5, 1.0]))
    cuts = np.sort(rng.integers(0, len(rows) + 1, 3)).tolist()
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    return {"n": n, "k": int(rng.choice([1, 3, 20, 400])), "scores": scores, "parts": parts, "mask": mask}


def run_offer(module: Any, case: dict[str, Any]) -> list[list[tuple[float, int]]]:
    queries, k = case["scores"].shape[1], case["k"]
    best, rows = np.full((queries, k), -7, np.float32), np.full((queries, k), -7, np.int64)
    counts = np.zeros(queries, np.int64)
    for part in case["parts"]:
        scores = np.ascontiguousarray(case["scores"][part])
        module.dense_offer(case["n"], scores, part, case["mask"], best, rows, counts)
    return [
        sorted(zip((-best[at, :count]).tolist(), rows[at, :count].tolist(), strict=True))
        for at, count in enumerate(counts.tolist())
    ]


def maxsim_case(seed: int) -> dict[str, Any]:
    """Arguments of ``maxsim_scores``: documents of no token and of many, float16 or codes, queries of no token and of many."""
    rng = np.random.default_rng(seed)
    dimension = int(rng.choice([1, 2, 31, 32, 33, 96, 130]))
    sizes = rng.choice([0, 1, 2, 15, 16, 17, 33, 300], rng.integers(0, 90)).astype(np.int64)
    lengths = rng.choice([0, 1, 4, 15, 16, 17, 40], rng.integers(0, 9))
    codes = rng.random() < 0.5
    tokens = int(sizes.sum())
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return {
        "dimension": dimension,
        "values": rng.integers(-127, 128, (tokens, dimension)).astype(np.int8)
        if codes
        else rng.standard_normal((tokens, dimension)).astype(np.float16),
        "scales": (rng.random(tokens) / 64 + 0.001).astype(np.float32) if codes else None,
        "starts": (np.cumsum(sizes) - sizes)[::-1].astype(np.int64),
        "sizes": sizes[::-1].copy(),
        "panels": rng.standard_normal((int(offsets[-1]), dimension)).astype(np.float32),
        "offsets": offsets,
    }


def run_maxsim(module: Any, level: int, case: dict[str, Any]) -> Any:
    rows, queries = len(case["starts"]), max(0, len(case["offsets"]) - 1)
    scores = np.full((rows, queries), np.nan, np.float32)
    panels = case["panels"] if case["panels"].dtype == np.uint16 else maxsim._panels(maxsim._narrow(case["panels"]))
    module.maxsim_scores(level, *{**case, "panels": panels}.values(), scores)
    return scores


def check_maxsim(module: Any, case: dict[str, Any]) -> None:
    """Against plain loops in float64 over what bfloat16 keeps of the numbers."""
    queries = maxsim._wide(maxsim._narrow(case["panels"])).astype(np.float64)
    documents = case["values"].astype(np.float32)
    documents = maxsim._wide(maxsim._narrow(documents)).astype(np.float64)
    if case["scales"] is not None:
        documents *= case["scales"][:, None]
    wanted = np.zeros((len(case["starts"]), len(case["offsets"]) - 1))
    for row, (start, size) in enumerate(zip(case["starts"].tolist(), case["sizes"].tolist(), strict=True)):
        for query, (first, last) in enumerate(itertools.pairwise(case["offsets"].tolist())):
            best = (queries[first:last] @ documents[start : start + size].T).max(axis=1, initial=-np.inf)
            wanted[row, query] = best.sum()
    for level in range(1, module.maxsim_level() + 1):
        np.testing.assert_allclose(run_maxsim(module, level, case), wanted, rtol=1e-5, atol=1e-3)


def damaged_maxsim_case(seed: int) -> dict[str, Any]:
    """A case with arrays that were cut, swapped, repeated or overwritten."""
    rng = np.random.default_rng(seed)
    case = maxsim_case(seed)
    case["panels"] = maxsim._panels(maxsim._narrow(case["panels"]))
    for name in rng.choice(["values", "scales", "starts", "sizes", "panels", "offsets"], 2, replace=False):
        value = case[name]
        if value is not None:
            some = rng.integers(len(value) + 1)
            noise = rng.integers(0, 256, value.nbytes, dtype=np.uint8).view(value.dtype).reshape(value.shape)
            spoilt = [value[:some], value[::-1], np.concatenate([value, value]), noise, value - 1]
            case[name] = np.ascontiguousarray(spoilt[rng.integers(5)])
    return case


def run_damaged_maxsim(module: Any, case: dict[str, Any]) -> None:
    for level in range(3):
        with contextlib.suppress(ValueError):
            run_maxsim(module, level, case)


def run_everything(module: Any, seeds: range) -> None:
    """The core of these tests, for a module compiled with sanitizers."""
    for seed in seeds:
        offer = offer_case(seed)
        assert run_offer(module, offer) == run_offer(_dense_numpy, offer), f"seed {seed}"
        case = random_case(seed)
        assert run(module, case) == run(twin, case), f"seed {seed}"
        run_damaged(module, damaged_case(seed))
        check_maxsim(module, maxsim_case(seed))
        run_damaged_maxsim(module, damaged_maxsim_case(seed))
        count = count_case(seed)
        assert run_count(module, count) == run_count(twin, count), f"seed {seed}"
        with contextlib.suppress(ValueError):
            run_count(module, {**count, "block_start": count["block_start"][::-1].copy()})


@needs_compiled
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_search_equals_its_twin_bit_for_bit(seed: int) -> None:
    case = random_case(seed)
    assert run(compiled_module(), case) == run(compiled_module(), case, plain=True) == run(twin, case)


@needs_compiled
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_count_equals_its_twin(seed: int) -> None:
    case = count_case(seed)
    assert run_count(compiled_module(), case) == run_count(twin, case)


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_the_best_of_blocks_equal_their_twin_and_sorting_everything(seed: int) -> None:
    case = offer_case(seed)
    found = run_offer(compiled_module(), case)
    assert found == run_offer(_dense_numpy, case)
    rows = np.concatenate(case["parts"])
    if case["mask"] is not None:
        rows = rows[(case["mask"][rows >> 3] >> (rows & 7) & 1).astype(np.bool_)]
    for query, best in enumerate(found):
        scores = case["scores"][rows, query]
        kept = scores > -np.inf
        assert best == sorted(zip((-scores[kept]).tolist(), rows[kept].tolist(), strict=True))[: case["k"]]


@needs_compiled
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_late_interaction_equals_plain_loops_over_bfloat16(seed: int) -> None:
    if compiled_module().maxsim_level() == 0:
        pytest.skip("this processor does not multiply bfloat16")
    check_maxsim(compiled_module(), maxsim_case(seed))


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_late_interaction_refuses_what_does_not_fit(seed: int) -> None:
    run_damaged_maxsim(compiled_module(), damaged_maxsim_case(seed))
    with pytest.raises(ValueError, match="fit together"):
        run_maxsim(compiled_module(), compiled_module().maxsim_level() + 1, maxsim_case(seed))


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "twin"])
@pytest.mark.parametrize(
    "change",
    [
        {"n": 2},
        {"rows": np.array([0, -1, 2], np.int64)},
        {"rows": np.array([0, 1], np.int64)},
        {"scores": np.zeros((3, 5), np.float32)},
        {"mask": np.zeros(2, np.uint8)},
        {"best_scores": np.zeros((4, 1), np.float32)},
        {"best_rows": np.zeros((4, 0), np.int64), "best_scores": np.zeros((4, 0), np.float32)},
        {"counts": np.array([0, 3, 0, 0], np.int64)},
        {"counts": np.array([0, -1, 0, 0], np.int64)},
    ],
)
def test_blocks_that_do_not_fit_are_refused(module: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "n": 3,
        "scores": np.zeros((3, 4), np.float32),
        "rows": np.arange(3),
        "mask": None,
        "best_scores": np.zeros((4, 2), np.float32),
        "best_rows": np.zeros((4, 2), np.int64),
        "counts": np.zeros(4, np.int64),
    }
    chosen = compiled_module() if module == "compiled" else _dense_numpy
    chosen.dense_offer(*arguments.values())
    with pytest.raises(ValueError, match=r"fit|bounds"):
        chosen.dense_offer(*(arguments | change).values())


def bm25_like_case(k: int, *, equal: bool = False) -> dict[str, Any]:
    """Two ranges and a long query of common and rare terms: pruning leaves out most of the postings."""
    rng = np.random.default_rng(7)
    n = 100_000
    shares = [0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.05, 0.01, 0.002, 0.0005]
    chunks = []
    for term, share in enumerate(shares):
        rows = np.flatnonzero(rng.random(n) < share)
        chunks.append(
            (np.full(len(rows), term), rows, np.ones(len(rows), np.int64) if equal else rng.geometric(0.5, len(rows)))
        )
    postings = assemble(chunks, n, np.uint8)
    weights = np.log1p((1 - np.array(shares)) / np.array(shares)).astype(np.float32)
    return {
        "kind": 2,
        "n": n,
        "k": k,
        "ids": postings.ids,
        "payload": postings.payload,
        "term_blocks": postings.term_blocks,
        "block_start": postings.block_start,
        "block_range": postings.block_range,
        "block_max": None,
        "norms": np.ones(n, np.float32) if equal else rng.gamma(4.0, 0.3, n).astype(np.float32),
        "mask": None,
        "slots": np.arange(len(shares)),
        "weights": weights,
        "offsets": np.array([0, len(shares)]),
    }


@needs_compiled
@pytest.mark.parametrize("k", [1, 10, 100, 256, 257, 100_000])
@pytest.mark.parametrize("equal", [False, True])
def test_pruning_changes_no_answer(k: int, equal: bool) -> None:
    case = bm25_like_case(k, equal=equal)
    assert run(compiled_module(), case) == run(twin, case)


@needs_compiled
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("kind", [0, 1])
def test_pruning_impacts_changes_no_answer(k: int, kind: int) -> None:
    case = bm25_like_case(k)
    rng = np.random.default_rng(8)
    values = (rng.random(len(case["ids"])) / 2 + 0.5).astype(np.float32)  # near their bounds
    codes = encode16(values) if kind == 0 else np.clip(values * 100, 1, 255).astype(np.uint8)
    highest = np.maximum.reduceat(codes, case["block_start"][:-1])
    case |= {"kind": kind, "payload": np.maximum(codes, 1), "block_max": np.maximum(highest, 1), "norms": None}
    assert run(compiled_module(), case) == run(twin, case)


@needs_compiled
@pytest.mark.parametrize("k", [10, 257])
def test_ids_beyond_the_last_row_are_not_found(k: int) -> None:
    case = bm25_like_case(k)
    last = int(case["ids"][case["block_range"].repeat(np.diff(case["block_start"])) == 1].max())
    case["ids"] = np.minimum(case["ids"].astype(np.int64) * 65_535 // last, 65_535).astype(np.uint16)
    run_damaged(compiled_module(), case)


@needs_compiled
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5])
def test_pruning_counts_only_permitted_rows(share: float) -> None:
    case = bm25_like_case(10)
    case["mask"] = pack(np.random.default_rng(3).random(case["n"]) < share)
    assert run(compiled_module(), case) == run(twin, case)


@needs_compiled
def test_threads_do_not_disturb_each_other() -> None:
    cases = [bm25_like_case(k) for k in (3, 10, 100, 300)]
    expected = [run(twin, case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: run(compiled_module(), case), cases * 8))
    assert found == expected * 8


@needs_compiled
def test_rows_that_all_tie_come_in_ascending_order() -> None:
    n = 70_000
    rows = np.arange(n)
    postings = assemble([(np.full(n, term), rows, np.ones(n, np.int64)) for term in (1, 2)], n, np.uint8)
    case = bm25_like_case(5)
    case |= {"n": n, "norms": np.ones(n, np.float32), "slots": np.arange(2), "offsets": np.array([0, 2])}
    case |= {name: getattr(postings, name) for name in ("ids", "payload", "term_blocks", "block_start", "block_range")}
    case |= {"weights": np.ones(2, np.float32)}
    expected = [([0, 1, 2, 3, 4], np.ones(5, np.float32).tobytes())]
    assert run(compiled_module(), case) == run(twin, case) == expected


@needs_compiled
@pytest.mark.parametrize(
    "change",
    [
        {"payload": np.zeros(3, np.uint8)},
        {"norms": np.ones(3, np.float32)},
        {"norms": None},
        {"mask": np.zeros(1, np.uint8)},
        {"block_start": np.zeros(2, np.int64)},
        {"term_blocks": np.empty(0, np.int64)},
        {"slots": np.array([0])},
        {"offsets": np.array([0, 11])},
        {"offsets": np.array([5, 2])},
        {"kind": 5},
        {"kind": -1},
        {"kind": 0},
        {"n": -1},
        {"k": 0},
        {"block_range": np.zeros(3, np.uint16)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sizes|aligned|out of range|offsets"):
        run(compiled_module(), bm25_like_case(3) | change)


@needs_compiled
def test_short_outputs_are_refused() -> None:
    case = bm25_like_case(10)
    with pytest.raises(ValueError, match="sizes"):
        compiled_module().inverted_search(
            *case.values(), np.zeros(9, np.int64), np.zeros(9, np.float32), np.zeros(1, np.int64)
        )


@pytest.mark.parametrize(
    "change",
    [
        {"slots": np.arange(10) + 1},
        {"slots": np.arange(10) - 1},
        {"term_blocks": np.array([0, 2, 4, 6, 8, 10, 12, 14, 16, 99, 20])},
        {"term_blocks": np.arange(11)[::-1].copy()},
        {"block_range": np.full(20, 9, np.uint32)},
        {"block_start": np.full(21, 2**60)},
        {"block_start": np.full(21, -1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_places_out_of_bounds_are_refused_by_both(change: dict[str, Any]) -> None:
    for module in [twin, *([compiled_module()] if kernels.compiled() else [])]:
        with pytest.raises(ValueError, match="out of bounds"):
            run(module, bm25_like_case(3) | change)


def test_the_environment_chooses_the_twin() -> None:
    program = "from retrievers.indexes import kernels; print(kernels.compiled(), kernels.inverted_search.__module__)"
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RETRIEVERS_KERNELS": "numpy"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome.stdout.split() == ["False", "retrievers.indexes._inverted_numpy"]


def load_extension(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("retrievers.indexes._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_kernel_leaves_its_buffers_under_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux")
    library = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("this gcc has no libasan")
    import sysconfig

    target = tmp_path / "_kernels.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-std=c11",
        "-g",
        "-O1",
        "-ffp-contract=off",
        "-DPy_LIMITED_API=0x030B0000",
    ]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{sysconfig.get_paths()['include']}"]
    subprocess.run([*command, *map(str, sorted(SOURCES.glob("_*.c"))), "-o", str(target)], check=True)
    program = (
        "import sys; import test_kernels as t; m = t.load_extension(sys.argv[1]); "
        "t.run_everything(m, range(40)); [t.run_damaged(m, t.damaged_case(s)) for s in range(100, 220)]; print('clean')"
    )
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": "detect_leaks=0",
        "RETRIEVERS_KERNELS": "numpy",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    outcome = subprocess.run(
        [sys.executable, "-c", program, str(target)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert outcome.stdout.split() == ["clean"]
