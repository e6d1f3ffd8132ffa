"""``retrievers demos``: a bank of demonstrations, what it selects for an input, and how well that predicts outputs."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrievers.cli import options
from retrievers.cli.failures import complain
from retrievers.cli.progress import Meter, print_rate

if TYPE_CHECKING:
    from retrievers.demonstrations import Demonstration, DemonstrationBank, Selected

app = typer.Typer(
    help="Hold labelled examples of many tasks, and select demonstrations for prompts.", no_args_is_help=True
)

_BATCH = 256  # inputs that are selected for at once


class Strategy(StrEnum):
    """How demonstrations are selected."""

    nearest = "nearest"
    balanced = "balanced"
    diverse = "diverse"
    covering = "covering"
    random = "random"


Bank = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `demos build` made.", show_default=False)]
Count = Annotated[int, typer.Option("-k", min=1, metavar="N", help="Demonstrations an input.")]
Strategies = Annotated[
    Strategy,
    typer.Option(
        help="nearest; balanced over outputs; diverse; covering the input's words; random, which is the baseline."
    ),
]
Tasks = Annotated[
    list[str] | None, typer.Option("--task", metavar="NAME", help="Select from this task; repeat it for more.")
]
PerTask = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most so many demonstrations of a task.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Another seed draws others, with --strategy random.")]
InputField = Annotated[str, typer.Option(metavar="NAME", help="The field of the input.")]
OutputField = Annotated[str, typer.Option(metavar="NAME", help="The field of the output, a label or a text.")]


@app.command()
def build(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files of one JSON object a line, .jsonl(.gz).", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="The folder to make.", show_default=False)
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The task of lines without a field 'task'; once, or once for each FILE."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(metavar="NAME", help="bm25, 'bm25(language=german)', or a model: a folder or a hub name.")
    ] = "bm25",
    index: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Such as 'hnsw(m=32)'; by default the exact kind that fits.")
    ] = None,
    input_field: InputField = "input",
    output_field: OutputField = "output",
    id_field: Annotated[str, typer.Option(metavar="NAME", help="The field of the id, where lines have one.")] = "id",
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Inputs of an evaluation (.jsonl, or a line each): examples near one are kept, and never selected; "
            "repeat it for more.",
        ),
    ] = None,
    memory: options.Memory = options.DEFAULT_MEMORY,
    device: options.Device = None,
    batch_size: options.BatchSize = 256,
    dtype: options.Dtype = None,
) -> None:
    """Build a bank of labelled examples, of which the inputs are indexed.

    \b
    Examples:
      retrievers demos build train.jsonl -o bank --task banking --input-field text --output-field label --evaluation test.jsonl
      retrievers demos build banking.jsonl trec.jsonl -o bank --task banking --task trec --encoder MODEL
    """
    limit = options.parse_memory(memory)
    if task and len(task) not in (1, len(sources)):
        raise typer.BadParameter(
            f"{len(task)} names for {len(sources)} files: give it once, or once for each", param_hint="--task"
        )
    names: list[str | None] = [*task] if task and len(task) > 1 else [task[0] if task else None] * len(sources)
    inputs = [text for file in evaluation or () for _, text in read_inputs(file, input_field)]  # before the work
    seen: Counter[str] = Counter()
    found = _Examples(sources, names, (id_field, input_field, output_field), seen)
    with Meter("loading the encoder", "demonstrations") as meter:
        from retrievers.demonstrations import DemonstrationBank
        from retrievers.encoders import load_encoder
        from retrievers.errors import DuplicateIdError
        from retrievers.indexes.kinds import check_index_spec

        check_index_spec(index)
        model = load_encoder(encoder, device=device, batch_size=batch_size, dtype=dtype)
        meter.phase("indexing")
        started = time.monotonic()
        try:
            bank = DemonstrationBank.build(output, found, encoder=model, index=index, memory=limit, progress=meter)
        except DuplicateIdError as error:
            if len(sources) == 1:
                raise
            raise DuplicateIdError(
                f"{error}: lines without an id are numbered file by file, so give them ids, or each file a task of its own"
            ) from None
        with bank:
            seconds = time.monotonic() - started
            count = len(bank)
            meter.phase("looking for evaluation inputs")
            marked = bank.mark_evaluation(inputs) if inputs else []
    rate = print_rate(count / max(seconds, 1e-3))
    told = ", ".join(f"{name} {number:,}" for name, number in sorted(seen.items()))
    typer.echo(
        f"held {options.counted(count, 'demonstration')} in {seconds:.1f} s ({rate}/s), "
        f"{options.print_size(options.folder_size(output))}: {output}"
    )
    typer.echo(f"{options.counted(len(seen), 'task')}: {told}")
    if evaluation:
        typer.echo(f"{len(marked):,} of them are near {len(inputs):,} evaluation inputs, and are never selected")
    typer.echo(f"select from it: retrievers demos select {shlex.quote(str(output))} 'your input'")


@app.command()
def select(
    bank: Bank,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="The inputs, each in quotes.", show_default=False)
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Read inputs from a .jsonl(.gz) file, or one a line; - for standard input."),
    ] = None,
    k: Count = 8,
    strategy: Strategies = Strategy.nearest,
    task: Tasks = None,
    per_task: PerTask = None,
    input_field: InputField = "input",
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for each input.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Select demonstrations for an input, the best first.

    Elsewhere than on a terminal a line holds rank, score, id, task, input and output, apart by tabs.

    \b
    Examples:
      retrievers demos select bank 'where is my new card?' -k 4
      retrievers demos select bank --inputs questions.txt --strategy diverse --task trec --json
    """
    if bool(texts) == (inputs is not None):
        raise typer.BadParameter("give an input in quotes, or --inputs FILE, and not both", param_hint="INPUT")
    from retrievers.cli.selections import print_json, print_lines, print_table
    from retrievers.demonstrations import DemonstrationBank

    given = iter(texts or ()) if inputs is None else (text for _, text in read_inputs(inputs, input_field))
    terminal = sys.stdout.isatty()
    with (
        DemonstrationBank.open(bank, device=device, dtype=dtype) as opened,
        nullcontext() if inputs is None else Meter("selecting", "inputs", bar=not terminal) as meter,
    ):
        _refuse_unknown(opened, task)
        done = 0
        for batch in _batches(given):
            chosen: list[list[Selected]] = opened.select(
                batch, k, strategy.value, tasks=task, per_task=per_task, seed=seed, order="nearest_first"
            )
            for text, selected in zip(batch, chosen, strict=True):
                if as_json:
                    print_json(text, selected)
                elif terminal:
                    print_table(text, selected)
                else:
                    print_lines(selected)
                if not selected:
                    sys.stdout.flush()
                    complain(f"no demonstration for {text!r:.200}")
            done += len(batch)
            if meter is not None:
                meter(done)


