"""What training lowers, and what it counts."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import TrainConfig
from algoscope.tasks.base import Task, Tokens
from algoscope.training.grokking_methods import log_stablemax

SMALL_VOCABULARY = 32


def mean_loss(
    logits: Float[Tensor, "batch read d_vocab"], targets: Int[Tensor, "batch read"], cfg: TrainConfig
) -> Float[Tensor, ""]:
    """Cross-entropy in nats per position. A small vocabulary comes first in memory, where PyTorch is faster by far."""
    logits = logits.to(getattr(torch, cfg.loss_dtype))
    if cfg.loss == "stablemax":
        return -log_stablemax(logits).gather(-1, targets[..., None]).mean()
    if logits.shape[-1] < SMALL_VOCABULARY:
        return F.cross_entropy(logits.movedim(-1, 0).contiguous()[None], targets[None])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def right(task: Task, answer: Float[Tensor, "batch read d_vocab"], tokens: Tokens) -> Bool[Tensor, "batch"]:
    """Is the whole answer right? Greedy decoding is right exactly where this is: its first error is here too."""
    return (answer.argmax(dim=-1) == tokens[:, task.prompt_length :]).all(dim=1)
