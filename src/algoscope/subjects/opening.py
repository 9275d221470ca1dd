"""Models by name: `run:add3`, `planted:induction`, `hf:gpt2`, `file:weights.safetensors`."""

from pathlib import Path

from algoscope.core.errors import SubjectError
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.subjects.table import FORMS


def open_subject(name: str | Run | Subject, *, runs_dir: str | Path | None = None, device: str = "cpu") -> Subject:
    """The model that a string names, or that of a Run.

    `run:NAME[@STEP]` or `run:PATH` is a run folder, `planted:NAME` a model set by hand, `hf:ID_OR_PATH` one of Hugging
    Face (a folder here, else the local cache, else, where its own settings allow it, the network),
    `file:PATH.safetensors` weights with their config beside them, and `foreign:PATH?task=T` weights of another tool.

    Raises RunFolderError where there is no such run, CheckpointError for weights that are missing, truncated or do
    not fit, UnknownNameError for a planted model that there is not, SubjectError for another form and for an
    architecture that is not supported.
    """
    if isinstance(name, Subject):
        return name
    if isinstance(name, Run):
        return Subject(f"run:{name.name}", name.model(device=device), name.config.task, name)
    form, _, rest = name.partition(":")
    if form not in FORMS or not rest:
        known = ", ".join(entry.summary for entry in FORMS.values())
        raise SubjectError(f"{name!r} does not name a model: write one of {known}")
    try:
        opener = FORMS.load(form)
    except ModuleNotFoundError as error:
        raise SubjectError(f"{name!r} needs the package {error.name}: pip install 'algoscope[{form}]'") from error
    found: Subject = opener(name, rest, runs_directory(runs_dir), device)
    return found
