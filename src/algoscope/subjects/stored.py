"""Subjects from our own files: run folders, and weights with a config beside them.

`?FIELD=VALUE&...` after the name asks the same weights another question: the task with these fields changed.
"""

from pathlib import Path
from urllib.parse import unquote

from algoscope.config import RunConfig, changed_task
from algoscope.core.errors import CheckpointError, SubjectError, TaskMismatchError
from algoscope.runs.run_folder import Run, load_model, read_config, read_tensors
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task


def open_run(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A run by name or path, at its newest or a given checkpoint, asked its own task or another.

    Asked another task, it has no `origin`: what the run folder keeps is about its own.
    """
    rest, _, query = rest.partition("?")
    where, _, step = rest.partition("@")
    if step and not step.isdecimal():
        raise SubjectError(f"{name!r}: the step after '@' must be a number, not {step!r}")
    run = Run.find(where, directory)
    model = run.model(int(step) if step else None, device)
    task = _task(name, run.config, query)
    subject = Subject(name, model, task, run if task == run.config.task else None)
    subject.note = _note(run.config, task)
    return subject


def _note(config: RunConfig, task: Task) -> str:
    """What was not trained, where the task is another than the config's."""
    if task == config.task:
        return ""
    asked = [f"{field}={value}" for field, value in task.model_dump().items() if getattr(config.task, field) != value]
    note = f"asked with {', '.join(asked)}"
    if not _is_trained(config, task):
        note += ", which it was not trained on"
    if config.model.positions == "learned" and task.n_ctx > config.task.n_ctx:
        note += f"; its positions from {config.task.n_ctx - 1} on were never trained"
    return note


def _is_trained(config: RunConfig, task: Task) -> bool:
    """Is the task the config's own, or of one of the widths that its batches have?"""
    shortest, width, longest = config.data.shortest, task.width, config.task.width
    if shortest is None or width is None or longest is None:
        return task == config.task
    return shortest <= width <= longest and task == config.task.of_width(width)


def _task(name: str, config: RunConfig, query: str) -> Task:
    """The config's task with the fields of a query changed. Raises TaskMismatchError where its tokens are others."""
    fields = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in query.split("&")) if key}
    task = changed_task(config.task, fields)
    if task.vocabulary != config.task.vocabulary:
        raise TaskMismatchError(f"{name!r}: that task is written in other tokens than the model was trained on")
    return task


def open_file(name: str, rest: str, directory: Path, device: str) -> Subject:
    """Weights in a safetensors file, with a run's config beside them."""
    rest, _, query = rest.partition("?")
    path = Path(rest)
    if path.suffix != ".safetensors":
        raise SubjectError(f"{name!r}: weights are read from .safetensors files only, never from a pickle")
    weights = read_tensors(path)
    beside = [path.with_suffix(".json"), path.with_name("config.json")]
    config_path = next((candidate for candidate in beside if candidate.is_file()), None)
    if config_path is None:
        raise CheckpointError(f"no config beside {path}: expected {beside[0].name} or {beside[1].name}")
    config = read_config(config_path)
    return Subject(name, load_model(config, weights, path).to(device), _task(name, config, query))
