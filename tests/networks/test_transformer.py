"""The model: counted, held to PyTorch's own encoder layer, and every tap in its place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from algoscope.config import ModelConfig
from algoscope.core.sites import KINDS
from algoscope.networks.build import build
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.parameters import SHAPES, count_parameters
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer
from algoscope.recipes.addition import add3_reference

REFERENCE = add3_reference().model
EVERYTHING = ModelConfig(
    d_vocab=11, n_ctx=9, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, d_mlp=24, act_fn="silu", gated_mlp=True,
    normalization_type="RMS", positions="rotary", attn_bias=True, tied_head=False, init_matrix_std=0.3,
    init_embed_std=1.0,
)  # fmt: skip
VARIANTS = {
    "reference": REFERENCE,
    "everything": EVERYTHING,
    "attention only": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=3, d_mlp=None, init_embed_std=1.0),
    "no norm": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, normalization_type=None, init_embed_std=1.0),
    "alibi": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, positions="alibi", init_embed_std=1.0),
    "sinusoidal": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, positions="sinusoidal", init_embed_std=1.0),
    "looks ahead": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, causal=False, init_embed_std=1.0),
    "rests": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, softmax_plus_one=True, init_embed_std=1.0),
    "no positions": ModelConfig(d_vocab=8, n_ctx=9, d_model=12, n_heads=2, positions=None, init_embed_std=1.0),
}
CAUSAL = {name: cfg for name, cfg in VARIANTS.items() if cfg.causal}
variants = pytest.mark.parametrize("cfg", VARIANTS.values(), ids=VARIANTS)


def example(cfg: ModelConfig, seed: int = 0) -> tuple[Transformer, torch.Tensor]:
    """A model in float64 with every weight random (biases and norms too), and tokens for it."""
    model = build(cfg, seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model, torch.randint(cfg.d_vocab, (4, 9), generator=generator)


# ---------------------------------------------------------------------- parameters


def test_parameters_of_the_reference_by_component() -> None:
    counts = count_parameters(REFERENCE)
    assert sum(counts.values()) == 17_760
    assert counts["token embedding"] == 448
    assert counts["position embedding"] == 416
    for block in (0, 1):
        assert counts[f"block {block} attention"] == 4_096
        assert counts[f"block {block} feed-forward"] == 4_192
        assert counts[f"block {block} norms"] == 128
    assert counts["final norm"] == 64


def test_published_shapes_to_the_digit() -> None:
    assert sum(count_parameters(SHAPES["gpt2"]).values()) == 124_439_808
    assert sum(count_parameters(SHAPES["llama3-8b"]).values()) == 8_030_261_248


@variants
def test_counts_are_those_of_the_built_model(cfg: ModelConfig) -> None:
    assert sum(count_parameters(cfg).values()) == sum(p.numel() for p in build(cfg, 0).parameters())


# ---------------------------------------------------------------------- parity


def test_equals_pytorchs_own_encoder_layers() -> None:
    model, tokens = example(REFERENCE)
    x = model.embed.weight[tokens] + model.pos_embed.weight[:9]
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    for block in model.blocks:
        theirs = nn.TransformerEncoderLayer(
            32, 1, 64, dropout=0.0, activation="relu", norm_first=True, batch_first=True, dtype=torch.float64
        )
        attn, mlp = block.attn, block.mlp
        theirs.self_attn.in_proj_weight.data = torch.cat([attn.q.weight, attn.k.weight, attn.v.weight])
        theirs.self_attn.out_proj.weight.data = attn.o.weight
        theirs.self_attn.in_proj_bias.data.zero_()
        theirs.self_attn.out_proj.bias.data.zero_()
        theirs.linear1.load_state_dict(mlp.w_in.state_dict())
        theirs.linear2.load_state_dict(mlp.w_out.state_dict())
        theirs.norm1.load_state_dict(block.ln1.state_dict())
        theirs.norm2.load_state_dict(block.ln2.state_dict())
        x = theirs(x, src_mask=mask)
    x = nn.functional.layer_norm(x, (32,), model.ln_final.weight, model.ln_final.bias)
    torch.testing.assert_close(model(tokens), x @ model.embed.weight.T, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------- taps


class Ears(Tap):
    """Listens at every kind of site; at one of them it adds what neither a norm nor a softmax forgets."""

    def __init__(self, edited: tuple[str, int | None] | None = None) -> None:
        self.kinds = frozenset(KINDS)
        self.heard: dict[tuple[str, int | None], torch.Tensor] = {}
        self.edited = edited

    def __call__(self, kind: str, layer: int | None, value: torch.Tensor) -> torch.Tensor:
        self.heard[kind, layer] = value
        if (kind, layer) != self.edited:
            return value
        return value + 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0), dtype=value.dtype)


@variants
def test_listening_changes_nothing(cfg: ModelConfig) -> None:
    model, tokens = example(cfg)
    torch.testing.assert_close(model(tokens, tap=Ears()), model(tokens), rtol=0, atol=1e-10)


@variants
def test_every_listed_site_is_heard_and_no_other(cfg: ModelConfig) -> None:
    model, tokens = example(cfg)
    ears = Ears()
    model(tokens, tap=ears)
    assert set(ears.heard) == {(site.kind, site.layer) for site in model.sites}


@variants
def test_values_have_the_shapes_of_the_legend(cfg: ModelConfig) -> None:
    model, tokens = example(cfg)
    ears = Ears()
    model(tokens, tap=ears)
    size = {
        "batch": 4, "pos": 9, "query": 9, "key": 9, "d_model": cfg.d_model, "d_head": cfg.head_size,
        "head": cfg.n_heads, "kv_head": cfg.kv_heads, "d_mlp": cfg.d_mlp, "1": 1,
    }  # fmt: skip
    for (kind, _), value in ears.heard.items():
        assert list(value.shape) == [size[axis] for axis in KINDS[kind].shape.split()], kind


@variants
def test_editing_any_site_changes_the_output(cfg: ModelConfig) -> None:
    model, tokens = example(cfg)
    before = model(tokens)
    for site in model.sites:
        after = model(tokens, tap=Ears((site.kind, site.layer)))
        assert not torch.allclose(after, before, rtol=0, atol=1e-9), site


def test_residual_stream_is_the_sum_of_its_parts() -> None:
    model, tokens = example(EVERYTHING)
    ears = Ears()
    model(tokens, tap=ears)
    for layer in range(3):
        pre, mid, post = (ears.heard[f"resid_{place}", layer] for place in ("pre", "mid", "post"))
        torch.testing.assert_close(pre + ears.heard["attn_out", layer], mid)
        torch.testing.assert_close(mid + ears.heard["mlp_out", layer], post)
        torch.testing.assert_close(
            ears.heard["result", layer].sum(2) + model.blocks[layer].attn.o.bias, ears.heard["attn_out", layer]
        )


# ---------------------------------------------------------------------- what it may skip


@variants
@settings(max_examples=10)
@given(start=st.integers(0, 8), width=st.integers(1, 9))
def test_reading_some_positions_equals_reading_all(cfg: ModelConfig, start: int, width: int) -> None:
    model, tokens = example(cfg)
    at = slice(start, start + width)
    torch.testing.assert_close(model(tokens, at=at), model(tokens)[:, at], rtol=0, atol=1e-10)


@pytest.mark.parametrize("cfg", CAUSAL.values(), ids=CAUSAL)
@settings(max_examples=5)
@given(cut=st.integers(1, 8))
def test_a_key_value_cache_equals_reading_anew(cfg: ModelConfig, cut: int) -> None:
    model, tokens = example(cfg)
    cache = KeyValueCache()
    model(tokens[:, :cut], cache=cache)
    assert [cache.length(layer) for layer in range(cfg.n_layers)] == [cut] * cfg.n_layers
    continued = model(tokens[:, cut:], cache=cache)
    torch.testing.assert_close(continued, model(tokens)[:, cut:], rtol=0, atol=1e-10)


@variants
def test_a_causal_model_never_sees_what_comes_later(cfg: ModelConfig) -> None:
    model, tokens = example(cfg)
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 1) % cfg.d_vocab
    same = torch.allclose(model(tokens)[:, :5], model(other)[:, :5], rtol=0, atol=1e-12)
    assert same == cfg.causal


# ---------------------------------------------------------------------- initial weights


def test_same_seed_same_weights_other_seed_others() -> None:
    one, again, other = build(REFERENCE, 1), build(REFERENCE, 1), build(REFERENCE, 2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.embed.weight, other.embed.weight)


def test_outputs_that_start_at_zero_leave_the_stream_alone() -> None:
    cfg = REFERENCE.model_copy(update={"init_zero_out": True})
    model = build(cfg, 0)
    ears = Ears()
    model(torch.randint(14, (2, 13)), tap=ears)
    assert torch.equal(ears.heard["resid_pre", 0], ears.heard["resid_post", 1])
