"""The configs of published models, as they stand on the hub but for their sizes: nothing in them is an obstacle."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

import algoscope as ag
from hf_models import D_VOCAB, randomised, save

SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": D_VOCAB, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 2, "eos_token_id": 1, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.42.4", "_name_or_path": "x", "attention_dropout": 0.0,
}  # fmt: skip
_OPT: dict[str, Any] = {
    "activation_dropout": 0.0, "activation_function": "relu", "architectures": ["OPTForCausalLM"], "dropout": 0.1,
    "ffn_dim": 40, "init_std": 0.02, "layerdrop": 0.0, "model_type": "opt", "prefix": "</s>",
}  # fmt: skip
_PHI3: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"], "embd_pdrop": 0.0, "hidden_act": "silu", "model_type": "phi3",
    "resid_pdrop": 0.0, "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "attention_bias": False,
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "google/gemma-2b": {
        "architectures": ["GemmaForCausalLM"], "attention_bias": False, "head_dim": 16, "hidden_act": "gelu",
        "hidden_activation": None, "model_type": "gemma", "rms_norm_eps": 1e-06, "rope_scaling": None,
        "rope_theta": 10000.0,
    },
    "google/gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma2",
        "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 9,
    },
    "google/gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
        "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 16, "eos_token_id": [1, 6],
        "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma3_text", "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": 9, "sliding_window_pattern": 3,
    },
    "google/gemma-3-270m": {
        "_sliding_window_pattern": 6, "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
        "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma3_text", "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0, "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": 9,
        "use_bidirectional_attention": False,
    },
    "microsoft/phi-2": {
        "architectures": ["PhiForCausalLM"], "embd_pdrop": 0.0, "hidden_act": "gelu_new", "layer_norm_eps": 1e-05,
        "model_type": "phi", "num_key_value_heads": 4, "partial_rotary_factor": 0.75, "qk_layernorm": False,
        "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
    },
    "microsoft/Phi-3-mini-4k-instruct": _PHI3 | {
        "original_max_position_embeddings": 64, "rope_scaling": None, "sliding_window": 20,
    },
    "microsoft/Phi-3-mini-128k-instruct": _PHI3 | {
        "original_max_position_embeddings": 60, "sliding_window": 262144,
        "rope_scaling": {"long_factor": [1.0, 2.0, 3.0, 4.0], "short_factor": [1.0, 1.1, 1.2, 1.3], "type": "longrope"},
    },
    "microsoft/Phi-4-mini-instruct": _PHI3 | {
        "original_max_position_embeddings": 60, "sliding_window": 262144, "partial_rotary_factor": 0.75,
        "rope_scaling": {"long_factor": [1.0, 2.0, 3.0], "short_factor": [1.0, 1.1, 1.2], "type": "longrope"},
        "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
        "tie_word_embeddings": True, "auto_map": _PHI3["auto_map"] | {"AutoTokenizer": "Xenova/gpt-4o"},
    },
    "facebook/opt-125m": _OPT | {
        "_remove_final_layer_norm": False, "do_layer_norm_before": True, "enable_bias": True,
        "layer_norm_elementwise_affine": True, "word_embed_proj_dim": 32,
    },
    "facebook/opt-350m": _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "allenai/OLMo-1B-hf": {
        "architectures": ["OlmoForCausalLM"], "attention_bias": False, "clip_qkv": None, "hidden_act": "silu",
        "model_type": "olmo", "num_key_value_heads": 4, "rope_scaling": None, "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "allenai/OLMo-2-0425-1B": {
        "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "model_type": "olmo2",
        "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 500000,
        "tie_word_embeddings": False,
    },
}  # fmt: skip
TOKENS = torch.randint(D_VOCAB, (2, 60), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_config_of_a_published_model_opens(model: str, tmp_path: Path) -> None:
    plain = SIZES | PUBLISHED[model]
    if plain["model_type"] == "opt":
        del plain["num_key_value_heads"], plain["intermediate_size"], plain["initializer_range"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    config: PreTrainedConfig = AutoConfig.from_pretrained(tmp_path)
    config.dtype = torch.float32
    source = randomised(config)
    weights = {key: value.contiguous().clone() for key, value in source.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    subject = ag.open(f"hf:{tmp_path}")
    with torch.no_grad():
        theirs = source(TOKENS).logits
    assert float((subject.run(TOKENS)[0] - theirs).abs().max() / theirs.abs().max()) < 1e-5


@pytest.mark.parametrize("how", ["no prefix", "shards", "a pickled file", "buffers of old versions"])
def test_gpt2_as_people_store_it(how: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "it", "gpt2", with_tokenizer=False)
    source = AutoModelForCausalLM.from_pretrained(folder)
    file = folder / "model.safetensors"
    weights = load_file(file)
    if how == "no prefix":  # as the first of them on the hub
        save_file({key.removeprefix("transformer."): value for key, value in weights.items()}, file)
    elif how == "shards":
        file.unlink()
        source.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif how == "a pickled file":
        torch.save(weights, folder / "pytorch_model.bin")
        file.unlink()
    else:
        masks = {
            f"transformer.h.{layer}.attn.{name}": torch.ones(1)
            for layer in range(3)
            for name in ("bias", "masked_bias")
        }
        save_file(weights | masks, file, metadata={"format": "pt"})
    with torch.no_grad():
        theirs = source(TOKENS).logits
    assert float((ag.open(f"hf:{folder}").run(TOKENS)[0] - theirs).abs().max() / theirs.abs().max()) < 1e-5


def test_pythia_as_it_is_stored(tmp_path: Path) -> None:
    folder = save(tmp_path / "it", "pythia", with_tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    names = ("bias", "masked_bias", "rotary_emb.inv_freq")
    buffers = {f"gpt_neox.layers.{layer}.attention.{name}": torch.ones(1) for layer in range(3) for name in names}
    before = ag.open(f"hf:{folder}").weights_sha256
    save_file(weights | buffers, folder / "model.safetensors", metadata={"format": "pt"})
    assert ag.open(f"hf:{folder}").weights_sha256 == before
