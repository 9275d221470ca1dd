"""c_attn and c_proj with the orientation of Conv1D, [in out], as GPT-2's own code has them."""

import torch
from torch import Tensor, nn

from ._random import randomised


class Conv1D(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(n_in, n_out)), nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_ctx: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.register_buffer("bias", torch.tril(torch.ones(n_ctx, n_ctx, dtype=torch.uint8)).view(1, 1, n_ctx, n_ctx))
        self.c_attn, self.c_proj = Conv1D(n_embd, 3 * n_embd), Conv1D(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = (part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.mT / k.shape[-1] ** 0.5
        allowed = self.bias[:, :, :n, :n].bool()
        scores = torch.where(allowed, scores, torch.finfo(scores.dtype).min)
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, n_embd: int, n_inner: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(n_embd, n_inner), Conv1D(n_inner, n_embd)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_ctx: int, n_inner: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(n_embd), Attention(n_embd, n_head, n_ctx)
        self.ln_2, self.mlp = nn.LayerNorm(n_embd), MLP(n_embd, n_inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    def __init__(self, n_vocab: int, n_ctx: int, n_embd: int, n_head: int, n_layer: int, n_inner: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(n_vocab, n_embd), nn.Embedding(n_ctx, n_embd)
        self.h = nn.ModuleList([Block(n_embd, n_head, n_ctx, n_inner) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[-1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def make(
    d_vocab: int = 11, n_ctx: int = 9, d_model: int = 24, n_heads: int = 4, n_layers: int = 2, seed: int = 0
) -> nn.Module:
    return randomised(lambda: GPT2(d_vocab, n_ctx, d_model, n_heads, n_layers, 3 * d_model), seed)
