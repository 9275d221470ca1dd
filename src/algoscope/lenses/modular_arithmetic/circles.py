"""Circles in the number embeddings modulo n, and the logits of a model with one circle.

A circle is looked for in the plane of one frequency: the span of the cosine and the sine of the numbers at that
frequency. Principal components would not do: they mix circles of equal size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Panel
from algoscope.lenses.modular_arithmetic.fourier_basis import fourier_basis

FAINT = 0.01  # a frequency with less of the variance is no key frequency
STANDS_OUT = 4.0  # and one that is not this many times the median frequency: random vectors have all of them alike
NARROW = 0.1  # an ellipse whose axes have a smaller ratio counts as a line
MOST_CIRCLES = 8  # that are drawn
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
    """The numbers in the plane of one frequency, whose two directions are those of its cosine and its sine.

    `points` are the embeddings' coordinates on the plane, `vectors` the embeddings with all other frequencies removed,
    `variance` the share of the embeddings' variance that a circle explains, `ratio` that of the shorter to the longer
    axis of the ellipse on which the numbers lie at this frequency (1 = a circle, 0 = a line), `purity` the share of the
    points' variance that has this frequency.
    """

    frequency: int
    points: Float[np.ndarray, "n 2"]
    vectors: Vectors
    variance: float
    ratio: float
    purity: float


def key_frequencies(shares: Float[np.ndarray, "frequency"]) -> list[int]:
    """The frequencies, from 1 on, that stand out by their shares of a variance: at least a hundredth of it, and four
    times the (lower) median of all. At most half of them can: where all have about the same share, as in random vectors
    and in lookup tables, there are none.
    """
    if not len(shares):
        return []
    middle = np.sort(shares)[(len(shares) - 1) // 2]
    return [int(i) + 1 for i in np.flatnonzero(shares >= max(FAINT, STANDS_OUT * middle))]


def circles_of(vectors: Vectors, frequencies: Sequence[int] = ()) -> list[Circle]:
    """The numbers in the planes of the key frequencies of their embeddings, and of the given ones, those of most
    variance first.

    The amplitudes [2 d_model] of a frequency map the numbers' cosines and sines to embeddings. With singular values r
    and s the numbers lie on an ellipse with these axes, and the best circle explains (r + s)^2 / 2 of its r^2 + s^2.
    Frequency n / 2 of an even n has no sine and thus no plane.
    """
    n = len(vectors)
    centre = vectors.mean(axis=0)
    centred = vectors - centre
    total = float((centred**2).sum())
    waves = fourier_basis(n)[1 : n - (n + 1) % 2].reshape((n - 1) // 2, 2, n)
    if total == 0 or not len(waves):
        return []
    _, axes, directions = np.linalg.svd(waves @ centred, full_matrices=False)
    axes = np.pad(axes, [(0, 0), (0, 2 - axes.shape[1])])  # embeddings with one dimension lie on a line
    variance = axes.sum(axis=1) ** 2 / 2 / total
    circles = []
    for k in sorted({*key_frequencies(variance), *frequencies}):
        (longer, shorter), wave = axes[k - 1], waves[k - 1]
        if shorter < NARROW * longer or longer == 0:
            continue
        points = centred @ directions[k - 1].T
        purity = float(((wave @ points) ** 2).sum() / (points**2).sum())
        left = centre + wave.T @ (wave @ centred)
        circles.append(Circle(k, points, left, float(variance[k - 1]), float(shorter / longer), purity))
    return sorted(circles, key=lambda circle: -circle.variance)


def circularity(circles: Sequence[Circle]) -> float:
    """The share of the embeddings' variance that circles explain: 1 where the numbers lie on circles, and nowhere else.

    The published measure (Zhong et al., arXiv 2306.17844) averages the best frequency's share over the first four
    principal components, which is small for circles of equal size.
    """
    return sum((circle.variance for circle in circles), 0.0)


def circle_axis(circles: Sequence[Circle]) -> Axis:
    return Axis("circle", tuple(f"frequency {circle.frequency}" for circle in circles))


def circle_panel(name: str, numbers: Sequence[int], circles: Sequence[Circle]) -> Panel:
    """The numbers on the largest circles; `numbers` are their labels, in the order of the group."""
    drawn = circles[:MOST_CIRCLES]
    return Panel(
        name=name,
        title="number embeddings on their circles",
        axes=(
            circle_axis(drawn),
            Axis("number", tuple(numbers)),
            Axis("direction", ("longer axis", "shorter axis"), "axis of the ellipse"),
        ),
        values=np.stack([circle.points for circle in drawn]),
        unit="embedding units",
        zero="the mean of the numbers",
        view="scatter",
        caption=(
            "The number embeddings in the planes of their frequencies, spanned by the cosine and the sine. Colour is "
            "the number: it goes round the circle as often as the frequency."
        ),
    )


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
    def cosines(self) -> Float[np.ndarray, "frequency"]:
        """The share of their variance that cos w(a+b-c) explains, for each frequency 1 .. n / 2. These functions are
        orthogonal, so that shares add up.
        """
        n = len(self.centred)
        return np.array([self.explained(forms(k, n)["clock"][0]) for k in range(1, n // 2 + 1)])

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
