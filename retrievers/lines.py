"""Text files, plain or gzipped, and standard input, as numbered lines; errors name the file and the line."""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from retrievers.errors import DocumentError, SourceError, SourceNotFoundError

StrPath = str | os.PathLike[str]

STANDARD_INPUT = "-"

_BUFFER = 1 << 16


@dataclass(frozen=True)
class Source:
    """A file or folder: ``given`` is its path as the user wrote it, for messages, and ``path`` the same path, absolute.

    The absolute path keeps a reader working after a change of the working directory.
    """

    given: str
    path: Path

    @classmethod
    def at(cls, path: StrPath) -> Self:
        """What is at ``path``. Raises SourceNotFoundError."""
        name = os.fsdecode(path)
        source = cls(_printable(name), Path(name).absolute())
        if not source.path.exists():
            raise source.missing()
        return source

    def inside(self, relative: str) -> Self:
        """A file of this folder, by its path within, with forward slashes; it need not exist."""
        return type(self)(f"{self.given.rstrip('/')}/{_printable(relative)}", self.path / relative)

    def missing(self) -> SourceNotFoundError:
        """The error for a path at which there is nothing."""
        return SourceNotFoundError(f"{self.given}: there is no such file or folder (looked in {self.path.parent})")

    @property
    def extension(self) -> str:
        """The ending of the name in lower case, but for ``.gz``: ``.jsonl`` of ``corpus.jsonl.gz``."""
        return Path(self.path.name.lower().removesuffix(".gz")).suffix

    @property
    def gzipped(self) -> bool:
        """Whether the name says that the file is compressed."""
        return self.path.name.lower().endswith(".gz")

    def line(self, number: int) -> str:
        """The place of a line, which counts from 1."""
        return f"{self.given}, line {number}"


def plain_or_gzipped(path: Path) -> str | None:
    """The file at a path, or at the same with ``.gz``; None where there is neither."""
    return next((str(file) for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def numbered_lines(source: Source) -> Generator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers, from 1, and their line ends; only ``\\n`` ends a line.

    A byte order mark is left out. One line at a time is in memory. Raises DocumentError at bytes that are not UTF-8 and
    where a gzip file is cut or damaged, SourceNotFoundError, SourceError for a folder.
    """
    number = 0
    with _open(source) as file:
        while True:
            try:
                raw = file.readline()
            except EOFError:
                raise DocumentError(
                    f"{source.line(number + 1)}: the gzip file is cut off here: copy or download it again"
                ) from None
            except (gzip.BadGzipFile, zlib.error) as error:
                raise DocumentError(f"{source.line(number + 1)}: this is no sound gzip file: {error}") from error
            if not raw:
                return
            number += 1
            yield number, _decode(raw, source, number)


def whole_text(source: Source) -> str:
    """All the text of a UTF-8 file, less a byte order mark. Raises as :func:`numbered_lines` does."""
    return "".join(line for _, line in numbered_lines(source))


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """The lines that are not blank, without their ends, each with its place (``q.tsv, line 17``).

    ``source`` is a path (``.gz`` is unpacked) or ``"-"``. Raises DocumentError for what is not UTF-8 or is cut,
    SourceNotFoundError, SourceError for a folder.
    """
    for place, line in _standard_input() if source == STANDARD_INPUT else _file_lines(source):
        if line.strip():
            yield place, line.rstrip("\r\n")


def _file_lines(path: str) -> Iterator[tuple[str, str]]:
    source = Source.at(path)
    for number, line in numbered_lines(source):
        yield source.line(number), line


def _standard_input() -> Iterator[tuple[str, str]]:
    for number, raw in enumerate(sys.stdin.buffer, 1):
        place = f"standard input, line {number}"
        try:
            yield place, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{place}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8: convert it"
            ) from None


def _open(source: Source) -> BinaryIO:
    try:
        if not source.gzipped:
            return source.path.open("rb")
        if source.path.is_file() and source.path.stat().st_size == 0:  # gzip takes it for a file without contents
            raise DocumentError(
                f"{source.given}: the gzip file is cut off at its first byte: copy or download it again"
            )
        # Without the buffer every line would cost a call of Python code.
        return io.BufferedReader(gzip.GzipFile(source.path, "rb"), _BUFFER)
    except FileNotFoundError:
        raise source.missing() from None
    except IsADirectoryError:
        raise SourceError(
            f"{source.given} is a folder, and a file was expected: read_documents takes folders"
        ) from None


def _decode(raw: bytes, source: Source, number: int) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{source.line(number)}: byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8: "
            f"{_mend(raw, number)}"
        ) from None
    return text.removeprefix("\ufeff") if number == 1 else text


def _mend(raw: bytes, number: int) -> str:
    if number == 1 and raw.startswith(b"\x1f\x8b"):
        return "the file looks like gzip, and its name must then end in .gz"
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file looks like UTF-16; convert it to UTF-8"
    return "convert the file to UTF-8"


def _printable(name: str) -> str:
    """A path as text: file names need not be UTF-8, and messages and places do."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
