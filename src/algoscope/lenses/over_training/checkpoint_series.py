"""One measurement over all checkpoints of a run, and the step at which it forms."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from jaxtyping import Float, Int

from algoscope.core.errors import RunFolderError, SubjectError
from algoscope.core.progress import Bar, Watcher
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject
from algoscope.version import __version__

Steps = Int[np.ndarray, "step"]
Series = dict[str, Float[np.ndarray, "step"]]
Measure = Callable[[Subject], Mapping[str, float]]
VERSION = f"{__version__}/1"  # the number increases when a measure changes between releases


def over_checkpoints(
    subject: Subject,
    measure: Measure,
    *,
    steps: Sequence[int] | None = None,
    keep: str = "",
    progress: bool = False,
) -> tuple[Steps, Series]:
    """Measure each checkpoint of the subject's run (or those at `steps`): the steps and, by name, one number per step;
    NaN where `measure` gives none. With `keep`, a key for the measure and all its inputs except the weights, results
    are cached (`recalled`).

    Raises SubjectError for a subject that is not from a run, or from one with a single checkpoint, and CheckpointError
    for a step without a checkpoint.
    """
    run = subject.origin
    if run is None or len(run.steps) < 2:
        raise SubjectError(f"{subject.name} has no checkpoints to compare: give a trained run, run:NAME")
    chosen = list(run.steps if steps is None else steps)
    rows = []
    with Bar(f"{subject.name} over its checkpoints", "checkpoints") if progress else Watcher() as bar:
        for done, step in enumerate(chosen):
            model = open_subject(f"run:{run.path}@{step}")
            rows.append(recalled(model, keep, measure) if keep else measure(model))
            bar.advance(done + 1, len(chosen), f"step {step:,}")
    names = dict.fromkeys(name for row in rows for name in row)
    return np.array(chosen), {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}


def recalled(subject: Subject, keep: str, measure: Measure) -> Mapping[str, float]:
    """The numbers of one checkpoint: from the run folder's cache, else measured and cached.

    `keep` is a key for the measure and all its inputs except the weights. Numbers that are not finite are returned as
    NaN. If the folder cannot be written, results are not cached.
    """
    run = subject.origin
    assert run is not None, "a checkpoint is of a run"
    name, weights = f"{keep} {VERSION}", subject.weights_sha256
    assert weights is not None  # it comes from a run
    kept = run.numbers(name, weights)
    if kept is not None:
        return kept
    numbers = {name: value if np.isfinite(value) else float("nan") for name, value in measure(subject).items()}
    with suppress(RunFolderError):
        run.keep_numbers(name, weights, numbers)
    return numbers


def formed_at(steps: Steps, values: Float[np.ndarray, "step"], reaches: float) -> int | None:
    """The first step from which the values stay at or above `reaches`; None if the last value is below."""
    below = np.flatnonzero(~(values >= reaches))
    first = below[-1] + 1 if len(below) else 0
    return int(steps[first]) if first < len(steps) else None
