"""Meta-training: marginal losses against slow ones, gradients, decoding against slow decoding, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sequence_models import EXAMPLES, KINDS, TEXTS, make_joiner, make_model, make_tokenizer, make_trainer, ragged

from retrievers import DemonstrationBank
from retrievers.errors import LeakError, RecipeError, TrainingDataError, TrainingError
from retrievers.training import FewShotCollator, MetaTrainer, Schedule
from retrievers.training.answering import Answering
from retrievers.training.few_shot import FewShotBatch
from retrievers.training.marginal import marginalize_sequence, marginalize_token

MARGINALS = pytest.mark.parametrize("marginal", ["token", "sequence"])
EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Models so small gain nothing from threads, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationBank:
    return DemonstrationBank.build(tmp_path_factory.mktemp("bank") / "bank", EXAMPLES)


# Losses


def _direct(model: Any, prompt: list[int], answer: Sequence[int]) -> list[float]:
    """Log-probabilities of an answer's tokens: a model that is called for one row, without padding."""
    if model.config.is_encoder_decoder:
        before = torch.tensor([[model.config.decoder_start_token_id, *answer[:-1]]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *answer[:-1]]])).logits[0, len(prompt) - 1 :]
    return [float(row.log_softmax(0)[token]) for row, token in zip(logits.double(), answer, strict=True)]


@EVERY
@MARGINALS
@torch.no_grad()
def test_the_loss_is_that_of_a_slow_computation_row_by_row(kind: str, marginal: Any) -> None:
    trainer = make_trainer(kind, None, k=0, marginal=marginal, temperature=2.0)
    joiner, _ = make_joiner(kind)
    examples = ragged(8)
    found = trainer.answering.log_likelihood(FewShotCollator(joiner)(examples)).tolist()
    for one, value in zip(examples, found, strict=True):
        [rows] = joiner.join([(one.example, one.selected)])
        [answer] = joiner.answers([one.example])
        each = [_direct(trainer.model, ids, answer) for ids, _ in rows]
        powers = [math.exp(score / 2.0) for _, score in rows]
        shares = [power / sum(powers) for power in powers]
        if marginal == "token":
            columns = zip(*each, strict=True)
            wanted = math.prod(sum(s * math.exp(p) for s, p in zip(shares, ps, strict=True)) for ps in columns)
        else:
            wanted = sum(share * math.exp(sum(ps)) for share, ps in zip(shares, each, strict=True))
        assert value == pytest.approx(math.log(wanted), abs=2e-5)


@EVERY
def test_only_the_answer_is_learned_from(kind: str) -> None:
    """The loss has one term a token of the answer: a model that gives each token 1/V loses just log V for each."""
    trainer = make_trainer(kind, None, k=0)
    torch.nn.init.zeros_(trainer.model.get_output_embeddings().weight)
    joiner, tokenizer = make_joiner(kind)
    batch = FewShotCollator(joiner)(ragged(4))
    found = trainer.answering.log_likelihood(batch)
    torch.testing.assert_close(found, -batch.tokens.sum(1) * math.log(len(tokenizer)))


@EVERY
@MARGINALS
def test_accumulated_gradients_are_those_of_one_large_batch(kind: str, marginal: Any) -> None:
    trainer = make_trainer(kind, None, k=0, marginal=marginal)
    joiner, _ = make_joiner(kind)
    trainer.model.double()  # float32 rounds at 1e-7 or so, in any order
    found = []
    for size in (7, 3, 1):
        trainer.model.zero_grad()
        loss = trainer.accumulate(ragged(7), FewShotCollator(joiner), size)
        found.append((loss, [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]))
    assert sum(float(gradient.abs().sum()) for gradient in found[0][1]) > 1
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)  # scores and logits are float32
        for one, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


# Decoding


