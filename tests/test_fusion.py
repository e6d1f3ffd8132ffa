"""Fusion of runs: the formulas on numbers worked by hand, and an independent implementation in fractions."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrievers.errors import LeakError, MeasureError, QrelsError, QueryError, RunError, SpecError
from retrievers.evaluation import measure_run, parse_measures
from retrievers.fusion import Convex, Fusion, ReciprocalRanks, fuse
from retrievers.runs import Run, decreasing, read_run, write_run
from retrievers.tuning import Tuned, tune


def one(*parts: dict[str, float], fusion: str = "rrf", **options: Any) -> dict[str, float]:
    """What parts fuse to for a single query."""
    return fuse([{"q": part} for part in parts], fusion, **options)["q"]


@pytest.mark.parametrize(
    ("fusion", "parts", "weights", "wanted"),
    [
        # Ranks; a document that a part lacks adds nothing there.
        ("rrf", [{"a": 9, "b": 8}, {"b": 0.2, "c": 0.1}], None, {"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62}),
        ("rrf(k=0)", [{"a": 9, "b": 8}, {"b": 0.2, "c": 0.1}], None, {"b": 1.5, "a": 1, "c": 0.5}),
        ("rrf(k=1)", [{"a": 9, "b": 8}, {"b": 0.2, "c": 0.1}], (3, 1), {"a": 1.5, "b": 1.5, "c": 1 / 3}),
        ("rrf(k=0)", [{"a": -9, "b": -8}], None, {"b": 1, "a": 0.5}),
        ("rrf(k=0)", [{}, {"a": 5}], None, {"a": 1}),
        # (score - minimum) / (maximum - minimum): a 1, b 0.25, c 0; d 1, b 0, and a and c, lacking, as b.
        (
            "convex(normalise=min-max)",
            [{"a": 6, "b": 3, "c": 2}, {"d": 10, "b": -10}],
            (0.8, 0.2),
            {"a": 0.8, "b": 0.2, "d": 0.2, "c": 0},
        ),
        # Weights are scaled to the sum 1.
        ("convex", [{"a": 6, "b": 3, "c": 2}, {"d": 10, "b": -10}], (4, 1), {"a": 0.8, "b": 0.2, "d": 0.2, "c": 0}),
        ("convex", [{"a": -1, "b": -2, "c": -5}, {"b": -1, "a": -3}], None, {"b": 0.875, "a": 0.5, "c": 0}),
        # A part that found nothing gives 0, one with a single document, or equal scores, 1 to those alone.
        ("convex", [{"a": 3, "b": 1}, {}], None, {"a": 0.5, "b": 0}),
        ("convex", [{"a": 3, "b": 2, "c": 1}, {"c": 7}], None, {"a": 0.5, "c": 0.5, "b": 0.25}),
        ("convex", [{"a": 7, "b": 7}, {"c": 2, "d": 1}], (0.4, 0.6), {"c": 0.6, "a": 0.4, "b": 0.4, "d": 0}),
        # 8, 6, 2, 0 have the mean 4 and the deviation sqrt(10); d is lacking in the second and scored as its lowest.
        (
            "convex(normalise=z)",
            [{"a": 8, "b": 6, "c": 2, "d": 0}, {"c": 3, "a": 1}],
            None,
            {
                "c": (-2 / 10**0.5 + 1) / 2,
                "a": (4 / 10**0.5 - 1) / 2,
                "b": (2 / 10**0.5 - 1) / 2,
                "d": (-4 / 10**0.5 - 1) / 2,
            },
        ),
        # Equal scores and single documents have no say in z.
        ("convex(normalise=z)", [{"a": 5, "b": 5}, {"b": 2, "c": 0}], None, {"b": 0.5, "a": -0.5, "c": -0.5}),
        ("convex(normalise=z)", [{"c": 5}, {"b": 2, "c": 0}, {}], (2, 1, 1), {"b": 0.25, "c": -0.25}),
        # The scores themselves; a and c are lacking and scored as the lowest of the part.
        ("convex(normalise=none)", [{"a": 6, "b": 3}, {"b": -1, "c": -2}], None, {"a": 2, "b": 1, "c": 0.5}),
        ("convex(normalise=none)", [{"a": 6}, {}], (1, 3), {"a": 1.5}),
        ("convex(normalise=none)", [{}, {}], None, {}),
    ],
)
def test_numbers_worked_by_hand(
    fusion: str, parts: list[dict[str, float]], weights: tuple[float, ...] | None, wanted: dict[str, float]
) -> None:
    fused = one(*parts, fusion=fusion, weights=weights)
    assert list(fused) == list(wanted)
    assert list(fused.values()) == pytest.approx(list(wanted.values()), rel=1e-6, abs=1e-9)


def naive(parts: list[dict[str, int]], fusion: str, weights: list[int]) -> dict[str, Fraction]:
    """Fused scores in exact arithmetic; the scores of a part are whole numbers, and differ where they are not equal."""
    scores = {id: Fraction(0) for part in parts for id in part}
    total = sum(weights)
    for part, weight in zip(parts, weights, strict=True):
        for id in scores:
            if not part:
                continue
            low, high = min(part.values()), max(part.values())
            score = part.get(id, low)
            if fusion == "rrf(k=7)":
                # Of equal scores the higher id comes first, as in trec_eval.
                rank = sum((other, name) >= (score, id) for name, other in part.items())
                value = Fraction(weight, 7 + rank) if id in part else Fraction(0)
            elif fusion == "convex(normalise=none)":
                value = Fraction(weight * score, total)
            elif low == high:
                value = Fraction(weight * (id in part), total)
            else:
                value = Fraction(weight * (score - low), total * (high - low))
            scores[id] += value
    return scores


names = st.sampled_from(["a", "b", "B", "é", "10", "9", "x y", "\U0001f600"])
found = st.dictionaries(names, st.integers(-20, 20), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(found, min_size=1, max_size=4),
    fusion=st.sampled_from(["rrf(k=7)", "convex", "convex(normalise=none)"]),
    data=st.data(),
)
def test_an_exact_implementation_gives_the_same(parts: list[dict[str, int]], fusion: str, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 5), min_size=len(parts), max_size=len(parts)).filter(any))
    depth = data.draw(st.none() | st.integers(8, 12))
    exact = naive(parts, fusion, weights)
    wanted = sorted(exact, key=lambda id: (-exact[id], id))
    fused = one(*parts, fusion=fusion, weights=weights, depth=depth)  # type: ignore[arg-type]
    assert list(fused) == wanted
    assert list(fused.values()) == pytest.approx([float(exact[id]) for id in wanted], rel=1e-5, abs=1e-6)
    scores = np.array(list(fused.values()), np.float32)
    assert (scores[1:] < scores[:-1]).all()


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(found, min_size=2, max_size=3))
def test_z_scores_are_those_of_scipy(parts: list[dict[str, int]]) -> None:
    from scipy.stats import zscore

    wanted = {id: 0.0 for part in parts for id in part}
    for part in parts:
        if len(set(part.values())) > 1:
            values = dict(zip(part, zscore(np.array(list(part.values()), np.float64)).tolist(), strict=True))
            for id in wanted:
                wanted[id] += values.get(id, min(values.values())) / len(parts)
    fused = one(*parts, fusion="convex(normalise=z)")  # type: ignore[arg-type]
    assert fused == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert list(fused) == sorted(wanted, key=lambda id: (-round(wanted[id], 9), id))


def test_equal_scores_stay_equal_in_runs_that_hold_them_in_order() -> None:
    """Search results become runs with strictly decreasing scores: these must not be taken for differences."""
    tied = decreasing([5.0] * 40)
    part = {f"d{at:02}": score for at, score in enumerate(tied)}
    other = {"d39": 2.0, "x": 1.0}
    wanted = {"d39": 1.0, **{id: 0.5 for id in part if id != "d39"}, "x": 0.0}
    fused = one(part, other, fusion="convex")
    assert list(fused) == list(wanted)
    assert fused == pytest.approx(wanted, rel=1e-5)
    assert one(part, other, fusion="convex(normalise=z)")["d00"] == pytest.approx(-0.5, rel=1e-5)


def test_a_run_that_was_written_and_read_fuses_to_the_same(tmp_path: Path) -> None:
    rng = random.Random(3)
    runs: list[Run] = [
        {
            f"q{q}": {
                f"d{d}": score
                for d, score in enumerate(decreasing(sorted((rng.gauss(0, 9) for _ in range(30)), reverse=True)))
            }
            for q in range(9)
        }
        for _ in range(2)
    ]
    for at, run in enumerate(runs):
        write_run(tmp_path / f"{at}.run", run)
    read = [read_run(tmp_path / f"{at}.run") for at in range(2)]
    for fusion in ("rrf", "convex", "convex(normalise=z)"):
        fused = fuse(runs, fusion)
        write_run(tmp_path / "fused.run", fuse(read, fusion))
        again = read_run(tmp_path / "fused.run")
        assert [list(scores) for scores in again.values()] == [list(scores) for scores in fused.values()]


def test_sums_that_differ_by_rounding_alone_are_equal() -> None:
    """Each of n documents has place p in one part and n + 1 - p in the other, by scores that are evenly spaced."""
    for n in range(3, 40):
        first = {f"d{at:02}": 0.1 * (n - at) for at in range(n)}
        second = {f"d{at:02}": 0.1 * (at + 1) for at in range(n)}
        for fusion in ("convex", "convex(normalise=none)"):
            assert list(one(first, second, fusion=fusion)) == sorted(first)
    # The same three ranks in any order, and so one sum, whichever of them comes first.
    orders = list(itertools.permutations(range(3)))
    for chosen in itertools.permutations(orders, 3):
        parts = [{"abc"[id]: -float(order.index(id)) for id in range(3)} for order in chosen]
        ranks = {id: sorted(sorted(part, key=lambda name: -part[name]).index(id) for part in parts) for id in "abc"}
        if ranks["a"] == ranks["b"] == ranks["c"]:
            assert list(one(*parts, fusion="rrf(k=2)")) == ["a", "b", "c"]


def test_queries_are_those_of_any_part_and_fused_alone() -> None:
    first: Run = {"q2": {"a": 1.0}, "q1": {"a": 3.0, "b": 1.0}, "none": {}}
    second: Run = {"q3": {"c": 1.0}, "q1": {"b": 2.0}}
    fused = fuse([first, second], "rrf(k=0)")
    assert fused == {"q2": {"a": 1.0}, "q1": {"b": 1.5, "a": 1.0}, "none": {}, "q3": {"c": 1.0}}
    assert list(fused) == ["q2", "q1", "none", "q3"]


def test_depth_cuts_the_parts_and_the_outcome() -> None:
    first, second = {"a": 5.0, "b": 4.0, "c": 1.0}, {"c": 3.0, "b": 2.0, "d": 1.0}
    assert one(first, second, fusion="rrf(k=0)", depth=2) == {"a": 1.0, "b": 1.0 - 2**-24}
    # The lowest score of the best two, not of all three, is what c gets from the first part.
    assert one(first, second, fusion="convex(normalise=none)", depth=2) == pytest.approx({"a": 3.5, "c": 3.5})


def test_specifications_print_and_parse() -> None:
    for text, value in {
        "rrf": ReciprocalRanks(60),
        "rrf(k=60)": ReciprocalRanks(60),
        "rrf(k=0.5)": ReciprocalRanks(0.5),
        "convex": Convex("min-max"),
        "convex(normalise=z)": Convex("z"),
        " convex( normalise = none ) ": Convex("none"),
    }.items():
        assert Fusion.parse(text) == value
        assert Fusion.parse(str(value)) == value
        assert Fusion.parse(value) is value
    assert str(Fusion.parse("rrf")) == "rrf(k=60)"
    assert str(Fusion.parse("convex")) == "convex(normalise=min-max)"


RUNS: list[Run] = [{"q": {"a": 1.0}}, {"q": {"b": 1.0}}]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fuse(RUNS, "rff"), SpecError, "no fusion 'rff': there are rrf.* and convex"),
        (lambda: fuse(RUNS, "rrf(k=60"), SpecError, "no specification"),
        (lambda: fuse(RUNS, "rrf(c=60)"), SpecError, "rrf has no parameter 'c': it has k"),
        (lambda: fuse(RUNS, "rrf(k=-1)"), SpecError, "k is -1, .* from 0 to 1000000"),
        (lambda: fuse(RUNS, "rrf(k=nan)"), SpecError, "k is nan"),
        (lambda: fuse(RUNS, "rrf(k=true)"), SpecError, "k is True"),
        (lambda: fuse(RUNS, "rrf(k=many)"), SpecError, "k is 'many'"),
        (lambda: fuse(RUNS, "convex(normalise=l2)"), SpecError, "normalise is 'l2': there are min-max, z, none"),
        (lambda: fuse(RUNS, 60), SpecError, "60 is no fusion"),  # type: ignore[arg-type]
        (lambda: fuse([], "rrf"), SpecError, "no run to fuse"),
        (lambda: fuse(RUNS, weights=[1]), SpecError, "1 weight for 2 parts"),
        (lambda: fuse(RUNS, weights=[1, 1, 1]), SpecError, "3 weights for 2 parts"),
        (lambda: fuse(RUNS, weights=[1, -0.5]), SpecError, "weight 1 is -0.5"),
        (lambda: fuse(RUNS, "convex", weights=[float("nan"), 1]), SpecError, "weight 0 is nan"),
        (lambda: fuse(RUNS, weights=[1, float("inf")]), SpecError, "weight 1 is inf"),
        (lambda: fuse(RUNS, weights=[1, "2"]), SpecError, "weight 1 is '2'"),  # type: ignore[list-item]
        (lambda: fuse(RUNS, weights=[0, 0.0]), SpecError, "all 2 weights are 0"),
        (lambda: fuse(RUNS, depth=0), QueryError, "depth is 0"),
        (
            lambda: fuse([*RUNS, {"q": {"c": float("inf")}}]),
            RunError,
            "run 2, query 'q': document 'c' has the score inf",
        ),
        (lambda: fuse([*RUNS, {"q": {"c": float("nan")}}]), RunError, "'c' has the score NaN"),
        (lambda: tune(RUNS, {}), QrelsError, "no judgements"),
        (lambda: tune(RUNS, {"other": {"a": 1}}), QrelsError, "none of the 1 judged queries, such as 'other'"),
        (lambda: tune([], {"q": {"a": 1}}), SpecError, "no run to fuse"),
        (lambda: tune(RUNS, {"q": {"a": 1}}, steps=0), SpecError, "steps is 0"),
        (lambda: tune(RUNS, {"q": {"a": 1}}, depth=0), QueryError, "depth is 0"),
        (lambda: tune(RUNS, {"q": {"a": 1}}, measure="AP RR"), MeasureError, "names 2 measures"),
        (lambda: tune(RUNS, {"q": {"a": 1}}, measure="best"), MeasureError, "no measure 'best'"),
    ],
)
def test_bad_calls_are_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def trial(parts: int, good: int, queries: int = 40, seed: int = 0) -> tuple[list[Run], dict[str, dict[str, int]]]:
    """Runs of noise, but for one that mostly finds the relevant document first, and their qrels."""
    rng = random.Random(seed)
    qrels = {f"q{q}": {f"d{rng.randrange(20)}": 1} for q in range(queries)}
    runs: list[Run] = []
    for part in range(parts):
        runs.append(
            {
                query: {f"d{d}": rng.random() + (part == good) * 0.8 * relevant.get(f"d{d}", 0) for d in range(20)}
                for query, relevant in qrels.items()
            }
        )
    return runs, qrels


@pytest.mark.parametrize("fusion", ["rrf", "convex", "convex(normalise=z)"])
@pytest.mark.parametrize(("parts", "good"), [(2, 0), (2, 1), (3, 1), (4, 3)])
def test_tuning_finds_the_better_part(fusion: str, parts: int, good: int) -> None:
    runs, qrels = trial(parts, good)
    tuned = tune(runs, qrels, fusion=fusion)
    assert tuned.weights[good] == max(tuned.weights)
    assert tuned.weights[good] > 0.5
    assert sum(tuned.weights) == pytest.approx(1)
    assert tuned.fusion == Fusion.parse(fusion)
    assert tuned.measure == "nDCG@10"

    def value(weights: Any) -> float:
        (measure,) = parse_measures("nDCG@10")
        return measure_run(fuse(runs, fusion, weights=weights), qrels, [measure])[1]["nDCG@10"]

    assert value(tuned.weights) == pytest.approx(tuned.value)
    assert tuned.value > value(None)
    if parts == 2:
        assert tuned.value == pytest.approx(max(value((at / 20, 1 - at / 20)) for at in range(21)))
    # No single step of weight from one part to another makes it better.
    for giver in range(parts):
        for taker in range(parts):
            moved = list(tuned.weights)
            moved[giver] -= 0.05
            moved[taker] += 0.05
            if min(moved) >= 0:
                assert value(moved) <= tuned.value + 1e-9


def test_tuning_looks_at_no_other_queries() -> None:
    runs, qrels = trial(2, good=0)
    training = {query: qrels[query] for query in list(qrels)[:20]}
    tuned = tune(runs, training, fusion="convex")
    assert tuned.tuned_on == frozenset(training)
    other, _ = trial(2, good=1)
    changed: list[Run] = [
        {query: (run if query in training else theirs)[query] for query in run}
        for run, theirs in zip(runs, other, strict=True)
    ]
    assert changed != runs
    assert tune(changed, training, fusion="convex") == tuned
    without: list[Run] = [{query: run[query] for query in training} for run in runs]
    assert tune(without, training, fusion="convex") == tuned
    spoilt: list[Run] = [{**run, "q39": {"d1": float("nan")}} for run in runs]
    assert "q39" not in training
    assert tune(spoilt, training, fusion="convex") == tuned
    # The same change within the training queries does change the weights.
    assert tune(other, training, fusion="convex").weights != tuned.weights


def test_equal_values_leave_weights_nearest_to_equal() -> None:
    same = trial(1, good=0)
    for parts in (1, 2, 3, 4):
        assert tune(same[0] * parts, same[1]).weights == (1 / parts,) * parts
    # Any weight above one half puts the relevant document first; one half itself leaves it second, by its id.
    runs: list[Run] = [{"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 2.0, "a": 1.0}}]
    assert tune(runs, {"q": {"b": 1}}, measure="RR", fusion="convex").weights == pytest.approx((0.45, 0.55))
    assert tune(runs, {"q": {"b": 1}}, measure="RR", fusion="convex", steps=3).weights == pytest.approx((1 / 3, 2 / 3))


def test_depth_counts_in_tuning() -> None:
    # At depth 1 no weight brings up the document that both parts have second.
    runs: list[Run] = [{"q": {"a": 3.0, "z": 2.0}}, {"q": {"b": 3.0, "z": 2.0}}]
    assert tune(runs, {"q": {"z": 1}}, measure="RR").value == 1
    assert tune(runs, {"q": {"z": 1}}, measure="RR", depth=1).value == 0


def test_what_weights_were_tuned_on_is_refused_for_evaluation() -> None:
    tuned = Tuned(ReciprocalRanks(), (0.5, 0.5), "AP", 0.3, frozenset({"q1", "q2", "q3"}))
    tuned.refuse(["q4", "q5"])
    tuned.refuse([])
    with pytest.raises(
        LeakError, match="2 of the queries, such as 'q2', are among the 3 that the weights were tuned on"
    ):
        tuned.refuse(iter(["q4", "q3", "q2"]))


COMMAND = (
    "import typer, sys; from retrievers.cli.failures import Verbs; from retrievers.cli.fuse import fuse;"
    "app = typer.Typer(cls=Verbs, rich_markup_mode=None, add_completion=False); app.callback()(lambda: None);"
    "app.command('fuse')(fuse); app(prog_name='retrievers')"
)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "fuse", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs, qrels = trial(2, good=1)
    for name, run in zip(("a.run", "b.run.gz"), runs, strict=True):
        write_run(folder / name, run)
    for name, some in (("train.tsv", list(qrels)[:15]), ("all.tsv", list(qrels))):
        lines = [f"{query}\t{id}\t{grade}\n" for query in some for id, grade in qrels[query].items()]
        (folder / name).write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def test_the_command_writes_what_the_library_fuses(files: Path, tmp_path: Path) -> None:
    a, b, out = files / "a.run", files / "b.run.gz", tmp_path / "out.run"
    runs = [read_run(a), read_run(b)]
    done = command(a, b, "-o", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"fused 2 runs by rrf(k=60) for 40 queries: {out}\n"
    assert {query: list(scores) for query, scores in read_run(out).items()} == {
        query: list(scores) for query, scores in fuse(runs).items()
    }
    done = command(a, b, "-o", out, "--fusion", "convex(normalise=z)", "--weights", "0.3,0.7", "--depth", 4)
    assert done.returncode == 0, done.stderr
    wanted = fuse(runs, "convex(normalise=z)", weights=(0.3, 0.7), depth=4)
    assert {query: list(scores) for query, scores in read_run(out).items()} == {
        query: list(scores) for query, scores in wanted.items()
    }


def test_the_command_leaves_out_what_it_tuned_on(files: Path, tmp_path: Path) -> None:
    a, b, out = files / "a.run", files / "b.run.gz", tmp_path / "out.run"
    runs = [read_run(a), read_run(b)]
    training = [f"q{at}" for at in range(15)]
    from retrievers.runs import read_qrels

    tuned = tune(runs, read_qrels(files / "train.tsv"), fusion="convex", measure="RR")
    wanted = fuse(runs, "convex", weights=tuned.weights)
    tuning = ("--fusion", "convex", "--tune", files / "train.tsv", "--measure", "RR")
    done = command(a, b, "-o", out, *tuning)
    assert done.returncode == 0, done.stderr
    assert f"{tuned.weights[0]:.6g}  {a}\n{tuned.weights[1]:.6g}  {b}\n" in done.stdout
    assert f"RR {tuned.value:.4f} with these weights, which were tuned on 15 queries\n" in done.stdout
    assert done.stderr == "left out 15 queries that the weights were tuned on; --keep-tuned keeps them\n"
    written = read_run(out)
    assert set(written) == set(wanted) - set(training)
    assert all(list(scores) == list(wanted[query]) for query, scores in written.items())
    done = command(a, b, "-o", out, *tuning, "--keep-tuned")
    assert "warning: 15 queries of the tuning kept" in done.stderr
    assert set(read_run(out)) == set(wanted)
    before = out.read_bytes()
    done = command(a, b, "-o", out, "--tune", files / "all.tsv")
    assert done.returncode == 1
    assert "tuned on all 40 queries of the runs, and none is left to write" in done.stderr
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.run"], "two runs or more"),
        (["a.run", "b.run.gz", "--weights", "1,x"], "'1,x' is no list of numbers"),
        (["a.run", "b.run.gz", "--weights", "1,2,3"], "3 weights for 2 parts"),
        (["a.run", "b.run.gz", "--fusion", "best"], "no fusion 'best'"),
        (["a.run", "b.run.gz", "--weights", "1,2", "--tune", "train.tsv"], "given or tuned"),
        (["a.run", "b.run.gz", "--measure", "AP"], "no meaning without --tune"),
        (["a.run", "b.run.gz", "--keep-tuned"], "no meaning without --tune"),
        (["a.run", "out.run"], "one of the runs to fuse"),
    ],
)
def test_bad_usage_is_refused(arguments: list[str], message: str, files: Path) -> None:
    named = [files / word if word.endswith((".run", ".gz", ".tsv")) else word for word in arguments]
    done = command(*named, "-o", files / "out.run")
    assert done.returncode == 2
    # The message is wrapped to the width of a terminal.
    assert message in " ".join(done.stderr.split())
    assert not (files / "out.run").exists()
