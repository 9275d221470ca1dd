"""How many directions a matrix uses, from its singular values."""

import torch
from jaxtyping import Float
from torch import Tensor


def entropy_rank(singular: Float[Tensor, "*matrices value"]) -> Float[Tensor, "*matrices"]:
    """The exponential of the entropy of the singular values as shares of their sum: n for n equal ones, 1 for a single
    one, 0 for a zero matrix. Source: Roy and Vetterli, The effective rank (EUSIPCO 2007).
    """
    total = singular.sum(dim=-1, keepdim=True)
    share = singular / torch.where(total > 0, total, 1.0)
    return torch.special.entr(share).sum(dim=-1).exp() * (total[..., 0] > 0)


def stable_rank(singular: Float[Tensor, "*matrices value"]) -> Float[Tensor, "*matrices"]:
    """The squared Frobenius norm over the squared largest singular value: from 1 to the rank; 0 for a zero matrix."""
    energy, largest = singular.square().sum(dim=-1), singular.square().amax(dim=-1)
    return energy / torch.where(largest > 0, largest, 1.0)
