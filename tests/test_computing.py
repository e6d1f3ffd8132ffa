"""How encoders compute: numbers of 8 and 16 bits, other runtimes, batches made ahead, several processes."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from retrievers.errors import EncoderError, EncoderMismatchError, MissingDependencyError, SpecError
from retrievers.vectors import TokenVectors

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

from retrievers import Retriever
from retrievers.encoders import batches, load_encoder, workers
from retrievers.encoders.dense import DenseEncoder
from retrievers.encoders.model import load_model_encoder, open_neural
from retrievers.encoders.numerics import check_backend, full_name, sums_bytes_exactly

KINDS = ("dense", "sparse", "multi-vector")
NEEDS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
# The least cosine to the vectors of torch in float32.
ALIKE = {
    ("torch", "bfloat16"): 0.999,
    ("torch", "int8"): 0.985,
    ("onnx", "float32"): 0.99999,
    ("onnx", "int8"): 0.96,
    ("openvino", "float32"): 0.99999,
    ("openvino", "bfloat16"): 0.999,
    ("openvino", "int8"): 0.995,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return models.make_each(tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def encoders(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: load_model_encoder(folder, device="cpu") for kind, folder in folders.items()}


def plain(found: Any) -> np.ndarray[Any, Any]:
    if isinstance(found, TokenVectors):
        return found.values
    return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def cosines(found: Any, wanted: Any) -> np.ndarray[Any, Any]:
    one, other = plain(found), plain(wanted)
    assert one.shape == other.shape
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    kept = norms > 0
    return np.asarray((one * other).sum(axis=1)[kept] / norms[kept])


def need(backend: str) -> None:
    for name in NEEDS.get(backend, ()):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install 'tri-retrievers[{backend}]'")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "dtype"), ALIKE)
def test_vectors_are_those_of_float32_nearly(
    encoders: dict[str, Any], folders: dict[str, Path], kind: str, backend: str, dtype: str, tmp_path: Path
) -> None:
    need(backend)
    encoder = load_model_encoder(folders[kind], device="cpu", backend=backend, dtype=dtype)
    assert encoder.fingerprint == encoders[kind].fingerprint
    texts = [*models.TEXTS, models.LONG]
    for name in ("encode_document", "encode_query"):
        found, wanted = getattr(encoder, name)(texts), getattr(encoders[kind], name)(texts)
        assert plain(found).dtype == np.float32
        assert cosines(found, wanted).min() > ALIKE[backend, dtype]
    if dtype != "float32":
        assert np.abs(plain(found) - plain(wanted)).max() > 0, "the numbers are those that were asked for"
    reference = encoder.reference()
    assert (reference["backend"], reference["dtype"]) == (backend, dtype)
    opened = open_neural(reference, tmp_path, device="cpu", workers=2)
    assert opened.fingerprint == encoder.fingerprint
    assert opened.neural._count == 2


@pytest.mark.parametrize(("backend", "dtype"), [("torch", "int8"), ("torch", "bfloat16"), ("openvino", "int8")])
def test_neighbours_hardly_change_a_vector(folders: dict[str, Path], backend: str, dtype: str) -> None:
    need(backend)
    encoder: Any = load_model_encoder(folders["dense"], device="cpu", backend=backend, dtype=dtype)
    alone = np.concatenate([encoder.encode_document([text]) for text in models.TEXTS])
    assert cosines(encoder.encode_document(models.TEXTS), alone).min() > 0.9995


def test_an_index_records_how_it_was_encoded_and_takes_queries_computed_otherwise(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from retrievers.cli import app

    lines = [json.dumps({"_id": str(at), "text": text}) for at, text in enumerate(models.TEXTS[:4])]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    index, run = str(tmp_path / "idx"), CliRunner()
    built = run.invoke(
        app,
        ["index", "build", str(tmp_path / "corpus.jsonl"), "-o", index, "--encoder", f"{folders['dense']}(dtype=bf16)"],
    )
    assert built.exit_code == 0, built.output
    told = run.invoke(app, ["index", "info", index])
    assert "encoded in   bfloat16 by torch" in told.output
    with Retriever.open(index, device="cpu") as retriever:
        assert retriever.search("How is the weather today?", k=1)[0].id == "0"
        assert retriever.encoder.model.dtype == torch.float32  # type: ignore[attr-defined]


def test_options_stand_behind_a_models_name(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder: Any = load_encoder(f"{folders['dense']}(dtype=bf16, max_batch_tokens=99, workers=2)", device="cpu")
    assert encoder.model.dtype == torch.bfloat16
    assert (encoder.neural.max_batch_tokens, encoder.neural._count) == (99, 2)
    named = models.make_dense(tmp_path / "model(dtype=bf16)")
    found: Any = load_encoder(str(named), device="cpu")
    assert found.model.dtype == torch.float32, "a folder may be called like that"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("(lr=3)", "gives lr"),
        ("(workers=two)", "no number"),
        ("(dtype=8)", "no name"),
        ("(dtype=bf16, dtype=bf16)", "twice"),
        ("(dtype=bf16)", "beside"),
    ],
)
def test_bad_options_of_a_model_are_refused(folders: dict[str, Path], options: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_encoder(f"{folders['dense']}{options}", dtype="bf16" if message == "beside" else None)


def test_numbers_have_short_names_and_unknown_ones_are_refused() -> None:
    assert [full_name(name) for name in ("bf16", "fp16", "fp32", "int8", None)] == [
        "bfloat16",
        "float16",
        "float32",
        "int8",
        None,
    ]
    with pytest.raises(EncoderError, match="float8"):
        full_name("float8")
    with pytest.raises(EncoderError, match="'tensorrt' is not known"):
        check_backend("tensorrt", None)
    with pytest.raises(EncoderError, match="backend='torch'"):
        check_backend("onnx", "bf16")
    with pytest.raises(EncoderError, match="not on cuda"):
        DenseEncoder("anything", backend="onnx", device="cuda")


@pytest.mark.parametrize("backend", NEEDS)
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(folders: dict[str, Path], backend: str) -> None:
    if all(importlib.util.find_spec(name) for name in NEEDS[backend]):
        pytest.skip(f"{backend} is installed")
    with pytest.raises(MissingDependencyError, match=rf"tri-retrievers\[{backend}\]"):
        load_model_encoder(folders["dense"], backend=backend)


def test_adapters_for_languages_are_not_exported(tmp_path: Path) -> None:
    need("openvino")
    with pytest.raises(EncoderError, match="adapter for each language"):
        load_model_encoder(models.make_adapted(tmp_path), backend="openvino")


@pytest.mark.parametrize("backend", NEEDS)
def test_threads_may_share_an_exported_encoder(folders: dict[str, Path], backend: str) -> None:
    need(backend)
    encoder: Any = load_model_encoder(folders["dense"], backend=backend)
    wanted = [encoder.encode_query([text]) for text in models.TEXTS]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                for text, vector in zip(models.TEXTS, wanted, strict=True):
                    np.testing.assert_allclose(encoder.encode_query([text]), vector, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("processor", "exact"),
    [
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"architecture": "x86_64", "avx512_f": True}, False),
        ({"architecture": "x86_64", "avx_vnni": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_processors_whose_sums_of_bytes_overflow_are_known(
    processor: dict[str, Any], exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert sums_bytes_exactly() is exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["document", "query"])
def test_batches_cut_from_a_chunk_are_those_tokenized_alone(encoders: dict[str, Any], kind: str, task: Any) -> None:
    neural = encoders[kind].neural
    features = neural.preprocess(models.TEXTS, task)
    found = batches.cut(features, batch_size=4, max_tokens=200)
    assert found is not None
    seen = []
    for rows, part in found:
        alone = neural.preprocess([models.TEXTS[row] for row in rows], task)
        assert part.keys() == alone.keys()
        for name, value in alone.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(part[name], value, rtol=0, atol=0)
            else:
                assert part[name] == value
        assert len(rows) == 1 or (len(rows) <= 4 and part["input_ids"].numel() <= 200)
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(models.TEXTS)))


@pytest.mark.parametrize("backend", ["torch", *NEEDS])
def test_logits_of_all_positions_are_never_held(folders: dict[str, Path], backend: str) -> None:
    need(backend)
    encoder: Any = load_model_encoder(folders["sparse"], device="cpu", backend=backend, max_batch_tokens=10_000)
    texts = [f"{models.LONG} {number}" for number in range(8)]
    _, features = next(encoder.neural.run(texts, "document"))
    tokens = features["input_ids"].numel()
    assert tokens >= 8 * 100
    with Largest() as largest:
        encoder.encode_document(texts)
    assert 0 < largest.numbers < tokens * encoder.vocabulary / 4


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that is made within its context."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, torch.Tensor):
                self.numbers = max(self.numbers, one.numel())
        return found


def test_rows_that_are_padded_on_the_left_are_cut_there() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    ids = torch.arange(12).view(3, 4)
    found = batches.cut({"input_ids": ids, "attention_mask": mask}, batch_size=2, max_tokens=100)
    assert found is not None
    cut = [(rows.tolist(), part["input_ids"].tolist()) for rows, part in found]
    assert cut == [([1, 0], [[5, 6, 7], [1, 2, 3]]), ([2], [[11]])]


def test_features_that_are_no_row_a_text_are_not_cut() -> None:
    ids, mask = torch.ones(2, 3), torch.ones(2, 3)
    assert batches.cut({"input_ids": ids}, batch_size=2, max_tokens=9) is None
    assert batches.cut({"attention_mask": mask, "pixels": torch.ones(1, 3, 8)}, batch_size=2, max_tokens=9) is None


def test_texts_that_are_put_end_to_end_are_encoded_batch_by_batch() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(models.splade_folder()))
    weights = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(1)).numpy()
    oracle = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
    found = DenseEncoder(oracle, batch_size=3).encode_document(models.TEXTS)
    wanted = oracle.encode(models.TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(EncoderError, match="no linear layers"):
        DenseEncoder(oracle, dtype="int8")
    with pytest.raises(EncoderError, match="no layers to export"):
        DenseEncoder(oracle, backend="openvino")


@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_come_back_in_order(encoders: dict[str, Any], kind: str) -> None:
    texts = [f"{text} {number}" for number in range(2 * batches.CHUNK // 10 + 9) for text in models.TEXTS[:3] * 4]
    assert len(texts) > batches.CHUNK
    found = encoders[kind].encode_document(texts)
    for at in (0, 1, len(texts) // 2, len(texts) - 1):
        alone = encoders[kind].encode_document([texts[at]])
        row = found[at] if kind != "multi-vector" else TokenVectors(found[at], np.array([0, len(found[at])]))
        np.testing.assert_allclose(np.atleast_2d(plain(row)), plain(alone), atol=2e-5)


def test_items_are_made_ahead_in_order_and_few_of_them() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    found = []
    for number in batches.ahead(make(), depth=2):
        found.append(number)
        assert len(made) <= number + 5
    assert found == list(range(20))


def test_what_making_items_raises_is_raised_in_its_place() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise EncoderError("broken")

    items = batches.ahead(make())
    assert next(items) == 1
    with pytest.raises(EncoderError, match="broken"):
        next(items)


def test_a_caller_that_stops_early_ends_the_thread() -> None:
    before = threading.active_count()
    items = batches.ahead(iter(range(1000)))
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


MANY = [f"{text} {number}" for number in range(8) for text in models.TEXTS]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_give_the_same_vectors_in_order(
    encoders: dict[str, Any], folders: dict[str, Path], kind: str
) -> None:
    encoder: Any = load_model_encoder(folders[kind], device="cpu", workers=2)
    assert encoder.fingerprint == encoders[kind].fingerprint
    found, wanted = encoder.encode_document(MANY), encoders[kind].encode_document(MANY)
    assert encoder.neural._workers is not None, "there are enough texts for both"
    if kind == "multi-vector":
        assert found.offsets.tolist() == wanted.offsets.tolist()
    np.testing.assert_allclose(plain(found), plain(wanted), atol=2e-5)
    encoder.close()


def test_processes_serve_a_model_that_was_given_as_an_object(encoders: dict[str, Any]) -> None:
    encoder = DenseEncoder(encoders["dense"].model, workers=2)
    np.testing.assert_allclose(encoder.encode_document(MANY), encoders["dense"].encode_document(MANY), atol=2e-5)
    encoder.close()


def test_errors_of_processes_are_raised_here_and_the_next_call_begins_anew(
    folders: dict[str, Path], encoders: dict[str, Any]
) -> None:
    make = {"kind": "dense", "source": str(folders["dense"]), "device": "cpu", "threads": 1}
    pool = workers.Workers(1, make, encoders["dense"].fingerprint)
    with pytest.raises(EncoderError, match="could not encode: TypeError"):
        pool.encode_document(MANY, no_such_option=1)
    assert plain(pool.encode_document(MANY)).shape == (len(MANY), 128)
    process, _ = pool._pool[0]
    process.kill()
    process.join()
    with pytest.raises(EncoderError, match="exit code -9"):
        pool.encode_document(MANY)
    assert plain(pool.encode_document(MANY)).shape == (len(MANY), 128)
    process, _ = pool._pool[0]
    pool.close()
    assert not process.is_alive()


def test_a_process_that_finds_another_model_is_refused(folders: dict[str, Path]) -> None:
    make = {"kind": "dense", "source": str(folders["dense"]), "device": "cpu", "threads": 1}
    with pytest.raises(EncoderMismatchError, match="another model"):
        workers.Workers(1, make, "0" * 64).encode_document(MANY)
    make["source"] = str(folders["dense"] / "gone")
    with pytest.raises(FileNotFoundError, match="gone"):
        workers.Workers(1, make, "0" * 64).encode_document(MANY)


def test_several_items_are_worked_on_at_a_time_in_order_and_few_wait() -> None:
    taken, meeting = 0, threading.Barrier(3)

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(30):
            taken += 1
            yield number

    def work(number: int) -> tuple[int, int]:
        meeting.wait(20)  # passed by three at a time, or none
        return number, torch.get_num_threads()

    before = torch.get_num_threads()
    found = []
    for number, threads in batches.side_by_side(items(), work, 3):
        found.append(number)
        assert threads == 1
        assert taken <= number + 5
    assert found == list(range(30))
    assert torch.get_num_threads() == before


def test_threads_that_start_later_have_as_many_as_the_caller() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        several = batches.side_by_side(iter(range(9)), lambda number: number, 3)
        found = [next(several)]
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (found, list(several)) == ([0, 3], list(range(1, 9)))
    finally:
        torch.set_num_threads(before)


def test_what_fails_beside_others_is_raised_in_its_place_and_no_thread_stays() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("the third")
        return number

    threads = threading.active_count()
    several = batches.side_by_side(iter(range(100)), work, 2)
    assert [next(several), next(several), next(several)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(several)
    several = batches.side_by_side(iter(range(100)), lambda number: number, 2)
    assert next(several) == 0
    several.close()  # type: ignore[attr-defined]
    assert threading.active_count() == threads


def test_where_a_thread_cannot_be_started_none_stays(monkeypatch: Any) -> None:
    start, count, threads = threading.Thread.start, 0, threading.active_count()

    def failing(thread: threading.Thread) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start"):
        next(batches.side_by_side(iter(range(9)), lambda number: number, 3))
    assert threading.active_count() == threads


def test_a_single_item_keeps_the_threads_of_torch() -> None:
    thread = threading.current_thread()
    for count, size in ((1, 5), (4, 1), (4, 0)):
        found = list(batches.side_by_side(iter(range(size)), lambda _: threading.current_thread(), count))
        assert found == [thread] * size


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_side_by_side_give_the_same_vectors(
    folders: dict[str, Path], kind: str, dtype: str | None, monkeypatch: Any
) -> None:
    texts = [f"the {'quick brown fox ' * (n % 23)} {n}" for n in range(600)]
    encoder = load_model_encoder(folders[kind], device="cpu", dtype=dtype, batch_size=8)
    before, used = torch.get_num_threads(), set()
    forward = encoder.model.forward

    def watched(*arguments: Any, **options: Any) -> Any:
        used.add(threading.current_thread().name.split("_")[0])
        return forward(*arguments, **options)

    monkeypatch.setattr(encoder.model, "forward", watched)
    try:
        torch.set_num_threads(1)
        alone = encoder.encode_document(texts)
        assert used == {"MainThread"}
        torch.set_num_threads(3)
        together = encoder.encode_document(texts)
        assert used == {"MainThread", "encoding"}
        used.clear()
        with torch.autocast("cpu"):
            encoder.encode_document(texts[:20])
        assert used == {"MainThread"}
    finally:
        torch.set_num_threads(before)
    assert np.allclose(plain(alone), plain(together), atol=1e-5)
