"""Words: what is one, in every script, and that the quick ways give what the general way gives."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.encoders import tokens
from retrievers.encoders.stopwords import stop_words, stopword_languages

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates and unassigned ones too
MIXED_TEXT = st.text(st.sampled_from("aIß_9 '’ \u0301\u0307İﬁ東ーがﾊﾟ한ส์วัမြ\u200c\u00ad\ud800ا،·l"), max_size=40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, brown-fox!", ["the", "quick", "brown", "fox"]),
        ("don't 'quote' dogs'", ["don't", "quote", "dogs"]),
        ("l’avion", ["l'avion"]),
        ("3.14 and 1,000", ["3", "14", "and", "1", "000"]),
        ("snake_case camelCase x2", ["snake_case", "camelcase", "x2"]),
        ("Ｆｕｌｌ ﬁne Straße", ["full", "fine", "strasse"]),
        ("cafe\u0301 café", ["café", "café"]),
        ("infor\u00admation", ["information"]),
        ("İstanbul I\u0307stanbul", ["istanbul", "istanbul"]),
        ("col·legi COL·LEGI a·b", ["collegi", "collegi", "a", "b"]),
        ("می\u200cخواهم", ["می", "خواهم"]),
        ("सत्यमेव जयते", ["सत्यमेव", "जयते"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("猫", ["猫"]),
        ("人々は2020年、X線を", ["人々", "々は", "2020", "年", "x", "線を"]),
        ("ﾊﾟﾝ ゴー・ゴー", ["パン", "ゴー", "ゴー"]),
        ("한국어 검색", ["한국", "국어", "검색"]),
        ("สวัสดี", ["สวั", "วัส", "สดี"]),
        ("ភាសាខ្មែរ។", ["ភាសា", "សាខ្", "ខ្មែ", "មែរ"]),
        ("𐌰𐌱𐌲 ꀀꀁꀂ", ["𐌰𐌱𐌲", "ꀀꀁꀂ"]),
        ("\u0301 ... \ud800 🎉 ❤️", []),
        ("", []),
    ],
)
def test_words_of_known_texts(text: str, expected: list[str]) -> None:
    assert tokens.words(text) == expected


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=200))
def test_ascii_fast_path_equals_the_general_one(text: str) -> None:
    assert tokens.fold(text) == text.lower()
    assert tokens.words(text) == tokens.cut(tokens.fold(text))


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_TEXT, MIXED_TEXT))
def test_any_text_gives_well_formed_words(text: str) -> None:
    folded = tokens.fold(text)
    assert tokens.fold(folded) == folded
    words = tokens.words(text)
    assert words == tokens.words(folded)
    for word in words:
        word.encode()  # lone surrogates are no letters
        assert word
        assert not any(character.isspace() for character in word)
        assert tokens.fold(word) == word


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_TEXT, MIXED_TEXT))
def test_pattern_for_spaced_text_equals_the_one_for_all(text: str) -> None:
    folded = tokens.fold(text)
    if not tokens._MAY_BE_UNSPACED.search(folded):
        assert tokens._SPACED_WORD.findall(folded) == tokens._WORD_OR_RUN.findall(folded)


@settings(max_examples=200, deadline=None)
@given(MIXED_TEXT, MIXED_TEXT)
def test_space_parts_words(left: str, right: str) -> None:
    assert tokens.words(f"{left} , {right}") == tokens.words(left) + tokens.words(right)


def test_every_character_folds_to_a_fixed_point_and_unspaced_blocks_are_complete() -> None:
    for point in range(sys.maxunicode + 1):
        if 0xD800 <= point < 0xE000:
            continue
        folded = tokens.fold(chr(point))
        if not folded.isascii():
            assert tokens.fold(folded) == folded, hex(point)
            for character in folded:
                if tokens._RUN_START.match(character):
                    assert tokens._MAY_BE_UNSPACED.match(character), hex(point)


def test_letters_and_numbers_are_never_lost() -> None:
    """Against Python's own categories, for what both versions of Unicode know: blocks of living scripts."""
    for point in [*range(0x0100), *range(0x0370, 0x0700), *range(0x0900, 0x1100), *range(0x3040, 0x3100)]:
        if unicodedata.category(chr(point)) == "Cn":
            continue
        character = tokens.fold(chr(point))
        kept = any(unicodedata.category(part)[0] in "LN" or unicodedata.category(part) == "Pc" for part in character)
        assert bool(tokens.words(chr(point))) == kept, hex(point)


@pytest.mark.parametrize(
    ("word", "language", "expected"),
    [
        ("l'avion", "french", "avion"),
        ("qu'il", "french", "il"),
        ("d'aujourd'hui", "french", "aujourd'hui"),
        ("aujourd'hui", "french", "aujourd'hui"),
        ("dell'acqua", "italian", "acqua"),
        ("l'home", "catalan", "home"),
        ("m'athair", "irish", "athair"),
        ("cat's", "english", "cat"),
        ("don't", "english", "don't"),
        ("l'avion", "english", "l'avion"),
        ("cat's", "none", "cat's"),
    ],
)
def test_elisions_and_possessives(word: str, language: str, expected: str) -> None:
    assert tokens.base(word, language) == expected


def test_long_texts_take_linear_time() -> None:
    for unit in ("_", "a'", "a", "東", "ก์", "ا\u200c", "\u0301", "i\u0307", "l·"):
        tokens.words(unit * 200_000)  # minutes, were any pattern to go back and forth


@pytest.mark.parametrize("language", stopword_languages())
def test_stop_words_are_words_as_the_tokenizer_gives_them(language: str) -> None:
    listed = stop_words(language)
    assert 25 <= len(listed) <= 80
    for word in listed:
        assert tokens.words(word) == [word]
        assert tokens.base(word, language) == word


def test_languages_without_a_list_have_no_stop_words() -> None:
    assert stop_words("none") == frozenset()
    assert stop_words("tamil") == frozenset()
    assert len(stop_words("english")) == 33
    assert {"german", "french", "spanish", "italian", "portuguese", "dutch", "swedish", "norwegian", "danish"} < set(
        stopword_languages()
    )
    assert {"finnish", "russian"} < set(stopword_languages())
