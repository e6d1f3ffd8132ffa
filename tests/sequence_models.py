"""Tiny T5, BART and GPT-2 models, made of configurations, with a tokenizer of the texts they read, and those texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from retrievers import Demonstration, DemonstrationBank, Selected
from retrievers.training import Joiner, MetaTrainer
from retrievers.training.few_shot import FewShotExample

KINDS = ("t5", "bart", "gpt2")
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


def make_tokenizer(texts: Iterable[str], kind: str) -> Any:
    """Words and marks are tokens. GPT-2's adds nothing to a text, BART's a start and an end, T5's an end."""
    from tokenizers import Tokenizer, processors
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.trainers import WordLevelTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    special = ["<pad>", "</s>", "<s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(texts, WordLevelTrainer(special_tokens=special))
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    if kind != "gpt2":
        single = "$A </s>" if kind == "t5" else "<s> $A </s>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 2), ("</s>", 1)]
        )
        names |= {"pad_token": "<pad>"}
    if kind == "bart":
        names |= {"mask_token": "<mask>", "bos_token": "<s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_model(kind: str, tokenizer: Any, *, width: int = 32, dropout: float = 0.0, seed: int = 0) -> Any:
    """A model of 2 layers, random by ``seed``."""
    import transformers

    size = len(tokenizer)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "t5":
            t5 = transformers.T5Config(
                vocab_size=size, d_model=width, d_kv=width // 2, d_ff=2 * width, num_layers=2, num_heads=2,
                dropout_rate=dropout, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
            )  # fmt: skip
            model: Any = transformers.T5ForConditionalGeneration(t5)
        elif kind == "bart":
            bart = transformers.BartConfig(
                vocab_size=size, d_model=width, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, dropout=dropout,
                max_position_embeddings=128, pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=1,
                init_std=0.1,
            )  # fmt: skip
            model = transformers.BartForConditionalGeneration(bart)
        else:
            gpt2 = transformers.GPT2Config(
                vocab_size=size, n_embd=width, n_layer=2, n_head=2, n_positions=128, resid_pdrop=dropout,
                embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=1, eos_token_id=1, initializer_range=0.1,
            )  # fmt: skip
            model = transformers.GPT2LMHeadModel(gpt2)
    return model.eval()


def make_trainer(kind: str, bank: DemonstrationBank | None, *, dropout: float = 0.0, **options: Any) -> MetaTrainer:
    tokenizer = make_tokenizer(TEXTS, kind)
    model = make_model(kind, tokenizer, dropout=dropout)
    return MetaTrainer(model, tokenizer, bank, **{"k": 3, "max_length": 64, "max_answer": 8, **options})


def make_joiner(kind: str, **options: Any) -> tuple[Joiner, Any]:
    tokenizer = make_tokenizer(TEXTS, kind)
    return Joiner(tokenizer, causal=kind == "gpt2", **options), tokenizer


def ragged(number: int) -> list[FewShotExample]:
    """Examples with 0 to 3 demonstrations of uneven lengths, and answers of one or two words."""
    found = []
    for at in range(number):
        one = replace(EXAMPLES[7 * at % len(EXAMPLES)], metadata={"context": "what is it"} if at % 2 else {})
        near = [EXAMPLES[(11 * at + 5 * step + 1) % len(EXAMPLES)] for step in range(at % 4)]
        near = [replace(each, input=f"{each.input} " * (1 + step)) for step, each in enumerate(near)]
        found.append(FewShotExample(one, tuple(Selected(each, 2.5 - step) for step, each in enumerate(near))))
    return found
