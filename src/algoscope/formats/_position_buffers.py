"""Position encodings that a file stores as buffers: rotary angles, in any of the ways code keeps them, and ALiBi's
slopes.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from algoscope.core.errors import CheckpointError

_ROTARY = re.compile(r"(^|[._])(rotary_sin|inv_freq|sin(_cached)?|freqs(_sin|_cis)?)$")
_SLOPES = re.compile(r"(^|[._])(slopes|alibi)$")


@dataclass(frozen=True)
class StoredPositions:
    """A buffer that shows how positions are encoded, and the fields of our config that it gives."""

    name: str
    fields: Mapping[str, Any]
    pairs: str | None = None
    """Which entries of a head are rotated together, where the buffer shows it (`layouts.CHOICES`)."""
    n_ctx: int | None = None


def stored_positions(buffers: Mapping[str, Tensor], source: str) -> StoredPositions | None:
    """What the buffers of a file say about positions. Raises CheckpointError for slopes that are not those of ALiBi."""
    for name, value in buffers.items():
        if _ROTARY.search(name):
            return _rotation(name, value)
        if _SLOPES.search(name):
            return _alibi(name, value, source)
    return None


def _rotation(name: str, value: Tensor) -> StoredPositions:
    """From frequencies [pair], or from complex rotations, angles or sines [pos ... pair]."""
    if value.ndim == 1:
        return StoredPositions(name, {"positions": "rotary", **_frequencies(value.double())})
    if value.is_complex():
        value = torch.view_as_real(value)
    is_complex = name.endswith("cis")
    table = torch.atan2(value[..., 1], value[..., 0]) if is_complex else value
    table = table.double().reshape(-1, table.shape[-1])
    if len(table) < 2:
        return StoredPositions(name, {"positions": "rotary"})
    angle, pairs = table[1], "neighbours" if is_complex else None
    if not is_complex:
        angle, pairs = _of_entries(angle if name.endswith("freqs") else angle.asin())  # from 1 radian downwards
    return StoredPositions(name, {"positions": "rotary", **_frequencies(angle)}, pairs, len(table))


def _of_entries(angle: Tensor) -> tuple[Tensor, str | None]:
    """Angles of the pairs, and which entries are a pair, of angles that are stored once or for each entry of a head."""
    half = len(angle) // 2
    if 2 * half == len(angle) and torch.allclose(angle[:half], angle[half:]):
        return angle[:half], "halves"
    if 2 * half == len(angle) and torch.allclose(angle[::2], angle[1::2]):
        return angle[::2], "neighbours"
    return angle, None


def _frequencies(angle: Tensor) -> dict[str, Any]:
    """The rotary fields of our config for these frequencies, in radians per position."""
    n = len(angle)
    if n < 2:
        return {"rotary_dim": 2 * n, "rotary_frequencies": tuple(angle.tolist())}
    base = float(angle[-1].clamp(min=1e-12)) ** (-n / (n - 1))
    base = float(round(base)) if math.isclose(base, round(base), rel_tol=1e-4) else base
    if torch.allclose(angle, base ** (-torch.arange(n).double() / n), rtol=1e-5, atol=1e-7):
        return {"rotary_dim": 2 * n, "rotary_base": base}
    return {"rotary_dim": 2 * n, "rotary_frequencies": tuple(angle.tolist())}


def _alibi(name: str, value: Tensor, source: str) -> StoredPositions:
    """From slopes [head], or a bias [head ... key] whose steps are the slopes."""
    slopes = value.squeeze().double().abs()
    if slopes.ndim > 1:
        table = slopes.reshape(len(slopes), -1, slopes.shape[-1])[:, -1]
        slopes = (table[:, 1] - table[:, 0]).abs()
    n = slopes.numel()
    usual = 2 ** (-8 * torch.arange(1, n + 1).double() / n)
    if not torch.allclose(slopes.reshape(-1), usual, rtol=1e-3):
        raise CheckpointError(f"{source}: {name} has other slopes than ALiBi's 2^(-8 i / {n}), which ours has")
    return StoredPositions(name, {"positions": "alibi"})
