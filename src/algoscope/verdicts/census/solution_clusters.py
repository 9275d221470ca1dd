"""Models clustered into solutions by their distances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

IDENTICAL = 1e-6  # smaller distances are rounding
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)

Distances = Float[np.ndarray, "run run"]
Labels = Int[np.ndarray, "run"]


def solutions(apart: Distances, threshold: float) -> Labels:
    """The solution of each run, 1 for the most frequent: clusters by complete linkage, so that all pairwise distances
    within a solution are at most the threshold.
    """
    if len(apart) < 2:
        return np.ones(len(apart), dtype=int)
    groups = fcluster(linkage(squareform(apart, checks=False), "complete"), threshold, criterion="distance")
    kinds, first, counts = np.unique(groups, return_index=True, return_counts=True)
    order = sorted(range(len(kinds)), key=lambda i: (-counts[i], first[i]))
    number = {int(kinds[i]): rank + 1 for rank, i in enumerate(order)}
    return np.array([number[int(kind)] for kind in groups])


def count_by_threshold(apart: Distances, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, float | int]]:
    """How many solutions there are at each threshold."""
    return [{"threshold": t, "solutions": int(solutions(apart, t).max())} for t in thresholds]


def steadiest(apart: Distances) -> dict[str, float | int | None] | None:
    """The number of solutions, above 1 and below the number of runs, that is constant over the widest range of
    thresholds, by the `ratio` of its ends `low` and `high`: large for well-separated clusters, near 1 for a continuum
    (null where the runs of each solution are identical). None for fewer than three runs, and for identical ones.
    """
    if len(apart) < 3:
        return None
    heights = np.sort(linkage(squareform(apart, checks=False), "complete")[:, 2])
    low, high = heights[:-1], heights[1:]
    ratio = np.divide(high, low, out=np.where(high > 0, np.inf, 1.0), where=low > IDENTICAL)
    best = int(ratio.argmax())
    if not high[best] > low[best]:
        return None
    ends = {"low": float(low[best]), "high": float(high[best])}
    wide = float(ratio[best]) if np.isfinite(ratio[best]) else None
    return {"solutions": len(apart) - 1 - best, **ends, "ratio": wide}


def medoid(apart: Distances, members: Int[np.ndarray, "some"]) -> int:
    """The run of a group with the smallest summed distance from the others."""
    return int(members[apart[np.ix_(members, members)].sum(axis=1).argmin()])
