"""``retrievers doctor`` on the machine at hand, and on machines that lack something."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retrievers.cli import doctor


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retrievers", "doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, timeout=120, check=False, encoding="utf-8"
    )


def report(*arguments: str, **env: str) -> Any:
    done = run(*arguments, "--json", **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_versions_are_those_installed() -> None:
    started = time.perf_counter()
    found = report()
    print(f"retrievers doctor: {time.perf_counter() - started:.2f} s")
    packages = {package["name"]: package for package in found["dependencies"]["packages"]}
    assert {"numpy", "scipy", "tokenizers", "PyStemmer", "filelock", "typer", "rich"} <= set(packages)
    for name, package in packages.items():
        assert package["version"] == importlib.metadata.version(name)
        assert package["problem"] is None
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert set(found["extras"]) == {"neural", "train", "evaluate", "mteb", "serve", "lucene"}
    assert found["threads"]["processors"] == os.cpu_count()
    assert found["temporary_files"]["writable"]


def test_what_is_missing_comes_with_the_command_that_installs_it() -> None:
    found = report()
    told = run().stdout
    for extra, group in found["extras"].items():
        missing = [package["name"] for package in group["packages"] if package["problem"]]
        command = f"pip install 'tri-retrievers[{extra}]'"
        assert (group["mend"] == command) == bool(missing) == (command in told)
        assert group["complete"] == (not missing)
        for package in group["packages"]:
            assert package["name"] in told
    # The extra for training holds that for models.
    assert "torch" in {package["name"] for package in found["extras"]["train"]["packages"]}


def test_the_environment_is_told() -> None:
    found = report(HF_HUB_OFFLINE="1", HF_HUB_CACHE="/models/cache", OMP_NUM_THREADS="3", RETRIEVERS_KERNELS="numpy")
    assert found["hub"] == {"offline": True, "cache": "/models/cache"}
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert not found["kernels"]["compiled"]
    assert found["kernels"]["mend"] == "unset it"
    assert report(HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0")["hub"]["offline"] is False


def test_temporary_files_that_cannot_be_written(tmp_path: Path) -> None:
    # Every folder that Python would fall back to is hidden, too: there is none that can be written.
    program = (
        "import os, sys, tempfile; tempfile._candidate_tempdir_list = lambda: [sys.argv[1]];"
        "from retrievers.cli.doctor import _temporary_files; import json; print(json.dumps(_temporary_files()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "no such folder")]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert not found["writable"]
    assert "TMPDIR" in found["mend"]


def test_full_asks_faiss_and_torch() -> None:
    faiss = pytest.importorskip("faiss")
    found = report("--full")
    assert found["faiss"]["compile_options"] == faiss.get_compile_options().strip()
    if found["torch"]["version"]:
        assert found["torch"]["devices"] is not None
        assert found["threads"]["torch"] >= 1


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("2.4.6", ">=2.0", True),
        ("2", ">=2.0.0", True),
        ("1.26.4", ">=2.0", False),
        ("6.2.0", "<7,>=6.0", True),
        ("7.0.1", "<7,>=6.0", False),
        ("2.13.0+cpu", ">=2.4", True),
        ("2.10", ">=2.9", True),
        ("3.0.0rc1", ">=3.0", True),
        ("0.1.0", "==0.1.0", True),
        ("0.1.1", "==0.1.0", False),
    ],
)
def test_bounds(monkeypatch: pytest.MonkeyPatch, version: str, bounds: str, fits: bool) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    found = doctor._dependency("something", bounds)
    assert (found.problem is None) == fits
    if not fits:
        assert found.problem == f"{version} is installed, and {bounds} is needed"
