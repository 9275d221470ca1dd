"""Thread counts. On small tensors PyTorch's default number of threads can be far slower than one thread."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

WORTH_SHARING = 3e8  # floating-point operations below which one thread is fastest

Item = TypeVar("Item")
Result = TypeVar("Result")


def free_cores() -> int:
    """Cores that this process may run on and that are idle now, at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, min(allowed, round(allowed - busy)))


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run the body with `n` PyTorch threads, then restore the previous number."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def right_sized(operations: float) -> AbstractContextManager[None]:
    """One thread where the work is fewer than `WORTH_SHARING` floating-point operations; else the number that is set.

    For less work, synchronising threads costs more than the computation, on a busy machine far more.
    """
    return threads(1) if operations < WORTH_SHARING and torch.get_num_threads() > 1 else nullcontext()


def in_order(work: Callable[[Item], Result], items: Iterable[Item], n_workers: int) -> Iterator[Result]:
    """`map(work, items)` on `n_workers` threads, without gradients; results in order.

    PyTorch releases the global interpreter lock while it computes, so items are computed in parallel. With one PyTorch
    thread each, that scales better than splitting every small operation. At most two items per worker are pending.
    """

    def quietly(item: Item) -> Result:
        with torch.no_grad():  # gradient mode is set for each thread
            return work(item)

    if n_workers == 1:
        yield from map(quietly, items)
        return
    pool = ThreadPoolExecutor(n_workers)
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(quietly, item))
            if len(under_way) > 2 * n_workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
