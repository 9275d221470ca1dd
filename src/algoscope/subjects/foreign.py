"""Weights of other tools: `foreign:PATH` opens them, `import_weights` writes a run folder."""

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from algoscope.config import RunConfig
from algoscope.core.ambient import settled
from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import AlgoscopeError, SubjectError, TaskMismatchError
from algoscope.core.files import user_path
from algoscope.formats.layout_reading import OpenChoice
from algoscope.formats.model_building import file_to_model, settings_to_fields
from algoscope.formats.settling import ImportedModel, Read, answers_of
from algoscope.networks.shared_prefixes import plain_logits
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import new_folder, split_name
from algoscope.runs.run_folder import Run, weights_hash
from algoscope.runs.summary import ImportedFrom, Inference, RunSummary
from algoscope.subjects._task_inference import infer_task, said_by
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.specs import query_fields, take_task
from algoscope.tasks.table import TASKS

SMALLEST = {  # of each task whose format is inferred: what any model of it can read
    "addition": "addition?n_digits=1&between=&equals=&ends=false&padding=false",
    "subtraction": "subtraction?n_digits=1&between=&equals=&ends=false&padding=false",
    "modular": "modular?p=2&form=ab",
}
N_ANSWERED = 2_000  # inputs on which an imported model is evaluated, to show whether it was read correctly


@checked_arguments
@settled()
def import_weights(
    path: str | Path,
    task: str | Task,
    *,
    settings: Mapping[str, Any] | None = None,
    layout: str | None = None,
    act: str | None = None,
    causal: bool | None = None,
    name: str | None = None,
    runs_dir: Folder = None,
) -> Run:
    """Import weights that another tool has written, as a run.

    The run is finished, and its only checkpoint is step 1. `imported` in its summary says how each field of the config
    was inferred (from the weights, a config, the answers to the task, or assumed) and which tensors were left out;
    `test_accuracy` and `loss` are computed on up to 2,000 inputs of the task.

    Args:
        path: a file of safetensors, of `torch.save` with tensors only, or of `numpy.savez`, with names of any usual
            habit; a config may be in it, or in a JSON file beside it.
        task: what the model was trained on: a name, `FILE.py:CLASS` for one of your own, or a task.
        settings: fields of the task (`{"p": 59, "form": "ab"}`), of the model's config (`model.n_heads`), which
            override inferred ones, and how weights are to be read (`weights.qkv`: `blocks` or `per-head`).
        layout: the name of the layout, where names and shapes are ambiguous.
        act: the activation function, where no config has it.
        causal: whether the model has a causal mask, where no config says so.
        name: the name of the run; by default that of the file.
        runs_dir: the folder of runs; by default `$ALGOSCOPE_RUNS` or `runs`.
    Returns:
        The run.
    Raises:
        UnknownNameError: for an unknown task, layout or field.
        ConfigError: for an illegal value.
        CheckpointError: for a file that cannot be read, or whose weights do not fit our transformer.
        TaskMismatchError: for a model that the task does not fit.
        RunFolderError: for a run that exists, and for an invalid name.

    Example:
        >>> import pathlib, tempfile, algoscope as ag
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> weights, config = ag.export("planted:pizza", "transformerlens", folder / "pizza.safetensors")
        >>> run = ag.import_weights(weights, "modular", settings={"p": 59, "form": "ab"}, runs_dir=folder)
        >>> run.name, ag.open(run).cfg.d_vocab
        ('pizza', 59)
    """
    path = user_path(path)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
    folder = new_folder((stem or "imported") if name is None else name, runs_dir)
    Run(folder).refuse_if_taken()
    spec, known = _named(task, settings or {})
    imported, line = _read(path, spec, known, layout, act, causal)
    origin = ImportedFrom(
        file=imported.file.path.name,
        sha256=imported.file.sha256,
        account=tuple(Inference(what=row.what, value=row.value, how=row.how) for row in imported.account)
        + ((Inference(what="task", value=imported.config.task.kind, how=line),) if line else ()),
        left_out=imported.left_out,
    )
    return finished_run(folder, imported.config, imported.model, imported=origin)


