"""Damages every file of an index in every way and checks who notices; run by test_damage.py in a process of its own.

Each case works on a copy, in a forked child, so that a crash or a hang of one is seen and does not end the others.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from hashing import HashEncoder

from retrievers import Document, Retriever, verify
from retrievers.errors import RetrieversError
from retrievers.indexes.files import SMALL

WORDS = [f"word{n}" for n in range(3000)]
EDGE = 1 << 16
FAULTS = ("cut", "empty", "remove", "swap", "flip-head", "flip-middle", "flip-tail", "flip-many", "zero-page")


def build(path: Path, kind: str, index: str, n: int) -> None:
    choose = random.Random(n)
    documents = [
        Document(f"id {at}", " ".join(choose.choices(WORDS, k=40)), title=f"t{at}", metadata={"n": at % 7})
        for at in range(n)
    ]
    encoder = "bm25" if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
    with Retriever.build(path, documents, encoder=encoder, index=index) as retriever:
        retriever.add([Document(f"late {at}", " ".join(choose.choices(WORDS, k=40))) for at in range(50)])
        retriever.delete([f"id {at}" for at in range(0, n, 50)])


def spoil(path: Path, fault: str, other: Path, rng: random.Random) -> bool:
    """Damage a file; returns False where this fault would leave it as it is."""
    size = path.stat().st_size
    if fault == "remove":
        path.unlink()
        return True
    if fault == "swap":
        if path.read_bytes() == other.read_bytes():
            return False
        shutil.copyfile(other, path)
        return True
    if size == 0:
        return False
    if fault in ("cut", "empty"):
        os.truncate(path, 0 if fault == "empty" else rng.randrange(size))
        return True
    with path.open("rb+") as file:
        if fault == "zero-page":
            at = rng.randrange(size)
            file.seek(at)
            old = file.read(4096)
            file.seek(at)
            file.write(bytes(len(old)))
            return any(old)
        places = {
            "flip-head": [rng.randrange(min(size, 128))],
            "flip-middle": [rng.randrange(size)],
            "flip-tail": [size - 1 - rng.randrange(min(size, 128))],
            "flip-many": [rng.randrange(size) for _ in range(200)],
        }[fault]
        for at in set(places):
            file.seek(at)
            old = file.read(1)[0]
            file.seek(at)
            file.write(bytes([old ^ (1 << rng.randrange(8))]))
    return True


def search(path: Path, kind: str) -> None:
    encoder = None if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
    with Retriever.open(path, encoder=encoder) as retriever:
        queries = [" ".join(WORDS[at : at + 5]) for at in range(0, 3000, 100)]
        even = {"field": "n", "operator": "in", "value": [0, 2, 4]}
        retriever.search(queries, k=20)
        retriever.search(queries[:5], k=20, filter=even)
        hits = retriever.search(queries[0], k=10)
        if hits:
            retriever.explain(queries[0], hits[0].id)


def in_child(action: str, path: Path, kind: str) -> str:
    """Do something with the damaged index in a child: 'fine', 'refused', or how it went wrong."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            if action == "verify":
                code = 2 if verify(path) else 0
            elif action == "open":
                encoder = None if kind == "lexical" else HashEncoder(kind)  # type: ignore[arg-type]
                Retriever.open(path, encoder=encoder).close()
            else:
                search(path, kind)
        except RetrieversError:
            code = 2
        except BaseException as error:
            print(f"{action}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            code = 3
        os._exit(code)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "fine", 2: "refused", 3: "an error without a name"}.get(code, f"crashed with {code}")
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hung"
        time.sleep(0.001)


def main(folder: Path, seed: int, kind: str, index: str, n: int) -> None:
    rng = random.Random(seed)
    sound, copy = folder / "sound", folder / "copy"
    build(sound, kind, index, n)
    if [in_child(action, sound, kind) for action in ("verify", "open", "search")] != ["fine"] * 3:
        raise SystemExit("the sound index is not taken for sound")
    # Lock files hold nothing.
    files = sorted(path for path in sound.rglob("*") if path.is_file() and path.name != "writer.lock")
    cases, faults = 0, []
    for path in files:
        name = path.relative_to(sound)
        for fault in FAULTS:
            shutil.copytree(sound, copy)
            other = rng.choice([file for file in files if file != path])
            size = path.stat().st_size
            if spoil(copy / name, fault, other, rng):
                cases += 1
                verified, opened, searched = (in_child(action, copy, kind) for action in ("verify", "open", "search"))
                large = size > SMALL and path.suffix != ".faiss"
                payload = large and fault in ("flip-middle", "flip-many", "zero-page")
                if verified != "refused":
                    faults.append(f"{name} {fault}: verify {verified}")
                if opened != "refused" and not (payload and opened == "fine"):
                    faults.append(f"{name} {fault}: open {opened}")
                if searched not in ("refused", "fine") or (searched == "fine" and not payload):
                    faults.append(f"{name} {fault}: search {searched}")
            shutil.rmtree(copy)
    print(f"{cases} cases over {len(files)} files, largest {max(file.stat().st_size for file in files)} bytes")
    if faults:
        raise SystemExit(f"seed {seed}\n" + "\n".join(faults))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
