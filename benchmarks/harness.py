"""What the benchmark scripts share: the machine, the medians, the table.

Every script times both sides of a ratio in one process, in turn, and prints a Markdown section for
docs/benchmarks.md.
"""

import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, `rounds` times, in turn; a first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            spent = seconds(work)
            if turn:
                taken[name].append(spent)
    return taken


def spread(values: Iterable[float], digits: int = 3) -> str:
    """`median (min to max)`."""
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.{digits}g} ({ordered[0]:.{digits}g} to {ordered[-1]:.{digits}g})"


def heading(title: str) -> None:
    """The section's title, with date, commit and machine."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cores = len(os.sched_getaffinity(0))
    print(f"\n## {title}\n")
    print(
        f"{datetime.date.today()}, commit {commit}, {cores} cores ({_processor()}), "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}. "
        f"Load at the start: {os.getloadavg()[0]:.1f}.\n"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def _processor() -> str:
    with Path("/proc/cpuinfo").open() as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
