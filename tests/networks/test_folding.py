"""Folding and centring: only when asked for, on a copy, the same probabilities, every change named."""

import pytest
import torch

from algoscope.config import ModelConfig
from algoscope.networks.build import build
from algoscope.networks.norms import Norm
from algoscope.runs.run_folder import weights_hash
from algoscope.subjects.huggingface import convert
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import CONFIGS, D_VOCAB, make

OURS = {
    "reference": {},
    "no norm": {"normalization_type": None, "d_mlp": None},
    "RMS": {"normalization_type": "RMS", "gated_mlp": True, "n_heads": 4, "n_kv_heads": 2},
    "resting heads": {"softmax_plus_one": True},
    "post": {"norms": "post", "attn_rate": 0.5},
    "output": {"norms": "output", "embed_scale": 3.0},
    "both": {"norms": "both", "norm_bias": False, "output_logits_soft_cap": 2.0},
    "no norm at the end": {"final_norm": False, "head_bias": True},
}


def random_biases(subject: Subject) -> Subject:
    draw = torch.Generator().manual_seed(5)
    for name, weight in subject.model.named_parameters():
        if name.endswith("bias") or "ln" in name:
            weight += 0.5 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype)
    return subject


def subject(name: str) -> Subject:
    if name in CONFIGS:
        return Subject(name, convert(make(name)), text=Numbers(D_VOCAB)).to_dtype(torch.float64)
    cfg = ModelConfig(d_vocab=D_VOCAB, n_ctx=12, init_embed_std=1.0, attn_bias=True, **OURS[name])
    return random_biases(Subject(name, build(cfg, 0).double(), text=Numbers(D_VOCAB)))


@pytest.mark.parametrize("name", [*OURS, *CONFIGS])
def test_a_folded_copy_predicts_the_same_and_the_original_is_as_it_was(name: str) -> None:
    model, tokens = subject(name), torch.randint(D_VOCAB, (3, 9), generator=torch.Generator().manual_seed(0))
    before = weights_hash(model.model.state_dict())
    folded, changes = model.folded()
    logits, plain = folded(tokens), model(tokens)
    capped = model.cfg.output_logits_soft_cap is not None
    expected = plain if capped else plain - plain.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    assert weights_hash(model.model.state_dict()) == before
    norms = [
        module
        for name, module in folded.model.named_modules()
        if isinstance(module, Norm) and "_norm" not in name and (model.cfg.norms == "pre" or name == "ln_final")
    ]
    assert all((norm.weight == 1).all() for norm in norms)
    assert bool(norms) == any("were folded into" in change for change in changes)
    assert model.cfg.tied_head == any("no longer tied" in change for change in changes)
    if model.cfg.normalization_type == "LN" and model.cfg.norms == "pre" and model.cfg.final_norm:
        stream = folded.run(tokens, record=[("resid_post", -1)])[1]["resid_post", -1]
        assert stream.mean(dim=-1).abs().max() < 1e-12
        assert any("centred: LayerNorm" in change for change in changes)
    values = [folded.model.block(layer).attn.v.bias for layer in range(model.cfg.n_layers)]
    assert all((bias == 0).all() for bias in values) != (model.cfg.softmax_plus_one or model.cfg.attn_rate < 1)
