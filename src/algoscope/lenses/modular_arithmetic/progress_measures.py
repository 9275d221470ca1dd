"""The progress lens: the measures of the Fourier lens at every checkpoint of a run, and the phases they fall into.

Source of the measures: Nanda et al., arXiv 2301.05217. The boundaries there were read by eye; here a rule draws them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.errors import SubjectError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel, Scale
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic.group_characters import Components, components_of
from algoscope.lenses.modular_arithmetic.logit_spectrum import (
    MOST_KEYS,
    by_product,
    fit_of,
    part_of,
    restricted,
    scores,
    scores_by_product,
    spread,
)
from algoscope.lenses.modular_arithmetic.operand_pairs import Pairs, has_pairs, on_idle_cores, pairs_of
from algoscope.lenses.modular_arithmetic.weight_spectrum import ginis, sum_of_squares, weights_of
from algoscope.lenses.over_training.checkpoint_series import Series, Steps, formed_at, over_checkpoints
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.subjects.subject import Subject

SETTLED = 0.01  # the norm of the weights changes by less than this share in 1,000 steps
PHASES = {
    "memorised": "the first checkpoint with training accuracy at least `learned`",
    "forming": "the checkpoint of the smallest excluded loss on training pairs: from here on these too need the keys",
    "cleaning": "the first checkpoint from which on the held-out loss stays below half of its largest value",
    "generalised": "the first checkpoint with held-out accuracy at least `learned`",
    "settled": "the first checkpoint after that at which the weights' norm changes by less than 1 % in 1,000 steps",
}
WORDS = {
    "memorised": "memorises",
    "forming": "forms its circuit",
    "cleaning": "starts to clean up",
    "generalised": "generalises",
    "settled": "settles",
}


@on_idle_cores()
def progress_measures(
    subject: str | Run | Subject, *, similar: float = 0.005, learned: float = 0.99, runs_dir: str | None = None
) -> Finding:
    """Losses, accuracies, sparsity and size of the weights over the checkpoints of a run that learns a group.

    The keys are those of the subject itself (logit similarity above `similar`: the newest checkpoint, or the one that
    is named), the same for all checkpoints. Facts: `series`, one number a checkpoint for each name (null where it is
    not defined): loss and accuracy over all, training and held-out pairs; `restricted` (only the keys' functions of the
    product left, over all pairs) and `excluded` (without them; for each key too); Gini coefficients of W_E and W_L; sum
    of squared weights; how many components reach `similar` at that checkpoint; the share of the logits' variance that
    the keys explain (0 = none, 1 = all). Losses in nats.

    `phases` has the steps at which they change, by the rules in `rules`, or null where that never happens: memorisation
    lasts until `memorised`, circuit formation from `forming` to `cleaning`, clean-up from there to `settled`. They may
    overlap. `waited`: steps from `memorised` to `generalised`. `restricted_falls_from` is the checkpoint of the largest
    restricted loss: a fall can begin at once, as the mean over all pairs of a product has the memorised ones in it.

    Raises what `fourier` raises, and SubjectError for a subject without at least two checkpoints.
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    pairs = pairs_of(subject)
    components = components_of(pairs.structure)
    keys = _keys(subject, pairs, components, similar)
    if subject.origin is None or len(subject.origin.steps) < 2:
        raise SubjectError(f"{subject.name} has no checkpoints to compare: give a run that was trained, run:NAME")
    steps, series = over_checkpoints(
        subject,
        lambda model: measures(model, pairs, components, keys, similar),
        keep=f"progress similar={similar} keys={keys}",
    )
    phases = phases_of(steps, series, learned)
    return Finding(
        kind="progress",
        claim=_claim(phases, keys, components),
        facts={
            "subject": subject.name,
            "keys": keys,
            "steps": steps.tolist(),
            "series": {name: [None if np.isnan(x) else float(x) for x in values] for name, values in series.items()},
            "phases": phases,
            "rules": PHASES,
            "waited": _waited(phases),
            "restricted_falls_from": int(steps[series["restricted loss"].argmax()]),
            "learned": learned,
        },
        panels=_panels(steps, series, phases),
        provenance={"subject": subject.name, "weights_sha256": subject.weights_sha256},
    )


# ---------------------------------------------------------------------- one checkpoint


def _keys(subject: Subject, pairs: Pairs, components: Components, similar: float) -> list[int | str]:
    logits = pairs.logits(subject)
    near = _similarity(logits, by_product(logits, pairs.product), pairs, components)
    return [part.label for part, value in zip(components.parts, near, strict=True) if value > similar]


def _similarity(
    logits: Float[Tensor, "n n d_vocab"], means: Float[Tensor, "n d_vocab"], pairs: Pairs, components: Components
) -> Float[np.ndarray, "part"]:
    return fit_of(means[:, pairs.answer], spread(logits, pairs.answer), components).similarity


