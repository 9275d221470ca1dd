"""Which learned vector each position of a sequence takes, where it depends on the digit that stands there.

A digit's significance is its place in its number, counted from the units as 1; other tokens have 0. Both ways add an
offset, so that no vector belongs to one significance: in training a random one for each input, else the middle one.

- `coupled` (Cho et al., arXiv 2405.20671): offset + significance. Digits of equal significance share a vector, in the
  operands and in the sum; `+` and `=` have that of the place below the units, so that whatever predicts a digit of a
  sum written units first stands one below it. (The source counts the other way round; to a table both are alike.)
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


def places(
    cfg: ModelConfig, task: Task, offset: Int[Tensor, "batch 1"] | int | None = None
) -> Int[Tensor, "pos"] | Int[Tensor, "batch pos"] | None:
    """The row of the table for every position of a whole sequence; None where positions are simply counted.

    `offset`: 0 to `offsets(cfg, task) - 1`, one for all inputs or one for each; None: the middle one.
    """
    if cfg.positions not in BY_DIGIT:
        return None
    offset = (offsets(cfg, task) - 1) // 2 if offset is None else offset
    device = offset.device if isinstance(offset, Tensor) else None
    significance = torch.tensor(task.significance, device=device)
    shifted = significance + offset
    return shifted if cfg.positions == "coupled" else torch.where(significance > 0, shifted, 0)


def drawn_places(cfg: ModelConfig, task: Task, n: int, chance: torch.Generator) -> Int[Tensor, "batch pos"] | None:
    """The same for `n` training inputs, each with an offset of its own."""
    if cfg.positions not in BY_DIGIT:
        return None
    return places(cfg, task, torch.randint(offsets(cfg, task), (n, 1), generator=chance, device=chance.device))


def offsets(cfg: ModelConfig, task: Task) -> int:
    """How many offsets leave every digit of the task a row. Raises TaskMismatchError where there is none."""
    if task.significance is None:
        raise TaskMismatchError(f"{cfg.positions} positions number digits; the task {task.kind} has none")
    longest = max(task.significance)
    if cfg.n_places <= longest:
        raise TaskMismatchError(
            f"the model has {cfg.n_places} {cfg.positions} positions; {task.kind} at this width needs {longest + 1}"
        )
    return cfg.n_places - longest


def at_width_of(model: Transformer, task: Task) -> Transformer:
    """The model, ready for the task's sequences: the same weights, with the rows that its positions take and a context
    that is long enough. Raises TaskMismatchError where its table of positions is too short.
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
    place = places(cfg, task)
    ready = copy.copy(model)
    n_ids = cfg.n_places if cfg.positions in BY_DIGIT else None
    ready.cfg = cfg.model_copy(update={"n_ctx": task.n_ctx, "n_ids": n_ids})
    ready.place = None if place is None else place.to(model.embed.weight.device)
    return ready
