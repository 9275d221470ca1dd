"""Models by name: `run:add3`, `planted:induction`, `hf:gpt2`, `file:weights.safetensors`."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import torch

from algoscope.core.ambient import find_device, settled
from algoscope.core.arguments import Folder, Form, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.core.files import user_path
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.subjects.stored import run_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.table import FORMS

P = ParamSpec("P")
R = TypeVar("R")
AnyModel = Annotated[
    str | Path | Run | Subject,
    Form(
        "a model: a name such as 'run:add3', 'planted:induction' or 'hf:FOLDER' (what save_pretrained wrote), a Run, "
        "or a Subject that ag.open returned"
    ),
]


@settled()
@checked_arguments
def open_subject(name: AnyModel, *, runs_dir: Folder = None, device: str | torch.device = "cpu") -> Subject:
    """Open a model by name, ready for every lens and verdict.

    - `run:NAME`, `run:NAME@STEP` or `run:PATH`: a run folder, at its newest or a given checkpoint;
    - `planted:NAME`: a model whose weights are set by hand and whose mechanism is known;
    - `hf:ID_OR_PATH`: a Hugging Face model, from a folder, the local cache or, unless offline mode is set, the network;
    - `file:PATH.safetensors`: weights with a config file in the same folder;
    - `foreign:PATH?task=T`: weights of another tool.

    After the name of a run or file, `?FIELD=VALUE` changes a field of its task, for the same weights. A path that
    exists may have `@` and `?` in it; `~` is the home folder.

    Args:
        name: one of these, a `Run`, or the `Path` of a run folder, a Hugging Face folder or a file of weights; a
            subject is returned unchanged.
        runs_dir: the folder of runs; None: `$ALGOSCOPE_RUNS`, else `runs`.
        device: a PyTorch device, such as `cpu` or `cuda`.
    Returns:
        The model as a `Subject`.
    Raises:
        RunFolderError: for an unknown run.
        CheckpointError: for weights that are missing, truncated or do not fit.
        UnknownNameError: for an unknown planted model.
        SubjectError: for a name of another form, and for an unsupported architecture.

    Example:
        >>> import algoscope as ag
        >>> ag.open("planted:reversal").generate("abcde")
        'edcba<EOS>'
    """
    if isinstance(name, Subject):
        name.require_finite()
        return name
    device = str(find_device(device))
    if isinstance(name, Run):
        return run_subject(f"run:{name.name}", name, None, name.config.task, device)
    if isinstance(name, Path):
        name = f"{'run' if (name / 'checkpoints').is_dir() else 'hf' if name.is_dir() else 'file'}:{name}"
    form, _, rest = name.partition(":")
    if form not in FORMS or not rest:
        known = ", ".join(entry.summary for entry in FORMS.values())
        raise SubjectError(f"{name!r} does not name a model: write one of {known}")
    if rest.startswith("~"):
        rest = str(user_path(rest))
    try:
        opener = FORMS.load(form)
    except ModuleNotFoundError as error:
        raise SubjectError(f"{name!r} needs the package {error.name}: pip install 'algoscope[{form}]'") from error
    subject: Subject = opener(name, rest, runs_directory(runs_dir), device)
    return subject


def measurement(function: Callable[P, R]) -> Callable[P, R]:
    """A lens: it gets the model of its first argument opened for measuring (`Subject.for_measuring`), in the usual
    surroundings (`core.ambient`).
    """

    signature = inspect.signature(function)

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        with settled():
            bound.arguments["subject"] = open_subject(
                bound.arguments["subject"], runs_dir=bound.arguments.get("runs_dir")
            ).for_measuring()
            return function(*bound.args, **bound.kwargs)

    return measured
