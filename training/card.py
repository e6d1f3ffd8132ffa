"""The model card of a trained model: how it was made, from what, and what was measured."""

from __future__ import annotations

from retrievers.encoders.model import LIBRARY_CLASSES
from retrievers.training.development import MEASURE
from retrievers.training.recipe import Recipe
from retrievers.training.sets import TrainingSet


def card(recipe: Recipe, data: TrainingSet, steps: int, quality: float | None) -> str:
    """The text of ``README.md``, Markdown with the metadata that hubs read."""
    kind = recipe.model.kind
    tags = ["sentence-transformers", "retrieval", kind]
    lines = ["---", "library_name: sentence-transformers", "pipeline_tag: feature-extraction", "tags:"]
    lines += [f"- {tag}" for tag in tags] + ["---", ""]
    what = "An inference-free sparse" if kind == "sparse" else f"A {kind}"
    lines += [
        f"# {recipe.name or 'retriever'}",
        "",
        f"{what} retriever, trained from `{recipe.model.start}` in {steps:,} steps of "
        f"{recipe.batches.size * recipe.batches.accumulate:,} queries.",
        "",
        "## Use",
        "",
        "```python",
        "from retrievers import Retriever",
        "",
        'retriever = Retriever.build("index", documents, encoder="PATH/OF/THIS/FOLDER")',
        'hits = retriever.search("a question", k=10)',
        "```",
        "",
        f"It is a plain sentence-transformers model: `sentence_transformers.{LIBRARY_CLASSES[kind]}` loads it.",
        "",
        "## Quality",
        "",
    ]
    if quality is None:
        lines += ["Not measured: the recipe names no development set."]
    else:
        wanted = recipe.development
        lines += [
            f"{MEASURE} {quality:.4f} on the split `{wanted.split}` of `{wanted.data}`, {wanted.queries:,} queries at most over "
            f"{wanted.documents:,} documents or more, in an exact index. Weights were chosen by it, so that it is an upper "
            "estimate.",
        ]
    lines += [
        "",
        "## Data",
        "",
        f"`{data.path.name}`: {len(data):,} queries, {len(data.documents):,} documents, {len(data.positives.rows):,} "
        f"positives, {len(data.candidates.rows):,} candidates"
        + (f", scored by {', '.join(recipe.data.teachers)}." if recipe.data.teachers else "."),
        "",
        "## Recipe",
        "",
        "```toml",
        recipe.to_toml().rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)
