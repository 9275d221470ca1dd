"""The model: a decoder-only pre-norm transformer with every intermediate value in plain sight.

    x = token embedding + position embedding
    for each block:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = norm(x) @ unembedding

Each intermediate value passes through `tap(kind, layer, value)`, which returns it or a replacement; the kinds are
those of `core.sites`. Whatever only a listener would read is computed only when one listens (`kind in tap.kinds`).
Axis names in the shapes are explained in `core.sites`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from algoscope.config import BY_DIGIT, ModelConfig
from algoscope.core.errors import ConfigError
from algoscope.core.sites import KINDS, Site, sites_of_kinds
from algoscope.networks.attention_kernels import in_families, join_keys, rotate, softmax_over_keys
from algoscope.networks.kv_cache import KeyValues
from algoscope.networks.low_rank import linear
from algoscope.networks.position_encodings import score_bias, sinusoids, turns

Residual = Float[Tensor, "batch pos d_model"]
Place = Int[Tensor, "sequence"] | Int[Tensor, "batch sequence"]
EVERYWHERE = slice(None)
LEARNED = ("learned", *BY_DIGIT)
ADDED = (*LEARNED, "sinusoidal")


class Tap:
    """Who listens, at which kinds of site, and in which layers (None: in any). This one is nobody; a listener
    overrides all three.
    """

    kinds: frozenset[str] = frozenset()
    layers: frozenset[int | None] | None = None

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        """The value to go on with: the one given, or a replacement of the same shape."""
        return value


NOBODY = Tap()


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a learned weight (and bias). Tapped: what it divides by, and the quotient."""

    def __init__(self, size: int, name: str, centred: bool, eps: float) -> None:
        super().__init__()
        self.eps, self.centred = eps, centred
        self.scale_kind, self.normalized_kind = kinds = f"{name}_scale", f"{name}_normalized"
        self.kinds = frozenset(kinds)
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if centred else None

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap, layer: int | None) -> Float[Tensor, "*rows size"]:
        if tap.kinds.isdisjoint(self.kinds):
            if self.centred:
                return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        if self.centred:
            x = x - x.mean(dim=-1, keepdim=True)
        scale = tap(self.scale_kind, layer, (x.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt())
        x = tap(self.normalized_kind, layer, x / scale) * self.weight
        return x if self.bias is None else x + self.bias


class NoNorm(nn.Module):
    """In place of a norm in models that have none."""

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap, layer: int | None) -> Float[Tensor, "*rows size"]:
        return x


def make_norm(cfg: ModelConfig, name: str) -> Norm | NoNorm:
    kind = cfg.normalization_type
    return NoNorm() if kind is None else Norm(cfg.d_model, name, kind == "LN", cfg.eps)


