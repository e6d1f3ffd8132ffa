"""Measuring a model while it trains: nDCG@10 of a real index, built anew each time."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrievers.documents import Document
from retrievers.encoders.dense import DenseEncoder
from retrievers.encoders.multi_vector import MultiVectorEncoder
from retrievers.encoders.sparse import SparseEncoder
from retrievers.errors import RecipeError
from retrievers.evaluation import evaluate
from retrievers.lines import Source, plain_or_gzipped
from retrievers.queries import read_queries
from retrievers.readers import read_beir
from retrievers.retriever import Retriever
from retrievers.runs import read_qrels
from retrievers.training.recipe import Development

ENCODERS: dict[str, Any] = {"dense": DenseEncoder, "sparse": SparseEncoder, "multi-vector": MultiVectorEncoder}
MEASURE = "nDCG@10"


class DevelopmentSet:
    """Questions with judgements, and the documents of an index: all judged ones, and others drawn with a fixed seed."""

    def __init__(
        self, queries: Mapping[str, str], qrels: Mapping[str, Mapping[str, int]], documents: list[Document]
    ) -> None:
        self.queries, self.qrels, self.documents = queries, qrels, documents

    @classmethod
    def read(cls, recipe: Development) -> DevelopmentSet:
        """The set of a BEIR folder, cut down to the recipe's numbers.

        Raises RecipeError where the split has no judged query, and what reading the files raises.
        """
        root = Path(recipe.data)
        qrels = read_qrels(_present(root, f"qrels/{recipe.split}.tsv"))
        texts = {query.id: query.text for query in read_queries(_present(root, "queries.jsonl"))}
        judged = sorted(query for query, grades in qrels.items() if query in texts and max(grades.values()) > 0)
        if not judged:
            raise RecipeError(f"{root} has no judged query in the split {recipe.split!r}: set development.split")
        chosen = random.Random(0).sample(judged, min(recipe.queries, len(judged)))
        wanted = {id for query in chosen for id in qrels[query]}
        documents = [document for document in read_beir(root) if document.id in wanted]
        others = max(0, recipe.documents - len(documents))
        # One pass, and only what is kept in memory (reservoir sampling, Vitter's algorithm R).
        draw = random.Random(1)
        kept: list[Document] = []
        for seen, document in enumerate(one for one in read_beir(root) if one.id not in wanted):
            if len(kept) < others:
                kept.append(document)
            elif (place := draw.randrange(seen + 1)) < others:
                kept[place] = document
        return cls(
            {query: texts[query] for query in chosen}, {query: qrels[query] for query in chosen}, documents + kept
        )

    def measure(self, model: Any, kind: str) -> float:
        """nDCG@10 of an exact index that the model builds; whether the model was training is left as it was."""
        training = model.training
        folder = Path(tempfile.mkdtemp(prefix="retrievers-development-"))
        try:
            with Retriever.build(folder / "index", self.documents, encoder=ENCODERS[kind](model)) as retriever:
                return evaluate(retriever, self.queries, self.qrels, MEASURE, k=10).means[MEASURE]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            model.train(training)


def _present(root: Path, name: str) -> str:
    found = plain_or_gzipped(root / name)
    if found is None:
        raise Source.at(root / name).missing()
    return found
