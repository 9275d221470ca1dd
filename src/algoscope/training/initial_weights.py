"""Initial weights of a run: drawn from its seed, or those of another run with low-rank updates added."""

from pathlib import Path

import torch

from algoscope.config import RunConfig, StartConfig
from algoscope.core.errors import ConfigError, RunFolderError
from algoscope.data import seeded
from algoscope.networks.build import build
from algoscope.networks.lora import add_updates, choose_trained, draw_updates, whole
from algoscope.networks.transformer import Transformer
from algoscope.runs.paths import is_known, split_name
from algoscope.runs.run_folder import Run, weights_hash


def with_start_hash(config: RunConfig, directory: Path) -> RunConfig:
    """The config with the hash of its initial weights filled in.

    An existing run has its initial weights in its own folder, so its base run may be missing. Raises RunFolderError
    where the base run does not exist or its weights differ from the hash in the config, and ConfigError where its model
    differs.
    """
    start = config.start
    if start is None:
        return config
    try:
        base, model = _base(start, directory)
    except RunFolderError:
        if start.weights_sha256 is None:
            raise
        return config
    sha256 = weights_hash(model.state_dict())
    if start.weights_sha256 not in (None, sha256):
        raise RunFolderError(
            f"the weights of start.run {start.run} have changed: hash {sha256[:12]}, the config has "
            f"{str(start.weights_sha256)[:12]}: restore it, or start a new run"
        )
    _check_fit(config, base)
    return config.model_copy(update={"start": start.model_copy(update={"weights_sha256": sha256})})


def first_model(run: Run, config: RunConfig, device: torch.device) -> Transformer:
    """The model of a run before its first step; where it starts from another run, at its newest checkpoint.

    Position embeddings beyond those of the base are drawn at random; they are trained if `start.also_train` names the
    table. Only trained tensors require a gradient. Raises what `with_start_hash` raises, and ConfigError for an unknown
    tensor in `also_train`.
    """
    start = config.start
    if start is None:
        return build(config.model, config.seed, device)
    if run.newest_step is not None:
        model = run.model(device=device)
    else:
        model = build(config.model, config.seed)
        _fill(model, _base(start, run.path.parent)[1])
        add_updates(model, start)
        draw_updates(model, seeded(torch.device("cpu"), config.seed, 0))
        model.to(device)
    choose_trained(model, start.also_train)
    return model


def _base(start: StartConfig, directory: Path) -> tuple[Run, Transformer]:
    """The base run, and its model with full matrices."""
    name, step, _ = split_name(start.run, lambda name: is_known(name, directory))
    if step is not None and not step.isdecimal():
        raise ConfigError(f"start.run {start.run!r}: the step after '@' must be a number")
    base = Run.find(name, directory)
    if step is None and not base.is_whole:
        base.refuse_if_training()
        raise RunFolderError(
            f"start.run {base.name} is not finished: go on with --resume, or name a checkpoint, NAME@STEP"
        )
    return base, whole(base.model(None if step is None else int(step)))


def _check_fit(config: RunConfig, base: Run) -> None:
    """Raises ConfigError, naming the first field, where the base has another model or a longer context. Rank (factors
    are multiplied out) and initialisation may differ.
    """
    ours, theirs = config.model.model_dump(), base.config.model.model_dump()
    for field, value in ours.items():
        differs = value < theirs[field] if field == "n_ctx" else value != theirs[field]
        if differs and field != "rank" and not field.startswith("init_"):
            raise ConfigError(
                f"start.run {base.name} has model.{field} {theirs[field]}, this run {value}: "
                f"set model.{field} to {theirs[field]}"
            )


@torch.no_grad()
def _fill(model: Transformer, base: Transformer) -> None:
    """Copy the weights of the base; in a longer position table they fill the first rows."""
    ours = model.state_dict()
    for name, tensor in base.state_dict().items():
        ours[name][: len(tensor)] = tensor
