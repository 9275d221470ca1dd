"""One measurement over all checkpoints of a run: when did it form?"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from algoscope.core.errors import SubjectError
from algoscope.core.progress import Bar, Watcher
from algoscope.subjects.base import Subject
from algoscope.subjects.opening import open_subject

Steps = Int[np.ndarray, "step"]
Series = dict[str, Float[np.ndarray, "step"]]


def over_checkpoints(
    subject: Subject,
    measure: Callable[[Subject], Mapping[str, float]],
    *,
    steps: Sequence[int] | None = None,
    progress: bool = False,
) -> tuple[Steps, Series]:
    """What `measure` says of the subject's run at each of its checkpoints (or at `steps`), by name: its steps and, for
    each name, one number a step; NaN where `measure` gave none.

    Raises SubjectError for a subject that comes from no run, or from one with a single checkpoint, and CheckpointError
    for a step that is none of its checkpoints.
    """
    run = subject.origin
    if run is None or len(run.steps) < 2:
        raise SubjectError(f"{subject.name} has no checkpoints to compare: give a run that was trained, run:NAME")
    chosen = list(run.steps if steps is None else steps)
    rows = []
    with Bar(f"{subject.name} over its checkpoints", "checkpoints") if progress else Watcher() as bar:
        for done, step in enumerate(chosen):
            rows.append(measure(open_subject(f"run:{run.path}@{step}")))
            bar.advance(done + 1, len(chosen), f"step {step:,}")
    names = dict.fromkeys(name for row in rows for name in row)
    return np.array(chosen), {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in names}


def formed_at(steps: Steps, values: Float[np.ndarray, "step"], reaches: float) -> int | None:
    """The first step from which on the values stay at or above `reaches`; None where the last does not."""
    below = np.flatnonzero(~(values >= reaches))
    first = below[-1] + 1 if len(below) else 0
    return int(steps[first]) if first < len(steps) else None
