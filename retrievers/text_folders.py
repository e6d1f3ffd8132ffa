"""Folders of text files as documents: which files, in which order, and under which titles."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from retrievers.documents import Document
from retrievers.errors import DocumentError
from retrievers.lines import Source, whole_text

_MARKDOWN = (".md", ".markdown")
_HEADING = re.compile(r" {0,3}#{1,6}(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_NO_PARAGRAPH = re.compile(r" {4}|\t|[ \t]*(?:[-+*>|<]|\d+[.)][ \t])")


def text_files(folder: Path, patterns: Sequence[str]) -> Iterator[str]:
    """The paths within ``folder`` of the files that match one of the patterns, with forward slashes, in string order.

    Names that begin with a dot are skipped, and links to folders are not followed. One folder's names at a time, and
    those of the folders above it, are in memory.
    """
    waiting = [""]
    while waiting:
        relative = waiting.pop()
        if relative and not relative.endswith("/"):
            if _matches(relative, patterns) and _readable(folder / relative):
                yield relative
            continue
        with os.scandir(folder / relative) as found:
            names = [
                relative + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else "")
                for entry in found
                if not entry.name.startswith(".")
            ]
        waiting += sorted(names, reverse=True)


def text_documents(folder: Source, patterns: Sequence[str]) -> Iterator[tuple[str, Document]]:
    """The documents of :func:`text_files`, each with its place: the path of its file.

    Raises DocumentError for a file, or a file name, that is not UTF-8.
    """
    for relative in text_files(folder.path, patterns):
        source = folder.inside(relative)
        try:
            relative.encode()
        except UnicodeEncodeError:
            raise DocumentError(
                f"{source.given}: the name of the file is not UTF-8, and cannot be an id: rename the file"
            ) from None
        text = whole_text(source)
        path = PurePosixPath(relative)
        title = (markdown_title(text) if path.suffix.lower() in _MARKDOWN else "") or path.stem
        yield source.given, Document(relative, text, title, {"path": relative})


def markdown_title(text: str) -> str:
    """The first heading of a Markdown text, of any level, underlined ones too; empty where there is none.

    What looks like a heading in a fenced code block or in front matter is none.
    """
    lines = text.splitlines()
    start = 0
    if lines and lines[0].rstrip() == "---":
        start = next((at for at, line in enumerate(lines[1:], 2) if line.rstrip() in ("---", "...")), 0)
    fence = previous = ""
    for line in lines[start:]:
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
                fence = ""
            continue
        if mark:
            fence, previous = mark[1], ""
            continue
        heading = _HEADING.match(line)
        if heading and (title := _without_closing(line[heading.end() :].strip())):
            return title
        if previous and _UNDERLINE.fullmatch(line):
            return previous
        previous = "" if _NO_PARAGRAPH.match(line) else line.strip()
    return ""


def _without_closing(title: str) -> str:
    """A heading less the number signs that may close it, which a space parts from the rest."""
    rest = title.rstrip("#")
    return rest.rstrip() if not rest or rest[-1].isspace() else title


def _matches(relative: str, patterns: Sequence[str]) -> bool:
    return any(PurePosixPath(relative).match(pattern) for pattern in patterns)


def _readable(path: Path) -> bool:
    """Whether this is a file, and no pipe, device or link to a folder; a broken link counts, and reading it fails."""
    return path.is_file() or not path.exists()
