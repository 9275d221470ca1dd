"""Weights that hide nothing: every one random, no bias zero, no norm one."""

import math
from collections.abc import Callable

import torch
from torch import nn


def randomised(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `make` makes, each parameter drawn from the seed; PyTorch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    draw = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=draw)
        if weight.ndim < 2:
            is_scale = "bias" not in name and name.endswith(("weight", "scale", ".w"))
            weight.data = float(is_scale) + 0.3 * noise
        else:
            weight.data = noise * (0.5 if "emb" in name or "wte" in name else 1.5 / math.sqrt(weight.shape[-1]))
    return module
