"""Import of a checkpoint of another tool as our transformer, in passes named by input and output.

file -> named tensors -> layout -> config -> model
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algoscope.config import SHORT, ModelConfig, RunConfig, override, parse_config
from algoscope.core.errors import ConfigError, TaskMismatchError, UnknownNameError
from algoscope.formats.checkpoint_files import CheckpointFile, file_to_tensors
from algoscope.formats.config_inference import Inferred, layout_to_config
from algoscope.formats.layout_reading import LayoutReading, n_unknown_to_layouts, tensors_to_layout
from algoscope.formats.layouts import CHOICES, LAYOUTS
from algoscope.formats.part_reading import n_unknown, parts_to_layout
from algoscope.formats.settling import TRIED, Choices, ImportedModel, settle
from algoscope.formats.stated_configs import VALUES
from algoscope.networks.transformer import Transformer
from algoscope.runs.reading import load_model
from algoscope.tasks.base import Task
from algoscope.tasks.specs import as_task

AXES = {"n_heads": "head", "n_kv_heads": "kv_head", "d_head": "d_head"}


def file_to_model(
    path: Path,
    task: str | Task,
    settings: Mapping[str, Any] | None = None,
    layout: str | None = None,
    act: str | None = None,
    causal: bool | None = None,
    *,
    by_answers: bool = True,
) -> ImportedModel:
    """The model in a file, for a task; the other arguments are those of `import_weights`.

    `by_answers`: what neither weights nor config nor settings determine is settled by the answers to the task, where
    they settle it.

    Raises UnknownNameError for an unknown task, layout or field, ConfigError for an illegal value, CheckpointError for
    a file that cannot be read or whose weights do not fit our transformer, and TaskMismatchError for a model that does
    not fit the task.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    task_fields, chosen = settings_to_fields(task, settings or {}, act, causal)
    base = override(_base(task), task_fields)
    file = file_to_tensors(path)
    read = partial(_read, file, base, cache(partial(_reading, file, layout)), chosen)
    return settle(read) if by_answers else read({})


def _read(
    file: CheckpointFile,
    base: RunConfig,
    reading_of: Callable[..., LayoutReading],
    chosen: Choices,
    tried: Choices,
) -> ImportedModel:
    """The model in a file, with what was chosen by the user, and what is tried where the file leaves it open."""
    set_to = {**chosen, **tried}
    of_model = {name.removeprefix("model."): value for name, value in set_to.items() if name.startswith("model.")}
    read_as = {name.removeprefix("weights."): value for name, value in set_to.items() if name.startswith("weights.")}
    source = str(file.path)
    known_sizes = fields_to_sizes({**file.stated.fields, **of_model})
    reading = reading_of(tuple(sorted(known_sizes.items())), tuple(sorted(read_as.items())))
    inferred = layout_to_config(reading, file.stated, of_model, base.task.n_ctx, source)
    inferred = tuple(row for row in inferred if row.what not in set_to)
    values = {row.what: row.value for row in inferred if not row.what.startswith("weights.")} | of_model
    _check_fit(base.task, values, file.path)
    config = override(base, {f"model.{field}": value for field, value in values.items()})
    pairs = {row.what: row.value for row in inferred} | set_to
    if pairs.get("weights.rotary_pairs") == "neighbours" and config.model.positions == "rotary":
        reading = neighbours_to_halves(reading, config.model)
    weights = layout_to_weights(reading, config.model)
    model = load_model(config, weights, file.path).eval().requires_grad_(False)
    account = (Inferred("layout", reading.layout, reading.how), Inferred("dtype", file.dtype, "as saved"), *inferred)
    for name, value in set_to.items():
        account += (Inferred(name.removeprefix("model."), value, "as asked for" if name in chosen else TRIED),)
    if config.model.d_vocab > base.task.d_vocab:
        unused = config.model.d_vocab - base.task.d_vocab
        account += (Inferred("unused tokens", unused, f"the task has {base.task.d_vocab}"),)
    return ImportedModel(config, model, account, (*reading.left_out, *file.left_out), file)


def _reading(
    file: CheckpointFile,
    layout: str | None,
    known_sizes: tuple[tuple[str, int], ...],
    read_as: tuple[tuple[str, str], ...],
) -> LayoutReading:
    """The weights under our names: by a layout that has all their names, else by the habits of naming."""
    source = str(file.path)
    if layout is None and n_unknown(file.weights) < n_unknown_to_layouts(file.weights):
        return parts_to_layout(file.weights, dict(known_sizes), dict(read_as), source)
    return product_bias_to_output_bias(tensors_to_layout(file.weights, layout, dict(known_sizes), source))