def _slow_greedy(answering: Answering, batch: FewShotBatch, limit: int) -> list[list[int]]:
    """Greedy decoding from the marginal probabilities of whole prefixes, each candidate token scored anew: no cache."""
    size = answering.model.config.vocab_size
    marginalize = marginalize_token if answering.marginal == "token" else marginalize_sequence
    found = []
    for number in range(len(batch.scores)):
        rows = batch.example_of == number
        prompts = [
            prompt[mask.bool()].tolist()
            for prompt, mask in zip(batch.prompts[rows], batch.prompt_mask[rows], strict=True)
        ]
        scores = batch.scores[number][batch.demonstrations[number]].double().numpy()[None]
        answer: list[int] = []
        while len(answer) < limit:
            best, best_token = -math.inf, -1
            prefixes = np.array([_every_next(answering.model, prompt, answer) for prompt in prompts])  # [K, V, length]
            for token in range(size):
                value = marginalize(scores, prefixes[None, :, token], np.ones((1, len(answer) + 1), bool))[0]
                if value > best:
                    best, best_token = value, token
            if best_token == answering.end:
                break
            answer.append(best_token)
        found.append(answer)
    return found


def _every_next(model: Any, prompt: list[int], answer: list[int]) -> list[list[float]]:
    """For each token of the vocabulary: the log-probabilities of the answer so far, and of that token after it."""
    if model.config.is_encoder_decoder:
        before = torch.tensor([[model.config.decoder_start_token_id, *answer]])
        logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=before).logits[0]
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 :]
    table = logits.double().log_softmax(1)
    past = [float(table[place, token]) for place, token in enumerate(answer)]
    return [[*past, float(value)] for value in table[len(answer)]]


@EVERY
@MARGINALS
@torch.no_grad()
def test_decoding_mixes_all_rows_as_slow_decoding_does(kind: str, marginal: Any) -> None:
    trainer = make_trainer(kind, None, k=0, marginal=marginal)
    # Sharp distributions, which rows disagree on; output embeddings that are the input's would repeat what they read.
    torch.manual_seed(5)
    trainer.model.set_output_embeddings(torch.nn.Linear(32, trainer.model.config.vocab_size, bias=False))
    for value in trainer.model.parameters():
        if value.dim() > 1:
            value.mul_(3.0)
    joiner, _ = make_joiner(kind)
    examples = ragged(8)
    batch = FewShotCollator(joiner)(examples)
    found = trainer.answering.generate(batch, 6)
    assert found == _slow_greedy(trainer.answering, batch, 6)
    assert len({tuple(answer) for answer in found}) > 2
    for one, answer in zip(examples, found, strict=True):  # neither the batch nor its padding matters
        assert trainer.answering.generate(FewShotCollator(joiner)([one]), 6) == [answer]


# Runs


@EVERY
def test_a_run_learns_and_answers(kind: str, tmp_path: Path) -> None:
    test = [one for one in EXAMPLES if one.input.endswith("old")]
    train = [one for one in EXAMPLES if one not in test]
    with DemonstrationBank.build(tmp_path / "bank", train) as some:
        trainer = make_trainer(kind, some, k=2, own_task=True, options={"near": 1.0})
        before = trainer.evaluate(test)
        seen: list[tuple[int, float]] = []
        schedule = Schedule(steps=90, batch=8, rate=5e-3)
        run = trainer.meta_train({"colours": train}, schedule, report=lambda *both: seen.append(both))
        assert seen == list(enumerate(run.losses, 1))
        assert run.cuts.examples == 720
        after = trainer.evaluate(test)
        assert before.exact_match < 0.4
        assert after.exact_match > 0.8
        assert after.token_f1 >= after.exact_match
        assert not trainer.model.training
        trainer.save(tmp_path / "saved")
        again = MetaTrainer(
            type(trainer.model).from_pretrained(tmp_path / "saved"),
            make_tokenizer(TEXTS, kind).from_pretrained(tmp_path / "saved"),
            some,
            k=2,
            own_task=True,
            options={"near": 1.0},
            max_length=64,
            max_answer=8,
        )
        assert again.evaluate(test, batch=4).answers == after.answers


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_tuning_without_demonstrations_is_the_same_code(kind: str) -> None:
    trainer = make_trainer(kind, None, k=0)
    few = [EXAMPLES[0], EXAMPLES[15], EXAMPLES[30]]
    run = trainer.tune(few, Schedule(steps=40, batch=2, accumulate=4, rate=5e-3))
    assert run.cuts.examples == 40 * 3  # no batch is larger than there are examples
    assert run.cuts.alone == run.cuts.rows == 120
    assert run.losses[-1] < 0.3 < run.losses[0]
    assert trainer.evaluate(few).answers == [one.output for one in few]


