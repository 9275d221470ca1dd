"""The optimisers of a run and the one learning-rate schedule that drives them all.

Muon (K. Jordan and others, 2024) moves a matrix along the orthogonal factor of its momentum: every direction that the
gradient uses is moved equally far. Ours differs from `torch.optim.Muon` in one way only: matrices of one shape are
orthogonalised together, in float32; a test holds it to PyTorch's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.config import OptimConfig
from algoscope.networks.transformer import Transformer
from algoscope.training.grok import NormClamp, SlowGradient, keep_perpendicular

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients of the Muon authors: steep at zero, near 1 above


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; a tall matrix moves sqrt(rows / columns) further."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, newton_schulz_steps: int) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "newton_schulz_steps": newton_schulz_steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody calls it with a closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                by_shape.setdefault(parameter.shape, []).append(parameter)
            for (n_rows, n_columns), members in by_shape.items():
                grads = [parameter.grad for parameter in members if parameter.grad is not None]
                momenta = [self._momentum(parameter) for parameter in members]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch.stack(grads).lerp(torch.stack(momenta), group["momentum"])
                moves = orthogonalise(ahead, group["newton_schulz_steps"]).unbind()
                torch._foreach_add_(
                    list[Tensor](members), moves, alpha=-group["lr"] * math.sqrt(max(1, n_rows / n_columns))
                )

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return state["momentum"]


def orthogonalise(matrices: Float[Tensor, "matrix row column"], steps: int) -> Float[Tensor, "matrix row column"]:
    """Each matrix with its singular values brought near 1 (0.7 to 1.2 after five steps), its singular vectors kept."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimisers:
    """Every optimiser of a run behind one step."""

    def __init__(self, model: Transformer, cfg: OptimConfig) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.cfg, self.parameters = cfg, [p for _, p in named]
        matrices = [p for name, p in named if cfg.name == "muon" and name.startswith("blocks.") and p.ndim == 2]
        rest = [p for _, p in named if not any(p is matrix for matrix in matrices)]
        self.members: dict[str, torch.optim.Optimizer] = {}
        if rest:
            adamw = torch.optim.AdamW(rest, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True)
            self.members["adamw"] = adamw
        if matrices:
            self.members["muon"] = Muon(matrices, cfg.muon_lr, cfg.muon_momentum, cfg.newton_schulz_steps)
        self.slow = None if cfg.grokfast is None else SlowGradient(self.parameters, cfg)
        self.clamp = None if cfg.norm_clamp is None else NormClamp(self.parameters, cfg.norm_clamp)

    def step(self, share: float) -> None:
        """Change the gradients as the config says, move every parameter at `share` of its peak learning rate, and
        forget the gradients.
        """
        if self.slow is not None:
            self.slow.change()
        if self.cfg.perpendicular:
            keep_perpendicular(self.parameters)
        if self.cfg.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip)
        for name, optimiser in self.members.items():
            peak = self.cfg.muon_lr if name == "muon" else self.cfg.lr
            for group in optimiser.param_groups:
                group["lr"] = peak * share
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if self.clamp is not None:
            self.clamp.change()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on beside the weights: `optimiser.parameter.quantity` to tensor, and
        `slow.quantity`, `clamp.quantity`.
        """
        members = {
            f"{name}.{index}.{quantity}": tensor
            for name, optimiser in self.members.items()
            for index, tensors in optimiser.state_dict()["state"].items()
            for quantity, tensor in tensors.items()
        }
        others = {
            f"{name}.{quantity}": tensor
            for name, other in self._others.items()
            for quantity, tensor in other.state().items()
        }
        return members | others

    @property
    def _others(self) -> dict[str, SlowGradient | NormClamp]:
        both = {"slow": self.slow, "clamp": self.clamp}
        return {name: other for name, other in both.items() if other is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, optimiser in self.members.items():
            plain = optimiser.state_dict()
            for key, tensor in state.items():
                owner, _, rest = key.partition(".")
                if owner == name:
                    index, _, quantity = rest.partition(".")
                    plain["state"].setdefault(int(index), {})[quantity] = tensor
            optimiser.load_state_dict(plain)
        for name, other in self._others.items():
            other.load({key.partition(".")[2]: t for key, t in state.items() if key.startswith(f"{name}.")})


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak: warm-up, the peak until step `begin`, decay until step `end`."""

    cfg: OptimConfig
    begin: int
    end: int

    @classmethod
    def planned(cls, cfg: OptimConfig, steps: int) -> "Schedule":
        """What the config says where nothing is learned early."""
        return cls(cfg, cfg.warmup_steps + round(cfg.hold * max(steps - cfg.warmup_steps, 0)), steps)

    def noticed(self, step: int, accuracy: float) -> "Schedule":
        """The schedule after a batch of this accuracy: where the model has got it, the decay starts now."""
        if self.cfg.decay_at is None or accuracy < self.cfg.decay_at or step >= self.begin:
            return self
        return replace(self, begin=step, end=min(self.end, step + self.cfg.decay_steps))

    def share(self, step: int) -> float:
        """Of step number `step`, counted from 0."""
        if step < self.cfg.warmup_steps:
            return (step + 1) / self.cfg.warmup_steps
        if step < self.begin:
            return 1.0
        left = 1 - (step - self.begin) / max(self.end - self.begin, 1)
        fall = left if self.cfg.decay == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return self.cfg.final_lr + (1 - self.cfg.final_lr) * fall
