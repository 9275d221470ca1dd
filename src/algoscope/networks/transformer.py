"""The model: a decoder-only transformer, with a tap at every activation.

    x = token embedding + position embedding
    for each block:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = norm(x) @ unembedding

So with norms before each half of a block; `cfg.norms` says where else they can stand.

Each activation passes through `tap(kind, layer, value)`, which returns it or a replacement; the kinds are those of
`core.sites`. Activations that the model itself does not need are computed only for a tap that reads them
(`kind in tap.kinds`). In half precision, scores, softmax, rotary angles and the statistics of norms are computed in
float32, as in `transformers`, and rounded once.
Axis names in the shapes are explained in `core.sites`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from algoscope.config import BY_DIGIT, ModelConfig
from algoscope.core.errors import ConfigError
from algoscope.core.sites import Site
from algoscope.networks._activations import ACTIVATIONS
from algoscope.networks._embedding_table import embedding_table
from algoscope.networks._model_sites import shape_of, sites_of
from algoscope.networks.attention_kernels import add_ones, scale_and_bias, soft_cap, softmax_over_keys
from algoscope.networks.kv_cache import AttendedKeys, KeyValueCache
from algoscope.networks.low_rank import linear
from algoscope.networks.norms import NORM_AT, Norm, make_norm
from algoscope.networks.position_encodings import (
    ADDED,
    LEARNED,
    attention_bias,
    rotary_angles,
    rotate,
    sinusoidal_embedding,
)
from algoscope.networks.taps import NO_TAP, Tap, is_traced, precise, tap_rounded

Residual = Float[Tensor, "batch pos d_model"]
PositionIds = Int[Tensor, "sequence"] | Int[Tensor, "batch sequence"]
EVERYWHERE = slice(None)


@dataclass(frozen=True)
class AttentionContext:
    """The inputs of every block in one forward pass, other than the residual stream."""

    biases: Mapping[int | None, Float[Tensor, "#batch #head query key"] | None]
    """Added to the scaled scores, for each sliding window: the mask (0 or minus infinity) and ALiBi's slopes."""
    angles: Mapping[int | None, Float[Tensor, "*batch pos 1 pair 2"]] | None
    """Cosine and sine of the rotary angle of each pair of entries, for each sliding window."""
    cache: KeyValueCache | None = None
    """The key-value cache of the preceding tokens, which this pass extends."""
    tap: Tap = NO_TAP

    def bias_at(self, at: slice, window: int | None) -> Float[Tensor, "#batch #head read key"] | None:
        """The bias for queries at these positions, in a block with this window."""
        bias = self.biases[window]
        return None if bias is None else bias[..., at, :]


