"""Which rotary encoding, if any, turns queries and keys before positions into those after."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from algoscope.formats.own_modules.norm_fitting import same

ROUGH = 1e-5  # tables that a module holds in float32 are rounded, and replaced by exact ones later


@dataclass(frozen=True)
class Rotation:
    """The entries of a head in our order: first of each pair, second of each pair, those not rotated."""

    entries: tuple[int, ...]
    frequencies: tuple[float, ...]
    """The angle of each pair, in radians per position."""
    magnitude: float
    base: float | None
    """Where the frequencies are base^(-2i/n)."""
    is_rounded: bool = False
    """Whether the module's tables of cosines and sines are those of this rotation only up to rounding."""

    @property
    def size(self) -> int:
        return 2 * len(self.frequencies)


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """Vectors [... pos entry] with our rotary encoding, entries in our order."""
    x = x[..., list(rotation.entries)]
    angle = _angles(x.shape[-2], rotation.frequencies)
    cos, sin, n = angle.cos() * rotation.magnitude, angle.sin() * rotation.magnitude, len(rotation.frequencies)
    left, right = x[..., :n], x[..., n : 2 * n]
    return torch.cat([left * cos - right * sin, right * cos + left * sin, x[..., 2 * n :]], dim=-1)


def fit_rotation(before: Tensor, after: Tensor) -> Rotation | None:
    """The rotation that turns vectors [row pos entry] into others; None where there is none.

    Each entry after position 1 is a x[i] + b x[j]: the pairs (i, j) and the angles follow from least squares.
    """
    x, y = before[:, 1], after[:, 1]
    n = x.shape[1]
    size = float(y.abs().max())
    kept = [e for e in range(n) if float((x[:, e] - y[:, e]).abs().max()) <= 1e-12 * size]
    free = [e for e in range(n) if e not in kept]
    pairs: list[tuple[int, int]] = []
    angles: list[float] = []
    magnitudes: list[float] = []
    for i in free:
        if any(i in pair for pair in pairs):
            continue
        best = min(((*_two(x, y, i, j), j) for j in free if j != i), default=None)
        if best is None or best[0] > ROUGH * size:
            return None
        _, a, b, j = best
        # y_i = a x_i + b x_j with a = m cos, b = -m sin where i is the first of its pair
        first, second, sine = (i, j, -b) if b <= 0 else (j, i, b)
        pairs.append((first, second))
        angles.append(math.atan2(sine, a))
        magnitudes.append(math.hypot(a, sine))
    if not pairs or max(magnitudes) - min(magnitudes) > ROUGH:
        return None
    order = sorted(range(len(pairs)), key=lambda k: min(pairs[k]))
    magnitude = sum(magnitudes) / len(magnitudes)
    frequencies = tuple(angles[k] for k in order)
    entries = (*(pairs[k][0] for k in order), *(pairs[k][1] for k in order), *kept)
    magnitude = 1.0 if abs(magnitude - 1) < ROUGH else magnitude
    base = _base(frequencies)
    rotations = [Rotation(entries, frequencies, magnitude, None)]
    if base is not None:
        exact = tuple(base ** (-k / len(frequencies)) for k in range(len(frequencies)))
        rotations.insert(0, Rotation(entries, exact, magnitude, base))
    expected = after[..., list(entries)]
    for rotation in rotations:
        if same(rotated(before, rotation), expected):
            return rotation
    likely = rotations[0]
    error = float((rotated(before, likely) - expected).abs().max())
    return replace(likely, is_rounded=True) if error <= ROUGH * float(expected.abs().max()) else None


def _angles(n: int, frequencies: tuple[float, ...]) -> Tensor:
    """[pos pair]"""
    return torch.arange(n, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)


def _two(x: Tensor, y: Tensor, i: int, j: int) -> tuple[float, float, float]:
    """The largest error of y_i = a x_i + b x_j over rows, and a and b."""
    columns = x[:, [i, j]]
    solution = torch.linalg.lstsq(columns, y[:, i : i + 1]).solution
    error = float((columns @ solution - y[:, i : i + 1]).abs().max())
    return error, float(solution[0]), float(solution[1])


def _base(frequencies: tuple[float, ...]) -> float | None:
    """The base of frequencies base^(-i/n), where they are such; with one pair every base fits."""
    n = len(frequencies)
    if abs(frequencies[0] - 1) > ROUGH:
        return None
    if n == 1:
        return 10_000.0
    base = frequencies[-1] ** (-n / (n - 1))
    base = float(round(base)) if math.isclose(base, round(base), rel_tol=1e-3) else base
    close = all(math.isclose(f, base ** (-k / n), rel_tol=1e-5) for k, f in enumerate(frequencies))
    return base if close else None


def exact_table(table: Tensor, frequencies: tuple[float, ...], magnitude: float) -> Tensor | None:
    """A table of rounded cosines and sines of position times frequency, without the rounding; None for another table.

    Columns may be cosines, sines or both, in any order; a complex table has cosine + i sine.
    """
    if table.is_complex():
        real = exact_table(torch.view_as_real(table), frequencies, magnitude)
        return None if real is None else torch.view_as_complex(real.contiguous())
    flat = table.double()
    shape = [n for n in flat.shape if n != 1]
    if len(shape) < 2 or not table.is_floating_point():
        return None
    rows = flat.reshape(shape[0], -1)
    angle = _angles(shape[0], frequencies)
    candidates = torch.cat([angle.cos(), angle.sin(), -angle.sin()], dim=1) * magnitude
    exact = torch.empty_like(rows)
    for column in range(rows.shape[1]):
        errors = (candidates - rows[:, column : column + 1]).abs().amax(dim=0)
        best = int(errors.argmin())
        if float(errors[best]) > 1e-6 * max(10, shape[0]):
            return None
        exact[:, column] = candidates[:, best]
    return None if same(exact, torch.ones_like(exact)) else exact.reshape(table.shape)
