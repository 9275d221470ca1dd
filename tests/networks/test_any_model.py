"""Whatever its options: a cache, padding, a shared prefix, a sweep and a permutation of heads change no logit."""

from itertools import cycle, islice

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from algoscope.config import ModelConfig
from algoscope.networks.build import build
from algoscope.networks.head_permutations import permuted
from algoscope.networks.kv_cache import KeyValueCache
from algoscope.networks.shared_prefixes import plain_logits, shared_logits
from algoscope.networks.transformer import Transformer
from algoscope.subjects.edits import Patch, Zero
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers

D_VOCAB, N = 7, 9
FIELDS = {
    "n_layers": st.integers(1, 3),
    "n_heads": st.sampled_from([1, 2, 4]),
    "grouped": st.booleans(),
    "d_head": st.sampled_from([2, 6]),
    "d_mlp": st.sampled_from([None, 10]),
    "act_fn": st.sampled_from(["relu", "gelu", "silu", "quick_gelu", "tanh", "relu_squared", "leaky_relu"]),
    "gated_mlp": st.booleans(),
    "normalization_type": st.sampled_from(["LN", "RMS", None]),
    "norms": st.sampled_from(["pre", "post", "output", "both"]),
    "final_norm": st.booleans(),
    "norm_bias": st.booleans(),
    "embed_scale": st.sampled_from([1.0, 2.5]),
    "positions": st.sampled_from(["learned", "sinusoidal", "rotary", "alibi", None]),
    "frequencies": st.booleans(),
    "windows": st.sampled_from([None, (2, None), (None, 3), (1, 4)]),
    "causal": st.booleans(),
    "parallel": st.booleans(),
    "attn_bias": st.booleans(),
    "qk_norm": st.booleans(),
    "qk_norm_over": st.sampled_from(["head", "all"]),
    "tied_head": st.booleans(),
    "head_bias": st.booleans(),
    "attn_scores_soft_cap": st.sampled_from([None, 0.8]),
    "output_logits_soft_cap": st.sampled_from([None, 2.0]),
    "attn_rate": st.sampled_from([1.0, 0.4, 0.0]),
    "softmax_plus_one": st.booleans(),
    "rank": st.sampled_from([None, 2]),
}
PLAIN = dict.fromkeys(("d_mlp", "windows", "attn_scores_soft_cap", "output_logits_soft_cap", "rank")) | {
    "n_layers": 2, "n_heads": 2, "grouped": False, "d_head": 6, "act_fn": "relu", "gated_mlp": False,
    "normalization_type": "LN", "norms": "pre", "final_norm": True, "norm_bias": True, "embed_scale": 1.0,
    "positions": "learned", "frequencies": False, "causal": True, "parallel": False, "attn_bias": False,
    "qk_norm": False, "qk_norm_over": "head", "tied_head": True, "head_bias": False, "attn_rate": 1.0,
    "softmax_plus_one": False,
}  # fmt: skip
GEMMA = PLAIN | {
    "d_mlp": 10, "norms": "both", "normalization_type": "RMS", "embed_scale": 2.5, "windows": (2, None), "n_heads": 4,
    "grouped": True, "positions": "rotary", "frequencies": True, "qk_norm": True, "attn_scores_soft_cap": 0.8,
    "output_logits_soft_cap": 2.0, "gated_mlp": True,
}  # fmt: skip
POST = PLAIN | {"d_mlp": 10, "norms": "post", "attn_rate": 0.4, "windows": (None, 3), "head_bias": True}


