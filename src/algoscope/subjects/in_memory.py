"""Models in memory: modules of PyTorch, models of `transformers`, functions; `module:FILE.py:NAME` makes one."""

import copy
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from algoscope.core.ambient import find_device
from algoscope.core.errors import (
    CheckpointError,
    SubjectError,
    TaskMismatchError,
    UnknownNameError,
    shown,
    with_article,
)
from algoscope.core.files import user_path
from algoscope.core.own_code import load_named, reason, running
from algoscope.core.registry import Entry, Table
from algoscope.formats.checkpoint_files import file_to_tensors
from algoscope.formats.own_modules.safe_copy import unwrapped
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import split_name
from algoscope.subjects._task_inference import task_of_model
from algoscope.subjects._tokenizers import text_of
from algoscope.subjects.black_box import black_box
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.specs import as_task, query_fields, take_task

COMMON = ("task", "tokenizer", "device", "dtype", "runs_dir")  # options of every model
LOADED = Table(
    "kind of model",
    {
        "transformers": Entry("algoscope.subjects.huggingface:open_model_object", "a model of transformers"),
        "module": Entry("algoscope.subjects.own_module:open_module", "a module of PyTorch"),
    },
)


def open_object(
    model: Callable[..., Any],
    name: str | None = None,
    task: Task | None = None,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    options: Mapping[str, Any] | None = None,
) -> Subject:
    """A model in memory, converted to our transformer; else, where there is a task or tokenizer, a black box.

    Raises SubjectError for what is no model, and why a model cannot be opened.
    """
    name = name or _name_of(model)
    if isinstance(model, type):
        raise SubjectError(f"{name} is a class: give one that was made, such as {name}()")
    n_ctx = _longest(model, options or {})
    if isinstance(model, Transformer):
        ours = copy.deepcopy(model).to(device or model.embed.weight.device, dtype)
        task, line = (task, "") if task is None else task_of_model(ours, task, ours.cfg.n_ctx)
        subject = Subject(name, ours, task, text=text_of(tokenizer, model.cfg.d_vocab))
        subject.note = line
        return subject
    if not isinstance(model, nn.Module):
        return black_box(model, name, task, tokenizer, device, dtype, n_ctx=n_ctx)
    try:
        return _converted(model, name, task, tokenizer, device, dtype, n_ctx)
    except SubjectError as error:
        if task is None and tokenizer is None:
            way = "with a task (task=, --task) or a tokenizer it serves as a black box, of which only logits are known"
            raise SubjectError(f"{name} is not converted: {error}; {way}") from error
        why = f"a module that is not converted ({error})"
        try:
            return black_box(model, name, task, tokenizer, device, dtype, why, n_ctx)
        except SubjectError as other:
            raise SubjectError(
                f"{name} is not converted: {error}; nor does it serve as a black box: {other}"
            ) from error


def _converted(
    model: nn.Module,
    name: str,
    task: Task | None,
    tokenizer: Any,
    device: str | torch.device | None,
    dtype: torch.dtype | None,
    n_ctx: int | None,
) -> Subject:
    if _is_of_transformers(model):
        inner = unwrapped(model)
        opened: Subject = LOADED.load("transformers")(inner, name, tokenizer, find_device(device or "cpu"), dtype)
        return opened if task is None else opened.with_task(task)
    others = (tokenizer, find_device(device or "cpu"), dtype, n_ctx)
    try:
        opened = LOADED.load("module")(model, name, task, *others)
    except TaskMismatchError:
        opened = LOADED.load("module")(model, name, None, *others)
    return opened if task is None else _with_task(opened, task, tokenizer)


def _with_task(opened: Subject, task: Task, tokenizer: Any) -> Subject:
    """The subject with the format of the task that its model knows."""
    found, line = task_of_model(opened.model, task, opened.cfg.n_ctx if opened.cfg.positions == "learned" else None)
    if opened.has_task and found == opened.task:
        return opened
    changed = Subject(opened.name, opened.model, found, text=text_of(tokenizer, opened.cfg.d_vocab))
    changed.note = "; ".join(filter(None, (line, opened.note)))
    return changed