class Attention(nn.Module):
    """Multi-head attention; groups of query heads may share keys and values."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.cfg, self.layer, self.d_head = cfg, layer, cfg.head_size
        self.scale = 1 / math.sqrt(self.d_head) if cfg.attn_scale is None else cfg.attn_scale
        self.window = None if cfg.windows is None else cfg.windows[layer]
        self.q = linear(cfg.d_model, cfg.n_heads * self.d_head, cfg.attn_bias, cfg.rank)
        self.k = linear(cfg.d_model, cfg.kv_heads * self.d_head, cfg.attn_bias, cfg.rank)
        self.v = linear(cfg.d_model, cfg.kv_heads * self.d_head, cfg.attn_bias, cfg.rank)
        out_bias = cfg.attn_bias if cfg.attn_out_bias is None else cfg.attn_out_bias
        self.o = linear(cfg.n_heads * self.d_head, cfg.d_model, out_bias, cfg.rank)
        together = cfg.qk_norm_over == "all"
        self.q_norm, self.k_norm = (
            Norm(self.d_head, name, layer, False, cfg.eps, n_heads=n_heads if together else None)
            if cfg.qk_norm
            else None
            for name, n_heads in (("q_norm", cfg.n_heads), ("k_norm", cfg.kv_heads))
        )

    def forward(
        self, x: Residual, context: AttentionContext, at: slice = EVERYWHERE
    ) -> Float[Tensor, "batch read d_model"]:
        """The output for queries at the positions `at`; keys and values are those of all positions."""
        tap, layer = context.tap, self.layer
        q = tap("q", layer, self._split(self.q(x[:, at])))
        k = tap("k", layer, self._split(self.k(x)))
        v = tap("v", layer, self._split(self.v(x)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, tap), self.k_norm(k, tap)
        if context.angles is not None:
            angles = context.angles[self.window]
            q = tap("rot_q", layer, rotate(q, angles[..., at, :, :, :]))
            k = tap("rot_k", layer, rotate(k, angles))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [batch head pos d_head]
        attended = AttendedKeys(k, v) if context.cache is None else context.cache.extend(layer, k, v)
        bias = context.bias_at(at, self.window)
        scores = scale_and_bias(attended.scores(q), self.scale, bias, self.cfg.attn_scores_soft_cap)
        scores = tap_rounded(tap, "attn_scores", layer, scores, x.dtype)
        pattern = softmax_over_keys(scores, self.cfg.softmax_plus_one)
        if self.cfg.attn_rate < 1:
            pattern = add_ones(pattern, self.cfg.attn_rate, bias)
        pattern = tap("pattern", layer, pattern.to(x.dtype))
        z = tap("z", layer, attended.mix(pattern).transpose(1, 2))
        return self.out(z, tap)

    def out(self, z: Float[Tensor, "batch pos head d_head"], tap: Tap) -> Float[Tensor, "batch pos d_model"]:
        """The output projection of `z`; the output of each head (`result`) is computed only for a tap that reads it."""
        plain = self.o(z.flatten(2))
        if "result" not in tap.kinds:
            return plain
        w_o = rearrange(self.o.weight, "d_model (head d_head) -> head d_head d_model", d_head=self.d_head)
        result = einsum(z, w_o, "b pos head d_head, head d_head d_model -> b pos head d_model")
        return self.sum_of_heads(tap("result", self.layer, result), result, plain)

    def sum_of_heads(
        self,
        new: Float[Tensor, "*rows pos head d_model"],
        old: Float[Tensor, "*rows pos head d_model"],
        plain: Float[Tensor, "*rows pos d_model"],
    ) -> Float[Tensor, "*rows pos d_model"]:
        """The output for these outputs of the heads; `plain`, which is that for `old`, where none of them differs."""
        if new is old and not is_traced():
            return plain
        total = new.sum(dim=-2)
        total = total if self.o.bias is None else total + self.o.bias
        return total if is_traced() else torch.where((new == old).all(dim=-2), plain, total)

    def _split(self, x: Float[Tensor, "batch pos both"]) -> Float[Tensor, "batch pos head d_head"]:
        return x.unflatten(-1, (-1, self.d_head))


class FeedForward(nn.Module):
    """Two matrices with an activation between them, or three when gated."""

    def __init__(self, cfg: ModelConfig, layer: int, d_mlp: int) -> None:
        super().__init__()
        self.layer, self.act = layer, ACTIVATIONS[cfg.act_fn]
        self.w_in = linear(cfg.d_model, d_mlp, cfg.mlp_bias, cfg.rank)
        self.w_linear = linear(cfg.d_model, d_mlp, cfg.mlp_bias, cfg.rank) if cfg.gated_mlp else None
        self.w_out = linear(d_mlp, cfg.d_model, cfg.mlp_bias, cfg.rank)

    def forward(self, x: Residual, tap: Tap) -> Residual:
        post = self.act(tap("pre", self.layer, self.w_in(x)))
        if self.w_linear is not None:
            post = post * tap("pre_linear", self.layer, self.w_linear(x))
        return self.w_out(tap("post", self.layer, post))


class Block(nn.Module):
    """Attention, then feed-forward; each reads the residual stream and adds to it, normalised where `cfg.norms` says.
    In a parallel block both read `resid_pre`.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.parallel, self.norm_at = layer, cfg.parallel, NORM_AT[cfg.norms]
        self.ln1, self.attn = make_norm(cfg, "ln1", layer), Attention(cfg, layer)
        self.mlp = None if cfg.d_mlp is None else FeedForward(cfg, layer, cfg.d_mlp)
        self.ln2 = None if self.mlp is None else make_norm(cfg, "ln2", layer)
        twice = cfg.norms == "both"
        self.ln1_post = make_norm(cfg, "ln1_post", layer) if twice else None
        self.ln2_post = make_norm(cfg, "ln2_post", layer) if twice and self.mlp is not None else None

    def forward(
        self, x: Residual, context: AttentionContext, at: slice = EVERYWHERE
    ) -> Float[Tensor, "batch read d_model"]:
        """The residual stream after the block, at the positions `at`."""
        x, attn_out = self.attend(x, context, at)
        return self.feed(x, attn_out, context.tap)

    def attend(
        self, x: Residual, context: AttentionContext, at: slice = EVERYWHERE
    ) -> tuple[Float[Tensor, "batch read d_model"], Float[Tensor, "batch read d_model"]]:
        """The first half: `resid_pre` at the positions `at`, and what attention adds to it."""
        x = context.tap("resid_pre", self.layer, x)
        attn_out = self.attn(self.normalised("input", 1, x, context.tap), context, at)
        attn_out = self.normalised("output", 1, attn_out, context.tap)
        return x[:, at], context.tap("attn_out", self.layer, attn_out)

    def feed(self, x: Residual, attn_out: Residual, tap: Tap = NO_TAP) -> Residual:
        """The second half: add the output of attention, then that of the feed-forward."""
        mid = self.normalised("sum", 1, x + attn_out, tap)
        if self.mlp is not None:
            if not self.parallel:
                x = mid = tap("resid_mid", self.layer, mid)
            mlp_out = self.normalised("output", 2, self.mlp(self.normalised("input", 2, x, tap), tap), tap)
            mlp_out = tap("mlp_out", self.layer, mlp_out)
            as_library = self.parallel and x.dtype != precise(x.dtype)  # in half precision the order of a sum matters
            mid = x + (attn_out + mlp_out) if as_library else mid + mlp_out
            mid = self.normalised("sum", 2, mid, tap)
        return tap("resid_post", self.layer, mid)

    def normalised(
        self, place: str, half: int, x: Float[Tensor, "*rows d_model"], tap: Tap = NO_TAP
    ) -> Float[Tensor, "*rows d_model"]:
        """A value through the norm that stands at this place of the first or second half, where there is one."""
        name = self.norm_at.get(place)
        return x if name is None else getattr(self, name.format(half=half))(x, tap)


