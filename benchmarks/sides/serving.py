"""What both sides of `sweeps.py` share: the inputs, and a process that answers one job after another.

A side reads jobs as JSON lines on standard input and answers each with one line: seconds (`fixed`: those that do not
grow with the cells), how many cells were computed and of how many, and the largest memory so far; their values go to a
file. Nothing is cached between jobs. The metric is the logit difference of two tokens at the last position; the values
that are patched in come from the other of two random inputs. This file needs neither library.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

TARGET, RIVAL = 3, 4


class Side(Protocol):
    """A model of one library. `fixed`: seconds of the last sweep that do not grow with its cells."""

    fixed: float

    def sweep(self, name: str, n_pos: int, wanted: int) -> tuple[np.ndarray, int]:
        """The metric in each cell computed, and how many cells the whole sweep has."""

    def logit_lens(self, n_pos: int) -> None: ...

    def forward(self, n_pos: int) -> None: ...

    def cached(self, n_pos: int) -> None: ...


def inputs(d_vocab: int, n_pos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean and the corrupt one."""
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = torch.randint(5, d_vocab, (2, 1, n_pos), generator=draw)
    return clean, corrupt


def cells_of(total: int, wanted: int) -> list[int]:
    """Cells spread evenly over a sweep: all of them where `wanted` is 0."""
    if not wanted or wanted >= total:
        return list(range(total))
    return np.linspace(0, total - 1, wanted).astype(int).tolist()


def peak_memory() -> float:
    """Largest resident memory of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def serve(side_of: Callable[[str], Side]) -> None:
    """Answer jobs on as many threads as the first argument says; a model is opened when a job names its folder."""
    torch.set_num_threads(int(sys.argv[1]))
    side, folder = None, ""
    for line in sys.stdin:
        job = json.loads(line)
        if side is None or job["folder"] != folder:
            folder = job["folder"]
            side = side_of(folder)
        side.fixed, times = 0.0, job["times"]
        began = time.perf_counter()
        for _ in range(times):
            if job["what"] == "sweep":
                values, total = side.sweep(job["name"], job["n_pos"], job["cells"])
            else:
                getattr(side, job["what"])(job["n_pos"])
        answer = {"seconds": (time.perf_counter() - began) / times}
        if job["what"] == "sweep":
            np.save(job["out"], values)
            answer |= {"cells": len(values), "total": total, "fixed": side.fixed / times}
        answer["peak_mb"] = peak_memory()
        print("ANSWER " + json.dumps(answer), flush=True)
