"""Models that work alike, gathered into solutions by their distances."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)

Distances = Float[np.ndarray, "run run"]
Labels = Int[np.ndarray, "run"]


def solutions(apart: Distances, threshold: float) -> Labels:
    """The solution of each run, 1 for the most frequent: groups by complete linkage, so that any two runs of a solution
    differ by at most the threshold.
    """
    if len(apart) < 2:
        return np.ones(len(apart), dtype=int)
    found = fcluster(linkage(squareform(apart, checks=False), "complete"), threshold, criterion="distance")
    kinds, first, counts = np.unique(found, return_index=True, return_counts=True)
    order = sorted(range(len(kinds)), key=lambda i: (-counts[i], first[i]))
    number = {int(kinds[i]): rank + 1 for rank, i in enumerate(order)}
    return np.array([number[int(kind)] for kind in found])


def count_by_threshold(apart: Distances, thresholds: Sequence[float] = THRESHOLDS) -> list[dict[str, float | int]]:
    """How many solutions there are at each threshold."""
    return [{"threshold": t, "solutions": int(solutions(apart, t).max())} for t in thresholds]


def medoid(apart: Distances, members: Int[np.ndarray, "some"]) -> int:
    """The run of a group that differs least from the others in sum."""
    return int(members[apart[np.ix_(members, members)].sum(axis=1).argmin()])
