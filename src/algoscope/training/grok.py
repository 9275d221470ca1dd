"""What shortens or lengthens the wait between memorising and generalising: choices, none of them a default.

- Grokfast (Lee et al., arXiv 2405.20233): gradients that point the same way for many steps are amplified.
- StableMax and the perpendicular gradient (Prieto et al., arXiv 2501.04697): what keeps a model that has memorised from
  only making its logits larger.
- Norm clamp (as in Liu et al., arXiv 2210.01117): the weights stay on a sphere.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.config import OptimConfig

State = dict[str, Tensor]


class SlowGradient:
    """Grokfast: adds a mean of the gradients so far to each gradient, `grokfast_strength` times.

    `ema`: slow <- alpha slow + (1 - alpha) gradient. `ma`: the mean of the last `grokfast_window` gradients, this one
    included, once there are as many.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], cfg: OptimConfig) -> None:
        self.parameters, self.cfg = parameters, cfg
        shape = () if cfg.grokfast == "ema" else (cfg.grokfast_window,)
        self.kept = [torch.zeros(*shape, *p.shape, dtype=p.dtype, device=p.device) for p in parameters]
        self.seen = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def change(self) -> None:
        """The gradients, in place."""
        cfg, place = self.cfg, int(self.seen) % self.cfg.grokfast_window
        self.seen += 1
        for parameter, kept in zip(self.parameters, self.kept, strict=True):
            assert parameter.grad is not None
            if cfg.grokfast == "ema":
                kept.lerp_(parameter.grad, 1 - cfg.grokfast_alpha)
                parameter.grad.add_(kept, alpha=cfg.grokfast_strength)
                continue
            kept[place] = parameter.grad
            if self.seen >= cfg.grokfast_window:
                parameter.grad.add_(kept.mean(dim=0), alpha=cfg.grokfast_strength)

    def state(self) -> State:
        return {"seen": self.seen, **{str(i): kept for i, kept in enumerate(self.kept)}}

    def load(self, state: State) -> None:
        self.seen.copy_(state["seen"])
        for i, kept in enumerate(self.kept):
            kept.copy_(state[str(i)])


class NormClamp:
    """Brings all weights together back to `rho` times the norm that they start with."""

    def __init__(self, parameters: Sequence[nn.Parameter], rho: float) -> None:
        self.parameters, self.target = parameters, rho * norm_of(parameters)

    @torch.no_grad()
    def change(self) -> None:
        """The weights, in place."""
        torch._foreach_mul_(list[Tensor](self.parameters), float(self.target / norm_of(self.parameters)))

    def state(self) -> State:
        return {"target": self.target}

    def load(self, state: State) -> None:
        self.target.copy_(state["target"])


@torch.no_grad()
def norm_of(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """The norm of all entries of all tensors together."""
    return torch.stack(torch._foreach_norm(list(tensors))).norm()


@torch.no_grad()
def keep_perpendicular(parameters: Sequence[nn.Parameter]) -> None:
    """Each gradient without its part along its own tensor of weights, at its old length: a step changes what the
    weights say, not how loudly.
    """
    for parameter in parameters:
        gradient, weights = parameter.grad, parameter
        assert gradient is not None
        length, size = gradient.norm(), weights.pow(2).sum()
        if size > 0:
            gradient.sub_(weights * ((weights * gradient).sum() / size))
            left = gradient.norm()
            if left > 0:
                gradient.mul_(length / left)


def log_stablemax(logits: Float[Tensor, "*rows d_vocab"]) -> Float[Tensor, "*rows d_vocab"]:
    """Logarithms of s(x) / sum s(x), with s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, in place of exp(x)."""
    log_s = torch.where(logits >= 0, logits.clamp(min=0).log1p(), -(-logits.clamp(max=0)).log1p())
    return log_s - log_s.logsumexp(dim=-1, keepdim=True)
