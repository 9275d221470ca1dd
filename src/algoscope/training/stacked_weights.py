"""The weights of models of one shape in one matrix: one row per model, each tensor a range of columns.

An elementwise optimiser is then a single operation over all models and tensors.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

Rows = Float[Tensor, "member entry"]


class Flat:
    """Weights and gradients of `members`: `values` and `grads` [member entry], and their tensors as views of them.

    The tensors that satisfy `first` come first, sorted by shape.
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
        weight = next(iter(trained.values()))
        self.values = torch.zeros(n_members, end, dtype=weight.dtype, device=weight.device)
        self.grads = torch.zeros_like(self.values)

    def tensors(self, rows: Rows) -> dict[str, Float[Tensor, "member *shape"]]:
        """Views of the tensors in such a matrix, with a leading member axis."""
        return {name: rows[:, stretch].view(len(rows), *self.shapes[name]) for name, stretch in self.stretches.items()}

    def fill(self, member: int, weights: Mapping[str, Tensor]) -> None:
        """Copy one model's tensors into its row."""
        for name, stretch in self.stretches.items():
            self.values[member, stretch] = weights[name].detach().flatten().to(self.values)

    def leaves(self) -> dict[str, Tensor]:
        """The tensors of all members as leaves of the autograd graph (views)."""
        return {name: tensor.detach().requires_grad_() for name, tensor in self.tensors(self.values).items()}

    def bind(self, model: nn.Module) -> None:
        """Make the parameters of a model, and their gradients, views of row 0."""
        values, grads = self.tensors(self.values), self.tensors(self.grads)
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.data = values[name][0]
                parameter.grad = grads[name][0]


def column(numbers: Sequence[float], like: Tensor) -> Float[Tensor, "member 1"]:
    """One number per member as a column, to broadcast over its row."""
    return torch.tensor(numbers, dtype=like.dtype, device=like.device)[:, None]
