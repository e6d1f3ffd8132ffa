"""The bank of demonstrations: reading, storing, and every way of selecting, against plain computations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hashing import HashEncoder

from retrievers import Demonstration, DemonstrationBank, Selected, read_demonstrations
from retrievers.demonstrations.features import Features
from retrievers.encoders.lexical import LexicalEncoder
from retrievers.errors import DemonstrationError, QueryError, SourceNotFoundError, UnknownIdError
from retrievers.indexes.manifest import Manifest
from retrievers.training.near_duplicates import jaccard, normal_form
from retrievers.vectors import Kind

KINDS: list[Kind | None] = ["dense", "sparse", "multi-vector", None]  # None: bm25


def _texts(selected: list[Selected]) -> list[str]:
    return [one.demonstration.input for one in selected]


def _examples(collections: Path, name: str, part: str, count: int) -> list[Demonstration]:
    file = collections / name / f"{part}.jsonl"
    path = file if file.exists() else file.with_suffix(".jsonl.gz")
    found = list(read_demonstrations(path, task=name, input="text", output="label"))
    step = max(1, len(found) // count)
    return found[::step][:count]


@pytest.fixture(scope="module")
def real(collections: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemonstrationBank]:
    """Two thousand real examples of two tasks, in bm25."""
    examples = _examples(collections, "banking77", "train", 1000) + _examples(collections, "snips", "train", 1000)
    with DemonstrationBank.build(tmp_path_factory.mktemp("bank") / "bank", examples) as bank:
        yield bank


@pytest.fixture(params=KINDS, ids=str)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[DemonstrationBank, list[Demonstration]]]:
    """Two hundred examples of made words, of every kind of encoder."""
    random = np.random.default_rng(3)
    words = [f"w{number:02}ord{number * 37 % 100:02}" for number in range(40)]
    examples = [
        Demonstration(f"d{n:03}", f"task{n % 3}", " ".join(random.choice(words, 6)), f"label{n % 5}", {"n": n})
        for n in range(200)
    ]
    encoder = "bm25" if request.param is None else HashEncoder(request.param)
    with DemonstrationBank.build(tmp_path / "bank", examples, encoder=encoder) as bank:
        yield bank, examples


def test_reads_examples_with_ids_of_their_own_or_of_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_text(
        '{"id": 7, "task": "a", "input": "x", "output": 3, "year": 2020, "metadata": {"source": "s"}}\n'
        "\n"
        '{"input": "y", "output": "no", "evaluation": true}\n'
    )
    assert list(read_demonstrations(file, task="b")) == [
        Demonstration("7", "a", "x", "3", {"source": "s", "year": 2020}),
        Demonstration("b/3", "b", "y", "no", {}, True),
    ]
    assert all(one.evaluation for one in read_demonstrations(file, task="b", evaluation=True))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"input": "x", "output": "y"}', "field 'task' is missing"),
        ('{"task": "t", "output": "y"}', "field 'input' is missing"),
        ('{"task": "t", "input": "x", "output": ["y"]}', "field 'output' must be a string"),
        ('{"task": "t", "input": "x", "output": "y", "evaluation": "yes"}', "must be true or false"),
        ('{"task": "t", "input": "x", "output": "y", "metadata": 3}', "must be an object"),
    ],
    ids=["task", "input", "output", "evaluation", "metadata"],
)
def test_names_the_line_of_what_is_no_example(tmp_path: Path, line: str, told: str) -> None:
    file = tmp_path / "pool.jsonl"
    file.write_text(f'{{"task": "t", "input": "a", "output": "b"}}\n{line}\n')
    with pytest.raises(DemonstrationError, match="line 2") as caught:
        list(read_demonstrations(file))
    assert told in str(caught.value)
    with pytest.raises(SourceNotFoundError):
        read_demonstrations(tmp_path / "absent.jsonl")


def test_keeps_examples_as_they_were(small: tuple[DemonstrationBank, list[Demonstration]]) -> None:
    bank, examples = small
    assert sorted(bank, key=lambda one: one.id) == examples
    assert bank.get("d007") == examples[7]
    bank.delete("d007")
    assert "d007" not in bank
    assert len(bank) == 199
    with pytest.raises(UnknownIdError):
        bank.get("d007")
    bank.add([examples[7]])
    assert bank.get("d007") == examples[7]
    with pytest.raises(DemonstrationError, match="demonstration 1: the task is empty"):
        bank.add([Demonstration("x", "", "a", "b")])


def test_refuses_an_index_of_other_documents(tmp_path: Path) -> None:
    from retrievers import Document, Retriever

    Retriever.build(tmp_path / "idx", [Document("a", "text")]).close()
    with pytest.raises(DemonstrationError, match="no demonstration"):
        DemonstrationBank.open(tmp_path / "idx")


def test_the_nearest_are_those_of_the_index(small: tuple[DemonstrationBank, list[Demonstration]]) -> None:
    bank, examples = small
    inputs = [examples[n].input + " w39ord43" for n in range(5)]
    for text, selected in zip(inputs, bank.select(inputs, 4, order="nearest_first"), strict=True):
        hits = bank.retriever.search(text, 200)
        allowed = [hit for hit in hits if jaccard(normal_form(text), normal_form(hit.document.text)) < 0.8]
        assert [(one.demonstration.id, one.score) for one in selected] == [(hit.id, hit.score) for hit in allowed[:4]]
    assert [_texts(one)[::-1] for one in bank.select(inputs, 4)] == [
        _texts(one) for one in bank.select(inputs, 4, order="nearest_first")
    ]


@pytest.mark.parametrize("strategy", ["nearest", "balanced", "diverse", "covering", "random"])
def test_what_is_selected_depends_on_the_input_alone(
    small: tuple[DemonstrationBank, list[Demonstration]], strategy: str
) -> None:
    bank, examples = small
    together = bank.select(examples[:20], 5, strategy)
    assert [bank.select(one, 5, strategy) for one in examples[:20]] == together
    assert all(len(set(_ids(one))) == 5 for one in together)
    for one, selected in zip(examples, together, strict=False):
        assert one.id not in _ids(selected)
    other_seed = bank.select(examples[:20], 5, strategy, seed=1)
    assert (other_seed == together) is (strategy != "random")
    capped = bank.select(examples[:20], 5, strategy, per_task=2)
    for selected in capped:
        assert max(_counts(one.demonstration.task for one in selected).values()) <= 2
        assert len(selected) == 5


@pytest.mark.parametrize("strategy", ["nearest", "balanced", "diverse", "covering", "random"])
def test_filters_and_tasks_hold(small: tuple[DemonstrationBank, list[Demonstration]], strategy: str) -> None:
    bank, examples = small
    over = {"field": "metadata.n", "operator": ">=", "value": 150}
    for selected in bank.select(examples[:10], 4, strategy, tasks=["task0", "task2"], filter=over):
        assert len(selected) == 4
        assert all(one.demonstration.task != "task1" for one in selected)
        assert all(one.demonstration.metadata["n"] >= 150 for one in selected)
    assert bank.select("w01ord37", 4, strategy, tasks="unheard of") == []


def test_balanced_gives_every_output_its_share(small: tuple[DemonstrationBank, list[Demonstration]]) -> None:
    bank, examples = small
    for selected in bank.select(examples[:10], 10, "balanced"):
        assert set(_counts(one.demonstration.output for one in selected).values()) == {2}
    for one, selected in zip(examples[:10], bank.select(examples[:10], 3, "balanced"), strict=True):
        outputs = [found.demonstration.output for found in selected]
        assert len(set(outputs)) == 3
        # They are the three outputs whose nearest examples are nearest, each by that example.
        best: dict[str, Selected] = {}
        for found in bank.select(one, 150, order="nearest_first"):
            best.setdefault(found.demonstration.output, found)
        assert selected[::-1] == list(best.values())[:3]


def _features(bank: DemonstrationBank, text: str, pool: int) -> tuple[Features, list[Selected]]:
    candidates = bank.select(text, pool, order="nearest_first")
    snapshot = bank.retriever.snapshot
    queries = snapshot.weigh(bank.retriever.encoder.encode_query([text]))
    documents = {one.demonstration.id: bank.retriever.get(one.demonstration.id) for one in candidates}
    return Features(bank.retriever.encoder, snapshot, [text], queries, documents), candidates


def test_diverse_is_maximal_marginal_relevance(small: tuple[DemonstrationBank, list[Demonstration]]) -> None:
    bank, examples = small
    text = examples[0].input + " w39ord43"
    features, candidates = _features(bank, text, 40)
    relevance, likeness = features.likeness(0, [one.demonstration.id for one in candidates])
    assert np.allclose(np.diag(likeness), 1, atol=1e-5) or bank.retriever.encoder.kind == "multi-vector"
    chosen: list[int] = []
    while len(chosen) < 6:
        gains = [
            -np.inf if n in chosen else 0.4 * relevance[n] - 0.6 * max([likeness[n, m] for m in chosen], default=0)
            for n in range(len(candidates))
        ]
        chosen.append(int(np.argmax(gains)))
    selected = bank.select(text, 6, "diverse", pool=40, diversity=0.6, order="nearest_first")
    assert selected == [candidates[n] for n in sorted(chosen)]
    nearest = bank.select(text, 6, "diverse", pool=40, diversity=0, order="nearest_first")
    if bank.retriever.encoder.kind in ("sparse", "multi-vector", "dense"):
        by_likeness = sorted(range(len(candidates)), key=lambda n: -relevance[n])[:6]
        assert nearest == [candidates[n] for n in sorted(by_likeness)]


def test_covering_covers_most(small: tuple[DemonstrationBank, list[Demonstration]]) -> None:
    bank, examples = small
    text = " ".join([examples[0].input, examples[1].input])
    features, candidates = _features(bank, text, 40)
    covered = features.covered(0, [one.demonstration.id for one in candidates])
    chosen: list[int] = []
    while len(chosen) < 4:
        floor = covered[chosen].max(axis=0) if chosen else np.zeros(covered.shape[1])
        gains = [-np.inf if n in chosen else np.maximum(covered[n], floor).sum() for n in range(len(candidates))]
        chosen.append(int(np.argmax(gains)))
    selected = bank.select(text, 4, "covering", pool=40, order="nearest_first")
    assert selected == [candidates[n] for n in sorted(chosen)]


def test_covering_takes_the_terms_that_the_nearest_leave_open(tmp_path: Path) -> None:
    examples = [
        Demonstration("a", "t", "list files in folder", "1"),
        Demonstration("b", "t", "list files in directory sorted", "2"),
        Demonstration("c", "t", "compress archive quickly", "3"),
    ]
    for number, encoder in enumerate(("bm25", HashEncoder("dense"))):
        with DemonstrationBank.build(tmp_path / str(number), examples, encoder=encoder) as bank:
            found = bank.select("list files in folder and compress them into an archive", 2, "covering", near=1.0)
            assert {one.demonstration.id for one in found} == {"a", "c"}


def test_likeness_and_cover_by_numbers_worked_by_hand() -> None:
    """Terms of the input weigh 2 and 1; candidates cover the first, the second, and both by half."""
    from retrievers.demonstrations.selection import coverage, greedily, in_turn, marginal_relevance

    covered = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.5]])
    gains = coverage(covered)
    assert gains(np.array([False, False, False])).tolist() == [2.0, 1.0, 1.5]
    assert gains(np.array([True, False, False])).tolist() == [0.0, 1.0, 0.5]
    assert greedily(gains, ["t"] * 3, 3, None) == [0, 1, 2]
    assert greedily(gains, ["t", "t", "u"], 3, 1) == [0, 2]
    relevance, likeness = np.array([1.0, 0.9, 0.5]), np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.2], [0.0, 0.2, 1.0]])
    mmr = marginal_relevance(relevance, likeness, 0.5)
    assert mmr(np.array([True, False, False])).tolist() == pytest.approx([0.0, 0.05, 0.25])
    assert greedily(mmr, ["t"] * 3, 2, None) == [0, 2]
    assert in_turn([2, 0, 1], ["t", "t", "u"], 2, 1) == [2, 0]


def test_never_selects_planted_duplicates_nor_evaluation_data(real: DemonstrationBank, collections: Path) -> None:
    """Test questions planted in the bank: as they are, slightly changed, and marked as evaluation data."""
    test = _examples(collections, "banking77", "test", 40)
    planted = [Demonstration(f"same/{n}", "planted", one.input, "leak") for n, one in enumerate(test)]
    planted += [Demonstration(f"case/{n}", "planted", f"  {one.input.upper()} !", "leak") for n, one in enumerate(test)]
    planted += [Demonstration(f"near/{n}", "planted", one.input + "s", "leak") for n, one in enumerate(test)]
    marked = [
        Demonstration(f"marked/{n}", "planted", f"Please tell me this now, kindly: {one.input}", "leak", {}, True)
        for n, one in enumerate(test)
    ]
    real.add([*planted, *marked])
    try:
        inputs = [one.input for one in test]
        for strategy in ("nearest", "balanced", "diverse", "covering", "random"):
            for text, selected in zip(inputs, real.select(inputs, 8, strategy), strict=True):
                assert len(selected) == 8
                for one in selected:
                    assert not one.demonstration.evaluation
                    assert jaccard(normal_form(text), normal_form(one.demonstration.input)) < 0.8
        # An unmarked longer one is found: what keeps the marked ones out is the mark.
        control = Demonstration("control", "planted", marked[0].input, "leak")
        real.add([control])
        assert "control" in _ids(real.select(inputs[0], 8))
        real.delete("control")
        # What is marked afterwards is gone from every selection, for any input.
        before = Manifest.read(real.retriever.path).generation
        found = real.mark_evaluation(inputs)
        assert Manifest.read(real.retriever.path).generation == before + 1  # a process killed midway loses nothing
        assert {f"{kind}/{n}" for kind in ("same", "case", "near") for n in range(40)} <= set(found)
        assert real.mark_evaluation(inputs) == []
        assert all(real.get(id).evaluation for id in found)
        for selected in real.select([f"tell me: {text}" for text in inputs], 8):
            assert not set(_ids(selected)) & set(found)
    finally:
        real.delete([one.id for one in (*planted, *marked)])


def test_a_bank_example_is_not_shown_to_itself(real: DemonstrationBank) -> None:
    examples = list(real)[:300]
    for one, selected in zip(examples, real.select(examples, 6), strict=True):
        assert one.id not in _ids(selected)
        assert all(jaccard(normal_form(one.input), normal_form(text)) < 0.8 for text in _texts(selected))


def test_goes_deeper_where_duplicates_take_all_places(tmp_path: Path) -> None:
    crowd = [Demonstration(f"x{n}", "t", "how do i undo the last commit", str(n)) for n in range(300)]
    others = [Demonstration(f"y{n}", "t", f"undo thing number {n} of mine", str(n)) for n in range(10)]
    with DemonstrationBank.build(tmp_path / "bank", [*crowd, *others]) as bank:
        for strategy in ("nearest", "balanced", "diverse", "covering", "random"):
            found = bank.select("How do I undo the last commit?", 5, strategy)
            assert len(found) == 5
            assert all(one.demonstration.id.startswith("y") for one in found)


def test_random_draws_are_even(real: DemonstrationBank) -> None:
    """Of 20,000 draws from 2,000 examples each is expected ten times: chi-squared within five deviations."""
    counts = _counts(
        one.demonstration.id for found in real.select([f"text {n}" for n in range(2500)], 8, "random") for one in found
    )
    assert sum(counts.values()) == 20_000
    drawn = np.array([*counts.values(), *[0] * (len(real) - len(counts))])
    statistic = float(((drawn - 10) ** 2 / 10).sum())
    assert abs(statistic - 2000) < 5 * np.sqrt(2 * 2000)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"strategy": "closest"}, DemonstrationError),
        ({"order": "last"}, DemonstrationError),
        ({"near": 0.3}, DemonstrationError),
        ({"diversity": 1.5}, DemonstrationError),
        ({"k": 0}, QueryError),
        ({"per_task": 0}, QueryError),
    ],
    ids=str,
)
def test_refuses_options_that_make_no_sense(
    real: DemonstrationBank, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        real.select("text", **options)  # type: ignore[call-overload]
    with pytest.raises(DemonstrationError, match="input 1 is a int"):
        real.select(["text", 3])  # type: ignore[list-item]


def test_an_empty_bank_gives_nothing(tmp_path: Path) -> None:
    with DemonstrationBank.build(tmp_path / "bank", [], encoder=LexicalEncoder()) as bank:
        for strategy in ("nearest", "balanced", "diverse", "covering", "random"):
            assert bank.select("anything", 3, strategy) == []
        assert bank.mark_evaluation(["anything"]) == []
        assert bank.select([], 3) == []


def _ids(selected: list[Selected]) -> list[str]:
    return [one.demonstration.id for one in selected]


def _counts(values: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found
