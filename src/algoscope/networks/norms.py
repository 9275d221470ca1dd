"""LayerNorm and RMSNorm, in half precision as `transformers` computes them: statistics in float32."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.config import ModelConfig
from algoscope.networks.taps import Tap, is_traced, precise, tap_rounded


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a learned weight (and bias). Sites: the divisor (`scale`), and the quotient
    (`normalized`). With `n_heads`, vectors [n_heads size] are normalised as one.
    """

    def __init__(
        self,
        size: int,
        name: str,
        layer: int | None,
        centred: bool,
        eps: float,
        *,
        biased: bool = True,
        n_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.eps, self.centred = layer, eps, centred
        self.shape = (size,) if n_heads is None else (n_heads, size)
        self.axes = tuple(range(-len(self.shape), 0))
        self.scale_kind, self.normalized_kind = kinds = f"{name}_scale", f"{name}_normalized"
        self.kinds = frozenset(kinds)
        self.weight = nn.Parameter(torch.ones(math.prod(self.shape)))
        self.bias = nn.Parameter(torch.zeros(size)) if centred and biased else None

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap) -> Float[Tensor, "*rows size"]:
        """The kernel of PyTorch; entries of which a tap replaces the quotient are computed from the replacement."""
        plain = self._plain(x)
        if tap.kinds.isdisjoint(self.kinds):
            return plain
        wide = x.to(precise(x.dtype))
        if self.centred:
            wide = wide - wide.mean(dim=self.axes, keepdim=True)
        divisor = (wide.pow(2).mean(dim=self.axes, keepdim=True) + self.eps).sqrt()
        quotient = (wide / divisor).to(x.dtype)
        scale = tap_rounded(tap, self.scale_kind, self.layer, divisor, x.dtype)
        rescaled = quotient if scale is divisor else (wide / scale).to(x.dtype)
        normalized = tap(self.normalized_kind, self.layer, rescaled)
        if normalized is quotient and not is_traced():
            return plain
        scaled = self._scaled(normalized)
        return scaled if is_traced() else torch.where(normalized == quotient, plain, scaled)

    def _plain(self, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        weight = self.weight.view(self.shape)
        if self.centred:
            return F.layer_norm(x, self.shape, weight, self.bias, self.eps)
        if x.dtype == precise(x.dtype):
            return F.rms_norm(x, self.shape, weight, self.eps)
        return weight * F.rms_norm(x.float(), self.shape, eps=self.eps).to(x.dtype)

    def _scaled(self, normalized: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        if self.bias is None:
            return normalized * self.weight.view(self.shape)
        wide = precise(normalized.dtype)
        return (normalized.to(wide) * self.weight.to(wide) + self.bias.to(wide)).to(normalized.dtype)


class NoNorm(nn.Module):
    """The identity, for models without norms."""

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap) -> Float[Tensor, "*rows size"]:
        return x


def make_norm(cfg: ModelConfig, name: str, layer: int | None) -> Norm | NoNorm:
    norm = cfg.normalization_type
    if norm is None or (name == "ln_final" and not cfg.final_norm):
        return NoNorm()
    return Norm(cfg.d_model, name, layer, norm == "LN", cfg.eps, biased=cfg.norm_bias)


NORM_AT: dict[str, dict[str, str]] = {
    "pre": {"input": "ln{half}"},
    "post": {"sum": "ln{half}"},
    "output": {"output": "ln{half}"},
    "both": {"input": "ln{half}", "output": "ln{half}_post"},
}
"""The norm that stands before the input, after the output, or after the sum of a half of a block, by `cfg.norms`."""
