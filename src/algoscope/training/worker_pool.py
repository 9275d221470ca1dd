"""Stacks of runs distributed over worker processes, one thread each: the parent process. `worker.py` is the worker.

A worker is the same Python running `algoscope.training.worker`; both sides write lines of JSON. A worker that dies is
replaced; only the steps since its runs' last checkpoints are lost.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from algoscope.core.errors import AlgoscopeError, Interrupted
from algoscope.core.progress import Watcher
from algoscope.runs.run_folder import Run
from algoscope.tasks.specs import code_address
from algoscope.training.train import train_together

Stacks = Sequence[Sequence[Run]]
CHECK_EVERY = 0.2  # seconds between checks for Ctrl-C
PACKAGE = Path(__file__).parents[2]


class Tally:
    """The total progress of all stacks, shown by one watcher."""

    def __init__(self, stacks: Stacks, watcher: Watcher) -> None:
        self.watcher, self.runs = watcher, [run for stack in stacks for run in stack]
        self.lock = threading.Lock()
        self.parts = [(0, sum(run.config.train.steps for run in stack)) for stack in stacks]

    def reporter(self, number: int) -> Callable[[int, int], None]:
        """The callback of a stack, called with the steps done and the total."""

        def report(done: int, total: int) -> None:
            with self.lock:
                self.parts[number] = (done, total)
                n_finished = f"{sum(run.is_whole for run in self.runs)} of {len(self.runs)} runs finished"
                self.watcher.advance(sum(d for d, _ in self.parts), sum(t for _, t in self.parts), n_finished)

        return report


class Forwarding(Watcher):
    """Forwards progress to a function."""

    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def advance(self, done: int, total: int, note: str) -> None:
        self.report(done, total)


def one_by_one(stacks: Stacks, device: torch.device, tally: Tally, stop: threading.Event) -> dict[str, str]:
    """Train every stack in this process. Returns the reasons of failed runs, by name."""
    failed: dict[str, str] = {}
    for number, stack in enumerate(stacks):
        try:
            diverged = train_together(stack, device, Forwarding(tally.reporter(number)), stop)
        except Interrupted:
            break
        except AlgoscopeError as error:
            failed |= {run.name: str(error) for run in stack if not run.is_whole}
        else:
            failed |= {name: str(error) for name, error in diverged.items()}
    return failed


def share_out(stacks: Stacks, device: str, n_workers: int, tally: Tally, stop: threading.Event) -> dict[str, str]:
    """The same in worker processes, each stack by the next free worker."""
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(stacks)):
        todo.put(number)
    failed: dict[str, str] = {}
    workers: list[_Worker] = []

    def work() -> None:
        worker = _Worker(workers)
        while not stop.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                break
            code = sorted({address for run in stacks[number] if (address := code_address(run.config.task)) is not None})
            job = {"runs": [str(run.path) for run in stacks[number]], "code": code, "device": device}
            answer = worker.train(job, tally.reporter(number))
            if answer is None and stop.is_set():
                break
            if answer is None:
                how = worker.close()
                failed.update({run.name: _lost(run, how) for run in stacks[number] if not run.is_whole})
                worker = _Worker(workers)
            else:
                failed.update(answer)
        worker.close()

    with ThreadPoolExecutor(n_workers) as pool:
        under_way = [pool.submit(work) for _ in range(n_workers)]
        while wait(under_way, timeout=CHECK_EVERY).not_done:
            if stop.is_set():
                for worker in list(workers):
                    worker.stop()
        for future in under_way:
            future.result()
    return failed


def _lost(run: Run, how: str) -> str:
    return f"its process ended ({how}); {run.path} has step {run.newest_step or 0}: go on with --resume"


class _Worker:
    """A process that trains one stack after another."""

    def __init__(self, known: list["_Worker"]) -> None:
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "algoscope.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        known.append(self)

    def train(self, job: dict[str, Any], report: Callable[[int, int], None]) -> dict[str, str] | None:
        """Send a job and wait for the answer: the reasons of failed runs, by name; None where the process died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        for line in self.process.stdout:
            message = json.loads(line)
            if "failed" in message:
                failed: dict[str, str] = message["failed"]
                return failed
            report(message["done"], message["total"])
        return None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def close(self) -> str:
        """End the process, and return its exit code or signal as text."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        code = self.process.wait()
        return f"signal {-code}" if code < 0 else f"code {code}"
