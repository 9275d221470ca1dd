"""Methods that change the delay between memorisation and generalisation (grokking). All are off by default.

- Grokfast (Lee et al., arXiv 2405.20233): amplifies slowly varying components of the gradients.
- StableMax and the perpendicular gradient (Prieto et al., arXiv 2501.04697): prevent a model
  that has memorised from merely scaling up its logits.
- Norm clamp (as in Liu et al., arXiv 2210.01117): the norm of all weights is held constant.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.config import OptimConfig
from algoscope.training.stacked_weights import Flat, Rows, column

State = dict[str, Tensor]


class SlowGradient:
    """Grokfast: adds a mean of past gradients, times `grokfast_strength`, to each gradient.

    `ema`: slow <- alpha slow + (1 - alpha) gradient. `ma`: the mean of the last `grokfast_window` gradients, the
    current one included, once the window is full.
    """

    def __init__(self, flat: Flat, cfgs: Sequence[OptimConfig]) -> None:
        self.flat, self.cfg = flat, cfgs[0]
        window = 1 if self.cfg.grokfast == "ema" else self.cfg.grokfast_window
        n_members, n_entries = flat.grads.shape
        self.kept = flat.grads.new_zeros(n_members, window, n_entries)
        self.seen = torch.zeros(n_members, dtype=torch.long)
        self.alpha = column([cfg.grokfast_alpha for cfg in cfgs], flat.grads)
        self.strength = column([cfg.grokfast_strength for cfg in cfgs], flat.grads)

    @torch.no_grad()
    def change(self) -> None:
        """Change the gradients in place."""
        grads = self.flat.grads
        if self.cfg.grokfast == "ema":
            self.kept[:, 0].lerp_(grads, 1 - self.alpha)
            grads.add_(self.kept[:, 0] * self.strength)
        else:
            window = self.cfg.grokfast_window
            self.kept[torch.arange(len(grads)), self.seen % window] = grads
            full = column([float(seen + 1 >= window) for seen in self.seen.tolist()], grads)
            grads.add_(self.kept.mean(dim=1) * (self.strength * full))
        self.seen += 1

    def state(self, member: int) -> State:
        return {"seen": self.seen[member], "kept": self.kept[member]}

    def load(self, member: int, state: State) -> None:
        for name, mine in self.state(member).items():
            mine.copy_(state[name])


class NormClamp:
    """Rescales all weights of a member to `norm_clamp` times their initial norm."""

    def __init__(self, flat: Flat, cfgs: Sequence[OptimConfig]) -> None:
        self.flat = flat
        self.target = norms(flat.values) * column([cfg.norm_clamp or 1.0 for cfg in cfgs], flat.values)

    @torch.no_grad()
    def change(self) -> None:
        """Rescale the weights in place."""
        self.flat.values.mul_(self.target / norms(self.flat.values))

    def state(self, member: int) -> State:
        return {"target": self.target[member]}

    def load(self, member: int, state: State) -> None:
        self.target[member] = state["target"]


@torch.no_grad()
def norms(rows: Rows) -> Float[Tensor, "member 1"]:
    """The norm of each row."""
    return rows.norm(dim=1, keepdim=True)


@torch.no_grad()
def keep_perpendicular(flat: Flat) -> None:
    """Project each tensor's gradient perpendicular to its weights and keep its norm: a step then rotates the weights
    instead of scaling them.
    """
    for stretch in flat.stretches.values():
        gradient, weights = flat.grads[:, stretch], flat.values[:, stretch]
        length, size = norms(gradient), weights.square().sum(dim=1, keepdim=True)
        along = (weights * gradient).sum(dim=1, keepdim=True) / torch.where(size > 0, size, 1.0)
        left = gradient - weights * along
        rest = norms(left)
        kept = torch.where(rest > 0, left * (length / torch.where(rest > 0, rest, 1.0)), left)
        gradient.copy_(torch.where(size > 0, kept, gradient))
