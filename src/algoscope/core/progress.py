"""Progress of long jobs: the main number, the rate, the time left."""

import sys
import time
from contextlib import suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from algoscope.core.visible import one_line, visible

PIPED_EVERY = 10.0  # seconds between lines when standard error is not a terminal


def say(line: str) -> None:
    """A line on standard error. Where that is closed or full the line is lost: no work fails for it."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(visible(line), file=sys.stderr, flush=True)  # noqa: T201


class Watcher:
    """Receives the progress of a job; a context manager around it. This base class shows nothing."""

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, done: int, total: int, note: str) -> None:
        """`done` of `total` units are finished; `note` holds the main number, such as the loss."""


class Bar(Watcher):
    """A bar on standard error in a terminal or notebook; a plain line every 10 seconds where it is piped."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit, self.console = title, unit, Console(stderr=True)
        moving = self.console.is_terminal and not self.console.is_dumb_terminal
        self.live = moving or self.console.is_jupyter
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
            TextColumn("{task.fields[note]}", markup=False),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self.task = self.bar.add_task(one_line(title), total=1, unit=unit, note="", rate="")
        self.began = self.printed = time.perf_counter()
        self.first: int | None = None

    def __enter__(self) -> "Bar":
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.bar.stop()

    def advance(self, done: int, total: int, note: str) -> None:
        now = time.perf_counter()
        self.first = done if self.first is None else self.first
        seconds = now - self.began
        rate = (done - self.first) / seconds if seconds > 0 else 0.0
        if self.live:
            self.bar.update(self.task, completed=done, total=total, note=note, rate=f"{rate:,.0f} {self.unit}/s")
        elif now - self.printed > PIPED_EVERY:
            self.printed = now
            left = (total - done) / rate if rate > 0 else float("inf")
            say(f"{self.title}: {done:,}/{total:,} {self.unit}, {note}, {rate:,.0f} {self.unit}/s, {left:.0f} s left")
