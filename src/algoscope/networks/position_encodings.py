"""Position encodings that are not learned: sinusoidal embeddings, rotary embeddings, and the attention bias (causal
mask, padding mask, ALiBi).
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from algoscope.config import BY_DIGIT, ModelConfig
from algoscope.networks.taps import precise

LEARNED = ("learned", *BY_DIGIT)
ADDED = (*LEARNED, "sinusoidal")


def sinusoidal_embedding(position: Int[Tensor, "*batch pos"], d_model: int) -> Float[Tensor, "*batch pos d_model"]:
    """Sine and cosine of position / 10000^(2i/d_model), interleaved."""
    angle = position[..., None] / 10_000 ** (torch.arange(0, d_model, 2, device=position.device) / d_model)
    interleaved = torch.stack([angle.sin(), angle.cos()], dim=-1)
    return rearrange(interleaved, "... pair two -> ... (pair two)")[..., :d_model]


def rotary_angles(
    position: Int[Tensor, "*batch pos"], cfg: ModelConfig, dtype: torch.dtype, window: int | None = None
) -> Float[Tensor, "*batch pos 1 pair 2"]:
    """Cosine and sine of position / base^(2i/rotary_dim), for each pair i of entries of a head, rounded to `dtype`."""
    wide = precise(dtype)
    frequencies = cfg.rotary_frequencies
    if window is not None and cfg.window_rotary_frequencies is not None:
        frequencies = cfg.window_rotary_frequencies
    if frequencies is None:
        even = torch.arange(0, cfg.rotary_size, 2, device=position.device, dtype=wide)
        frequency = 1 / cfg.rotary_base ** (even / cfg.rotary_size)
    else:
        frequency = torch.tensor(frequencies, device=position.device, dtype=wide)
    angle = position[..., None, None].to(wide) * frequency
    return (torch.stack([angle.cos(), angle.sin()], dim=-1) * cfg.rotary_magnitude).to(dtype)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], angles: Float[Tensor, "*batch pos 1 pair 2"]
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions: entry i of each head is rotated with entry i + `pair`; entries from 2 `pair` on are kept."""
    pairs = angles.shape[-2]
    cos, sin = angles.unbind(dim=-1)
    left, right, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


def attention_bias(
    query: Int[Tensor, "query"],
    n_keys: int,
    mask: Bool[Tensor, "batch key"] | None,
    cfg: ModelConfig,
    dtype: torch.dtype,
    window: int | None = None,
) -> Float[Tensor, "#batch #head query key"] | None:
    """The bias of the scaled scores for queries at these positions: minus infinity at masked keys (causal mask,
    sliding window, padding), and ALiBi's slope times distance. None where there is no bias.
    """
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
    if window is not None:  # the query and the keys just before it
        bias = bias.masked_fill(ahead <= -window, -torch.inf)
    if mask is not None:  # padding attends to itself, so that its own row is not empty
        bias = bias.masked_fill(~mask[:, None, None, :] & (ahead != 0), -torch.inf)
    return bias
