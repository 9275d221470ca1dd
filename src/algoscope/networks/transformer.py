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
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from algoscope.config import ModelConfig
from algoscope.core.sites import KINDS, Site, sites_of_kinds

Residual = Float[Tensor, "batch pos d_model"]
EVERYWHERE = slice(None)
FEW_KEYS = 32


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


class KeyValues:
    """What attention remembers of positions already read: the keys and values of every layer.

    Each remembered row serves `family` neighbouring rows of the tokens that follow, which begin alike.
    """

    def __init__(self, layers: list[tuple[Tensor, Tensor]] | None = None, family: int = 1) -> None:
        self.layers, self.family = layers or [], family

    def length(self, layer: int) -> int:
        """Positions remembered by a layer: while a model runs, the first layers are ahead of the last."""
        return self.layers[layer][0].shape[2] if layer < len(self.layers) else 0

    def recall(
        self, layer: int
    ) -> tuple[Float[Tensor, "family kv_head key d_head"], Float[Tensor, "family kv_head key d_head"]] | None:
        """Keys and values of one layer; None where nothing has been read."""
        return self.layers[layer] if layer < len(self.layers) else None

    def extend(
        self, layer: int, k: Float[Tensor, "batch kv_head pos d_head"], v: Float[Tensor, "batch kv_head pos d_head"]
    ) -> None:
        """Remember new positions of one layer. A memory that serves families stays as it is: it is read once."""
        old = self.recall(layer)
        if old is None:
            self.layers.append((k, v))
        elif self.family == 1:
            self.layers[layer] = (torch.cat([old[0], k], dim=2), torch.cat([old[1], v], dim=2))

    def rows(self, index: Int[Tensor, "rows"]) -> "KeyValues":
        """The memory of inputs `index`, each as often as it is named."""
        return KeyValues([(k[index], v[index]) for k, v in self.layers])

    def families(self, first: int, last: int, size: int) -> "KeyValues":
        """The memory of inputs `first` to `last`, each for `size` rows; nothing is copied."""
        return KeyValues([(k[first : last + 1], v[first : last + 1]) for k, v in self.layers], size)


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a learned scale (and shift), its scale and its result tapped."""

    def __init__(self, cfg: ModelConfig, name: str) -> None:
        super().__init__()
        self.name, self.eps, self.centred = name, cfg.eps, cfg.normalization_type == "LN"
        self.weight = nn.Parameter(torch.ones(cfg.d_model))
        self.bias = nn.Parameter(torch.zeros(cfg.d_model)) if self.centred else None

    def forward(self, x: Residual, tap: Tap, layer: int | None) -> Residual:
        if f"{self.name}_scale" in tap.kinds:
            if self.centred:
                x = x - x.mean(dim=-1, keepdim=True)
            scale = tap(f"{self.name}_scale", layer, (x.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt())
            x = x / scale * self.weight
            x = x if self.bias is None else x + self.bias
        elif self.centred:
            x = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        else:
            x = F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return tap(f"{self.name}_normalized", layer, x)


class NoNorm(nn.Module):
    """In place of a norm in models that have none."""

    def forward(self, x: Residual, tap: Tap, layer: int | None) -> Residual:
        return x


def make_norm(cfg: ModelConfig, name: str) -> Norm | NoNorm:
    return NoNorm() if cfg.normalization_type is None else Norm(cfg, name)


class Attention(nn.Module):
    """Multi-head attention; keys and values may be shared by groups of query heads."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg, self.d_head = cfg, cfg.head_size
        self.scale = cfg.attn_scale or 1 / math.sqrt(self.d_head)
        self.q = nn.Linear(cfg.d_model, cfg.n_heads * self.d_head, bias=cfg.attn_bias)
        self.k = nn.Linear(cfg.d_model, cfg.kv_heads * self.d_head, bias=cfg.attn_bias)
        self.v = nn.Linear(cfg.d_model, cfg.kv_heads * self.d_head, bias=cfg.attn_bias)
        self.o = nn.Linear(cfg.n_heads * self.d_head, cfg.d_model, bias=cfg.attn_bias)

    def forward(
        self,
        x: Residual,
        at: slice,
        bias: Float[Tensor, "#head query key"] | None,
        past: KeyValues | None,
        tap: Tap,
        layer: int,
    ) -> Float[Tensor, "batch read d_model"]:
        """Attention out at the positions `at`; `bias` is added to the scores (the mask: 0 or minus infinity)."""
        q = tap("q", layer, self._split(self.q(x[:, at])))
        k = tap("k", layer, self._split(self.k(x)))
        v = tap("v", layer, self._split(self.v(x)))
        if self.cfg.positions == "rotary":
            first = 0 if past is None else past.length(layer)
            place = torch.arange(first, first + x.shape[1], device=x.device)
            q = tap("rot_q", layer, rotate(q, place[at], self.cfg.rotary_base))
            k = tap("rot_k", layer, rotate(k, place, self.cfg.rotary_base))
        q, k, v = (rearrange(t, "batch pos head d_head -> batch head pos d_head") for t in (q, k, v))
        old = None if past is None else past.recall(layer)
        if past is not None:
            past.extend(layer, k, v)
        k, v = self._every_head(k), self._every_head(v)
        scores = q @ k.mT
        if past is not None and old is not None:
            scores = join_keys(in_families(q, self._every_head(old[0]).mT, past.family), scores)
        scores = scores * self.scale if bias is None else torch.add(bias, scores, alpha=self.scale)
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
        z = tap("z", layer, rearrange(mixed, "batch head query d_head -> batch query head d_head"))
        if "result" in tap.kinds:
            return self._sum_of_heads(z, tap, layer)
        return self.o(rearrange(z, "batch query head d_head -> batch query (head d_head)"))

    def _split(self, x: Float[Tensor, "batch pos both"]) -> Float[Tensor, "batch pos head d_head"]:
        return rearrange(x, "batch pos (head d_head) -> batch pos head d_head", d_head=self.d_head)

    def _every_head(self, x: Float[Tensor, "any kv_head pos d_head"]) -> Float[Tensor, "any head pos d_head"]:
        """Keys or values, repeated for each query head of their group."""
        group = self.cfg.n_heads // self.cfg.kv_heads
        return x if group == 1 else x.repeat_interleave(group, dim=1)

    def _sum_of_heads(
        self, z: Float[Tensor, "batch pos head d_head"], tap: Tap, layer: int
    ) -> Float[Tensor, "batch pos d_model"]:
        """The output with each head's share (`result`) tapped on its own."""
        w_o = rearrange(self.o.weight, "d_model (head d_head) -> head d_head d_model", d_head=self.d_head)
        result = tap("result", layer, einsum(z, w_o, "b pos head d_head, head d_head d_model -> b pos head d_model"))
        total = result.sum(dim=2)
        return total if self.o.bias is None else total + self.o.bias


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
        self.w_in = nn.Linear(cfg.d_model, d_mlp, bias=cfg.mlp_bias)
        self.w_linear = nn.Linear(cfg.d_model, d_mlp, bias=cfg.mlp_bias) if cfg.gated_mlp else None
        self.w_out = nn.Linear(d_mlp, cfg.d_model, bias=cfg.mlp_bias)

    def forward(self, x: Residual, tap: Tap, layer: int) -> Residual:
        post = self.act(tap("pre", layer, self.w_in(x)))
        if self.w_linear is not None:
            post = post * tap("pre_linear", layer, self.w_linear(x))
        return self.w_out(tap("post", layer, post))


