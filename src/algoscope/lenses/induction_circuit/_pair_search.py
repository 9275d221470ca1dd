"""The search for induction pairs, and the verdict.

Causal tests decide which heads belong to a pair, whatever their attention scores: an induction head need not attend
strongly, and its previous-token head may be several, none of which matters much by itself. Heads whose score is clearly
above that of uniform attention are candidates; what remains of a candidate's score when its keys (or queries) read what
earlier heads write on another row decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from algoscope.lenses.induction_circuit.head_ablations import (
    ENTRIES,
    LEAST_GAIN,
    Losses,
    PathEffect,
    Replacements,
    path_effects,
)
from algoscope.lenses.induction_circuit.head_scores import HeadScores, Rows
from algoscope.lenses.parameters.qk_ov_circuits import Head
from algoscope.subjects.subject import Subject

ROUTES = {"k": ("previous-token", "induction pair"), "q": ("duplicate-token", "pointer pair")}
HALF = 0.5  # least share of an effect that counts as most of it
ERRORS = 3.0  # standard errors by which a score must exceed chance
LEAST = 0.05  # and least part of the way from chance to all attention
MANY = 32  # earlier heads: of more, only some are tested
SENDERS = 8  # earlier heads whose paths are ablated if there are many, and most heads of one group
RECEIVERS = 3  # heads for which a route is searched
ALIKE = 8  # heads that may belong to one group of induction heads
NOTHING, INDUCTION_HEADS = "nothing", "induction heads"
RULES = {
    "looks": "a head beyond the first layer attends to the token after the previous occurrence more than by chance",
    "hears": "such a head loses half of what its score has above chance when its keys read the output of "
    "previous-token heads, or its queries that of duplicate-token heads, on another row; all of these have that role "
    "by more than chance",
    "gains": f"determined predictions are better than the others, and than a uniform guess, by {LEAST_GAIN} nats or "
    "more",
    "needs induction heads": "half of the gain is lost when all heads that hear so are ablated, and all beyond the "
    "first layer that reach the threshold",
    "needs earlier heads": "likewise when those that they read are ablated, and all earlier ones that reach the "
    "threshold",
}


@dataclass(frozen=True)
class Route:
    """A receiver, and the earlier heads that one of its entries reads: the fewest whose output on another row costs it
    half of its induction score above chance, or, where none do, the ones that cost it most.

    `hears` is whether they do. `inducing` are all heads to which the same happens, the receiver included.
    """

    receiver: HeadScores
    senders: tuple[HeadScores, ...]
    entry: str
    share_lost: float
    hears: bool
    inducing: tuple[Head, ...] = ()

    @property
    def role(self) -> str:
        """The role of the senders in this mechanism."""
        return ROUTES[self.entry][0]


@dataclass(frozen=True, eq=False)
class Search:
    """Everything that the tests of one model read: the heads with their scores over all rows, and the rows on which
    paths are ablated, with the induction scores there.
    """

    subject: Subject
    heads: Sequence[HeadScores]
    chance: Mapping[str, float]
    n_rows: int
    rows: Rows
    replacements: Replacements
    scores: Float[Tensor, "layer head"]
    chance_here: float

    def stands_out(self, head: HeadScores, name: str) -> bool:
        """Whether a score is above chance by more than noise."""
        above = head.attention[name] - self.chance[name]
        error = head.spread[name] / math.sqrt(self.n_rows)
        return above > ERRORS * error and above >= LEAST * (1 - self.chance[name])

    def share_lost(self, effect: PathEffect) -> float:
        """The share of the receiver's induction score above chance that a path ablation costs, 0 to 1."""
        before = float(self.scores[effect.receiver])
        if before <= self.chance_here:
            return 0.0
        return min(max((before - effect.attention) / (before - self.chance_here), 0.0), 1.0)

    def run(self) -> tuple[Route | None, list[PathEffect]]:
        """The route, and the effects of ablated paths to its receiver.

        Receivers are tried by their induction score, until one hears.
        """
        able = sorted((one for one in self.heads if one.head[0] > 0), key=lambda one: -one.attention["induction"])
        candidates = [one for one in able if self.stands_out(one, "induction")][:ALIKE]
        routes = []
        for receiver in candidates[:RECEIVERS] or able[:1]:
            route, effects = self._route(receiver, known=receiver in candidates)
            if route.hears:
                return self._with_others(route, candidates), effects
            routes.append((route, effects))
        return routes[0] if routes else (None, [])

    def _effects(self, receivers: Sequence[Head], senders: Sequence[tuple[Head, ...]]) -> list[PathEffect]:
        return path_effects(self.subject, self.rows, self.replacements, receivers, senders, "resample")

    def _route(self, receiver: HeadScores, known: bool) -> tuple[Route, list[PathEffect]]:
        earlier = {one.head: one for one in self.heads if one.head[0] < receiver.head[0]}
        alone = sorted(earlier, key=lambda head: -max(earlier[head].attention[role] for role, _ in ROUTES.values()))
        if len(alone) > MANY:
            alone = alone[:SENDERS]
        effects = self._effects([receiver.head], [(head,) for head in sorted(alone)])
        routes = []
        for entry in ENTRIES:
            role = ROUTES[entry][0]
            by_effect = sorted((one for one in effects if one.entry == entry), key=lambda one: one.attention)
            group = [one.senders[0] for one in by_effect if self.stands_out(earlier[one.senders[0]], role)][:SENDERS]
            best = self._smallest(receiver.head, entry, group, effects)
            if best is None:  # no earlier head has the role: the largest effect is reported, and proves nothing
                best = by_effect[0]
            senders = tuple(earlier[head] for head in best.senders)
            hears = known and bool(group) and self.share_lost(best) >= HALF
            routes.append(Route(receiver, senders, entry, self.share_lost(best), hears))
        return max(routes, key=lambda route: (route.hears, -len(route.senders), route.share_lost)), effects

    def _smallest(
        self, receiver: Head, entry: str, group: Sequence[Head], effects: list[PathEffect]
    ) -> PathEffect | None:
        """The effect of the fewest heads, those of most effect first, that costs half of the score, else the largest.
        Effects of heads together are added to `effects`.
        """

        def together(size: int) -> PathEffect:
            senders = tuple(group[:size])
            known = [one for one in effects if one.senders == senders and one.entry == entry]
            if not known:
                added = self._effects([receiver], [senders])
                effects.extend(added)
                known = [one for one in added if one.entry == entry]
            return known[0]

        if not group:
            return None
        if self.share_lost(together(len(group))) < HALF:
            return max((together(1), together(len(group))), key=self.share_lost)
        fewest = next(size for size in range(1, len(group) + 1) if self.share_lost(together(size)) >= HALF)
        alone = [self.share_lost(one) for one in effects if one.entry == entry and one.senders in [(h,) for h in group]]
        alike = sum(share >= HALF * max(alone) for share in alone)  # others that matter as much belong to them
        return together(max(fewest, alike))

    def _with_others(self, route: Route, candidates: Sequence[HeadScores]) -> Route:
        """The route with all heads that lose half of their score above chance in the same way."""
        senders = tuple(one.head for one in route.senders)
        last = max(layer for layer, _ in senders)
        others = [one.head for one in candidates if one.head[0] > last and one is not route.receiver]
        effects = [one for one in self._effects(others, [senders]) if one.entry == route.entry] if others else []
        alike = [one.receiver for one in effects if self.share_lost(one) >= HALF]
        inducing = tuple(sorted([route.receiver.head, *alike]))
        return Route(route.receiver, route.senders, route.entry, route.share_lost, route.hears, inducing)


