"""Tasks by name and from files of one's own, `modular?p=59`, `max_of_two.py:MaxOfTwo?k=3`; how a config has them.

A config records a task of one's own by class, file and hash. Reading one never runs that code: the task is known where
its class is loaded already, because the user named its file or defined it, and else stands as a `RecordedTask`.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import unquote

from jaxtyping import Int
from pydantic import ValidationError
from torch import Tensor

from algoscope.core.errors import ConfigError, SubjectError, TaskError, UnknownNameError
from algoscope.core.own_code import load_named
from algoscope.core.sections import first_fault
from algoscope.tasks._plain import Inputs
from algoscope.tasks.base import Task, Tokens
from algoscope.tasks.table import TASKS


def find_task(spec: str) -> Task:
    """The task that a text names: `NAME`, `FILE.py:CLASS`, either with fields, `?FIELD=VALUE&...`.

    The code of a file runs, because it is named.

    Raises:
        UnknownNameError: for an unknown task or field.
        OwnCodeError: for a file that cannot be run, and a name in it that is no task.
        ConfigError: for an illegal value of a field.
        TaskError: for a task that contradicts itself.
    """
    end_of_file = spec.find(".py:") + 1  # a path may have a '?'
    name, _, query = spec[end_of_file:].partition("?")
    name, fields = spec[:end_of_file] + name, query_fields(spec, query)
    if ":" not in name and not name.endswith(".py"):
        return changed_task(TASKS.load(name)(), fields)
    value, _ = load_named(name, "a task, a class that inherits from ag.Task", _is_task)
    if isinstance(value, Task):
        return changed_task(value, fields)
    assert isinstance(value, type)
    return validated(value, fields, f"task {value.__name__}")


def as_task(task: Task | str) -> Task:
    """A task, or the one that a text names."""
    return find_task(task) if isinstance(task, str) else task


def _is_task(value: object) -> bool:
    return isinstance(value, Task) or (isinstance(value, type) and issubclass(value, Task) and value is not Task)


def query_fields(name: str, query: str) -> dict[str, str]:
    """`FIELD=VALUE&...` as a mapping, percent-decoded. Raises SubjectError for a field without value or given twice."""
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    for field, equals, _ in pairs:
        if not field or not equals or [other for other, _, _ in pairs].count(field) > 1:
            raise SubjectError(f"{name!r}: write {field or 'FIELD'}=VALUE after the '?', each field once")
    return {field: unquote(value) for field, _, value in pairs}


def take_task(name: str, fields: dict[str, str], task: Task | None) -> Task | str | None:
    """The task of a model: that of `?task=`, which is taken out of the fields of its name, or the one given beside it.

    Raises SubjectError where there are both.
    """
    spec = fields.pop("task", None)
    if spec is not None and task is not None:
        raise SubjectError(f"{name!r} names a task, and so does --task (task=): leave out one")
    return task if spec is None else spec


def changed_task(task: Task, fields: Mapping[str, object]) -> Task:
    """The task with some fields changed. Raises UnknownNameError for an unknown field, ConfigError for an illegal
    value.
    """
    return validated(type(task), {**fields_of(task), **fields}, f"task {task.kind}") if fields else task


def validated(kind: type[Task], fields: Mapping[str, object], name: str) -> Task:
    """A task of a class. Errors name the fields, and stand for `name`."""
    known = [field for field in kind.model_fields if field != "kind"]
    for field in fields:
        if field not in known:
            raise UnknownNameError(f"field of the {name}", field, known)
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        raise first_fault(error, kind, name) from error


def fields_of(task: Task) -> dict[str, Any]:
    """The fields of a task as plain values, without its kind."""
    return {field: value for field, value in task.model_dump().items() if field != "kind"}


# ---------------------------------------------------------------------- in a config


def plain_task(task: Task, mode: str = "json") -> dict[str, Any]:
    """A task as a config records it: its kind and fields; one of your own as class, file, hash and fields."""
    if isinstance(task, RecordedTask):
        return {"class": task.kind, "file": task.file, "sha256": task.sha256, "fields": dict(task.fields)}
    plain = task.model_dump(mode=mode)
    if (source := type(task).source) is None:
        return plain
    del plain["kind"]
    return {"class": class_name(type(task)), "file": _typed(source.path), "sha256": source.sha256, "fields": plain}


def parsed_task(plain: object) -> Task:
    """The task that a config records. Raises ValueError and ValidationError, as pydantic asks of a validator."""
    if isinstance(plain, Task):
        return plain
    if not isinstance(plain, Mapping):
        raise ConfigError("give a task, such as ag.Modular(p=5), or its fields with their kind")
    if "class" not in plain:
        return _shipped(plain)
    try:
        record = RecordedTask(
            kind=plain["class"], file=plain["file"], sha256=plain["sha256"], fields=dict(plain["fields"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("a task of your own is recorded by class, file, sha256 and fields") from error
    kind = next((kind for kind in _loaded(record.kind) if kind.source.sha256 == record.sha256), None)
    return record if kind is None else kind.model_validate(record.fields)


def _shipped(plain: Mapping[str, Any]) -> Task:
    if "kind" not in plain:
        raise ConfigError("a task has a 'kind', such as 'modular', beside its fields")
    kind = plain["kind"]
    if not isinstance(kind, str) or kind not in TASKS:
        raise UnknownNameError("task", kind, TASKS)
    task: Task = TASKS.load(kind).model_validate(dict(plain))
    return task


def code_address(task: Task) -> str | None:
    """`FILE.py:CLASS` of a task of one's own, for another process that is to load it."""
    source = type(task).source
    return f"{source.path}:{class_name(type(task))}" if source is not None and source.is_importable else None


