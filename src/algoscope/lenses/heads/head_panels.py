"""Shared by figures of heads: axes, units, and numbers in cells."""

from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.config import ModelConfig
from algoscope.core.panel import Axis, Texts

ATTENTION: dict[str, Any] = {
    "unit": "share of attention",
    "zero": "no attention there",
    "one": "all attention there",
    "scale": "unit",
}
INPUTS: dict[str, Any] = {"unit": "share of inputs", "zero": "no input", "one": "every input", "scale": "unit"}
ENTROPY: dict[str, Any] = {
    "unit": "share of the largest entropy",
    "zero": "always a single key",
    "one": "uniform over the visible keys",
    "scale": "unit",
}
MOST_ROWS = 48  # in a table with a row per head


def head_name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def head_names(cfg: ModelConfig) -> tuple[str, ...]:
    """The names of all heads, layer by layer."""
    return tuple(head_name(layer, head) for layer in range(cfg.n_layers) for head in range(cfg.n_heads))


def head_axes(cfg: ModelConfig) -> tuple[Axis, Axis]:
    """The axes layer and head."""
    return Axis("layer", tuple(range(cfg.n_layers))), Axis("head", tuple(range(cfg.n_heads)))


def numbers(values: Float[np.ndarray, "..."], decimals: int = 2) -> Texts:
    """Texts for the cells of a heatmap; empty for NaN, and never minus zero."""
    write = np.vectorize(
        lambda value: "" if np.isnan(value) else f"{round(value, decimals) + 0.0:.{decimals}f}", otypes=[object]
    )
    return write(values)
