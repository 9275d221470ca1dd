"""ALiBi: a distance times a slope per head is subtracted from the scores; no position embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    slopes: Tensor

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.register_buffer("slopes", 2 ** (-8 * torch.arange(1, n_heads + 1) / n_heads))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        position = torch.arange(n, device=x.device)
        distance = (position[:, None] - position).to(x.dtype)
        bias = (-self.slopes[:, None, None] * distance).masked_fill(distance < 0, float("-inf"))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(x.dtype))
        return self.proj(z.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.norm_1, self.attn = nn.LayerNorm(dim), Attention(dim, n_heads)
        self.norm_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class AlibiModel(nn.Module):
    def __init__(self, vocab: int, dim: int, n_heads: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.blocks = nn.ModuleList(Block(dim, n_heads) for _ in range(depth))
        self.norm_f, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm_f(x))


def make(d_vocab: int = 11, d_model: int = 24, n_heads: int = 4, n_layers: int = 2, seed: int = 0) -> nn.Module:
    return randomised(lambda: AlibiModel(d_vocab, d_model, n_heads, n_layers), seed)
