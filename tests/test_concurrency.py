"""One Retriever, many threads: the hits of every kind are those of one thread, also while documents are added and deleted."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hashing import HashEncoder

from retrievers import Document, Retriever
from retrievers.indexes import plaid, threads

THREADS = 16
CASES = [
    ("lexical", "inverted"),
    ("sparse", "inverted"),
    ("sparse", "inverted(bits=8)"),
    ("dense", "flat"),
    ("dense", "hnsw"),
    ("dense", "ivf"),
    ("dense", "ivfpq"),
    ("dense", "rabitq"),
    ("dense", "sq8"),
    ("dense", "binary"),
    ("multi-vector", "maxsim"),
    ("multi-vector", "plaid(candidates=40)"),
    ("multi-vector", "plaid(candidates=40, vectors=none)"),
]
every_kind = pytest.mark.parametrize(("kind", "index"), CASES, ids=[f"{kind}-{index}" for kind, index in CASES])


def documents(n: int) -> list[Document]:
    choose = random.Random(3)
    words = [f"word{number}" for number in range(400)]
    return [Document(f"d{at:04}", " ".join(choose.choices(words, k=12)), metadata={"n": at % 5}) for at in range(n)]


def built(path: Path, kind: str, index: str, given: list[Document]) -> Retriever:
    encoder = "bm25" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
    return Retriever.build(path, given, encoder=encoder, index=index)


@pytest.mark.parametrize(("given", "wanted"), [("3", 3), ("2,1", 2), ("0", None), ("many", None), ("", None)])
def test_threads_are_those_granted_or_one_a_core(
    given: str, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads.granted() == (wanted or len(os.sched_getaffinity(0)))


def test_a_batch_is_cut_into_pieces_that_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for count, most, least, wanted in [
        (0, 10, 4, []),
        (7, 10, 4, [7]),
        (7, 3, 4, [3, 3, 1]),
        (8, 10, 4, [1] * 8),
        (100, 50, 4, [9] * 11 + [1]),
        (100, 5, 4, [5] * 20),
    ]:
        pieces = threads.pieces(count, most, least)
        assert [piece.stop - piece.start for piece in pieces] == wanted
        assert [at for piece in pieces for at in range(count)[piece]] == list(range(count))


@pytest.mark.parametrize(("items", "least", "wanted"), [(12, 4, 3), (11, 4, 2), (7, 4, 1), (30, 4, 3), (0, 1, 1)])
def test_work_is_shared_among_the_threads_granted(
    items: int, least: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    used, started = set(), []

    def work(item: int) -> int:
        used.add(threading.get_ident())
        time.sleep(0.005)  # so that a thread that starts late finds work left
        return -item

    assert threads.shared(work, range(items), least, lambda: started.append(1)) == [-item for item in range(items)]
    assert len(used) == (wanted if items else 0)
    assert len(started) == (wanted if wanted > 1 else 0)


@every_kind
def test_threads_share_a_batch_and_give_the_hits_of_one(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)
    pools: list[int] = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            pools.append(workers)
            super().__init__(workers, **options)

    given = documents(600)
    asked = [document.text[:30] for document in given[::8]]
    with built(tmp_path / "index", kind, index, given) as retriever:
        monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", Counted)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        alone = retriever.search(asked, k=5)
        assert pools == []
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert retriever.search(asked, k=5) == alone
    own = index == "flat" or index == "maxsim"  # products of matrices bring threads of their own
    assert own or pools == [3]


@every_kind
def test_sixteen_threads_get_the_hits_of_one(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)
    given = documents(600)
    asked = [given[at].text[:30] for at in range(0, 600, 15)]
    condition = {"field": "n", "operator": "==", "value": 2}
    with built(tmp_path / "index", kind, index, given) as retriever:
        alone = [retriever.search(text, k=5) for text in asked]
        filtered = [retriever.search(text, k=5, filter=condition) for text in asked]
        together = retriever.search(asked, k=5)
        start = threading.Barrier(THREADS)

        def ask(number: int) -> None:
            start.wait()
            for turn in range(len(asked)):
                at = (turn + 7 * number) % len(asked)
                assert retriever.search(asked[at], k=5) == alone[at]
                if turn % 8 == number % 8:
                    assert retriever.search(asked[at], k=5, filter=condition) == filtered[at]
            assert retriever.search(asked, k=5) == together

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(ask, range(THREADS)))
    assert together == alone


@pytest.mark.parametrize(
    ("kind", "index"), [("lexical", "inverted"), ("dense", "flat"), ("multi-vector", "plaid(candidates=40)")]
)
def test_readers_see_whole_commits_while_a_writer_adds_and_deletes(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)
    given = documents(300)
    with built(tmp_path / "index", kind, index, given[:200]) as retriever:
        done = threading.Event()
        # Ten documents come and go at a time: a reader finds all of them, or none.
        tens = [[Document(f"x{at}-{ten}", f"extra {given[at].text}") for at in range(10)] for ten in range(6)]

        def read() -> None:
            with Retriever.open(
                tmp_path / "index",
                encoder=None if kind == "lexical" else HashEncoder(kind),  # type: ignore[arg-type]
            ) as mine:
                while not done.is_set():
                    mine.refresh()
                    ids = {hit.id for hit in mine.search("extra " + given[3].text, k=500)}
                    assert len([id for id in ids if id.startswith("x")]) % 10 == 0

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read) for _ in range(4)]
            try:
                for ten in tens:
                    retriever.add(ten)
                retriever.delete([document.id for document in tens[0]])
                retriever.merge()
            finally:
                done.set()
            for reader in readers:
                reader.result()


@every_kind
def test_what_was_added_stays_seen_while_others_refresh(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refresh that was begun before an addition, and ends after it, does not move the retriever back."""
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)
    given = documents(500)
    asked = [given[at].text[:30] for at in range(0, 400, 20)]
    stop = threading.Event()
    with built(tmp_path / "index", kind, index, given[:400]) as retriever, ThreadPoolExecutor(THREADS) as pool:

        def refresh() -> None:
            while not stop.is_set():
                retriever.refresh()

        before = [retriever.search(text, k=5) for text in asked]
        refreshing = [pool.submit(refresh) for _ in range(2)]
        searching = [pool.submit(retriever.search, text, k=5) for text in asked * 2]
        try:
            retriever.add(given[400:])
            assert len(retriever) == 500
            during = [search.result() for search in searching]
        finally:
            stop.set()
        for refreshed in refreshing:
            refreshed.result()
        assert len(retriever) == 500
        after = [retriever.search(text, k=5) for text in asked]
    for at, hits in enumerate(during):
        assert hits in (before[at % len(asked)], after[at % len(asked)])
