"""Merging: a run with low-rank updates or factors, written as a run with full matrices."""

from algoscope.core.ambient import settled
from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.networks.lora import whole
from algoscope.runs.paths import new_folder
from algoscope.runs.run_folder import Run
from algoscope.runs.summary import MergedFrom
from algoscope.subjects.foreign import finished_run
from algoscope.subjects.opening import AnyModel, open_subject


@checked_arguments
@settled()
def merge(subject: AnyModel, *, name: str | None = None, runs_dir: Folder = None) -> Run:
    """Make a run of the same model with full matrices: low-rank updates added, factors multiplied.

    An update becomes W0 + (alpha / rank) B A, a pair of factors A B. The new run is finished, its only checkpoint is
    step 1; the original runs are unchanged. The logits are the same up to rounding. `merged` in its summary names the
    original weights; its `test_accuracy` and `loss` are computed on up to 2,000 inputs of the task.

    Args:
        subject: a run, by name or opened.
        name: the name of the new run; by default `NAME-merged`.
        runs_dir: the folder of runs; by default `$ALGOSCOPE_RUNS` or `runs`.
    Returns:
        The new run.
    Raises:
        SubjectError: for a subject that is not a run, or has nothing to merge.
        RunFolderError: for a run that exists, for an invalid name, and while the subject is being trained.

    Example:
        >>> import tempfile, algoscope as ag
        >>> folder, short = tempfile.mkdtemp(), {"n_digits": 1, "steps": 3, "batch": 8, "data.n_test": 10}
        >>> run = ag.train("add3", settings=short | {"model.rank": 2}, runs_dir=folder, progress=False)
        >>> ag.merge(run, runs_dir=folder).config.model.rank is None
        True
    """
    opened = open_subject(subject, runs_dir=runs_dir)
    origin = opened.origin
    if origin is None:
        raise SubjectError(f"{opened.name} is not a run: merge takes a run, such as run:sub3_lora-s0")
    origin.refuse_if_training()
    folder = new_folder(f"{origin.name}-merged" if name is None else name, runs_dir)
    plain = whole(opened.model)
    if plain is opened.model:
        raise SubjectError(f"{opened.name} has nothing to merge: it has neither low-rank updates nor factors")
    config = origin.config.model_copy(update={"recipe": "merged", "model": plain.cfg, "start": None})
    merged = MergedFrom(subject=opened.name, weights_sha256=opened.weights_sha256)
    return finished_run(folder, config, plain, merged=merged)
