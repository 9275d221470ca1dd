"""How many threads to work with. On tensors this small PyTorch's default can be far slower than one thread."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

WORTH_SHARING = 3e8  # floating-point operations

Item = TypeVar("Item")
Result = TypeVar("Result")


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


def right_sized(operations: float) -> AbstractContextManager[None]:
    """One thread for work too small to share, of so many floating-point operations; else those that are set.

    Below some hundred million, waiting for each other costs threads more than the work, and on a busy machine by far.
    """
    return threads(1) if operations < WORTH_SHARING and torch.get_num_threads() > 1 else nullcontext()


def in_order(work: Callable[[Item], Result], items: Iterable[Item], n_workers: int) -> Iterator[Result]:
    """`map(work, items)` on `n_workers` threads, without gradients; results in order.

    PyTorch leaves Python's lock while it computes, so items are worked on side by side; with one PyTorch thread each,
    that scales better than cutting every small operation. At most two items for each worker are under way.
    """

    def quietly(item: Item) -> Result:
        with torch.no_grad():  # holds for the thread that says it
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
