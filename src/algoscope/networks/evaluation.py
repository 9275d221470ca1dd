"""Accuracy, margin, loss and KL divergence, as functions of logits and right tokens.

Losses and divergences are in nats; of logits in half precision they are computed in float32.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import TrainConfig
from algoscope.networks.taps import precise
from algoscope.tasks.base import Task, Tokens

SMALL_VOCABULARY = 32
PORTION = 2048  # inputs evaluated at once

Logits = Float[Tensor, "*rows d_vocab"]
Targets = Int[Tensor, "*rows"]


def tokens_right(logits: Logits, targets: Targets) -> Bool[Tensor, "*rows"]:
    """Whether the right token has the largest logit; among equal logits the lowest token id wins, as in greedy
    decoding.
    """
    return logits.argmax(dim=-1) == targets


def answers_right(
    logits: Float[Tensor, "*rows read d_vocab"], targets: Int[Tensor, "*rows read"]
) -> Bool[Tensor, "*rows"]:
    """Whether the whole answer is right under teacher forcing. Greedy decoding is right exactly where this is, because
    its first error is an error here too.
    """
    return tokens_right(logits, targets).all(dim=-1)


def margins(logits: Logits, targets: Targets) -> Float[Tensor, "*rows"]:
    """The right token's logit minus the largest other one; negative where another token is more likely."""
    logits = logits.to(precise(logits.dtype))
    right = logits.gather(-1, targets[..., None])[..., 0]
    return right - logits.scatter(-1, targets[..., None], -torch.inf).amax(dim=-1)


def cross_entropy(logits: Logits, targets: Targets) -> Float[Tensor, "*rows"]:
    """-ln P(target) of each row, as ln(1 + sum of exp(other - target)): accurate even far below 1e-16."""
    logits = logits.to(precise(logits.dtype))
    others = (logits - logits.gather(-1, targets[..., None])).scatter(-1, targets[..., None], -torch.inf)
    return F.softplus(others.logsumexp(dim=-1), threshold=50)  # the default, 20, is inexact in float64


def kl_divergence(reference: Logits, logits: Logits) -> Float[Tensor, "*rows"]:
    """KL(reference || prediction), both given as logits; 0: the same prediction."""
    wide = torch.promote_types(precise(reference.dtype), logits.dtype)
    log_p, log_q = (one.to(wide).log_softmax(dim=-1) for one in (reference, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).clamp(min=0)


# ---------------------------------------------------------------------- training loss and evaluation


def mean_loss(
    logits: Float[Tensor, "batch read d_vocab"], targets: Int[Tensor, "batch read"], cfg: TrainConfig
) -> Float[Tensor, ""]:
    """Mean training loss per position. A small vocabulary axis is moved to the front, which is much faster."""
    logits = logits.to(getattr(torch, cfg.loss_dtype))
    if cfg.loss == "stablemax":
        return -log_stablemax(logits).gather(-1, targets[..., None]).mean()
    if logits.shape[-1] < SMALL_VOCABULARY:
        return F.cross_entropy(logits.movedim(-1, 0).contiguous()[None], targets[None])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def log_stablemax(logits: Logits) -> Logits:
    """Logarithms of s(x) / sum s(x), with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, in place of exp(x).

    Source: Prieto and others, arXiv 2501.04697.
    """
    log_s = torch.where(logits >= 0, logits.clamp(min=0).log1p(), -(-logits.clamp(max=0)).log1p())
    return log_s - log_s.logsumexp(dim=-1, keepdim=True)


def evaluate(
    task: Task, tokens: Tokens, logits_of: Callable[[Tokens], Tensor], at: slice, cfg: TrainConfig
) -> tuple[float, float]:
    """Mean training loss over the positions `at` of whole sequences, and the share whose whole answer is right.

    `logits_of` gives the logits [batch read d_vocab] at these positions, which end with those of the answer.
    """
    loss, n_right, n_answer = 0.0, 0, task.n_ctx - task.prompt_length
    for portion in tokens.split(PORTION):
        logits = logits_of(portion)
        loss += float(mean_loss(logits, portion[:, 1:][:, at], cfg)) * len(portion)
        n_right += int(answers_right(logits[:, -n_answer:], portion[:, task.prompt_length :]).sum())
    return loss / len(tokens), n_right / len(tokens)
