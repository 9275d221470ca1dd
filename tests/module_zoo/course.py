"""The habits of TransformerLens and ARENA: raw nn.Parameter with one axis per meaning, W_E, W_pos, W_U, IGNORE."""

import torch
from torch import Tensor, einsum, nn

from ._random import randomised


class LayerNorm(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, residual: Tensor) -> Tensor:
        centred = residual - residual.mean(dim=-1, keepdim=True)
        std = (residual.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return centred / std * self.w + self.b


class Embed(nn.Module):
    def __init__(self, d_vocab: int, d_model: int) -> None:
        super().__init__()
        self.W_E = nn.Parameter(torch.empty(d_vocab, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(n_ctx, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_pos[: tokens.shape[1]].expand(tokens.shape[0], -1, -1)


class Attention(nn.Module):
    IGNORE: Tensor

    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.d_head = d_head
        self.W_Q = nn.Parameter(torch.empty(n_heads, d_model, d_head))
        self.W_K = nn.Parameter(torch.empty(n_heads, d_model, d_head))
        self.W_V = nn.Parameter(torch.empty(n_heads, d_model, d_head))
        self.W_O = nn.Parameter(torch.empty(n_heads, d_head, d_model))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.zeros(n_heads, d_head)) for _ in range(3))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("IGNORE", torch.tensor(-1e5, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        q = einsum("bpd,hde->bphe", x, self.W_Q) + self.b_Q
        k = einsum("bpd,hde->bphe", x, self.W_K) + self.b_K
        v = einsum("bpd,hde->bphe", x, self.W_V) + self.b_V
        scores = einsum("bqhe,bkhe->bhqk", q, k) / self.d_head**0.5
        later = torch.triu(torch.ones(scores.shape[-2:], device=x.device), diagonal=1).bool()
        pattern = scores.masked_fill(later, self.IGNORE).softmax(-1)
        z = einsum("bhqk,bkhe->bqhe", pattern, v)
        return einsum("bqhe,hed->bqd", z, self.W_O) + self.b_O


class MLP(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.W_in, self.W_out = nn.Parameter(torch.empty(d_model, d_mlp)), nn.Parameter(torch.empty(d_mlp, d_model))
        self.b_in, self.b_out = nn.Parameter(torch.zeros(d_mlp)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(x @ self.W_in + self.b_in, approximate="tanh") @ self.W_out + self.b_out


class TransformerBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int, d_mlp: int) -> None:
        super().__init__()
        self.ln1, self.attn = LayerNorm(d_model), Attention(d_model, n_heads, d_head)
        self.ln2, self.mlp = LayerNorm(d_model), MLP(d_model, d_mlp)

    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = self.attn(self.ln1(resid_pre)) + resid_pre
        return self.mlp(self.ln2(resid_mid)) + resid_mid


class Unembed(nn.Module):
    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.W_U = nn.Parameter(torch.empty(d_model, d_vocab))
        self.b_U = nn.Parameter(torch.zeros(d_vocab))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U


class DemoTransformer(nn.Module):
    def __init__(
        self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, d_head: int, n_layers: int, d_mlp: int
    ) -> None:
        super().__init__()
        self.embed, self.pos_embed = Embed(d_vocab, d_model), PosEmbed(n_ctx, d_model)
        self.blocks = nn.ModuleList([TransformerBlock(d_model, n_heads, d_head, d_mlp) for _ in range(n_layers)])
        self.ln_final, self.unembed = LayerNorm(d_model), Unembed(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.unembed(self.ln_final(residual))


def make(
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    d_head: int = 5,
    d_mlp: int = 40,
    seed: int = 0,
) -> nn.Module:
    return randomised(lambda: DemoTransformer(d_vocab, n_ctx, d_model, n_heads, d_head, n_layers, d_mlp), seed)
