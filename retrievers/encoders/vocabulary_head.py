"""The head of a masked-language model, pooled over positions as it is computed.

SPLADE keeps, for each entry of the vocabulary, the highest logit of any position (Formal et al., 2021, SPLADE v2, equation
6). The logits of a batch take ``batch x length x vocabulary`` numbers, of which one in ``length`` survives. Here the head
goes over the vocabulary in slices that fit a cache and keeps the highest only, and its gradient goes to the positions that
were highest and nowhere else. The activation (``log1p(relu)`` and its like) rises with the logit, so that it may come after
the maximum: sentence-transformers' own pooling does it.

Such an activation makes nothing of what is not above zero. Where no gradient is wanted, on a processor in float32, only the
entries are computed whose logits may be above zero (head_bounds.py).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from retrievers.encoders import head_bounds
from retrievers.indexes import threads

_SLICE_NUMBERS = {"cpu": 1 << 19}  # logits of a slice: some megabytes, which stay in a cache
_ACCELERATOR_NUMBERS = 1 << 26

_CUT_AT_ZERO = ("relu", "log1p_relu")  # activations that make zero of what is not above it
_MOST_CANDIDATES = 0.5  # of the vocabulary: with more, on average, the whole head is quicker

_LEAST_TOKENS = 256  # that a head reads before it gets bounds: these cost as much as some two hundred
_SAMPLED = 1021  # one number of so many tells one state of the weights from the next

_wanted: ContextVar[bool] = ContextVar("retrievers_pooled_head", default=False)
_mask: ContextVar[torch.Tensor | None] = ContextVar("retrievers_pooled_head_mask", default=None)
_first: ContextVar[tuple[_State, torch.Tensor] | None] = ContextVar("retrievers_pooled_head_first", default=None)
_states: weakref.WeakKeyDictionary[torch.nn.Module, _State] = weakref.WeakKeyDictionary()


@contextmanager
def pooled_heads() -> Iterator[None]:
    """Models that :func:`install` has seen give pooled logits ``[batch, 1, vocabulary]`` within this context."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)


def install(model: Any) -> None:
    """Let the heads of a ``SparseEncoder`` pool over positions, within :func:`pooled_heads`.

    That is each masked-language model which a ``SpladePooling`` by maximum follows, on either side of a router. Nothing
    else changes: weights, names, what is saved, and outputs outside of that context are as before. Models of other
    shapes are left as they are.
    """
    first = model[0]
    if hasattr(first, "sub_modules"):
        for route in first.sub_modules.values():
            _install_pair(list(route))
    else:
        _install_pair(list(model))


def _install_pair(modules: list[Any]) -> None:
    if len(modules) < 2 or type(modules[1]).__name__ != "SpladePooling" or modules[1].pooling_strategy != "max":
        return
    reader = modules[0]
    if getattr(reader, "transformer_task", None) != "fill-mask":
        return
    head = reader.model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # also where it is installed already, and where an adapter wraps it
        return
    head.__class__ = _PooledLinear
    if modules[1].activation_function in _CUT_AT_ZERO:
        _states[head] = _State()
    reader.register_forward_pre_hook(_before)
    reader.register_forward_hook(_after, always_call=True)


def _before(_module: Any, inputs: tuple[Any, ...]) -> None:
    features = inputs[0]
    if _wanted.get() and "attention_mask" in features and "cu_seq_lens_q" not in features:
        _mask.set(features["attention_mask"])


def _after(_module: Any, _inputs: Any, features: Any) -> Any:
    mask, first = _mask.get(), _first.get()
    _mask.set(None)
    _first.set(None)
    if first is not None and isinstance(features, MutableMapping):
        state, logits = first
        state.last = _same(features.get("token_embeddings"), logits)
    if mask is not None and isinstance(features, MutableMapping):
        # One row a text, and a text without any token gives zeros, as sentence-transformers' pooling does.
        features["attention_mask"] = mask.any(dim=1, keepdim=True).to(mask.dtype)
    return features


