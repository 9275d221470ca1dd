"""query_key_value fused head by head ([head, (q, k, v), d_head]), `dense`, `dense_h_to_4h`; rotary on part of each
head; blocks in parallel or one after the other.
"""

import torch
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    def __init__(self, hidden: int, n_heads: int, rotary_dim: int) -> None:
        super().__init__()
        self.n_heads, self.rotary_dim = n_heads, rotary_dim
        self.query_key_value, self.dense = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def rotated(self, x: Tensor) -> Tensor:
        pairs = torch.arange(0, self.rotary_dim, 2, dtype=x.dtype, device=x.device)
        angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] / 10_000 ** (pairs / self.rotary_dim)
        turned, kept = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
        left, right = turned.chunk(2, dim=-1)
        return torch.cat(
            [left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin(), kept], dim=-1
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, hidden = x.shape
        qkv = self.query_key_value(x).view(b, n, self.n_heads, 3 * hidden // self.n_heads).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        if self.rotary_dim:
            q, k = self.rotated(q), self.rotated(k)
        scores = q @ k.transpose(-1, -2) / (hidden // self.n_heads) ** 0.5
        scores = scores + torch.full((n, n), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, hidden))


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dense_h_to_4h, self.dense_4h_to_h = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense_4h_to_h(torch.nn.functional.gelu(self.dense_h_to_4h(x)))


class Layer(nn.Module):
    def __init__(self, hidden: int, n_heads: int, rotary_dim: int, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attention, self.mlp = Attention(hidden, n_heads, rotary_dim), MLP(hidden)

    def forward(self, x: Tensor) -> Tensor:
        attn_out = self.attention(self.input_layernorm(x))
        if self.parallel:
            return x + attn_out + self.mlp(self.post_attention_layernorm(x))
        x = x + attn_out
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(
        self, d_vocab: int, n_ctx: int, hidden: int, n_heads: int, n_layers: int, rotary_dim: int, parallel: bool
    ) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(d_vocab, hidden)
        self.embed_positions = None if rotary_dim else nn.Embedding(n_ctx, hidden)
        self.layers = nn.ModuleList([Layer(hidden, n_heads, rotary_dim, parallel) for _ in range(n_layers)])
        self.final_layer_norm = nn.LayerNorm(hidden)
        self.embed_out = nn.Linear(hidden, d_vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_in(tokens)
        if self.embed_positions is not None:
            x = x + self.embed_positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.embed_out(self.final_layer_norm(x))


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    rotary_dim: int = 4,
    parallel: bool = True,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: Model(d_vocab, n_ctx, d_model, n_heads, n_layers, rotary_dim, parallel), seed)
