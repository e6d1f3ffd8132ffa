"""Kills writers at random moments and checks what is left; run by test_crashes.py in a process of its own.

Each trial forks a child that changes an index, kills it with SIGKILL after a random time, and then opens the index as a new
user would: it must verify, hold a whole commit, and take the change again. With ``in-flight`` a build is killed by its own
encoder, each time a segment is being written while the next is encoded; with ``folding`` by a thread that watches, once
sixteen segments are folded.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hashing import HashEncoder

from retrievers import Document, Retriever, verify
from retrievers.errors import IndexExistsError, IndexNotFoundError
from retrievers.indexes.manifest import Manifest
from retrievers.staging import Staging
from retrievers.vectors import Kind, Vectors

WORDS = [f"word{n}" for n in range(18)]
MEMORY = 16 << 20  # the least budget: builds commit many segments


def documents(first: int, last: int, words: int) -> list[Document]:
    choose = random.Random(first).choices
    return [Document(f"d{n:06d}", " ".join(choose(WORDS, k=words)), metadata={"n": n}) for n in range(first, last)]


def killed(change: Callable[[], None], after: float) -> bool:
    """Run a change in a child and kill it; returns whether the kill came before the end."""
    child = os.fork()
    if child == 0:
        try:
            change()
        except BaseException as error:
            print(f"the change itself failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
                return True
            if os.waitstatus_to_exitcode(status) != 0:
                raise SystemExit(f"a writer ended with {os.waitstatus_to_exitcode(status)}")
            return False
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def state(path: Path, kind: str) -> set[str]:
    """The ids of the index, checked: it verifies, opens, searches, and every document is whole."""
    faults = verify(path)
    if faults:
        raise SystemExit(f"{path} is damaged after a kill: {faults}")
    with Retriever.open(path, encoder=None if kind == "lexical" else HashEncoder(kind)) as retriever:  # type: ignore[arg-type]
        found = {hit.id for hit in retriever.search("word1 word2 word3", k=max(1, len(retriever)))}
        for id in list(found)[:5]:
            if retriever.get(id).metadata["n"] != int(id[1:]):
                raise SystemExit(f"document {id} is not whole")
        ids = {
            entry.document.id
            for segment in retriever._snapshot.segments  # type: ignore[union-attr]
            for row, entry in segment.store.entries()
            if segment.is_live(row)
        }
        if len(ids) != len(retriever) or not found <= ids:
            raise SystemExit(f"{path}: {len(ids)} ids, {len(retriever)} documents, strangers {sorted(found - ids)[:3]}")
        return ids


def trial_build(path: Path, kind: str, rng: random.Random) -> int:
    collection = documents(0, 6000, 40)
    whole = [document.id for document in collection]

    ids: set[str] = set()

    def change() -> None:
        encoder = "bm25" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
        try:
            Retriever.build(path, collection, encoder=encoder, memory=MEMORY)
        except IndexExistsError:
            if len(ids) < len(whole):  # where the kill before came after the last commit, the build had ended
                raise

    kills = 0
    while True:
        stopped = killed(change, rng.uniform(0.0, 0.5 if kills < 6 else 60.0))
        kills += stopped
        try:
            ids = state(path, kind)
        except IndexNotFoundError:
            if not stopped:
                raise
            continue
        if ids != set(whole[: len(ids)]):
            raise SystemExit("a stopped build does not hold the first documents of its input")
        if not stopped:
            if len(ids) != len(whole):
                raise SystemExit(f"a finished build holds {len(ids)} of {len(whole)} documents")
            return kills


def trial_change(path: Path, kind: str, rng: random.Random, operation: str) -> int:
    encoder = "bm25" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
    Retriever.build(path, documents(0, 300, 8), encoder=encoder).close()
    new, gone = documents(300, 600, 8), [f"d{n:06d}" for n in range(0, 300, 3)]
    before = {document.id for document in documents(0, 300, 8)}
    after = {
        "add": before | {document.id for document in new},
        "delete": before - set(gone),
        "merge": before - {"d000001"} | {document.id for document in new},
    }[operation]
    if operation == "merge":
        with Retriever.open(path, encoder=None if kind == "lexical" else HashEncoder(kind)) as retriever:  # type: ignore[arg-type]
            retriever.add(new)
            retriever.delete("d000001")
        before = after

    def change() -> None:
        with Retriever.open(path, encoder=None if kind == "lexical" else HashEncoder(kind)) as retriever:  # type: ignore[arg-type]
            if operation == "add":
                retriever.add(new)
            elif operation == "delete":
                retriever.delete(gone)
            else:
                retriever.merge()

    backup = path.with_suffix(".backup")
    shutil.copytree(path, backup)
    start = time.monotonic()
    killed(change, 60.0)
    duration = time.monotonic() - start
    if state(path, kind) != after:
        raise SystemExit(f"{operation} was not carried out")
    kills = 0
    for _ in range(6):
        shutil.rmtree(path)
        shutil.copytree(backup, path)
        kills += killed(change, rng.uniform(0.0, duration))
        ids = state(path, kind)
        if ids not in (before, after):
            raise SystemExit(f"a killed {operation} left {len(ids)} documents: neither {len(before)} nor {len(after)}")
        if ids == before:
            killed(change, 60.0)
            if state(path, kind) != after:
                raise SystemExit(f"{operation} after a killed one was not carried out")
    return kills


def main(folder: Path, seed: int, wanted: int) -> None:
    rng = random.Random(seed)
    kills = {"build": 0, "add": 0, "delete": 0, "merge": 0}
    number = 0
    while sum(kills.values()) < wanted or not all(kills.values()):
        kind = ("lexical", "dense", "multi-vector", "sparse")[number % 4]
        for operation in kills:
            path = folder / f"{number}-{operation}"
            if operation == "build":
                kills[operation] += trial_build(path, kind, rng)
            else:
                kills[operation] += trial_change(path, kind, rng, operation)
            shutil.rmtree(path)
        number += 1
    print(f"{sum(kills.values())} kills: {kills}")


class KillingEncoder(HashEncoder):
    """Kills its process where it is asked while a segment is in flight; notes in a file how many texts it has encoded."""

    def __init__(self, kind: Kind, root: Path, told: Path, least: int) -> None:
        super().__init__(kind)
        self.root, self.told, self.least = root, told, least
        if least > 1:
            threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while not (self.root / "manifest.json").exists():
            time.sleep(0.01)
        while True:
            self.kill()
            time.sleep(0.001)

    def kill(self) -> None:
        """Kill the process where a segment is in flight and ``least`` are committed."""
        named = {record.name for record in Manifest.read(self.root).segments}
        found = {path.name for path in (self.root / "segments").iterdir()} - named
        if found and len(named) >= self.least:
            os.kill(os.getpid(), signal.SIGKILL)

    def encode_document(self, texts: Sequence[str]) -> Vectors:
        if self.least == 1:
            self.kill()
        with self.told.open("a") as file:
            file.write(f"{len(texts)}\n")
        return super().encode_document(texts)


def trial_in_flight(folder: Path, kind: Kind, least: int) -> None:
    """No kill in flight may cost the encoding of a batch that was encoded before it.

    With a ``least`` of 16 the first comes while so many segments are folded, and may cost the batch that was being encoded.
    """
    lost = 0 if least == 1 else 1024
    path, told = folder / "idx", folder / "told"
    collection = [Document(d.id, d.text + " " + "x" * 3000, metadata=d.metadata) for d in documents(0, 24_000, 4)]
    kills = 0
    while kills < 3:
        if not killed(lambda: build_or_die(path, collection, kind, told, least), 300.0):
            break
        kills += 1
        ids = state(path, kind)
        staged = len(Staging(path / "building"))
        encoded = sum(map(int, told.read_text().split()))
        if ids != {document.id for document in collection[: len(ids)]} or len(ids) + staged < encoded - lost * kills:
            raise SystemExit(f"{encoded} were encoded; {len(ids)} are committed, and {staged} are staged")
        print(f"killed with {len(ids)} committed and {staged} staged")
    Retriever.build(path, collection, encoder=(last := HashEncoder(kind)), memory=MEMORY).close()
    if len(state(path, kind)) != len(collection):
        raise SystemExit("the build was not finished")
    encoded = sum(map(int, told.read_text().split())) + last.encoded
    if not len(collection) <= encoded <= len(collection) + lost * kills:
        raise SystemExit(f"{encoded} were encoded, of {len(collection)}")
    print(f"killed {kills} times, {encoded} were encoded")


def build_or_die(path: Path, collection: list[Document], kind: Kind, told: Path, least: int) -> None:
    Retriever.build(path, collection, encoder=KillingEncoder(kind, path, told, least), memory=MEMORY).close()


if __name__ == "__main__":
    if sys.argv[1] in ("in-flight", "folding"):
        trial_in_flight(Path(sys.argv[2]), sys.argv[3], 1 if sys.argv[1] == "in-flight" else 16)  # type: ignore[arg-type]
        sys.exit()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
