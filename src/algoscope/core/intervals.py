"""How wrong a model may be at most, and at least, when some inputs were checked: bounds that hold for any number."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import beta

MISS = 0.05  # how often an interval may miss the truth

Counts = Int[np.ndarray, "classes"]
Shares = Float[np.ndarray, "classes"]


def clopper_pearson(wrong: Counts, checked: Counts, miss: float | Shares = MISS) -> tuple[Shares, Shares]:
    """Bounds on the share of wrong inputs, from independent draws; each side misses with chance `miss`/2 at most.

    Without a wrong one of N, the upper bound is close to ln(2/miss)/N: 3.7/N at 95 %, and 3/N where only one side is
    asked for. From no draw at all: 0 and 1.
    """
    right = checked - wrong
    with np.errstate(invalid="ignore"):  # a parameter of 0 gives no number, and is decided below
        low, high = beta.ppf(miss / 2, wrong, right + 1), beta.isf(miss / 2, wrong + 1, right)
    return np.where(wrong == 0, 0.0, low), np.where(right == 0, 1.0, high)


def stratified_accuracy(sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int]) -> float:
    """The estimate from draws within classes: each class's share of right ones, weighted by its exact size."""
    missed = sum(Fraction(size * n_wrong, n) for size, n, n_wrong in zip(sizes, checked, wrong, strict=True))
    return float(1 - missed / sum(sizes))


def stratified_interval(
    sizes: Sequence[int], checked: Sequence[int], wrong: Sequence[int], miss: float = MISS
) -> list[float]:
    """Bounds on the accuracy over the whole domain, from independent draws within classes, or all of a class.

    What is known of classes checked whole enters as it is. For the rest two intervals are computed that each miss with
    chance `miss`/2 at most, so that both hold with chance 1 - `miss`; their common part is returned.

    *Class by class*: Clopper and Pearson's bounds of every class, weighted by sizes. By the union bound they hold
    together if the chances that each misses add up; a class gets of it in proportion to its size a draw. Best
    where a rare class goes wrong.

    *Pooled*: the number of wrong draws K is a sum of independent trials, with mean m. By Hoeffding (Ann. Math.
    Stat. 27, 1956, theorem 5) such a sum is at most k, for k <= m - 1, no more often than a binomial one with the same
    mean. So m is at most k + 1 or what Clopper and Pearson say of N draws; and no domain has more wrong inputs, for
    such a mean, than one whose wrong inputs lie in the classes that count most a draw. Below likewise. Best where
    nothing is wrong: with n draws in each of some classes and the largest a share w of all, the bound is 4.4 w/n.
    """
    total = sum(sizes)
    whole = [n == size for n, size in zip(checked, sizes, strict=True)]
    known = float(sum(Fraction(k, total) for k, done in zip(wrong, whole, strict=True) if done))
    drawn = ~np.array(whole)
    if not drawn.any():
        return [1 - known, 1 - known]
    weight = np.array([size / total for size in sizes])[drawn]
    n, k = np.array(checked)[drawn], np.array(wrong)[drawn]
    low, high = clopper_pearson(k, n, miss / 2 * (weight / n) / (weight / n).sum())
    fewest, most = _pooled(weight, n, int(k.sum()), miss / 2)
    return [
        1 - min(known + min(float(weight @ high), most), 1.0),
        1 - known - max(float(weight @ low), fewest),
    ]


def _pooled(weight: Shares, n: Counts, n_wrong: int, miss: float) -> tuple[float, float]:
    """The least and the largest share of the domain that can be wrong, given the sum of wrong draws."""
    n_draws = int(n.sum())
    low, high = clopper_pearson(np.array([n_wrong]), np.array([n_draws]), miss)
    mean_low = max(min(n_wrong - 1, n_draws * float(low[0])), 0.0)
    mean_high = min(max(n_wrong + 1, n_draws * float(high[0])), float(n_draws))
    order = np.argsort(weight / n)
    return _filled(weight[order], n[order], mean_low), _filled(weight[order][::-1], n[order][::-1], mean_high)


def _filled(weight: Shares, n: Counts, mean: float) -> float:
    """The weight of classes made wrong one after another until so many wrong draws are to be expected."""
    before = np.concatenate([[0], np.cumsum(n)[:-1]])
    return float(weight @ np.clip((mean - before) / n, 0, 1))
