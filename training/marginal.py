"""The probability of an answer, marginalised over the demonstrations that it was conditioned on.

Mueller et al. (2023), "Meta-training with Demonstration Retrieval for Efficient Few-shot Learning", after Lewis et al. (2020),
"Retrieval-Augmented Generation", section 2.1: a demonstration ``z_k`` counts with ``p(z_k | x)``, the softmax of the
retrieval scores. All is in log space, and the same for torch tensors, through which gradients flow, and numpy arrays.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrievers.errors import TrainingDataError, TrainingError

Values = TypeVar("Values", NDArray[Any], Any)
"""Numpy arrays or torch tensors: what goes in also comes out."""


def marginalize_token(
    scores: Values, log_probs: Values, tokens: Values, demonstrations: Values | None = None
) -> Values:
    """``log p(y|x) = sum over i of logsumexp over k of (log p(z_k|x) + log p(y_i | x, z_k, y_<i))``, ``[batch]``.

    Each token is mixed by itself: the demonstrations may take turns within one answer.

    ``scores`` ``[batch, K]`` are retrieval scores, ``log_probs`` ``[batch, K, length]`` those of the answer's tokens given
    each demonstration, ``tokens`` ``[batch, length]`` is true for real tokens, ``demonstrations`` ``[batch, K]`` for those that
    exist (all by default). What stands at other places, be it infinite or NaN, changes neither values nor gradients.
    A token that no demonstration makes possible gives ``-inf``, with a gradient of 0.

    Raises TrainingError for shapes that do not go together, TrainingDataError where an example has no demonstration, or the
    score of an existing one is NaN or infinite.
    """
    weights, kept = _prepared(scores, log_probs, tokens, demonstrations)
    mixed = log_sum_exp(weights[:, :, None] + kept, 1)
    found: Values = _where(tokens, mixed, 0.0).sum(-1)
    return found


def marginalize_sequence(
    scores: Values, log_probs: Values, tokens: Values, demonstrations: Values | None = None
) -> Values:
    """``log p(y|x) = logsumexp over k of (log p(z_k|x) + sum over i of log p(y_i | x, z_k, y_<i))``, ``[batch]``.

    One demonstration stands behind the whole answer. Parameters and errors are those of :func:`marginalize_token`.
    """
    weights, kept = _prepared(scores, log_probs, tokens, demonstrations)
    found: Values = log_sum_exp(weights + kept.sum(-1), 1)
    return found


def retrieval_weights(scores: Values, demonstrations: Values | None = None) -> Values:
    """``log p(z_k|x)``, ``[batch, K]``: the log-softmax of retrieval scores, ``-inf`` for demonstrations that do not exist.

    Raises as :func:`marginalize_token` does.
    """
    if scores.ndim != 2:
        raise TrainingError(f"retrieval scores have the shape {list(scores.shape)}: give [batch, K]")
    exist = scores == scores if demonstrations is None else _boolean(demonstrations)
    if exist.shape != scores.shape:
        raise TrainingError(
            f"retrieval scores have the shape {list(scores.shape)} and the mask of demonstrations {list(exist.shape)}: "
            "give one for each score"
        )
    finite = abs(scores) < float("inf")  # false for NaN
    wrong = ~finite if demonstrations is None else exist & ~finite
    if bool(wrong.any()):
        row, k = (int(places[0]) for places in _nonzero(wrong))
        raise TrainingDataError(
            f"example {row}: the retrieval score of demonstration {k} is {float(scores[row, k])}: mask what does not exist, "
            "and give finite scores"
        )
    empty = ~exist.any(-1)
    if bool(empty.any()):
        raise TrainingDataError(
            f"example {int(_nonzero(empty)[0][0])} has no demonstration, all {scores.shape[1]} are masked: give it one row "
            "without a demonstration, with any score"
        )
    cleaned = _where(exist, _where(exist, scores, 0.0), -float("inf"))
    found: Values = cleaned - log_sum_exp(cleaned, 1)[:, None]
    return found


def log_sum_exp(values: Values, axis: int) -> Values:
    """``log(sum(exp(values)))`` over an axis, which goes; ``-inf``, with a gradient of 0, where all values are that."""
    given: Any = values
    found: Values
    if isinstance(given, np.ndarray):
        most = given.max(axis=axis, keepdims=True)
        most = np.where(np.isfinite(most), most, 0.0).astype(given.dtype)
        with np.errstate(divide="ignore"):
            found = np.log(np.exp(given - most).sum(axis=axis)) + most.squeeze(axis)
        return found
    dead = (given == -float("inf")).all(dim=axis, keepdim=True)
    # torch's own gradient is NaN where all is -inf.
    found = given.masked_fill(dead, 0.0).logsumexp(dim=axis).masked_fill(dead.squeeze(axis), -float("inf"))
    return found


def _prepared(scores: Any, log_probs: Any, tokens: Any, demonstrations: Any) -> tuple[Any, Any]:
    """``log p(z_k|x)`` ``[batch, K]``, and ``log_probs`` with 0 where there is no token or no demonstration."""
    shape = tuple(log_probs.shape)
    if len(shape) != 3 or tuple(scores.shape) != shape[:2] or tuple(tokens.shape) != (shape[0], shape[2]):
        raise TrainingError(
            f"retrieval scores {list(scores.shape)}, log-probabilities {list(shape)} and tokens {list(tokens.shape)} do not go "
            "together: give [batch, K], [batch, K, length] and [batch, length]"
        )
    weights = retrieval_weights(scores, demonstrations)
    real = _boolean(tokens)[:, None, :]
    if demonstrations is not None:
        real = real & _boolean(demonstrations)[:, :, None]
    return weights, _where(real, log_probs, 0.0)


def _boolean(mask: Any) -> Any:
    return mask.astype(np.bool_) if isinstance(mask, np.ndarray) else mask.bool()


def _where(mask: Any, values: Any, other: float) -> Any:
    """Values where the mask is true; no gradient, not even NaN, comes from elsewhere."""
    if isinstance(values, np.ndarray):
        return np.where(_boolean(mask), values, np.asarray(other, values.dtype))
    return values.masked_fill(~_boolean(mask), other)


def _nonzero(mask: Any) -> Any:
    return mask.nonzero() if isinstance(mask, np.ndarray) else mask.nonzero(as_tuple=True)