def measures(
    subject: Subject, pairs: Pairs, components: Components, keys: Sequence[int | str], similar: float
) -> dict[str, float]:
    """Every measure of one model, by name."""
    logits = pairs.logits(subject)
    means = by_product(logits, pairs.product)
    found: dict[str, float] = {}
    full, whole = scores(logits, pairs), torch.ones_like(pairs.product, dtype=torch.bool)
    for over, those in pairs.subsets().items():
        found[f"loss, {over}"], found[f"accuracy, {over}"] = full.over(those)
    alone = scores_by_product(restricted(means, components, keys), pairs)
    found["restricted loss"], found["restricted accuracy"] = alone.over(whole)
    single = [[key] for key in keys] if 1 < len(keys) <= MOST_KEYS else []
    for chosen in [list(keys), *single]:
        which = "" if len(chosen) == len(keys) else f" {chosen[0]}"
        without = scores(logits, pairs, without=part_of(means, components, chosen))
        for over, those in pairs.subsets().items():
            found[f"excluded loss{which}, {over}"] = without.over(those)[0]
    near = _similarity(logits, means, pairs, components)
    found["similar components"] = float((near > similar).sum())
    found["share of the keys"] = float((near[[part.label in keys for part in components.parts]] ** 2).sum())
    found |= {f"Gini {name}": value for name, value in ginis(weights_of(subject, pairs), components).items()}
    size = sum_of_squares(subject)
    return found if size is None else found | {"sum of squared weights": size}


# ---------------------------------------------------------------------- phases


def phases_of(steps: Steps, series: Series, learned: float) -> dict[str, int | None]:
    """The step at which each phase changes, by the rules in `PHASES`; None where it never does."""
    nowhere = np.full(len(steps), np.nan)
    without = series.get("excluded loss, training pairs")
    held_out = series.get("loss, held-out pairs", nowhere)
    generalised = first(steps, series.get("accuracy, held-out pairs", nowhere) >= learned)
    return {
        "memorised": first(steps, series.get("accuracy, training pairs", nowhere) >= learned),
        "forming": None if without is None or without.argmin() == len(steps) - 1 else int(steps[without.argmin()]),
        "cleaning": formed_at(steps, -held_out, -held_out.max() / 2),
        "generalised": generalised,
        "settled": _settled(steps, series.get("sum of squared weights", nowhere), generalised),
    }


def first(steps: Steps, holds: Any) -> int | None:
    """The first step at which something holds."""
    return int(steps[holds.argmax()]) if holds.any() else None


def _waited(phases: Mapping[str, int | None]) -> int | None:
    memorised, generalised = phases["memorised"], phases["generalised"]
    return None if memorised is None or generalised is None else generalised - memorised


def _settled(steps: Steps, squares: Float[np.ndarray, "step"], after: int | None) -> int | None:
    if after is None or len(steps) < 2:
        return None
    slope = np.abs(np.diff(np.log(squares) / 2)) / np.diff(steps) * 1000
    return first(steps[1:], (slope < SETTLED) & (steps[1:] > after))


# ---------------------------------------------------------------------- what is said


def _claim(phases: Mapping[str, int | None], keys: Sequence[int | str], components: Components) -> str:
    named = ", ".join(map(str, keys)) if len(keys) <= MOST_KEYS else f"{len(keys)} of them"
    said = [
        f"({number}) {WORDS[name]}: {'never' if step is None else f'{step:,}'}"
        for number, (name, step) in enumerate(phases.items(), start=1)
    ]
    return f"keys of the last model, by {components.noun}: {named or 'none'}; steps at which it {', '.join(said)}"


def _panels(steps: Steps, series: Series, phases: Mapping[str, int | None]) -> tuple[Panel, ...]:
    """One line a measure, in three rows, with the number of each phase at its step."""
    marks = tuple(Mark(step, str(number)) for number, step in enumerate(phases.values(), start=1) if step is not None)
    over = "training pairs" if "loss, training pairs" in series else "all pairs"
    return tuple(
        Panel(
            name=name,
            title=title,
            axes=(Axis("step", tuple(steps.tolist()), "training step"),),
            values=series[name],
            unit=unit,
            zero=zero,
            one="every answer right" if row == "accuracy" else "",
            view="lines",
            scale=scale,
            marks=marks,
            beside=row,
        )
        for row, name, title, unit, scale, zero in _drawn(over)
        if name in series
    )


def _drawn(over: str) -> list[tuple[str, str, str, str, Scale, str]]:
    """Row, name, title, unit, scale and the meaning of 0 of what is drawn."""
    certain, wrong, alike = "certain of every answer", "every answer wrong", "all waves alike"
    everything = [] if over == "training pairs" else ["all pairs"]
    pairs = [*everything, "training pairs", "held-out pairs"]
    return [
        *(("loss", f"loss, {those}", f"loss, {those}", "nats", "log", certain) for those in pairs),
        ("loss", "restricted loss", "loss with only the keys", "nats", "log", certain),
        ("loss", f"excluded loss, {over}", f"loss without the keys, {over}", "nats", "log", certain),
        *(("accuracy", f"accuracy, {those}", f"accuracy, {those}", "share right", "unit", wrong) for those in pairs),
        ("accuracy", "restricted accuracy", "accuracy with only the keys", "share right", "unit", wrong),
        ("weights", "Gini W_E", "W_E, embedding", "Gini of Fourier norms", "unit", alike),
        ("weights", "Gini W_L", "W_L, neurons to logits", "Gini of Fourier norms", "unit", alike),
        ("weights", "sum of squared weights", "all weights", "sum of squares", "free", "no weights"),
        ("weights", "similar components", "waves similar to the logits", "components", "free", "none"),
    ]


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """What a report asks: every checkpoint of a run on pairs."""
    origin = subject.origin
    return {} if has_pairs(subject) and origin is not None and len(origin.steps) > 1 else None
