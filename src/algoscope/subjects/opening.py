"""Models by name: `run:add3`, `planted:induction`, `hf:gpt2`, `file:weights.safetensors`."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import torch

from algoscope.core.ambient import find_device, settled
from algoscope.core.arguments import Folder, Form, checked_arguments
from algoscope.core.errors import SubjectError
from algoscope.core.files import user_path
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.subjects.in_memory import open_object, refuse_options
from algoscope.subjects.stored import run_subject
from algoscope.subjects.subject import FLOATS, Subject, float_type
from algoscope.subjects.table import FORMS
from algoscope.tasks.base import Task
from algoscope.tasks.specs import find_task

P = ParamSpec("P")
R = TypeVar("R")
AnyModel = Annotated[
    str | Path | Run | Subject | Callable[..., Any],
    Form(
        "a model: a name such as 'run:add3', 'planted:induction' or 'hf:FOLDER' (what save_pretrained wrote), a Run, "
        "a Subject that ag.open returned, a module of PyTorch, or a function from tokens to logits"
    ),
]
AnyTask = Annotated[
    str | Task | None, Form("a task, such as ag.Addition(n_digits=3), or its name, such as 'addition?n_digits=3'")
]
Floats = Annotated[
    str | torch.dtype | None, Form(f"a type of weights: {', '.join(str(dtype).split('.')[-1] for dtype in FLOATS)}")
]


@settled()
@checked_arguments
def open_subject(
    name: AnyModel,
    *,
    task: AnyTask = None,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: Floats = None,
    runs_dir: Folder = None,
    **options: Any,
) -> Subject:
    """Open a model by name, or one in memory, ready for every lens and verdict.

    - `run:NAME`, `run:NAME@STEP` or `run:PATH`: a run folder, at its newest or a given checkpoint;
    - `planted:NAME`: a model whose weights are set by hand and whose mechanism is known;
    - `hf:ID_OR_PATH`: a Hugging Face model, from a folder, the local cache or, unless offline mode is set, the network;
      `?dtype=bfloat16` after it is its float type (else float32), `?base=FOLDER` the base model of an adapter;
    - `file:PATH.safetensors`: weights with a config file in the same folder;
    - `foreign:PATH?task=T`: weights of another tool;
    - `module:FILE.py:NAME?weights=PATH`: a module of PyTorch, or a class or function without arguments that makes one;
      its code is run. NAME may also be a function from tokens to logits.

    After the name of a run or file, `?FIELD=VALUE` changes a field of its task, for the same weights. A path that
    exists may have `@` and `?` in it; `~` is the home folder.

    A module of PyTorch becomes our transformer, and both must give the same logits. Where it has a part that ours has
    not, it is a black box, as is a function: its logits are all that is known, and its `note` says why.

    Args:
        name: one of these, a `Run`, or the `Path` of a run folder, a Hugging Face folder or a file of weights; a module
            of PyTorch, a model of `transformers`, or any function from tokens [batch pos] to logits
            [batch pos d_vocab], none of which is changed; a subject is returned unchanged.
        task: what the model is asked, as a value or by name; None: the task that it was trained on.
        tokenizer: one of `transformers` or `tokenizers`, or the characters of the tokens in order; None: its own, or
            the vocabulary of the task.
        device: a PyTorch device, such as `cpu` or `cuda`; None: `cpu`, and for a `Transformer` or a black box where it
            is.
        dtype: the float type of the weights, such as `float64`; None: that in which they are stored, and float32 for
            `hf:`.
        runs_dir: the folder of runs; None: `$ALGOSCOPE_RUNS`, else `runs`.
        options: for a module or a function: `n_ctx`, the longest input in tokens.
    Returns:
        The model as a `Subject`.
    Raises:
        RunFolderError: for an unknown run.
        CheckpointError: for weights that are missing, truncated or do not fit.
        UnknownNameError: for an unknown planted model or option.
        SubjectError: for a name of another form, and for an unsupported architecture.
        OwnCodeError: for a file of one's own that cannot be run.
        TaskMismatchError: for a task that needs more tokens, logits or positions than the model has.

    Example:
        >>> import algoscope as ag, torch
        >>> ag.open("planted:reversal").generate("abcde")
        'edcba<EOS>'
        >>> always_zero = lambda tokens: -torch.arange(9.0).expand(*tokens.shape, 9)
        >>> ag.open(always_zero, task=ag.Modular(p=5)).generate("1+2")
        '0'
    """
    wanted = {
        "task": find_task(task) if isinstance(task, str) else task,
        "tokenizer": tokenizer,
        "device": None if device is None else find_device(device),
        "dtype": float_type(dtype),
    }
    if isinstance(name, Subject):
        name.require_finite()
        refuse_options(options)
        return _changed(name, **wanted)
    device = str(find_device("cpu" if device is None else device))
    if isinstance(name, Run):
        refuse_options(options)
        opened = run_subject(f"run:{name.name}", name, None, device, task=wanted["task"])
        return _changed(opened, tokenizer=tokenizer, dtype=wanted["dtype"])
    if not isinstance(name, str | Path):
        return open_object(name, options=options, **wanted)
    refuse_options(options)
    return _by_name(name, runs_dir, device, wanted)


def _by_name(name: str | Path, runs_dir: Folder, device: str, wanted: Mapping[str, Any]) -> Subject:
    """A model by its name; what its opener does not do itself is done to the model that it opens."""
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
    takes = inspect.signature(opener).parameters
    directly = {key: value for key, value in wanted.items() if key in takes and key != "device"}
    left = {key: value for key, value in wanted.items() if key not in takes}
    return _changed(opener(name, rest, runs_directory(runs_dir), device, **directly), **left)


def _changed(
    subject: Subject,
    task: Task | None = None,
    tokenizer: Any = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Subject:
    """The subject with another task, tokenizer, device or float type."""
    if task is not None or tokenizer is not None:
        subject = subject.with_task(task, tokenizer)
    if device not in (None, subject.device):
        subject = subject.with_model(copy.deepcopy(subject.model).to(device))
    return subject if dtype in (None, subject.dtype) else subject.to_dtype(dtype)


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
