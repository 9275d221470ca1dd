"""A worker process: it reads jobs, trains them, and reports progress, as lines of JSON.

`{"runs": [PATH, ...], "code": [FILE.py:CLASS, ...], "device": "cpu"}` is answered by any number of
`{"done": steps, "total": steps}` and by one `{"failed": {NAME: WHY}}`. Ctrl-C finishes the step and saves the states,
and so does a closed pipe.
"""

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from algoscope.core.errors import AlgoscopeError, Interrupted
from algoscope.runs.run_folder import Run
from algoscope.tasks.specs import find_task
from algoscope.training.train import train_together
from algoscope.training.worker_pool import Forwarding

REPORT_EVERY = 0.5  # seconds


def main() -> None:
    """Train jobs until standard input ends."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    torch.set_num_threads(1)
    reported = 0.0

    def report(done: int, total: int) -> None:
        nonlocal reported
        if time.perf_counter() - reported > REPORT_EVERY:
            reported = time.perf_counter()
            _write({"done": done, "total": total}, stop)

    for line in sys.stdin:
        job = json.loads(line)
        _write({"failed": _train(job, report, stop)}, stop)
        if stop.is_set():
            break


def _train(job: dict[str, Any], report: Any, stop: threading.Event) -> dict[str, str]:
    runs = [Run(Path(path)) for path in job["runs"]]
    try:
        for address in job["code"]:  # tasks of the user's own, from files that were named to the parent process
            find_task(address)
        failed = train_together(runs, torch.device(job["device"]), Forwarding(report), stop)
    except Interrupted:
        return {}
    except AlgoscopeError as error:
        return {run.name: str(error) for run in runs if not run.is_whole}
    return {name: str(error) for name, error in failed.items()}


def _write(message: dict[str, Any], stop: threading.Event) -> None:
    try:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        stop.set()


if __name__ == "__main__":
    main()
