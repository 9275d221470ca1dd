"""Every option of ModelConfig that people's models have, held to a plain computation: one query, one head at a time."""

import math

import pytest
import torch
from torch import Tensor

from algoscope.config import ModelConfig
from algoscope.core.errors import AlgoscopeError
from algoscope.networks.build import build
from algoscope.networks.parameters import count_parameters, counts_of
from algoscope.networks.taps import Tap
from algoscope.networks.transformer import Transformer
from algoscope.subjects.cache import Recorder

N = 7
SMALL = {
    "d_vocab": 9, "n_ctx": N, "d_model": 12, "n_heads": 3, "n_layers": 2, "d_mlp": 10, "attn_bias": True,
    "init_embed_std": 1.0,
}  # fmt: skip
GROUPED = {"n_heads": 4, "d_head": 4, "n_kv_heads": 2}
FREQUENCIES = (0.9, 0.07)
OPTIONS: dict[str, dict[str, object]] = {
    "pre": {},
    **{norms: {"norms": norms} for norms in ("post", "output", "both")},
    **{f"{norms}, RMS": {"norms": norms, "normalization_type": "RMS"} for norms in ("post", "output", "both")},
    **{f"{norms}, attention only": {"norms": norms, "d_mlp": None} for norms in ("post", "output", "both")},
    **{f"{norms}, parallel": {"norms": norms, "parallel": True} for norms in ("output", "both")},
    "no final norm": {"final_norm": False},
    "post, no final norm": {"norms": "post", "final_norm": False},
    "no norm bias": {"norm_bias": False},
    "no norm bias, both": {"norm_bias": False, "norms": "both"},
    "embed scale": {"embed_scale": 3.5},
    "embed scale, alibi": {"embed_scale": 3.5, "positions": "alibi"},
    "scores cap": {"attn_scores_soft_cap": 0.7},
    "scores cap, alibi": {"attn_scores_soft_cap": 0.7, "positions": "alibi"},
    "logits cap": {"output_logits_soft_cap": 1.5},
    "rate": {"attn_rate": 0.3},
    "rate 0": {"attn_rate": 0.0},
    "rate, looks ahead": {"attn_rate": 0.3, "causal": False},
    "rate, window": {"attn_rate": 0.3, "windows": (2, None)},
    "rate, plus one": {"attn_rate": 0.3, "softmax_plus_one": True},
    "qk norm": {"qk_norm": True},
    "qk norm over all": {"qk_norm": True, "qk_norm_over": "all"},
    "qk norm over all, grouped": dict(qk_norm=True, qk_norm_over="all", **GROUPED),
    "rotary frequencies of windows": dict(
        positions="rotary", windows=(3, None), window_rotary_frequencies=FREQUENCIES, **GROUPED
    ),
    "both rotary frequencies": dict(
        positions="rotary",
        windows=(3, None),
        rotary_frequencies=(0.5, 0.2),
        window_rotary_frequencies=FREQUENCIES,
        **GROUPED,
    ),
    **{act: {"act_fn": act} for act in ("tanh", "relu_squared", "leaky_relu", "quick_gelu")},
    "gated": {"act_fn": "quick_gelu", "gated_mlp": True},
    "tied head with bias": {"head_bias": True},
    "everything of Gemma": dict(
        norms="both",
        normalization_type="RMS",
        embed_scale=12**0.5,
        attn_scores_soft_cap=0.7,
        output_logits_soft_cap=1.5,
        qk_norm=True,
        positions="rotary",
        windows=(3, None),
        window_rotary_frequencies=FREQUENCIES,
        act_fn="gelu_tanh",
        gated_mlp=True,
        **GROUPED,
    ),
}
options = pytest.mark.parametrize("name", OPTIONS)