def _read(
    path: Path,
    task: str | Task,
    settings: Mapping[str, Any],
    layout: str | None,
    act: str | None,
    causal: bool | None,
) -> tuple[ImportedModel, str]:
    """The model in a file, with the format of the task that it knows, and a line on that."""
    said = settings_to_fields(task, settings, act, causal)[0]
    fields = {name.removeprefix("task."): value for name, value in said.items()}
    try:
        usual = file_to_model(path, task, settings, layout, act, causal)
        if usual.config.task.kind not in SMALLEST:
            return usual, ""  # one format, or a task of one's own
        found, line = _task_of(usual.model, usual.config.task.kind, fields)
        if found == usual.config.task:
            return usual, line
    except (TaskMismatchError, OpenChoice) as error:
        if not isinstance(task, str) or task not in SMALLEST:
            raise
        rest = {name: value for name, value in settings.items() if name not in {*fields, *said}}

        def read(set_to: Mapping[str, Any]) -> ImportedModel:
            return file_to_model(path, SMALLEST[task], {**rest, **set_to}, layout, act, causal, by_answers=False)

        try:
            found, line = _task_without(read, task, fields)
        except AlgoscopeError as none:
            raise (error if isinstance(error, OpenChoice) else none) from None
    changed = {f"task.{name}": value for name, value in said_by(found).items()}
    return file_to_model(path, task, {**settings, **changed}, layout, act, causal), line


def _named(task: str | Task, settings: Mapping[str, Any]) -> tuple[str | Task, dict[str, Any]]:
    """A task that ships by its name, with the fields that were given among the settings; one of one's own as it is."""
    if isinstance(task, str) or task.is_plain:
        return task, dict(settings)
    given = {field: getattr(task, field) for field in task.model_fields_set - {"kind"}}
    return task.kind, given | dict(settings)


def _task_without(read: Read, kind: str, fields: Mapping[str, Any]) -> tuple[Task, str]:
    """The task of a model that the usual one does not fit. What the file leaves open besides is tried, each value."""
    try:
        return _task_of(read({}).model, kind, fields)
    except OpenChoice as choice:
        failed: AlgoscopeError = choice
        for value in choice.values:
            try:
                return _task_of(read({choice.name: value}).model, kind, fields)
            except AlgoscopeError as error:
                failed = error
    raise failed


def _task_of(model: Transformer, kind: str, fields: Mapping[str, Any]) -> tuple[Task, str]:
    n_ctx = model.cfg.n_ctx if model.cfg.positions == "learned" else None
    return infer_task(partial(plain_logits, model), model.cfg.d_vocab, n_ctx, kind, fields)


def finished_run(folder: Path, config: RunConfig, model: Transformer, **origin: Any) -> Run:
    """A new run that is finished: its only checkpoint is step 1, evaluated on up to 2,000 inputs of its task."""
    weights = model.state_dict()
    summary = RunSummary.of(
        config,
        steps=0,
        examples=0,
        seconds=0.0,
        **answers_of(config, model, N_ANSWERED),
        parameters=sum(weight.numel() for weight in weights.values()),
        weights_sha256=weights_hash(weights),
        **origin,
    )
    run = Run.create(folder, config)
    with run.lock():
        run.save_checkpoint(1, weights, {})
        run.finish(summary)
    return run


def open_foreign(name: str, rest: str, directory: Path, device: str, task: Task | None = None) -> Subject:
    """A model from `PATH?task=T&FIELD=VALUE...`, percent-encoded where a value has `&`, `=` or `%`.

    Fields are the settings of `import_weights`, and `layout`, `act` and `causal` (true or false).
    Raises SubjectError without a task, and what `file_to_model` raises.
    """
    path, _, query = split_name(rest, os.path.isfile)
    fields = query_fields(name, query)
    spec = take_task(name, fields, task)
    settings: dict[str, Any] = dict(fields)
    if isinstance(spec, Task):
        spec, settings = _named(spec, settings)
    if spec is None:
        raise SubjectError(
            f"{name!r} does not name the task of the model: write {name}{'&' if query else '?'}task=modular "
            f"(known: {', '.join(TASKS)}), and the task's fields after it, such as &p=113&form=ab%3D"
        )
    causal = settings.pop("causal", None)
    if causal not in (None, "true", "false"):
        raise SubjectError(f"{name!r}: causal must be true or false, not {causal!r}")
    layout, act = settings.pop("layout", None), settings.pop("act", None)
    masked = None if causal is None else causal == "true"
    imported, line = _read(Path(path), spec, settings, layout, act, masked)
    subject = Subject(name, imported.model.to(device), imported.config.task)
    subject.note = "; ".join([line] * bool(line) + [f"left out: {each}" for each in imported.file.left_out])
    return subject
