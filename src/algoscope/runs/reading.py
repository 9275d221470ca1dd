"""Reading the files of a run. One that is missing, damaged or does not fit is one line that names it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from algoscope.config import RunConfig, parse_config
from algoscope.core.errors import CheckpointError, RunFolderError
from algoscope.core.finding import Finding
from algoscope.networks.lora import add_updates
from algoscope.networks.transformer import Transformer
from algoscope.runs.summary import RunSummary

Weights = Mapping[str, Tensor]
FLOATS = ("float32", "float64", "bfloat16", "float16")
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)  # of JSON that is not ours


LOGGED = ("loss", "train_accuracy", "lr", "examples", "seconds")  # numbers in a row of metrics


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises CheckpointError where it is missing, truncated or of another format."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}); restore it or train again") from error


def read_config(path: Path) -> RunConfig:
    """A `config.json`. Raises RunFolderError where it is missing, truncated, or no valid config."""
    try:
        return parse_config(json.loads(path.read_text("utf-8")))
    except DAMAGED as error:
        raise RunFolderError(f"{path} cannot be read as a config: {_why(error)}") from error


def read_summary(path: Path) -> RunSummary:
    """A `run.json`. Raises RunFolderError where it is damaged, and for numbers that are not finite."""
    try:
        summary = RunSummary.model_validate(json.loads(path.read_text("utf-8")))
    except DAMAGED as error:
        raise RunFolderError(f"{path} cannot be read: {_why(error)}") from error
    for name, value in summary:
        if isinstance(value, float) and not math.isfinite(value):
            raise RunFolderError(f"{path} cannot be read: {name} is {value}")
    return summary


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a crash has truncated is left out. Raises RunFolderError, naming
    the line, where another is damaged.
    """
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _ = int(row["step"]), *(float(row[name]) for name in LOGGED if name in row)
        except DAMAGED as error:
            if number == len(lines):
                break
            raise RunFolderError(f"{path} is damaged at line {number} ({_why(error)}): restore it") from error
        rows.append(row)
    return rows


def read_finding(path: Path) -> Finding:
    """A stored finding. Raises RunFolderError where it is damaged."""
    try:
        return Finding.from_json(path.read_text("utf-8"))
    except DAMAGED as error:
        raise RunFolderError(f"{path} cannot be read as a finding: {_why(error)}; delete it") from error


def read_numbers(path: Path, measure: str, weights_sha256: str) -> dict[str, float] | None:
    """Stored values of a measure; None where they are missing or damaged, or of another measure or other weights."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        if (kept["measure"], kept["weights_sha256"]) != (measure, weights_sha256):
            return None
        return {name: math.nan if value is None else float(value) for name, value in kept["numbers"].items()}
    except DAMAGED:
        return None


def first_difference(one: RunConfig, other: RunConfig) -> tuple[str, Any, Any] | None:
    """The first field in which two configs differ, by its dotted name, with both values; None where they agree."""

    def within(ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str) -> tuple[str, Any, Any] | None:
        for key in dict.fromkeys((*ours, *theirs)):
            a, b = ours.get(key), theirs.get(key)
            if f"{at}{key}" == "task.file":  # the path as it was typed: the hash says whether it is the same code
                continue
            if isinstance(a, Mapping) and isinstance(b, Mapping):
                if inner := within(a, b, f"{at}{key}."):
                    return inner
            elif a != b:
                return f"{at}{key}", a, b
        return None

    return within(one.model_dump(), other.model_dump(), "")


def load_model(config: RunConfig, weights: Weights, origin: Path) -> Transformer:
    """A model with these weights. Raises CheckpointError, naming the first tensor that does not fit the config."""
    if config.model.n_layers > len(weights):
        raise CheckpointError(f"{origin} has {len(weights)} tensors, too few for {config.model.n_layers} layers")
    try:
        with torch.device("meta"):
            model = Transformer(config.model)
            if config.start is not None:
                add_updates(model, config.start)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise CheckpointError(f"{origin}: no model has the sizes of its config ({_why(error)})") from error
    expected = model.state_dict()
    for name in sorted(set(expected) | set(weights)):
        if name not in weights or name not in expected:
            what = "lacks the tensor" if name not in weights else "has a tensor that the config does not have:"
            raise CheckpointError(f"{origin} {what} {name!r}")
        if weights[name].shape != expected[name].shape:
            got, wanted = list(weights[name].shape), list(expected[name].shape)
            raise CheckpointError(f"{origin}: {name!r} has shape {got}, the config expects {wanted}")
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights.values()})
    if len(kinds) != 1 or kinds[0] not in FLOATS:
        raise CheckpointError(
            f"{origin} has weights of the type {' and '.join(kinds)}: write all as one of {', '.join(FLOATS)}"
        )
    model.load_state_dict(dict(weights), assign=True)
    return model


def _why(error: BaseException) -> str:
    """What an error says, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]!r}"
    return " ".join(str(error).split())
