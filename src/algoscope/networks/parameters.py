"""Parameter counts by component, of any config, without allocating weights."""

import torch

from algoscope.config import ModelConfig, StartConfig
from algoscope.networks.lora import add_updates
from algoscope.networks.transformer import Transformer

SHAPES: dict[str, ModelConfig] = {
    "gpt2": ModelConfig(
        d_vocab=50_257, n_ctx=1024, d_model=768, n_layers=12, n_heads=12, d_mlp=3072,
        act_fn="gelu_tanh", attn_bias=True,
    ),
    "llama3-8b": ModelConfig(
        d_vocab=128_256, n_ctx=8192, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_mlp=14_336,
        act_fn="silu", gated_mlp=True, normalization_type="RMS", positions="rotary", rotary_base=500_000.0,
        mlp_bias=False, tied_head=False,
    ),
}  # fmt: skip
"""Published shapes for comparison: GPT-2 small and Llama 3 8B (arXiv 2407.21783)."""


def component_of(parameter: str) -> str:
    """The component a parameter belongs to, by its name in the state dict."""
    top, _, rest = parameter.partition(".")
    if top == "blocks":
        layer, part, *_ = rest.split(".")
        component = {"attn": "attention", "mlp": "feed-forward"}.get(part, "norms")
        return f"block {layer} {component}"
    return {
        "embed": "token embedding",
        "pos_embed": "position embedding",
        "ln_final": "final norm",
        "unembed": "unembedding",
    }[top]


def count_parameters(cfg: ModelConfig, start: StartConfig | None = None) -> dict[str, int]:
    """Parameters of each component, in the order of computation. A tied head adds none; low-rank updates are counted in
    addition to the frozen matrices.
    """
    with torch.device("meta"):
        model = Transformer(cfg)
        if start is not None:
            add_updates(model, start)
        return counts_of(model)


def counts_of(model: Transformer) -> dict[str, int]:
    """The same for a model."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        component = component_of(name)
        counts[component] = counts.get(component, 0) + parameter.numel()
    order = [name for name in counts if name != "unembedding"] + ["unembedding"] * ("unembedding" in counts)
    return {name: counts[name] for name in order}
