"""The progress lens: the measures of the Fourier lens at every checkpoint of a run, and the phases of grokking.

Source of the measures: Nanda et al., arXiv 2301.05217. The phase boundaries there were read by eye; here they follow
rules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from algoscope.core.ambient import settled
from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Mark, Panel
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
from algoscope.subjects.opening import AnyModel, open_subject
from algoscope.subjects.subject import Subject

SETTLED = 0.01  # the norm of the weights changes by less than this share in 1,000 steps
PHASES = {
    "memorised": "the first checkpoint with training accuracy at least `learned`",
    "forming": "the checkpoint of the smallest excluded loss on training pairs: from here on these also need the key "
    "components",
    "cleaning": "the first checkpoint from which on the held-out loss stays below half of its largest value",
    "generalised": "the first checkpoint with held-out accuracy at least `learned`",
    "settled": "the first checkpoint after that at which the weights' norm changes by less than 1 % in 1,000 steps",
}
WORDS = {
    "memorised": "memorises",
    "forming": "forms its circuit",
    "cleaning": "starts clean-up",
    "generalised": "generalises",
    "settled": "settles",
}
ABOUT = (
    "The measures of the Fourier lens at each checkpoint of a run, with the key components of the newest one (or of "
    "the given checkpoint). Restricted loss: with only the key components' functions of the product in the logits. "
    "Excluded loss: without them. A run that groks memorises its training pairs first, then forms the "
    "circuit that generalises (the excluded loss on training pairs rises, although their loss stays low), then "
    "removes the memorisation (clean-up), and only then becomes right on held-out pairs. A rule marks the step at "
    "which each phase changes; phases may overlap. Measures: Nanda et al., arXiv 2301.05217, where the boundaries "
    "were read by eye."
)
NATS: dict[str, Any] = {"unit": "nats", "zero": "certain of every answer", "scale": "log"}
ACCURACY: dict[str, Any] = {
    "unit": "share right",
    "zero": "every answer wrong",
    "one": "every answer right",
    "scale": "unit",
}
GINI: dict[str, Any] = {"unit": "Gini of Fourier norms", "zero": "all components equal", "scale": "unit"}


@on_idle_cores()
@checked_arguments
@settled()
def progress_measures(
    subject: AnyModel, *, similar: float = 0.005, learned: float = 0.99, runs_dir: Folder = None
) -> Finding:
    """Track the key components of a grokking run over its checkpoints, and mark its phases.

    Losses, accuracies, sparsity and size of the weights are measured at every checkpoint, with the key components of
    the subject itself (the newest checkpoint, or the given one), the same for all checkpoints.

    Args:
        subject: a run on modular arithmetic or on a group's operation, with at least two checkpoints.
        similar: cosine similarity with the logits above which a component is a key component.
        learned: least accuracy at which training or held-out pairs count as learned.
        runs_dir: where `run:NAME` is looked up; by default as for every command.
    Returns:
        A finding with a panel [step] for each measure (losses in nats; accuracies 0 = none right, 1 = all) and facts
        `series`, one number for each checkpoint and name (null where it is not defined): loss and accuracy over all,
        training and held-out pairs; `restricted` (only the keys' functions of the product, over all pairs) and
        `excluded` (without them; for each key too); Gini coefficients of W_E and W_L (0 = all components alike); sum of
        squared weights; how many components reach `similar` at that checkpoint; the share of the logits' variance that
        the keys explain (0 = none, 1 = all). `phases` has the step of each change by the rules in `rules`, or null
        where it never happens: memorisation lasts until `memorised`, circuit formation from `forming` to `cleaning`,
        clean-up from there to `settled`. `waited`: steps from `memorised` to `generalised`. `restricted_falls_from`:
        the checkpoint of the largest restricted loss; the fall can begin at once, as the mean over all pairs of a
        product includes the memorised ones.
    Raises:
        TaskMismatchError: for a model of free text and for a task that is not a group's operation.
        SubjectError: for a group of more than 421 elements, and for a subject without at least two checkpoints.
    Source:
        Nanda et al., arXiv 2301.05217.

    Example:
        >>> import tempfile
        >>> import algoscope as ag
        >>> run = ag.train("grok59", settings={"steps": 1}, runs_dir=tempfile.mkdtemp(), progress=False)
        >>> ag.lenses.progress(run)["phases"]["generalised"] is None
        True
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    pairs = pairs_of(subject)
    components = components_of(pairs.structure)
    keys = _keys(subject, pairs, components, similar)
    steps, series = over_checkpoints(
        subject,
        lambda model: measures(model, pairs, components, keys, similar),
        keep=f"progress similar={similar} keys={keys}",
    )
    phases = phases_of(steps, series, learned)
    return subject.finding(
        "progress",
        _claim(phases, keys, components),
        {
            "keys": keys,
            "steps": steps.tolist(),
            "series": {name: [None if np.isnan(x) else float(x) for x in values] for name, values in series.items()},
            "phases": phases,
            "rules": PHASES,
            "waited": _waited(phases),
            "restricted_falls_from": int(steps[series["restricted loss"].argmax()]),
            "learned": learned,
        },
        _panels(steps, series, phases, components),
        about=ABOUT,
        tables=[_phase_table(phases, learned)],
    )


# ---------------------------------------------------------------------- one checkpoint


def _keys(subject: Subject, pairs: Pairs, components: Components, similar: float) -> list[int | str]:
    logits = pairs.logits(subject)
    similarity = _similarity(logits, by_product(logits, pairs.product), pairs, components)
    return [part.label for part, value in zip(components.parts, similarity, strict=True) if value > similar]


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
    measured: dict[str, float] = {}
    full, whole = scores(logits, pairs), torch.ones_like(pairs.product, dtype=torch.bool)
    for over, those in pairs.subsets().items():
        measured[f"loss, {over}"], measured[f"accuracy, {over}"] = full.over(those)
    kept = scores_by_product(restricted(means, components, keys), pairs)
    measured["restricted loss"], measured["restricted accuracy"] = kept.over(whole)
    single = [[key] for key in keys] if 1 < len(keys) <= MOST_KEYS else []
    for chosen in [list(keys), *single]:
        which = "" if len(chosen) == len(keys) else f" {chosen[0]}"
        without = scores(logits, pairs, without=part_of(means, components, chosen))
        for over, those in pairs.subsets().items():
            measured[f"excluded loss{which}, {over}"] = without.over(those)[0]
    similarity = _similarity(logits, means, pairs, components)
    measured["similar components"] = float((similarity > similar).sum())
    measured["share of the keys"] = float((similarity[[part.label in keys for part in components.parts]] ** 2).sum())
    measured |= {f"Gini {name}": value for name, value in ginis(weights_of(subject, pairs), components).items()}
    size = sum_of_squares(subject)
    return measured | {"sum of squared weights": size}


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


def first(steps: Steps, holds: Bool[np.ndarray, "step"]) -> int | None:
    """The first step at which a condition holds."""
    return int(steps[holds.argmax()]) if holds.any() else None


def _waited(phases: Mapping[str, int | None]) -> int | None:
    memorised, generalised = phases["memorised"], phases["generalised"]
    return None if memorised is None or generalised is None else generalised - memorised


def _settled(steps: Steps, squares: Float[np.ndarray, "step"], after: int | None) -> int | None:
    if after is None or len(steps) < 2:
        return None
    slope = np.abs(np.diff(np.log(squares) / 2)) / np.diff(steps) * 1000
    return first(steps[1:], (slope < SETTLED) & (steps[1:] > after))


# ---------------------------------------------------------------------- claim, table and panels


def _claim(phases: Mapping[str, int | None], keys: Sequence[int | str], components: Components) -> str:
    named = ", ".join(map(str, keys)) if len(keys) <= MOST_KEYS else f"{len(keys)} of them"
    changes = [
        f"({number}) {WORDS[name]}: {'never' if step is None else f'{step:,}'}"
        for number, (name, step) in enumerate(phases.items(), start=1)
    ]
    return f"key {components.nouns} of the last model: {named or 'none'}; steps at which it {', '.join(changes)}"


def _phase_table(phases: Mapping[str, int | None], learned: float) -> ResultTable:
    return ResultTable(
        title="Phases",
        columns=("number", "the run", "step", "rule"),
        rows=tuple(
            (
                number,
                WORDS[name],
                "never" if step is None else step,
                PHASES[name].replace("`learned`", f"{100 * learned:g} %"),
            )
            for number, (name, step) in enumerate(phases.items(), start=1)
        ),
        caption="The step at which each phase changes, by its rule; the numbers mark the dashed lines of the figures.",
    )


def _panels(
    steps: Steps, series: Series, phases: Mapping[str, int | None], components: Components
) -> tuple[Panel, ...]:
    """One line for each measure, in three rows, with the number of each phase at its step."""
    marks = tuple(Mark(step, str(number)) for number, step in enumerate(phases.values(), start=1) if step is not None)
    over = "training pairs" if "loss, training pairs" in series else "all pairs"
    captions = _captions(components)
    return tuple(
        Panel(
            name=name,
            title=title,
            axes=(Axis("step", tuple(steps.tolist()), "training step"),),
            values=series[name],
            view="lines",
            marks=marks,
            beside=row,
            caption=captions[row],
            **measure,
        )
        for row, name, title, measure in _drawn(over, components)
        if name in series
    )


def _captions(components: Components) -> dict[str, str]:
    """Captions by row of figures."""
    nouns = components.nouns
    return {
        "loss": (
            f"Loss of the model, with only the key {nouns} in its logits, and without them. Mean cross-entropy in "
            "nats, logarithmic, at each checkpoint; dashed lines carry the numbers of the phases."
        ),
        "accuracy": (
            f"Share of pairs right. With only the key {nouns} it can rise before the model's accuracy: it uses the "
            f"mean over all pairs with the same product, which includes memorised ones."
        ),
        "weights": (
            f"Sparsity of the weights over the {nouns}, and their size. Gini coefficient of the norms of W_E "
            "and W_L along the Fourier basis (0 = all equal, near 1 = one holds all), the sum of squares of all "
            "weights, "
            f"and how many {nouns} are similar to the logits."
        ),
    }


def _drawn(over: str, components: Components) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Row, name, title and measure of each panel."""
    everything = [] if over == "training pairs" else ["all pairs"]
    pairs = [*everything, "training pairs", "held-out pairs"]
    return [
        *(("loss", f"loss, {those}", f"loss, {those}", NATS) for those in pairs),
        ("loss", "restricted loss", "restricted loss (only the keys)", NATS),
        ("loss", f"excluded loss, {over}", f"excluded loss (without the keys), {over}", NATS),
        *(("accuracy", f"accuracy, {those}", f"accuracy, {those}", ACCURACY) for those in pairs),
        ("accuracy", "restricted accuracy", "accuracy with only the keys", ACCURACY),
        ("weights", "Gini W_E", "W_E, embedding", GINI),
        ("weights", "Gini W_L", "W_L, neurons to logits", GINI),
        ("weights", "sum of squared weights", "all weights", {"unit": "sum of squares", "zero": "no weights"}),
        (
            "weights",
            "similar components",
            f"{components.nouns} similar to the logits",
            {"unit": components.nouns, "zero": "none"},
        ),
    ]


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: applies to runs on group operations with several checkpoints."""
    origin = subject.origin
    return {} if has_pairs(subject) and origin is not None and len(origin.steps) > 1 else None
