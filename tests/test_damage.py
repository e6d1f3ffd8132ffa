"""Damage in any file of an index is found by ``verify``, by opening it (but for large payloads), and never crashes a search."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("damage_runner.py")
CASES = [
    ("lexical", "inverted", 20_000),
    ("sparse", "inverted", 16_000),
    ("sparse", "inverted(bits=8)", 1_000),
    ("sparse", "inverted(compact=true)", 2_000),
    ("dense", "flat", 20_000),
    ("dense", "hnsw", 2_000),
    ("dense", "ivf", 2_000),
    ("dense", "ivfpq", 2_000),
    ("dense", "rabitq", 2_000),
    ("dense", "sq8", 2_000),
    ("dense", "binary", 2_000),
    ("dense", "hnsw(recall=0.9)", 1_000),
    ("multi-vector", "maxsim", 2_000),
    ("multi-vector", "maxsim(dtype=int8)", 2_000),
    ("multi-vector", "plaid", 2_000),
    ("multi-vector", "plaid(bits=1, vectors=none)", 2_000),
]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases run in forked children, which this system has not")
@pytest.mark.parametrize(("kind", "index", "n"), CASES, ids=[index for _, index, _ in CASES])
def test_damage_is_found_and_harmless(kind: str, index: str, n: int, tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    command = [sys.executable, str(RUNNER), str(tmp_path), str(seed), kind, index, str(n)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    print(done.stdout)
