"""What positions mean where no vector is learned for them: waves, turns, and what is added to scores."""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import ModelConfig


def sinusoids(place: Int[Tensor, "*batch pos"], d_model: int) -> Float[Tensor, "*batch pos d_model"]:
    """Sine and cosine of place / 10000^(2i/d_model), in turn."""
    angle = place[..., None] / 10_000 ** (torch.arange(0, d_model, 2, device=place.device) / d_model)
    waves = torch.stack([angle.sin(), angle.cos()], dim=-1)
    return rearrange(waves, "... pair two -> ... (pair two)")[..., :d_model]


def turns(
    place: Int[Tensor, "*batch pos"], cfg: ModelConfig, dtype: torch.dtype
) -> Float[Tensor, "*batch pos 1 pair 2"]:
    """Cosine and sine of place / base^(2i/rotary_dim), for each pair i."""
    if cfg.rotary_frequencies is None:
        even = torch.arange(0, cfg.rotary_size, 2, device=place.device, dtype=dtype)
        frequency = 1 / cfg.rotary_base ** (even / cfg.rotary_size)
    else:
        frequency = torch.tensor(cfg.rotary_frequencies, device=place.device, dtype=dtype)
    angle = place[..., None, None].to(dtype) * frequency
    return torch.stack([angle.cos(), angle.sin()], dim=-1) * cfg.rotary_magnitude


def score_bias(
    query: Int[Tensor, "query"],
    n_keys: int,
    mask: Bool[Tensor, "batch key"] | None,
    cfg: ModelConfig,
    dtype: torch.dtype,
) -> Float[Tensor, "#batch #head query key"] | None:
    """What is added to the scores of queries at these positions: the causal mask, padding, and ALiBi's slopes."""
    alibi = cfg.positions == "alibi"
    if not cfg.causal and not alibi and mask is None:
        return None
    ahead = torch.arange(n_keys, device=query.device) - query[:, None]
    bias = torch.zeros(1, 1, *ahead.shape, dtype=dtype, device=query.device)
    if alibi:
        heads = torch.arange(1, cfg.n_heads + 1, device=query.device, dtype=dtype)
        bias = -ahead.abs() * 2 ** (-8 * heads / cfg.n_heads)[None, :, None, None]
    if cfg.causal:
        bias = bias.masked_fill(ahead > 0, -torch.inf)
    if mask is not None:  # padding sees itself, so that its own row is not empty
        bias = bias.masked_fill(~mask[:, None, None, :] & (ahead != 0), -torch.inf)
    return bias
