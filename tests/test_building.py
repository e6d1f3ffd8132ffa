"""Building: one segment is written by a thread while the next is encoded, and nothing of that shows in what is built."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashing import HashEncoder

from retrievers import Document, Retriever, verify
from retrievers.encoders import load_encoder
from retrievers.errors import DuplicateIdError, OpenFilesError, VectorError
from retrievers.folding import FEW, due
from retrievers.indexes.manifest import Manifest
from retrievers.indexes.segments import write_segment
from retrievers.staging import Staging
from retrievers.vectors import Kind, Vectors, csr

MEMORY = 16 << 20  # the least budget
KINDS: list[Kind] = ["lexical", "dense", "sparse", "multi-vector"]
THREAD = "retrievers-segment"


def long_documents(n: int) -> list[Document]:
    """So long that a segment of the least budget takes a batch or two; few words, so that vectors are quick to make."""
    return [Document(f"d{at:05d}", f"w{at % 97} w{at % 89} " + "x" * 3000, metadata={"at": at}) for at in range(n)]


def encoder_of(kind: Kind) -> Any:
    return load_encoder("bm25") if kind == "lexical" else HashEncoder(kind)


def in_flight(root: Path) -> set[str]:
    """The segments that are being written and not committed."""
    named = {record.name for record in Manifest.read(root).segments}
    return {path.name for path in (root / "segments").iterdir()} - named


class Watching(HashEncoder):
    """Waits, once two segments are cut, until the second is being written while it has the third to encode."""

    def __init__(self, root: Path) -> None:
        super().__init__("dense")
        self.root = root
        self.seen: set[str] = set()

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        deadline = time.monotonic() + 20
        while self.encoded >= 3 * 1024 and not self.seen and time.monotonic() < deadline:
            self.seen = in_flight(self.root)
        return super().encode_document(texts)


@pytest.mark.parametrize(("count", "most"), [(4500, FEW), (9000, 1)], ids=["few", "folded"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_segment_is_what_writing_it_alone_gives(kind: Kind, count: int, most: int, tmp_path: Path) -> None:
    documents = long_documents(count)
    encoder = encoder_of(kind)
    (tmp_path / "segments").mkdir()
    with Retriever.build(tmp_path / "idx", documents, encoder=encoder, memory=MEMORY) as retriever:
        segments = retriever._snapshot.segments  # type: ignore[union-attr]
        assert len(segments) <= most
        assert Manifest.read(tmp_path / "idx").generation > 3
        first = 0
        for segment in segments:
            entries = [entry for _, entry in segment.store.entries()]
            assert [entry.ordinal for entry in entries] == list(range(first + 1, first + len(entries) + 1))
            first += len(entries)
            parts = [entry.document.content for entry in entries]
            vectors = encoder.encode_document(parts)
            spec = retriever.index
            alone = write_segment(tmp_path, segment.record.name, entries, vectors, spec, kind)
            assert alone == segment.record  # which holds the checksum of every file
        assert first == len(documents)


def test_the_next_segment_is_encoded_while_one_is_written(tmp_path: Path) -> None:
    encoder = Watching(tmp_path / "idx")
    Retriever.build(tmp_path / "idx", long_documents(5000), encoder=encoder, memory=MEMORY).close()
    assert encoder.seen
    assert not in_flight(tmp_path / "idx")


def test_what_fits_into_the_budget_is_one_segment(tmp_path: Path) -> None:
    documents = long_documents(1500)
    with Retriever.build(tmp_path / "idx", documents, memory=MEMORY) as retriever:
        assert len(retriever._snapshot.segments) == 1  # type: ignore[union-attr]
        assert retriever.add((Document(f"more {d.id}", d.text) for d in documents), memory=MEMORY) == 1500
        assert len(retriever._snapshot.segments) == 2  # type: ignore[union-attr]


def test_sixteen_segments_of_like_size_are_due_or_as_many_as_the_budget_holds() -> None:
    assert due([1.0] * 15, 100) == 0
    assert due([1.0] * 16, 100) == due([50, *[1.0] * 16], 100) == due([4, *[1.0] * 15], 100) == 16
    assert due([5, *[1.0] * 15], 100) == 0
    assert due([16.0] * 6, 100) == due([50, *[16.0] * 6], 100) == 6
    assert due([16.0] * 5, 100) == due([30.0] * 3, 100) == due([200.0] * 20, 100) == due([], 100) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_build_of_many_segments_folds_them_and_answers_as_one_segment_does(kind: Kind, tmp_path: Path) -> None:
    documents = long_documents(24_000)
    seen: list[int] = []

    def watch(done: int) -> None:
        seen.append(len(Manifest.read(tmp_path / "many").segments))

    encoder = encoder_of(kind)
    with (
        Retriever.build(tmp_path / "many", documents, encoder=encoder, memory=MEMORY, progress=watch) as many,
        Retriever.build(tmp_path / "one", documents, encoder=encoder) as one,
        Retriever.build(tmp_path / "added", documents[:1], encoder=encoder) as added,
    ):
        assert len(many._snapshot.segments) <= FEW < max(seen) <= 16  # type: ignore[union-attr]
        assert Manifest.read(tmp_path / "many").generation > 20
        assert len(added._snapshot.segments) == 1  # type: ignore[union-attr]
        added.add(documents[1:], memory=MEMORY)
        assert len(added._snapshot.segments) <= 16  # type: ignore[union-attr]
        queries = [documents[at].text[:8] for at in range(0, 24_000, 1500)]
        assert many.search(queries, k=20) == one.search(queries, k=20) == added.search(queries, k=20)
    assert verify(tmp_path / "many") == verify(tmp_path / "added") == []


def test_an_addition_of_many_segments_is_one_commit(tmp_path: Path) -> None:
    documents = long_documents(9000)
    with Retriever.build(tmp_path / "idx", documents[:10]) as retriever:
        generation = Manifest.read(tmp_path / "idx").generation
        retriever.add(documents[10:], memory=MEMORY)
        assert Manifest.read(tmp_path / "idx").generation == generation + 1
        assert len(retriever._snapshot.segments) >= 4  # type: ignore[union-attr]
        assert len(retriever) == 9000
    assert verify(tmp_path / "idx") == []


class Halves:
    """A lexical encoder whose frequencies are no whole numbers, which the index finds out."""

    kind: Kind = "lexical"
    fingerprint = "halves"

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        return self.encode_document(texts)

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        n = len(texts)
        return csr(np.full(n, 0.5, np.float32), np.zeros(n, np.int64), np.ones(n, np.int64), 10)


def test_errors_of_the_thread_have_their_type(tmp_path: Path) -> None:
    with pytest.raises(VectorError, match="whole numbers"):
        Retriever.build(tmp_path / "idx", long_documents(9000), encoder=Halves(), memory=MEMORY)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]
    with Retriever.build(tmp_path / "few", long_documents(3)) as retriever:
        before = Manifest.read(tmp_path / "few")
        with pytest.raises(DuplicateIdError):
            retriever.add(long_documents(9000), memory=MEMORY)
        assert Manifest.read(tmp_path / "few") == before


def test_a_build_whose_thread_failed_encodes_nothing_twice(tmp_path: Path) -> None:
    documents, root = long_documents(9000), tmp_path / "idx"

    def spoiling() -> Iterator[Document]:
        for at, document in enumerate(documents):
            if at == 5000:
                (root / "segments").rename(tmp_path / "away")
                (root / "segments").write_text("no folder")
            yield document

    first, second = HashEncoder("dense"), HashEncoder("dense")
    with pytest.raises((FileExistsError, NotADirectoryError, FileNotFoundError)):
        Retriever.build(root, spoiling(), encoder=first, memory=MEMORY)
    (root / "segments").unlink()
    shutil.move(tmp_path / "away", root / "segments")
    with Retriever.build(root, documents, encoder=second, memory=MEMORY) as retriever:
        assert len(retriever) == len(documents)
    assert first.encoded + second.encoded == len(documents)
    assert 0 < second.encoded < len(documents)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stop_at", [2100, 5200, 8000])
def test_a_stop_leaves_no_thread_and_no_work_twice(error: type[BaseException], stop_at: int, tmp_path: Path) -> None:
    documents, root = long_documents(9000), tmp_path / "idx"

    def stopping() -> Iterator[Document]:
        yield from documents[:stop_at]
        raise error

    first, second = HashEncoder("dense"), HashEncoder("dense")
    with pytest.raises(error):
        Retriever.build(root, stopping(), encoder=first, memory=MEMORY)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD)]
    assert verify(root) == []
    with Retriever.build(root, documents, encoder=second, memory=MEMORY) as retriever:
        assert len(retriever) == len(documents)
        segments = retriever._snapshot.segments  # type: ignore[union-attr]
        assert sum(segment.size for segment in segments) == len(documents)
    assert first.encoded + second.encoded == len(documents)
    assert not (root / "building").exists()


def test_duplicates_of_a_segment_in_flight_are_refused(tmp_path: Path) -> None:
    documents = long_documents(5120)  # the last batch ends a segment, which is in flight when the next comes
    for at in (0, 1100, 2100, 3100, 4100, 5119):
        with pytest.raises(DuplicateIdError, match=f"document {at + 1}, and document 5121"):
            Retriever.build(tmp_path / str(at), [*documents, documents[at]], memory=MEMORY)


def test_staged_batches_stay_until_the_last_of_their_documents_is_committed(tmp_path: Path) -> None:
    documents = long_documents(30)
    encoder = HashEncoder("dense")
    vectors = encoder.encode_document([document.content for document in documents])
    staging = Staging(tmp_path / "building")
    for first in (0, 10, 20):
        staging.put(documents[first : first + 10], vectors[first : first + 10])
    staging.forget({document.id for document in documents[:15]})
    again = Staging(tmp_path / "building")
    assert [document in again for document in documents] == [False] * 10 + [True] * 20
    assert np.array_equal(again.get(documents[10:]), vectors[10:])
    again.forget({document.id for document in documents[5:20]})
    assert [document in again for document in documents] == [False] * 20 + [True] * 10
    again.forget({document.id for document in documents})
    assert list((tmp_path / "building").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the trials fork and kill, which this system cannot")
@pytest.mark.parametrize(
    ("work", "kind"), [*product(["in-flight"], ["dense", "sparse", "multi-vector"]), *product(["folding"], KINDS[1:3])]
)
def test_a_kill_while_a_segment_is_in_flight_costs_no_encoding(work: str, kind: Kind, tmp_path: Path) -> None:
    runner = Path(__file__).with_name("crash_runner.py")
    command = [sys.executable, str(runner), work, str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert "killed 3 times" in done.stdout


def open_files() -> set[int]:
    gc.collect()  # what other tests of this process left to it
    found = list(Path("/proc/self/fd").iterdir())
    return {int(path.name) for path in found if path.is_symlink()}  # no longer the one by which they were listed


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files as Linux shows them")
def test_where_no_more_files_may_be_opened_an_error_says_so(tmp_path: Path) -> None:
    import resource

    root = tmp_path / "index"
    Retriever.build(root, long_documents(10), encoder="bm25").close()
    with Retriever.open(root) as retriever:
        for number in range(30):
            retriever.add([Document(f"more-{number}", "a few more words")])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    gc.collect()  # what other tests have left would close its files in between
    taken = open_files()
    free = [number for number in range(len(taken) + 64) if number not in taken]
    outcomes = []
    for more in range(4):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], hard))
        try:
            with Retriever.open(root) as retriever:
                assert open_files() == taken  # the files of its 31 segments are mapped, and closed again
                outcomes.append("opened")
        except OpenFilesError as error:
            outcomes.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcomes[1:] == ["opened"] * 3
    assert "ulimit -n" in outcomes[0]
    assert str(root) in outcomes[0]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files as Linux shows them")
def test_a_build_of_many_segments_holds_few_files_open(tmp_path: Path) -> None:
    most = 0

    def watch(done: int) -> None:
        nonlocal most
        most = max(most, len(open_files()))

    before = len(open_files())
    with Retriever.build(tmp_path / "index", long_documents(22_000), memory=MEMORY, progress=watch) as retriever:
        segments = len(retriever._snapshot.segments)  # type: ignore[union-attr]
        assert len(open_files()) - before <= segments
    assert Manifest.read(tmp_path / "index").generation > 17
    assert most - before < 20
