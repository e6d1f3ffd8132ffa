"""What several test files use: the folder of real collections."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers that each take every core wait for one another


@pytest.fixture(scope="session")
def collections() -> Path:
    """The folder of real collections; the test is skipped, saying so, where there is none."""
    shared = os.environ.get("RETRIEVERS_SHARED")
    if not shared or not (Path(shared) / "data").is_dir():
        pytest.skip("RETRIEVERS_SHARED does not name a folder with real collections")
    return Path(shared) / "data"
