"""Small Hugging Face models made from their configs, with random weights large enough to matter."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
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


def make(family: str, seed: int = 0) -> Any:
    """The library's own model of a family, every weight and bias random."""
    model = AutoModelForCausalLM.from_config(CONFIGS[family]).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight.copy_(1 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise)
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
