"""LayerNorm and RMSNorm, in half precision as `transformers` computes them: statistics in float32."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from algoscope.config import ModelConfig
from algoscope.networks.taps import Tap, is_traced, precise, tap_rounded


class Norm(nn.Module):
    """LayerNorm or RMSNorm with a learned weight (and bias). Sites: the divisor (`scale`), and the quotient
    (`normalized`).
    """

    def __init__(self, size: int, name: str, layer: int | None, centred: bool, eps: float) -> None:
        super().__init__()
        self.layer, self.eps, self.centred = layer, eps, centred
        self.scale_kind, self.normalized_kind = kinds = f"{name}_scale", f"{name}_normalized"
        self.kinds = frozenset(kinds)
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if centred else None

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap) -> Float[Tensor, "*rows size"]:
        """The kernel of PyTorch; entries of which a tap replaces the quotient are computed from the replacement."""
        plain = self._plain(x)
        if tap.kinds.isdisjoint(self.kinds):
            return plain
        wide = x.to(precise(x.dtype))
        if self.centred:
            wide = wide - wide.mean(dim=-1, keepdim=True)
        divisor = (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps).sqrt()
        quotient = (wide / divisor).to(x.dtype)
        scale = tap_rounded(tap, self.scale_kind, self.layer, divisor, x.dtype)
        rescaled = quotient if scale is divisor else (wide / scale).to(x.dtype)
        normalized = tap(self.normalized_kind, self.layer, rescaled)
        if normalized is quotient and not is_traced():
            return plain
        scaled = self._scaled(normalized)
        return scaled if is_traced() else torch.where(normalized == quotient, plain, scaled)

    def _plain(self, x: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        if self.centred:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        if x.dtype == precise(x.dtype):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)

    def _scaled(self, normalized: Float[Tensor, "*rows size"]) -> Float[Tensor, "*rows size"]:
        if self.bias is None:
            return normalized * self.weight
        wide = precise(normalized.dtype)
        return (normalized.to(wide) * self.weight.to(wide) + self.bias.to(wide)).to(normalized.dtype)


class NoNorm(nn.Module):
    """The identity, for models without norms."""

    def forward(self, x: Float[Tensor, "*rows size"], tap: Tap) -> Float[Tensor, "*rows size"]:
        return x


def make_norm(cfg: ModelConfig, name: str, layer: int | None) -> Norm | NoNorm:
    norm = cfg.normalization_type
    return NoNorm() if norm is None else Norm(cfg.d_model, name, layer, norm == "LN", cfg.eps)
