"""The compiled kernels against their numpy twins: the same bits, and no step outside a buffer whatever they hold."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dense_cases import dense_case, offer_case, run_damaged_dense, run_dense, run_offer
from documents_cases import damaged_documents_case, documents_case, run_documents
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inverted_cases import (
    LIMITS,
    asked,
    bm25_like_case,
    count_case,
    prepare,
    random_case,
    run,
    run_count,
    run_damaged,
    run_damaged_within,
    run_within,
)
from maxsim_cases import (
    check_maxsim,
    damaged_maxsim_case,
    exact_case,
    levels,
    maxsim_case,
    run_damaged_exact,
    run_damaged_maxsim,
    run_exact,
    run_maxsim,
)
from plaid_cases import check_plaid, plaid_case, run_damaged_plaid

from retrievers.indexes import _dense_numpy, _documents_numpy, _maxsim_numpy, kernels
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


@needs_compiled
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_search_equals_its_twin_bit_for_bit(seed: int) -> None:
    case = random_case(seed)
    assert run(compiled_module(), case) == run(compiled_module(), case, plain=True) == run(twin, case)


@needs_compiled
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(LIMITS))
def test_search_by_slices_equals_its_twin_bit_for_bit(seed: int, limits: tuple[float, float, float]) -> None:
    case = random_case(seed)
    if len(case["offsets"]) > 1:
        assert run_within(compiled_module(), case, limits) == run_within(twin, case, limits)


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "twin"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_search_by_slices_that_gives_nothing_up_is_exact(module: str, seed: int) -> None:
    chosen = compiled_module() if module == "compiled" else twin
    case = random_case(seed)
    if len(case["offsets"]) > 1:
        assert run_within(chosen, case, LIMITS[0])[:2] == run(kernels._inverted, case)[0]


@needs_compiled
@pytest.mark.parametrize("k", [1, 10, 1000])
@pytest.mark.parametrize("limits", LIMITS)
def test_search_by_slices_of_long_postings_equals_its_twin(k: int, limits: tuple[float, float, float]) -> None:
    case = bm25_like_case(k)
    found = run_within(compiled_module(), case, limits)
    assert found == run_within(twin, case, limits)
    slices, read, *_ = found[2]
    assert 0 < read < slices == 100_000 // 8


@needs_compiled
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_search_by_slices_survives_damage(seed: int) -> None:
    run_damaged_within(compiled_module(), seed)


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
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
@example(104042746)  # a row that is none after one whose score no float holds
@example(173)  # minus infinity, after as many rows as are wanted
def test_products_in_float64_equal_their_twin_bit_for_bit(seed: int) -> None:
    case = dense_case(seed)
    assert run_dense(compiled_module(), case) == run_dense(_dense_numpy, case)
    run_damaged_dense(compiled_module(), seed)


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "twin"])
@pytest.mark.parametrize(
    "change",
    [
        {"dimension": 0},
        {"dimension": 3},
        {"values": np.ones(7, np.float32)},
        {"queries": np.ones((3, 2), np.float32)},
        {"rows": np.zeros(3, np.int64)},
        {"codes": np.zeros((3, 2), np.int8)},
        {"best_scores": np.zeros((2, 2), np.float32)},
        {"best_rows": np.zeros((2, 0), np.int64), "best_scores": np.zeros((2, 0), np.float32)},
        {"counts": np.zeros(1, np.int64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_proposed_must_fit(module: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "dimension": 2,
        "values": np.ones((3, 2), np.float32),
        "codes": None,
        "bounds": None,
        "spread": None,
        "queries": np.ones((2, 2), np.float32),
        "rows": np.array([[0, 2], [-1, 1]]),
        "best_rows": np.zeros((2, 1), np.int64),
        "best_scores": np.zeros((2, 1), np.float32),
        "counts": np.zeros(2, np.int64),
    }
    chosen = compiled_module() if module == "compiled" else _dense_numpy
    assert chosen.dense_best(*arguments.values()) == 0
    assert arguments["best_rows"].tolist() == [[0], [1]]
    with pytest.raises(ValueError, match="fit"):
        chosen.dense_best(*(arguments | change).values())
    sieve = {
        "codes": np.zeros((3, 2), np.int8),
        "bounds": np.zeros((2, 3), np.float32),
        "spread": np.zeros((2, 2), np.float32),
    }
    assert chosen.dense_best(*(arguments | sieve).values()) == 0
    del arguments["rows"]
    for wrong, mask in (
        ({}, np.zeros(2, np.uint8)),
        (sieve | {"spread": None}, None),
        (sieve | {"codes": None}, None),
        (sieve | {"codes": np.zeros((2, 2), np.int8)}, None),
        (sieve | {"bounds": np.zeros((1, 3), np.float32)}, None),
        (sieve | {"spread": np.zeros((1, 2), np.float32)}, None),
        (sieve, None),
    ):
        scan = [*(arguments | wrong).values()]
        scan[2:2], scan[7:7] = [1.5], [mask]
        if wrong is sieve:
            assert chosen.dense_scan(*scan) == 0
            continue
        with pytest.raises(ValueError, match="fit"):
            chosen.dense_scan(*scan)


@needs_compiled
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_late_interaction_equals_plain_loops_over_narrow_numbers(seed: int) -> None:
    if not levels(compiled_module()):
        pytest.skip("this processor has neither bfloat16 nor AVX2")
    check_maxsim(compiled_module(), maxsim_case(seed))


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_late_interaction_refuses_what_does_not_fit(seed: int) -> None:
    run_damaged_maxsim(compiled_module(), damaged_maxsim_case(seed))
    with pytest.raises(ValueError, match="fit together"):
        run_maxsim(compiled_module(), compiled_module().maxsim_level() + 1, maxsim_case(seed))


@needs_compiled
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_late_interaction_in_float64_equals_its_twin_bit_for_bit(seed: int) -> None:
    case = exact_case(seed)
    assert run_exact(compiled_module(), case) == run_exact(_maxsim_numpy, case)
    run_damaged_exact(compiled_module(), seed)


@needs_compiled
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_documents_are_read_and_found_as_by_the_twin(seed: int) -> None:
    for case in (documents_case(seed), damaged_documents_case(seed)):
        assert run_documents(compiled_module(), case) == run_documents(_documents_numpy, case)


@needs_compiled
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_stages_over_compressed_vectors_equal_their_twin(seed: int) -> None:
    check_plaid(compiled_module(), plaid_case(seed))
    run_damaged_plaid(compiled_module(), seed)


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
def test_threads_share_what_searches_by_slices_keep() -> None:
    case = bm25_like_case(10)
    columns = [np.arange(first, 10) for first in range(10)]
    cases = [
        case | {"columns": mine, "weights": case["weights"][mine], "offsets": np.array([0, len(mine)])}
        for mine in columns
    ]
    expected = [run_within(twin, one, LIMITS[1]) for one in cases]
    for _ in range(5):
        sliced = compiled_module().inverted_slices(case["n"], 10, len(case["ids"]))
        prepared = prepare(compiled_module(), case)

        def search(one: dict[str, Any], prepared: Any = prepared, sliced: Any = sliced) -> Any:
            out = np.empty(10, np.int64), np.empty(10, np.float32), np.zeros(1, np.int64)
            told = compiled_module().inverted_within(prepared, 10, *asked(one), *out, *LIMITS[1], sliced)
            rows, scores, counts = out
            return rows[: counts[0]].tolist(), scores[: counts[0]].tobytes(), told

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(search, cases * 2)) == expected * 2


@needs_compiled
def test_rows_that_all_tie_come_in_ascending_order() -> None:
    n = 70_000
    rows = np.arange(n)
    postings = assemble([(np.full(n, term), rows, np.ones(n, np.int64)) for term in (1, 2)], n, np.uint8)
    case = bm25_like_case(5)
    case |= {"n": n, "norms": np.ones(n, np.float32), "columns": np.arange(1, 3), "offsets": np.array([0, 2])}
    names = ("ids", "payload", "term_blocks", "block_start", "block_range", "terms")
    case |= {name: getattr(postings, name) for name in names}
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
        {"columns": np.array([0])},
        {"terms": np.arange(9)},
        {"scales": np.ones(9, np.float32)},
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
            prepare(compiled_module(), case),
            10,
            *asked(case),
            np.zeros(9, np.int64),
            np.zeros(9, np.float32),
            np.zeros(1, np.int64),
        )


def modules() -> list[Any]:
    return [twin, *([compiled_module()] if kernels.compiled() else [])]


@pytest.mark.parametrize("columns", [[3, 2, 5], [3, 3, 5], [2, 3, 3]], ids=lambda columns: "-".join(map(str, columns)))
def test_columns_that_do_not_ascend_are_told(columns: list[int]) -> None:
    change = {"columns": np.array(columns), "weights": np.ones(3, np.float32), "offsets": np.array([0, 3])}
    for module in modules():
        case = bm25_like_case(3) | change
        out = np.empty(3, np.int64), np.empty(3, np.float32), np.zeros(1, np.int64)
        assert module.inverted_search(prepare(module, case), 3, *asked(case), *out) is False
        with pytest.raises(ValueError, match="do not ascend"):
            run_within(module, case, LIMITS[0])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**63 - 1), unique=True, max_size=60), st.data())
def test_terms_are_found_wherever_they_lie(found: list[int], data: st.DataObject) -> None:
    terms = np.array(sorted(found), np.int64)
    near = [column + step for column in found for step in (-1, 0, 1)]
    some = data.draw(st.lists(st.sampled_from([*near, 0, 2**63 - 1]), unique=True, max_size=30))
    columns = np.array(sorted(column for column in some if 0 <= column < 2**63), np.int64)
    row = np.arange(len(terms))  # each term in a row of its own
    postings = assemble([(terms, row, np.ones(len(terms), np.int64))], max(1, len(terms)), np.uint8)
    expected = [at for at, column in enumerate(terms.tolist()) if column in set(columns.tolist())]
    case = {
        name: getattr(postings, name) for name in ("n", "ids", "payload", "term_blocks", "block_start", "block_range")
    }
    case |= {
        "kind": 1,
        "terms": postings.terms,
        "scales": None,
        "block_max": postings.payload,
        "norms": None,
        "mask": None,
    }
    case |= {"columns": columns, "weights": np.ones(len(columns), np.float32), "offsets": np.array([0, len(columns)])}
    case |= {"k": 100}
    for module in modules():
        assert run(module, case)[0][0] == expected


@pytest.mark.parametrize(
    "change",
    [
        {"term_blocks": np.array([0, 2, 4, 6, 8, 10, 12, 14, 16, 99, 20])},
        {"term_blocks": np.arange(11)[::-1].copy()},
        {"block_range": np.full(20, 9, np.uint32)},
        {"block_start": np.full(21, 2**60)},
        {"block_start": np.full(21, -1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_places_out_of_bounds_are_refused_by_both(change: dict[str, Any]) -> None:
    for module in modules():
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
        "import sys; import inverted_cases as i, kernel_cases as t; m = t.load_extension(sys.argv[1]); "
        "t.run_everything(m, range(40)); [i.run_damaged(m, i.damaged_case(s)) for s in range(100, 220)]; print('clean')"
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