def typed_address(task: Task) -> str | None:
    """`FILE.py:CLASS` of a task of one's own, as it is typed; None for others, and where no file has it."""
    source = type(task).source
    return None if source is None or source.path is None else f"{_typed(source.path)}:{class_name(type(task))}"


def is_only_here(task: Task) -> bool:
    """Whether other processes cannot load the class of a task: it is of a notebook or a script that runs."""
    source = type(task).source
    return source is not None and not source.is_importable


def class_name(kind: type) -> str:
    """The name of a class in its file, dotted where it is within another class."""
    return kind.__qualname__.rpartition("<locals>.")[2]


def _typed(path: Path | None) -> str | None:
    """A path as it is typed from the working directory."""
    if path is None:
        return None
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _loaded(name: str) -> list[Any]:
    """The classes of one's own of a name that are loaded, the newest first."""

    def below(kind: type[Task]) -> Iterator[type[Task]]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    return [kind for kind in below(Task) if class_name(kind) == name and vars(kind).get("source")][::-1]


class RecordedTask(Task):
    """A task of one's own whose code is not loaded: what a config says of it. Whatever needs the code says so."""

    kind: str
    file: str | None
    sha256: str
    fields: Mapping[str, Any]

    @property
    def address(self) -> str:
        return f"{self.file or 'FILE.py'}:{self.kind}"

    def unnamed(self) -> TaskError:
        """Why the task cannot be used, and the way out."""
        other = "; the code of that name that is loaded is another version" if _loaded(self.kind) else ""
        if self.file is None:
            where = "defined in a notebook, a prompt or a script"
            return TaskError(f"the task is {self.kind}, {where}: give it again, as task={self.kind}(){other}")
        return TaskError(
            f"the task is {self.kind} of {self.file}, code of your own, which runs only where you name it: give --task "
            f"{quote(self.address)}, or task={self.address!r} in Python{other}"
        )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        raise self.unnamed()

    @cached_property
    def _inputs(self) -> Inputs:
        raise self.unnamed()

    def completed(self, prompts: Int[Tensor, "batch read"]) -> Tokens:
        raise self.unnamed()


def given_again(recorded: Task, task: Task) -> tuple[Task, str]:
    """The task with which to open what was trained on `recorded`, where the user gives `task`, and a note where its
    code is another. Fields that are not given are those that were recorded.
    """
    if isinstance(recorded, RecordedTask):
        name, fields = recorded.kind, recorded.fields
    else:
        name, fields = class_name(type(recorded)), fields_of(recorded)
    if class_name(type(task)) != name:
        return task, ""
    given = {field: value for field, value in fields_of(task).items() if field in task.model_fields_set}
    task = validated(type(task), {**fields, **given}, f"task {task.kind}")
    then, now = (plain_task(one).get("sha256", "") for one in (recorded, task))
    if then == now:
        return task, ""
    return task, f"the code of {name} has changed since the run was trained: sha256 {then[:12]} then, {now[:12]} now"
