"""Where a model fails, in words: sets of classes in which errors are significantly more frequent than in the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import rel_entr

from algoscope.core.intervals import clopper_pearson
from algoscope.core.numbers import percent
from algoscope.tasks.base import Task

SIGNIFICANT = 0.01  # largest probability of a difference by chance, after correction for the sets that were tried
MOST_SETS = 3  # that are named, one after the other; what is left is described by its shares
MOST_PHRASES = 3  # for one set
MOSTLY = 0.5  # share of wrong answers from which a class "fails"; below it "errs"

Members = Bool[np.ndarray, "classes"]
Numbers = Shaped[np.ndarray, "*sets"]
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Set:
    """Classes with more errors than the others, in words; without words, they are only counted."""

    members: Members
    phrases: tuple[str, ...]


def where_it_fails(task: Task, by: str, rows: Sequence[Row], method: str) -> dict[str, Any]:
    """Where the model fails, from the rows of `by_class` (without edge cases).

    A set of classes is one that the task has words for (`class_phrases`), or those with the largest shares of errors.
    Chosen is the set whose two shares of errors, inside and outside, make the counts most likely: the largest ln
    likelihood minus, for every phrase it takes, ln of the number of phrases. It is named if that many errors in it have
    a probability of at most 1 % where errors do not depend on the class, by a bound that is corrected for the number of
    sets. Then the same is asked of the classes that are left.

    Returns `words`, `sets` (each with its `phrases`) and `others`: `classes`, `wrong` of `checked` inputs, the `lowest`
    and `highest` share of wrong answers in a class, and `upper_bound` on it where nothing is wrong among draws.

    Source of the bound: Hoeffding, J. Am. Stat. Assoc. 58, 1963, theorems 1 and 4 (draws without replacement).
    """
    counts = _Counts(task, by, rows, method)
    left, sets = counts.tested, list[_Set]()
    if not counts.wrong.any():
        return {"words": "", "sets": [], "others": counts.facts(left)}
    everywhere = bool(counts.share[left].min() >= MOSTLY)
    while not everywhere and len(sets) < MOST_SETS and (found := counts.best_set(left)) is not None:
        sets.append(found)
        left = left & ~found.members
    if sets:
        words = f"{', '.join(map(counts.failing, sets))}; {counts.elsewhere(left)}"
    elif everywhere:
        words = f"fails in every class ({counts.shares(left, pooled=False)})"
    else:
        spread = "errors are spread over all classes" if counts.wrong[left].all() else "no class stands out"
        words = f"{spread}: none is significantly worse ({counts.shares(left, pooled=False)})"
    if undrawn := int((~counts.tested & ~counts.empty).sum()):
        words += f"; {undrawn:,} of the {len(rows):,} classes were not drawn"
    named = [{"phrases": list(one.phrases), **counts.facts(one.members)} for one in sets]
    return {"words": words, "sets": named, "others": counts.facts(left)}


class _Counts:
    """The counts of all classes, and what is said of sets of them."""

    def __init__(self, task: Task, by: str, rows: Sequence[Row], method: str) -> None:
        self.rows, self.method, self.pooled = rows, method, method != "stratified"
        self.wrong = np.array([row["wrong"] for row in rows])
        self.checked = np.array([row["checked"] for row in rows])
        self.tested: Members = self.checked > 0
        self.empty: Members = ~self.tested & np.array([method == "exhaustive" or row["size"] == 0 for row in rows])
        self.share: Float[np.ndarray, "classes"] = self.wrong / np.maximum(self.checked, 1)
        phrases = list(task.class_phrases(by)) if self.wrong.any() else []
        self.words = [words for words, _ in phrases]
        self.masks = np.array([self._mask(kinds) for _, kinds in phrases], dtype=bool).reshape(-1, len(rows))
        self.n_phrases = len(self.words) + len(rows)

    def _mask(self, kinds: Iterable[int]) -> Members:
        mask = np.zeros(len(self.rows), dtype=bool)
        mask[list(kinds)] = True
        return mask

    # ------------------------------------------------------------------ choosing a set

    def best_set(self, left: Members) -> _Set | None:
        """The set among the classes `left` that explains their errors best, if it is significant."""
        ranked = self._ranked(left)
        cover = self._cover(ranked, left)
        fits = ~(self.masks & ~(left | self.empty)).any(axis=1)
        sets = np.concatenate([ranked[None], self.masks[fits] & left])
        phrases = [cover, *((words,) for words, fit in zip(self.words, fits, strict=True) if fit)]
        length = np.array([len(cover) or ranked.sum(), *np.ones(len(sets) - 1)])
        cost = np.minimum(length * np.log(self.n_phrases), len(left) * np.log(2))
        gain, chance = self._explained(sets, left)
        score = np.where(chance + cost < np.log(SIGNIFICANT), gain - cost, -np.inf)
        best = int(score.argmax())
        return _Set(sets[best], phrases[best]) if score[best] > 0 else None

    def _ranked(self, left: Members) -> Members:
        """The classes with the largest shares of errors, as many as make the counts most likely."""
        order = np.flatnonzero(left)[np.argsort(-self.share[left], kind="stable")]
        k, n = self.wrong[order].cumsum(), self.checked[order].cumsum()
        last = int(_gain(k[:-1], n[:-1], int(k[-1]), int(n[-1])).argmax()) if len(order) > 1 else 0
        return self._mask(order[: last + 1].tolist())

    def _explained(
        self, sets: Bool[np.ndarray, "sets classes"], left: Members
    ) -> tuple[Float[np.ndarray, "sets"], Float[np.ndarray, "sets"]]:
        """The gain in ln likelihood when each set has a share of errors of its own; and ln of a bound on the
        probability of as many errors in it, or more, by chance: 0 where it has no more than the other classes.
        """
        k, n = sets @ self.wrong, sets @ self.checked
        wrong, checked = int(self.wrong[left].sum()), int(self.checked[left].sum())
        part, right = np.clip(n / checked, 1e-15, 1 - 1e-15), checked - wrong  # 0 and 1 have no more than the others
        bounds = [total * _divergence(some / max(total, 1), part) for some, total in ((k, wrong), (n - k, right))]
        more = k * checked > wrong * n
        return np.where(more, _gain(k, n, wrong, checked), 0.0), np.where(more, -np.maximum(*bounds), 0.0)

    def _cover(self, members: Members, left: Members) -> tuple[str, ...]:
        """At most a few phrases that together describe exactly this set; none where that takes more."""
        inside = ~(self.masks & ~(members | self.empty)).any(axis=1)
        missing, phrases = members.copy(), list[str]()
        while missing.any() and len(phrases) < MOST_PHRASES:
            new = np.where(inside, (self.masks & missing).sum(axis=1), 0) if len(self.words) else np.zeros(1)
            if new.max() > 0:
                best = int(new.argmax())
                phrases.append(self.words[best])
                missing &= ~self.masks[best]
            else:
                one = int(missing.argmax())
                phrases.append(self.rows[one]["meaning"])
                missing[one] = False
        return () if missing.any() else tuple(phrases)

    # ------------------------------------------------------------------ words

    def failing(self, found: _Set) -> str:
        """What is said of a set with more errors."""
        verb = "fails" if self.share[found.members].mean() >= MOSTLY else "errs"
        where = f"where {' or where '.join(found.phrases)}"
        if not found.phrases:
            worst = int(np.where(found.members, self.share, -1).argmax())
            n = int(found.members.sum())
            where = f"in {n:,} of the {len(self.rows):,} classes, as where {self.rows[worst]['meaning']}"
        return f"{verb} {where} ({self.shares(found.members, self.pooled)})"

    def elsewhere(self, left: Members) -> str:
        """What is said of the classes that are in no set."""
        n, n_classes = int(self.checked[left].sum()), int(left.sum())
        other = "the other class" if n_classes == 1 else "each other class"
        if self.wrong[left].any():
            return f"elsewhere {self.shares(left, self.pooled)}"
        bound = self._upper_bound(left)
        if bound is None:
            return f"no error in the {n:,} other inputs"
        drawn = f"the {n:,} draws of other inputs"
        if not self.pooled:
            drawn = f"{self.checked[left].min():,} inputs of {other}"
        return f"no error in {drawn} (95 % upper bound {percent(bound)})"

    def shares(self, members: Members, pooled: bool) -> str:
        """The share of wrong answers: of the set where its inputs are in proportion, else of each class."""
        k, n = int(self.wrong[members].sum()), int(self.checked[members].sum())
        drawn = " drawn" if (members & self._sampled).any() else ""
        if k == n:
            return f"all {n:,}{drawn} wrong" if n > 1 else f"the one{drawn} wrong"
        low, high = percent(self.share[members].min()), percent(self.share[members].max())
        by_class = f"{low if low == high else f'{low} to {high}'} of {'the draws from ' * bool(drawn)}each class"
        if members.sum() > 1 and not pooled:
            return by_class
        return f"{percent(k / n)}: {k:,} of {n:,}{drawn}{f'; {by_class}' * (low != high)}"

    def facts(self, members: Members) -> dict[str, Any]:
        return {
            "classes": [row["class"] for row, one in zip(self.rows, members, strict=True) if one],
            "wrong": int(self.wrong[members].sum()),
            "checked": int(self.checked[members].sum()),
            "lowest": float(self.share[members].min()),
            "highest": float(self.share[members].max()),
            "upper_bound": None if self.wrong[members].any() else self._upper_bound(members),
        }

    @property
    def _sampled(self) -> Members:
        return np.array([row["interval_95"] is not None for row in self.rows])

    def _upper_bound(self, members: Members) -> float | None:
        """The largest upper bound on the share of wrong answers in a class without any (of uniform draws: in all these
        classes together); None where all their inputs were checked.
        """
        if not (sampled := members & self._sampled).any():
            return None
        least = self.checked[members].sum() if self.pooled else self.checked[sampled].min()
        return float(clopper_pearson(np.zeros(1, dtype=int), np.array([least]))[1][0])


def _gain(k: Numbers, n: Numbers, wrong: int, checked: int) -> Numbers:
    """ln likelihood of k wrong of n, and of the others, each with their own share, minus that with the common share."""
    common = wrong / checked
    others = np.maximum(checked - n, 1)
    return n * _divergence(k / np.maximum(n, 1), common) + (checked - n) * _divergence((wrong - k) / others, common)


def _divergence(share: Numbers, of: Numbers | float) -> Numbers:
    """The Kullback-Leibler divergence of two coins, in nats."""
    share = np.clip(share, 0.0, 1.0)
    return rel_entr(share, of) + rel_entr(1 - share, 1 - of)
