"""Few-shot training: joined rows and what is cut of them, marginal losses against slow ones, decoding, and whole runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sequence_models import KINDS, make_model, make_tokenizer

from retrievers import Demonstration, DemonstrationBank, Selected
from retrievers.errors import LeakError, RecipeError, TrainingDataError, TrainingError
from retrievers.training import FewShotCollator, FewShotSet, Joiner, MetaTrainer, Schedule, UnifiedQA
from retrievers.training.answering import Answering
from retrievers.training.answers import exact_match, token_f1
from retrievers.training.batches import MixedBatches
from retrievers.training.few_shot import FewShotBatch, FewShotExample
from retrievers.training.marginal import marginalize_sequence, marginalize_token

COLOURS = {
    "bright red": ["apple", "blood", "rose", "tomato", "cherry"],
    "green": ["grass", "leaf", "frog", "lime", "moss"],
    "blue": ["sky", "sea", "jeans", "whale", "ink"],
}
SIZES = ["big", "tiny", "old"]
EXAMPLES = [
    Demonstration(f"{colour}/{thing}/{size}", "colours", f"{thing} that is {size}", colour)
    for colour, things in COLOURS.items()
    for thing in things
    for size in SIZES
]
TEXTS = [f"question: {one.input} answer: {one.output} context: what is it" for one in EXAMPLES]
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


def _trainer(kind: str, bank: DemonstrationBank | None, *, dropout: float = 0.0, **options: Any) -> MetaTrainer:
    tokenizer = make_tokenizer(TEXTS, kind)
    model = make_model(kind, tokenizer, dropout=dropout)
    return MetaTrainer(model, tokenizer, bank, **{"k": 3, "max_length": 64, "max_answer": 8, **options})


def _ragged(number: int) -> list[FewShotExample]:
    """Examples with 0 to 3 demonstrations of uneven lengths, and answers of one or two words."""
    found = []
    for at in range(number):
        one = replace(EXAMPLES[7 * at % len(EXAMPLES)], metadata={"context": "what is it"} if at % 2 else {})
        near = [EXAMPLES[(11 * at + 5 * step + 1) % len(EXAMPLES)] for step in range(at % 4)]
        near = [replace(each, input=f"{each.input} " * (1 + step)) for step, each in enumerate(near)]
        found.append(FewShotExample(one, tuple(Selected(each, 2.5 - step) for step, each in enumerate(near))))
    return found


def _joiner(kind: str, **options: Any) -> tuple[Joiner, Any]:
    tokenizer = make_tokenizer(TEXTS, kind)
    return Joiner(tokenizer, causal=kind == "gpt2", **options), tokenizer


# Joining


def test_rows_are_written_in_the_form_of_unified_qa() -> None:
    example = replace(EXAMPLES[0], metadata={"context": "what is it"})
    selected = [Selected(EXAMPLES[20], 1.5)]
    written = {}
    for kind in KINDS:
        joiner, tokenizer = _joiner(kind)
        [[(ids, score)]] = joiner.join([(example, selected)])
        assert score == 1.5
        written[kind] = tokenizer.decode(ids)
        [answer] = joiner.answers([example])
        wanted = "<s> bright red </s>" if kind == "bart" else "bright red </s>"
        assert tokenizer.decode(answer) == wanted
    demonstration = "question : leaf that is old answer : green"
    assert EXAMPLES[20].input == "leaf that is old"
    question = "question : apple that is big"
    assert written["t5"] == f"{demonstration} {question} answer : context : what is it </s>"
    assert written["bart"] == f"<s> {demonstration} {question} answer : <mask> context : what is it </s>"
    assert written["gpt2"] == f"{demonstration} {question} context : what is it answer :"


def test_a_causal_model_reads_prompt_and_answer_as_one_text() -> None:
    """With GPT-2's own kind of tokens, in which a space belongs to the word after it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bytes_ = ByteLevelBPETokenizer()
    bytes_.train_from_iterator(TEXTS, vocab_size=400, special_tokens=["<|endoftext|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_._tokenizer, eos_token="<|endoftext|>")
    joiner = Joiner(tokenizer, causal=True)
    [[(prompt, _)]] = joiner.join([(EXAMPLES[0], [Selected(EXAMPLES[20], 1.0)])])
    [answer] = joiner.answers([EXAMPLES[0]])
    text = f"question: {EXAMPLES[20].input} answer: green question: {EXAMPLES[0].input} answer: bright red"
    assert tokenizer.decode([*prompt, *answer]) == f"{text}<|endoftext|>"
    assert [*prompt, *answer[:-1]] == tokenizer(text)["input_ids"]


def test_another_form_can_be_given() -> None:
    joiner, tokenizer = _joiner("t5", form=UnifiedQA(("answer", "question")))
    [[(ids, _)]] = joiner.join([(EXAMPLES[0], [])])
    assert tokenizer.decode(ids) == "answer : question : apple that is big </s>"


@EVERY
def test_demonstrations_are_cut_first_and_the_input_never(kind: str) -> None:
    example = EXAMPLES[0]
    long_input = replace(EXAMPLES[20], input="leaf that is old " * 10)
    long_context = replace(EXAMPLES[20], metadata={"context": "what is it " * 20})
    long_answer = replace(EXAMPLES[20], output="green " * 40)
    selected = [Selected(one, 1.0) for one in (EXAMPLES[20], long_input, long_context, long_answer)]
    joiner, tokenizer = _joiner(kind, max_length=36, max_answer=6)
    [rows] = joiner.join([(example, selected)])
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in rows]
    end = "question : apple that is big answer :"
    assert all(text.endswith(end) and "answer : green" in text for text in texts)
    assert len(rows) == 3
    room = 30 if kind == "gpt2" else 36
    lengths = [len(ids) for ids, _ in rows]
    assert lengths[0] < lengths[1] == room  # as much stays as there is room for
    assert lengths[2] == room
    assert "context : what is it" in texts[2]
    counts = joiner.cuts
    assert (counts.examples, counts.rows, counts.alone) == (1, 3, 0)
    assert (counts.demonstrations_cut, counts.demonstrations_dropped) == (2, 1)
    assert "demonstrations cut 2, demonstrations dropped 1" in str(counts)


def test_without_room_for_demonstrations_the_input_stands_alone() -> None:
    joiner, tokenizer = _joiner("t5", max_length=12)
    [[(ids, score)]] = joiner.join([(EXAMPLES[0], [Selected(EXAMPLES[20], 3.0)])])
    assert tokenizer.decode(ids) == "question : apple that is big answer : </s>"
    assert score == 0.0
    assert (joiner.cuts.demonstrations_dropped, joiner.cuts.alone, joiner.cuts.inputs_cut) == (1, 1, 0)


def test_what_is_too_long_is_refused_or_cut_and_counted() -> None:
    long = replace(EXAMPLES[0], input="apple that is big " * 9, metadata={"context": "what is it"})
    refusing, _ = _joiner("t5", max_length=30)
    message = (
        r"'bright red/apple/big' of task 'colours': the input has 46 tokens, and there is room for 30: raise max_length"
    )
    with pytest.raises(TrainingDataError, match=message):
        refusing.join([(long, [Selected(EXAMPLES[20], 1.0)])])
    with pytest.raises(TrainingDataError, match=message):
        refusing.check([EXAMPLES[0], long])
    wordy = replace(EXAMPLES[0], output="red " * 20)
    short, _ = _joiner("t5", max_answer=5)
    with pytest.raises(TrainingDataError, match="the answer has 21 tokens, and there is room for 5: raise max_answer"):
        short.check([wordy])
    cutting, tokenizer = _joiner("t5", max_length=30, max_answer=5, overlong="cut")
    cutting.check([long, wordy])
    [[(ids, _)]] = cutting.join([(long, [])])
    assert len(ids) == 30
    assert tokenizer.decode(ids).startswith("question : apple that is big apple")
    assert tokenizer.decode(ids).endswith("answer : </s>")
    assert len(cutting.answers([wordy])[0]) == 5
    assert (cutting.cuts.inputs_cut, cutting.cuts.answers_cut) == (1, 1)
    for options in ({"max_answer": 1}, {"max_length": 1}, {"overlong": "drop"}):
        with pytest.raises(TrainingError):
            _joiner("t5", **options)


# The data set and batches


def test_the_set_selects_from_the_bank_and_never_what_must_not_be_seen(tmp_path: Path) -> None:
    copies = [
        EXAMPLES[0],
        replace(EXAMPLES[0], id="copy", input="Apple that is big!"),
        replace(EXAMPLES[3], id="marked", evaluation=True),
        *(right := [EXAMPLES[1], EXAMPLES[2], EXAMPLES[6]]),
        replace(EXAMPLES[9], id="other", task="others"),
    ]
    with DemonstrationBank.build(tmp_path / "bank", copies) as some:
        asked: dict[bool, list[str]] = {}
        for own_task in (False, True):
            [found] = FewShotSet([EXAMPLES[0]], some, k=9, own_task=own_task)
            asked[own_task] = [one.demonstration.id for one in found.selected]
            scores = [one.score for one in found.selected]
            assert scores == sorted(scores, reverse=True)
        assert sorted(asked[True]) == sorted(one.id for one in right)
        assert sorted(asked[False]) == sorted(["other", *asked[True]])
        [drawn] = FewShotSet([EXAMPLES[0]], some, k=2, strategy="random", seed=3)
        assert [one.score for one in drawn.selected] == [0.0, 0.0]


def test_the_set_goes_into_a_loader_of_torch(bank: DemonstrationBank) -> None:
    data, (joiner, _) = FewShotSet(EXAMPLES[:6], bank, k=2), _joiner("bart")
    batches = list(torch.utils.data.DataLoader(data, batch_size=4, collate_fn=FewShotCollator(joiner)))
    assert [list(batch.demonstrations.shape) for batch in batches] == [[4, 2], [2, 2]]
    assert batches[0].prompts.shape == batches[0].prompt_mask.shape
    assert data[-1] == data[5]
    with pytest.raises(TrainingDataError, match="k is 2 and the bank None"):
        FewShotSet(EXAMPLES, None, k=2)
    with pytest.raises(TrainingDataError, match="example 0 is a str"):
        FewShotSet(["a"], bank)  # type: ignore[list-item]
    with pytest.raises(TrainingDataError, match="nothing to make a batch of"):
        FewShotCollator(joiner)([])


def test_batches_pad_on_the_right_and_hold_rows_that_exist() -> None:
    joiner, tokenizer = _joiner("gpt2")
    examples = _ragged(6)
    batch = FewShotCollator(joiner)(examples)
    counts = [max(1, len(one.selected)) for one in examples]
    assert batch.demonstrations.sum(1).tolist() == counts
    assert batch.example_of.tolist() == [number for number, count in enumerate(counts) for _ in range(count)]
    assert (batch.prompt_mask.diff(dim=1) <= 0).all()  # ones, then zeros
    rows = [row for each in joiner.join([(one.example, one.selected) for one in examples]) for row in each]
    for prompt, mask, (ids, score), place in zip(
        batch.prompts, batch.prompt_mask, rows, batch.demonstrations.nonzero().tolist(), strict=True
    ):
        assert prompt[mask.bool()].tolist() == ids
        assert batch.scores[tuple(place)] == score
    for answer, tokens, one in zip(batch.answers, batch.tokens, examples, strict=True):
        assert tokenizer.decode(answer[tokens]) == f"{one.example.output} </s>"


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
    trainer = _trainer(kind, None, k=0, marginal=marginal, temperature=2.0)
    joiner, _ = _joiner(kind)
    examples = _ragged(8)
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
    trainer = _trainer(kind, None, k=0)
    torch.nn.init.zeros_(trainer.model.get_output_embeddings().weight)
    joiner, tokenizer = _joiner(kind)
    batch = FewShotCollator(joiner)(_ragged(4))
    found = trainer.answering.log_likelihood(batch)
    torch.testing.assert_close(found, -batch.tokens.sum(1) * math.log(len(tokenizer)))


@EVERY
@MARGINALS
def test_accumulated_gradients_are_those_of_one_large_batch(kind: str, marginal: Any) -> None:
    trainer = _trainer(kind, None, k=0, marginal=marginal)
    joiner, _ = _joiner(kind)
    trainer.model.double()  # float32 rounds at 1e-7 or so, in any order
    found = []
    for size in (7, 3, 1):
        trainer.model.zero_grad()
        loss = trainer.accumulate(_ragged(7), FewShotCollator(joiner), size)
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
    trainer = _trainer(kind, None, k=0, marginal=marginal)
    # Sharp distributions, which rows disagree on; output embeddings that are the input's would repeat what they read.
    torch.manual_seed(5)
    trainer.model.set_output_embeddings(torch.nn.Linear(32, trainer.model.config.vocab_size, bias=False))
    for value in trainer.model.parameters():
        if value.dim() > 1:
            value.mul_(3.0)
    joiner, _ = _joiner(kind)
    examples = _ragged(8)
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
        trainer = _trainer(kind, some, k=2, own_task=True, options={"near": 1.0})
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
    trainer = _trainer(kind, None, k=0)
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
        trainer = _trainer("bart", bank, dropout=0.2, seed=seed)

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
        trainer = _trainer("t5", bank)
        before = _weights(trainer)
        trainer.tune(EXAMPLES[:4], Schedule(steps=1, clip=clip, weight_decay=0.0))
        moved.append(max(float((a - b).abs().max()) for a, b in zip(before, _weights(trainer), strict=True)))
    assert moved[1] < moved[0] / 100
    for options in ({"steps": 0}, {"rate": math.nan}, {"clip": 0.0}, {"warmup": 2.0}, {"weight_decay": -1.0}):
        with pytest.raises(RecipeError, match=f"{next(iter(options))}"):
            Schedule(**options)  # type: ignore[arg-type]


def test_tasks_are_drawn_by_their_sizes_or_uniformly() -> None:
    numbers = np.repeat([0, 1, 2], [900, 90, 10])
    for exponent, wanted in ((1.0, [0.9, 0.09, 0.01]), (0.0, [1 / 3, 1 / 3, 1 / 3])):
        batches = MixedBatches(numbers, 5, exponent=exponent, seed=3)
        drawn = [batches.batch(step) for step in range(1500)]
        assert all(len(set(batch.tolist())) == 5 for batch in drawn)
        shares = np.bincount(numbers[np.concatenate(drawn)], minlength=3) / 7500
        np.testing.assert_allclose(shares, wanted, atol=0.02)
        np.testing.assert_array_equal(batches.batch(7), MixedBatches(numbers, 5, exponent=exponent, seed=3).batch(7))
    assert sorted(MixedBatches(np.array([0, 1, 1]), 3, exponent=0.0).batch(0).tolist()) == [0, 1, 2]
    with pytest.raises(TrainingDataError, match="exponent is -1"):
        MixedBatches(numbers, 5, exponent=-1)


def test_evaluation_data_and_bad_settings_are_refused(bank: DemonstrationBank) -> None:
    trainer = _trainer("t5", bank)
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
        _trainer("t5", bank, marginal="both")
    with pytest.raises(TrainingError, match="temperature is 0"):
        _trainer("t5", bank, temperature=0)
    with pytest.raises(TrainingError, match="has 128 positions"):
        _trainer("bart", bank, max_length=129)
    model = make_model("t5", make_tokenizer(TEXTS, "t5"))
    model.config.decoder_start_token_id = None
    with pytest.raises(TrainingError, match="decoder_start_token_id"):
        Answering(model, end=1, pad=0)


def test_answers_are_compared_by_tokens() -> None:
    assert exact_match("Card _ arrival", "card_arrival") == 1.0
    assert exact_match("card arrival", "card_arrival") == 0.0
    assert exact_match("ls -l", "ls - L") == 1.0
    assert token_f1("bright red", "red") == pytest.approx(2 / 3)
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert (token_f1("", ""), token_f1("", "red"), token_f1("blue", "red")) == (1.0, 0.0, 0.0)
