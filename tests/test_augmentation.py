"""Augmentation: what is asked for and refused, by hand and against exhaustive search; and that a student trains on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from models import splade_folder

from retrievers import Document, Retriever
from retrievers.demonstrations import Demonstration, DemonstrationBank
from retrievers.errors import GenerationError, TrainingDataError
from retrievers.training.augmentation import Augmentation, augment
from retrievers.training.extractive import ExtractiveGenerator
from retrievers.training.generated import REASONS, fault, first_line, repeated
from retrievers.training.near_duplicates import jaccard, normal_form
from retrievers.training.prompts import QueryPrompt, QueryTemplate
from retrievers.training.sets import TrainingSet
from retrievers.training.sources import sources_of

ANIMALS = ("otter", "badger", "heron", "lynx", "marten", "stork", "beaver", "falcon", "weasel", "bison")
PLACES = ("river", "forest", "marsh", "mountain", "meadow", "harbour")


def passages() -> list[Document]:
    """Sixty passages, each of one animal and one place, and one of them twice under another id."""
    found = [
        Document(
            f"{animal}-{place}",
            f"The {animal} of the {place} sleeps by day. Every {animal} there eats what the {place} gives, such as "
            f"{animal}weed and {place}grass.",
            title=f"{animal.capitalize()} of the {place}",
        )
        for animal in ANIMALS
        for place in PLACES
    ]
    return [*found, Document("twin", found[-1].text, found[-1].title)]


SEEDS = [
    ("What does the otter of the river eat?", "otter-river"),
    ("What does the badger of the forest eat?", "badger-forest"),
    ("What does the heron of the marsh eat?", "heron-marsh"),
    ("Where is lynxweed found?", "lynx-mountain"),
    ("Where is stork's marshgrass found?", "stork-marsh"),
    ("Where is beaverweed found?", "beaver-river"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    with Retriever.build(tmp_path_factory.mktemp("pool") / "idx", passages()) as retriever:
        yield retriever


def seeds(pool: Retriever) -> list[tuple[str, str | Document]]:
    return [(query, pool.get(id)) for query, id in SEEDS]


class Told:
    """A generator that writes what ``answer`` makes of each prompt, and remembers the prompts."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.prompts: list[QueryPrompt] = []
        self.calls: list[int] = []

    def __call__(self, prompts: list[str]) -> list[Any]:
        self.calls.append(len(prompts))
        self.prompts += prompts  # type: ignore[arg-type]
        return [self.answer(prompt) for prompt in prompts]


def title(prompt: Any) -> str:
    return f"Tell me more on {prompt.target.title}"


def contents(made: Augmentation) -> dict[str, tuple[str, list[str]]]:
    data = made.training_set
    return {
        data.queries.id(row): (data.queries.text(row), data.documents.ids(data.positives.of(row)))
        for row in range(len(data))
    }


