"""bm25 on a large collection: build time and memory, opening, and single queries beside bm25s (numba backend) and tantivy.

The collection is wiki (178,755 introductions), or --corpus FOLDER, for which debian_passages.py makes 650,000 passages; that
is asked the test questions of devops-stackexchange, python-functions and tldr. All engines get the same tokens; query time
is measured from token ids (bm25s), a string of tokens (tantivy) and query vectors (ours) to the rows and scores of the best
10, and for ours also from the text to hits with their documents. One thread each, in turns of fifty queries. Scores equal
those of bm25s; tantivy and Lucene keep document lengths in a byte, and so rank a little differently: how many of their ten
are ours is printed. Lucene runs in a process of its own, out of an environment that is made for it (lucene.py): its time is
the mean CPU time of a question, from what each more costs where all are asked ten times and once.

Run: pip install tantivy; RETRIEVERS_SHARED=... python benchmarks/lexical_speed.py [--corpus FOLDER] [--lucene ENVIRONMENT]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bm25s
import numpy as np
import tantivy
from beir import folder, queries
from lucene import Lucene
from lucene import environment as make_environment
from machine import alternate, describe, peak_memory, quantile

from retrievers import LexicalEncoder, Retriever, read_beir

K, TOGETHER = 10, 50
_BUILD = """
import sys, time
sys.path.insert(0, sys.argv[3])
from machine import peak_memory
from retrievers import Retriever, read_beir
start = time.perf_counter()
retriever = Retriever.build(sys.argv[1], read_beir(sys.argv[2]))
print(f"{time.perf_counter() - start:.1f} {peak_memory():.0f} {len(retriever)}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder with a corpus.jsonl, instead of wiki")
    parser.add_argument("--lucene", type=Path, help="the folder of Lucene's environment, made where it is missing")
    options = parser.parse_args()
    corpus = options.corpus
    place = folder("wiki") if corpus is None else corpus
    names = ["wiki"] if corpus is None else ["devops-stackexchange", "python-functions", "tldr"]
    texts = [text for name in names for text in queries(name)[0].values()]
    print(describe("bm25s", "numba", "tantivy", "PyStemmer"))
    with tempfile.TemporaryDirectory() as working:
        index = Path(working) / "idx"
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", _BUILD, str(index), str(place), here]
        built = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
        print(f"build: {built[0]} s, {built[1]} MiB at most, {built[2]} documents, {size / 1e6:.0f} MB on disk")
        opening = []
        for _ in range(11):
            start = time.perf_counter()
            Retriever.open(index).close()
            opening.append(time.perf_counter() - start)
        print(f"open: {1e3 * quantile(opening, 0.5):.1f} ms (median of 11, in a warm process)")
        with Retriever.open(index) as retriever:
            speed(retriever, place, texts)
            if options.lucene is not None:
                beside_lucene(retriever, place, texts, options.lucene, Path(working) / "lucene")


def peers(corpus: Path) -> tuple[bm25s.BM25, tantivy.Searcher, tantivy.Index]:
    """Indexes of the same tokens."""
    encoder = LexicalEncoder()
    tokens = [encoder.tokenize(document.content) for document in read_beir(corpus)]
    schema = tantivy.SchemaBuilder()
    schema.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    schema.add_integer_field("row", stored=True)
    index = tantivy.Index(schema.build())
    writer = index.writer(heap_size=1 << 30, num_threads=1)
    for row, mine in enumerate(tokens):
        writer.add_document(tantivy.Document(text=" ".join(mine), row=row))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    lexical = bm25s.BM25(method="lucene", k1=encoder.bm25.k1, b=encoder.bm25.b, backend="numba")
    lexical.index(tokens, show_progress=False)
    return lexical, index.searcher(), index


