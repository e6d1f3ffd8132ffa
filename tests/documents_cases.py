"""Cases of the kernels that read and find documents, sound and spoilt, and what a module answers to them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from retrievers.documents import Document
from retrievers.indexes.store import FOLDER, Entry, write_store


def documents_case(seed: int) -> dict[str, Any]:
    """Arguments of ``documents_read`` and ``documents_find``: parts of any length, ids that begin alike, some not there."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return "".join(rng.choice(list("aab\0 é漢🙂"), int(rng.integers(most + 1))))

    n = int(rng.choice([0, 1, 2, 3, 10, 100]))
    ids = sorted({text(6) or "a" for _ in range(n)})
    entries = [
        Entry(
            int(rng.integers(1 << 40)),
            text(9),
            Document(id_, text(30), text(3), {"n": len(id_)} if len(id_) % 2 else {}),
        )
        for id_ in ids
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder), entries)
        records, starts = (np.load(Path(folder, FOLDER, f"{name}.npy")) for name in ("records", "starts"))
    rows = rng.integers(0, max(len(ids), 1), int(rng.choice([0, 1, 2, 5, 90]))).tolist() if ids else []
    asked = [*(ids[row] for row in rows), text(6), text(2), "", "\ud800"]
    return {"records": records, "starts": starts, "rows": rows, "parts": int(rng.integers(64)), "ids": asked}


def damaged_documents_case(seed: int) -> dict[str, Any]:
    case, rng = documents_case(seed), np.random.default_rng(seed)
    for name in ("records", "starts"):
        if rng.random() < 0.6 and len(case[name]):
            spoilt = case[name].view(np.uint8)
            at = rng.integers(len(spoilt), size=int(rng.choice([1, 3, 50])))
            spoilt[at] = rng.choice([0, 1, 127, 255, int(rng.integers(256))], len(at))
    case["rows"] += [[], [], [-1], [len(case["starts"])], [1 << 40]][int(rng.integers(5))]
    return case


def run_documents(module: Any, case: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What was read, the rows of the ids, and the documents as objects; or what each was refused for."""

    def told(function: Any, *arguments: Any) -> Any:
        try:
            return function(case["records"], case["starts"], *arguments)
        except ValueError as error:
            return str(error)

    made = told(module.documents_made, case["rows"], Document, lambda row, packed: {str(row): packed})
    return told(module.documents_read, case["rows"], case["parts"]), told(module.documents_find, case["ids"]), made
