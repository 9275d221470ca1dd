"""Which norm, if any, turns one value into another: LayerNorm or RMSNorm, its epsilon, weight and bias."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from algoscope.formats.own_modules.linear_maps import Weight
from algoscope.formats.own_modules.tracing import Event, Value

CLOSE = 1e-10  # of the largest entry, up to which two values in float64 are the same
USUAL_EPS = (1e-5, 1e-6, 1e-8, 1e-12, 0.0)
LARGEST_EPS = 0.1


@dataclass(frozen=True, eq=False)
class NormFit:
    """A norm: y = normalised(x) * weight + bias."""

    kind: str
    """`LN`, `RMS`, or `none` for the identity."""
    eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None
    """None where it is 0."""


IDENTITY = NormFit("none")


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two values are equal up to rounding in float64."""
    if one.shape != other.shape:
        return False
    size = other.abs().max()
    return bool((one - other).abs().max() <= CLOSE * size) if size.isfinite() else False


def normalised(x: Tensor, kind: str, eps: float) -> Tensor:
    """Rows divided by their spread: LayerNorm or RMSNorm without weights."""
    x = x - x.mean(dim=-1, keepdim=True) if kind == "LN" else x
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()


def fit_norm(x: Tensor, y: Tensor, eps: Iterable[float]) -> NormFit | None:
    """The norm that gives rows y [row d] for rows x [row d]; None where there is none."""
    if x.shape != y.shape:
        return None
    if same(x, y):
        return IDENTITY
    fits: list[tuple[float, int, NormFit]] = []
    d = x.shape[-1]
    known = [*eps, *USUAL_EPS]
    known += [e * (d - 1) / d for e in known]  # a variance that divides by d - 1 is ours with a smaller epsilon
    for kind in ("LN", "RMS"):
        for value in dict.fromkeys(known):
            if 0 <= value <= LARGEST_EPS:
                error, fit = _with_eps(x, y, kind, value)
                fits.append((error, len(fits), fit))
    error, _, best = min(fits)
    return best if error <= CLOSE else None


def _with_eps(x: Tensor, y: Tensor, kind: str, eps: float) -> tuple[float, NormFit]:
    """The least squares of y on the normalised x, column by column, and the largest relative error."""
    n = normalised(x, kind, eps)
    centre, y_centre = n.mean(dim=0), y.mean(dim=0)
    spread = (n - centre).pow(2).sum(dim=0).clamp(min=1e-300)
    weight = ((n - centre) * (y - y_centre)).sum(dim=0) / spread
    bias = y_centre - weight * centre
    size = float(y.abs().max().clamp(min=1e-300))
    plain_weight = (n * y).sum(dim=0) / n.pow(2).sum(dim=0).clamp(min=1e-300)
    plain = float((n * plain_weight - y).abs().max()) / size
    whole = float((n * weight + bias - y).abs().max()) / size
    if plain <= max(CLOSE / 10, 3 * whole):
        return plain, NormFit(kind, eps, plain_weight, None)
    return whole, NormFit(kind, eps, weight, bias)


@dataclass(frozen=True)
class Vector:
    """A weight vector of a norm or a bias: `factor` times a weight of the module, or a constant."""

    weight: Weight | None
    factor: float = 1.0


def find_vector(values: Tensor, events: Sequence[Event]) -> Vector | None:
    """Where a vector comes from: a weight that an event reads, a multiple of one, or one number."""
    flat = values.flatten()
    multiple: Vector | None = None
    for event in events:
        for i, arg in enumerate(event.args):
            if not isinstance(arg, Value) or arg.is_data or arg.raw.numel() != flat.numel():
                continue
            if not arg.raw.is_floating_point():
                continue
            candidate = arg.tensor.flatten()
            ratio = float(flat @ candidate / (candidate @ candidate).clamp(min=1e-300))
            if not torch.allclose(flat, ratio * candidate, rtol=1e-8, atol=1e-9 * float(flat.abs().max())):
                continue
            weight = Weight(event.index, i, _flattened)
            if abs(ratio - 1) < 1e-8:
                return Vector(weight)
            multiple = multiple or Vector(weight, ratio)
    if not bool(((flat - flat[0]).abs() < 1e-9).all()):
        return multiple
    for event in events:  # one number, which may be a weight too
        for i, arg in enumerate(event.args):
            if not isinstance(arg, Value) or arg.is_data or arg.raw.numel() != 1 or not arg.raw.is_floating_point():
                continue
            if abs(float(arg.tensor) - float(flat[0])) < 1e-9 * abs(float(flat[0])):
                return Vector(Weight(event.index, i, partial(_repeated, n=flat.numel())))
    return Vector(None, round(float(flat[0]), 12))


def _repeated(t: Tensor, n: int) -> Tensor:
    return t.reshape(-1).expand(n)


def _flattened(t: Tensor) -> Tensor:
    return t.reshape(-1)