def test_prompts_hold_demonstrations_the_seed_last_and_a_target_of_their_own(pool: Retriever, tmp_path: Path) -> None:
    told = Told(title)
    progress: list[int] = []
    made = augment(
        seeds(pool), pool, told, tmp_path / "set", targets=3, demonstrations=3, batch=7, progress=progress.append
    )
    assert made.report.targets == len(told.prompts) == 18
    assert told.calls == [7, 7, 4]
    assert progress == [7, 14, 18]
    targets = [prompt.target.id for prompt in told.prompts]
    assert len(set(targets)) == 18
    assert not set(targets) & {id for _, id in SEEDS}
    for number, prompt in enumerate(told.prompts):
        query, passage = SEEDS[number // 3]
        assert prompt.demonstrations[-1] == (query, pool.get(passage).content)
        assert len(prompt.demonstrations) == len({pair[0] for pair in prompt.demonstrations}) == 3
        assert {pair[0] for pair in prompt.demonstrations} <= {seed for seed, _ in SEEDS}
        places = [prompt.index(f"Query: {shown}") for shown, _ in prompt.demonstrations]
        assert places == sorted(places)
        assert prompt.endswith(f"Passage: {prompt.target.content}\nQuery:")
        # Each target is among what the pool finds for the seed's passage.
        assert prompt.target.id in {hit.id for hit in pool.search(pool.get(passage).content, 100)}


def test_the_training_set_holds_seeds_and_generated_queries_by_source(pool: Retriever, tmp_path: Path) -> None:
    made = augment(seeds(pool), pool, Told(title), tmp_path / "set", targets=4)
    found = contents(made)
    assert [found[f"seed/{number}"] for number in range(6)] == [(query, [id]) for query, id in SEEDS]
    assert len(made.generated) == made.report.kept == len(found) - 6
    for number, one in enumerate(made.generated):
        assert found[f"generated/{number}"] == (one.query, [one.document])
        assert one.query == f"Tell me more on {pool.get(one.document).title}"
        ids = [hit.id for hit in pool.search(one.query, 10)]
        assert pool.get(ids[one.rank - 1]).content == pool.get(one.document).content  # the twin counts, too
    assert set(made.training_set.documents.ids(range(61))) == {document.id for document in passages()}
    assert sources_of(made.training_set).names == ("seed", "generated")
    assert TrainingSet.open(tmp_path / "set").path == tmp_path / "set"


def test_what_is_written_is_a_function_of_the_arguments(pool: Retriever, tmp_path: Path) -> None:
    made = [augment(seeds(pool), pool, Told(title), tmp_path / f"set{n}", seed=n // 2, targets=4) for n in range(3)]
    assert contents(made[0]) == contents(made[1])
    assert made[0].report == made[1].report
    assert contents(made[0]) != contents(made[2])


def test_what_is_refused_is_counted_by_its_reason(pool: Retriever, tmp_path: Path) -> None:
    def answer(prompt: Any) -> str:
        animal, _, place = prompt.target.id.partition("-")
        return {
            "forest": f"\n\n  Who  lives with the {animal} in the forest?  \nAnd more?",
            "marsh": "marsh",
            "mountain": prompt.target.text + " Why?",
            "meadow": "What does the otter of the river eat",
            "harbour": "Nobody knows anything" if animal < "h" else f"how does the {animal} of the harbour sleep?!",
        }.get(place, "  \n ")

    secret = "How does the weasel of the harbour sleep?"
    told = Told(answer)
    made = augment(seeds(pool), pool, told, tmp_path / "set", targets=50, evaluation=[secret, "Unlike all others"])
    report = made.report
    targets = [prompt.target.id for prompt in told.prompts]
    assert report.targets == len(targets) == 54  # all but the six seeds, and of the twins one
    ends = {place: [id for id in targets if id.endswith(place)] for place in PLACES}
    assert report.dropped == {
        "empty": len(ends["river"]) + targets.count("twin"),
        "short": len(ends["marsh"]),
        "long": 0,
        "copied": len(ends["mountain"]),
        "seed": len(ends["meadow"]),
        "evaluation": 1,
        "lost": sum(id < "h" for id in ends["harbour"]),
        "repeated": report.dropped["repeated"],
    }
    assert report.targets == report.kept + sum(report.dropped.values())
    queries = [one.query for one in made.generated]
    assert "Who lives with the lynx in the forest?" in queries
    for query in queries:
        others = [secret, *(seed for seed, _ in SEEDS), *(other for other in queries if other != query)]
        assert max(jaccard(normal_form(query), normal_form(other)) for other in others) < 0.9
    shown = str(report)
    assert f"{report.kept} queries of 54" in shown
    assert "dropped 1 near an evaluation query" in shown
    assert re.search(r"that do not find their passage: 'Nobody knows anything'", shown)


def test_a_query_is_kept_where_the_judge_ranks_its_passage_high_enough(pool: Retriever, tmp_path: Path) -> None:
    def answer(prompt: Any) -> str:
        return f"Of which {prompt.target.id.partition('-')[2] or 'harbour'} is it {prompt.target.title[:3]} said?"

    kept = {}
    for rank in (1, 4, 61):
        told = Told(answer)
        made = augment(seeds(pool), pool, told, tmp_path / f"set{rank}", rank=rank, near=1, targets=50)
        ranks: list[int | None] = []
        for prompt in told.prompts:
            texts = [hit.document.content for hit in pool.search(answer(prompt), 61)]
            ranks.append(texts.index(prompt.target.content) + 1 if prompt.target.content in texts else None)
        assert made.report.dropped["lost"] == sum(place is None or place > rank for place in ranks)
        kept[rank] = made.report.kept + made.report.dropped["repeated"]
    assert kept[1] < kept[4] < kept[61]


def test_seeds_and_examples_near_an_evaluation_query_are_left_out(pool: Retriever, tmp_path: Path) -> None:
    told = Told(title)
    secret = ["what does the OTTER of the river eat", "Which colour is the otter of rivers"]
    examples = [
        ("Which colour is the otter of rivers?", pool.get("otter-river").text),
        ("Which colour is a badger?", pool.get("badger-forest").text + " It is grey."),
    ]
    made = augment(
        seeds(pool), pool, told, tmp_path / "set", examples=examples, evaluation=secret, demonstrations=7, targets=2
    )
    assert (made.report.seeds, made.report.leaking) == (6, 1)
    assert SEEDS[0][0] not in [text for text, _ in contents(made).values()]
    shown = {query for prompt in told.prompts for query, _ in prompt.demonstrations}
    assert "Which colour is a badger?" in shown
    assert not shown & {SEEDS[0][0], examples[0][0]}
    with pytest.raises(TrainingDataError, match="of 1 seeds 1 are near evaluation queries"):
        augment(seeds(pool)[:1], pool, told, tmp_path / "none", evaluation=secret)


def test_demonstrations_come_from_a_bank(pool: Retriever, tmp_path: Path) -> None:
    held = [
        Demonstration("a", "zoo", "An otter of a brook eats fish.", "Of what does a brook's otter live?"),
        Demonstration("b", "zoo", "A badger of a wood digs.", "Why are there holes in woods?", evaluation=True),
    ]
    told = Told(title)
    with DemonstrationBank.build(tmp_path / "bank", held) as bank:
        augment(seeds(pool), pool, told, tmp_path / "set", examples=bank, targets=1)
    assert told.prompts[0].demonstrations == (
        (held[0].output, held[0].input),
        (SEEDS[0][0], pool.get("otter-river").content),
    )
    assert not [query for prompt in told.prompts for query, _ in prompt.demonstrations if query == held[1].output]


def test_negatives_are_mined_where_they_are_asked_for(pool: Retriever, tmp_path: Path) -> None:
    made = augment(seeds(pool), pool, Told(title), tmp_path / "set", targets=2, negatives="1-10:2,11-40:3")
    data, report = made.training_set, made.report.mining
    assert report is not None
    assert report.wanted == 5
    assert report.queries == len(data)
    assert str(report) in str(made.report)
    for row in range(len(data)):
        negatives = set(data.candidates.of(row).tolist()) - set(data.positives.of(row).tolist())
        positive = data.documents.text(int(data.positives.of(row)[0]))
        assert positive not in {data.documents.text(other) for other in negatives}
    assert len(data.candidates.rows) == report.positives + report.negatives > 2 * len(data)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda prompts: ["one"], r"gave 1 texts for 5 prompts, from prompt 0 on"),
        (lambda prompts: [*prompts[1:], None], r"gave a NoneType, None, for prompt 4: it must give a string"),
        (lambda prompts: "text", r"gave a str, 'text', for 5 prompts"),
        (lambda prompts: None, r"gave a NoneType, None, for 5 prompts"),
        (lambda prompts: [""] * len(prompts), r"none of 12 generated queries is kept \(dropped 12 empty"),
    ],
)
def test_a_generator_that_gives_something_else_is_refused(
    pool: Retriever, tmp_path: Path, answer: Any, message: str
) -> None:
    with pytest.raises(GenerationError, match=message):
        augment(seeds(pool), pool, answer, tmp_path / "set", targets=2, batch=5)
    assert not (tmp_path / "set").exists()