class Block(nn.Module):
    """Attention, then feed-forward; each reads the normalised stream and adds to it."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.ln1, self.attn = make_norm(cfg, "ln1"), Attention(cfg)
        self.mlp = None if cfg.d_mlp is None else FeedForward(cfg, cfg.d_mlp)
        self.ln2 = None if self.mlp is None else make_norm(cfg, "ln2")

    def forward(
        self,
        x: Residual,
        at: slice,
        bias: Float[Tensor, "#head query key"] | None,
        past: KeyValues | None,
        tap: Tap,
        layer: int,
    ) -> Float[Tensor, "batch read d_model"]:
        x = tap("resid_pre", layer, x)
        attn_out = self.attn(self.ln1(x, tap, layer), at, bias, past, tap, layer)
        x = x[:, at] + tap("attn_out", layer, attn_out)
        if self.mlp is not None and self.ln2 is not None:
            x = tap("resid_mid", layer, x)
            x = x + tap("mlp_out", layer, self.mlp(self.ln2(x, tap, layer), tap, layer))
        return tap("resid_post", layer, x)


class Transformer(nn.Module):
    """Tokens in, logits out. `initialise` sets the weights from a seed."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.d_vocab, cfg.d_model)
        self.pos_embed = nn.Embedding(cfg.n_ctx, cfg.d_model) if cfg.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.ln_final = make_norm(cfg, "ln_final")
        self.unembed = None if cfg.tied_head else nn.Linear(cfg.d_model, cfg.d_vocab, bias=False)

    @property
    def W_U(self) -> Float[Tensor, "d_vocab d_model"]:
        """The unembedding, one row a token."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every place at which this model taps, in the order of `core.sites.KINDS`."""
        cfg, absent = self.cfg, set[str]()
        if cfg.positions not in ("learned", "sinusoidal"):
            absent |= {"pos_embed"}
        if cfg.positions != "rotary":
            absent |= {"rot_q", "rot_k"}
        if cfg.normalization_type is None:
            absent |= {kind for kind in KINDS if kind.startswith("ln")}
        if cfg.d_mlp is None:
            absent |= {"ln2_scale", "ln2_normalized", "resid_mid", "pre", "post", "mlp_out"}
        if cfg.d_mlp is None or not cfg.gated_mlp:
            absent |= {"pre_linear"}
        return sites_of_kinds(set(KINDS) - absent, cfg.n_layers)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        at: slice = EVERYWHERE,
        past: KeyValues | None = None,
        tap: Tap = NOBODY,
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` of `tokens`.

        With `past`, the tokens follow those it remembers, and it then remembers these too. Where nobody listens in the
        last block, it answers queries only at `at`.
        """
        first = 0 if past is None else past.length(0)
        place = torch.arange(first, first + tokens.shape[1], device=tokens.device)
        x = tap("embed", None, self.embed(tokens))
        if self.cfg.positions in ("learned", "sinusoidal"):
            x = x + tap("pos_embed", None, self._position(place).expand_as(x))
        return self.forward_from(x, 0, at=at, past=past, tap=tap)

    def forward_from(
        self, x: Residual, layer: int, *, at: slice = EVERYWHERE, past: KeyValues | None = None, tap: Tap = NOBODY
    ) -> Float[Tensor, "batch read d_vocab"]:
        """Logits at the positions `at` of `x`, the residual stream that enters block `layer`."""
        first, last = 0 if past is None else past.length(layer), len(self.blocks) - 1
        place = torch.arange(first, first + x.shape[1], device=x.device)
        narrow = not tap.kinds or (tap.layers is not None and not tap.layers & {last, None})
        for i in range(layer, len(self.blocks)):
            rows = at if narrow and i == last else EVERYWHERE
            x = self.blocks[i](x, rows, self._bias(place[rows], first + len(place), x.dtype), past, tap, i)
        x = self.ln_final(x, tap, None)
        return F.linear(x if narrow else x[:, at], self.W_U)

    def _position(self, place: Int[Tensor, "pos"]) -> Float[Tensor, "pos d_model"]:
        if self.pos_embed is not None:
            return self.pos_embed(place)
        angle = place[:, None] / 10_000 ** (
            torch.arange(0, self.cfg.d_model, 2, device=place.device) / self.cfg.d_model
        )
        waves = torch.stack([angle.sin(), angle.cos()], dim=-1)
        return rearrange(waves, "pos pair two -> pos (pair two)")[:, : self.cfg.d_model].to(self.embed.weight.dtype)

    def _bias(
        self, query: Int[Tensor, "query"], n_keys: int, dtype: torch.dtype
    ) -> Float[Tensor, "#head query key"] | None:
        """What is added to the scores of queries at these positions: the causal mask, and ALiBi's slopes."""
        if not self.cfg.causal and self.cfg.positions != "alibi":
            return None
        ahead = torch.arange(n_keys, device=query.device) - query[:, None]
        bias = torch.zeros(1, *ahead.shape, dtype=dtype, device=query.device)
        if self.cfg.positions == "alibi":
            heads = torch.arange(1, self.cfg.n_heads + 1, device=query.device, dtype=dtype)
            bias = -ahead.abs() * 2 ** (-8 * heads / self.cfg.n_heads)[:, None, None]
        return bias.masked_fill(ahead > 0, -torch.inf) if self.cfg.causal else bias


def in_families(
    x: Float[Tensor, "batch head query inner"], shared: Float[Tensor, "family head inner outer"], size: int
) -> Float[Tensor, "batch head query outer"]:
    """`x @ shared` where `size` neighbouring rows of x go with one of `shared`: one larger product for each."""
    joined = rearrange(x, "(family row) head query inner -> family head (row query) inner", row=size)
    return rearrange(joined @ shared, "family head (row query) outer -> (family row) head query outer", row=size)


def join_keys(
    old: Float[Tensor, "batch head query old"], new: Float[Tensor, "batch head query new"]
) -> Float[Tensor, "batch head query key"]:
    """The scores of old and new keys, laid out as `softmax_over_keys` wants them."""
    return torch.cat([old.movedim(-1, 0), new.movedim(-1, 0)]).movedim(0, -1)


def softmax_over_keys(
    scores: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Softmax along the last axis. Over few keys PyTorch is ten times faster when they come first in memory."""
    if scores.shape[-1] >= FEW_KEYS:
        return scores.softmax(dim=-1)
    return scores.movedim(-1, 0).contiguous().softmax(dim=0).movedim(0, -1)


def rotate(
    x: Float[Tensor, "batch pos head d_head"], place: Int[Tensor, "pos"], base: float
) -> Float[Tensor, "batch pos head d_head"]:
    """Rotary positions: the halves of each head are turned against each other by place / base^(2i/d_head)."""
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = (place[:, None].to(x.dtype) * frequency)[:, None, :]
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angle.cos() - right * angle.sin(), right * angle.cos() + left * angle.sin()], dim=-1)


def build(cfg: ModelConfig, seed: int, device: torch.device | str = "cpu") -> Transformer:
    """A model with the weights that `seed` gives: drawn on the CPU, so that they are the same on every device."""
    with torch.device("meta"):
        model = Transformer(cfg)
    model.to_empty(device="cpu")
    initialise(model, torch.Generator().manual_seed(seed))
    return model.to(device)


@torch.no_grad()
def initialise(model: Transformer, generator: torch.Generator) -> None:
    """Draw every weight anew, in the order of the modules: matrices and embeddings random, biases 0, norms 1."""
    cfg = model.cfg
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(0, cfg.init_embed_std, generator=generator)
        elif isinstance(module, Norm):
            module.weight.fill_(1)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            if cfg.init_zero_out and name.endswith((".attn.o", ".mlp.w_out")):
                module.weight.zero_()
            elif cfg.init_matrix_std is None:
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
            else:
                module.weight.normal_(0, cfg.init_matrix_std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
