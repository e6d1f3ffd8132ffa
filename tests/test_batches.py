"""Batches of query rows: what they hold, how often, and that they depend on (seed, step) alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from retrievers.errors import TrainingDataError
from retrievers.training.batches import (
    Batches,
    RandomBatches,
    SingleSourceBatches,
    TopicAwareBatches,
    generator,
    share,
)

#: 12 topics of 1 to 100 queries, mixed up.
ASSIGNMENT = np.random.default_rng(0).permutation(
    np.repeat(np.arange(12), [100, 1, 7, 30, 30, 64, 2, 12, 90, 50, 33, 81])
)
LIKELY = 1e-3  # a p-value below which draws do not follow the distribution; seeds are fixed

MAKERS: dict[str, Callable[[int], Batches]] = {
    "random": lambda seed: RandomBatches(500, 48, seed=seed),
    "subset": lambda seed: RandomBatches(500, 48, seed=seed, fraction=0.5),
    "topics": lambda seed: TopicAwareBatches(ASSIGNMENT, 48, seed=seed, topics_per_batch=3),
    "source": lambda seed: SingleSourceBatches(np.arange(500) % 3, 48, seed=seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_batches_are_functions_of_seed_and_step(name: str) -> None:
    forward, backward = MAKERS[name](7), MAKERS[name](7)
    steps = [*range(60), 10**9 + 1]
    rows = {step: forward.batch(step) for step in steps}
    assert all(batch.dtype == np.int64 and batch.shape == (48,) for batch in rows.values())
    for step in reversed(steps):
        np.testing.assert_array_equal(backward.batch(step), rows[step])
    assert len({batch.tobytes() for batch in rows.values()}) == len(steps)
    assert any((MAKERS[name](8).batch(step) != rows[step]).any() for step in steps)
    rows[0][:] = -1  # a batch is the caller's own
    assert forward.batch(0).min() >= 0


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_number_of_processes_sees_the_same_global_batch(name: str, processes: int) -> None:
    whole = MAKERS[name](3).batch(11)
    shares = [share(MAKERS[name](3).batch(11), rank, processes) for rank in range(processes)]
    assert {len(part) for part in shares} == {48 // processes}
    np.testing.assert_array_equal(np.concatenate(shares), whole)


def test_another_process_draws_the_same() -> None:
    code = (
        "import sys, numpy as np\n"
        "from retrievers.training.batches import RandomBatches, TopicAwareBatches\n"
        "print(RandomBatches(50, 8, seed=5).batch(17).tolist(),"
        " TopicAwareBatches(np.arange(60) % 7, 8, seed=5).batch(17).tolist(), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    topics = TopicAwareBatches(np.arange(60) % 7, 8, seed=5).batch(17).tolist()
    assert found == f"{RandomBatches(50, 8, seed=5).batch(17).tolist()} {topics} False"


@given(queries=st.integers(1, 60), size=st.integers(1, 20), fraction=st.floats(0.1, 1), seed=st.integers(0, 2**40))
@settings(max_examples=80, deadline=None)
def test_random_batches_hold_each_query_once_an_epoch(queries: int, size: int, fraction: float, seed: int) -> None:
    length = round(queries * fraction)
    if length < size:
        with pytest.raises(TrainingDataError, match=f"{length} queries, fewer than a batch of {size}"):
            RandomBatches(queries, size, seed=seed, fraction=fraction)
        return
    batches = RandomBatches(queries, size, seed=seed, fraction=fraction)
    rows = [batches.batch(step) for step in range(4 * length // size + 2)]
    assert all(len(set(batch.tolist())) == size for batch in rows)
    stream = np.concatenate(rows)
    period = length if length >= 2 * size else size
    assert batches.steps_per_epoch == period / size
    for epoch in range(len(stream) // period):
        part = stream[epoch * period : (epoch + 1) * period]
        assert len(set(part.tolist())) == period
        assert 0 <= part.min() <= part.max() < queries
    assert [batches.epoch(step) for step in range(len(rows))] == [step * size // period for step in range(len(rows))]


def test_random_epochs_are_uniform() -> None:
    batches = RandomBatches(20, 6, seed=1)  # 20 is no multiple of 6: most epochs have queries that changed places
    places = np.zeros((20, 20))
    stream = np.concatenate([batches.batch(step) for step in range(2000 * 20 // 6)])
    for at, row in enumerate(stream.tolist()):
        places[at % 20, row] += 1
    assert chisquare(places[0]).pvalue > LIKELY
    assert chisquare(places[7]).pvalue > LIKELY
    assert chisquare(places[19]).pvalue > LIKELY


def test_a_subset_is_fresh_in_every_epoch() -> None:
    batches = RandomBatches(100, 10, seed=0, fraction=0.3)
    assert (batches.epoch_queries, batches.steps_per_epoch) == (30, 3.0)
    epochs = [{int(r) for step in range(3) for r in batches.batch(3 * epoch + step)} for epoch in range(400)]
    assert {len(epoch) for epoch in epochs} == {30}
    counts = np.bincount([row for epoch in epochs for row in epoch], minlength=100)
    assert chisquare(counts).pvalue > LIKELY
    overlaps = [len(a & b) for a, b in pairwise(epochs)]
    assert np.mean(overlaps) == pytest.approx(9, abs=0.6)  # 30 of 100, twice


@given(
    assignment=st.lists(st.integers(0, 8), min_size=1, max_size=60),
    size=st.integers(1, 30),
    topics=st.integers(1, 6),
    over=st.sampled_from(["uniform", "proportional"]),
    step=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_topic_batches_take_as_much_of_a_topic_as_they_may(
    assignment: list[int], size: int, topics: int, over: Any, step: int
) -> None:
    given_topics = np.array(assignment)
    if len(assignment) < size or topics > size:
        with pytest.raises(TrainingDataError):
            TopicAwareBatches(given_topics, size, topics_per_batch=topics, over=over)
        return
    batch = TopicAwareBatches(given_topics, size, topics_per_batch=topics, over=over).batch(step)
    assert len(batch) == size
    assert len(set(batch.tolist())) == size
    most, sizes = size // topics, np.bincount(given_topics)
    drawn = given_topics[batch]
    runs = np.split(drawn, np.flatnonzero(np.diff(drawn)) + 1)
    everything = np.minimum(sizes, most).sum()
    if everything >= size:  # one round: each topic once, full but for the last
        assert len({run[0] for run in runs}) == len(runs)
        for run in runs[:-1]:
            assert len(run) == min(most, sizes[run[0]])
        assert len(runs[-1]) <= min(most, sizes[runs[-1][0]])
    else:  # all topics gave what they may, and more rounds followed
        counts = np.bincount(drawn, minlength=len(sizes))
        assert (counts >= np.minimum(sizes, most)).all()


def test_topic_batches_worked_by_hand() -> None:
    batches = TopicAwareBatches(np.array([4, 4, 9, 4, 9, 4, 9, 9]), 4)
    for step in range(40):
        assert sorted(batches.batch(step).tolist()) in ([0, 1, 3, 5], [2, 4, 6, 7])
    both = TopicAwareBatches(np.array([4, 4, 9, 4, 9, 4, 9, 9]), 4, topics_per_batch=2)
    for step in range(40):
        assert sum(row in (0, 1, 3, 5) for row in both.batch(step)) == 2
    assert sorted(TopicAwareBatches(np.array([0, 0, 1]), 3, topics_per_batch=3).batch(5).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("over", ["uniform", "proportional"])
def test_topics_are_drawn_as_asked(over: Any) -> None:
    sizes = np.array([8, 16, 24, 32])
    assignment = np.repeat(np.arange(4), sizes)
    batches = TopicAwareBatches(assignment, 8, over=over, seed=2)
    rows = np.concatenate([batches.batch(step) for step in range(2000)])
    topics = np.bincount(assignment[rows[::8]])
    wanted = np.full(4, 0.25) if over == "uniform" else sizes / sizes.sum()
    assert chisquare(topics, wanted * 2000).pvalue > LIKELY
    of_last = np.bincount(rows[assignment[rows] == 3] - 48)
    assert chisquare(of_last).pvalue > LIKELY  # within a topic every query alike


@pytest.mark.parametrize(("exponent", "wanted"), [(0.0, [1, 1, 1]), (0.5, [1, 2, 3]), (1.0, [1, 4, 9])])
def test_single_source_batches(exponent: float, wanted: list[int]) -> None:
    sources = np.random.default_rng(1).permutation(np.repeat([3, 5, 6], [10, 40, 90]))
    batches = SingleSourceBatches(sources, 10, exponent=exponent, seed=4)
    drawn = []
    for step in range(1500):
        batch = batches.batch(step)
        assert len(set(batch.tolist())) == 10
        assert len(set(sources[batch].tolist())) == 1
        drawn.append(int(sources[batch[0]]))
    counts = np.bincount(drawn)[[3, 5, 6]]
    assert chisquare(counts, np.array(wanted) / sum(wanted) * 1500).pvalue > LIKELY


def test_streams_of_one_seed_are_apart() -> None:
    numbers = {generator(seed, *key).random() for seed in (0, 1) for key in [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]}
    assert len(numbers) == 12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomBatches(10, 0), "a batch of 0 queries"),
        (lambda: RandomBatches(10, 11), "10 queries, fewer than a batch of 11"),
        (lambda: RandomBatches(10, 2, fraction=0), "fraction is 0"),
        (lambda: RandomBatches(10, 2, fraction=float("nan")), "fraction is nan"),
        (lambda: RandomBatches(10, 2).batch(-1), "no step -1"),
        (lambda: RandomBatches(10, 2, seed=-1).batch(0), "seed -1"),
        (lambda: TopicAwareBatches(np.zeros(4, int), 4, topics_per_batch=5), "5 topics in a batch of 4"),
        (lambda: TopicAwareBatches(np.zeros(4, int), 4, over="all"), "over 'all'"),  # type: ignore[arg-type]
        (lambda: TopicAwareBatches(np.zeros(4), 4), "float64"),  # type: ignore[arg-type]
        (lambda: TopicAwareBatches(np.array([0, -1]), 1), "query 1 has the topic -1"),
        (lambda: SingleSourceBatches(np.array([0, 0, 7]), 2), "source 7 has 1 queries"),
        (lambda: SingleSourceBatches(np.array([0, 0]), 2, exponent=-1), "exponent is -1"),
        (lambda: share(np.arange(10), 0, 3), "10 queries does not divide among 3"),
        (lambda: share(np.arange(10), 2, 2), "no process 2 among 2"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TrainingDataError, match=message):
        make()


def _tiny_model(folder: Path, words: list[str]) -> Any:
    """A randomly initialised BERT of one layer by 16, whose vocabulary is ``words``."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab={word: at for at, word in enumerate(vocabulary)}).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16, "mean")], device="cpu")


