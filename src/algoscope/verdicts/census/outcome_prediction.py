"""Do early features predict a run's outcome? Rank statistics, corrected for the number of features."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

Features = Float[np.ndarray, "run feature"]
Outcome = Float[np.ndarray, "run"]
PERMUTATIONS = 2000
CONTROLS = 20  # shuffled outcomes on which the whole procedure is repeated
FEWER = 200  # permutations for each of those
SIGNIFICANT = 0.05
NAMED = 5  # features that are reported


@dataclass(frozen=True)
class Question:
    """An outcome of each run: a quantity, or (`kinds`) the number of a category."""

    outcome: Outcome
    kinds: bool

    def strengths(
        self, ranks: Features, outcomes: Float[np.ndarray, "trial run"]
    ) -> Float[np.ndarray, "trial feature"]:
        """The association of each feature with each of several outcomes: Spearman's correlation with a quantity, -1 to
        1; or the share of the variance of its ranks that lies between categories, 0 to 1. A constant feature has 0.
        """
        centred = ranks - ranks.mean(axis=0)
        total = (centred**2).sum(axis=0)
        if self.kinds:
            found, scale = np.zeros((len(outcomes), centred.shape[1])), total
            for kind in np.unique(outcomes):
                those = (outcomes == kind).astype(float)
                found += (those @ centred) ** 2 / np.maximum(those.sum(axis=1, keepdims=True), 1)
        else:
            order = rankdata(outcomes, axis=1)
            order = order - order.mean(axis=1, keepdims=True)
            found = order @ centred
            scale = np.sqrt(total * (order**2).sum(axis=1, keepdims=True))
        return np.divide(found, scale, out=np.zeros_like(found), where=np.broadcast_to(scale > 0, found.shape))

    def left_out(self, features: Features, outcome: Outcome) -> tuple[float, float]:
        """The leave-one-out error, and that of the trivial predictor (baseline).

        The strongest feature is chosen again for each left-out run, from the others. A quantity is predicted by linear
        least squares on that feature, with the median of the other runs as baseline: errors are mean absolute
        differences. A category is predicted by the nearest mean, with the most frequent one as baseline: errors are
        shares.
        """
        ours, trivial = [], []
        for i in range(len(outcome)):
            rest = np.arange(len(outcome)) != i
            y = outcome[rest]
            best = int(np.abs(self.strengths(rankdata(features[rest], axis=0), y[None])).argmax())
            x, asked = features[rest, best], features[i, best]
            if self.kinds:
                kinds, counts = np.unique(y, return_counts=True)
                nearest = kinds[np.argmin([abs(asked - x[y == kind].mean()) for kind in kinds])]
                ours.append(float(nearest != outcome[i]))
                trivial.append(float(kinds[counts.argmax()] != outcome[i]))
            else:
                slope = np.cov(x, y)[0, 1] / x.var(ddof=1) if x.var() > 0 else 0.0
                predicted = np.clip(y.mean() + slope * (asked - x.mean()), y.min(), y.max())
                ours.append(abs(float(predicted - outcome[i])))
                trivial.append(abs(float(np.median(y) - outcome[i])))
        return float(np.mean(ours)), float(np.mean(trivial))


def corrected(
    question: Question, ranks: Features, outcome: Outcome, generator: np.random.Generator, n: int
) -> tuple[Float[np.ndarray, "feature"], Float[np.ndarray, "feature"]]:
    """The strength of each feature, and its p-value corrected for their number: the share of `n` permutations of the
    outcome (and of the outcome itself) in which any feature is as strong. Source: Westfall and Young, 1993 (max T).
    """
    strengths = question.strengths(ranks, outcome[None])[0]
    others = generator.permuted(np.tile(outcome, (n, 1)), axis=1)
    most = np.abs(question.strengths(ranks, others)).max(axis=1)
    p = (1 + (most[:, None] >= np.abs(strengths) - 1e-12).sum(axis=0)) / (1 + n)
    return strengths, p


def predict_outcome(question: Question, names: Sequence[str], features: Features, seed: int = 0) -> dict[str, Any]:
    """Test whether any feature predicts the outcome: `verdict` is `predicted` where the strongest feature has a
    corrected p-value below 0.05 and the leave-one-out error is below that of the trivial predictor, else `not
    predicted`.

    Also `strongest` {feature, strength, p}, `error` and `trivial_error` of left-out runs, `features` and `runs` (how
    many), and the control: `shuffled_claims` of `shuffled_trials` shuffled outcomes are claimed to be predicted.
    """
    generator, ranks = np.random.default_rng(seed), rankdata(features, axis=0)
    strength, p = corrected(question, ranks, question.outcome, generator, PERMUTATIONS)
    error, trivial = question.left_out(features, question.outcome)
    order = np.argsort(-np.abs(strength), kind="stable")
    claims = 0
    for _ in range(CONTROLS):
        other = generator.permutation(question.outcome)
        if corrected(question, ranks, other, generator, FEWER)[1].min() < SIGNIFICANT:
            ours, simple = question.left_out(features, other)
            claims += ours < simple
    return {
        "verdict": "predicted" if p.min() < SIGNIFICANT and error < trivial else "not predicted",
        "strongest": [{"feature": names[i], "strength": float(strength[i]), "p": float(p[i])} for i in order[:NAMED]],
        "error": error,
        "trivial_error": trivial,
        "features": len(names),
        "runs": len(question.outcome),
        "shuffled_claims": int(claims),
        "shuffled_trials": CONTROLS,
    }
