"""Weights of other tools: `foreign:PATH` opens them, `import_weights` makes a run folder of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch

from algoscope.config import SHORT, ModelConfig, RunConfig, override, parse_config
from algoscope.core.errors import SubjectError, TaskMismatchError, UnknownNameError
from algoscope.formats.checkpoint_files import ForeignFile, read_foreign
from algoscope.formats.config_inference import Inferred, bias_after_product, infer, settle
from algoscope.formats.layout_reading import read_layout
from algoscope.formats.layouts import LAYOUTS
from algoscope.formats.transformerlens import ACTIVATIONS
from algoscope.networks.evaluation import evaluate
from algoscope.networks.shared_prefixes import shared_logits
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run, load_model, weights_hash
from algoscope.runs.summary import ImportedFrom, Inference, RunSummary
from algoscope.subjects.subject import Subject
from algoscope.tasks.base import Task
from algoscope.tasks.table import TASKS

ASKED = 2_000  # inputs that an imported model answers at once, to show whether it was understood
AXES = {"n_heads": "head", "n_kv_heads": "kv_head", "d_head": "d_head"}


@dataclass(frozen=True, eq=False)
class Imported:
    """A model of another tool as one of ours: everything it depends on, and how each fact about it was found."""

    config: RunConfig
    model: Transformer
    account: tuple[Inferred, ...]
    left_out: tuple[str, ...]
    file: ForeignFile


def import_weights(
    path: str | Path,
    task: str,
    *,
    settings: Mapping[str, Any] | None = None,
    layout: str | None = None,
    act: str | None = None,
    causal: bool | None = None,
    name: str | None = None,
    runs_dir: str | Path | None = None,
) -> Run:
    """A run folder, whole, with the weights of a file that another tool has written; its only checkpoint is step 1.

    `task` is one of `TASKS`. `settings` are the task's fields (`{"p": 59, "form": "ab"}`) and fields of the model's
    config (`model.n_heads`), which win over what is inferred. `layout` names one of `LAYOUTS` where names and shapes do
    not settle it, `act` the activation, `causal` the mask. By default the run is called as the file.

    The summary's `imported` says what was inferred and how, and what was left out of the file; `test_accuracy` and
    `loss` are those of up to 2,000 of the task's inputs. Raises what `read_imported` raises, and RunFolderError where
    there is such a run.
    """
    found = read_imported(Path(path), task, settings or {}, layout, act, causal)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path).stem).lstrip("._-")
    run = Run.create(runs_directory(runs_dir) / (name or stem or "imported"), found.config)
    weights = found.model.state_dict()
    run.save_checkpoint(1, weights, {})
    run.finish(
        RunSummary.of(
            found.config,
            steps=0,
            examples=0,
            seconds=0.0,
            **answers_of(found.config, found.model),
            parameters=sum(weight.numel() for weight in weights.values()),
            weights_sha256=weights_hash(weights),
            imported=ImportedFrom(
                file=found.file.path.name,
                sha256=found.file.sha256,
                account=tuple(Inference(what=row.what, value=row.value, how=row.how) for row in found.account),
                left_out=found.left_out,
            ),
        )
    )
    return run


def open_foreign(name: str, rest: str, directory: Path, device: str) -> Subject:
    """A model from `PATH?task=T&FIELD=VALUE...`, percent-encoded where a value has `&`, `=` or `%`.

    Beside the fields that `import_weights` takes as settings there are `layout`, `act` and `causal` (true or false).
    Raises SubjectError without a task, and what `read_imported` raises.
    """
    path, _, query = rest.partition("?")
    given = {key: unquote(value) for key, _, value in (pair.partition("=") for pair in query.split("&")) if key}
    task = given.pop("task", None)
    if task is None:
        raise SubjectError(
            f"{name!r} does not say which task the model was made for: write {name}{'&' if query else '?'}task=modular "
            f"(known: {', '.join(TASKS)}), and the task's fields after it, such as &p=113&form=ab%3D"
        )
    causal = given.pop("causal", None)
    if causal not in (None, "true", "false"):
        raise SubjectError(f"{name!r}: causal is true or false, not {causal!r}")
    layout, act = given.pop("layout", None), given.pop("act", None)
    masked = None if causal is None else causal == "true"
    found = read_imported(Path(path), task, given, layout, act, masked)
    return Subject(name, found.model.to(device), found.config.task)


def read_imported(
    path: Path, task: str, settings: Mapping[str, Any], layout: str | None, act: str | None, causal: bool | None
) -> Imported:
    """The model in a file, for a task; the arguments are those of `import_weights`.

    Raises UnknownNameError for a task, layout or field that there is not, ConfigError for a value that a field cannot
    take, CheckpointError for a file that cannot be read or whose weights are no model of ours, and TaskMismatchError
    for a model that the task does not fit.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    asked = _asked(task, settings, act, causal)
    of_task = {field: value for field, value in asked.items() if field.startswith("task.")}
    of_model = {field.removeprefix("model."): value for field, value in asked.items() if field not in of_task}
    base = override(_base(task), of_task)
    file = read_foreign(path)
    told = {**file.said.fields, **of_model}
    sizes = {axis: int(told[field]) for field, axis in AXES.items() if str(told.get(field)).isdecimal()}
    reading = bias_after_product(read_layout(file.weights, layout, sizes, str(path)))
    rows = infer(reading, file.said, of_model, base.task.n_ctx, str(path))
    values = {row.what: row.value for row in rows} | of_model
    _check_fit(base.task, values, path)
    config = override(base, {f"model.{field}": value for field, value in values.items()})
    model = load_model(config, settle(reading, config.model), path).eval().requires_grad_(False)
    account = (Inferred("layout", reading.layout, reading.how), Inferred("dtype", file.dtype, "as saved"), *rows)
    account += tuple(Inferred(field, value, "as asked for") for field, value in of_model.items())
    if config.model.d_vocab > base.task.d_vocab:
        unused = config.model.d_vocab - base.task.d_vocab
        account += (Inferred("unused tokens", unused, f"the task has {base.task.d_vocab}"),)
    return Imported(config, model, account, reading.left_out, file)


