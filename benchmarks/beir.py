"""Real collections in BEIR layout, from the folder that the environment variable RETRIEVERS_SHARED names."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrievers import Demonstration

Qrels = dict[str, dict[str, int]]


def folder(name: str) -> Path:
    """The folder of a collection; ends the program, saying why, where there is none."""
    shared = os.environ.get("RETRIEVERS_SHARED")
    if not shared:
        sys.exit("set RETRIEVERS_SHARED to the folder that holds data/ with the collections in BEIR layout")
    path = Path(shared) / "data" / name
    if not path.is_dir():
        sys.exit(f"{path} does not exist")
    return path


def pool(name: str, split: str, output: str = "label") -> list[Demonstration]:
    """A split of a pool of demonstrations, whose lines have the input in ``text``."""
    from retrievers import read_demonstrations

    [place] = folder(name).glob(f"{split}.jsonl*")
    return list(read_demonstrations(place, task=name, input="text", output=output))


def queries(name: str, split: str = "test") -> tuple[dict[str, str], Qrels]:
    """The judged queries of a split, by id, and their judgements."""
    root = folder(name)
    qrels: Qrels = {}
    with (root / "qrels" / f"{split}.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, grade = line.rstrip("\n").split("\t")
            qrels.setdefault(query, {})[document] = int(grade)
    path = root / "queries.jsonl"
    raw = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    records = [json.loads(line) for line in raw.split(b"\n") if line]
    texts = {record["_id"]: record["text"] for record in records}
    return {query: texts[query] for query in qrels}, qrels


def ndcg(run: dict[str, dict[str, float]], qrels: Qrels) -> float:
    """nDCG@10 by ir-measures (trec_eval's own numbers)."""
    import ir_measures

    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10])