def model_of(fields: dict) -> Transformer:
    """A random model in float64 with these options, less those that exclude each other."""
    fields = dict(fields)
    grouped, frequencies, windows = (fields.pop(name) for name in ("grouped", "frequencies", "windows"))
    if fields["normalization_type"] is None:
        fields["norms"] = "pre"
    if fields["norms"] == "post":
        fields["parallel"] = False
    if windows is not None and fields["causal"]:
        fields["windows"] = tuple(islice(cycle(windows), fields["n_layers"]))
        if frequencies and fields["positions"] == "rotary":
            fields["window_rotary_frequencies"] = tuple(0.9 * 0.4**pair for pair in range(fields["d_head"] // 2))
    kv_heads = max(1, fields["n_heads"] // 2) if grouped else None
    cfg = ModelConfig(d_vocab=D_VOCAB, n_ctx=N + 2, d_model=8, n_kv_heads=kv_heads, init_embed_std=1.0, **fields)
    model = build(cfg, 0).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model.requires_grad_(False)


def random_tokens(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(D_VOCAB, (rows, N), generator=torch.Generator().manual_seed(seed))


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * max(1.0, float(other.abs().max())))


def cached_equals_uncached(model: Transformer, tokens: torch.Tensor) -> None:
    """Token by token with a key-value cache; the new tokens of a model that looks ahead change what came before."""
    if model.cfg.causal:
        cache = KeyValueCache()
        steps = [model(tokens[:, pos : pos + 1], cache=cache) for pos in range(N)]
        same(torch.cat(steps, dim=1), model(tokens))


def padded_equals_unpadded(model: Transformer, tokens: torch.Tensor) -> None:
    padding = torch.zeros(len(tokens), 2, dtype=torch.long)
    seen = torch.ones_like(tokens, dtype=torch.bool)
    plain = model(tokens)
    same(model(torch.cat([padding, tokens], dim=1), mask=torch.cat([padding > 0, seen], dim=1))[:, 2:], plain)
    same(model(torch.cat([tokens, padding], dim=1), mask=torch.cat([seen, padding > 0], dim=1))[:, :-2], plain)


def shared_equals_plain(model: Transformer, tokens: torch.Tensor) -> None:
    rows = tokens[:1].repeat(20, 1)  # two prefixes up to the fifth token, ten up to the sixth, then twenty
    rows[:, 3], rows[:, 5] = torch.arange(20) // 10, torch.arange(20) % 10 // 2
    rows[:, -2] = torch.arange(20) % D_VOCAB
    at = slice(N - 3, N)
    same(shared_logits(model, rows, at), plain_logits(model, rows, at))


def sweep_equals_full_runs(model: Transformer, tokens: torch.Tensor) -> None:
    subject = Subject("any", model, text=Numbers(D_VOCAB))
    other = subject.run_with_cache(random_tokens(len(tokens), 5))[1]
    edits = []
    for number, site in enumerate(model.sites):
        edits.append(Patch(site.name, value=other[site.name], pos=number % N))
        edits += [] if "scale" in site.kind else [Zero(site.name)]
    swept = subject.run_each(tokens, edits, at=slice(3, None, 2))
    same(swept, subject.run_each(tokens, edits, at=slice(3, None, 2), incremental=False))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, :2] = False
    few = edits[::5]
    swept = subject.run_each(tokens, few, attention_mask=mask)
    same(swept, subject.run_each(tokens, few, attention_mask=mask, incremental=False))


def permuted_equals_plain(model: Transformer, tokens: torch.Tensor) -> None:
    if model.cfg.rank is None:
        same(permuted(model, 3)(tokens), model(tokens))


CHECKS = (
    cached_equals_uncached,
    padded_equals_unpadded,
    shared_equals_plain,
    sweep_equals_full_runs,
    permuted_equals_plain,
)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("fields", [GEMMA, POST, POST | {"norms": "output", "qk_norm": True, "qk_norm_over": "all"}])
def test_the_models_of_people(check, fields: dict) -> None:
    check(model_of(fields), random_tokens(2, 0))


@settings(max_examples=6)
@example(fields=PLAIN | {"norms": "post", "final_norm": False, "causal": False, "attn_rate": 0.0}, seed=0)
@given(fields=st.fixed_dictionaries(FIELDS), seed=st.integers(0, 99))
def test_any_model(fields: dict, seed: int) -> None:
    model, tokens = model_of(fields), random_tokens(2, seed)
    for check in CHECKS:
        check(model, tokens)


@pytest.mark.long
@settings(max_examples=150)
@given(fields=st.fixed_dictionaries(FIELDS), seed=st.integers(0, 99))
def test_any_of_many_models(fields: dict, seed: int) -> None:
    model, tokens = model_of(fields), random_tokens(2, seed)
    for check in CHECKS:
        check(model, tokens)
