"""A small GPT that copies patterns: spelled-out names, one matrix each for W_q, W_k, W_v, W_o, a tied head."""

import math

import torch
from torch import Tensor, nn

from ._random import randomised


class SelfAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.d_k = n_heads, d_model // n_heads
        self.W_q = nn.Linear(d_model, d_model, bias=False)
        self.W_k = nn.Linear(d_model, d_model, bias=False)
        self.W_v = nn.Linear(d_model, d_model, bias=False)
        self.W_o = nn.Linear(d_model, d_model, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.n_heads, self.d_k).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.W_q(x)), self.split(self.W_k(x)), self.split(self.W_v(x))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(self.d_k)).masked_fill(mask == 0, float("-inf"))
        return self.W_o((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.activation = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.activation(self.linear1(x)))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.attn_norm, self.ffn_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.attention, self.ffn = SelfAttention(d_model, n_heads), FeedForward(d_model, d_ff)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), mask)
        return x + self.ffn(self.ffn_norm(x))


class PatternGPT(nn.Module):
    def __init__(self, vocab_size: int, max_seq_len: int, d_model: int, n_heads: int, n_layers: int, d_ff: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.position_embedding = nn.Embedding(max_seq_len, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff) for _ in range(n_layers))
        self.ln_f = nn.LayerNorm(d_model)
        self.output_proj = nn.Linear(d_model, vocab_size, bias=False)
        self.output_proj.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(n, device=tokens.device))
        mask = torch.tril(torch.ones(n, n, device=tokens.device))
        for block in self.blocks:
            x = block(x, mask)
        return self.output_proj(self.ln_f(x))


def make(
    d_vocab: int = 8, n_ctx: int = 10, d_model: int = 16, n_heads: int = 2, n_layers: int = 2, seed: int = 0
) -> nn.Module:
    return randomised(lambda: PatternGPT(d_vocab, n_ctx, d_model, n_heads, n_layers, 4 * d_model), seed)
