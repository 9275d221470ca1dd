"""Position ids from digits: the row of the learned position table for each position, by the significance of its digit.

The significance of a digit is 1 for the units, 2 for the tens and so on; other tokens have 0. Both schemes add an
offset, so that all rows are trained: in training a random one for each input, otherwise the middle one.

- `coupled` (Cho et al., arXiv 2405.20671): offset + significance. Digits of equal significance share a vector, in the
  operands and in the sum; `+` and `=` have significance 0, so in a sum written units first the position that predicts a
  digit has the significance below it. (The source counts in the other direction, which is equivalent for a learned
  table.)
- `abacus` (McLeish et al., arXiv 2405.17399): offset + significance for digits, vector 0 for all other tokens.
"""

import copy

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.config import BY_DIGIT, ModelConfig
from algoscope.core.errors import TaskMismatchError
from algoscope.networks.transformer import Transformer
from algoscope.tasks.base import Task


def position_ids(
    cfg: ModelConfig, task: Task, offset: Int[Tensor, "batch 1"] | int | None = None
) -> Int[Tensor, "pos"] | Int[Tensor, "batch pos"] | None:
    """The row of the position table for every position of a whole sequence; None for other encodings.

    `offset`: 0 to `n_offsets(cfg, task) - 1`, one for all inputs or one for each; None: the middle one.
    """
    if cfg.positions not in BY_DIGIT:
        return None
    offset = (n_offsets(cfg, task) - 1) // 2 if offset is None else offset
    device = offset.device if isinstance(offset, Tensor) else None
    significance = torch.tensor(task.significance, device=device)
    shifted = significance + offset
    return shifted if cfg.positions == "coupled" else torch.where(significance > 0, shifted, 0)


def random_position_ids(
    cfg: ModelConfig, task: Task, n_inputs: int, generator: torch.Generator
) -> Int[Tensor, "batch pos"] | None:
    """Position ids of training inputs, each with its own random offset."""
    if cfg.positions not in BY_DIGIT:
        return None
    shape = (n_inputs, 1)
    offset = torch.randint(n_offsets(cfg, task), shape, generator=generator, device=generator.device)
    return position_ids(cfg, task, offset)


def n_offsets(cfg: ModelConfig, task: Task) -> int:
    """The number of offsets for which every digit has a row. Raises TaskMismatchError where there is none."""
    if task.significance is None:
        raise TaskMismatchError(f"{cfg.positions} positions need digits; the task {task.kind} has none")
    longest = max(task.significance)
    if cfg.n_positions <= longest:
        raise TaskMismatchError(
            f"the model has {cfg.n_positions} {cfg.positions} positions; {task.kind} at this width needs {longest + 1}"
        )
    return cfg.n_positions - longest


def at_width_of(model: Transformer, task: Task) -> Transformer:
    """The model at the width of a task: a shallow copy with the same weights, the position ids of the task and a
    context that is long enough. Raises TaskMismatchError where its position table is too short.
    """
    cfg = model.cfg
    if cfg.positions == "learned":
        if cfg.n_ctx < task.n_ctx - 1:
            raise TaskMismatchError(
                f"the model has learned positions for {cfg.n_ctx} tokens; {task.kind} at this width needs "
                f"{task.n_ctx - 1}: train it with --set model.n_ctx={task.n_ctx}"
            )
        return model
    if cfg.positions not in BY_DIGIT and cfg.n_ctx >= task.n_ctx - 1:
        return model
    ids = position_ids(cfg, task)
    ready = copy.copy(model)
    n_ids = cfg.n_positions if cfg.positions in BY_DIGIT else None
    ready.cfg = cfg.model_copy(update={"n_ctx": task.n_ctx, "n_ids": n_ids})
    ready.position_ids = None if ids is None else ids.to(model.embed.weight.device)
    return ready
