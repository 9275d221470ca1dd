"""Subjects from our own files: run folders, and weights with a config beside them."""

from pathlib import Path

from algoscope.core.errors import CheckpointError, SubjectError
from algoscope.subjects.native import NativeSubject
from algoscope.training.runs import Run, load_model, read_config, read_tensors


def open_run(name: str, rest: str, directory: Path, device: str) -> NativeSubject:
    """A run by name or path, at its newest or a given checkpoint."""
    where, _, step = rest.partition("@")
    if step and not step.isdecimal():
        raise SubjectError(f"{name!r}: the step after '@' must be a number, not {step!r}")
    run = Run.find(where, directory)
    return NativeSubject(name, run.model(int(step) if step else None, device), run.config.task, run)


def open_file(name: str, rest: str, directory: Path, device: str) -> NativeSubject:
    """Weights in a safetensors file, with a run's config beside them."""
    path = Path(rest)
    if path.suffix != ".safetensors":
        raise SubjectError(f"{name!r}: weights are read from .safetensors files only, never from a pickle")
    weights = read_tensors(path)
    beside = [path.with_suffix(".json"), path.with_name("config.json")]
    config_path = next((candidate for candidate in beside if candidate.is_file()), None)
    if config_path is None:
        raise CheckpointError(f"no config beside {path}: expected {beside[0].name} or {beside[1].name}")
    config = read_config(config_path)
    return NativeSubject(name, load_model(config, weights, path).to(device), config.task)