class Attention(nn.Module):
    """Multi-head attention; keys and values may be shared by groups of query heads."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg, self.d_head = cfg, cfg.head_size
        self.scale = 1 / math.sqrt(self.d_head) if cfg.attn_scale is None else cfg.attn_scale
        self.q = linear(cfg.d_model, cfg.n_heads * self.d_head, cfg.attn_bias, cfg.rank)
        self.k = linear(cfg.d_model, cfg.kv_heads * self.d_head, cfg.attn_bias, cfg.rank)
        self.v = linear(cfg.d_model, cfg.kv_heads * self.d_head, cfg.attn_bias, cfg.rank)
        out_bias = cfg.attn_bias if cfg.attn_out_bias is None else cfg.attn_out_bias
        self.o = linear(cfg.n_heads * self.d_head, cfg.d_model, out_bias, cfg.rank)
        self.q_norm, self.k_norm = (
            Norm(self.d_head, name, False, cfg.eps) if cfg.qk_norm else None for name in ("q_norm", "k_norm")
        )

    def forward(
        self,
        x: Residual,
        at: slice,
        look: "Look",
        past: KeyValues | None,
        tap: Tap,
        layer: int,
    ) -> Float[Tensor, "batch read d_model"]:
        """Attention out at the positions `at`."""
        q = tap("q", layer, self._split(self.q(x[:, at])))
        k = tap("k", layer, self._split(self.k(x)))
        v = tap("v", layer, self._split(self.v(x)))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q, tap, layer), self.k_norm(k, tap, layer)
        if look.turn is not None:
            q = tap("rot_q", layer, rotate(q, look.turn[..., at, :, :, :]))
            k = tap("rot_k", layer, rotate(k, look.turn))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [batch head pos d_head]
        old = None if past is None else past.recall(layer)
        if past is not None:
            past.extend(layer, k, v)
        k, v = self._every_head(k), self._every_head(v)
        scores = q @ k.mT
        if past is not None and old is not None:
            scores = join_keys(in_families(q, self._every_head(old[0]).mT, past.family), scores)
        bias = look.bias
        scores = scores * self.scale if bias is None else torch.add(bias[..., at, :], scores, alpha=self.scale)
        scores = tap("attn_scores", layer, scores)
        if self.cfg.softmax_plus_one:  # as if one more key had score 0 and nothing to say
            pattern = softmax_over_keys(F.pad(scores, (0, 1)))[..., :-1]
        else:
            pattern = softmax_over_keys(scores)
        pattern = tap("pattern", layer, pattern)
        n_old = pattern.shape[-1] - k.shape[2]
        mixed = pattern[..., n_old:] @ v
        if past is not None and old is not None:
            mixed += in_families(pattern[..., :n_old], self._every_head(old[1]), past.family)
        return self.out(tap("z", layer, mixed.transpose(1, 2)), tap, layer)

    def out(
        self, z: Float[Tensor, "batch pos head d_head"], tap: Tap, layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """The output from what the heads have mixed; each head's share (`result`) is tapped where one listens."""
        if "result" not in tap.kinds:
            return self.o(z.flatten(2))
        w_o = rearrange(self.o.weight, "d_model (head d_head) -> head d_head d_model", d_head=self.d_head)
        result = tap("result", layer, einsum(z, w_o, "b pos head d_head, head d_head d_model -> b pos head d_model"))
        return self.sum_of_heads(result)

    def sum_of_heads(self, result: Float[Tensor, "batch pos head d_model"]) -> Float[Tensor, "batch pos d_model"]:
        total = result.sum(dim=2)
        return total if self.o.bias is None else total + self.o.bias

    def _split(self, x: Float[Tensor, "batch pos both"]) -> Float[Tensor, "batch pos head d_head"]:
        return x.unflatten(-1, (-1, self.d_head))

    def _every_head(self, x: Float[Tensor, "any kv_head pos d_head"]) -> Float[Tensor, "any head pos d_head"]:
        """Keys or values, repeated for each query head of their group."""
        group = self.cfg.n_heads // self.cfg.kv_heads
        return x if group == 1 else x.repeat_interleave(group, dim=1)


class FeedForward(nn.Module):
    """Two matrices with an activation between them, or three when gated."""

    ACTIVATIONS: ClassVar[dict[str, Callable[[Tensor], Tensor]]] = {
        "relu": F.relu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
    }

    def __init__(self, cfg: ModelConfig, d_mlp: int) -> None:
        super().__init__()
        self.act = self.ACTIVATIONS[cfg.act_fn]
        self.w_in = linear(cfg.d_model, d_mlp, cfg.mlp_bias, cfg.rank)
        self.w_linear = linear(cfg.d_model, d_mlp, cfg.mlp_bias, cfg.rank) if cfg.gated_mlp else None
        self.w_out = linear(d_mlp, cfg.d_model, cfg.mlp_bias, cfg.rank)

    def forward(self, x: Residual, tap: Tap, layer: int) -> Residual:
        post = self.act(tap("pre", layer, self.w_in(x)))
        if self.w_linear is not None:
            post = post * tap("pre_linear", layer, self.w_linear(x))
        return self.w_out(tap("post", layer, post))