def _weights(trainer: MetaTrainer) -> list[torch.Tensor]:
    return [value.detach().clone() for value in trainer.model.parameters()]


def test_the_same_seed_gives_the_same_weights_and_a_stopped_run_goes_on(
    bank: DemonstrationBank, tmp_path: Path
) -> None:
    schedule = Schedule(steps=6, batch=2, accumulate=2)
    tasks = {"a": EXAMPLES[:20], "b": EXAMPLES[20:]}

    def run(seed: int, folder: Path | None = None, stop: int = 0) -> list[torch.Tensor]:
        trainer = make_trainer("bart", bank, dropout=0.2, seed=seed)

        def report(step: int, _loss: float) -> None:
            torch.rand(3)  # what others draw meanwhile does not matter
            if step == stop:
                raise KeyboardInterrupt

        trainer.meta_train(tasks, schedule, folder=folder, every=2, report=report)
        return _weights(trainer)

    wanted = run(0)
    torch.manual_seed(99)
    assert all(map(torch.equal, run(0), wanted))
    assert not all(map(torch.equal, run(1), wanted))
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        run(0, tmp_path, stop=5)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's own chance goes on undisturbed
    assert all(map(torch.equal, run(0, tmp_path), wanted))
    with pytest.raises(RecipeError, match="is of another run"):
        run(1, tmp_path)


def test_gradients_are_clipped_and_the_rate_rises_and_falls(bank: DemonstrationBank) -> None:
    schedule = Schedule(steps=10, rate=1.0, warmup=0.2)
    rates = [schedule.rate_at(step) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    moved = []
    for clip in (1.0, 1e-12):  # far below the epsilon of AdamW
        trainer = make_trainer("t5", bank)
        before = _weights(trainer)
        trainer.tune(EXAMPLES[:4], Schedule(steps=1, clip=clip, weight_decay=0.0))
        moved.append(max(float((a - b).abs().max()) for a, b in zip(before, _weights(trainer), strict=True)))
    assert moved[1] < moved[0] / 100
    for options in ({"steps": 0}, {"rate": math.nan}, {"clip": 0.0}, {"warmup": 2.0}, {"weight_decay": -1.0}):
        with pytest.raises(RecipeError, match=f"{next(iter(options))}"):
            Schedule(**options)  # type: ignore[arg-type]


def test_evaluation_data_and_bad_settings_are_refused(bank: DemonstrationBank) -> None:
    trainer = make_trainer("t5", bank)
    with pytest.raises(LeakError, match="is evaluation data: leave it out"):
        trainer.tune([replace(EXAMPLES[0], evaluation=True)])
    with pytest.raises(LeakError, match=r"call bank\.mark_evaluation"):
        trainer.evaluate(EXAMPLES)
    for call in (lambda: trainer.tune([]), lambda: trainer.evaluate([]), lambda: trainer.meta_train({"a": []})):
        with pytest.raises(TrainingDataError, match="no examples"):
            call()
    with pytest.raises(TrainingDataError, match="no tasks"):
        trainer.meta_train({})
    with pytest.raises(TrainingError, match="marginal is 'both'"):
        make_trainer("t5", bank, marginal="both")
    with pytest.raises(TrainingError, match="temperature is 0"):
        make_trainer("t5", bank, temperature=0)
    with pytest.raises(TrainingError, match="has 128 positions"):
        make_trainer("bart", bank, max_length=129)
    model = make_model("t5", make_tokenizer(TEXTS, "t5"))
    model.config.decoder_start_token_id = None
    with pytest.raises(TrainingError, match="decoder_start_token_id"):
        Answering(model, end=1, pad=0)