class _PooledLinear(torch.nn.Linear):
    """The output layer; within a forward pass that asked for it, the highest logits over the positions."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        mask = _mask.get()
        if mask is None:
            return super().forward(input)
        state = _states.get(self) if _few_matter(input, self.weight, self.bias) else None
        if state is not None and state.last and state.tokens >= _LEAST_TOKENS:
            found = positive_logits(input, self.weight, self.bias, mask, state)
        else:
            found = highest_logits(input, self.weight, self.bias, mask)
            if state is not None:
                state.tokens += mask.numel()
                if state.last is None:
                    _first.set((state, found.clone().unsqueeze(1)))
        return found.unsqueeze(1)

    def train(self, mode: bool = True) -> Any:
        if mode and self in _states:
            _states[self].forget()
        return super().train(mode)


@dataclass(eq=False)
class _State:
    """What is known of a head."""

    #: Whether its output is what the model gives, which is seen in the first pass: what is added to it would count else.
    last: bool | None = None
    #: How many tokens it has read whole.
    tokens: int = 0
    #: Which weights :attr:`bounds` were made from, and these themselves: an id is given again when its owner is gone.
    made_from: list[tuple[object, ...]] = field(default_factory=list)
    holders: list[weakref.ref[torch.Tensor]] = field(default_factory=list)
    #: None also where the weights cannot be bounded, or the bounds gain nothing.
    bounds: head_bounds.HeadBounds | None = None
    #: Texts and candidates so far.
    texts: int = 0
    candidates: int = 0

    def forget(self) -> None:
        self.made_from, self.bounds = [], None

    def current(
        self, hidden: torch.Tensor, kept: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> head_bounds.HeadBounds | None:
        """The bounds of these weights, made now, about the hidden states that are ``kept``, if others were seen before."""
        seen = [(id(one), *_version(one)) for one in (weight, bias) if one is not None]
        if seen != self.made_from or any(one() is None for one in self.holders):
            centre = hidden[kept].mean(dim=0).numpy()
            if not np.isfinite(centre).all():
                return None
            try:
                shift = None if bias is None else bias.numpy()
                self.bounds = head_bounds.HeadBounds(weight.numpy(), shift, centre)
            except ValueError:
                self.bounds = None
            self.texts = self.candidates = 0
            self.made_from, self.holders = seen, [weakref.ref(one) for one in (weight, bias) if one is not None]
        return self.bounds

    def count(self, found: list[NDArray[np.int32]], vocabulary: int) -> None:
        """Do without bounds where they leave too much."""
        self.texts += len(found)
        self.candidates += sum(map(len, found))
        if self.texts >= 32 and self.candidates > _MOST_CANDIDATES * vocabulary * self.texts:
            self.bounds = None


def _few_matter(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether only logits above zero matter, and bounds can tell which these may be."""
    given = [hidden, weight] + ([] if bias is None else [bias])
    return (
        not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and all(one.device.type == "cpu" and one.dtype is torch.float32 for one in given)
        and not any(one.is_inference() for one in given[1:])  # which have no version
        and head_bounds.available()
    )


def _version(values: torch.Tensor) -> tuple[object, ...]:
    """What tells these numbers from those that the same tensor holds after a step of an optimizer."""
    # What is written by way of ``.data`` leaves no other trace than itself.
    sample = values.view(-1)[::_SAMPLED].sum().item() if values.is_contiguous() else None
    return values.data_ptr(), values._version, sample


def _same(given: Any, wanted: torch.Tensor) -> bool:
    """Whether these are the same logits, NaN included."""
    return (
        isinstance(given, torch.Tensor)
        and given.shape == wanted.shape
        and given.dtype == wanted.dtype
        and torch.equal(given.nan_to_num(), wanted.nan_to_num())
    )


def positive_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor, state: _State
) -> torch.Tensor:
    """As :func:`highest_logits` where that is above zero; elsewhere some number that is not. Without gradients, in float32."""
    kept = mask.bool()
    bounds = state.current(hidden, kept, weight, bias)
    if bounds is None:
        return highest_logits(hidden, weight, bias, mask)
    rows = [tokens[some] for tokens, some in zip(hidden, kept, strict=True)]
    chosen = _candidates(bounds, rows)
    if chosen is None:
        return highest_logits(hidden, weight, bias, mask)
    state.count(chosen, len(weight))
    found = hidden.new_zeros(len(hidden), len(weight))
    for row, tokens, entries in zip(found, rows, chosen, strict=True):
        if len(entries) and len(tokens):
            columns = torch.from_numpy(entries).long()
            highest = torch.nn.functional.linear(tokens, weight[columns]).amax(dim=0)
            row[columns] = highest if bias is None else highest + bias[columns]
    return found