def _topics(assignment: np.ndarray) -> Any:
    from retrievers.training.topics import Topics

    number = int(assignment.max()) + 1
    return Topics(assignment.astype(np.int64), number, np.zeros(len(assignment), np.float32), number)


def test_batches_in_the_trainer_of_sentence_transformers(tmp_path: Path) -> None:
    words = [f"q{letter}" for letter in "abcdefghijklmnopqrstuvwx"]
    model = _tiny_model(tmp_path / "model", words)
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from retrievers.training.sampler import TopicAwareBatchSampler

    torch.set_num_threads(1)
    assignment = np.arange(24) % 3
    seen: list[list[int]] = []

    class Watched(MultipleNegativesRankingLoss):  # type: ignore[misc]
        def forward(self, features: Any, labels: Any) -> Any:
            features = list(features)
            if torch.is_grad_enabled():  # not while it evaluates
                seen.append([int(ids[ids >= 5][0]) - 5 for ids in features[0]["input_ids"]])  # the row: its one word
            return super().forward(features, labels)

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=8,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        eval_strategy="steps",
        eval_steps=4,
        batch_sampler=TopicAwareBatchSampler.of(_topics(assignment), others="in order"),
        seed=11,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
    )
    rows = Dataset.from_dict({"anchor": words, "positive": [word + " qa" for word in words]})
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows.select(range(10)), loss=Watched(model)
    )
    trainer.train()
    # 24 // 4 = 6 steps an epoch, so that 8 steps reach into the second.
    wanted = TopicAwareBatches(assignment, 4, seed=11)
    assert seen == [wanted.batch(step).tolist() for step in range(8)]
    assert all(len({int(assignment[row]) for row in batch}) == 1 for batch in seen)
    assert len({int(assignment[batch[0]]) for batch in seen}) > 1