@app.command("eval")
def evaluate(
    bank: Bank,
    test: Annotated[
        str,
        typer.Argument(
            metavar="TEST_FILE", help="Examples with their outputs: one JSON object a line.", show_default=False
        ),
    ],
    k: Count = 8,
    strategy: Strategies = Strategy.nearest,
    task: Tasks = None,
    per_task: PerTask = None,
    input_field: InputField = "input",
    output_field: OutputField = "output",
    seed: Seed = 0,
    as_json: options.AsJson = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Measure how well the outputs of selected demonstrations predict those of a test file, against random ones.

    Where the outputs of the bank repeat, they are labels: measured is how often the majority, or the nearest one, is right.
    Else they are texts: measured is the best token F1 of the demonstrations, and that of the nearest one. Test inputs are
    evaluation data: examples of the bank that are near one are marked as such, there and for good, and never selected.

    \b
    Examples:
      retrievers demos eval bank test.jsonl -k 5 --input-field text --output-field label
      retrievers demos eval bank test.jsonl --strategy diverse --task nl2bash --json
    """
    from retrievers.cli.demo_quality import compare, near_evaluation, print_comparison
    from retrievers.demonstrations import DemonstrationBank, read_demonstrations
    from retrievers.errors import DemonstrationError

    examples = list(read_demonstrations(test, task="test", input=input_field, output=output_field))
    if len(examples) < 2:
        raise DemonstrationError(f"{test} has {options.counted(len(examples), 'example')}: a test needs two or more")
    inputs = [one.input for one in examples]
    with DemonstrationBank.open(bank, device=device, dtype=dtype) as opened:
        _refuse_unknown(opened, task)
        with Meter("looking for test inputs in the bank", "inputs") as meter:
            near = near_evaluation(opened, inputs)
            found: dict[str, list[list[str]]] = {}
            for name in dict.fromkeys((strategy.value, Strategy.random.value)):
                meter.phase(f"selecting: {name}")
                found[name] = []
                for batch in _batches(inputs):
                    chosen: list[list[Selected]] = opened.select(
                        batch, k, name, tasks=task, per_task=per_task, seed=seed, order="nearest_first"
                    )
                    found[name] += [[one.demonstration.output for one in selected] for selected in chosen]
                    meter(len(found[name]))
        outputs = [one.output for one in opened if not task or one.task in task]
    comparison = compare([one.output for one in examples], found, outputs, seed)
    told: dict[str, Any] = {"bank": str(bank), "test": test, "k": k, "near_test_inputs": near, "held": len(outputs)}
    if as_json:
        options.print_json(told | comparison)
    else:
        typer.echo(f"{len(examples):,} test inputs; {near:,} demonstrations of the bank are near one, and not selected")
        print_comparison(comparison, k)


class _Examples:
    """The examples of files, read anew by each iteration, and counted by task."""

    def __init__(
        self, sources: Sequence[str], tasks: Sequence[str | None], fields: tuple[str, str, str], seen: Counter[str]
    ) -> None:
        self._sources, self._tasks, self._fields, self._seen = sources, tasks, fields, seen

    def __iter__(self) -> Iterator[Demonstration]:
        from retrievers.demonstrations import read_demonstrations

        self._seen.clear()
        id, input, output = self._fields
        for source, task in zip(self._sources, self._tasks, strict=True):
            for one in read_demonstrations(source, task=task, id=id, input=input, output=output):
                self._seen[one.task] += 1
                yield one


def read_inputs(source: str, field: str) -> Iterator[tuple[str, str]]:
    """The inputs of a file, each with its place: of JSON objects the field, of other files the lines."""
    from retrievers.errors import DemonstrationError
    from retrievers.lines import STANDARD_INPUT, Source, read_lines
    from retrievers.records import listing, parse_record

    objects = source != STANDARD_INPUT and Source.at(source).extension == ".jsonl"
    for place, line in read_lines(source):
        if objects:
            record = parse_record(line, place)
            value = record.get(field)
            if not isinstance(value, str):
                raise DemonstrationError(
                    f"{place}: field {field!r} must hold a string; the line has {listing(sorted(record))}: name the field of the "
                    "input with --input-field"
                )
            yield place, value
        else:
            yield place, line


def _refuse_unknown(bank: DemonstrationBank, tasks: Sequence[str] | None) -> None:
    """A task that nobody has would select nothing, without a word."""
    if tasks:
        known = {one.task for one in bank}
        for task in tasks:
            if task not in known:
                raise typer.BadParameter(f"{task!r} is none of {', '.join(sorted(known))}", param_hint="--task")


def _batches(inputs: Iterator[str] | Sequence[str]) -> Iterator[list[str]]:
    from itertools import islice

    rest = iter(inputs)
    while batch := list(islice(rest, _BATCH)):
        yield batch
