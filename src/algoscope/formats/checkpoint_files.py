"""file -> named tensors: checkpoint files of other tools, and the config in the file or in a JSON file beside it.

Safetensors files have tensors only. Files of `torch.save` are loaded with `weights_only=True`, those of NumPy without
pickles; a file that would execute code raises an error.
"""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import read_array
from torch import Tensor

from algoscope.core.errors import CheckpointError
from algoscope.formats.config_inference import StatedConfig
from algoscope.formats.stated_configs import config_to_fields, is_config
from algoscope.runs.reading import read_tensors

PICKLED = (".pt", ".pth", ".bin", ".ckpt")
NESTED = ("model", "state_dict", "model_state_dict", "weights", "params", "net", "model_state", "module")
CONFIGS = ("config", "cfg", "model_args", "model_config", "args", "hparams", "hyper_parameters", "gpt_config")
PLAIN = (bool, int, float, str)
WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""Prefixes that wrappers of PyTorch put before every name."""
MASK = re.compile(r"mask|IGNORE|causal|tril|(^|\.)attn\.bias$", re.IGNORECASE)
"""Buffers whose values need not be finite."""


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

    In a file of `torch.save`, tensors may be under one of `NESTED` and a config under one of `CONFIGS`; a config may
    also be in a JSON file beside it (`NAME.json`, `config.json`, for `model_X.pt` also `config_X.json`). 16-bit floats
    are converted to float32, which is exact.

    Raises CheckpointError for a file that is missing, truncated, of another format, that would execute code, or that
    has a value that is not finite.
    """
    if not path.is_file():
        raise CheckpointError(f"no file at {path}")
    config: Any = None
    left_out: list[str] = []
    if path.suffix == ".safetensors":
        weights = read_tensors(path)
    elif path.suffix == ".npz":
        weights = _arrays(path)
    elif path.suffix in PICKLED:
        weights, config = _tensors_in(_load(path), path, left_out)
    else:
        raise CheckpointError(f"{path}: weights are read from .safetensors, .npz, {', '.join(PICKLED)} files")
    by = f"the config in {path.name}"
    if config is None:
        config, by = _config_beside(path, left_out, by)
    weights = _without_wrappers(weights, left_out)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    stated = StatedConfig({}, by) if config is None else config_to_fields(config, by)
    converted, dtype = _of_one_type(weights, path)
    return CheckpointFile(path, sha256, converted, stated, dtype, (*left_out, *stated.left_out))


def _config_beside(path: Path, left_out: list[str], by: str) -> tuple[Any, str]:
    """The config in a JSON file beside the weights, and the name of that file."""
    named = {path.with_suffix(".json"), path.with_name(path.stem.replace("model", "config") + ".json")}
    for beside in [*sorted(named), path.with_name("config.json")]:
        if not beside.is_file():
            continue
        plain = _json(beside)
        if isinstance(plain, Mapping) and {"model_type", "architectures"} <= set(plain):
            raise CheckpointError(f"{beside} is a config of Hugging Face: open the folder, as hf:{path.parent}")
        if (config := _config_in(plain)) is not None:
            return config, beside.name
        if beside in named:
            left_out.append(f"{beside.name}: no config, which has sizes such as n_layers and d_model")
    return None, by


def _config_in(plain: Any) -> Mapping[str, Any] | None:
    """The config that a value is, or has under one of the usual keys."""
    inside = [plain, *(plain.get(key) for key in (*CONFIGS, "model"))] if isinstance(plain, Mapping) else []
    return next((config for config in inside if is_config(config)), None)


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a file of NumPy, which is read without pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            return {name.removesuffix(".npy"): torch.from_numpy(_array(archive, name)) for name in names}
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no complete .npz file ({_first_line(error)}); restore it") from error
    except (ValueError, TypeError, AttributeError) as error:
        why = "it has objects, which would run code" if "pickle" in str(error) else _first_line(error)
        raise CheckpointError(f"{path} has more than arrays of numbers ({why}): save the weights alone") from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as file:
        array = read_array(file, allow_pickle=False)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _without_wrappers(weights: Mapping[str, Tensor], left_out: list[str]) -> dict[str, Tensor]:
    """The weights without the prefixes that wrappers put before every name."""
    weights = dict(weights)
    for prefix in (*WRAPPERS, *WRAPPERS):  # one inside of another
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
            left_out.append(f"{prefix!r} before every name")
    return weights


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
        stated = next((key for key in CONFIGS if _config_in(loaded.get(key)) is not None), None)
        config = config if stated is None else _config_in(loaded[stated])
        inside = [key for key in NESTED if isinstance(loaded.get(key), Mapping)]
        if len(inside) > 1:
            raise CheckpointError(
                f"{path} has weights under {' and '.join(inside)}: save the state_dict() of one model"
            )
        if inside:
            beside = {key: value for key, value in loaded.items() if key not in (inside[0], stated)}
            if config is None and is_config(sizes := {k: v for k, v in beside.items() if type(v) in PLAIN}):
                config = sizes
                beside = {key: value for key, value in beside.items() if key not in sizes}
            left_out += [f"{key!r}, beside the weights" for key in beside]
            return _tensors_in(loaded[inside[0]], path, left_out, config)
        tensors = {str(key): value.detach() for key, value in loaded.items() if isinstance(value, Tensor)}
        if tensors:
            left_out += [f"{key!r}, beside the weights" for key in loaded if key not in tensors and key != stated]
            return tensors, config
        what = f"a dictionary of {', '.join(map(repr, list(loaded)[:4]))}" if loaded else "an empty dictionary"
    else:
        what = f"a {type(loaded).__name__}" + (f" of {len(loaded)}" if isinstance(loaded, list | tuple) else "")
    raise CheckpointError(f"{path} has {what}, not named tensors: save the state_dict() of one model")


def _of_one_type(weights: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str]:
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    if not floats:
        raise CheckpointError(f"{path} has no floating-point tensor")
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in floats.values()})
    wanted = torch.float64 if "float64" in dtypes else torch.float32
    converted = {name: value.to(wanted) if name in floats else value for name, value in weights.items()}
    for name in floats:
        if not converted[name].isfinite().all() and not MASK.search(name):
            raise CheckpointError(f"{path}: {name} has a value that is not finite")
    name = str(wanted).removeprefix("torch.")
    return converted, name if dtypes == [name] else f"{name}, exactly, from {' and '.join(dtypes)}"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:120]
