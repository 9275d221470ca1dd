"""How many threads PyTorch may use. On tensors this small its default can be far slower than one thread."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def free_cores() -> int:
    """Cores that this process may run on and that are idle now, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(allowed, round(allowed - busy)))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run the body with `n` PyTorch threads, then put the old number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(work: Callable[[], object], tries: int = 3) -> int:
    """The number of threads, 1 or all free cores, with which `work` took the shorter time just now."""
    cores = free_cores()
    if cores == 1:
        return 1
    best = {}
    for n in (1, cores):
        with threads(n):
            work()  # the first call pays for starting the threads
            seconds = []
            for _ in range(tries):
                began = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - began)
        best[n] = min(seconds)
    return min(best, key=lambda n: best[n])