def test_bad_arguments_are_refused_before_anything_is_generated(
    pool: Retriever, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    told = Told(title)
    some = seeds(pool)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"targets": 0}, "targets is 0: give a whole number, 1 or more"),
        ({"targets": 9, "depth": 8}, "drawn from a depth of 8"),
        ({"words": (3, 2)}, r"words is \(3, 2\)"),
        ({"near": 0.2}, "near is 0.2"),
        ({"rank": True}, "rank is True"),
        ({"negatives": "1-2:9"}, "asks for 9 of 2"),
        ({"evaluation": "a query"}, "evaluation is the string 'a query'"),
        ({"examples": [("a", "b"), ("c", 3)]}, "the passage of example 1 is a int, 3"),
    ]
    for options, message in cases:
        with pytest.raises(TrainingDataError, match=message):
            augment(some, pool, told, tmp_path / "set", **options)
    for wrong, message in (
        (["text"], "seed 0 is 'text'"),
        ([("a", 3)], "the passage of seed 0 is a int, 3"),
        ([(" ", "b")], "the query of seed 0 is empty"),
        ([some[0], ("a", "no such passage")], "the passage of seed 1, 'no such passage', is not in"),
        ([("a", Document("nobody", "x"))], "with the id 'nobody', is not in"),
    ):
        with pytest.raises(TrainingDataError, match=message):
            augment(wrong, pool, told, tmp_path / "set")  # type: ignore[arg-type]
    (tmp_path / "taken").mkdir()
    with pytest.raises(TrainingDataError, match="taken exists already"):
        augment(some, pool, told, tmp_path / "taken")
    with (
        Retriever.build(tmp_path / "others", [Document("x", "otter")]) as other,
        pytest.raises(TrainingDataError, match="holds none of the 54 targets"),
    ):
        augment(some, pool, told, tmp_path / "set", judge=other, targets=50)
    assert not told.prompts


