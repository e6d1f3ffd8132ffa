"""Classification without a language model: the labels of the demonstrations that are nearest to a text."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrievers.documents import Document
from retrievers.encoders import Encoder, load_encoder
from retrievers.errors import DemonstrationError, MissingDependencyError
from retrievers.queries import check_count
from retrievers.retriever import Retriever
from retrievers.specs import Spec

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:  # pragma: no cover
    raise MissingDependencyError(
        "DemonstrationClassifier needs scikit-learn: pip install scikit-learn (it comes with tri-retrievers[neural])"
    ) from error

_HELD_OUT = 2000  # training texts by which the temperature and the scope are tuned
_SMOOTHING = 0.01  # of the probability goes to the labels by their share in training: none is impossible
_STEPS = np.geomspace(0.02, 50, 40)  # temperatures that are tried, in standard deviations of the scores
_REFUSED = 0.05  # of what is in scope is taken for out of scope, where no example tells what is

Floats = NDArray[np.float64]


class DemonstrationClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """A label distribution from retrieved demonstrations, for scikit-learn: a text is what its neighbours are.

    The probability of a label is the sum of ``softmax(scores / temperature)`` over those of the ``k`` nearest training texts
    that have it, smoothed by the labels' shares in training. The temperature is tuned for the log loss by asking for up
    to 2,000 training texts, each held out of the search for it.

    ``encoder`` and ``index`` are those of :meth:`retrievers.Retriever.build`. ``temperature`` fixes the temperature.
    ``out_of_scope`` is a label that stands for texts like none of the others: a text is taken for it by the score of its best
    hit among the others. Where training texts have that label, the limit is the one by which most of them are told and most
    held-out texts of the others get their label, either share counting half; where none has, all but 5% of held-out
    texts pass it. ``random_state`` draws the texts held out.

    After ``fit``: ``classes_``, ``temperature_`` (None where no two training texts share a label, and nothing could be tuned),
    ``retriever_``. The index lies in a folder of its own, removed with the classifier; a classifier that is pickled
    takes its texts along, and builds the index again when it is loaded.
    """

    def __init__(
        self,
        encoder: str | Path | Encoder = "bm25",
        index: str | Spec | None = None,
        *,
        k: int = 16,
        temperature: float | None = None,
        out_of_scope: Any = None,
        random_state: int = 0,
    ) -> None:
        self.encoder = encoder
        self.index = index
        self.k = k
        self.temperature = temperature
        self.out_of_scope = out_of_scope
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        return tags

    def fit(self, X: Sequence[str] | ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Index texts (a sequence of ``n`` strings) with their labels ``[n]``, and tune.

        Raises DemonstrationError for what are no texts, for labels of another number, and for none in scope; QueryError,
        SpecError and EncoderError for the parameters.
        """
        texts, labels = _texts(X), np.asarray(y)
        check_count("k", self.k)
        if self.temperature is not None and not self.temperature > 0:
            raise DemonstrationError(f"temperature is {self.temperature!r}: it must be a number above 0")
        if labels.ndim != 1 or len(labels) != len(texts):
            raise DemonstrationError(f"{len(texts)} texts came with labels of shape {list(labels.shape)}")
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The number of unique classes"
            )  # an example of each is a use of this
            check_classification_targets(labels)
        inside = np.ones(len(texts), np.bool_) if self.out_of_scope is None else labels != self.out_of_scope
        if not inside.any():
            raise DemonstrationError("no text to learn from: all are out of scope, or there is none")
        self._labels, codes = np.unique(labels[inside], return_inverse=True)
        self._codes = codes.astype(np.int64)
        self._known = [texts[place] for place in np.flatnonzero(inside)]
        self.classes_ = self._labels
        if self.out_of_scope is not None:
            self.classes_ = np.unique(np.append(self._labels, np.array([self.out_of_scope], labels.dtype)))
        self._index()
        self._tune([texts[place] for place in np.flatnonzero(~inside)])
        return self

    def predict(self, X: Sequence[str] | ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The most probable label of each text, ``[n]``; of equal ones the first of ``classes_``."""
        probable = self.predict_proba(X)
        return np.asarray(self.classes_[probable.argmax(axis=1)])

    def predict_proba(self, X: Sequence[str] | ArrayLike) -> Floats:  # noqa: N803
        """The probabilities of the labels, float64 ``[n, classes]``, in the order of ``classes_``."""
        check_is_fitted(self)
        scores, codes = self._neighbours(_texts(X), self.k)
        inside = self._distribution(scores, codes, self._scale)
        if self.out_of_scope is None:
            return inside
        outside = self._outside(_best(scores), self._limit)
        found = np.zeros((len(inside), len(self.classes_)))
        found[:, np.searchsorted(self.classes_, self._labels)] = inside * (1 - outside)[:, None]
        found[:, np.flatnonzero(self.classes_ == self.out_of_scope)[0]] = outside
        return found

    def scope_score(self, X: Sequence[str] | ArrayLike) -> Floats:  # noqa: N803
        """How near the nearest training text in scope is, float64 ``[n]``: its score, 0 where nothing is found."""
        check_is_fitted(self)
        return _best(self._neighbours(_texts(X), 1)[0])

    def _index(self) -> None:
        folder = TemporaryDirectory(prefix="demonstrations-")
        model = load_encoder(self.encoder)
        documents = [Document(str(number), text) for number, text in enumerate(self._known)]
        self.retriever_ = Retriever.build(Path(folder.name) / "index", documents, encoder=model, index=self.index)
        self._shares = np.bincount(self._codes, minlength=len(self._labels)) / len(self._codes)
        weakref.finalize(self, _remove, self.retriever_, folder)

    def _tune(self, outside: list[str]) -> None:
        random = np.random.default_rng(self.random_state)
        counts = np.bincount(self._codes)
        fit = np.flatnonzero(counts[self._codes] > 1)  # a label's only text cannot be found when it is held out
        chosen = fit if len(fit) else np.arange(len(self._known))
        chosen = np.sort(random.permutation(chosen)[:_HELD_OUT])
        scores, codes = self._neighbours([self._known[row] for row in chosen], self.k, chosen)
        spread = _spread(scores)
        self.temperature_ = self.temperature
        if self.temperature is None and len(fit):
            truth = self._codes[chosen]
            losses = [self._loss(scores, codes, truth, spread * step) for step in _STEPS]
            self.temperature_ = float(spread * _STEPS[int(np.argmin(losses))])
        self._scale = spread if self.temperature_ is None else self.temperature_
        if self.out_of_scope is not None:
            self._fit_scope(scores, codes, self._codes[chosen], outside)

    def _loss(self, scores: Floats, codes: NDArray[np.int64], truth: NDArray[np.int64], temperature: float) -> float:
        found = self._distribution(scores, codes, temperature)
        return -float(np.log(found[np.arange(len(truth)), truth]).mean())

    def _fit_scope(
        self, scores: Floats, codes: NDArray[np.int64], truth: NDArray[np.int64], outside: list[str]
    ) -> None:
        """The score at which a text is in scope as likely as not; the chance rises as a logistic function of it."""
        inside = _best(scores)
        self._width = (float(inside.std()) or 1.0) / 4
        self._limit = float(np.quantile(inside, _REFUSED))
        if not outside:
            return
        others, theirs = self._neighbours(outside, self.k)
        found = self._distribution(scores, codes, self._scale)
        right, sure = found.argmax(axis=1) == truth, found.max(axis=1)
        unsure = self._distribution(others, theirs, self._scale).max(axis=1)
        best = -1.0
        for limit in np.quantile(np.concatenate([inside, _best(others)]), np.linspace(0, 1, 101)):
            kept = right & (sure * (1 - self._outside(inside, limit)) > self._outside(inside, limit))
            refused = unsure * (1 - self._outside(_best(others), limit)) < self._outside(_best(others), limit)
            if kept.mean() + refused.mean() > best:
                best, self._limit = float(kept.mean() + refused.mean()), float(limit)

    def _outside(self, best: Floats, limit: float) -> Floats:
        """The probability of being out of scope by the best score."""
        found: Floats = 1 / (1 + np.exp(np.clip((best - limit) / self._width, -50, 50)))
        return found

    def _neighbours(
        self, texts: list[str], k: int, own: NDArray[np.int64] | None = None
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Scores float64 ``[n, k]``, best first, minus infinity where there are fewer, and label codes; without ``own`` rows."""
        scores = np.full((len(texts), k), -np.inf)
        codes = np.zeros((len(texts), k), np.int64)
        found = self.retriever_.search(texts, k if own is None else k + 1)
        for number, hits in enumerate(found):
            rows = [(int(hit.id), hit.score) for hit in hits]
            kept = [row for row in rows if own is None or row[0] != own[number]][:k]
            scores[number, : len(kept)] = [score for _, score in kept]
            codes[number, : len(kept)] = self._codes[[row for row, _ in kept]]
        return scores, codes

    def _distribution(self, scores: Floats, codes: NDArray[np.int64], temperature: float) -> Floats:
        """Label probabilities, float64 ``[n, labels in scope]``; where nothing was found the labels' shares."""
        best = scores.max(axis=1, keepdims=True)
        weights = np.exp((scores - np.where(np.isfinite(best), best, 0)) / temperature)
        total = weights.sum(axis=1, keepdims=True)
        shares = np.zeros((len(scores), len(self._labels)))
        np.add.at(shares, (np.arange(len(scores))[:, None], codes), weights / np.where(total > 0, total, 1))
        smoothing = np.where(total > 0, _SMOOTHING, 1.0)
        found: Floats = (1 - smoothing) * shares + smoothing * self._shares
        return found

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("retriever_", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_known" in state:
            self._index()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str | bytes):
        raise DemonstrationError(f"expected a sequence of texts, got one {type(value).__name__}: {value!r:.80}")
    shape = getattr(value, "shape", None)
    if shape is not None and len(shape) != 1:
        raise DemonstrationError(f"expected a sequence of texts, got an array of shape {list(shape)}: give one column")
    try:
        texts = list(value)
    except TypeError:
        raise DemonstrationError(f"expected a sequence of texts, got a {type(value).__name__}") from None
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DemonstrationError(f"text {number} is a {type(text).__name__}, {text!r:.80}: all must be strings")
    return [str(text) for text in texts]


def _best(scores: Floats) -> Floats:
    best: Floats = scores.max(axis=1, initial=-np.inf)
    return np.where(np.isfinite(best), best, 0.0)


def _spread(scores: Floats) -> float:
    """The mean standard deviation of the scores of a query, over those with more than one; 1 where there is none."""
    found = [row[np.isfinite(row)] for row in scores]
    spreads = [float(row.std()) for row in found if len(row) > 1]
    return float(np.mean(spreads)) or 1.0 if spreads else 1.0


def _remove(retriever: Retriever, folder: TemporaryDirectory[str]) -> None:
    retriever.close()
    with suppress(OSError):
        folder.cleanup()
