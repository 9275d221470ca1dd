"""q_proj, k_proj, v_proj, o_proj with rotary positions, RMSNorm, a gated feed-forward and grouped heads.

`pairing` says which entries of a head are rotated together: entry i and i + half, or 2i and 2i + 1.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class RotaryEmbedding(nn.Module):
    inv_freq: Tensor

    def __init__(self, dim: int, pairing: str, base: float = 10000.0) -> None:
        super().__init__()
        self.pairing = pairing
        self.register_buffer("inv_freq", 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Queries or keys [batch head pos dim], each rotated by its position."""
        angles = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * self.inv_freq
        if self.pairing == "half":
            cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
            left, right = x.chunk(2, dim=-1)
            return x * cos + torch.cat([-right, left], dim=-1) * sin
        cos, sin = angles.repeat_interleave(2, -1).cos(), angles.repeat_interleave(2, -1).sin()
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + turned * sin


class Attention(nn.Module):
    def __init__(self, hidden_size: int, n_heads: int, n_kv_heads: int, pairing: str) -> None:
        super().__init__()
        self.head_dim, self.groups = hidden_size // n_heads, n_heads // n_kv_heads
        self.q_proj = nn.Linear(hidden_size, n_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, n_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, n_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(n_heads * self.head_dim, hidden_size, bias=False)
        self.rotary_emb = RotaryEmbedding(self.head_dim, pairing)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (w(x).view(b, n, -1, self.head_dim).transpose(1, 2) for w in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.rotary_emb(q), self.rotary_emb(k)
        k, v = k.repeat_interleave(self.groups, dim=1), v.repeat_interleave(self.groups, dim=1)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(z.transpose(1, 2).reshape(b, n, -1))


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, hidden_size: int, n_heads: int, n_kv_heads: int, intermediate_size: int, pairing: str) -> None:
        super().__init__()
        self.self_attn = Attention(hidden_size, n_heads, n_kv_heads, pairing)
        self.mlp = MLP(hidden_size, intermediate_size)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden_size), RMSNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int, n_layers: int, **sizes: int | str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(hidden_size, **sizes) for _ in range(n_layers)])
        self.norm = RMSNorm(hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class ForCausalLM(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int, n_layers: int, **sizes: int | str) -> None:
        super().__init__()
        self.model = Decoder(vocab_size, hidden_size, n_layers, **sizes)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lm_head(self.model(input_ids))


def make(
    d_vocab: int = 11,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    n_kv_heads: int = 2,
    d_mlp: int = 40,
    pairing: Literal["half", "interleaved"] = "half",
    seed: int = 0,
) -> nn.Module:
    sizes = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "intermediate_size": d_mlp, "pairing": pairing}
    return randomised(lambda: ForCausalLM(d_vocab, d_model, n_layers, **sizes), seed)
