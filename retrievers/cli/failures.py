"""How a command ends: one line for a failure, silence for a closed pipe, and no traceback unless it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import TracebackType
from typing import Any

import typer
from typer.core import TyperGroup

from retrievers.errors import RetrieversError

TRACEBACK = "RETRIEVERS_TRACEBACK"
"""The environment variable that, set to anything, shows where an error arose."""


class Verbs(TyperGroup):
    """A group of verbs whose failures are told in one line."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            complain("stopped")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _drop_output()
            raise typer.Exit(0) from None
        except (RetrieversError, OSError, MemoryError) as error:
            if os.environ.get(TRACEBACK):
                raise
            complain(f"error: {describe(error)}")
            raise typer.Exit(1) from None
        return result


@contextmanager
def guard() -> Iterator[None]:
    """Make standard output fit for any text, and keep an unforeseen error, or the exit of the process, to one line."""
    # What is piped or written to a file is UTF-8 whatever the locale; a terminal shows what it can.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        complain("stopped")
        raise SystemExit(130) from None
    finally:
        if not os.environ.get(TRACEBACK):
            sys.excepthook = _unforeseen  # here, since typer puts its own in place when it is called
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _drop_output()


def complain(line: str) -> None:
    """Print a line to standard error, where that is still open."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def warn_unfinished(path: object, documents: int) -> None:
    """Say that the build of an index was stopped."""
    complain(
        f"warning: {path} is unfinished: its build was stopped with {documents:,} documents indexed; "
        "run the same build command again to finish it"
    )


def describe(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, MemoryError):
        return "out of memory: close something, or give a smaller --memory or --batch-size"
    if isinstance(error, OSError) and not isinstance(error, RetrieversError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    complain(f"error: unexpected {kind.__name__}: {describe(error)} (set {TRACEBACK}=1 to see where)")


def _drop_output() -> None:
    """Nobody reads standard output any more: let what is left in its buffer go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
