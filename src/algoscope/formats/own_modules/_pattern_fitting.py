"""products of queries and keys, pattern -> the scale, mask and bias between them, and the kind of softmax."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-8  # of the largest logarithm of the pattern


@dataclass(frozen=True)
class PatternFit:
    """pattern = rate * softmax(scale * q.k + bias) + 1 - rate, over the keys that a query may see."""

    scale: float
    causal: bool
    window: int | None = None
    alibi: bool = False
    soft_cap: float | None = None
    plus_one: bool = False
    rate: float = 1.0


def fit_pattern(
    products: Tensor, pattern: Tensor, d_head: int, scalars: Iterable[float], tolerance: float = TOLERANCE
) -> PatternFit | str:
    """The softmax that gives a pattern [batch head query key]; where there is none of ours, why."""
    visible = pattern != 0
    n = pattern.shape[-1]
    mask = fit_mask(visible)
    if mask is None:
        return "its mask is neither causal, with or without a window, nor open"
    causal, window = mask
    if n == 1:
        return PatternFit(_neat(1 / math.sqrt(d_head), d_head), True)
    total, count = pattern.sum(-1), visible.sum(-1)
    plus_one, rate = False, 1.0
    logs = torch.where(visible, pattern, 1.0)
    if not torch.allclose(total, torch.ones_like(total), rtol=0, atol=1e-10):
        several = count > 1
        rates = (count[several] - total[several]) / (count[several] - 1)
        if bool((total < 1).all()):  # exp(x) / (1 + sum of exp)
            plus_one, logs = True, torch.where(visible, pattern / (1 - total[..., None]), 1.0)
        elif bool((rates - rates.mean()).abs().max() < 1e-10) and 0 <= float(rates.mean()) <= 1:
            rate = round(float(rates.mean()), 13)
            softmax = (pattern - (1 - rate)) / rate if rate else torch.ones_like(pattern)
            logs = torch.where(visible, softmax, 1.0)
        else:
            return "its pattern is no softmax: the rows do not sum to 1"
    if bool((logs <= 0).any()):
        return "its pattern is no softmax: it has negative entries"
    logs = logs.log()

    def centred(x: Tensor) -> Tensor:
        x = torch.where(visible, x, 0.0)
        return x if plus_one else torch.where(visible, x - x.sum(-1, keepdim=True) / count[..., None], 0.0)

    target, s = centred(logs), centred(products)
    size = float(target.abs().max().clamp(min=1e-300))
    scale = float((s * target).sum() / s.pow(2).sum().clamp(min=1e-300))
    if float((target - scale * s).abs().max()) <= tolerance * size:
        return PatternFit(_neat(scale, d_head), causal, window, False, None, plus_one, rate)
    distance = (torch.arange(n)[None, :] - torch.arange(n)[:, None]).abs().double()
    alibi = _alibi(target, s, centred, distance, tolerance * size)
    if alibi is not None:
        return PatternFit(_neat(alibi, d_head), causal, window, True, None, plus_one, rate)
    capped = _soft_cap(target, products, centred, d_head, tuple(scalars), tolerance * size)
    if capped is not None:
        return PatternFit(_neat(capped[0], d_head), causal, window, False, capped[1], plus_one, rate)
    rest = target - scale * s
    if float((rest - rest[:1]).abs().max()) <= 0.5 * float(rest.abs().max()):
        return "its scores have a bias that depends on positions and is not ALiBi's, such as a relative position bias"
    return "its pattern is no softmax of scaled products of queries and keys"


def fit_mask(visible: Tensor) -> tuple[bool, int | None] | None:
    """Whether queries see no later keys, and the number of keys that they see, from entries [... query key] that say
    whether a query sees a key; None where the mask is of another kind.
    """
    n = visible.shape[-1]
    rows = visible.reshape(-1, n, n)
    if not bool((rows == rows[:1]).all()) or not bool(rows[0].any()):
        return None
    if bool(rows[0].all()):
        return n == 1, None
    before = torch.arange(n)[:, None] - torch.arange(n)
    window = int(before[rows[0]].max()) + 1
    if not bool((rows[0] == ((before >= 0) & (before < window))).all()):
        return None
    return True, window if window < n else None


def _alibi(target: Tensor, s: Tensor, centred: object, distance: Tensor, tolerance: float) -> float | None:
    """The scale, where the rest of the scores is ALiBi's slope of each head times the distance."""
    heads = target.shape[1]
    slopes = 2 ** (-8 * torch.arange(1, heads + 1).double() / heads)
    assert callable(centred)
    rest = target - centred((-distance * slopes[:, None, None]).expand_as(target))
    scale = float((s * rest).sum() / s.pow(2).sum().clamp(min=1e-300))
    return scale if float((rest - scale * s).abs().max()) <= tolerance else None


def _soft_cap(
    target: Tensor, products: Tensor, centred: object, d_head: int, scalars: tuple[float, ...], tolerance: float
) -> tuple[float, float] | None:
    """Scale and cap, where the scores are cap * tanh(scale * q.k / cap)."""
    assert callable(centred)
    factors = {1 / math.sqrt(d_head), 1.0, 1 / d_head, *scalars, *(1 / x for x in scalars)}
    for cap in {*scalars, *(1 / x for x in scalars)}:
        for scale in factors:
            if cap > 0 and float((target - centred(cap * (scale * products / cap).tanh())).abs().max()) <= tolerance:
                return scale, cap
    return None


def _neat(scale: float, d_head: int) -> float:
    """The scale as a formula gives it, where one does up to rounding."""
    for formula in (1 / math.sqrt(d_head), 1.0, 1 / d_head):
        if math.isclose(scale, formula, rel_tol=1e-9):
            return formula
    return scale
