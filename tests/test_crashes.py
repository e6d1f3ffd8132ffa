"""A writer that is killed at any moment leaves the previous commit readable and whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("crash_runner.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials fork and kill, which this system cannot")
def test_killed_writers_leave_a_whole_commit(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "little")  # new moments in every run; the seed is in the output
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(tmp_path), str(seed), "60"], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr}"
    kills = int(done.stdout.split()[0])
    print(f"seed {seed}: {done.stdout}")
    assert kills >= 60
