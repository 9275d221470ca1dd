"""Components that can be ablated, and their replacements: zeros, the mean over inputs, another input's output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from algoscope.core.sites import Key
from algoscope.data import seeded
from algoscope.subjects.edits import Edit, Patch, Zero
from algoscope.subjects.subject import Subject

Kind = Literal["zero", "mean", "resample"]
EVERY_KIND: tuple[Kind, ...] = get_args(Kind)
KINDS: dict[str, str] = {
    "zero": "zeros",
    "mean": "its mean over the reference inputs, by position",
    "resample": "its output on another reference input, drawn at random",
}


@dataclass(frozen=True)
class Component:
    """A component that can be ablated: the sites of its output, and its head index there."""

    name: str
    group: str
    sites: tuple[Key, ...]
    head: int | None = None

    def edits(self, reference: Mapping[Key, Tensor] | None) -> list[Edit]:
        """Edits that replace its output by `reference`, [batch pos ...] or [1 pos ...]; by zeros without one."""
        if reference is None:
            return [Zero(site, head=self.head) for site in self.sites]
        return [Patch(site, value=reference[site], head=self.head) for site in self.sites]


def components(subject: Subject) -> list[Component]:
    """All components, layer by layer, then the embeddings."""
    parts = []
    for layer in range(subject.cfg.n_layers):
        attention, mlp = ("attn_out", layer), ("mlp_out", layer)
        parts += [Component(f"L{layer}H{h}", "head", (("z", layer),), h) for h in range(subject.cfg.n_heads)]
        parts.append(Component(f"L{layer} attention", "attention", (attention,)))
        if subject.cfg.d_mlp is not None:
            parts.append(Component(f"L{layer} MLP", "feed-forward", (mlp,)))
            parts.append(Component(f"L{layer}", "layer", (attention, mlp)))
    present = {site.kind for site in subject.sites}
    return parts + [Component(name, "embedding", (name,)) for name in ("embed", "pos_embed") if name in present]


def others(n: int, n_reference: int, seed: int) -> Int[Tensor, "batch"]:
    """For each of `n` inputs, of which the first are the reference inputs themselves, the index of another reference
    input: along a random cycle, so that none is its own replacement.
    """
    generator = seeded(torch.device("cpu"), seed, 1)
    order = torch.randperm(n_reference, generator=generator)
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    rest = torch.randint(n_reference, (max(0, n - n_reference),), generator=generator)
    return torch.cat([following, rest])[:n]
