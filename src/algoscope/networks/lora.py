"""Low-rank updates (LoRA): adding them to the matrices of a model, and merging them."""

import fnmatch
from collections.abc import Iterator

import torch
from torch import nn

from algoscope.config import StartConfig
from algoscope.core.errors import ConfigError
from algoscope.networks.low_rank import Computed, Updated
from algoscope.networks.transformer import Transformer


def add_updates(model: Transformer, start: StartConfig) -> None:
    """Add an uninitialised update to every matrix that `start` names; the matrix keeps its weights."""
    for name, module in _matrices(model):
        part = name.rpartition(".")[2]
        if part in start.lora_on:
            model.set_submodule(name, Updated(module, start.lora_rank, start.lora_alpha or start.lora_rank))


def draw_updates(model: Transformer, generator: torch.Generator) -> None:
    """Initialise every update to zero: the model computes the same as its base."""
    for module in model.modules():
        if isinstance(module, Updated):
            module.draw(generator)


def choose_trained(model: Transformer, patterns: tuple[str, ...]) -> None:
    """Require gradients only for the updates and for tensors whose name matches a pattern (`pos_embed.weight`,
    `*.bias`). Raises ConfigError for a pattern without a match.
    """
    tensors = {name.replace(".base.", "."): parameter for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, Updated):
            module.left.requires_grad_(True)
            module.right.requires_grad_(True)
    for pattern in patterns:
        matches = fnmatch.filter(tensors, pattern)
        if not matches:
            raise ConfigError(f"start.also_train: no tensor matches {pattern!r}; known: {', '.join(tensors)}")
        for name in matches:
            tensors[name].requires_grad_(True)


@torch.no_grad()
def whole(model: Transformer) -> Transformer:
    """The same model with full matrices: factors multiplied, updates added. A model that has neither is returned
    unchanged.
    """
    if not any(isinstance(module, Computed) for module in model.modules()):
        return model
    with torch.device("meta"):
        plain = Transformer(model.cfg.model_copy(update={"rank": None}))
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, module in _matrices(model):
        weights[f"{name}.weight"] = module.weight.detach().clone()
        if module.bias is not None:
            weights[f"{name}.bias"] = module.bias.detach().clone()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    return plain


def _matrices(model: Transformer) -> Iterator[tuple[str, nn.Linear]]:
    """The linear maps of the blocks by name; the base of an updated one is not listed."""
    for name, module in list(model.blocks.named_modules(prefix="blocks")):
        if isinstance(module, nn.Linear) and not name.endswith(".base"):
            yield name, module