def random_model(name: str) -> Transformer:
    """A model with this option in float64; every weight random, norms and biases too."""
    model = build(ModelConfig(**SMALL | OPTIONS[name]), 0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def random_tokens(rows: int = 2) -> Tensor:
    return torch.randint(SMALL["d_vocab"], (rows, N), generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------- the reference: one vector at a time

ACTIVATIONS = {
    "relu": lambda x: x * (x > 0),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
    "relu_squared": lambda x: (x * (x > 0)) ** 2,
    "leaky_relu": lambda x: torch.maximum(x, 0.01 * x),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
}


def norm(cfg: ModelConfig, w: dict[str, Tensor], name: str, x: Tensor, kind: str | None) -> Tensor:
    if kind is None:
        return x
    x = x - x.sum() / len(x) if kind == "LN" else x
    quotient = x / ((x * x).sum() / len(x) + cfg.eps).sqrt()
    return quotient * w[f"{name}.weight"] + w.get(f"{name}.bias", torch.tensor(0.0))


def affine(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", torch.tensor(0.0))


def heads_of(cfg: ModelConfig, w: dict[str, Tensor], block: str, kind: str, x: Tensor, pos: int, layer: int) -> Tensor:
    """The queries, keys or values of one position, [head d_head]."""
    flat = affine(w, f"{block}.attn.{kind}", x)
    size = cfg.d_head or cfg.d_model // cfg.n_heads
    if cfg.qk_norm and kind != "v" and cfg.qk_norm_over == "all":
        flat = norm(cfg, w, f"{block}.attn.{kind}_norm", flat, "RMS")
    heads = flat.reshape(-1, size)
    if cfg.qk_norm and kind != "v" and cfg.qk_norm_over == "head":
        heads = torch.stack([norm(cfg, w, f"{block}.attn.{kind}_norm", head, "RMS") for head in heads])
    if cfg.positions == "rotary" and kind != "v":
        speeds = cfg.rotary_frequencies or [cfg.rotary_base ** (-2 * i / size) for i in range(size // 2)]
        if cfg.window_rotary_frequencies is not None and cfg.windows[layer] is not None:
            speeds = cfg.window_rotary_frequencies
        turned = torch.complex(heads[:, : size // 2], heads[:, size // 2 :])
        turned = turned * torch.exp(1j * pos * torch.tensor(speeds, dtype=torch.float64))
        heads = torch.cat([turned.real, turned.imag], dim=1)
    return heads


def attention(cfg: ModelConfig, w: dict[str, Tensor], block: str, xs: list[Tensor], layer: int) -> list[Tensor]:
    q, k, v = ([heads_of(cfg, w, block, kind, x, pos, layer) for pos, x in enumerate(xs)] for kind in "qkv")
    window, outs = (cfg.windows or [None] * cfg.n_layers)[layer], []
    for here in range(len(xs)):
        z = []
        for head in range(cfg.n_heads):
            shared = head // (cfg.n_heads // (cfg.n_kv_heads or cfg.n_heads))
            first = 0 if window is None else max(0, here - window + 1)
            keys = range(first, here + 1 if cfg.causal else len(xs))
            total, mixed, weights = float(cfg.softmax_plus_one), torch.zeros(q[0].shape[1]), []
            for key in keys:
                score = float(q[here][head] @ k[key][shared]) / math.sqrt(q[0].shape[1])
                if cfg.attn_scores_soft_cap is not None:
                    score = cfg.attn_scores_soft_cap * math.tanh(score / cfg.attn_scores_soft_cap)
                if cfg.positions == "alibi":
                    score -= 2 ** (-8 * (head + 1) / cfg.n_heads) * abs(here - key)
                weights.append(math.exp(score))
            total += sum(weights)
            for key, weight in zip(keys, weights, strict=True):
                mixed = mixed + (cfg.attn_rate * weight / total + 1 - cfg.attn_rate) * v[key][shared]
            z.append(mixed)
        outs.append(affine(w, f"{block}.attn.o", torch.cat(z)))
    return outs


def feed_forward(cfg: ModelConfig, w: dict[str, Tensor], block: str, x: Tensor) -> Tensor:
    hidden = ACTIVATIONS[cfg.act_fn](affine(w, f"{block}.mlp.w_in", x))
    if cfg.gated_mlp:
        hidden = hidden * affine(w, f"{block}.mlp.w_linear", x)
    return affine(w, f"{block}.mlp.w_out", hidden)


def reference(cfg: ModelConfig, w: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """The logits of one input [pos d_vocab]."""

    def here(name: str, x: Tensor) -> Tensor:
        return norm(cfg, w, name, x, cfg.normalization_type)

    xs = [w["embed.weight"][token] * cfg.embed_scale for token in tokens]
    if cfg.positions == "learned":
        xs = [x + w["pos_embed.weight"][pos] for pos, x in enumerate(xs)]
    for layer in range(cfg.n_layers):
        block = f"blocks.{layer}"
        before, start = cfg.norms in ("pre", "both"), xs
        heard = [here(f"{block}.ln1", x) if before else x for x in xs]
        outs = attention(cfg, w, block, heard, layer)
        if cfg.norms in ("output", "both"):
            outs = [here(f"{block}.ln1_post" if cfg.norms == "both" else f"{block}.ln1", out) for out in outs]
        xs = [x + out for x, out in zip(xs, outs, strict=True)]
        if cfg.norms == "post":
            xs = [here(f"{block}.ln1", x) for x in xs]
        if cfg.d_mlp is None:
            continue
        heard = [here(f"{block}.ln2", x) if before else x for x in (start if cfg.parallel else xs)]
        outs = [feed_forward(cfg, w, block, x) for x in heard]
        if cfg.norms in ("output", "both"):
            outs = [here(f"{block}.ln2_post" if cfg.norms == "both" else f"{block}.ln2", out) for out in outs]
        xs = [x + out for x, out in zip(xs, outs, strict=True)]
        if cfg.norms == "post":
            xs = [here(f"{block}.ln2", x) for x in xs]
    xs = [here("ln_final", x) if cfg.final_norm else x for x in xs]
    logits = torch.stack([w["embed.weight"] @ x for x in xs]) + w.get("unembed.bias", torch.tensor(0.0))
    cap = cfg.output_logits_soft_cap
    return logits if cap is None else cap * torch.tanh(logits / cap)


@options
def test_an_option_computes_what_its_formula_says(name: str) -> None:
    model, tokens = random_model(name), random_tokens()
    weights = {key: value.detach() for key, value in model.state_dict().items()}
    with torch.no_grad():
        ours = model(tokens)
    for row in range(len(tokens)):
        assert (ours[row] - reference(model.cfg, weights, tokens[row].tolist())).abs().max() < 1e-10


@options
def test_sites_are_those_that_are_tapped_with_their_shapes(name: str) -> None:
    model, tokens = random_model(name), random_tokens()
    recorder = Recorder(frozenset(model.sites))
    with torch.no_grad():
        recorded = model(tokens, tap=recorder)
        plain = model(tokens)
    assert set(recorder.values) == set(model.sites)
    for site, value in recorder.values.items():
        assert tuple(value.shape) == model.shape_of(site, *tokens.shape), site.name
    assert recorded.equal(plain)


@options
def test_counts_are_those_of_the_built_model(name: str) -> None:
    model = random_model(name)
    assert count_parameters(model.cfg) == counts_of(model)
    assert sum(counts_of(model).values()) == sum(value.numel() for value in model.state_dict().values())


class Negated(Tap):
    """A tap that negates the values of one kind."""

    def __init__(self, kind: str) -> None:
        self.kinds = frozenset([kind])

    def __call__(self, kind: str, layer: int | None, value: Tensor) -> Tensor:
        return -value if kind in self.kinds else value


@options
def test_a_replacement_at_every_site_reaches_the_logits(name: str) -> None:
    model, tokens = random_model(name), random_tokens()
    with torch.no_grad():
        plain = model(tokens)
        for kind in {site.kind for site in model.sites}:
            if model.cfg.attn_rate == 0 and kind not in ("pattern", "v", "z"):
                continue  # queries, keys and scores have no effect on a pattern of ones
            assert not torch.equal(model(tokens, tap=Negated(kind)), plain), kind


@options
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_are_drawn_for_every_option(name: str, seed: int) -> None:
    weights = build(ModelConfig(**SMALL | OPTIONS[name]), seed).state_dict()
    again = build(ModelConfig(**SMALL | OPTIONS[name]), seed).state_dict()
    assert all(value.isfinite().all() and value.equal(again[key]) for key, value in weights.items())


def test_what_is_added_to_the_stream_is_the_output_after_its_norm() -> None:
    for name in ("pre", "output", "both", "both, RMS"):
        model, recorder = random_model(name), Recorder(frozenset(random_model(name).sites))
        with torch.no_grad():
            model(random_tokens(), tap=recorder)
        stream = {site.kind: value for site, value in recorder.values.items() if site.layer in (0, None)}
        assert torch.allclose(stream["resid_mid"], stream["resid_pre"] + stream["attn_out"], atol=1e-12)
        assert torch.allclose(stream["resid_post"], stream["resid_mid"] + stream["mlp_out"], atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norms": "post", "parallel": True}, "norms post needs blocks in series: set parallel to false"),
        ({"norms": "both", "normalization_type": None}, "norms both needs a normalization_type, LN or RMS"),
        (
            {"window_rotary_frequencies": (1.0,), "positions": "rotary", "n_heads": 2, "d_head": 4},
            "has 1 values for 2 pairs",
        ),
        ({"attn_rate": 1.5}, "less than or equal to 1"),
        ({"attn_scores_soft_cap": 0}, "greater than 0"),
    ],
)
def test_what_no_model_is_is_one_line(fields: dict[str, object], words: str) -> None:
    with pytest.raises((AlgoscopeError, ValueError), match=words):
        ModelConfig(**SMALL | fields)
