"""Every error that the library raises on purpose: one type per cause, all under :class:`RetrieversError`.

A message names the value, the place and the mend. Types also derive from the built-in exception that a caller would
expect (``ValueError``, ``FileNotFoundError`` and so on), so that ordinary handlers keep working.
"""

from __future__ import annotations


class RetrieversError(Exception):
    """The root of all errors of this library."""


class DocumentError(RetrieversError, ValueError):
    """A document, or the line of a file that should hold one, is not well formed."""


class DuplicateIdError(DocumentError):
    """The same document id came twice; the message holds both places."""


class SourceError(RetrieversError, ValueError):
    """Documents cannot be read from this path, or not in the way that was asked for; the message says what can."""


class SourceNotFoundError(RetrieversError, FileNotFoundError):
    """There is no file or folder at the path that documents were to be read from."""


class UnknownIdError(RetrieversError, KeyError):
    """No live document has this id."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return str(self.args[0]) if self.args else ""


class FilterError(RetrieversError, ValueError):
    """A filter does not follow the grammar."""


class FilterTypeError(FilterError, TypeError):
    """A filter compares values of types that have no common order, such as a string with a number."""


class SpecError(RetrieversError, ValueError):
    """An index or encoder specification such as ``"hnsw(m=32)"`` does not parse, or names what is not known."""


class VectorError(RetrieversError, ValueError):
    """Vectors have the wrong kind, shape or type, or hold values that cannot be searched (NaN, infinity)."""


class EncoderError(RetrieversError, ValueError):
    """A model cannot be used as the encoder that was asked for; the message says why."""


class ModelNotFoundError(RetrieversError, FileNotFoundError):
    """A model is neither a local folder nor to be had from the hub."""


class EncoderMismatchError(RetrieversError, ValueError):
    """The encoder is not the one that the index was built with."""


class MissingDependencyError(RetrieversError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""


class IndexNotFoundError(RetrieversError, FileNotFoundError):
    """There is no index at this path."""


class IndexExistsError(RetrieversError, FileExistsError):
    """There already is an index, or something else, at this path."""


class IndexFormatError(RetrieversError, ValueError):
    """The index was written by a newer version of the library."""


class IndexDamagedError(RetrieversError, ValueError):
    """A file of the index is missing, cut, swapped or changed; the message names it."""


class OpenFilesError(RetrieversError, OSError):
    """The process may open no more files, of which each segment of an index takes one."""


class IndexClosedError(RetrieversError, ValueError):
    """The retriever was closed."""


class WriterLockedError(RetrieversError, BlockingIOError):
    """Another process or object is writing to the index."""


class BuildChangedError(RetrieversError, ValueError):
    """A stopped build was continued with other documents or other options than it began with."""


class QueryError(RetrieversError, ValueError):
    """A query, or the number of hits asked for, cannot be used."""


class UnsupportedSearchError(RetrieversError, ValueError):
    """The index, or the hybrid, cannot be searched in this way; the message names the kinds that can."""


class RunError(RetrieversError, ValueError):
    """A run, or the line of a file that should hold a part of one, is not well formed."""


class QrelsError(RetrieversError, ValueError):
    """A line of a file of relevance judgements is not well formed, or two contradict each other."""


class MeasureError(RetrieversError, ValueError):
    """The name of a measure is not known, or what computes it is not installed."""


class ScoreError(RetrieversError, ValueError):
    """A reranker gave scores that no ranking can hold: NaN, infinity, or not one for each document."""


class LeakError(RetrieversError, ValueError):
    """Something would be evaluated on queries that it was tuned on; the message says on how many."""


class HybridError(RetrieversError, ValueError):
    """Retrievers cannot be the parts of one hybrid: too few, the same twice, or with other documents under one id."""


class ComparisonError(RetrieversError, ValueError):
    """Systems cannot be compared: they were not measured on the same queries, or there is too little to compare."""


class TrainingDataError(RetrieversError, ValueError):
    """Training data is not well formed, contradicts itself, or lacks what was asked of it."""


class GenerationError(RetrieversError, ValueError):
    """What should write texts gave something else, or nothing of what it wrote can be used."""


class TrainingError(RetrieversError, RuntimeError):
    """Training cannot go on: the loss broke, or the model collapsed; the message has the step and the likely mend."""


class RecipeError(RetrieversError, ValueError):
    """A training recipe has a key that is not known, or a value that does not fit; the message names the nearest key."""


class DemonstrationError(RetrieversError, ValueError):
    """A labelled example is not well formed, or nothing can be selected or written as it was asked."""
