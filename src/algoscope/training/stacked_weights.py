"""The weights of models of one shape, side by side in one matrix: a row a model, each tensor a stretch of it.

What an optimiser does entry by entry is then one operation for all models and all their tensors.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Rows = Float[Tensor, "member entry"]


class Flat:
    """Weights and gradients of `members`: `values` and `grads` [member entry], and their tensors as views of them.

    The tensors that satisfy `first` come first, and among them equal shapes stand together.
    """

    def __init__(self, model: nn.Module, n_members: int, first: Callable[[str, Tensor], bool]) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        ahead = sorted((n for n, p in trained.items() if first(n, p)), key=lambda n: tuple(trained[n].shape))
        order = [*ahead, *(name for name in trained if name not in ahead)]
        self.shapes: dict[str, torch.Size] = {name: trained[name].shape for name in order}
        self.n_first = sum(trained[name].numel() for name in ahead)
        self.stretches: dict[str, slice] = {}
        end = 0
        for name, shape in self.shapes.items():
            self.stretches[name] = slice(end, end + math.prod(shape))
            end += math.prod(shape)
        some = next(iter(trained.values()))
        self.values = torch.zeros(n_members, end, dtype=some.dtype, device=some.device)
        self.grads = torch.zeros_like(self.values)

    def tensors(self, rows: Rows) -> dict[str, Float[Tensor, "member *shape"]]:
        """Any such matrix cut into its tensors, each with the members first; views."""
        return {name: rows[:, stretch].view(len(rows), *self.shapes[name]) for name, stretch in self.stretches.items()}

    def fill(self, member: int, weights: Mapping[str, Tensor]) -> None:
        """Copy one model's tensors into its row."""
        for name, stretch in self.stretches.items():
            self.values[member, stretch] = weights[name].detach().flatten().to(self.values)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors of all members, as views that a graph can begin with."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.tensors(self.values).items()}

    def bind(self, model: nn.Module) -> None:
        """Make the parameters of a model views of row 0, and their gradients too."""
        values, grads = self.tensors(self.values), self.tensors(self.grads)
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.data = values[name][0]
                parameter.grad = grads[name][0]


def column(numbers: Sequence[float], like: Tensor) -> Float[Tensor, "member 1"]:
    """One number a member, to multiply its row with."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]
