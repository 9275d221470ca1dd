"""wq, wk, wv, wo, w1, w2, w3, tok_embeddings, attention_norm, ffn_norm, output; rotary by complex numbers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


def rotation(dim: int, end: int, theta: float = 10000.0) -> Tensor:
    """e^(i angle) [pos pair]."""
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
    angles = torch.outer(torch.arange(end), freqs)
    return torch.polar(torch.ones_like(angles), angles)


def rotated(x: Tensor, freqs_cis: Tensor) -> Tensor:
    """Queries or keys [batch pos head dim]."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freqs_cis[None, :, None, :]).flatten(3).type_as(x)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, dim // n_heads
        self.wq, self.wk = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wv, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None) -> Tensor:
        b, n, _ = x.shape
        xq, xk, xv = (w(x).view(b, n, self.n_heads, self.head_dim) for w in (self.wq, self.wk, self.wv))
        xq, xk = rotated(xq, freqs_cis), rotated(xk, freqs_cis)
        scores = torch.matmul(xq.transpose(1, 2), xk.permute(0, 2, 3, 1)) / math.sqrt(self.head_dim)
        if mask is not None:
            scores = scores + mask
        output = torch.matmul(F.softmax(scores, dim=-1), xv.transpose(1, 2))
        return self.wo(output.transpose(1, 2).contiguous().view(b, n, -1))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(dim, n_heads), FeedForward(dim, hidden_dim)
        self.attention_norm, self.ffn_norm = RMSNorm(dim, 1e-5), RMSNorm(dim, 1e-5)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor | None) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    def __init__(
        self, vocab_size: int, max_seq_len: int, dim: int, n_heads: int, n_layers: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(TransformerBlock(dim, n_heads, hidden_dim) for _ in range(n_layers))
        self.norm = RMSNorm(dim, 1e-5)
        self.output = nn.Linear(dim, vocab_size, bias=False)
        self.freqs_cis = rotation(dim // n_heads, max_seq_len)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        if n > self.max_seq_len:
            raise ValueError(f"{n} tokens, at most {self.max_seq_len}")
        h = self.tok_embeddings(tokens)
        mask = None
        if n > 1:
            mask = torch.triu(torch.full((n, n), float("-inf"), device=tokens.device), diagonal=1).type_as(h)
        for layer in self.layers:
            h = layer(h, self.freqs_cis[:n].to(h.device), mask)
        return self.output(self.norm(h))


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    d_mlp: int = 40,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: Transformer(d_vocab, n_ctx, d_model, n_heads, n_layers, d_mlp), seed)
