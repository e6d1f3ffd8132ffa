"""All kernels run through their cases, random and spoilt.

Compiled with sanitizers, they do so in a process of their own, which loads no test.
"""

from __future__ import annotations

import contextlib
import importlib.util
from types import ModuleType
from typing import Any

from dense_cases import dense_case, offer_case, run_damaged_dense, run_dense, run_offer
from documents_cases import damaged_documents_case, documents_case, run_documents
from graph_cases import graph_case, run_damaged_graph, run_graph
from inverted_cases import (
    LIMITS,
    count_case,
    damaged_case,
    random_case,
    run,
    run_count,
    run_damaged,
    run_damaged_within,
    run_within,
)
from linear_cases import check_linear, linear_case, run_damaged_linear
from lists_cases import lists_case, run_damaged_lists, run_lists
from maxsim_cases import (
    check_maxsim,
    damaged_maxsim_case,
    exact_case,
    maxsim_case,
    run_damaged_exact,
    run_damaged_maxsim,
    run_exact,
)
from plaid_cases import check_plaid, plaid_case, run_damaged_plaid
from vocabulary_cases import run_damaged_vocabulary, run_vocabulary, vocabulary_case, wanted_vocabulary

from retrievers.indexes import _dense_numpy, _documents_numpy, _graph_numpy, _lists_numpy, _maxsim_numpy
from retrievers.indexes import _inverted_numpy as twin


def run_everything(module: Any, seeds: range) -> None:
    """The core of these tests, for a module compiled with sanitizers."""
    for seed in seeds:
        offer = offer_case(seed)
        assert run_offer(module, offer) == run_offer(_dense_numpy, offer), f"seed {seed}"
        case = random_case(seed)
        assert run(module, case) == run(twin, case), f"seed {seed}"
        run_damaged(module, damaged_case(seed))
        limits = LIMITS[seed % len(LIMITS)]
        if len(case["offsets"]) > 1:
            assert run_within(module, case, limits) == run_within(twin, case, limits), f"seed {seed}"
        for number in range(3):
            run_damaged_within(module, 3 * seed + number)
        check_maxsim(module, maxsim_case(seed))
        run_damaged_maxsim(module, damaged_maxsim_case(seed))
        exact = exact_case(seed)
        assert run_exact(module, exact) == run_exact(_maxsim_numpy, exact), f"seed {seed}"
        run_damaged_exact(module, seed)
        dense = dense_case(seed)
        assert run_dense(module, dense) == run_dense(_dense_numpy, dense), f"seed {seed}"
        run_damaged_dense(module, seed)
        graph = graph_case(seed)
        assert run_graph(module, graph) == run_graph(_graph_numpy, graph), f"seed {seed}"
        run_damaged_graph(module, seed)
        lists = lists_case(seed)
        assert run_lists(module, lists) == run_lists(_lists_numpy, lists), f"seed {seed}"
        run_damaged_lists(module, seed)
        check_plaid(module, plaid_case(seed))
        run_damaged_plaid(module, seed)
        if module.bytes_level():
            vocabulary = vocabulary_case(seed)
            assert run_vocabulary(module, vocabulary) == wanted_vocabulary(vocabulary), f"seed {seed}"
            run_damaged_vocabulary(module, seed)
            check_linear(module, linear_case(seed))
            run_damaged_linear(module, seed)
        count = count_case(seed)
        assert run_count(module, count) == run_count(twin, count), f"seed {seed}"
        with contextlib.suppress(ValueError):
            run_count(module, {**count, "block_start": count["block_start"][::-1].copy()})
        for case in (documents_case(seed), damaged_documents_case(seed)):
            assert run_documents(module, case) == run_documents(_documents_numpy, case), f"seed {seed}"


def load_extension(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("retrievers.indexes._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
