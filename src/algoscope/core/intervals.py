"""Confidence intervals for the share of wrong inputs, from a sample; they hold for any sample size."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import beta

MISS = 0.05  # largest probability that an interval misses the true value

Counts = Int[np.ndarray, "classes"]
Shares = Float[np.ndarray, "classes"]


def clopper_pearson(wrong: Counts, checked: Counts, miss: float | Shares = MISS) -> tuple[Shares, Shares]:
    """Bounds on the share of wrong inputs, from independent draws; each side misses with probability `miss`/2 at most.

    With no wrong answer in N draws, the upper bound is close to ln(2/miss)/N: 3.7/N at 95 %, and 3/N for a one-sided
    bound. Without draws: 0 and 1.
    """
    right = checked - wrong
    with np.errstate(invalid="ignore"):  # a parameter of 0 gives NaN, which is replaced below
        low, high = beta.ppf(miss / 2, wrong, right + 1), beta.isf(miss / 2, wrong + 1, right)
    return np.where(wrong == 0, 0.0, low), np.where(right == 0, 1.0, high)


def stratified_wrong(sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int]) -> Fraction:
    """The share of wrong inputs estimated from draws within classes: each class's share, weighted by its size."""
    missed = sum(Fraction(size * n_wrong, n) for size, n, n_wrong in zip(sizes, checked, wrong, strict=True))
    return Fraction(missed, sum(sizes))


def stratified_accuracy(sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int]) -> float:
    """The same for right answers."""
    return float(1 - stratified_wrong(sizes, checked, wrong))


def stratified_interval(sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int]) -> list[float]:
    """`stratified_bounds` of the accuracy."""
    low, high = stratified_bounds(sizes, checked, wrong)
    return [1 - high, 1 - low]


def stratified_bounds(
    sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int], miss: float = MISS
) -> tuple[float, float]:
    """Bounds on the share of wrong inputs in the whole domain, from independent draws within classes, or every input of
    a class.

    Classes that were checked exhaustively enter exactly. For the others two intervals are computed. Each misses with
    probability `miss`/2 at most, so both hold with probability 1 - `miss`; their intersection is returned.

    *Class by class*: Clopper-Pearson bounds of every class, weighted by class size. By the union bound they hold
    jointly if the miss probabilities of the classes sum to the total; each class gets a part in proportion to its size
    per draw. This is the tighter one where a rare class has wrong answers.

    *Pooled*: the number of wrong draws K is a sum of independent trials, with mean m. By Hoeffding (Ann. Math.
    Stat. 27, 1956, theorem 5) for k <= m - 1, P(sum <= k) is at most that of a binomial variable with the same mean. So
    m is at most the larger of k + 1 and the Clopper-Pearson bound for N draws. Given m, the most inputs are wrong if
    the wrong ones are in the classes with the largest weight per draw. The lower bound is symmetric. This is the
    tighter one where nothing is wrong: with n draws per class and a largest class of share w, the bound is 4.4 w/n.
    """
    total = sum(sizes)
    exhaustive = [n == size for n, size in zip(checked, sizes, strict=True)]
    known = float(sum(Fraction(k, total) for k, done in zip(wrong, exhaustive, strict=True) if done))
    drawn = ~np.array(exhaustive)
    if not drawn.any():
        return known, known
    weight = np.array([size / total for size in sizes])[drawn]
    n, k = np.array(checked)[drawn], np.array(wrong)[drawn]
    low, high = clopper_pearson(k, n, miss / 2 * (weight / n) / (weight / n).sum())
    fewest, most = _pooled(weight, n, int(k.sum()), miss / 2)
    return known + max(float(weight @ low), fewest), min(known + min(float(weight @ high), most), 1.0)


def _pooled(weight: Shares, n: Counts, n_wrong: int, miss: float) -> tuple[float, float]:
    """The least and the largest share of the domain that can be wrong, given the sum of wrong draws."""
    n_draws = int(n.sum())
    low, high = clopper_pearson(np.array([n_wrong]), np.array([n_draws]), miss)
    mean_low = max(min(n_wrong - 1, n_draws * float(low[0])), 0.0)
    mean_high = min(max(n_wrong + 1, n_draws * float(high[0])), float(n_draws))
    order = np.argsort(weight / n)
    return _filled(weight[order], n[order], mean_low), _filled(weight[order][::-1], n[order][::-1], mean_high)


def _filled(weight: Shares, n: Counts, mean: float) -> float:
    """The weight of the wrong inputs if classes are filled with wrong inputs in order until `mean` wrong draws are
    expected.
    """
    before = np.concatenate([[0], np.cumsum(n)[:-1]])
    return float(weight @ np.clip((mean - before) / n, 0, 1))
