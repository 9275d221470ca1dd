"""Small Hugging Face models made from their configs, with random weights large enough to matter."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

D_VOCAB = 61
_LLAMA = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": D_VOCAB,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_NEOX = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "vocab_size": D_VOCAB, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip

CONFIGS: dict[str, Any] = {
    "gpt2": GPT2Config(
        n_embd=24, n_layer=3, n_head=4, n_positions=64, vocab_size=D_VOCAB, bos_token_id=0, eos_token_id=1
    ),
    "gpt2 exact gelu, wide": GPT2Config(
        n_embd=24, n_layer=2, n_head=3, n_inner=50, n_positions=64, vocab_size=D_VOCAB, activation_function="gelu",
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    ),
    "pythia": GPTNeoXConfig(**_NEOX, rope_parameters={"rope_theta": 100.0, "partial_rotary_factor": 0.34}),
    "neox in series": GPTNeoXConfig(
        **_NEOX, use_parallel_residual=False, rope_parameters={"rope_theta": 100.0, "partial_rotary_factor": 1.0}
    ),
    "llama": LlamaConfig(**_LLAMA),
    "llama 3": LlamaConfig(**_LLAMA, rope_parameters=_LLAMA3_ROPE, tie_word_embeddings=True, attention_bias=True),
    "mistral": MistralConfig(**_LLAMA, sliding_window=None),
    "mistral, windows": MistralConfig(**_LLAMA, sliding_window=5),
    "qwen2": Qwen2Config(**_LLAMA),
    "qwen2, windows in some blocks": Qwen2Config(
        **_LLAMA, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**_LLAMA, head_dim=10),
}  # fmt: skip

_SMALL = _LLAMA | {"num_hidden_layers": 2, "pad_token_id": None}
_OPT = {
    "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": D_VOCAB,
    "max_position_embeddings": 64, "word_embed_proj_dim": 24, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0],
}  # fmt: skip
_LOCAL_AND_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
}
_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 20.0, "query_pre_attn_scalar": 10}

MORE: dict[str, Any] = {
    "gemma": GemmaConfig(**_SMALL, head_dim=10),
    "gemma 2": Gemma2Config(**_SMALL, **_CAPS, head_dim=10, sliding_window=5),
    "gemma 3": Gemma3TextConfig(
        **_SMALL, head_dim=10, sliding_window=5, rope_parameters=_LOCAL_AND_GLOBAL,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "olmo": OlmoConfig(**_SMALL),
    "olmo 2": Olmo2Config(**_SMALL),
    "opt": OPTConfig(**_OPT),
    "opt, norms after, projected": OPTConfig(**_OPT | {"word_embed_proj_dim": 10, "do_layer_norm_before": False}),
    "phi": PhiConfig(**_SMALL, partial_rotary_factor=0.34),
    "phi 3, windows": Phi3Config(**_SMALL, sliding_window=5),
    "phi 3, longrope": Phi3Config(**_SMALL, original_max_position_embeddings=32, rope_parameters=_LONGROPE),
    "llama, dynamic": LlamaConfig(
        **_SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    ),
}  # fmt: skip
"""Families whose blocks are of other shapes, and rotary frequencies that depend on the length."""


def make(family: str, seed: int = 0) -> Any:
    """The library's own model of a family, every weight and bias random."""
    return randomised((CONFIGS | MORE)[family], seed)


def randomised(config: PreTrainedConfig, seed: int = 0) -> Any:
    """The library's own model of a config, every weight and bias random."""
    model = AutoModelForCausalLM.from_config(config).eval()
    draw, centre = torch.Generator().manual_seed(seed), 0.0 if "gemma" in config.model_type else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = 0.3 * torch.randn(weight.shape, generator=draw)
            weight.copy_(centre + noise if "norm" in name and name.endswith("weight") else noise)
    return model


SENTENCES = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "The Eiffel Tower is located in Paris. The Empire State Building is located in New York.",
]


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer that has read two sentences."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=D_VOCAB, special_tokens=["<s>", "</s>"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def save(folder: Path, family: str = "gpt2", seed: int = 0, with_tokenizer: bool = True) -> Path:
    """A folder as `save_pretrained` writes it."""
    make(family, seed).save_pretrained(folder)
    if with_tokenizer:
        tokenizer().save_pretrained(folder)
    return folder
