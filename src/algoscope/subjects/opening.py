"""Models by name: `run:add3`, `planted:induction`, `hf:gpt2`, `file:weights.safetensors`."""

from pathlib import Path

from algoscope.core.errors import SubjectError
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.subjects.table import FORMS


def open_subject(name: str | Run | Subject, *, runs_dir: str | Path | None = None, device: str = "cpu") -> Subject:
    """Open a model by name, ready for every lens and verdict.

    - `run:NAME`, `run:NAME@STEP` or `run:PATH`: a run folder, at its newest or a given checkpoint;
    - `planted:NAME`: a model whose weights are set by hand and whose mechanism is known;
    - `hf:ID_OR_PATH`: a model of Hugging Face, from a folder, the local cache or, where its settings allow, the
    network;
    - `file:PATH.safetensors`: weights with their config beside them;
    - `foreign:PATH?task=T`: weights of another tool.

    After the name of a run or file, `?FIELD=VALUE` asks the same weights the task with other fields.

    Args:
        name: one of these, or a `Run`; a subject is given back as it is.
        runs_dir: where runs are looked for; None: `$ALGOSCOPE_RUNS`, else `runs`.
        device: where it computes, as PyTorch names devices.
    Returns:
        The model as a `Subject`.
    Raises:
        RunFolderError: where there is no such run.
        CheckpointError: for weights that are missing, truncated or do not fit.
        UnknownNameError: for a planted model that there is not.
        SubjectError: for another form, and for an architecture that is not supported.

    Example:
        >>> import algoscope as ag
        >>> ag.open("planted:reversal").generate("abcde")
        'edcba<EOS>'
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
    subject: Subject = opener(name, rest, runs_directory(runs_dir), device)
    return subject
