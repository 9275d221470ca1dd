"""Families of Hugging Face whose blocks are of other shapes: the numbers of the library on random configs, whole,
padded and with a cache; every site can be edited, and sweeps are full runs.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
)

import algoscope as ag
from algoscope.core.errors import SubjectError, VocabularyError
from algoscope.subjects.edits import Add
from algoscope.subjects.huggingface import convert, open_model_object
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Numbers
from hf_models import D_VOCAB, MORE, make, randomised

PLAIN = ("gemma", "olmo", "opt", "phi", "phi 3, windows", "phi 3, longrope", "llama, dynamic")
swept = [pytest.param(family, marks=pytest.mark.long if family in PLAIN else ()) for family in MORE]


def draw_tokens(n: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(D_VOCAB, (n, length), generator=torch.Generator().manual_seed(seed))


def subject(source: Any, name: str = "it") -> Subject:
    return Subject(name, convert(source), text=Numbers(D_VOCAB))


def closeness(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


# ---------------------------------------------------------------------- random configs


@st.composite
def configs(draw: st.DrawFn) -> PreTrainedConfig:
    """A config of any of these families, with any of their options."""
    family = draw(st.sampled_from([
        GemmaConfig, Gemma2Config, Gemma3TextConfig, OlmoConfig, Olmo2Config, OPTConfig, PhiConfig, Phi3Config,
    ]))  # fmt: skip
    heads, kv_heads = draw(st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (3, 3)]))
    per_head, layers = draw(st.sampled_from([4, 6, 8])), draw(st.integers(1, 3))
    shape: dict[str, Any] = {
        "hidden_size": heads * per_head, "num_hidden_layers": layers, "num_attention_heads": heads,
        "max_position_embeddings": draw(st.sampled_from([9, 33])), "vocab_size": draw(st.sampled_from([5, D_VOCAB])),
        "tie_word_embeddings": draw(st.booleans()), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    if family is OPTConfig:
        return OPTConfig(
            **shape | {"tie_word_embeddings": True}, ffn_dim=draw(st.integers(1, 40)),
            word_embed_proj_dim=draw(st.sampled_from([heads * per_head, 5])), enable_bias=draw(st.booleans()),
            do_layer_norm_before=draw(st.booleans()), layer_norm_elementwise_affine=draw(st.booleans()),
            activation_function=draw(st.sampled_from(["relu", "gelu"])),
        )  # fmt: skip
    shape |= {"intermediate_size": draw(st.integers(1, 40)), "num_key_value_heads": kv_heads}
    theta, window = draw(st.sampled_from([10.0, 1e4])), draw(st.sampled_from([1, 4, 64]))
    if family in (OlmoConfig, Olmo2Config):
        return family(**shape, attention_bias=draw(st.booleans()), rope_parameters={"rope_theta": theta})
    share = {4: 0.5, 6: 0.34, 8: 0.75}[per_head]  # of an even number of entries: the library runs no other
    if family is PhiConfig:
        return PhiConfig(**shape, rope_parameters={"rope_theta": theta, "partial_rotary_factor": share})
    if family is Phi3Config:
        rope = {"rope_theta": theta, "partial_rotary_factor": draw(st.sampled_from([1.0, share]))}
        return Phi3Config(**shape, sliding_window=draw(st.sampled_from([None, window])), rope_parameters=rope)
    shape |= {"head_dim": draw(st.sampled_from([4, 10])), "attention_bias": draw(st.booleans())}
    if family is GemmaConfig:
        return GemmaConfig(**shape, rope_parameters={"rope_theta": theta})
    shape |= {
        "sliding_window": window, "final_logit_softcapping": draw(st.sampled_from([None, 20.0])),
        "query_pre_attn_scalar": draw(st.sampled_from([4, 16])),
        "layer_types": [draw(st.sampled_from(["full_attention", "sliding_attention"])) for _ in range(layers)],
    }  # fmt: skip
    if family is Gemma2Config:
        return Gemma2Config(
            **shape, attn_logit_softcapping=draw(st.sampled_from([None, 3.0])), rope_parameters={"rope_theta": theta}
        )
    ropes = {"sliding_attention": {"rope_theta": 10.0}, "full_attention": {"rope_theta": theta}}
    return Gemma3TextConfig(**shape, rope_parameters=ropes)


@settings(max_examples=20)
@given(config=configs(), seed=st.integers(0, 1000), n=st.integers(1, 3))
def test_logits_are_those_of_transformers(config: PreTrainedConfig, seed: int, n: int) -> None:
    source = randomised(config, seed)
    ours = convert(source)
    assert ours.cfg.n_ctx == config.max_position_embeddings
    tokens = draw_tokens(n, ours.cfg.n_ctx, seed) % config.vocab_size
    with torch.no_grad():
        assert closeness(ours(tokens), source(tokens).logits) < 1e-5


def test_every_family_is_checked() -> None:
    from_here = {"gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "opt", "phi", "phi3"}
    assert {config.model_type for config in MORE.values()} == from_here | {"llama"}


# ---------------------------------------------------------------------- batches, generation, edits


@pytest.mark.parametrize("family", MORE)
def test_padded_and_cached_it_is_what_the_library_computes(family: str) -> None:
    source = make(family)
    model, tokens, lengths = subject(source), draw_tokens(3, 12), torch.tensor([12, 7, 1])
    place = torch.arange(12)
    for mask in (place < lengths[:, None], place >= 12 - lengths[:, None]):
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            theirs = source(tokens, attention_mask=mask.long(), position_ids=positions).logits
        assert closeness(model.run(tokens, attention_mask=mask)[0][mask], theirs[mask]) < 1e-5
    written = model.generate_tokens(tokens, 8, attention_mask=mask)
    assert torch.equal(written, model.generate_tokens(tokens, 8, use_cache=False, attention_mask=mask))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for row, own, new in zip(tokens, mask, written, strict=True):
        alone = row[own][None]
        theirs = source.generate(alone, attention_mask=torch.ones_like(alone), **options)
        assert torch.equal(theirs[0, own.sum() :], new), "each prompt as if it stood alone"


@pytest.mark.parametrize("family", swept)
def test_an_edit_at_every_site_changes_the_output_and_sweeps_are_full_runs(family: str) -> None:
    model, tokens = subject(make(family)).to_dtype(torch.float64), draw_tokens(2, 9)
    plain, cache = model.run_with_cache(tokens)
    noise = torch.Generator().manual_seed(1)
    edits = [
        Add(site.name, value=torch.rand(cache[site.name].shape[1:], generator=noise).double()) for site in model.sites
    ]
    swept = model.run_each(tokens, edits)
    for site, logits in zip(model.sites, swept, strict=True):
        assert (logits - plain).abs().max() > 1e-4, site
    assert closeness(swept, model.run_each(tokens, edits, incremental=False)) < 1e-10


# ---------------------------------------------------------------------- rotary positions that depend on the length


def test_longrope_is_right_up_to_the_original_context_and_refused_beyond() -> None:
    """Beyond it the library takes other frequencies, for all positions at once."""
    source = make("phi 3, longrope")
    source(draw_tokens(1, 60))  # its module now has the frequencies of long inputs
    model = open_model_object(source, "mine")
    assert model.cfg.n_ctx == 32
    assert "its context is 32 tokens, not 64: beyond those the library takes other rotary" in model.note
    for length in (1, 32):
        tokens = draw_tokens(2, length)
        with torch.no_grad():
            assert closeness(model.run(tokens)[0], source(tokens).logits) < 1e-5
    with pytest.raises(VocabularyError, match="33 tokens are more than the context"):
        model.run(draw_tokens(1, 33))
    with pytest.raises(VocabularyError, match="30 tokens and 5 new"):
        model.generate_tokens(draw_tokens(1, 30), 5)


def test_dynamic_frequencies_are_those_of_the_context_whatever_was_read_before() -> None:
    source = make("llama, dynamic")
    source(draw_tokens(1, 200))
    model = open_model_object(source, "mine")
    assert (model.cfg.n_ctx, model.cfg.rotary_frequencies, model.note) == (64, None, "")
    with torch.no_grad():
        for length in (1, 63):
            tokens = draw_tokens(2, length)
            assert closeness(model.run(tokens)[0], source(tokens).logits) < 1e-5
        fresh = make("llama, dynamic")
        assert closeness(model.run(draw_tokens(2, 64))[0], fresh(draw_tokens(2, 64)).logits) < 1e-5
    with pytest.raises(VocabularyError, match="65 tokens are more than the context"):
        model.run(draw_tokens(1, 65))


# ---------------------------------------------------------------------- refused

SHAPE: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 9, "intermediate_size": 8,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "clipped": (OlmoConfig(**SHAPE, clip_qkv=8.0), "clip_qkv=8.0"),
    "normed by LayerNorm": (PhiConfig(**SHAPE, qk_layernorm=True), "qk_layernorm=True"),
    "both ways": (Gemma2Config(**SHAPE, use_bidirectional_attention=True), "use_bidirectional_attention=True"),
    "a cap that the library ignores": (Gemma3TextConfig(**SHAPE, attn_logit_softcapping=5.0), "softcapping=5.0"),
    "an activation": (GemmaConfig(**SHAPE, hidden_act="mish"), "the activation 'mish' is not supported"),
    "scaled in some blocks": (
        Gemma3TextConfig(**SHAPE, layer_types=["sliding_attention", "full_attention"], rope_parameters={
            "full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
        }), "scales the rotated entries of some blocks alone",
    ),
    "an unknown key of one kind": (
        Gemma3TextConfig(**SHAPE, rope_parameters={"full_attention": {"rope_theta": 5.0, "mrope": [1]}}),
        r"rope_parameters\.full_attention\.mrope",
    ),
    "chunks": (Gemma2Config(**SHAPE, layer_types=["chunked_attention"] * 2), "layer_types=.*chunked"),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_what_is_not_represented_is_named(how: str) -> None:
    config, words = REFUSED[how]
    with pytest.raises(SubjectError, match=words) as refused:
        subject(AutoModelForCausalLM.from_config(config))
    assert "\n" not in str(refused.value)


def test_a_folder_with_a_copy_of_the_librarys_classes_opens(tmp_path: Path) -> None:
    """As those of Phi-3 and OLMo are published. Its code is not run, and that is said."""
    make("phi 3, windows").save_pretrained(tmp_path / "it")
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    classes = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    (tmp_path / "it" / "config.json").write_text(json.dumps(config | {"auto_map": classes}))
    model = ag.open(f"hf:{tmp_path / 'it'}")
    assert model.note == (
        "computed by the library's classes, not by the code in its folder: Phi3Config, Phi3ForCausalLM"
    )
    classes["AutoModelForCausalLM"] = "modeling_phi3.Phi3VForCausalLM"
    (tmp_path / "it" / "config.json").write_text(json.dumps(config | {"auto_map": classes}))
    with pytest.raises(SubjectError, match="asks to run code of its own"):
        ag.open(f"hf:{tmp_path / 'it'}")