class HeadBias(nn.Module):
    """The bias of an unembedding whose matrix is the token embedding."""

    def __init__(self, n_logits: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n_logits))


class Transformer(nn.Module):
    """A decoder from tokens [batch pos] to logits [batch pos d_vocab]; every activation can be read and replaced.

    The constructor uses PyTorch's initialisation; `networks.build` draws weights from a seed.

    Args:
        cfg: the config of the model.

    Example:
        >>> import torch, algoscope as ag
        >>> model = ag.Transformer(ag.ModelConfig(d_vocab=14, n_ctx=13, d_model=32, n_heads=1, n_layers=2))
        >>> model(torch.zeros(2, 13, dtype=torch.long)).shape
        torch.Size([2, 13, 14])
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.position_ids: Int[Tensor, "sequence"] | None = None
        """The row of the position table for each position, for `coupled` and `abacus` (`digit_positions`)."""
        self.embed = embedding_table(cfg.d_vocab, cfg.d_model)
        self.pos_embed = embedding_table(cfg.n_positions, cfg.d_model) if cfg.positions in LEARNED else None
        self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.ln_final = make_norm(cfg, "ln_final", None)
        self.unembed: nn.Linear | HeadBias | None = HeadBias(cfg.n_logits) if cfg.head_bias else None
        if not cfg.tied_head:
            self.unembed = nn.Linear(cfg.d_model, cfg.n_logits, bias=cfg.head_bias)

    def block(self, layer: int) -> Block:
        """A block by its layer."""
        block = self.blocks[layer]
        assert isinstance(block, Block)
        return block

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """The token embedding as it enters the residual stream, one row per token."""
        return self._scaled(self.embed.weight)

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        """The unembedding, one row per token."""
        return self.unembed.weight if isinstance(self.unembed, nn.Linear) else self.embed.weight

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"] | None:
        """The bias of the unembedding, where there is one."""
        return None if self.unembed is None else self.unembed.bias

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"] | None:
        """Learned position embeddings, one row per position; None where they are not learned."""
        if self.pos_embed is None:
            return None
        return self.pos_embed.weight if self.position_ids is None else self.pos_embed.weight[self.position_ids]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every site of this model, in the order of `core.sites.KINDS`."""
        return sites_of(self.cfg)

    def shape_of(self, site: Site, n_inputs: int, n_pos: int) -> tuple[int, ...]:
        """The shape of a site's value when the model reads tokens [n_inputs n_pos] without a cache."""
        return shape_of(self.cfg, site, n_inputs, n_pos)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        at: slice = EVERYWHERE,
        cache: KeyValueCache | None = None,
        tap: Tap = NO_TAP,
        mask: Bool[Tensor, "batch key"] | None = None,
        position_ids: PositionIds | None = None,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` of `tokens`.

        Where no tap reads the last block, it is computed only for queries at `at`.

        Args:
            tokens: token ids.
            at: the positions at which logits are computed.
            cache: key-value cache of the preceding tokens, which is extended by these.
            tap: reads or replaces activations.
            mask: False at padding, which is not attended to and not counted as a position; cached tokens included.
            position_ids: rows of the position table instead of the model's, for all inputs or for each.
        Returns:
            Logits of the next token.
        """
        n_cached = 0 if cache is None else cache.length(0)
        x = self.embed_tokens(tokens, n_cached, tap, mask, position_ids)
        context = self.attention_context(tokens.shape[1], n_cached, mask, cache, tap)
        last = len(self.blocks) - 1
        narrow = not tap.kinds or (tap.layers is not None and not tap.layers & {last, None})
        for layer, block in enumerate(self.blocks):
            x = block(x, context, at if narrow and layer == last else EVERYWHERE)
        return self.to_logits(x, tap, EVERYWHERE if narrow else at)

    def embed_tokens(
        self,
        tokens: Int[Tensor, "batch pos"],
        first: int = 0,
        tap: Tap = NO_TAP,
        mask: Bool[Tensor, "batch key"] | None = None,
        position_ids: PositionIds | None = None,
    ) -> Residual:
        """The residual stream before the first block, for tokens at the positions from `first` on."""
        x = tap("embed", None, self._scaled(self.embed(tokens)))
        if self.cfg.positions in ADDED:
            rows = self._table_rows(self._counted(tokens.shape[1], first, mask), position_ids)
            x = x + tap("pos_embed", None, self._position_embedding(rows).expand_as(x))
        return x

    def to_logits(
        self,
        x: Residual,
        tap: Tap = NO_TAP,
        at: slice = EVERYWHERE,
        among: Int[Tensor, "d_vocab"] | None = None,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` from the residual stream after a block: final norm, then unembedding.

        `among`: of these tokens only.
        """
        x = self.ln_final(x, tap)[:, at]
        if among is None:
            logits = F.linear(x, self.W_U, self.b_U)
        else:
            logits = F.linear(x, self.W_U[among], None if self.b_U is None else self.b_U[among])
        cap = self.cfg.output_logits_soft_cap
        return logits if cap is None else soft_cap(logits, cap)

    def attention_context(
        self,
        n_new: int,
        first: int = 0,
        mask: Bool[Tensor, "batch key"] | None = None,
        cache: KeyValueCache | None = None,
        tap: Tap = NO_TAP,
    ) -> AttentionContext:
        """Attention bias, rotary angles, cache and tap for `n_new` positions from `first` on."""
        device, dtype = self.embed.weight.device, self.embed.weight.dtype
        windows = set(self.cfg.windows or (None,))
        angles = None
        if self.cfg.positions == "rotary":
            counted = self._counted(n_new, first, mask)
            angles = {window: rotary_angles(counted, self.cfg, dtype, window) for window in windows}
        query = torch.arange(first, first + n_new, device=device)
        biases = {
            window: attention_bias(query, first + n_new, mask, self.cfg, precise(dtype), window) for window in windows
        }
        return AttentionContext(biases, angles, cache, tap)

    def _scaled(self, embedded: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """Token embeddings times `embed_scale`, which is rounded to their type first, as in `transformers`."""
        if self.cfg.embed_scale == 1:
            return embedded
        return embedded * torch.full((), self.cfg.embed_scale, dtype=embedded.dtype, device=embedded.device)

    def _counted(
        self, n_new: int, first: int, mask: Bool[Tensor, "batch key"] | None
    ) -> Int[Tensor, "pos"] | Int[Tensor, "batch pos"]:
        """The index of each new position, counted from the first token that is not padding."""
        if mask is None:
            return torch.arange(first, first + n_new, device=self.embed.weight.device)
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, first:]

    def _table_rows(self, counted: Int[Tensor, "*batch pos"], ids: PositionIds | None) -> Int[Tensor, "*rows pos"]:
        """The row of the position table for each counted position. Raises ConfigError for missing position ids."""
        if self.cfg.positions not in BY_DIGIT:
            return counted
        ids = self.position_ids if ids is None else ids
        if ids is None:
            raise ConfigError(f"a model with {self.cfg.positions} positions needs a task: open it as a subject")
        return ids[..., counted]

    def _position_embedding(self, rows: Int[Tensor, "*batch pos"]) -> Float[Tensor, "*batch pos d_model"]:
        if self.pos_embed is not None:
            return self.pos_embed(rows)
        return sinusoidal_embedding(rows, self.cfg.d_model).to(self.embed.weight.dtype)