def speed(retriever: Retriever, corpus: Path, texts: list[str]) -> None:
    encoder = LexicalEncoder()
    peer, searcher, index = peers(corpus)
    asked = [encoder.tokenize(text) for text in texts]
    tokens = [[peer.vocab_dict[t] for t in mine if t in peer.vocab_dict] for mine in asked]
    kept = [at for at, mine in enumerate(tokens) if mine]
    texts, asked, tokens = [texts[at] for at in kept], [asked[at] for at in kept], [tokens[at] for at in kept]
    parsed = [
        tantivy.Query.boolean_query(
            [
                (tantivy.Occur.Should, tantivy.Query.term_query(index.schema, "text", token, index_option="freq"))
                for token in mine
            ]
        )
        for mine in asked
    ]
    snapshot = retriever.snapshot
    segments = snapshot.segments
    vectors = [snapshot.weigh(encoder.encode_query([text])) for text in texts]

    def ours(at: int) -> object:
        found = [
            (number, segment.search(vectors[at], K, allowed=None, norms=snapshot.norms(number)))
            for number, segment in enumerate(segments)
        ]
        return snapshot.combine(found, 1, K)[0]

    def theirs(at: int) -> object:
        return peer.retrieve([tokens[at]], k=K, show_progress=False, n_threads=1)

    def tantivys(at: int) -> object:
        return searcher.search(parsed[at], K, count=False).hits

    def whole(at: int) -> object:
        return retriever.search(texts[at], k=K)

    ids = [document.id for document in read_beir(corpus)]
    shared = 0.0
    some = range(0, len(texts), max(1, len(texts) // 200))
    for at in some:  # numba compiles at its first call
        found, (_, scores) = ours(at), peer.retrieve([tokens[at]], k=K, show_progress=False, n_threads=1)
        n = len(found.scores)
        np.testing.assert_allclose(found.scores, scores[0][:n], rtol=1e-4)
        others = {ids[searcher.doc(address)["row"][0]] for _, address in tantivys(at)}
        shared += len(others & {hit.id for hit in retriever.search(texts[at], k=K)}) / max(1, n) / len(some)
    print(f"{shared:.3f} of our ten are among tantivy's")
    contenders = {
        "retrievers, index": ours,
        "bm25s, numba": theirs,
        "tantivy": tantivys,
        "retrievers, text to hits": whole,
    }
    times = alternate(contenders, calls=len(texts), rounds=3 if corpus == folder("wiki") else 1, together=TOGETHER)
    print(f"\n{len(texts)} queries, k = {K}\n\n| engine | p50 ms | mean ms | p99 ms | p50 to bm25s |")
    print("| --- | --- | --- | --- | --- |")
    base = quantile(times["bm25s, numba"], 0.5)
    for name, seconds in times.items():
        p50, p99 = quantile(seconds, 0.5), quantile(seconds, 0.99)
        mean = sum(seconds) / len(seconds)
        print(f"| {name} | {1e3 * p50:.3f} | {1e3 * mean:.3f} | {1e3 * p99:.3f} | {p50 / base:.2f} |")
    print(f"\nmemory of this process at most {peak_memory():.0f} MiB (peers included)")


def beside_lucene(retriever: Retriever, corpus: Path, texts: list[str], environment: Path, working: Path) -> None:
    encoder = LexicalEncoder()
    ids, tokens = [], []
    for document in read_beir(corpus):
        ids.append(document.id)
        tokens.append(encoder.tokenize(document.content))
    engine = Lucene(working, tokens, encoder.bm25.k1, encoder.bm25.b, make_environment(environment))
    asked = [encoder.tokenize(text) for text in texts]
    kept = [at for at, mine in enumerate(asked) if mine]
    asked, texts = [asked[at] for at in kept], [texts[at] for at in kept]
    found, once = engine.search(asked, K)
    _, often = engine.search(asked, K, repeats=10)
    shared = [
        len({ids[row] for row, _ in hits} & {hit.id for hit in ours}) / max(1, len(ours))
        for hits, ours in zip(found, retriever.search(texts, K), strict=True)
    ]
    start = time.thread_time()
    for text in texts:
        retriever.search(text, K)
    own = (time.thread_time() - start) / len(texts)
    print(
        f"Lucene: {1e3 * (often - once) / 9 / len(asked):.3f} ms of CPU a question in the mean, from tokens to ids; ours, from "
    )
    print(f"text to hits, {1e3 * own:.3f}; {np.mean(shared):.3f} of our ten are among Lucene's")


if __name__ == "__main__":
    main()
