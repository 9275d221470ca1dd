"""Subjects from our own files: run folders, and weights with a config file.

`?FIELD=VALUE&...` after the name changes fields of the task, for the same weights.
"""

import os
from pathlib import Path

from algoscope.config import RunConfig
from algoscope.core.errors import CheckpointError, SubjectError, TaskMismatchError
from algoscope.runs.paths import is_known, split_name
from algoscope.runs.reading import load_model, read_config, read_tensors
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.specs import changed_task, query_fields


def open_run(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A run by name or path, at its newest or a given checkpoint, with its task or a changed one.

    With a changed task it has no `origin`, because findings in the run folder are about the run's task.
    """
    where, step, query = split_name(rest, lambda name: is_known(name, directory))
    if step is not None and not step.isdecimal():
        raise SubjectError(f"{name!r}: the step after '@' must be a number, not {step!r}")
    run = Run.find(where, directory)
    return run_subject(name, run, None if step is None else int(step), _task(name, run.config, query), device)


def run_subject(name: str, run: Run, step: int | None, task: Task, device: str) -> Subject:
    """A run at a checkpoint, by default the newest. With another task than its own it has no `origin`."""
    model = run.model(step, device)
    subject = Subject(name, model, task, run if task == run.config.task else None)
    notes = [_note(run.config, task)]
    if step is None and not run.is_whole:
        state = "is still being trained" if run.is_training else "was stopped before its end"
        notes.append(f"the newest checkpoint of a run that {state}")
    subject.note = "; ".join(filter(None, notes))
    return subject


def _note(config: RunConfig, task: Task) -> str:
    """A note on what was not trained, where the task differs from that of the config."""
    if task == config.task:
        return ""
    changed = [f"{field}={value}" for field, value in task.model_dump().items() if getattr(config.task, field) != value]
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


def _task(name: str, config: RunConfig, query: str) -> Task:
    """The config's task with the fields of a query changed. Raises TaskMismatchError where the vocabulary differs."""
    task = changed_task(config.task, query_fields(name, query))
    if task.vocabulary != config.task.vocabulary:
        raise TaskMismatchError(f"{name!r}: the changed task has another vocabulary than the model was trained on")
    return task


def open_file(name: str, rest: str, directory: Path, device: str) -> Subject:
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
    return Subject(name, load_model(config, weights, path).to(device), _task(name, config, query))
