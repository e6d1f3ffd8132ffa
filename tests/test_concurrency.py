"""One retriever shared by many threads answers as one thread does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_retriever import INDEXES, collection, encoder, ranking

from retrievers import Retriever
from retrievers.indexes import plaid

THREADS = 16
QUERIES = [f"w{at} w{at + 40} w{at + 90}" for at in range(32)]


@pytest.mark.parametrize(("kind", "index"), [*INDEXES, ("multi-vector", "plaid")])
def test_threads_answer_as_one_thread_does(
    kind: str, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plaid, "LEAST_TOKENS", 500)
    with (
        Retriever.build(tmp_path / "idx", collection(400), encoder=encoder(kind), index=index) as retriever,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        before = [ranking(retriever, query, 10) for query in QUERIES]
        assert all(before)
        assert list(pool.map(lambda query: ranking(retriever, query, 10), QUERIES * 4)) == before * 4
        stop = threading.Event()

        def refresh() -> None:
            while not stop.is_set():
                retriever.refresh()

        refreshing = [pool.submit(refresh) for _ in range(2)]
        searching = [pool.submit(ranking, retriever, query, 10) for query in QUERIES * 2]
        try:
            retriever.add(collection(100, seed=1))
            # What was added is seen at once, and no refresh begun earlier takes it back.
            assert len(retriever) == 500
            during = [search.result() for search in searching]
        finally:
            stop.set()
        for refreshed in refreshing:
            refreshed.result()
        assert len(retriever) == 500
        after = [ranking(retriever, query, 10) for query in QUERIES]
        for at, hits in enumerate(during):
            assert hits in (before[at % len(QUERIES)], after[at % len(QUERIES)])