def test_accelerate_deals_a_global_batch_out_to_processes() -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from accelerate.data_loader import BatchSamplerShard

    from retrievers.training.sampler import TopicAwareBatchSampler

    topics = _topics(np.arange(120) % 5)
    whole = TopicAwareBatches(topics.assignment, 12, seed=2)
    for processes in (1, 2, 3):
        shards = []
        for rank in range(processes):
            sampler = TopicAwareBatchSampler.of(topics, processes=processes)(range(120), 12 // processes, seed=2)
            sampler.set_epoch(3)
            assert len(sampler) == 10 * processes
            shards.append(list(BatchSamplerShard(sampler, processes, rank, even_batches=False)))
        for step, parts in enumerate(zip(*shards, strict=True)):
            assert [row for part in parts for row in part] == whole.batch(30 + step).tolist()
        assert {len(shard) for shard in shards} == {10}


def test_the_sampler_refuses_topics_of_other_data() -> None:
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from retrievers.training.sampler import TopicAwareBatchSampler

    topics = _topics(np.arange(30) % 3)
    with pytest.raises(TrainingDataError, match="topics are those of 30 queries, and the data set has 31 rows"):
        TopicAwareBatchSampler.of(topics)(range(31), 4)
    with pytest.raises(TrainingDataError, match="0 processes"):
        TopicAwareBatchSampler(range(30), 4, topics=topics, processes=0)
    with pytest.raises(TrainingDataError, match="others is 'drop'"):
        TopicAwareBatchSampler.of(topics, others="drop")  # type: ignore[arg-type]
    ordered = TopicAwareBatchSampler.of(topics, others="in order")(range(6), 4, drop_last=False)
    assert list(ordered) == [[0, 1, 2, 3], [4, 5]]