def settings_to_fields(
    task: str | Task, settings: Mapping[str, Any], act: str | None, causal: bool | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task's fields under their full names (`p` is `task.p`), and what is set of the model and of how its weights
    are to be read (`model.n_heads`, `weights.qkv`).
    """
    names = {
        "task": [field for field in type(as_task(task)).model_fields if field != "kind"],
        "model": [field for field in ModelConfig.model_fields if not field.startswith("init_")],
        "weights": list(CHOICES),
    }
    of_task: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, field = (SHORT.get(name) or f"task.{name}" if "." not in name else name).partition(".")
        if section not in names:
            raise UnknownNameError("section of an import", section, names)
        if field not in names[section]:
            whose = f"task {as_task(task).kind}" if section == "task" else section
            raise UnknownNameError(f"field of the {whose}", field, names[section])
        if section == "weights" and value not in CHOICES[field]:
            raise UnknownNameError(f"value of weights.{field}", value, CHOICES[field])
        (of_task if section == "task" else chosen)[f"{section}.{field}"] = value
    if act is not None:
        chosen["model.act_fn"] = VALUES["act_fn"].get(act.lower(), act)
    if causal is not None:
        chosen["model.causal"] = causal
    return of_task, chosen


def _base(task: str | Task) -> RunConfig:
    """A config for an import: no training, and a model with the vocabulary and context of the task."""
    nothing: dict[str, Any] = {"model": {}, "data": {}, "optim": {}, "train": {"steps": 1, "batch": 1}}
    return parse_config({"recipe": "imported", "task": as_task(task), **nothing})


def fields_to_sizes(fields: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of axes given by fields of a config, which may not follow from shapes. Raises ConfigError for 0."""
    sizes = {}
    for field, axis in AXES.items():
        given = str(fields.get(field)).strip()
        if given.isdecimal() and not int(given):
            raise ConfigError(f"model.{field}: a size is 1 or more, not {given}")
        if given.isdecimal():
            sizes[axis] = int(given)
    return sizes


def product_bias_to_output_bias(reading: LayoutReading) -> LayoutReading:
    """The same layout with b_in of a gated feed-forward of TransformerLens moved into b_out, through the output matrix:
    TransformerLens adds it after the product of gate and input, where our feed-forward has no bias.
    """
    if reading.names.name != "transformerlens" or not {"gate", "in.b"} <= reading.parts:
        return reading
    moved, lines = dict(reading.weights), reading.left_out
    if any(bias.any() for bias in reading.every("in.b")):
        lines += (f"{reading.name('in.b')}, which went through {reading.name('out')} into {reading.name('out.b')}",)
    for layer in range(reading.n_layers):
        at = f"blocks.{layer}.mlp"
        after = moved.pop(f"{at}.w_linear.bias")
        out = moved[f"{at}.w_out.weight"]
        moved[f"{at}.w_out.bias"] = moved.get(f"{at}.w_out.bias", torch.zeros_like(out[:, 0])) + out @ after
    return replace(reading, weights=moved, parts=reading.parts - {"in.b"} | {"out.b"}, left_out=lines)


def neighbours_to_halves(reading: LayoutReading, cfg: ModelConfig) -> LayoutReading:
    """The same layout with the entries of queries and keys reordered: entries 2i and 2i + 1, which are rotated
    together, become entry i of each half.
    """
    n, size = cfg.rotary_size, cfg.head_size
    order = torch.tensor([*range(0, n, 2), *range(1, n, 2), *range(n, size)])
    weights = dict(reading.weights)
    for name, value in weights.items():
        if re.search(r"\.attn\.[qk](_norm)?\.", name):
            weights[name] = value.unflatten(0, (-1, size))[:, order].flatten(0, 1).contiguous()
    return replace(reading, weights=weights)


def layout_to_weights(reading: LayoutReading, cfg: ModelConfig) -> dict[str, Tensor]:
    """The state dict of a model of this config. Missing tensors without effect (biases of 0, norm weights of 1) are
    added; tensors without effect (biases and positions of 0, a second copy of a tied embedding) are left out.

    Other tensors that do not fit raise an error when the weights are loaded.
    """
    with torch.device("meta"):
        expected = Transformer(cfg).state_dict()
    weights = dict(reading.weights)
    dtype = weights["embed.weight"].dtype
    for name, value in expected.items():
        if name not in weights and name.endswith(".bias"):
            weights[name] = torch.zeros(value.shape, dtype=dtype)
        elif name not in weights and ("ln" in name or "norm" in name):
            weights[name] = torch.ones(value.shape, dtype=dtype)
    for name in set(weights) - set(expected):
        all_zero = (name.endswith("bias") or name == "pos_embed.weight") and not weights[name].any()
        tied_copy = name == "unembed.weight" and weights[name].equal(weights["embed.weight"])
        unused = name == "pos_embed.weight" and cfg.positions == "alibi"
        if all_zero or tied_copy or unused:
            del weights[name]
    return {name: weights[name] for name in [*expected, *sorted(set(weights) - set(expected))] if name in weights}


def _check_fit(task: Task, values: Mapping[str, Any], path: Path) -> None:
    """Raises TaskMismatchError where the model has fewer tokens, positions or logits than the task needs."""
    described = ", ".join(f"{name}={value}" for name, value in task.model_dump().items() if name != "kind")
    answers = task.edge_inputs()[:, task.prompt_length :]
    needed = {"d_vocab": (task.d_vocab, "tokens"), "n_ctx": (task.n_ctx - 1, "positions")}
    needed["d_vocab_out"] = int(answers.max()) + 1, "logits"
    for field, (least, what) in needed.items():
        if isinstance(values.get(field), int) and values[field] < least:
            raise TaskMismatchError(
                f"{path}: the model has {values[field]} {what}, the task {task.kind} ({described}) needs {least}: "
                "give the task's fields with --set FIELD=VALUE"
            )
