"""Decoders with a part that our transformer does not have: each is a usual GPT but for that part."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._random import randomised


class Attention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(d_model, d_model) for _ in range(4))

    def heads(self, x: Tensor) -> list[Tensor]:
        return [w(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for w in (self.q_proj, self.k_proj, self.v_proj)]

    def forward(self, x: Tensor) -> Tensor:
        z = F.scaled_dot_product_attention(*self.heads(x), is_causal=True)
        return self.out_proj(z.transpose(1, 2).flatten(2))


class RelativeBias(Attention):
    """A learned bias of the scores for each head and distance."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.relative_attention_bias = nn.Embedding(32, n_heads)

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[1], device=x.device)
        distance = position[:, None] - position
        bias = self.relative_attention_bias(distance.clamp(0, 31)).permute(2, 0, 1)
        mask = bias.masked_fill(distance < 0, -torch.inf)
        z = F.scaled_dot_product_attention(*self.heads(x), attn_mask=mask)
        return self.out_proj(z.transpose(1, 2).flatten(2))


class LinearAttention(Attention):
    """Products of positive features in place of a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(x)
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
        return self.out_proj((weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.fc_in, self.fc_out = nn.Linear(d_model, 3 * d_model), nn.Linear(3 * d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_out(F.gelu(self.fc_in(x)))


class Experts(nn.Module):
    """A mixture of experts: each token goes through the one that its router chooses."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.router = nn.Linear(d_model, 3, bias=False)
        self.experts = nn.ModuleList(MLP(d_model) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        gate = self.router(x).softmax(-1)
        chosen = F.one_hot(gate.argmax(-1), 3).to(x.dtype) * gate
        return sum(chosen[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class Block(nn.Module):
    def __init__(self, d_model: int, n_heads: int, part: str) -> None:
        super().__init__()
        attention = {"relative bias": RelativeBias, "linear attention": LinearAttention}.get(part, Attention)
        self.ln1, self.attn = nn.LayerNorm(d_model), attention(d_model, n_heads)
        self.ln2, self.mlp = nn.LayerNorm(d_model), Experts(d_model) if part == "experts" else MLP(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Convolution(nn.Module):
    """Each position and the two before it, channel by channel."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(d_model, d_model, 3, groups=d_model)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)


class Model(nn.Module):
    def __init__(self, d_vocab: int, n_ctx: int, d_model: int, n_heads: int, n_layers: int, part: str) -> None:
        super().__init__()
        self.tok_emb, self.pos_emb = nn.Embedding(d_vocab, d_model), nn.Embedding(n_ctx, d_model)
        self.embed_norm = nn.LayerNorm(d_model) if part == "embedding norm" else None
        self.blocks = nn.ModuleList(Block(d_model, n_heads, part) for _ in range(n_layers))
        self.convs = nn.ModuleList(Convolution(d_model) for _ in range(n_layers)) if part == "convolution" else None
        self.ln_f, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_emb(tokens) + self.pos_emb.weight[: tokens.shape[1]]
        x = x if self.embed_norm is None else self.embed_norm(x)
        for layer, block in enumerate(self.blocks):
            x = block(x)
            x = x if self.convs is None else self.convs[layer](x)
        return self.head(self.ln_f(x))


class Recurrent(nn.Module):
    """No transformer at all."""

    def __init__(self, d_vocab: int, d_model: int, n_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(d_vocab, d_model)
        self.lstm = nn.LSTM(d_model, d_model, n_layers, batch_first=True)
        self.fc = nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(tokens))[0])


def make(
    part: str,
    d_vocab: int = 11,
    n_ctx: int = 9,
    d_model: int = 24,
    n_heads: int = 4,
    n_layers: int = 2,
    seed: int = 0,
) -> nn.Module:
    if part == "lstm":
        return randomised(lambda: Recurrent(d_vocab, d_model, n_layers), seed)
    return randomised(lambda: Model(d_vocab, n_ctx, d_model, n_heads, n_layers, part), seed)
