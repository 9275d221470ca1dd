"""Adapters (LoRA) in the format of the package `peft`: read, and merged into the weights of their base model."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from algoscope.core.errors import CheckpointError, SubjectError
from algoscope.formats.checkpoint_files import file_to_tensors

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
READ = frozenset({
    "peft_type", "task_type", "revision", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern",
    "alpha_pattern", "init_lora_weights", "target_modules",
})  # fmt: skip
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "inference_mode", "lora_dropout", "peft_version", "megatron_core", "eva_config", "corda_config",
    "loftq_config", "qalora_group_size",
    # what the files themselves say: which matrices, layers, biases and whole modules, and how a matrix is stored
    "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "bias", "fan_in_fan_out",
})  # fmt: skip
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""How A and B may have started: the others change the weights of the base model too."""
PAIR = re.compile(r"(?P<module>.+)\.lora_(embedding_)?(?P<side>[AB])(\.weight)?")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder or a repository."""

    settings: Mapping[str, Any]
    base: str
    """The folder or repository of its base model."""
    file: Path
    """Its weights."""


def find_adapter(name: str, rest: str, base: str | None, offline: bool) -> Adapter | None:
    """The adapter at a place; None where there is none. `base` overrides the base model that it names.

    Raises SubjectError, naming `name`, for one of another kind, or with a setting that a merged matrix cannot have.
    """
    config = find_adapter_config_file(rest, local_files_only=offline)
    if config is None:
        if any((Path(rest) / file).exists() for file in WEIGHTS):
            raise SubjectError(f"{name} is an adapter without an adapter_config.json, which says how it is scaled")
        return None
    try:
        settings = json.loads(Path(config).read_text())
    except ValueError as error:
        raise SubjectError(f"{name}: its adapter_config.json cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise SubjectError(f"{name}: its adapter_config.json holds no fields")
    _check_settings(settings, name)
    base = base or settings.get("base_model_name_or_path")
    if not base:
        raise SubjectError(f"{name} is an adapter that names no base model: give it with hf:{rest}?base=FOLDER")
    if not Path(base).exists() and (Path(rest) / base).exists():
        base = str(Path(rest) / base)
    for file in WEIGHTS:
        path = cached_file(
            rest, file, local_files_only=offline, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if path is not None:
            return Adapter(settings, base, Path(path))
    raise SubjectError(f"{name} is an adapter without weights: it has no {WEIGHTS[0]}")


def _check_settings(settings: Mapping[str, Any], name: str) -> None:
    """Raises SubjectError, with the key and its value, for what merged matrices do not represent."""
    if settings.get("peft_type") != "LORA":
        raise SubjectError(f"{name} is an adapter of the kind {settings.get('peft_type')!r}; only LORA is merged here")
    for key, legal in (("task_type", (None, "CAUSAL_LM")), ("revision", (None, "main")), ("init_lora_weights", STARTS)):
        if settings.get(key) not in legal:
            raise SubjectError(f"{name}: its adapter_config.json has {key}={settings[key]!r}, which is not supported")
    for key, value in settings.items():
        if value and key not in READ | WITHOUT_EFFECT:
            raise SubjectError(
                f"{name}: its adapter_config.json has {key}={value!r}, which algoscope does not represent: merge it "
                "with `merge_and_unload` of peft, and write the result with `save_pretrained`"
            )
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), int | float) or settings[key] <= 0:
            raise SubjectError(f"{name}: its adapter_config.json has {key}={settings.get(key)!r}, not a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(key) or {}, dict):
            raise SubjectError(f"{name}: its adapter_config.json has {key}={settings[key]!r}, not numbers by module")


# ---------------------------------------------------------------------- merging


@torch.no_grad()
def merge(source: nn.Module, adapter: Adapter, name: str) -> None:
    """Merge an adapter into a model of the library: W + (alpha / r) B A, and the weights that it has whole.

    Each changed weight is a new one, so that an unembedding is no longer tied to an embedding that stays.

    Raises CheckpointError where weights are missing, or fit no module of the model.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, value in file_to_tensors(adapter.file).weights.items():
        path = re.sub(r"\.(base_layer|modules_to_save|default)(?=\.|$)", "", key.removeprefix("base_model.model."))
        if match := PAIR.fullmatch(path):
            pairs.setdefault(match["module"], {})[match["side"]] = value
        else:
            _replace(source, path, value, name)
    _check_targets(source, adapter.settings, pairs, name)
    for path, pair in pairs.items():
        if len(pair) != 2:
            raise CheckpointError(f"{name}: {path} has lora_{next(iter(pair))} without its partner")
        module = _module(source, path, name)
        update = _scale(adapter.settings, path, pair["A"], name) * (pair["B"].float() @ pair["A"].float())
        if isinstance(module, Conv1D | nn.Embedding):  # matrices that are stored [in, out]
            update = update.T
        elif not isinstance(module, nn.Linear):
            raise CheckpointError(f"{name}: {path} is a {type(module).__name__}, whose adapter is not supported")
        merged = module.weight.float() + _fitting(update, module.weight, path, name)
        module.weight = nn.Parameter(merged.to(module.weight.dtype), requires_grad=False)


def _replace(source: nn.Module, path: str, value: Tensor, name: str) -> None:
    """A weight that was trained whole: of a module to save, or a bias."""
    owner, _, kind = path.rpartition(".")
    module = _module(source, owner, name)
    old = getattr(module, kind, None)
    if not isinstance(old, nn.Parameter):
        raise CheckpointError(f"{name}: its adapter has {path}, which its base model does not have")
    new = _fitting(value, old, path, name).to(old.dtype, copy=True)
    setattr(module, kind, nn.Parameter(new, requires_grad=False))


def _module(source: nn.Module, path: str, name: str) -> nn.Module:
    try:
        return source.get_submodule(path)
    except AttributeError:
        raise CheckpointError(
            f"{name}: its adapter has weights for {path}, which its base model does not have"
        ) from None


def _fitting(value: Tensor, old: Tensor, path: str, name: str) -> Tensor:
    if value.shape != old.shape:
        raise CheckpointError(
            f"{name}: {path} has shape {list(value.shape)} in the adapter, {list(old.shape)} in its base model"
        )
    return value


def _scale(settings: Mapping[str, Any], path: str, a: Tensor, name: str) -> float:
    """alpha / r, or alpha / sqrt(r) for a rank-stabilised adapter."""
    rank, alpha = (
        next((value for key, value in (settings.get(pattern) or {}).items() if _matches(key, path)), settings[usual])
        for pattern, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    if rank != len(a):
        raise CheckpointError(f"{name}: {path} has an update of rank {len(a)}, its adapter_config.json says {rank}")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _matches(key: str, path: str) -> bool:
    """Whether a key of a pattern, a regular expression, is the end of a module's path."""
    return re.match(rf"(.*\.)?({key})$", path) is not None


def _check_targets(source: nn.Module, settings: Mapping[str, Any], pairs: Mapping[str, Any], name: str) -> None:
    """Raises CheckpointError where the adapter lacks the update of a module that its config lists by name."""
    targets = settings.get("target_modules")
    if not isinstance(targets, list) or settings.get("exclude_modules") or settings.get("layers_to_transform"):
        return
    named = [path for path, _ in source.named_modules() if any(f".{path}".endswith(f".{target}") for target in targets)]
    if missing := [path for path in named if path not in pairs]:
        raise CheckpointError(f"{name}: its adapter has no weights for {missing[0]}, a module that its config lists")