def _is_of_transformers(model: Any) -> bool:
    """Whether a model is one of `transformers`, which is not loaded to find out."""
    return isinstance(model, nn.Module) and any(
        kind.__name__ == "PreTrainedModel" for kind in type(unwrapped(model)).__mro__
    )


def _longest(model: Any, options: Mapping[str, Any]) -> int | None:
    """The longest input that the option `n_ctx` asks for; models with a config of their own do not have the option."""
    has_config = isinstance(model, Transformer) or _is_of_transformers(model)
    refuse_options(options, [] if has_config else ["n_ctx"])
    n_ctx = options.get("n_ctx")
    if n_ctx is not None and (type(n_ctx) is not int or n_ctx < 1):
        raise SubjectError(f"n_ctx must be a number of tokens from 1 on, not {shown(n_ctx)}")
    return n_ctx


def refuse_options(options: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Raises UnknownNameError for an option that a model of this kind does not have."""
    for option in options:
        if option not in known:
            raise UnknownNameError("option of open()", option, [*COMMON, *known])


def _name_of(model: Callable[..., Any]) -> str:
    """A name for a model that was not opened by name: that of its class, or of the function."""
    named = model if isinstance(model, type) or inspect.isroutine(model) else type(model)
    return named.__name__.strip("<>")


# ---------------------------------------------------------------------- from a file


def open_named(
    name: str,
    rest: str,
    directory: Path,
    device: str,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    task: Task | None = None,
) -> Subject:
    """The model of `module:FILE.py:NAME?weights=PATH&task=T`, and options of `open_module` after it.

    NAME is a module, or a class or function without required arguments that makes one; or a function from tokens to
    logits. `weights` is a file with its state dictionary.
    """
    address, _, query = split_name(rest, _names_file)
    fields = query_fields(name, query)
    weights, wanted = fields.pop("weights", None), take_task(name, fields, task)
    value, code = load_named(address, "a model", callable)
    model: Any = value
    if _makes_one(model, address):
        with running(code.path):
            model = model()
        if isinstance(model, type) or not callable(model):
            kind = with_article(type(model).__name__)
            raise SubjectError(f"{address}() makes {kind}, not a model: return an nn.Module")
    if weights is not None:
        model = _with_weights(model, address, user_path(weights))
    options = {key: int(text) if text.isdecimal() else text for key, text in fields.items()}
    with redirect_stdout(sys.stderr):  # a module may print as it runs
        return open_object(model, name, None if wanted is None else as_task(wanted), tokenizer, device, dtype, options)


def _names_file(address: str) -> bool:
    file, _, name = address.rpartition(":")
    return os.path.isfile(file) and name.replace(".", "").isidentifier()  # noqa: PTH113  # that of Path may raise


def _makes_one(value: Any, address: str) -> bool:
    """Whether a name stands for what makes a model: a class, or a function that needs no argument. A function that
    needs one is a model, from tokens to logits, and so is any other object.
    """
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, functools.partial)):
        return False
    try:
        parameters = list(inspect.signature(value).parameters.values())
    except ValueError:  # of some functions in C it is not known
        parameters = []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]
    if len(needed) == 1 and not inspect.isclass(value):
        return False
    if needed:
        raise SubjectError(
            f"{address} needs {', '.join(needed)}: write a function without arguments in the file, which makes the "
            "model, and name that"
        )
    return True


def _with_weights(model: Any, address: str, path: Path) -> nn.Module:
    """A copy of the module with the weights of a file."""
    if not isinstance(model, nn.Module):
        raise SubjectError(f"{address} is no module of PyTorch, so it takes no weights: leave out weights={path}")
    tensors, loaded = file_to_tensors(path).weights, copy.deepcopy(model)
    weights = {key.removeprefix("_orig_mod.").removeprefix("module."): value for key, value in tensors.items()}
    try:
        loaded.load_state_dict(weights)
    except Exception as error:  # a module may read its weights in its own way
        raise CheckpointError(f"the weights in {path} do not fit {address}: {reason(error)}") from error
    return loaded
