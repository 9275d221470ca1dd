"""The optimisers of stacked runs (one row of weights per run), and the learning-rate schedule.

Muon (K. Jordan and others, 2024) updates a matrix along the orthogonal factor of its momentum: all singular directions
of the gradient get steps of equal size. AdamW (Loshchilov and Hutter, arXiv 1711.05101) updates the rest. Tests compare
both with PyTorch's; the only difference is that they update the tensors of many members at once, each with its own
hyperparameters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.config import OptimConfig
from algoscope.core.errors import CheckpointError
from algoscope.training.grokking_methods import NormClamp, SlowGradient, keep_perpendicular
from algoscope.training.stacked_weights import Flat, Rows, column

QUINTIC = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients of the Muon authors: steep at zero, near 1 above
SMALL_MATRIX = 4096  # entries up to which matrices of all shapes are padded to one and orthogonalised together
ADAM_EPS = 1e-8

State = dict[str, Tensor]


class AdamW:
    """AdamW on the entries from `begin` on, in every row."""

    def __init__(self, flat: Flat, begin: int, cfgs: Sequence[OptimConfig]) -> None:
        self.values, self.grads, self.cfgs = flat.values[:, begin:], flat.grads[:, begin:], cfgs
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.steps = torch.zeros(len(cfgs), dtype=torch.long)
        betas = zip(*(cfg.betas for cfg in cfgs), strict=True)
        self.keep_mean, self.keep_square = (column(beta, self.values) for beta in betas)

    @torch.no_grad()
    def step(self, shares: Sequence[float]) -> None:
        self.steps += 1
        members = list(zip(self.cfgs, shares, self.steps.tolist(), strict=True))
        stay = column([1 - cfg.lr * share * cfg.weight_decay for cfg, share, _ in members], self.values)
        rate = column([cfg.lr * share / (1 - cfg.betas[0] ** n) for cfg, share, n in members], self.values)
        unbias = column([(1 - cfg.betas[1] ** n) ** -0.5 for cfg, _, n in members], self.values)
        self.mean.lerp_(self.grads, 1 - self.keep_mean)
        self.square.mul_(self.keep_square).addcmul_(self.grads, self.grads * (1 - self.keep_square))
        self.values.mul_(stay).sub_(rate * self.mean / (self.square.sqrt() * unbias + ADAM_EPS))

    def state(self, member: int) -> State:
        return {"mean": self.mean[member], "square": self.square[member], "steps": self.steps[member]}

    def load(self, member: int, state: State) -> None:
        for name, mine in self.state(member).items():
            mine.copy_(state[name])


class Muon:
    """Muon on the matrices, which are the entries before `end`: orthogonalised Nesterov momentum, scaled by
    sqrt(rows / columns) for tall matrices.
    """

    def __init__(self, flat: Flat, end: int, cfgs: Sequence[OptimConfig]) -> None:
        self.values, self.grads, self.cfgs = flat.values[:, :end], flat.grads[:, :end], cfgs
        self.momentum = torch.zeros_like(self.values)
        self.keep = column([cfg.muon_momentum for cfg in cfgs], self.values)
        self.groups = _groups([flat.shapes[name] for name, at in flat.stretches.items() if at.stop <= end])

    @torch.no_grad()
    def step(self, shares: Sequence[float]) -> None:
        self.momentum.lerp_(self.grads, 1 - self.keep)
        ahead = self.grads.lerp(self.momentum, self.keep)
        rate = column([cfg.muon_lr * share for cfg, share in zip(self.cfgs, shares, strict=True)], self.values)
        for group in self.groups:
            moves = orthogonalise(group.gather(ahead), self.cfgs[0].newton_schulz_steps)
            group.scatter(self.values, moves.unflatten(0, (len(ahead), -1)) * rate[..., None, None])

    def state(self, member: int) -> State:
        return {"momentum": self.momentum[member]}

    def load(self, member: int, state: State) -> None:
        self.momentum[member] = state["momentum"]


class Average:
    """An exponential moving average of the weights.

    Checkpoints hold the average, so the state of this optimiser is the weights being trained.
    """

    def __init__(self, flat: Flat, cfgs: Sequence[OptimConfig]) -> None:
        self.values, self.mean = flat.values, flat.values.clone()
        self.keep = column([cfg.average or 0.0 for cfg in cfgs], flat.values)

    @torch.no_grad()
    def follow(self) -> None:
        """Update the average with the current weights."""
        self.mean.lerp_(self.values, 1 - self.keep)

    def state(self, member: int) -> State:
        return {"trained": self.values[member]}

    def load(self, member: int, state: State) -> None:
        self.mean[member] = self.values[member]
        self.values[member] = state["trained"]


@dataclass(frozen=True)
class _Group:
    """Matrices that are orthogonalised in one batch, transposed to wide and padded with zeros, which stay zero. Each
    stretch holds `count` neighbouring matrices of one shape.
    """

    stretches: tuple[tuple[slice, int, int, int], ...]  # entries, count, rows, columns
    low: int
    wide: int

    def gather(self, rows: Rows) -> Float[Tensor, "matrix low wide"]:
        parts = []
        for at, count, n_rows, n_columns in self.stretches:
            part = rows[:, at].view(len(rows), count, n_rows, n_columns)
            part = part.mT if n_rows > n_columns else part
            pad = (0, self.wide - part.shape[-1], 0, self.low - part.shape[-2])
            parts.append(torch.nn.functional.pad(part, pad) if any(pad) else part)
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).flatten(0, 1)

    def scatter(self, rows: Rows, moves: Float[Tensor, "member matrix low wide"]) -> None:
        """Subtract the moves from the rows."""
        sizes = [count for _, count, _, _ in self.stretches]
        for (at, count, n_rows, n_columns), part in zip(self.stretches, moves.split(sizes, dim=1), strict=True):
            part = part.mT if n_rows > n_columns else part
            scale = math.sqrt(max(1, n_rows / n_columns))
            rows[:, at].view(len(rows), count, n_rows, n_columns).sub_(part[..., :n_rows, :n_columns], alpha=scale)


def _groups(shapes: Sequence[torch.Size]) -> list[_Group]:
    """Small matrices in one group; large ones grouped by shape. Matrices of equal shape are neighbours."""
    stretches: list[tuple[slice, int, int, int]] = []
    begin = 0
    for shape in dict.fromkeys(shapes):
        count, (n_rows, n_columns) = shapes.count(shape), shape
        stretches.append((slice(begin, begin + count * shape.numel()), count, n_rows, n_columns))
        begin += count * shape.numel()
    if all(shape.numel() <= SMALL_MATRIX for shape in shapes):
        together = [tuple(stretches)] if stretches else []
    else:
        together = [(stretch,) for stretch in stretches]
    return [
        _Group(part, max(min(r, c) for _, _, r, c in part), max(max(r, c) for _, _, r, c in part)) for part in together
    ]


def orthogonalise(matrices: Float[Tensor, "matrix row column"], steps: int) -> Float[Tensor, "matrix row column"]:
    """Each matrix with its singular values replaced by values near 1 (0.7 to 1.2 after five steps); same singular
    vectors.
    """
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimisers:
    """All optimisers of the members of a stack, called by a single `step`."""

    def __init__(self, model: nn.Module, cfgs: Sequence[OptimConfig]) -> None:
        cfg = self.cfg = cfgs[0]
        self.cfgs = cfgs
        self.flat = Flat(
            model, len(cfgs), lambda name, p: cfg.name == "muon" and name.startswith("blocks.") and p.ndim == 2
        )

    def start(self) -> None:
        """Create the optimisers for the current weights."""
        flat, cfg = self.flat, self.cfg
        self.members: dict[str, AdamW | Muon | SlowGradient | NormClamp | Average] = {
            "adamw": AdamW(flat, flat.n_first, self.cfgs)
        }
        if flat.n_first:
            self.members["muon"] = Muon(flat, flat.n_first, self.cfgs)
        self.slow = None if cfg.grokfast is None else SlowGradient(flat, self.cfgs)
        self.clamp = None if cfg.norm_clamp is None else NormClamp(flat, self.cfgs)
        self.average = None if cfg.average is None else Average(flat, self.cfgs)
        if self.average is not None:
            self.members["average"] = self.average
        if self.slow is not None:
            self.members["slow"] = self.slow
        if self.clamp is not None:
            self.members["clamp"] = self.clamp

    @torch.no_grad()
    def step(self, shares: Sequence[float]) -> None:
        """Transform the gradients as configured, update every row at its share of the peak learning rate, and zero the
        gradients.
        """
        if self.slow is not None:
            self.slow.change()
        if self.cfg.perpendicular:
            keep_perpendicular(self.flat)
        if self.cfg.clip is not None:
            most = column([cfg.clip or 0.0 for cfg in self.cfgs], self.flat.grads)
            self.flat.grads.mul_((most / (self.flat.grads.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1))
        for member in self.members.values():
            if isinstance(member, AdamW | Muon):
                member.step(shares)
        self.flat.grads.zero_()
        if self.clamp is not None:
            self.clamp.change()
        if self.average is not None:
            self.average.follow()

    @property
    def kept(self) -> Rows:
        """The weights of checkpoints and evaluations: the trained ones, or their average."""
        return self.flat.values if self.average is None else self.average.mean

    def state(self, member: int) -> State:
        """The optimiser state of a member, for a resume: `optimiser.quantity` to tensor."""
        return {
            f"{name}.{quantity}": tensor
            for name, optimiser in self.members.items()
            for quantity, tensor in optimiser.state(member).items()
        }

    def load(self, member: int, state: Mapping[str, Tensor]) -> None:
        """Load what `state` gave. Raises CheckpointError for the state of another version."""
        for name, optimiser in self.members.items():
            mine = {key.partition(".")[2]: t for key, t in state.items() if key.startswith(f"{name}.")}
            if {key: t.shape for key, t in mine.items()} != {k: t.shape for k, t in optimiser.state(member).items()}:
                shown = ", ".join(f"{key} {list(t.shape)}" for key, t in sorted(state.items()))
                raise CheckpointError(
                    f"the optimiser's state has {shown}, which does not fit this version or this model; "
                    "train the run again under another --name"
                )
            optimiser.load(member, mine)


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a share of its peak: warm-up, the peak until step `begin`, decay until step `end`."""

    cfg: OptimConfig
    begin: int
    end: int

    @classmethod
    def planned(cls, cfg: OptimConfig, steps: int) -> "Schedule":
        """The schedule of the config, before any accuracy is known."""
        return cls(cfg, cfg.warmup_steps + round(cfg.hold * max(steps - cfg.warmup_steps, 0)), steps)

    def after_accuracy(self, step: int, accuracy: float) -> "Schedule":
        """The schedule after a batch of this accuracy: from `decay_at` on, the decay starts now."""
        if self.cfg.decay_at is None or accuracy < self.cfg.decay_at or step >= self.begin:
            return self
        return replace(self, begin=step, end=min(self.end, step + self.cfg.decay_steps))

    def share(self, step: int) -> float:
        """The learning rate of step number `step` (from 0) as a share of its peak."""
        if step < self.cfg.warmup_steps:
            return (step + 1) / self.cfg.warmup_steps
        if step < self.begin:
            return 1.0
        left = 1 - (step - self.begin) / max(self.end - self.begin, 1)
        fall = left if self.cfg.decay == "linear" else 0.5 * (1 + math.cos(math.pi * (1 - left)))
        return self.cfg.final_lr + (1 - self.cfg.final_lr) * fall