def _base(task: str) -> RunConfig:
    """A config in which nothing is trained; the model is only as large as the task."""
    nothing: dict[str, Any] = {"model": {}, "data": {}, "optim": {}, "train": {"steps": 1, "batch": 1}}
    TASKS[task]  # raises with the known names
    return parse_config({"recipe": "imported", "task": {"kind": task}, **nothing})


def _asked(task: str, settings: Mapping[str, Any], act: str | None, causal: bool | None) -> dict[str, Any]:
    """The settings by their full names: `p` is a field of the task."""
    of_model = [field for field in ModelConfig.model_fields if not field.startswith("init_")]
    fields = {"task": [field for field in TASKS.load(task).model_fields if field != "kind"], "model": of_model}
    asked: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, field = (SHORT.get(name) or f"task.{name}" if "." not in name else name).partition(".")
        if section not in fields:
            raise UnknownNameError("section of an import", section, fields)
        if field not in fields[section]:
            whose = f"task {task}" if section == "task" else section
            raise UnknownNameError(f"field of the {whose}", field, fields[section])
        asked[f"{section}.{field}"] = value
    if act is not None:
        asked["model.act_fn"] = ACTIVATIONS.get(act, act)
    if causal is not None:
        asked["model.causal"] = causal
    return asked


def _check_fit(task: Task, values: Mapping[str, Any], path: Path) -> None:
    """Raises TaskMismatchError where the model has fewer tokens, positions or logits than the task needs."""
    told = ", ".join(f"{name}={value}" for name, value in task.model_dump().items() if name != "kind")
    answers = task.edge_cases()[:, task.prompt_length :]
    needed = {"d_vocab": (task.d_vocab, "tokens"), "n_ctx": (task.n_ctx - 1, "positions")}
    needed["d_vocab_out"] = int(answers.max()) + 1, "logits"
    for field, (least, what) in needed.items():
        if isinstance(values.get(field), int) and values[field] < least:
            raise TaskMismatchError(
                f"{path}: the model has {values[field]} {what}, the task {task.kind} ({told}) needs {least}: "
                "give the task's fields with --set FIELD=VALUE"
            )


@torch.no_grad()
def answers_of(config: RunConfig, model: Transformer) -> dict[str, float]:
    """Loss in nats per answer position and the share of whole answers that are right, over all inputs or a sample."""
    task = config.task
    some = torch.arange(task.domain_size) if task.domain_size <= ASKED else None
    draw = torch.Generator().manual_seed(0)
    tokens = task.sample(ASKED, draw) if some is None else task.at(some)
    at = task.answer_slice
    loss, accuracy = evaluate(task, tokens, lambda some: shared_logits(model, some[:, :-1], at), at, config.train)
    return {"loss": loss, "test_accuracy": accuracy}
