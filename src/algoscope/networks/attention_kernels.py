"""The arithmetic inside attention, laid out in memory as PyTorch is fastest with."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

FEW_KEYS = 32


def in_families(
    x: Float[Tensor, "batch head query inner"], shared: Float[Tensor, "family head inner outer"], size: int
) -> Float[Tensor, "batch head query outer"]:
    """`x @ shared` where `size` neighbouring rows of x go with one of `shared`: one larger product for each."""
    joined = rearrange(x, "(family row) head query inner -> family head (row query) inner", row=size)
    return rearrange(joined @ shared, "family head (row query) outer -> (family row) head query outer", row=size)


def join_keys(
    old: Float[Tensor, "batch head query old"], new: Float[Tensor, "batch head query new"]
) -> Float[Tensor, "batch head query key"]:
    """The scores of old and new keys, laid out as `softmax_over_keys` wants them."""
    return torch.cat([old.movedim(-1, 0), new.movedim(-1, 0)]).movedim(0, -1)


def softmax_over_keys(
    scores: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Softmax along the last axis. Over few keys PyTorch is ten times faster when they come first in memory."""
    if scores.shape[-1] >= FEW_KEYS:
        return scores.softmax(dim=-1)
    return scores.movedim(-1, 0).contiguous().softmax(dim=0).movedim(0, -1)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], turn: Float[Tensor, "*batch pos 1 pair 2"]
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions: the first `2 pair` entries of each head, as two halves, are turned against each other."""
    pairs = turn.shape[-2]
    cos, sin = turn.unbind(dim=-1)
    left, right, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)
