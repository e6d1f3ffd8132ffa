"""A sequence-to-sequence or causal model of transformers over joined rows: probabilities of answers, and answers."""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from retrievers.errors import TrainingError
from retrievers.training.few_shot import FewShotBatch
from retrievers.training.marginal import log_sum_exp, marginalize_sequence, marginalize_token, retrieval_weights

Marginal = Literal["token", "sequence"]
Steps = Generator[Tensor, Tensor, None]


class Answering:
    """Marginalised answers of a model: what training maximises, and what evaluation generates.

    ``model`` is a transformers model with a language-model head, ``end`` and ``pad`` token ids. Retrieval scores are
    divided by ``temperature`` before their softmax. Raises TrainingError for a ``marginal`` that is not known, a
    ``temperature`` that is not above 0, and a sequence-to-sequence model that does not say what its decoder starts with.
    """

    def __init__(
        self, model: Any, *, end: int, pad: int, marginal: Marginal = "token", temperature: float = 1.0
    ) -> None:
        if marginal not in ("token", "sequence"):
            raise TrainingError(f"marginal is {marginal!r}: it is 'token' or 'sequence'")
        if not 0 < temperature < float("inf"):
            raise TrainingError(f"temperature is {temperature}: it must be a number above 0")
        self.model, self.end, self.pad = model, end, pad
        self.marginal, self.temperature = marginal, temperature
        self.causal = not model.config.is_encoder_decoder
        if not self.causal:
            start = getattr(model.config, "decoder_start_token_id", None)
            if start is None:
                raise TrainingError(
                    f"the configuration of {type(model).__name__} has no decoder_start_token_id: set it, for T5 to the padding "
                    "token"
                )
            self.start: int = start
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    def log_likelihood(self, batch: FewShotBatch) -> Tensor:
        """``log p(y|x)`` of each gold answer, marginalised over the demonstrations, ``[batch]``; differentiable."""
        marginalize = marginalize_token if self.marginal == "token" else marginalize_sequence
        scores = batch.scores / self.temperature
        found: Tensor = marginalize(scores, self.log_probs(batch), batch.tokens, batch.demonstrations)
        return found

    def log_probs(self, batch: FewShotBatch) -> Tensor:
        """The log-probabilities of the gold tokens given each demonstration, float32 ``[batch, K, length]``."""
        answers, tokens = batch.answers[batch.example_of], batch.tokens[batch.example_of]
        read = self._causal_logits if self.causal else self._decoder_logits
        logits = read(batch, answers, tokens).float()
        return batch.spread(-cross_entropy(logits.transpose(1, 2), answers, reduction="none"))

    def _decoder_logits(self, batch: FewShotBatch, answers: Tensor, _tokens: Tensor) -> Tensor:
        """Logits before each answer token, ``[rows, length, vocabulary]``; padding comes last and is seen by no real token."""
        before = torch.cat([torch.full_like(answers[:, :1], self.start), answers[:, :-1]], dim=1)
        logits: Tensor = self.model(
            input_ids=batch.prompts, attention_mask=batch.prompt_mask, decoder_input_ids=before, use_cache=False
        ).logits
        return logits

    def _causal_logits(self, batch: FewShotBatch, answers: Tensor, tokens: Tensor) -> Tensor:
        """The same of a causal model, which reads each answer right after its prompt, wherever that ends."""
        length = answers.shape[1]
        places = batch.prompt_mask.sum(1, keepdim=True) + torch.arange(length, device=answers.device)
        ids = pad(batch.prompts, (0, length), value=self.pad).scatter(1, places, answers)
        mask = pad(batch.prompt_mask, (0, length)).scatter(1, places, tokens.long())
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **self._positions(ids)).logits
        return logits.gather(1, (places - 1)[:, :, None].expand(-1, -1, logits.shape[2]))

    @torch.no_grad()
    def generate(self, batch: FewShotBatch, limit: int) -> list[list[int]]:
        """The most probable next token, one after the other, of all rows mixed; at most ``limit``, without the end.

        By ``token`` the rows' distributions are mixed with the retrieval weights at every step. By ``sequence`` the weights
        follow from what was generated: a row counts with ``p(z_k|x) p(y_<i | x, z_k)``, as the model of whole sequences
        has it.
        """
        weights = retrieval_weights(batch.scores / self.temperature, batch.demonstrations)
        steps = self._causal_steps(batch) if self.causal else self._decoder_steps(batch)
        logits = next(steps)
        count = len(batch.scores)
        going = torch.ones(count, dtype=torch.bool, device=logits.device)
        found: list[list[int]] = [[] for _ in range(count)]
        for place in range(limit):
            log_probs = batch.spread(logits.float().log_softmax(1))
            chosen = log_sum_exp(weights[:, :, None] + log_probs, 1).argmax(1)
            if self.marginal == "sequence":
                taken = chosen[:, None, None].expand(-1, weights.shape[1], 1)
                weights = retrieval_weights_after(weights, log_probs.gather(2, taken).squeeze(2))
            going = going & (chosen != self.end)
            for number in going.nonzero()[:, 0].tolist():
                found[number].append(int(chosen[number]))
            if place + 1 == limit or not bool(going.any()):
                break
            logits = steps.send(chosen[batch.example_of])
        return found

    def _decoder_steps(self, batch: FewShotBatch) -> Steps:
        """Logits of the next token, ``[rows, vocabulary]``; takes the token of each row that was chosen."""
        encoded = self.model.get_encoder()(input_ids=batch.prompts, attention_mask=batch.prompt_mask)
        past, token = None, torch.full_like(batch.prompts[:, 0], self.start)
        while True:
            out = self.model(
                encoder_outputs=encoded,
                attention_mask=batch.prompt_mask,
                decoder_input_ids=token[:, None],
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            token = yield out.logits[:, -1]

    def _causal_steps(self, batch: FewShotBatch) -> Steps:
        """Prompts keep their padding on the right: it is masked, and positions go on from the end of each prompt."""
        mask, lengths = batch.prompt_mask, batch.prompt_mask.sum(1)
        out = self.model(input_ids=batch.prompts, attention_mask=mask, use_cache=True, **self._positions(batch.prompts))
        logits = out.logits[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        while True:
            token = yield logits
            mask = pad(mask, (0, 1), value=1)
            positions = {"position_ids": lengths[:, None]} if self._takes_positions else {}
            out = self.model(
                input_ids=token[:, None],
                attention_mask=mask,
                past_key_values=out.past_key_values,
                use_cache=True,
                **positions,
            )
            lengths = lengths + 1
            logits = out.logits[:, -1]

    def _positions(self, ids: Tensor) -> dict[str, Tensor]:
        if not self._takes_positions:
            return {}
        return {"position_ids": torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)}


def retrieval_weights_after(weights: Tensor, taken: Tensor) -> Tensor:
    """``log p(z_k | x, y_<=i)``, ``[batch, K]``, from that before the token and the token's log-probability in each row."""
    joint = weights + taken
    found: Tensor = joint - log_sum_exp(joint, 1)[:, None]
    return found
