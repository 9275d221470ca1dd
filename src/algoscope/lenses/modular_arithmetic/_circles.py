"""Circles in the number embeddings modulo n, and the logits of a model with one circle."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from algoscope.lenses.modular_arithmetic.fourier_basis import frequency_shares

FIRST = 4  # principal components averaged in circularity
NOTHING = 1e-6  # of the largest singular value: smaller components are rounding
FAINT = 0.01  # a circle with less of the embeddings' variance is left out
HALF = 0.5  # a principal component belongs to the frequency with at least this share of it
CONSTANT = 1e-4  # the right answer's logit is the same for all pairs where it varies less than this share of all logits
FORMS = {
    "clock": "cos w(a+b-c)",
    "pizza": "|cos w(a-b)/2| cos w(a+b-c)",
    "whole pizza": "|cos w(a-b)/2| (|cos w(a+b-c)/2| - |sin w(a+b-c)/2|)",
    "accompanying": "-cos u(a-b) cos u(a+b-c), where 2u = w",
}
READINGS = ("clock", "pizza", "accompanying")  # both formulas of the pizza count as one

Cube = Float[np.ndarray, "n n n"]
"""Numbers by first operand a, second operand b and answer c, each an element of the group."""
Sheet = Float[np.ndarray, "distance off"]
"""Numbers by a - b and by a + b - c, modulo n: the only variables of the forms."""
Vectors = Float[np.ndarray, "n d_model"]


@dataclass(frozen=True, eq=False)
class Circle:
    """Two principal components of one frequency: the numbers' coordinates on them, the embeddings with all other
    components removed, their share of the embeddings' variance, and the share of the two that has this frequency.
    """

    frequency: int
    components: tuple[int, int]
    points: Float[np.ndarray, "n 2"]
    vectors: Vectors
    variance: float
    purity: float


def circularity(vectors: Vectors) -> float:
    """The mean, over the first four principal components, of the largest share that one frequency has of each: 1 where
    each is a sinusoid on the n elements, of any frequency.

    For an odd n this is the published measure, min(1, 2/n |sum_j v_j e^(2 pi i jk/n)|^2) at its best k (Zhong et al.,
    arXiv 2306.17844); of the alternating function of an even n the published one counts the double.
    """
    points = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)[0]
    return float(frequency_shares(points[:, :FIRST])[1:].max(axis=0).mean())


def circles_of(vectors: Vectors) -> list[Circle]:
    """The pairs of principal components that share a frequency, those of most variance first.

    A component belongs to the frequency that has at least half of it; if there are more than two, the first two are
    used.
    """
    centre = vectors.mean(axis=0)
    points, size, directions = np.linalg.svd(vectors - centre, full_matrices=False)
    shares = frequency_shares(points[:, size > NOTHING * size[0]])
    frequency, purity = shares.argmax(axis=0), shares.max(axis=0)
    circles = []
    for k in range(1, (len(vectors) + 1) // 2):
        both = np.flatnonzero((frequency == k) & (purity >= HALF))[:2]
        variance = float((size[both] ** 2).sum() / (size**2).sum())
        if len(both) == 2 and variance >= FAINT:
            on_both = points[:, both] * size[both]
            i, j = both.tolist()
            vectors_left = centre + on_both @ directions[both]
            circles.append(Circle(k, (i, j), on_both, vectors_left, variance, float(purity[both].mean())))
    return sorted(circles, key=lambda circle: -circle.variance)


def forms(frequency: int, n: int) -> dict[str, list[Sheet]]:
    """The logits of a model with one circle of this frequency, by the names of `FORMS`, up to a factor.

    A frequency w has one half u modulo an odd n, and two or none modulo an even n: the last form has as many versions.
    """
    cos = _cosines(frequency, n)
    length = _root((1 + cos) / 2)[:, None]
    halves = [_cosines(u, n) for u in range(n) if 2 * u % n == frequency]
    return {
        "clock": [np.broadcast_to(cos, (n, n))],
        "pizza": [length * cos],
        "whole pizza": [length * (_root((1 + cos) / 2) - _root((1 - cos) / 2))],
        "accompanying": [-np.outer(half, half) for half in halves],
    }


@dataclass(frozen=True, eq=False)
class Logits:
    """All logits of a model, less their mean over the answers, which does not affect the prediction."""

    centred: Cube

    @classmethod
    def of(cls, cube: Cube) -> "Logits":
        return cls(cube - cube.mean(axis=2, keepdims=True))

    @cached_property
    def spread(self) -> float:
        """Their standard deviation, over all pairs and answers."""
        return float(self.centred.std())

    @cached_property
    def sheet(self) -> Sheet:
        """Their mean over the n triples (a, b, c) that share a - b and a + b - c."""
        number = np.arange(len(self.centred))
        d, off, a = np.ix_(number, number, number)
        b = (a - d) % len(number)
        return self.centred[a, b, (a + b - off) % len(number)].mean(axis=2)

    def explained(self, form: Sheet) -> float:
        """The share of their variance that a positive multiple of the form explains, 0 to 1; 0 too where only a
        negative multiple would explain any.

        The form is constant on each set of n triples that share a - b and a + b - c, so its product with the logits
        depends only on their mean there.
        """
        form = form - form.mean(axis=1, keepdims=True)
        together = float((self.sheet * form).sum())
        size = self.spread**2 * float((form**2).sum()) * self.sheet.size
        return max(0.0, together) ** 2 / size if size > 0 else 0.0


@dataclass(frozen=True)
class IsolatedCircle:
    """The logits of a model with only one circle left in its embeddings: their standard deviation, and the share of
    their variance that each form explains.
    """

    circle: Circle
    size: float
    fits: Mapping[str, float]

    @property
    def best(self) -> dict[str, float]:
        """By `READINGS`: for the pizza, the better of its two formulas."""
        return {
            **{name: self.fits[name] for name in READINGS},
            "pizza": max(self.fits["pizza"], self.fits["whole pizza"]),
        }

    def reads_as(self, least: float) -> str:
        """The form that explains most; `unclear` where that is less than `least`."""
        name = max(self.best, key=self.best.__getitem__)
        return name if self.best[name] >= least else "unclear"


def distance_irrelevance(cube: Cube) -> float | None:
    """q = mean over d of std_i(L[i, i + d]) / std(L), with L the logit of the right answer: 0 where L depends only on
    the difference d of the operands, near 1 where it does not depend on it. None if L is the same for all pairs.
    """
    right = by_distance(cube)
    if right.std() <= CONSTANT * Logits.of(cube).spread:
        return None
    return float(right.std(axis=1).mean() / right.std())


def by_distance(cube: Cube) -> Float[np.ndarray, "distance n"]:
    """The logit of the right answer for the operands i and i + d, at [d, i]."""
    n = np.arange(len(cube))
    first, second = n[None, :], (n[None, :] + n[:, None]) % len(n)
    return cube[first, second, (first + second) % len(n)]


def _cosines(k: int, n: int) -> Float[np.ndarray, "n"]:
    return np.cos(2 * np.pi / n * (k * np.arange(n) % n))


def _root(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The square root of values that rounding may have made negative."""
    return np.sqrt(np.clip(x, 0, None))
