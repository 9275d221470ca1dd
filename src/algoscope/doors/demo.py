"""`algoscope demo`: train, certify, analyse and report the default model."""

import time
from typing import Any

from algoscope.config import override
from algoscope.core.arguments import Folder, Seed, checked_arguments
from algoscope.doors.report.report import report
from algoscope.recipes.addition import add3
from algoscope.runs.paths import is_run, new_folder
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.training.train import train
from algoscope.verdicts.certification.kept import kept_or_certified

NAME = "demo"


@checked_arguments
def run_demo(*, seed: Seed = 0, runs_dir: Folder = None, progress: bool = True) -> dict[str, Any]:
    """Train the three-digit adder, certify it on every sum, apply the lenses, and write the report.

    An earlier demo run of the same config is replaced, as its weights are the same.

    Args:
        seed: of weights and data.
        runs_dir: where runs are; by default $ALGOSCOPE_RUNS, else `./runs`. The run is called `demo`.
        progress: show progress bars on standard error.
    Returns:
        The `run`, the `verdict`, the path of the `report`, and `seconds` {training, certification, report}.
    Raises:
        RunFolderError: if a run of another config is called `demo`, and if another process is training it.

    Example:
        >>> import algoscope as ag
        >>> done = ag.demo(progress=False)  # doctest: +SKIP
        >>> done["verdict"]["wrong"]  # doctest: +SKIP
        0
    """
    earlier = Run(new_folder(NAME, runs_dir))
    if is_run(earlier.path) and earlier.config == override(add3(), {"seed": seed}):
        earlier.remove()
    marks = [time.perf_counter()]
    run = train("add3", name=NAME, seed=seed, runs_dir=runs_dir, progress=progress)
    marks.append(time.perf_counter())
    subject = open_subject(run)
    verdict = kept_or_certified(subject, progress=progress)
    marks.append(time.perf_counter())
    path = report(subject, progress=progress)
    marks.append(time.perf_counter())
    names = ("training", "certification", "report")
    seconds = {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}
    return {"run": run, "verdict": verdict, "report": path, "seconds": seconds}
