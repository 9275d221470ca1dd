"""PyTorch modules as people write them, one file for each habit of naming and structure, all written for these tests.

`STYLES[name].make(**sizes)` gives a decoder with random weights (biases too) drawn from `seed`. Each takes the sizes
`d_vocab`, `d_model`, `n_heads`, `n_layers`, `seed`, and `n_ctx` where its positions are limited (`Style.n_ctx`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import (
    adder,
    alibi,
    attention_only,
    complex_rotary,
    conv1d,
    course,
    encoder_layers,
    foreign_parts,
    lecture,
    mingpt,
    multihead,
    nanogpt,
    odd_head,
    parallel,
    pattern_gpt,
    per_head_fused,
    proj_rotary,
    textbook,
    to_qkv,
)


@dataclass(frozen=True)
class Style:
    """A way to write a decoder."""

    make: Callable[..., nn.Module]
    n_heads: int = 4
    """At the default sizes."""
    n_ctx: int | None = 9
    """The longest input at the default sizes; None: any length."""
    d_vocab: int = 11
    part: str | None = None
    """The part that our transformer does not have, as a pattern for the line that refuses it; None: it converts."""


STYLES: Mapping[str, Style] = {
    "pattern gpt": Style(pattern_gpt.make, n_heads=2, n_ctx=10, d_vocab=8),
    "adder": Style(adder.make, n_heads=1, n_ctx=13, d_vocab=14),
    "nanogpt": Style(nanogpt.make),
    "nanogpt without biases": Style(partial(nanogpt.make, bias=False)),
    "mingpt": Style(mingpt.make),
    "course": Style(course.make),
    "textbook": Style(textbook.make),
    "textbook with qkv bias": Style(partial(textbook.make, qkv_bias=True)),
    "conv1d": Style(conv1d.make),
    "proj rotary, halves": Style(proj_rotary.make, n_ctx=None),
    "proj rotary, interleaved": Style(partial(proj_rotary.make, pairing="interleaved"), n_ctx=None),
    "complex rotary": Style(complex_rotary.make),
    "to_qkv": Style(to_qkv.make),
    "multihead, pre-norm": Style(multihead.make),
    "multihead, post-norm": Style(partial(multihead.make, norm_first=False, boolean_mask=False)),
    "multihead, sequence first": Style(partial(multihead.make, batch_first=False, bias=False)),
    "encoder layers, post-norm": Style(encoder_layers.make),
    "encoder layers, pre-norm": Style(
        partial(encoder_layers.make, norm_first=True, final_norm=True, activation="gelu", batch_first=False)
    ),
    "encoder layers in a list": Style(partial(encoder_layers.make, stacked=False, norm_first=True)),
    "encoder layers, post-norm and a final norm": Style(partial(encoder_layers.make, final_norm=True)),
    "lecture": Style(lecture.make),
    "fused per head, parallel": Style(per_head_fused.make, n_ctx=None),
    "fused per head, in sequence": Style(partial(per_head_fused.make, rotary_dim=0, parallel=False)),
    "alibi": Style(alibi.make, n_ctx=None),
    "attention only": Style(attention_only.make),
    "attention only, no norms": Style(partial(attention_only.make, norms=False)),
    "parallel, one norm": Style(parallel.make),
    "tied head with a bias, no final norm": Style(odd_head.make),
    "untied, output a dictionary": Style(partial(odd_head.make, tied=False, final_norm=True, output="dict")),
    "untied, output a dataclass": Style(
        partial(odd_head.make, tied=False, bias=False, final_norm=True, output="dataclass")
    ),
    "relative bias": Style(partial(foreign_parts.make, "relative bias"), part=r"relative_attention_bias"),
    "experts": Style(partial(foreign_parts.make, "experts"), part=r"experts|router"),
    "convolution": Style(partial(foreign_parts.make, "convolution"), part=r"conv"),
    "lstm": Style(partial(foreign_parts.make, "lstm"), n_ctx=None, part=r"lstm|LSTM"),
    "linear attention": Style(partial(foreign_parts.make, "linear attention"), part=r"attn|attention"),
    "embedding norm": Style(partial(foreign_parts.make, "embedding norm"), part=r"embed_norm"),
}

CONVERTIBLE = [name for name, style in STYLES.items() if style.part is None]
REFUSED = [name for name, style in STYLES.items() if style.part is not None]

SIZED: Mapping[str, tuple[dict[str, int], int]] = {
    "pattern gpt": ({"d_vocab": 8, "n_ctx": 24, "d_model": 64, "n_heads": 2, "n_layers": 2}, 101_632),
    "adder": ({"d_vocab": 14, "n_ctx": 13, "d_model": 32, "n_heads": 1, "n_layers": 2}, 17_760),
}
"""Sizes at which the described systems state their number of parameters, and that number."""


@torch.no_grad()
def logits_of(module: nn.Module, tokens: Tensor) -> Tensor:
    """Logits [batch pos d_vocab], whatever the module packs them in; it is read as in evaluation, and left as it was.

    A module that gives the last position alone is read at every prefix.
    """
    training = module.training
    module.eval()
    try:
        logits = _unpacked(module(tokens))
        if logits.shape[1] == 1 < tokens.shape[1]:
            logits = torch.cat([_unpacked(module(tokens[:, : i + 1])) for i in range(tokens.shape[1])], dim=1)
        return logits
    finally:
        module.train(training)


def _unpacked(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple):
        return output[0]
    return output["logits"] if isinstance(output, Mapping) else output.logits


def saved(module: nn.Module, path: Path) -> Path:
    """Its state dictionary, written as the ending says: .pt, .safetensors or .npz."""
    weights = {name: value.detach().clone().contiguous() for name, value in module.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in weights.items()})
    else:
        torch.save(weights, path)
    return path


def slug(name: str) -> str:
    """A style's name as a file's."""
    return re.sub(r"\W+", "_", name)
