"""Passages of real text in any number: the documentation packages of Debian, split.

Packages are downloaded by apt-get, unpacked by dpkg-deb into the working folder, never installed. Pages are HTML; the text of
their blocks is gathered into passages of about a hundred words, under the title of the page. A passage that came before
is left out. The outcome is a corpus in the form of BEIR: FOLDER/corpus.jsonl. lxml, which reads the pages, comes with [test].

Run: python benchmarks/debian_passages.py FOLDER [--passages 650000]
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import blake2b
from pathlib import Path

from lxml import etree, html

PACKAGES = (
    "python3.11-doc", "python-pandas-doc", "python-django-doc", "postgresql-doc-15", "erlang-doc", "openjdk-17-doc",
    "python-scipy-doc", "python-sympy-doc", "python-sklearn-doc", "qtbase5-doc-html", "libboost1.81-doc", "apache2-doc",
    "git-doc", "sqlite3-doc", "cmake-doc", "libgtk-3-doc", "ruby3.1-doc", "rust-doc", "llvm-14-doc", "libstdc++-12-doc",
    "linux-doc-6.1", "python-sqlalchemy-doc", "cppreference-doc-en-html", "sagemath-doc", "ghc-doc", "octave-doc", "nodejs-doc",
)  # fmt: skip
LEAST, MOST = 60, 120  # words of a passage
_BLOCKS = frozenset(
    (
        "p", "li", "dd", "dt", "td", "th", "tr", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "div", "section", "article",
        "blockquote", "table", "ul", "ol", "dl", "body", "br", "hr",
    )
)  # fmt: skip
_SKIPPED = frozenset(("script", "style", "head", "nav", "footer", "header", "noscript", "svg", "math"))


def blocks(element: etree._Element) -> Iterator[str]:
    """The text of a page, block by block."""
    parts: list[str] = []
    for event, one in etree.iterwalk(element, events=("start", "end")):
        tag = one.tag if isinstance(one.tag, str) else ""
        if event == "start" and (tag in _SKIPPED or not tag):
            one.clear(keep_tail=True)
            continue
        if tag in _BLOCKS:
            yield " ".join("".join(parts).split())
            parts = []
        text = one.text if event == "start" else one.tail
        if text:
            parts.append(text)
    yield " ".join("".join(parts).split())


def passages(page: Path) -> list[tuple[str, str]]:
    """The title and text of each passage of a page."""
    raw = gzip.decompress(page.read_bytes()) if page.suffix == ".gz" else page.read_bytes()
    try:
        root = html.document_fromstring(raw)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError):  # an empty page, or none
        return []
    title = " ".join((root.findtext(".//title") or "").split())
    body = root.find("body")
    found, words = [], []
    for block in blocks(root if body is None else body):
        words += block.split()
        while len(words) > MOST:
            found.append(" ".join(words[:MOST]))
            words = words[MOST:]
        if len(words) >= LEAST:
            found.append(" ".join(words))
            words = []
    if len(words) >= 20:
        found.append(" ".join(words))
    return [(title, text) for text in found]


def pages(package: str, place: Path) -> list[Path]:
    """Download and unpack a package; its pages, in a fixed order."""
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    (archive,) = place.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(place / "tree")], check=True)
    archive.unlink()
    found = [path for pattern in ("*.html", "*.htm", "*.html.gz") for path in (place / "tree").rglob(pattern)]
    return sorted(path for path in found if path.is_file() and not path.is_symlink())


def write(folder: Path, wanted: int) -> int:
    """Write passages until there are so many, or no packages are left; returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    seen: set[bytes] = set()
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as out, ProcessPoolExecutor() as pool:
        for package in PACKAGES:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                listed, before = pages(package, Path(place)), len(seen)
                for page, found in zip(listed, pool.map(passages, listed, chunksize=16), strict=True):
                    for number, (title, text) in enumerate(found):
                        key = blake2b(text.encode(), digest_size=12).digest()
                        if key in seen:
                            continue
                        seen.add(key)
                        id = f"{package}/{page.relative_to(Path(place) / 'tree').as_posix()}#{number}"
                        out.write(json.dumps({"_id": "_".join(id.split()), "title": title, "text": text}) + "\n")
                        if len(seen) == wanted:
                            return wanted
            print(f"{package}: {len(listed):,} pages, {len(seen) - before:,} passages", file=sys.stderr, flush=True)
    return len(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=650_000)
    arguments = parser.parse_args()
    print(f"{write(arguments.folder, arguments.passages):,} passages in {arguments.folder / 'corpus.jsonl'}")


if __name__ == "__main__":
    main()
