"""What few-shot training reads: joined rows, what is cut of them, the data set, its batches, tasks and answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sequence_models import EXAMPLES, KINDS, TEXTS, make_joiner, ragged

from retrievers import DemonstrationBank, Selected
from retrievers.errors import TrainingDataError, TrainingError
from retrievers.training import FewShotCollator, FewShotSet, Joiner, UnifiedQA
from retrievers.training.answers import exact_match, token_f1
from retrievers.training.batches import MixedBatches

EVERY = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationBank:
    return DemonstrationBank.build(tmp_path_factory.mktemp("bank") / "bank", EXAMPLES)


# Joining


def test_rows_are_written_in_the_form_of_unified_qa() -> None:
    example = replace(EXAMPLES[0], metadata={"context": "what is it"})
    selected = [Selected(EXAMPLES[20], 1.5)]
    written = {}
    for kind in KINDS:
        joiner, tokenizer = make_joiner(kind)
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
    joiner, tokenizer = make_joiner("t5", form=UnifiedQA(("answer", "question")))
    [[(ids, _)]] = joiner.join([(EXAMPLES[0], [])])
    assert tokenizer.decode(ids) == "answer : question : apple that is big </s>"


@EVERY
def test_demonstrations_are_cut_first_and_the_input_never(kind: str) -> None:
    example = EXAMPLES[0]
    long_input = replace(EXAMPLES[20], input="leaf that is old " * 10)
    long_context = replace(EXAMPLES[20], metadata={"context": "what is it " * 20})
    long_answer = replace(EXAMPLES[20], output="green " * 40)
    selected = [Selected(one, 1.0) for one in (EXAMPLES[20], long_input, long_context, long_answer)]
    joiner, tokenizer = make_joiner(kind, max_length=36, max_answer=6)
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
    joiner, tokenizer = make_joiner("t5", max_length=12)
    [[(ids, score)]] = joiner.join([(EXAMPLES[0], [Selected(EXAMPLES[20], 3.0)])])
    assert tokenizer.decode(ids) == "question : apple that is big answer : </s>"
    assert score == 0.0
    assert (joiner.cuts.demonstrations_dropped, joiner.cuts.alone, joiner.cuts.inputs_cut) == (1, 1, 0)


def test_what_is_too_long_is_refused_or_cut_and_counted() -> None:
    long = replace(EXAMPLES[0], input="apple that is big " * 9, metadata={"context": "what is it"})
    refusing, _ = make_joiner("t5", max_length=30)
    message = (
        r"'bright red/apple/big' of task 'colours': the input has 46 tokens, and there is room for 30: raise max_length"
    )
    with pytest.raises(TrainingDataError, match=message):
        refusing.join([(long, [Selected(EXAMPLES[20], 1.0)])])
    with pytest.raises(TrainingDataError, match=message):
        refusing.check([EXAMPLES[0], long])
    wordy = replace(EXAMPLES[0], output="red " * 20)
    short, _ = make_joiner("t5", max_answer=5)
    with pytest.raises(TrainingDataError, match="the answer has 21 tokens, and there is room for 5: raise max_answer"):
        short.check([wordy])
    cutting, tokenizer = make_joiner("t5", max_length=30, max_answer=5, overlong="cut")
    cutting.check([long, wordy])
    [[(ids, _)]] = cutting.join([(long, [])])
    assert len(ids) == 30
    assert tokenizer.decode(ids).startswith("question : apple that is big apple")
    assert tokenizer.decode(ids).endswith("answer : </s>")
    assert len(cutting.answers([wordy])[0]) == 5
    assert (cutting.cuts.inputs_cut, cutting.cuts.answers_cut) == (1, 1)
    for options in ({"max_answer": 1}, {"max_length": 1}, {"overlong": "drop"}):
        with pytest.raises(TrainingError):
            make_joiner("t5", **options)


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
    data, (joiner, _) = FewShotSet(EXAMPLES[:6], bank, k=2), make_joiner("bart")
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
    joiner, tokenizer = make_joiner("gpt2")
    examples = ragged(6)
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


# Tasks and answers


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


def test_answers_are_compared_by_tokens() -> None:
    assert exact_match("Card _ arrival", "card_arrival") == 1.0
    assert exact_match("card arrival", "card_arrival") == 0.0
    assert exact_match("ls -l", "ls - L") == 1.0
    assert token_f1("bright red", "red") == pytest.approx(2 / 3)
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert (token_f1("", ""), token_f1("", "red"), token_f1("blue", "red")) == (1.0, 0.0, 0.0)
