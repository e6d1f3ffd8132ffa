"""Ranks of systems over several collections, from the JSON that ``retrievers compare`` wrote for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrievers.errors import ComparisonError
from retrievers.significance import borda

_MEND = "give files that `retrievers compare --format json` wrote"


def combine(files: Mapping[str, str], measures: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """The Borda count of each system by each measure; ``files`` is ``{collection: path}``.

    ``measures`` are by default those of the first file. Raises ComparisonError, naming the file, for one that is no
    comparison, and where a collection lacks a measure or a system.
    """
    read = {collection: _read(path) for collection, path in files.items()}
    first = next(iter(next(iter(read.values())).values()))
    wanted = list(first) if measures is None else list(measures)
    for collection, systems in read.items():
        for system, means in systems.items():
            missing = [measure for measure in wanted if measure not in means]
            if missing:
                raise ComparisonError(
                    f"{files[collection]}: {system!r} has no {', '.join(missing)}, but {', '.join(means)}: name measures "
                    "that all collections have with --measures"
                )
    return {
        measure: borda({name: {s: means[measure] for s, means in systems.items()} for name, systems in read.items()})
        for measure in wanted
    }


def _read(path: str) -> dict[str, dict[str, float]]:
    """``{system: {measure: mean}}``."""
    try:
        value: Any = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ComparisonError(f"{path} is not JSON ({error}): {_MEND}") from None
    systems = value.get("systems") if isinstance(value, dict) else None
    if not isinstance(systems, dict) or not systems:
        raise ComparisonError(f"{path} holds no comparison: {_MEND}")
    found = {}
    for system, told in systems.items():
        means = told.get("means") if isinstance(told, dict) else None
        if not isinstance(means, dict) or not all(type(mean) in (int, float) for mean in means.values()):
            raise ComparisonError(f"{path}: the means of {system!r} are no numbers: {_MEND}")
        found[system] = {measure: float(mean) for measure, mean in means.items()}
    return found
