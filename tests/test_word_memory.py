"""Token ids put together from words that were met before: those of the tokenizer itself, whatever the text."""

from __future__ import annotations

from typing import Any

import models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

from tokenizers import AddedToken, Tokenizer, normalizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import Whitespace

from retrievers.encoders import word_memory
from retrievers.encoders.word_memory import WordMemory

# Letters whose forms depend on what stands beside them, marks without a letter, all kinds of space, what cleaning drops.
ALPHABET = "  aAbiİIſßΣσς.,'-漢字カé\u0301\u0300\u0345\u200b\u200d\ufeff\xa0\u2028\u3000\t\n\r\x00\x1c\x85[]##🙂１"
WORDS = ["blood", "the", "[MASK]", "[SEP]", "[mask]", "[new]", "NEW", "don't", "x" * 120, "##ing", "²", "ﬁ"]
texts = st.lists(st.one_of(st.sampled_from(WORDS), st.text(ALPHABET, max_size=6)), max_size=12)
joined = st.tuples(texts, st.sampled_from([" ", "", "  "])).map(lambda drawn: drawn[1].join(drawn[0]))


def bert(**changes: Any) -> Tokenizer:
    """The tokenizer of a real model, changed."""
    tokenizer = Tokenizer.from_file(str(models.splade_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def with_added() -> Tokenizer:
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken("[new]", lstrip=True, rstrip=True), AddedToken("new", single_word=True)])
    return tokenizer


TOKENIZERS = {
    "as it is": bert(),
    "cased": bert(normalizer=BertNormalizer(lowercase=False)),
    "with accents": bert(normalizer=BertNormalizer(strip_accents=False)),
    "with added tokens": with_added(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(st.lists(joined, max_size=4))
@example(["a \u0301b  \u0301", "ΑΣ ΑΣ. Σ", "[new] new NEW x[new]y anew"])
def test_the_ids_are_those_of_the_tokenizer(name: str, asked: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    memory = WordMemory(tokenizer)
    assert memory._parted
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in asked]
    assert memory.ids(asked) == wanted
    assert memory.ids(asked) == wanted  # now from memory


@pytest.mark.parametrize("direction", ["left", "right"])
def test_a_text_that_is_cut_off_is_cut_where_the_tokenizer_cuts(direction: str) -> None:
    tokenizer = bert()
    tokenizer.enable_truncation(5, direction=direction)
    memory = WordMemory(tokenizer)
    for text in ("the blood the heart", "the blood the heart pressure", "the blood the heart pressure of", "x" * 99):
        wanted = tokenizer.encode(text, add_special_tokens=False).ids
        assert memory.ids([text]) == [wanted]
        assert len(wanted) <= 5


def test_a_tokenizer_that_may_look_across_spaces_is_asked_as_a_whole() -> None:
    spaced, folded = bert(), bert()
    spaced.add_tokens(["new york"])
    folded.add_tokens(["漢"])  # which the normaliser makes " 漢 "
    sequence = bert(normalizer=normalizers.Sequence([BertNormalizer(), normalizers.Replace("a b", "ab")]))
    split = bert(pre_tokenizer=Whitespace())
    for tokenizer in (spaced, folded, sequence, split):
        memory = WordMemory(tokenizer)
        assert not memory._parted
        asked = ["a b new york 漢", "new york"] * 40
        assert memory.ids(asked) == [tokenizer.encode(text, add_special_tokens=False).ids for text in asked]
        assert memory.ids(asked[:3]) == memory.ids(asked)[:3]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_memory, "_REMEMBERED", 5)
    tokenizer = TOKENIZERS["as it is"]
    memory = WordMemory(tokenizer)
    for at in range(30):
        text = f"word{at} the {'long' * 20}{at} blood"
        assert memory.ids([text]) == [tokenizer.encode(text, add_special_tokens=False).ids]
        assert len(memory._known) <= 5
        assert all(len(word) <= 40 for word in memory._known)