def test_seeds_are_found_by_text_and_queries_of_several_passages_are_one(pool: Retriever, tmp_path: Path) -> None:
    first, second = pool.get("otter-river"), pool.get("badger-forest")
    told = Told(title)
    made = augment(
        [("Who eats there?", first.text.replace(" ", "\n ")), ("Who eats there?", second.content)],
        pool,
        told,
        tmp_path / "set",
        targets=2,
    )
    assert contents(made)["seed/0"] == ("Who eats there?", [first.id, second.id])
    assert "seed/1" not in contents(made)


def test_templates_write_what_they_say_and_refuse_what_they_cannot() -> None:
    target = Document("t", "one {two}  three\nfour", "Title")
    template = QueryTemplate("{{{query}}} <- {passage}", "? <- {passage}", between=" | ", longest=13)
    prompt = template.prompt([("a\nb", "p " * 20)], target)
    assert prompt == "{a b} <- p p p p p p p | ? <- Title one"
    assert prompt.target is target
    assert prompt.demonstrations == (("a\nb", "p " * 20),)
    assert QueryTemplate(longest=3).prompt([], target) == "Passage: Tit\nQuery:"
    for options, message in (
        ({"target": "{query}"}, r"target '\{query\}' must hold \{passage\}, and has \{query\}"),
        ({"demonstration": "none"}, r"must hold \{query\} and \{passage\}, and has neither"),
        ({"target": "{passage"}, "not well formed"),
        ({"longest": 0}, "longest is 0"),
    ):
        with pytest.raises(TrainingDataError, match=message):
            QueryTemplate(**options)  # type: ignore[arg-type]


def test_texts_are_read_and_judged_by_their_form() -> None:
    assert first_line(" \n\t\n  a  b \nc") == "a b"
    assert first_line(" \n ") == ""
    passage = "Reset the branch."
    for query, reason in (
        ("", "empty"),
        ("branch", "short"),
        ("what does: reset THE branch do", "copied"),
        ("how so " * 4, "long"),
        ("how to reset", None),
        ("重置分支", None),  # three pairs of characters
    ):
        assert fault(query, passage, (2, 7)) == reason
    assert fault("reset branch now", "", (2, 7)) is None
    assert set(REASONS) >= {"empty", "short", "long", "copied"}
    texts = [
        "one two three four",
        "One two three four!",
        "five six seven",
        "one, two, three, four",
        "five six seven eight",
    ]
    assert repeated(texts, 0.9) == {1, 3}
    assert repeated(texts, 0.6) == {1, 3, 4}


