"""Where a Hugging Face model is: its config, its weights, its tokenizer, and the base model of an adapter."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES
from transformers.utils import logging

from algoscope.core.errors import SubjectError, UnknownNameError, shown
from algoscope.core.files import user_path
from algoscope.runs.paths import split_name
from algoscope.subjects._hf_adapters import Adapter, find_adapter
from algoscope.subjects._hf_configs import family_of
from algoscope.subjects._hf_families import FAMILIES
from algoscope.subjects.hf_tokenizer import FILES
from algoscope.subjects.subject import float_type
from algoscope.tasks.specs import query_fields

SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # the library's environment variables for offline mode
OPTIONS = ("base", "dtype")  # after the ? of a name
CLASSES: dict[str, Mapping[str, Any]] = {
    "AutoConfig": CONFIG_MAPPING_NAMES,
    "AutoModel": MODEL_MAPPING_NAMES,
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""The library's own classes by `model_type`, for the keys of `auto_map` that name classes which are opened here."""


@dataclass(frozen=True)
class Place:
    """Where the parts of a model are: folders, or names of repositories."""

    weights: str
    texts: str
    """Where its tokenizer is."""
    config: PretrainedConfig
    offline: bool
    """Whether only folders and the local cache are read."""
    adapter: Adapter | None = None
    dtype: torch.dtype | None = None
    """The float type that the name asks for."""
    note: str = ""


def find_place(name: str, rest: str) -> Place:
    """The place of a model by the part of its name after `hf:`, `PLACE?base=FOLDER&dtype=bfloat16`.

    Raises SubjectError, naming `name`, where there is none, or what is there is not supported; UnknownNameError for
    another option or float type.
    """
    rest = str(user_path(rest)) if rest.startswith("~") else rest
    where, step, query = split_name(rest, lambda text: Path(text).exists())
    options = query_fields(name, query)
    for option in options:
        if option not in OPTIONS:
            raise UnknownNameError("option of an hf: name", option, OPTIONS)
    dtype = float_type(options.get("dtype"))
    base = options.get("base")
    place = _find(name, where if step is None else f"{where}@{step}", base and str(user_path(base)))
    if base is not None and place.adapter is None:
        raise SubjectError(f"{name} is no adapter, so it has no base model: leave out base={base}")
    return replace(place, dtype=dtype)


def _find(name: str, rest: str, base: str | None) -> Place:
    """The local cache is tried before the network. The weights and the config of an adapter are its base model's."""
    forbidden = any(os.environ.get(switch, "0").lower() in ("1", "true", "yes", "on") for switch in SWITCHES)
    here = Path(rest).exists()
    if Path(rest).is_file():
        raise SubjectError(f"{name} is a file: give the folder that it is in, with its config.json")
    attempts = [True] if here or rest.startswith((".", "/", "~")) or forbidden else [True, False]
    for offline in attempts:
        try:
            adapter = find_adapter(name, rest, base, offline)
            if adapter is not None:
                return _adapted(name, rest, adapter)
            if here and not (Path(rest) / "config.json").is_file():
                raise SubjectError(
                    f"no model at {name}: it has no config.json; give the folder that `save_pretrained` wrote"
                )
            plain, _ = PretrainedConfig.get_config_dict(rest, local_files_only=offline)
            note = _refuse_others(name, plain)
            config = AutoConfig.from_pretrained(rest, local_files_only=offline, trust_remote_code=False)
            return Place(rest, rest, config, offline, note=note)
        except SubjectError:
            raise
        except OSError as error:
            last: Exception = error
        except Exception as error:  # values of the wrong type or range raise errors of many classes
            raise SubjectError(f"{name}: its config cannot be read: {reason_of(error)}") from error
    if here:
        raise SubjectError(f"{name}: its config cannot be read: {reason_of(last)}") from last
    hub = "" if attempts == [True] else f", and the hub says: {reason_of(last)}"
    raise SubjectError(
        f"no model at {name}: there is no such folder, and nothing in the local cache{hub}; give the folder that "
        "`save_pretrained` wrote"
    ) from last


def _adapted(name: str, rest: str, adapter: Adapter) -> Place:
    """The place of an adapter's base model, with the adapter; its own tokenizer counts, where it has one."""
    try:
        place = _find(f"hf:{adapter.base}", adapter.base, None)
    except SubjectError as error:
        raise SubjectError(
            f"{name} is an adapter of {adapter.base}, which does not open: {error}; another base model is given with "
            f"hf:{rest}?base=FOLDER"
        ) from error
    if place.adapter is not None:
        raise SubjectError(f"{name} is an adapter of {adapter.base}, which is an adapter too: merge that one first")
    texts = rest if any((Path(rest) / file).exists() for file in FILES) else place.texts
    note = f"an adapter, merged into {adapter.base}" + (f"; {place.note}" if place.note else "")
    return replace(place, adapter=adapter, texts=texts, note=note)


def _refuse_others(name: str, plain: Mapping[str, Any]) -> str:
    """A note on code in a folder that is not run.

    Raises SubjectError for a config that asks for code of its own, that is quantised, or of another family. A folder
    may have a copy of the library's own classes, as some have that are older than the library's.
    """
    if not isinstance(plain, Mapping):
        raise SubjectError(f"{name}: its config.json holds {shown(plain)}, not the fields of a config")
    copied = _copied_classes(plain)
    if plain.get("auto_map") and not copied:
        raise SubjectError(
            f"{name} asks to run code of its own (auto_map {plain['auto_map']}), which is never run: if it is a plain "
            f"model of {', '.join(FAMILIES)}, delete auto_map from its config.json"
        )
    if plain.get("quantization_config"):
        raise SubjectError(f"{name} is quantised: write its weights as floats first, with `dequantize` of transformers")
    family_of(plain.get("model_type"), name)

    return f"computed by the library's classes, not by the code in its folder: {copied}" if copied else ""


def _copied_classes(plain: Mapping[str, Any]) -> str:
    """The names of the classes that `auto_map` asks for, where all of them are the library's for this family."""
    auto_map, family = plain.get("auto_map"), plain.get("model_type")
    if not isinstance(auto_map, Mapping) or family not in FAMILIES:
        return ""
    asked = {key: str(auto_map[key]).rpartition(".")[2] for key in CLASSES if key in auto_map}
    own = all(CLASSES[key].get(family) == name for key, name in asked.items())
    return ", ".join(asked.values()) if own else ""


def reason_of(error: Exception) -> str:
    """The reason in an error of the library, on one line."""
    if "weights only load failed" in str(error).lower():
        return "they need code to be run, which is never done"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and warnings of the library, and restore its settings."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
