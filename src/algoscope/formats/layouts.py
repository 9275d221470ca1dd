"""Layouts: the names and axis orders of transformer weights in other tools, as tables used for import and export.

A layout gives the name and the axes of each weight, as in einops (`head d_model d_head`; two axes in parentheses are
joined, the first is the outer one). Our own layout is one of them, so import is a rearrangement from one row to another
and export the inverse. The names of the axes also give the sizes from the shapes, and reveal contradictory shapes.

Sources: the state dictionaries of TransformerLens 3.9.0 (`HookedTransformer`, `TransformerBridge`), and those of the
models published with arXiv 2301.05217 and 2306.17844.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from einops import rearrange
from torch import Tensor

Row = tuple[str, str]  # name (`*` stands for the layer) and axes

OURS: dict[str, Row] = {
    "embed": ("embed.weight", "d_vocab d_model"),
    "pos": ("pos_embed.weight", "n_ctx d_model"),
    "ln1": ("blocks.*.ln1.weight", "d_model"),
    "ln1.b": ("blocks.*.ln1.bias", "d_model"),
    "q": ("blocks.*.attn.q.weight", "(head d_head) d_model"),
    "q.b": ("blocks.*.attn.q.bias", "(head d_head)"),
    "k": ("blocks.*.attn.k.weight", "(kv_head d_head) d_model"),
    "k.b": ("blocks.*.attn.k.bias", "(kv_head d_head)"),
    "v": ("blocks.*.attn.v.weight", "(kv_head d_head) d_model"),
    "v.b": ("blocks.*.attn.v.bias", "(kv_head d_head)"),
    "q_norm": ("blocks.*.attn.q_norm.weight", "d_head"),
    "k_norm": ("blocks.*.attn.k_norm.weight", "d_head"),
    "o": ("blocks.*.attn.o.weight", "d_model (head d_head)"),
    "o.b": ("blocks.*.attn.o.bias", "d_model"),
    "ln1_post": ("blocks.*.ln1_post.weight", "d_model"),
    "ln1_post.b": ("blocks.*.ln1_post.bias", "d_model"),
    "ln2": ("blocks.*.ln2.weight", "d_model"),
    "ln2.b": ("blocks.*.ln2.bias", "d_model"),
    "ln2_post": ("blocks.*.ln2_post.weight", "d_model"),
    "ln2_post.b": ("blocks.*.ln2_post.bias", "d_model"),
    "gate": ("blocks.*.mlp.w_in.weight", "d_mlp d_model"),
    "gate.b": ("blocks.*.mlp.w_in.bias", "d_mlp"),
    "in": ("blocks.*.mlp.w_linear.weight", "d_mlp d_model"),
    "in.b": ("blocks.*.mlp.w_linear.bias", "d_mlp"),
    "out": ("blocks.*.mlp.w_out.weight", "d_model d_mlp"),
    "out.b": ("blocks.*.mlp.w_out.bias", "d_model"),
    "ln_final": ("ln_final.weight", "d_model"),
    "ln_final.b": ("ln_final.bias", "d_model"),
    "unembed": ("unembed.weight", "d_vocab_out d_model"),
    "unembed.b": ("unembed.bias", "d_vocab_out"),
}
"""The weights of a model with a gated feed-forward."""

UNGATED = {
    part: (name.replace("w_linear", "w_in"), axes) for part, (name, axes) in OURS.items() if not part.startswith("gate")
}
"""Those of a model without a gate; `in` is then our `w_in`."""


def _renamed(names: Mapping[str, str], axes: Mapping[str, str] | None = None) -> dict[str, Row]:
    """Rows with other names, and other axes where given."""
    return {part: (name, (axes or {}).get(part, OURS[part][1])) for part, name in names.items()}


_LENS = {
    "embed": "embed.W_E", "pos": "pos_embed.W_pos", "ln1": "blocks.*.ln1.w", "ln1.b": "blocks.*.ln1.b",
    "q": "blocks.*.attn.W_Q", "q.b": "blocks.*.attn.b_Q", "k": "blocks.*.attn.W_K", "k.b": "blocks.*.attn.b_K",
    "v": "blocks.*.attn.W_V", "v.b": "blocks.*.attn.b_V", "q_norm": "blocks.*.attn.q_norm.w",
    "k_norm": "blocks.*.attn.k_norm.w", "o": "blocks.*.attn.W_O", "o.b": "blocks.*.attn.b_O",
    "ln2": "blocks.*.ln2.w", "ln2.b": "blocks.*.ln2.b", "gate": "blocks.*.mlp.W_gate", "in": "blocks.*.mlp.W_in",
    "in.b": "blocks.*.mlp.b_in", "out": "blocks.*.mlp.W_out", "out.b": "blocks.*.mlp.b_out",
    "ln_final": "ln_final.w", "ln_final.b": "ln_final.b", "unembed": "unembed.W_U", "unembed.b": "unembed.b_U",
}  # fmt: skip
_LENS_AXES = {
    "q": "head d_model d_head", "k": "kv_head d_model d_head", "v": "kv_head d_model d_head", "q.b": "head d_head",
    "k.b": "kv_head d_head", "v.b": "kv_head d_head", "o": "head d_head d_model", "gate": "d_model d_mlp",
    "in": "d_model d_mlp", "out": "d_mlp d_model", "unembed": "d_model d_vocab_out",
}  # fmt: skip
_GROKKING_AXES = _LENS_AXES | {
    "embed": "d_model d_vocab", "q": "head d_head d_model", "k": "kv_head d_head d_model",
    "v": "kv_head d_head d_model", "o": "d_model (head d_head)", "gate": "d_mlp d_model", "in": "d_mlp d_model",
    "out": "d_model d_mlp",
}  # fmt: skip
_BRIDGE = {part: name for part, (name, _) in OURS.items()} | {
    "gate": "blocks.*.mlp.gate.weight", "gate.b": "blocks.*.mlp.gate.bias", "in": "blocks.*.mlp.in.weight",
    "in.b": "blocks.*.mlp.in.bias", "out": "blocks.*.mlp.out.weight", "out.b": "blocks.*.mlp.out.bias",
}  # fmt: skip
_CONV_AXES = {"o": "(head d_head) d_model", "in": "d_model d_mlp", "out": "d_mlp d_model"}


@dataclass(frozen=True)
class Layout:
    """Names and axes of weights. Layouts of one `family` share their names."""

    name: str
    summary: str
    family: str
    rows: Mapping[str, Row]
    signs: frozenset[str] = field(default_factory=frozenset)
    """Last components of names that only this layout of the family has."""
    needs: frozenset[str] = field(default_factory=frozenset)
    """Weights that this layout always has."""


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "transformerlens",
            "HookedTransformer: W_E [d_vocab d_model], W_Q [head d_model d_head], W_in [d_model d_mlp]",
            "W_",
            _renamed(_LENS, _LENS_AXES),
            frozenset({"IGNORE", "b_Q", "b_K", "b_V", "b_O", "b_U"}),
        ),
        Layout(
            "grokking",
            "the published grokking models: W_E [d_model d_vocab], W_Q [head d_head d_model], W_in [d_mlp d_model]",
            "W_",
            _renamed(_LENS, _GROKKING_AXES),
        ),
        Layout(
            "transformerlens-current",
            "TransformerBridge: attn.q.weight [head*d_head d_model], mlp.in.weight [d_mlp d_model]",
            "bridge",
            _renamed(_BRIDGE),
        ),
        Layout(
            "transformerlens-gpt2",
            "TransformerBridge around GPT-2, whose attn.o and mlp matrices are [in out]",
            "bridge",
            _renamed(_BRIDGE, _CONV_AXES),
            needs=frozenset({"in"}),
        ),
        Layout("algoscope", "our own checkpoints: mlp.w_in.weight [d_mlp d_model]", "ours", UNGATED),
        Layout("algoscope-gated", "the same, for gated models", "ours", OURS, needs=frozenset({"gate"})),
    )
}
BUFFERS = ("mask", "causal_mask", "IGNORE", "rotary_sin", "rotary_cos", "alibi", "inv_freq", "position_ids")
CHOICES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("blocks", "per-head"),
    "gate_up": ("gate-first", "up-first"),
    "rotary_pairs": ("halves", "neighbours"),
    "matrices": ("out-in", "in-out"),
}
"""How weights are to be read, where no shape shows it: `--set weights.qkv=per-head`."""
TOGETHER = (("embed",), ("q", "k", "v"), ("o",), ("in", "gate"), ("out",))
"""Groups of weights with one orientation; in a mixed layout each group may have another."""


def reorder_axes(value: Tensor, axes: str, wanted: str, sizes: Mapping[str, int]) -> Tensor:
    """A weight with its axes reordered, contiguous; `sizes` are needed to split a joined axis."""
    if axes == wanted:
        return value.contiguous()
    for joined in re.findall(r"\(.*?\)", axes):
        if joined in wanted:  # it stays one axis
            axes, wanted = axes.replace(joined, "joined"), wanted.replace(joined, "joined")
    known = {axis: size for axis, size in sizes.items() if re.search(rf"\b{axis}\b", axes)}
    return rearrange(value, f"{axes} -> {wanted}", **known).contiguous()


def weights_to_layout(weights: Mapping[str, Tensor], layout: str, sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Our weights under the names and in the axes of a layout. `sizes`: those of `head`, `kv_head` and `d_head`."""
    ours = OURS if any(".w_linear." in name for name in weights) else UNGATED
    part_of = {name: part for part, (name, _) in ours.items()}
    written = {}
    for name, value in weights.items():
        layer = re.match(r"blocks\.(\d+)\.", name)
        part = part_of[re.sub(r"^blocks\.\d+\.", "blocks.*.", name)]
        there, axes = LAYOUTS[layout].rows[part]
        if layout == "transformerlens" and part[0] in "kv" and "norm" not in part and sizes["kv_head"] < sizes["head"]:
            there = re.sub(r"\.(\w+)$", r"._\1", there)  # its name for grouped keys and values
        written[there.replace("*", layer[1] if layer else "")] = reorder_axes(value, ours[part][1], axes, sizes).clone()
    return written
