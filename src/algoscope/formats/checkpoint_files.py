"""file -> named tensors: checkpoint files of other tools, and the config in the file or in a JSON file of its name.

Safetensors files have tensors only. Files of `torch.save` are loaded with `weights_only=True`; a file that would
execute code raises an error.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algoscope.core.errors import CheckpointError
from algoscope.formats.config_inference import StatedConfig
from algoscope.formats.transformerlens import is_config, lens_config_to_fields
from algoscope.runs.reading import read_tensors

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("model", "state_dict", "model_state_dict", "weights")
CONFIGS = ("config", "cfg")


@dataclass(frozen=True)
class CheckpointFile:
    """The contents of a file: its tensors, converted to one float type, and its config."""

    path: Path
    sha256: str
    weights: Mapping[str, Tensor]
    stated: StatedConfig
    dtype: str
    """The float type, and the saved one where it differs."""
    left_out: tuple[str, ...] = ()
    """One line for each value in the file, or beside it, that is neither a weight nor a field of a config."""


def file_to_tensors(path: Path) -> CheckpointFile:
    """The tensors of a file that another tool has written, on the CPU.

    In a file of `torch.save`, tensors may be under `model`, `state_dict`, `model_state_dict` or `weights`, and a
    TransformerLens config under `config` or `cfg`; such a config may also be in a JSON file of the same name. 16-bit
    floats are converted to float32, which is exact.

    Raises CheckpointError for a file that is missing, truncated, of another format, that would execute code, or that
    has a value that is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"no file at {path}")
    config: Any = None
    left_out: list[str] = []
    if path.suffix == ".safetensors":
        weights = read_tensors(path)
    elif path.suffix in PICKLED:
        weights, config = _tensors_in(_load(path), path, left_out)
    else:
        raise CheckpointError(f"{path}: weights are read from .safetensors, {', '.join(PICKLED)} files")
    by = f"the config in {path.name}"
    beside = path.with_suffix(".json")
    if config is None and beside.is_file():
        config, by = _json(beside), beside.name
        if not is_config(config):
            left_out.append(f"{beside.name}: no config of TransformerLens, which has d_model, n_layers and n_ctx")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stated = lens_config_to_fields(config, by) if is_config(config) else StatedConfig({}, by)
    converted, dtype = _of_one_type(weights, path)
    return CheckpointFile(path, sha256, converted, stated, dtype, (*left_out, *stated.left_out))


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of the file
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the library has no common class for the many ways a file can be damaged
        if "weights only load failed" not in str(error).lower():
            raise CheckpointError(
                f"{path} is no complete file of torch.save ({_first_line(error)}); restore it"
            ) from error
        needed = re.search(r"GLOBAL (\S+)", str(error))
        what = f"the class {needed[1]}" if needed else "more than tensors"
        raise CheckpointError(
            f"{path} needs code to be read ({what}), which is never run: save the model's state_dict() alone"
        ) from error


def _tensors_in(loaded: Any, path: Path, left_out: list[str], config: Any = None) -> tuple[dict[str, Tensor], Any]:
    """Named tensors, and the config saved with them; what else is beside them is added to `left_out`."""
    if isinstance(loaded, Mapping):
        stated = next((key for key in CONFIGS if is_config(loaded.get(key))), None)
        config = config if stated is None else loaded[stated]
        inside = [key for key in NESTED if isinstance(loaded.get(key), Mapping)]
        if len(inside) > 1:
            raise CheckpointError(
                f"{path} has weights under {' and '.join(inside)}: save the state_dict() of one model"
            )
        if inside:
            left_out += [f"{key!r}, beside the weights" for key in loaded if key not in (inside[0], stated)]
            return _tensors_in(loaded[inside[0]], path, left_out, config)
        tensors = {str(key): value.detach() for key, value in loaded.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) == len(loaded):
            return tensors, config
        what = f"a dictionary of {', '.join(map(repr, list(loaded)[:4]))}" if loaded else "an empty dictionary"
    else:
        what = f"a {type(loaded).__name__}" + (f" of {len(loaded)}" if isinstance(loaded, list | tuple) else "")
    raise CheckpointError(f"{path} has {what}, not named tensors: save the state_dict() of one model")


def _of_one_type(weights: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    if not floats:
        raise CheckpointError(f"{path} has no floating-point tensor")
    for name, value in floats.items():
        if not value.double().isfinite().all() and name.rsplit(".", 1)[-1] not in ("IGNORE", "mask"):
            raise CheckpointError(f"{path}: {name} has a value that is not finite")
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in floats.values()})
    wanted = torch.float64 if "float64" in dtypes else torch.float32
    converted = {name: value.to(wanted) if name in floats else value for name, value in weights.items()}
    name = str(wanted).removeprefix("torch.")
    return converted, name if dtypes == [name] else f"{name}, exactly, from {' and '.join(dtypes)}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:120]
