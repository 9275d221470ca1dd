"""Effective ranks of a matrix, from its singular values."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def entropy_rank(singular: Float[Tensor, "*matrices value"]) -> Float[Tensor, "*matrices"]:
    """The exponential of the entropy of the singular values normalised to sum 1: n for n equal ones, 1 for a single
    one, 0 for a zero matrix. Source: Roy and Vetterli, The effective rank (EUSIPCO 2007).
    """
    total = singular.sum(dim=-1, keepdim=True)
    share = singular / torch.where(total > 0, total, 1.0)
    return torch.special.entr(share).sum(dim=-1).exp() * (total[..., 0] > 0)


def stable_rank(singular: Float[Tensor, "*matrices value"]) -> Float[Tensor, "*matrices"]:
    """The squared Frobenius norm over the squared largest singular value: from 1 to the rank; 0 for a zero matrix."""
    energy, largest = singular.square().sum(dim=-1), singular.square().amax(dim=-1)
    return energy / torch.where(largest > 0, largest, 1.0)


def counted_rank(
    singular: Float[Tensor, "*matrices value"], larger_side: int, dtype: torch.dtype
) -> Int[Tensor, "*matrices"]:
    """The number of singular values above the rounding error of the stored float type: the largest one times the larger
    side times the type's epsilon.
    """
    noise = singular.amax(dim=-1, keepdim=True) * larger_side * torch.finfo(dtype).eps
    return (singular > noise).sum(dim=-1)


def spectrum_of_product(
    left: Float[Tensor, "*matrices tall thin"], right: Float[Tensor, "*matrices thin wide"]
) -> Float[Tensor, "*matrices value"]:
    """The singular values of left @ right that can be nonzero, largest first, without forming the product where it is
    larger than its factors: with left = Q R and right^T = Q' R' they are those of R R'^T, a small matrix.
    """
    if left.shape[-1] >= min(left.shape[-2], right.shape[-1]):
        return torch.linalg.svdvals(left @ right)
    small = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT
    return torch.linalg.svdvals(small)