def test_extracted_queries_have_the_form_of_demonstrations_and_words_of_the_passage(pool: Retriever) -> None:
    generate = ExtractiveGenerator(pool, seeds(pool))
    template = QueryTemplate()
    target = pool.get("falcon-meadow")
    shown = [(query, pool.get(id).content) for query, id in SEEDS]
    # The title of the seed's passage gives way to that of the target.
    assert generate([template.prompt(shown[:1], target)]) == ["What does the Falcon of the meadow eat?"]
    # A slot of one word is filled with the most telling one; the last demonstration decides among equal ones.
    assert generate([template.prompt([shown[0], shown[3]], target)]) == ["Where is falcon found?"]
    assert generate([template.prompt([], target)])[0]
    assert generate([template.prompt(shown, Document("e", "... to the of"))]) == [""]
    assert generate([]) == []
    both = generate([template.prompt(shown[:1], target), template.prompt(shown[3:4], target)])
    assert both == ["What does the Falcon of the meadow eat?", "Where is falcon found?"]
    with pytest.raises(GenerationError, match="prompt 0 is a plain str, 'text'"):
        generate(["text"])


def test_a_form_is_chosen_that_fits_the_passage(tmp_path: Path) -> None:
    causes = [f"The cause of {name} is a gene." for name in ("ague", "gout", "croup")]
    cures = [f"The cure of {name} is rest." for name in ("mumps", "colic", "rash")]
    others = [f"Notes on {name}." for name in ("edema", "tetanus", "lupus", "scurvy")]
    documents = [Document(str(at), text) for at, text in enumerate([*causes, *cures, *others])]
    with Retriever.build(tmp_path / "idx", documents) as pool:
        some = [(f"What is the cause of {text.split()[3]}?", text) for text in causes]
        some += [(f"How to cure {text.split()[3]}?", text) for text in cures]
        generate = ExtractiveGenerator(pool, some)
        for target, expected in (
            ("The cause of measles is a virus.", "What is the cause of measles?"),
            ("The cure of measles is rest.", "How to cure measles?"),
        ):
            for shown in (some, some[::-1]):
                assert generate([QueryTemplate().prompt(shown, Document("t", target))]) == [expected]


def test_a_student_trains_on_what_the_extractive_generator_wrote(pool: Retriever, tmp_path: Path) -> None:
    from retrievers.training.run import train

    made = augment(seeds(pool), pool, ExtractiveGenerator(pool, seeds(pool)), tmp_path / "set", targets=10)
    assert made.report.kept >= 20
    settings = [
        f"model.start='{splade_folder()}'",
        f"data.set='{tmp_path / 'set'}'",
        f"output='{tmp_path / 'run'}'",
        "batches.scheme='sources'",
        "batches.size=4",
        "optimiser.steps=3",
        "model.document_length=16",
    ]
    trained = train("contrastive", settings, device="cpu")
    assert trained.steps == 3
    assert (trained.model / "modules.json").is_file()


def test_it_writes_what_people_ask_of_a_real_collection(collections: Path, tmp_path: Path) -> None:
    from retrievers import read_beir
    from retrievers.queries import read_queries
    from retrievers.runs import read_qrels

    root = collections / "adi"
    qrels = read_qrels(root / "qrels" / "test.tsv")
    texts = {query.id: query.text for query in read_queries(str(next(root.glob("queries.jsonl*"))))}
    asked: Sequence[str] = sorted(qrels)
    with Retriever.build(tmp_path / "idx", read_beir(root)) as pool:
        some = [(texts[query], pool.get(next(iter(qrels[query])))) for query in asked[:10]]
        held_out = [texts[query] for query in asked[10:]]
        made = augment(some, pool, ExtractiveGenerator(pool, some), tmp_path / "set", evaluation=held_out, targets=5)
    assert made.report.kept > 0.8 * made.report.targets > 20
    lengths = sorted(len(one.query.split()) for one in made.generated)
    assert 4 <= lengths[len(lengths) // 2] <= 25
