"""Documents from files: BEIR folders, JSON lines, CSV and TSV, and folders of text.

A reader holds no documents: it reads its files again at each iteration, one document at a time. Files are UTF-8, and
gzip where their names end in ``.gz``. Whatever is wrong with them is an error that names file, line and field.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

from retrievers.documents import Document, check_document
from retrievers.errors import DocumentError, DuplicateIdError, SourceError, SourceNotFoundError
from retrievers.lines import Source, StrPath, numbered_lines
from retrievers.records import Fields, chosen, listing, parse_record
from retrievers.text_folders import text_documents, text_files

Entries = Iterator[tuple[str, Document]]

ACCEPTED = (
    "a BEIR folder (with corpus.jsonl or corpus.jsonl.gz), a file .jsonl, .csv or .tsv (each also with .gz), "
    "or a folder of .txt and .md files"
)
TEXT_PATTERNS = ("*.txt", "*.md")

_CORPORA = ("corpus.jsonl", "corpus.jsonl.gz")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LARGEST_FIELD = 1 << 28  # characters: a quotation mark that is never closed must not draw a whole file into memory
_hash = hash


class DocumentReader:
    """Documents in files; each iteration reads the files again. Made by the ``read_`` functions of this module."""

    def __init__(self, given: str, read: Callable[[], Entries]) -> None:
        self._given = given
        self._read = read

    def __repr__(self) -> str:
        return f"<DocumentReader of {self._given}>"

    def __iter__(self) -> Iterator[Document]:
        """The documents, in the order of the files.

        In memory are one document and 12 to 24 bytes for each that came before. Raises DuplicateIdError, with both
        places, where an id comes twice, and what :meth:`entries` raises.
        """
        seen = Hashes()
        for number, (place, document) in enumerate(self.entries()):
            if seen.add(_hash(document.id)):
                first = self._place_of(document.id, number)
                if first is not None:
                    raise DuplicateIdError(
                        f"document id {document.id!r} came twice: {first}, and {place}; ids must differ"
                    )
            yield document

    def entries(self) -> Entries:
        """The documents with their places, such as ``corpus.jsonl, line 17``; ids that come twice are not looked for.

        One document at a time is in memory. Raises DocumentError for what is no document, SourceNotFoundError where
        a file has gone.
        """
        return _checked(self._read())

    def _place_of(self, id_: str, before: int) -> str | None:
        """Where the id stands among the first ``before`` documents; None where only its hash does."""
        read = 0
        for place, document in islice(self.entries(), before):
            if document.id == id_:
                return place
            read += 1
        # A pipe cannot be read twice; that two ids have one hash is far less likely than that the id came before.
        return None if read == before else "a document before it, which can no longer be read"


def entries(documents: Iterable[Document]) -> Entries:
    """Documents from anywhere with their places: those of a reader, or ``document 1``, ``document 2`` and so on.

    One document at a time is in memory; ids that come twice are not looked for. Raises DocumentError for what is no
    document.
    """
    if isinstance(documents, DocumentReader):
        return documents.entries()
    if not isinstance(documents, Iterable):
        raise DocumentError(
            f"expected an iterable of Document, got {type(documents).__name__}: give a list or a generator"
        )
    return _checked((f"document {number}", document) for number, document in enumerate(documents, 1))


def read_documents(path: StrPath) -> DocumentReader:
    """The reader that fits what is at ``path``.

    That is :func:`read_beir` for a folder with ``corpus.jsonl`` or ``corpus.jsonl.gz``, :func:`read_folder` for any
    other folder, :func:`read_jsonl` for ``.jsonl``, :func:`read_csv` for ``.csv`` and ``.tsv``, the files also with
    ``.gz``.

    Raises SourceNotFoundError where there is nothing, SourceError for all else, saying what is accepted.
    """
    source = Source.at(path)
    if source.path.is_dir():
        if any((source.path / name).is_file() for name in _CORPORA):
            return read_beir(path)
        if next(text_files(source.path, TEXT_PATTERNS), None) is None:
            raise SourceError(f"{source.given} is a folder without documents; accepted are {ACCEPTED}")
        return read_folder(path)
    if source.extension == ".jsonl":
        return read_jsonl(path)
    if source.extension in _DELIMITERS:
        return read_csv(path)
    raise SourceError(f"{source.given} is no source of documents that is known; accepted are {ACCEPTED}")


def read_beir(folder: StrPath) -> DocumentReader:
    """The documents of a BEIR folder: ``corpus.jsonl``, or else ``corpus.jsonl.gz``.

    A line is an object with ``_id``, ``text``, and optionally ``title`` and ``metadata``, an object; any other field
    is metadata too. A field that stands beside ``metadata`` and within it with two values is an error.
    Raises SourceNotFoundError, SourceError where ``folder`` is a file.
    """
    source = Source.at(folder)
    if not source.path.is_dir():
        raise SourceError(f"{source.given} is no folder: give the folder that holds corpus.jsonl, or use read_jsonl")
    corpus = next((source.inside(name) for name in _CORPORA if (source.path / name).is_file()), None)
    if corpus is None:
        raise SourceNotFoundError(f"{source.given} is no BEIR folder: it has neither {' nor '.join(_CORPORA)}")
    fields = Fields(id="_id")
    return DocumentReader(source.given, lambda: _json_lines(corpus, fields))


def read_jsonl(
    path: StrPath, *, id: str = "id", text: str = "text", title: str = "title", metadata: Sequence[str] | None = None
) -> DocumentReader:
    """The documents of a file with one JSON object a line; blank lines are skipped.

    ``id``, ``text`` and ``title`` name fields. An id is a string or an integer, which becomes its decimal digits; where
    no ``id`` was named and a line has none, ``_id`` stands in. The title may be absent or null. ``metadata`` names the
    fields that become metadata, where a line has them; by default all that are left do. Members of a field ``metadata``
    that is an object count as fields; one with another value in the line itself is an error.
    Raises SourceNotFoundError, SourceError.
    """
    source = _file(path)
    fields = chosen(id, text, title, metadata)
    return DocumentReader(source.given, lambda: _json_lines(source, fields))


def read_csv(
    path: StrPath,
    *,
    id: str = "id",
    text: str = "text",
    title: str = "title",
    metadata: Sequence[str] | None = None,
    delimiter: str | None = None,
) -> DocumentReader:
    """The documents of a CSV or TSV file, quoted as RFC 4180 has it, with a header line.

    ``id``, ``text``, ``title`` and ``metadata`` name columns, all of which the header must have, but for the default
    ``title``; where no ``id`` was named and there is none, ``_id`` stands in. By default all columns that are left are
    metadata; values are strings. ``delimiter`` is one character, by default a comma for ``.csv`` and a tab for
    ``.tsv``. Fields of up to 2**28 characters are read, for which the limit of the ``csv`` module is raised in this
    process. Raises SourceNotFoundError, SourceError.
    """
    source = _file(path)
    fields = chosen(id, text, title, metadata)
    mark = _DELIMITERS.get(source.extension) if delimiter is None else delimiter
    if mark is None:
        raise SourceError(f"{source.given}: the name ends neither in .csv nor in .tsv: say which delimiter it has")
    if len(mark) != 1 or mark in '"\r\n':
        raise SourceError(f"delimiter {mark!r} must be one character, and no quotation mark or line end")
    return DocumentReader(source.given, lambda: _table(source, fields, mark))


def read_folder(path: StrPath, *, patterns: Sequence[str] = TEXT_PATTERNS) -> DocumentReader:
    """A document for each text file in a folder and the folders below, in the order of their paths.

    ``patterns`` are those of ``pathlib.PurePosixPath.match``. The id is the path within the folder, with forward
    slashes, and so is the metadata field ``path``; the title is the first heading of a Markdown file, or else the name
    of the file without its ending. Names that begin with a dot are skipped; links to folders are not followed.
    Raises SourceNotFoundError, SourceError where ``path`` is no folder or none of its files matches.
    """
    source = Source.at(path)
    if isinstance(patterns, str):
        raise SourceError(f"patterns must be a sequence of patterns, got the string {patterns!r}: write [{patterns!r}]")
    wanted = tuple(patterns)
    if not all(wanted):
        raise SourceError(f"patterns {wanted!r} hold an empty one: leave it out")
    if not source.path.is_dir():
        raise SourceError(f"{source.given} is no folder: read_documents takes single files")
    if next(text_files(source.path, wanted), None) is None:
        raise SourceError(f"{source.given} has no file that matches {listing(wanted)}")
    return DocumentReader(source.given, lambda: text_documents(source, wanted))


class Hashes:
    """A set of 64-bit hashes, eight bytes a slot: a ``set`` of integers would take some ninety bytes each."""

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 << 10))
        self._free = len(self._slots) * 2 // 3

    def add(self, value: int) -> bool:
        """Take a hash in; returns whether it was there."""
        key = value & 0xFFFF_FFFF_FFFF_FFFF or 1  # 0 marks a free slot
        at = self._find(key)
        if self._slots[at]:
            return True
        self._slots[at] = key
        self._free -= 1
        if not self._free:
            self._grow()
        return False

    def _find(self, key: int) -> int:
        """The slot of a hash, or the free one in which it belongs."""
        slots, mask = self._slots, len(self._slots) - 1
        at = key & mask
        while slots[at] and slots[at] != key:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(16 * len(old)))
        for key in old:
            if key:
                self._slots[self._find(key)] = key
        self._free = len(self._slots) * 2 // 3 - len(old) * 2 // 3


def _checked(found: Entries) -> Entries:
    for place, document in found:
        try:
            checked = check_document(document, place)
        except RecursionError:
            raise DocumentError(f"{place}: field 'metadata' is nested too deep, or holds itself") from None
        yield place, checked


def _file(path: StrPath) -> Source:
    source = Source.at(path)
    if source.path.is_dir():
        raise SourceError(f"{source.given} is a folder, and a file was expected: read_documents takes folders")
    return source


def _json_lines(source: Source, fields: Fields) -> Entries:
    for number, line in numbered_lines(source):
        if line.strip():
            place = source.line(number)
            yield place, fields.document(parse_record(line, place), place)


def _table(source: Source, fields: Fields, delimiter: str) -> Entries:
    with closing(_rows(source, delimiter)) as rows:
        place, header = next(rows, (source.line(1), []))
        if not header:
            raise DocumentError(f"{place}: the file is empty, and a header line is required")
        for at, name in enumerate(header):
            if name in header[:at]:
                raise DocumentError(f"{place}: column {name!r} comes twice in the header: rename one of them")
        fields = replace(fields, id=fields.id_among(header))
        asked = [fields.id, fields.text, *(fields.metadata or ()), *([fields.title] if fields.title != "title" else ())]
        for name in asked:
            if name not in header:
                raise DocumentError(f"{place}: column {name!r} is missing; the header has: {listing(header)}")
        for place, row in rows:
            if len(row) != len(header):
                raise DocumentError(f"{place}: the record has {len(row)} fields, and the header {len(header)}")
            yield place, fields.document(dict(zip(header, row, strict=True)), place)


def _rows(source: Source, delimiter: str) -> Generator[tuple[str, list[str]]]:
    """The records of a table that are not blank, each with the place at which it begins."""
    csv.field_size_limit(max(csv.field_size_limit(), _LARGEST_FIELD))
    with closing(numbered_lines(source)) as lines:
        reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
        while True:
            place = source.line(reader.line_num + 1)
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DocumentError(
                    f"{place}: the record that begins here is not well formed: {error}; "
                    "a field with quotation marks stands in quotation marks, with those within doubled"
                ) from None
            if row:
                yield place, row
