"""Subjects from our own files: run folders, and weights with a config file.

`?FIELD=VALUE&...` after the name changes fields of the task, for the same weights.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algoscope.config import RunConfig
from algoscope.core.errors import CheckpointError, SubjectError, TaskMismatchError
from algoscope.runs.paths import is_known, split_name
from algoscope.runs.reading import load_model, read_config, read_tensors
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.specs import RecordedTask, changed_task, fields_of, given_again, plain_task, query_fields


def open_run(name: str, rest: str, directory: Path, device: str, task: Task | None = None) -> Subject:
    """A run by name or path, at its newest or a given checkpoint, with its task, a changed one or another.

    With a changed task it has no `origin`, because findings in the run folder are about the run's task.
    """
    where, step, query = split_name(rest, lambda name: is_known(name, directory))
    if step is not None and not step.isdecimal():
        raise SubjectError(f"{name!r}: the step after '@' must be a number, not {step!r}")
    run = Run.find(where, directory)
    return run_subject(name, run, None if step is None else int(step), device, query, task)


def run_subject(
    name: str, run: Run, step: int | None, device: str, query: str = "", task: Task | None = None
) -> Subject:
    """A run at a checkpoint, by default the newest. With another task than its own it has no `origin`."""
    asked, change = _task(name, run.config, query, task)
    is_own = not change and recorded_as(asked) == recorded_as(run.config.task)
    subject = Subject(name, run.model(step, device), asked, run if is_own else None)
    notes = [change, "" if is_own else _note(run.config, asked)]
    if step is None and not run.is_whole:
        state = "is still being trained" if run.is_training else "was stopped before its end"
        notes.append(f"the newest checkpoint of a run that {state}")
    subject.note = "; ".join(filter(None, notes))
    return subject


def _note(config: RunConfig, task: Task) -> str:
    """A note on what was not trained, where the task differs from that of the config."""
    if task.kind != config.task.kind:
        return f"evaluated with the task {task.kind}, which it was not trained on"
    trained = fields_of(config.task)
    changed = [f"{field}={value}" for field, value in fields_of(task).items() if trained.get(field) != value]
    if not changed:
        return ""
    note = f"evaluated with {', '.join(changed)}"
    if not _is_trained(config, task):
        note += ", which it was not trained on"
    if config.model.positions == "learned" and task.n_ctx > config.task.n_ctx:
        note += f"; its positions from {config.task.n_ctx - 1} on were never trained"
    return note


def _is_trained(config: RunConfig, task: Task) -> bool:
    """Whether the task is that of the config, possibly at another width of its training batches."""
    shortest, width, longest = config.data.shortest, task.width, config.task.width
    if shortest is None or width is None or longest is None:
        return task == config.task
    return shortest <= width <= longest and task == config.task.of_width(width)


def _task(name: str, config: RunConfig, query: str, given: Task | None) -> tuple[Task, str]:
    """The task that is given, else the config's, with the fields of a query changed; and a note where its code has
    changed. Raises TaskMismatchError where fields change the vocabulary, TaskError for a task whose file must be named.
    """
    if given is None and isinstance(config.task, RecordedTask):
        raise config.task.unnamed()
    task, note = (config.task, "") if given is None else given_again(config.task, given)
    changed = changed_task(task, query_fields(name, query))
    if changed.vocabulary != task.vocabulary:
        raise TaskMismatchError(f"{name!r}: the changed task has another vocabulary than the model was trained on")
    return changed, note


def recorded_as(task: Task) -> Mapping[str, Any]:
    """A task as a config records it, but for the path of its file."""
    return {key: value for key, value in plain_task(task).items() if key != "file"}


def open_file(name: str, rest: str, directory: Path, device: str, task: Task | None = None) -> Subject:
    """Weights in a safetensors file, with the config of a run in the same folder."""
    where, _, query = split_name(rest, os.path.isfile)
    path = Path(where)
    if path.suffix != ".safetensors":
        raise SubjectError(f"{name!r}: weights are read from .safetensors files only, never from a pickle")
    weights = read_tensors(path)
    candidates = [path.with_suffix(".json"), path.with_name("config.json")]
    config_path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if config_path is None:
        expected = f"{candidates[0].name} or {candidates[1].name} in the same folder"
        raise CheckpointError(f"no config file for {path}: expected {expected}")
    config = read_config(config_path)
    asked, change = _task(name, config, query, task)
    subject = Subject(name, load_model(config, weights, path).to(device), asked)
    subject.note = change
    return subject
