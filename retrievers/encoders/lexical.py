"""The lexical encoder: term frequencies as sparse vectors, no model, no vocabulary to keep. The embedded default."""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import Stemmer
from numpy.typing import NDArray

from retrievers.bm25 import Bm25
from retrievers.encoders import tokens
from retrievers.encoders.stopwords import stop_words
from retrievers.errors import EncoderError, EncoderMismatchError, SpecError
from retrievers.specs import Spec
from retrievers.vectors import Kind, csr

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from retrievers.encoders.workers import Workers

NAME = "bm25"
#: The number of columns of lexical vectors; a term's column is a hash of it.
COLUMNS = 2**62

_STOP = -1  # stands for a stop word where a column is expected
_LONGEST = 255  # characters; what is longer is no word but data, such as base64
_REMEMBERED = 2**19  # words; about 100 MB
_BLOCK = 2**18  # words that are sorted at a time
_SHORT = 64  # words of a single text, a query as a rule, that are counted one by one: sorting arrays takes longer


def column(term: str) -> int:
    """The column of a term: the low 62 bits of its 8-byte BLAKE2b hash, read little-endian.

    Two of ``n`` terms share a column with a probability of about n² / 2^63: one in 90,000 for ten million terms.
    """
    digest = hashlib.blake2b(term.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (COLUMNS - 1)


def languages() -> list[str]:
    """The values of ``language``: ``none``, and the names of the Snowball stemmers that PyStemmer brings."""
    return ["none", *Stemmer.algorithms()]


class LexicalEncoder:
    """Texts as bags of stemmed words: float32 ``csr_matrix`` ``[n, 2**62]`` of how often each term occurs.

    The weights of BM25 (rarity, length) belong to the collection, not to a text: the index applies them, by ``bm25``.
    Words are cut by :mod:`retrievers.encoders.tokens`, stop words dropped, the rest stemmed by Snowball; words longer
    than 255 characters are kept as they are. Encoders may be shared by threads.

    ``language`` is ``"none"`` (no stemming, no stop words) or one of :func:`languages`; ``stopwords=False`` keeps the
    stop words of languages that have a list. ``k1`` and ``b`` are those of :class:`retrievers.bm25.Bm25`; they are no
    part of the vectors, nor of the ``fingerprint``.

    With ``workers`` above 1, so many processes encode documents, where there are enough of them; the vectors are the
    same to the byte. It is no part of the ``spec`` either.

    Raises SpecError for an unknown language, or parameters out of range.
    """

    kind: Kind = "lexical"

    def __init__(
        self,
        *,
        language: str = "english",
        k1: float = 1.2,
        b: float = 0.75,
        stopwords: bool = True,
        workers: int = 1,
    ) -> None:
        if language not in languages():
            raise SpecError(f"bm25: unknown language {language!r}; known are {', '.join(languages())}")
        if not isinstance(stopwords, bool):
            raise SpecError(f"bm25: stopwords={stopwords!r} is neither true nor false")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise SpecError(f"bm25: workers={workers!r} is no number of processes: give 1 or more")
        self.language = language
        self.stopwords = stopwords
        self.workers = workers
        self._pool: Workers | None = None
        self.bm25 = Bm25(k1, b)
        self._stop = stop_words(language) if stopwords else frozenset()
        self._stemmer = None if language == "none" else Stemmer.Stemmer(language, 0)
        self._lock = threading.Lock()  # a Snowball stemmer works in a buffer of its own
        self._columns = _Columns(self)

    def __repr__(self) -> str:
        return f"LexicalEncoder({str(self.spec)!r})"

    @property
    def spec(self) -> Spec:
        """``bm25``, with those parameters that differ from the defaults."""
        parameters = {name: value for name, value in self._options().items() if value != _DEFAULTS[name]}
        return Spec(NAME, parameters)

    @classmethod
    def from_spec(cls, spec: Spec) -> LexicalEncoder:
        """The encoder of a specification such as ``bm25(language=german, k1=0.9)``.

        Raises SpecError where it names another encoder, or a parameter or a language that is not known.
        """
        if spec.name != NAME:
            raise SpecError(f"{spec.name!r} is not the lexical encoder: its name is {NAME!r}")
        known = [*_DEFAULTS, "workers"]
        unknown = [name for name in spec.parameters if name not in known]
        if unknown:
            raise SpecError(f"{spec}: unknown parameter {', '.join(unknown)}; known are {', '.join(known)}")
        return cls(**spec.parameters)  # type: ignore[arg-type]  # the constructor checks the values

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of all that decides the vectors: options, stop words, tokenizer and stemmer version.

        The stemmer's version is PyStemmer's major and minor number. It is in here because stems do change: between
        PyStemmer 3.0 and 3.1 nine languages did, and English ``internal`` became another term than before.
        """
        options = {
            "encoder": NAME,
            "tokenizer": tokens.VERSION,
            "language": self.language,
            "stemmer": self._stemmer_version(),
            "stopwords": sorted(self._stop),
        }
        return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()

    def reference(self) -> dict[str, Any]:
        """All that :meth:`from_reference` needs, as a JSON object."""
        versions = {"tokenizer": tokens.VERSION, "stemmer": self._stemmer_version()}
        return {"encoder": NAME, **self._options(), **versions}

    @classmethod
    def from_reference(cls, reference: Mapping[str, Any], *, workers: int = 1) -> LexicalEncoder:
        """The encoder that gave this :meth:`reference`, with so many processes for documents.

        Raises SpecError where it is not a reference of this encoder, and EncoderMismatchError where it was made with
        another tokenizer or stemmer, whose terms this installation would not meet.
        """
        values = dict(reference)
        name, tokenizer, stemmer = (values.pop(key, None) for key in ("encoder", "tokenizer", "stemmer"))
        if name != NAME or values.keys() != _DEFAULTS.keys():
            raise SpecError(f"{dict(reference)!r} is no reference of the lexical encoder")
        encoder = cls(**values, workers=workers)
        if tokenizer != tokens.VERSION:
            raise EncoderMismatchError(
                f"the encoder was saved with version {tokenizer} of the tokenizer, this is version {tokens.VERSION}: "
                "build the index anew"
            )
        if stemmer != encoder._stemmer_version():
            raise EncoderMismatchError(
                f"the encoder was saved with the {encoder.language} stemmer of PyStemmer {stemmer}, installed is "
                f"{encoder._stemmer_version()}, whose stems differ: pip install 'PyStemmer=={stemmer}.*', or build the "
                "index anew"
            )
        return encoder

    def encode_query(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """How often each term occurs in each query: float32 ``[n, 2**62]``, columns ascending within a row."""
        return self._encode(texts)

    def encode_document(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        """How often each term occurs in each document: float32 ``[n, 2**62]``, columns ascending within a row.

        Raises EncoderError where ``texts`` is a single string, or holds something else than strings, or where a worker
        process ends.
        """
        if self.workers == 1 or isinstance(texts, str):
            return self._encode(texts)
        pool = self._started()
        if not pool.enough(texts):
            return self._encode(texts)
        for number, text in enumerate(texts):
            _check_text(number, text)
        found: Any = pool.encode_document(list(texts))
        encoded: csr_matrix[np.float32] = found
        return encoded

    def close(self) -> None:
        """End the worker processes, if there are any; a later call starts them again."""
        if self._pool is not None:
            self._pool.close()

    def tokenize(self, text: str) -> list[str]:
        """The terms of a text, in order, repeats and all."""
        return [term for word in self._words(text) if (term := self._term(word)) is not None]

    def terms(self, text: str) -> dict[int, str]:
        """The columns that a text has in its vector, ascending, each with its term."""
        return dict(sorted((column(term), term) for term in set(self.tokenize(text))))

    def _options(self) -> dict[str, str | float | bool]:
        return {"language": self.language, "k1": self.bm25.k1, "b": self.bm25.b, "stopwords": self.stopwords}

    def _started(self) -> Workers:
        from retrievers.encoders.workers import Workers  # a search needs no processes, nor the time to import them

        with self._lock:
            if self._pool is None:
                described = {"kind": self.kind, **self._options()}
                self._pool = Workers(self.workers, described, self.fingerprint, by_length=False)
            return self._pool

    def _stemmer_version(self) -> str | None:
        if self._stemmer is None:
            return None
        # Not Stemmer.version(), which says 2.0.1 in release 3.0.0.
        return ".".join(version("PyStemmer").split(".")[:2])

    def _words(self, text: str) -> list[str]:
        if self.language == "turkish":
            text = text.replace("I\u0307", "i").replace("I", "ı")
        return tokens.words(text)

    def _term(self, word: str) -> str | None:
        """The term that a word stands for; None for a stop word."""
        if len(word) > _LONGEST:
            return word
        word = tokens.base(word, self.language)
        if word in self._stop:
            return None
        if self._stemmer is None:
            return word
        with self._lock:
            stem: str = self._stemmer.stemWord(word)
        return stem or word

    def _encode(self, texts: Sequence[str]) -> csr_matrix[np.float32]:
        if isinstance(texts, str):
            raise EncoderError("expected a list of texts, got a single string: write encode_query([text])")
        lookup = self._columns.__getitem__
        if len(texts) == 1:  # a question: putting blocks together would take longer than all else
            _check_text(0, texts[0])
            words = self._words(texts[0])
            if len(words) <= _SHORT:
                return csr(*_count_few(list(map(lookup, words))), COLUMNS)
        blocks: list[_Block] = []
        columns, lengths = array("q"), array("q")
        for number, text in enumerate(texts):
            _check_text(number, text)
            before = len(columns)
            columns.extend(map(lookup, self._words(text)))
            lengths.append(len(columns) - before)
            if len(columns) >= _BLOCK:
                blocks.append(_count(columns, lengths))
                columns, lengths = array("q"), array("q")
        blocks.append(_count(columns, lengths))
        data, indices, sizes = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return csr(data, indices, sizes, COLUMNS)


_DEFAULTS: dict[str, str | float | bool] = {"language": "english", "k1": 1.2, "b": 0.75, "stopwords": True}
_Block = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


class _Columns(dict[str, int]):
    """The columns of words met lately, so that a word is stemmed and hashed once, not every time it occurs."""

    def __init__(self, encoder: LexicalEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word: str) -> int:
        term = self._encoder._term(word)
        found = _STOP if term is None else column(term)
        if len(word) <= _LONGEST:
            if len(self) >= _REMEMBERED:
                self.clear()
            self[word] = found
        return found


def _check_text(number: int, text: object) -> None:
    if not isinstance(text, str):
        raise EncoderError(f"text {number} is a {type(text).__name__}, not a string")


def _count_few(columns: Sequence[int]) -> _Block:
    """The same as :func:`_count` of one short text."""
    few: dict[int, int] = {}
    for each in columns:
        few[each] = few.get(each, 0) + 1
    few.pop(_STOP, None)
    terms = sorted(few)
    return np.array([few[term] for term in terms], np.float32), np.array(terms, np.int64), np.array([len(terms)])


def _count(columns: array[int], lengths: array[int]) -> _Block:
    """From the columns of words, text after text, to values, columns and number of terms of each text's vector."""
    flat = np.array(columns, dtype=np.int64)
    rows = np.repeat(np.arange(len(lengths), dtype=np.int64), np.array(lengths, dtype=np.int64))
    kept = flat != _STOP
    vocabulary, ranks = np.unique(flat[kept], return_inverse=True)
    cells, counts = np.unique(rows[kept] * len(vocabulary) + ranks, return_counts=True)
    texts, ranks = np.divmod(cells, max(len(vocabulary), 1))
    sizes = np.bincount(texts, minlength=len(lengths)).astype(np.int64)
    return counts.astype(np.float32), vocabulary[ranks], sizes
