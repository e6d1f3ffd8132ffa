"""Progress on standard error: a bar on a terminal, plain lines now and then elsewhere; never silent for long."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from retrievers.cli.failures import complain

if TYPE_CHECKING:
    from rich.progress import Progress, Task

_FIRST, _LONGEST = 10.0, 60.0  # seconds until the first line, and the most that later ones lie apart


class Meter:
    """Shows how far a long piece of work has come; a context manager, and the ``progress`` callback of the library.

    ``total`` is the number of documents where that is known, ``before`` how many of them an earlier, stopped run has
    done: they count as done, but not for the rate. ``bar=False`` keeps to lines, for when results come on the same
    terminal.
    """

    def __init__(
        self, what: str, unit: str = "documents", *, total: int | None = None, before: int = 0, bar: bool = True
    ) -> None:
        self.done = 0
        self._what, self._unit, self._total, self._before = what, unit, total, before
        self._started = time.monotonic()
        drawable = bar and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._display: _Bar | _Lines = _Bar(self) if drawable else _Lines(self)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def __call__(self, done: int) -> None:
        self.done = done
        self._display.update()

    def phase(self, what: str) -> None:
        """Say what is being done now."""
        self._what = what
        self._display.update()

    def expect(self, total: int | None, before: int = 0) -> None:
        """Say how many there are, and how many were done before."""
        self._total, self._before = total, before
        self._display.update()

    @property
    def what(self) -> str:
        return self._what

    @property
    def total(self) -> int | None:
        return self._total

    @property
    def elapsed(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Documents a second, those of an earlier run left out."""
        return max(0, self.done - self._before) / max(self.elapsed, 1e-3)

    def status(self) -> str:
        """How far the work is, in words: ``2,048 of 8,192 documents, 512/s, 0:12 left``."""
        if not self.done:
            return "" if self._total is None else f"0 of {self._total:,} {self._unit}"
        counted = f"{self.done:,}" if self._total is None else f"{self.done:,} of {self._total:,}"
        parts = [f"{counted} {self._unit}"]
        if self.rate:
            parts.append(f"{print_rate(self.rate)}/s")
            if self._total is not None and self._total > self.done:
                parts.append(f"{print_time((self._total - self.done) / self.rate)} left")
        return ", ".join(parts)


def print_rate(rate: float) -> str:
    """A rate in three digits or in whole numbers."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def print_time(seconds: float) -> str:
    """Seconds as ``1:23:45``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines:
    """Plain lines from a thread of their own: they come also while a model loads or a segment is written."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def update(self) -> None:
        pass

    def _run(self) -> None:
        pause = _FIRST
        while not self._stopped.wait(pause):
            elapsed = self._meter.elapsed
            status = self._meter.status()
            complain(f"{self._meter.what}{': ' if status else ''}{status} ({print_time(elapsed)} so far)")
            pause = min(_LONGEST, max(_FIRST, elapsed / 10))


class _Bar:
    """A rich bar, which redraws itself."""

    def __init__(self, meter: Meter) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        class Status(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(meter.status())

        self._meter = meter
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            Status(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(meter.what, total=None)

    def start(self) -> None:
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    def update(self) -> None:
        meter = self._meter
        self._progress.update(self._task, description=meter.what, completed=meter.done, total=meter.total)
