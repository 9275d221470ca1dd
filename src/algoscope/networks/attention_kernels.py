"""Matrix products and softmax of attention, with memory layouts that are fast in PyTorch."""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from algoscope.networks.taps import precise

FEW_KEYS = 32


def multiply_shared(
    x: Float[Tensor, "batch head query inner"], shared: Float[Tensor, "prefix head inner outer"], rows_per_prefix: int
) -> Float[Tensor, "batch head query outer"]:
    """`x @ shared`, where `rows_per_prefix` neighbouring rows of x share a matrix: one product per matrix."""
    joined = rearrange(x, "(prefix row) head query inner -> prefix head (row query) inner", row=rows_per_prefix)
    product = joined @ shared
    return rearrange(product, "prefix head (row query) outer -> (prefix row) head query outer", row=rows_per_prefix)


def join_keys(
    cached: Float[Tensor, "batch head query cached"], new: Float[Tensor, "batch head query new"]
) -> Float[Tensor, "batch head query key"]:
    """The scores of cached and new keys, in the memory layout of `softmax_over_keys`."""
    return torch.cat([cached.movedim(-1, 0), new.movedim(-1, 0)]).movedim(0, -1)


def scale_and_bias(
    products: Float[Tensor, "batch head query key"],
    scale: float,
    bias: Float[Tensor, "#batch #head query key"] | None,
    cap: float | None = None,
) -> Float[Tensor, "batch head query key"]:
    """scale * products + bias; with a cap, the scaled products are capped before the bias is added."""
    if cap is not None:
        products, scale = soft_cap(products * scale, cap), 1.0
    return products * scale if bias is None else torch.add(bias, products, alpha=scale)


def soft_cap(x: Float[Tensor, "*any"], cap: float) -> Float[Tensor, "*any"]:
    """cap * tanh(x / cap): nearly x where it is small, never beyond the cap. Source: Gemma 2 (arXiv 2408.00118)."""
    wide = x.to(precise(x.dtype))
    return (cap * torch.tanh(wide / cap)).to(x.dtype)


def add_ones(
    pattern: Float[Tensor, "batch head query key"], rate: float, bias: Float[Tensor, "#batch #head query key"] | None
) -> Float[Tensor, "batch head query key"]:
    """rate * pattern + (1 - rate) at every key that the query sees: where the bias is not minus infinity.

    Source: the attention rate of Zhong et al., arXiv 2306.17844.
    """
    ones = 1 if bias is None else (bias > -torch.inf).to(pattern.dtype)
    return rate * pattern + (1 - rate) * ones


def softmax_over_keys(
    scores: Float[Tensor, "batch head query key"], plus_one: bool = False
) -> Float[Tensor, "batch head query key"]:
    """Softmax along the last axis. For few keys it is ten times faster with the key axis first in memory.

    `plus_one` adds 1 to the denominator, like a key with score 0 and value 0: a head can attend to nothing.
    """
    if plus_one:
        return softmax_over_keys(F.pad(scores, (0, 1)))[..., :-1]
    if torch.compiler.is_exporting() or scores.shape[-1] >= FEW_KEYS:  # an exported graph must not depend on a size
        return scores.softmax(dim=-1)
    return scores.movedim(-1, 0).contiguous().softmax(dim=0).movedim(0, -1)
