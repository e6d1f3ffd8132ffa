"""What a training set gives away of an evaluation: queries, and queries with their answers, that stand in both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrievers.documents import Document
from retrievers.errors import LeakError, TrainingDataError
from retrievers.training.near_duplicates import NearTexts, jaccard, normal_form
from retrievers.training.sets import TrainingSet

_BLOCK = 1 << 14  # training queries that are compared at a time
_SHOWN = 3
_LONGEST = 1 << 20  # characters of a document that are compared


@dataclass(frozen=True)
class QueryLeak:
    """A training query that is an evaluation query, or nearly so.

    ``similarity`` is the Jaccard coefficient of their trigrams; ``exact`` says that they differ in no more than case,
    spaces, punctuation and Unicode normal form.
    """

    row: int
    training_id: str
    training_text: str
    query_id: str
    query_text: str
    similarity: float
    exact: bool


@dataclass(frozen=True)
class PairLeak:
    """A training pair that is an evaluation query with a document relevant to it, or nearly so."""

    query: QueryLeak
    training_document: str
    document: str
    similarity: float


@dataclass(frozen=True)
class LeakReport:
    """The leaks of an evaluation into a training set; true where there are any.

    ``training_queries`` and ``evaluation_queries`` are the sizes of what was compared, ``queries`` and ``pairs`` the
    leaks, in the order of training rows. Every pair is also in ``queries``.
    """

    near: float
    training_queries: int
    evaluation_queries: int
    queries: tuple[QueryLeak, ...]
    pairs: tuple[PairLeak, ...]

    def __bool__(self) -> bool:
        return bool(self.queries)

    def mask(self) -> NDArray[np.bool_]:
        """Which training queries to leave out, bool ``[training queries]``: true for a row that leaks."""
        left_out = np.zeros(self.training_queries, bool)
        left_out[[leak.row for leak in self.queries]] = True
        return left_out

    def __str__(self) -> str:
        """Counts, and the first examples."""
        leaking = len({leak.query_id for leak in self.queries})
        exact = len({leak.query_id for leak in self.queries if leak.exact})
        pairs = len({(pair.query.query_id, pair.document) for pair in self.pairs})
        text = (
            f"{leaking:,} of {self.evaluation_queries:,} evaluation queries stand in {int(self.mask().sum()):,} of "
            f"{self.training_queries:,} training queries ({exact:,} the same but for case, spaces and punctuation, "
            f"{leaking - exact:,} within {self.near:g} of trigrams), and {pairs:,} with a relevant document"
        )
        for leak in sorted(self.queries, key=lambda leak: -leak.similarity)[:_SHOWN]:
            text += (
                f"; {leak.query_id!r:.40} {leak.query_text!r:.80} is {leak.training_id!r:.40} "
                f"{leak.training_text!r:.80} ({leak.similarity:.2f})"
            )
        return text


def find_leaks(
    training_set: TrainingSet,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]] | None = None,
    documents: Mapping[str, str] | Iterable[Document] | None = None,
    *,
    near: float = 0.9,
) -> LeakReport:
    """Find evaluation queries, and pairs of one with a relevant document, among the queries and pairs of training.

    ``queries`` are ids and texts; ``qrels`` grades, of which those above 0 are relevant; ``documents`` the evaluation's
    documents, of which the relevant ones to leaking queries are kept (texts, or Documents as from
    :func:`~retrievers.readers.read_documents`). Two texts match where the Jaccard coefficient of their character
    trigrams in :func:`~retrievers.training.near_duplicates.normal_form` is ``near`` or more: every such pair is found.
    Documents match by text, and where an evaluation's document has no text here, by id. Documents of more than a
    million characters are compared by their first million.

    In memory are the evaluation queries, 16,384 training queries at a time, and the leaks. Raises TrainingDataError for
    ``near`` outside 0.5 to 1.
    """
    if not 0.5 <= near <= 1:
        raise TrainingDataError(f"near is {near!r}: it is a Jaccard coefficient from 0.5 to 1")
    ids = list(queries)
    normal = [normal_form(queries[id]) for id in ids]
    table = NearTexts(normal, near)
    leaks: list[QueryLeak] = []
    for first in range(0, len(training_set), _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, len(training_set)))
        texts = training_set.queries.texts(rows)
        forms = [normal_form(text) for text in texts]
        for asked, known, similarity in zip(*(part.tolist() for part in table.find(forms)), strict=True):
            leaks.append(
                QueryLeak(
                    first + asked,
                    training_set.queries.id(first + asked),
                    texts[asked],
                    ids[known],
                    queries[ids[known]],
                    similarity,
                    forms[asked] == normal[known],
                )
            )
    pairs = _pairs(training_set, leaks, qrels or {}, documents, near)
    return LeakReport(near, len(training_set), len(ids), tuple(leaks), tuple(pairs))


def refuse_leaks(
    training_set: TrainingSet,
    queries: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]] | None = None,
    documents: Mapping[str, str] | Iterable[Document] | None = None,
    *,
    near: float = 0.9,
    allow: bool = False,
) -> LeakReport:
    """:func:`find_leaks`, which raises LeakError where it finds any, unless ``allow`` says otherwise."""
    report = find_leaks(training_set, queries, qrels, documents, near=near)
    if report and not allow:
        raise LeakError(
            f"{training_set.path}: {report}. Leave out the training queries of find_leaks(...).mask(), evaluate on other "
            "queries, or pass allow=True"
        )
    return report


def _pairs(
    training_set: TrainingSet,
    leaks: list[QueryLeak],
    qrels: Mapping[str, Mapping[str, int]],
    documents: Mapping[str, str] | Iterable[Document] | None,
    near: float,
) -> list[PairLeak]:
    relevant = {
        id: [document for document, grade in qrels.get(id, {}).items() if grade > 0]
        for id in {leak.query_id for leak in leaks}
    }
    forms = _forms({document for found in relevant.values() for document in found}, documents)
    stored: dict[int, str] = {}
    pairs: list[PairLeak] = []
    previous = -1
    for leak in leaks:
        if leak.row != previous:  # a document is often the positive of one query alone: keep those of one row
            stored.clear()
            previous = leak.row
        for row in training_set.positives.of(leak.row).tolist():
            if row not in stored:
                stored[row] = normal_form(training_set.documents.text(row)[:_LONGEST])
            id = training_set.documents.id(row)
            for document in relevant[leak.query_id]:
                form = forms.get(document)
                similarity = float(document == id) if form is None else _similarity(stored[row], form)
                if similarity >= near:
                    pairs.append(PairLeak(leak, id, document, similarity))
    return pairs


def _similarity(left: str, right: str) -> float:
    return 1.0 if left == right else jaccard(left, right)


def _forms(wanted: set[str], documents: Mapping[str, str] | Iterable[Document] | None) -> dict[str, str]:
    if documents is None:
        return {}
    if isinstance(documents, Mapping):
        return {id: normal_form(documents[id][:_LONGEST]) for id in wanted if id in documents}
    return {document.id: normal_form(document.content[:_LONGEST]) for document in documents if document.id in wanted}
