"""Layer 1, the config of a model: what our transformer can be. `config.py` hands it on as part of a run's config."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from algoscope.core.sections import Section

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Cap = Annotated[float, Field(gt=0)]
BY_DIGIT = ("coupled", "abacus")  # position encodings that depend on the significance of the digit


class ModelConfig(Section):
    """A decoder-only transformer, with the field names of TransformerLens.

    Args:
        d_vocab, n_ctx: size of the vocabulary and of the context, in tokens; a RunConfig takes them from its task.
        d_model, n_layers, n_heads, d_head, d_mlp: the shape; the default of every other field adds no option to it.

    Example:
        >>> import algoscope as ag
        >>> cfg = ag.ModelConfig(d_vocab=14, n_ctx=13, d_model=64, n_heads=4)
        >>> cfg.head_size, cfg.n_layers, cfg.positions
        (16, 2, 'learned')
    """

    d_vocab: Positive
    d_vocab_out: Positive | None = Field(None, description="columns of the logits; None: d_vocab")
    n_ctx: Positive = Field(description="longest sequence, in tokens")
    d_model: Positive = 32
    n_layers: Positive = 2
    n_heads: Positive = 1
    n_kv_heads: Positive | None = Field(None, description="key/value heads when grouped; None: n_heads")
    d_head: Positive | None = Field(None, description="None: d_model / n_heads")
    d_mlp: Positive | None = Field(64, description="None: attention only")
    act_fn: Literal["relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "tanh", "relu_squared", "leaky_relu"] = "relu"
    gated_mlp: bool = False
    rank: Positive | None = Field(None, description="rank of the factorised block matrices; None: full matrices")
    normalization_type: Literal["LN", "RMS"] | None = "LN"
    norms: Literal["pre", "post", "output", "both"] = Field(
        "pre",
        description="where a block's norms stand: x + f(norm(x)), norm(x + f(x)), x + norm(f(x)), or both of f's sides",
    )
    final_norm: bool = Field(True, description="a norm before the unembedding")
    norm_bias: bool = Field(True, description="LayerNorm has a bias")
    eps: float = 1e-5
    embed_scale: float = Field(1.0, description="factor of the token embedding, before positions are added")
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "coupled", "abacus"] | None = "learned"
    n_ids: Positive | None = Field(None, description="learned vectors of coupled and abacus positions; None: n_ctx")
    rotary_base: float = 10_000.0
    rotary_dim: Positive | None = Field(None, description="entries of each head that are rotated; None: all")
    rotary_frequencies: tuple[float, ...] | None = Field(
        None, description="radians per position, for each pair of entries; None: rotary_base^(-2i/rotary_dim)"
    )
    window_rotary_frequencies: tuple[float, ...] | None = Field(
        None, description="the same in blocks with a sliding window; None: as in the others"
    )
    rotary_magnitude: float = Field(1.0, description="factor of the rotated entries")
    causal: bool = True
    windows: tuple[Positive | None, ...] | None = Field(
        None, description="for each block the last keys that a query sees, its own included (None: all); None: all"
    )
    parallel: bool = Field(False, description="attention and feed-forward both read resid_pre")
    attn_bias: bool = False
    attn_out_bias: bool | None = Field(None, description="None: as attn_bias")
    qk_norm: bool = Field(False, description="queries and keys are RMS-normalised")
    qk_norm_over: Literal["head", "all"] = Field("head", description="each head by itself, or all heads together")
    mlp_bias: bool = True
    tied_head: bool = Field(True, description="the unembedding is the token embedding")
    head_bias: bool = Field(False, description="the unembedding has a bias")
    attn_scale: float | None = Field(None, description="factor of the attention scores; None: 1/sqrt(d_head)")
    attn_scores_soft_cap: Cap | None = Field(None, description="scaled scores become cap * tanh(scores / cap)")
    output_logits_soft_cap: Cap | None = Field(None, description="logits become cap * tanh(logits / cap)")
    attn_rate: Share = Field(
        1.0, description="the pattern is rate * softmax + (1 - rate) * 1 at every key that the query sees"
    )
    softmax_plus_one: bool = Field(False, description="adds 1 to the softmax denominator: a head can attend to nothing")
    init_embed_std: float = Field(0.02, description="token and position embeddings start as N(0, std^2)")
    init_matrix_std: float | None = Field(None, description="None: uniform within 1/sqrt(fan in), PyTorch's default")
    init_unembed_std: float | None = Field(None, description="of an untied unembedding; None: as the other matrices")
    init_zero_out: bool = Field(False, description="output matrices of attention and feed-forward start at 0")

    @property
    def head_size(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def n_logits(self) -> int:
        return self.d_vocab_out or self.d_vocab

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    @property
    def n_positions(self) -> int:
        """Rows of the learned position embedding, where there is one."""
        return self.n_ids or self.n_ctx

    @property
    def rotary_size(self) -> int:
        return self.rotary_dim or self.head_size

    @property
    def full_rank(self) -> int:
        """The smaller side of the smallest matrix of a block: the largest possible rank."""
        return min(self.d_model, self.kv_heads * self.head_size, self.d_mlp or self.d_model)

    @model_validator(mode="after")
    def _divides(self) -> "ModelConfig":
        if self.d_head is None and self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; set d_head")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.kv_heads}")
        if self.positions == "rotary" and (self.rotary_size % 2 or self.rotary_size > self.head_size):
            raise ValueError(f"rotary_dim {self.rotary_size} must be even and at most d_head {self.head_size}")
        if self.n_ids is not None and self.positions not in BY_DIGIT:
            raise ValueError(f"n_ids {self.n_ids} is for positions {' and '.join(BY_DIGIT)}, not {self.positions}")
        if self.tied_head and self.n_logits != self.d_vocab:
            raise ValueError(
                f"a tied head has d_vocab {self.d_vocab} logits: leave out d_vocab_out or set tied_head to false"
            )
        if self.rank is not None and self.rank > self.full_rank:
            raise ValueError(f"rank {self.rank} is above {self.full_rank}, the smaller side of a matrix of the blocks")
        if self.windows is not None and (len(self.windows) != self.n_layers or not self.causal):
            raise ValueError(f"windows has {len(self.windows)} values for {self.n_layers} blocks, or no causal mask")
        for name in ("rotary_frequencies", "window_rotary_frequencies"):
            frequencies = getattr(self, name)
            if frequencies is not None and len(frequencies) != self.rotary_size // 2:
                raise ValueError(f"{name} has {len(frequencies)} values for {self.rotary_size // 2} pairs")
        if self.norms != "pre" and self.normalization_type is None:
            raise ValueError(f"norms {self.norms} needs a normalization_type, LN or RMS")
        if self.norms == "post" and self.parallel:
            raise ValueError("norms post needs blocks in series: set parallel to false")
        return self