class Block(nn.Module):
    """Attention, then feed-forward; each reads the normalised stream and adds to it. In a parallel block both read the
    stream as it enters.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.parallel = cfg.parallel
        self.ln1, self.attn = make_norm(cfg, "ln1"), Attention(cfg)
        self.mlp = None if cfg.d_mlp is None else FeedForward(cfg, cfg.d_mlp)
        self.ln2 = None if self.mlp is None else make_norm(cfg, "ln2")

    def forward(
        self, x: Residual, at: slice, look: "Look", past: KeyValues | None, tap: Tap, layer: int
    ) -> Float[Tensor, "batch read d_model"]:
        x, attn_out = self.attend(x, at, look, past, tap, layer)
        return self.feed(x, attn_out, tap, layer)

    def attend(
        self, x: Residual, at: slice, look: "Look", past: KeyValues | None, tap: Tap, layer: int
    ) -> tuple[Float[Tensor, "batch read d_model"], Float[Tensor, "batch read d_model"]]:
        """The first half: the stream that entered, and what attention adds to it."""
        x = tap("resid_pre", layer, x)
        attn_out = self.attn(self.ln1(x, tap, layer), at, look, past, tap, layer)
        return x[:, at], tap("attn_out", layer, attn_out)

    def feed(self, x: Residual, attn_out: Residual, tap: Tap, layer: int) -> Residual:
        """The second half: attention's output added, then the feed-forward's."""
        mid = x + attn_out
        if self.mlp is not None and self.ln2 is not None:
            if not self.parallel:
                x = mid = tap("resid_mid", layer, mid)
            mid = mid + tap("mlp_out", layer, self.mlp(self.ln2(x, tap, layer), tap, layer))
        return tap("resid_post", layer, mid)


@dataclass(frozen=True)
class Look:
    """What positions mean to attention, the same in every layer: what is added to the scores (the mask, 0 or minus
    infinity, and ALiBi's slopes), and how far rotary positions turn each pair of entries: cosine and sine.
    """

    bias: Float[Tensor, "#batch #head query key"] | None
    turn: Float[Tensor, "*batch pos 1 pair 2"] | None


class Transformer(nn.Module):
    """Tokens in, logits out. `initialise` sets the weights from a seed.

    `place` has the rows of the table that its positions take, where they are not counted (`networks.places`).
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.place: Int[Tensor, "sequence"] | None = None
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.pos_embed = nn.Embedding(cfg.n_places, cfg.d_model) if cfg.positions in LEARNED else None
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = make_norm(cfg, "ln_final")
        self.unembed = None if cfg.tied_head else nn.Linear(cfg.d_model, cfg.n_logits, bias=cfg.head_bias)

    def block(self, layer: int) -> Block:
        """One block, by its number."""
        found = self.blocks[layer]
        assert isinstance(found, Block)
        return found

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        """The unembedding, one row a token."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    @property
    def b_U(self) -> Float[Tensor, "d_vocab"] | None:
        """The bias of the unembedding, where there is one."""
        return None if self.unembed is None else self.unembed.bias

    @property
    def W_pos(self) -> Float[Tensor, "pos d_model"] | None:
        """What each position adds to the stream where positions are learned vectors, one row a position."""
        if self.pos_embed is None:
            return None
        return self.pos_embed.weight if self.place is None else self.pos_embed.weight[self.place]

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """Every place at which this model taps, in the order of `core.sites.KINDS`."""
        cfg, absent = self.cfg, set[str]()
        if cfg.positions not in ADDED:
            absent |= {"pos_embed"}
        if cfg.positions != "rotary":
            absent |= {"rot_q", "rot_k"}
        if cfg.normalization_type is None:
            absent |= {kind for kind in KINDS if kind.startswith("ln")}
        if not cfg.qk_norm:
            absent |= {kind for kind in KINDS if kind.startswith(("q_norm", "k_norm"))}
        if cfg.parallel:
            absent |= {"resid_mid"}
        if cfg.d_mlp is None:
            absent |= {"ln2_scale", "ln2_normalized", "resid_mid", "pre", "post", "mlp_out"}
        if cfg.d_mlp is None or not cfg.gated_mlp:
            absent |= {"pre_linear"}
        return sites_of_kinds(set(KINDS) - absent, cfg.n_layers)

    def shape_of(self, site: Site, n_inputs: int, n_pos: int) -> tuple[int, ...]:
        """The shape of a site's value when the model reads tokens [n_inputs n_pos] without a memory."""
        cfg = self.cfg
        sizes = {"batch": n_inputs, "head": cfg.n_heads, "kv_head": cfg.kv_heads, "d_head": cfg.head_size, "1": 1}
        sizes |= dict.fromkeys(("pos", "query", "key"), n_pos) | {"d_model": cfg.d_model, "d_mlp": cfg.d_mlp or 0}
        return tuple(sizes[axis] for axis in KINDS[site.kind].axes)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        at: slice = EVERYWHERE,
        past: KeyValues | None = None,
        tap: Tap = NOBODY,
        mask: Bool[Tensor, "batch key"] | None = None,
        place: Place | None = None,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` of `tokens`.

        With `past`, the tokens follow those it remembers, and it then remembers these too. `mask` is False at padding,
        which nothing looks at and which is not counted as a position; it covers what is remembered too. `place` stands
        for the model's own `place`, one for all inputs or each its own. Where nobody listens in the last block, it
        answers queries only at `at`.
        """
        x = self.embed_tokens(tokens, 0 if past is None else past.length(0), tap, mask, place)
        look = self.look(tokens.shape[1], 0 if past is None else past.length(0), mask)
        last = len(self.blocks) - 1
        narrow = not tap.kinds or (tap.layers is not None and not tap.layers & {last, None})
        for i, block in enumerate(self.blocks):
            x = block(x, at if narrow and i == last else EVERYWHERE, look, past, tap, i)
        return self.to_logits(x, tap, EVERYWHERE if narrow else at)

    def embed_tokens(
        self,
        tokens: Int[Tensor, "batch pos"],
        first: int = 0,
        tap: Tap = NOBODY,
        mask: Bool[Tensor, "batch key"] | None = None,
        place: Place | None = None,
    ) -> Residual:
        """The residual stream before the first block; the tokens stand at positions `first` and on."""
        x = tap("embed", None, self.embed(tokens))
        if self.cfg.positions in ADDED:
            rows = self._rows(self._places(tokens.shape[1], first, mask), place)
            x = x + tap("pos_embed", None, self._position(rows).expand_as(x))
        return x

    def to_logits(
        self,
        x: Residual,
        tap: Tap = NOBODY,
        at: slice = EVERYWHERE,
        among: Int[Tensor, "d_vocab"] | None = None,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` from the residual stream after a block: final norm, then unembedding.

        `among`: of these tokens only.
        """
        x = self.ln_final(x, tap, None)[:, at]
        if among is None:
            return F.linear(x, self.W_U, self.b_U)
        return F.linear(x, self.W_U[among], None if self.b_U is None else self.b_U[among])

    def look(self, n_new: int, first: int = 0, mask: Bool[Tensor, "batch key"] | None = None) -> Look:
        """The mask and the turns for `n_new` positions after the `first`."""
        turn = None
        if self.cfg.positions == "rotary":
            turn = turns(self._places(n_new, first, mask), self.cfg, self.embed.weight.dtype)
        query = torch.arange(first, first + n_new, device=self.embed.weight.device)
        return Look(score_bias(query, first + n_new, mask, self.cfg, self.embed.weight.dtype), turn)

    def _places(
        self, n_new: int, first: int, mask: Bool[Tensor, "batch key"] | None
    ) -> Int[Tensor, "pos"] | Int[Tensor, "batch pos"]:
        """The number of each new position, counted from the first token that is not padding."""
        if mask is None:
            return torch.arange(first, first + n_new, device=self.embed.weight.device)
        return (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, first:]

    def _rows(self, counted: Int[Tensor, "*batch pos"], place: Place | None) -> Int[Tensor, "*rows pos"]:
        """The rows of the table for positions by their count. Raises ConfigError where a model needs to be told."""
        if self.cfg.positions not in BY_DIGIT:
            return counted
        place = self.place if place is None else place
        if place is None:
            raise ConfigError(f"a model with {self.cfg.positions} positions needs a task: open it as a subject")
        return place[..., counted]

    def _position(self, place: Int[Tensor, "*batch pos"]) -> Float[Tensor, "*batch pos d_model"]:
        if self.pos_embed is not None:
            return self.pos_embed(place)
        return sinusoids(place, self.cfg.d_model).to(self.embed.weight.dtype)