def _candidates(bounds: head_bounds.HeadBounds, rows: list[torch.Tensor]) -> list[NDArray[np.int32]] | None:
    """The entries of each text that may be above zero; None where a hidden state is no number."""
    found = threads.shared(lambda row: bounds.candidates(row.numpy()), rows, threads=torch.get_num_threads())
    sound = [entries for entries in found if entries is not None]
    return sound if len(sound) == len(found) else None


def highest_logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, mask: torch.Tensor
) -> torch.Tensor:
    """The highest logit over the positions that ``mask`` keeps, ``[batch, vocabulary]``, differentiable once.

    ``hidden`` is ``[batch, length, dim]``, ``weight`` ``[vocabulary, dim]``, ``bias`` ``[vocabulary]``, ``mask``
    ``[batch, length]`` with 1 for a token. Where a row has no token its values mean nothing. Of equal logits the first
    position gets the gradient, as in ``torch.max``.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    kept = mask.bool()
    # Padding repeats the row's first token, which changes no maximum and costs no pass over the logits.
    first = kept.to(torch.uint8).argmax(dim=1)
    rows = torch.arange(len(hidden), device=hidden.device)
    hidden = torch.where(kept.unsqueeze(-1), hidden, hidden[rows, first].unsqueeze(1))
    return _HighestLogits.apply(hidden, weight, bias)  # type: ignore[no-untyped-call, no-any-return]


class _HighestLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        batch, length, width = hidden.shape
        vocabulary = len(weight)
        tokens = hidden.reshape(batch * length, width)
        numbers = _SLICE_NUMBERS.get(hidden.device.type, _ACCELERATOR_NUMBERS)
        step = max(64, min(vocabulary, numbers // max(1, batch * length)))
        found = hidden.new_empty(batch, vocabulary)
        places = torch.empty(found.shape, dtype=torch.int64, device=hidden.device) if _keeps_places(hidden) else None
        for start in range(0, vocabulary, step):
            part = slice(start, start + step)
            logits = torch.nn.functional.linear(tokens, weight[part]).view(batch, length, -1)
            # The bias is the same at all positions, so it may come after the maximum.
            if places is None:
                torch.amax(logits, dim=1, out=found[:, part])
            else:
                found[:, part], places[:, part] = torch.max(logits, dim=1)
        if bias is not None:
            found += bias
        ctx.save_for_backward(hidden, weight, places)
        ctx.with_bias = bias is not None
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        hidden, weight, places = ctx.saved_tensors
        gradients = _row_by_row(given, hidden, weight) if places is None else _at_once(given, hidden, weight, places)
        return *gradients, given.sum(dim=0) if ctx.with_bias else None


def _keeps_places(hidden: torch.Tensor) -> bool:
    """Whether the forward pass notes where the highest logits are: an accelerator would wait for each row otherwise."""
    return hidden.device.type != "cpu"


def _row_by_row(given: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of hidden states and weights; what a row needs fits a cache."""
    to_hidden, to_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
    for row in range(len(hidden)):
        # What a relu has cut off has no gradient, so that as a rule few entries are left.
        entries = given[row].nonzero().squeeze(1)
        if not len(entries):
            continue
        chosen, slopes = weight[entries], given[row, entries].unsqueeze(1)
        places = (hidden[row] @ chosen.T).argmax(dim=0)
        to_hidden[row].index_add_(0, places, slopes * chosen)
        to_weight.index_add_(0, entries, slopes * hidden[row, places])
    return to_hidden, to_weight


def _at_once(
    given: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, places: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of all rows together, from the positions that the forward pass noted."""
    sums = torch.promote_types(hidden.dtype, torch.float32)  # in half precision they would lose what is small
    rows, entries = given.nonzero(as_tuple=True)
    slopes, where = given[rows, entries].unsqueeze(1).to(sums), rows * hidden.shape[1] + places[rows, entries]
    tokens = hidden.reshape(-1, hidden.shape[2])
    to_hidden = torch.zeros_like(tokens, dtype=sums).index_add_(0, where, slopes * weight[entries])
    to_weight = torch.zeros_like(weight, dtype=sums).index_add_(0, entries, slopes * tokens[where])
    return to_hidden.to(hidden.dtype).view_as(hidden), to_weight.to(weight.dtype)
