"""Prompts from demonstrations: forms, templates and the budget."""

from __future__ import annotations

from typing import Any

import pytest
from models import splade_folder

from retrievers import Demonstration, Selected, Template, write_chat, write_prompt
from retrievers.errors import DemonstrationError, QueryError


def _selected(*scores: float) -> list[Selected]:
    return [Selected(Demonstration(f"d{n}", "t", f"input {n}", f"output {n}"), score) for n, score in enumerate(scores)]


def test_the_unifiedqa_form() -> None:
    with_context = Selected(Demonstration("c", "t", "who?", "me", {"context": "it was me"}), 2.0)
    prompt = write_prompt("what?", [*_selected(1.0), with_context])
    assert prompt.text == (
        "question: input 0 answer: output 0\nquestion: who? answer: me context: it was me\nquestion: what? answer:"
    )
    assert prompt.messages == [{"role": "user", "content": prompt.text}]
    assert (prompt.kept, prompt.dropped, prompt.tokens) == ([*_selected(1.0), with_context], [], None)
    asked = write_prompt(Demonstration("x", "t", "what?", "secret", {"context": "there"}), [])
    assert asked.text == "question: what? answer: context: there"
    assert "secret" not in asked.text


def test_a_template_of_ones_own() -> None:
    form = Template("[{task}] {metadata[source]}: {input} => {output} {{}}", "{input} =>", separator=" | ")
    one = Selected(Demonstration("a", "sums", "1 {output} {x}", "2", {"source": "book"}), 1.0)
    assert write_prompt("{input} 3", [one], template=form).text == "[sums] book: 1 {output} {x} => 2 {} | {input} 3 =>"
    bare = Selected(Demonstration("b", "sums", "1", "2"), 1.0)
    with pytest.raises(DemonstrationError, match="demonstration 'b' lacks the metadata 'source'"):
        write_prompt("1", [bare], template=form)


@pytest.mark.parametrize(
    ("demonstration", "query", "told"),
    [
        ("{input} {output} {answer}", "{input}", "'answer'"),
        ("{input} {output}", "{input} {output}", "'output'"),
        ("{input}", "{input}", "lacks {output}"),
        ("{input} {output", "{input}", "cannot be read"),
        ("{input.__class__} {output}", "{input}", "'input.__class__'"),
        ("{} {output}", "{input}", "''"),
    ],
    ids=["unknown", "answer-in-query", "no-output", "broken", "attribute", "unnamed"],
)
def test_refuses_templates(demonstration: str, query: str, told: str) -> None:
    with pytest.raises(DemonstrationError, match=told):
        Template(demonstration, query)


def test_chat_messages() -> None:
    prompt = write_chat("what?", _selected(1.0, 2.0), system="Answer.")
    assert prompt.messages == [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": "input 0"},
        {"role": "assistant", "content": "output 0"},
        {"role": "user", "content": "input 1"},
        {"role": "assistant", "content": "output 1"},
        {"role": "user", "content": "what?"},
    ]
    one = Demonstration("c", "t", "who?", "me", {"context": "it was me"})
    assert write_chat(one, []).messages == [{"role": "user", "content": "who?\n\nit was me"}]


@pytest.mark.parametrize("order", ["nearest_last", "nearest_first"])
def test_a_budget_drops_whole_demonstrations_farthest_first(order: str) -> None:
    selected = _selected(1.0, 2.0, 2.0, 3.0)
    if order == "nearest_first":
        selected.reverse()
    whole = write_prompt("x", selected, budget=100, tokenizer=str.split)
    # Each demonstration is 6 words, the input 3.
    assert whole.tokens == 27
    assert whole.dropped == []
    less = write_prompt("x", selected, budget=20, tokenizer=str.split)
    assert less.tokens == 15

    assert [one.demonstration.id for one in less.dropped] == ["d0", "d1"]
    assert less.kept == [one for one in selected if one not in less.dropped]
    chat = write_chat("x", selected, budget=10, tokenizer=lambda text: len(text.split()))
    assert chat.tokens == 9
    assert len(chat.kept) == 2
    none = write_prompt("x", selected, budget=3, tokenizer=str.split)
    assert (none.kept, none.tokens, none.text) == ([], 3, "question: x answer:")


def test_the_budget_counts_with_any_tokenizer() -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(str(splade_folder()))
    plain = Tokenizer.from_file(str(splade_folder() / "tokenizer.json"))
    plain.no_truncation()
    selected = _selected(1.0, 2.0)
    text = write_prompt("x", selected).text
    expected = len(fast(text)["input_ids"])

    class Encoding:
        def __init__(self, tokenizer: Any) -> None:
            self.tokenizer = tokenizer

        def encode(self, text: str) -> list[int]:
            return list(self.tokenizer.encode(text).ids)

    for tokenizer in (fast, Encoding(plain), fast.encode, lambda text: len(fast(text)["input_ids"])):
        assert write_prompt("x", selected, tokenizer=tokenizer).tokens == expected
        assert write_prompt("x", selected, tokenizer=tokenizer, budget=expected).dropped == []
        assert len(write_prompt("x", selected, tokenizer=tokenizer, budget=expected - 1).dropped) == 1
    fast.chat_template = "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} {% endfor %}"
    chat = write_chat("x", selected, tokenizer=fast)
    said = "".join(f"<{one['role']}> {one['content']} " for one in chat.messages)
    assert chat.tokens == len(fast.encode(said))


def test_refuses_what_cannot_be_written() -> None:
    with pytest.raises(DemonstrationError, match="the input alone takes 3 tokens, and the budget is 2"):
        write_prompt("x", _selected(1.0), budget=2, tokenizer=str.split)
    with pytest.raises(DemonstrationError, match="needs a tokenizer"):
        write_prompt("x", [], budget=2)
    with pytest.raises(QueryError, match="budget is 0"):
        write_prompt("x", [], budget=0, tokenizer=str.split)
    with pytest.raises(DemonstrationError, match="template is 'qa'"):
        write_prompt("x", [], template="qa")
    with pytest.raises(DemonstrationError, match="the input is a int"):
        write_chat(3, [])  # type: ignore[arg-type]
    with pytest.raises(DemonstrationError, match="tokenizer is a int"):
        write_prompt("x", [], tokenizer=3)