# ---------------------------------------------------------------------- the verdict


def evidence_of(route: Route | None, losses: Mapping[str, Losses], search: Search) -> dict[str, dict[str, Any]]:
    """Each of the rules with the number that decided it; None where there is none."""
    baseline = losses[NOTHING]
    shares = [
        baseline.share_lost(losses[name]) if name in losses else (0.0 if baseline.gains else None)
        for name in (INDUCTION_HEADS, f"{route.role} heads" if route else "")
    ]
    best = max((one.attention["induction"] for one in search.heads if one.head[0] > 0), default=0.0)
    looks = route is not None and search.stands_out(route.receiver, "induction")
    decided: dict[str, tuple[float | None, bool]] = {
        "looks": (route.receiver.attention["induction"] if route and looks else best, looks),
        "hears": (route.share_lost if route and looks else None, bool(route and route.hears)),
        "gains": (baseline.baseline - baseline.later, baseline.gains),
        "needs induction heads": (shares[0], (shares[0] or 0.0) >= HALF),
        "needs earlier heads": (shares[1], (shares[1] or 0.0) >= HALF),
    }
    return {rule: {"holds": holds, "value": value} for rule, (value, holds) in decided.items()}


def mechanism_of(
    heads: Sequence[HeadScores],
    evidence: Mapping[str, Mapping[str, Any]],
    route: Route | None,
    threshold: float,
) -> str:
    if route is not None and all(rule["holds"] for rule in evidence.values()):
        return ROUTES[route.entry][1]
    attends = max(one.attention["induction"] for one in heads) >= threshold
    return "induction-like attention only" if attends or evidence["hears"]["holds"] else "none"
