"""Activation patching: which activations carry the difference between two inputs?"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from algoscope.core.arguments import Folder, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.core.sites import KINDS
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.interventions.contrast_pairs import (
    Alignment,
    Answers,
    Cell,
    Direction,
    Pair,
    by_effect,
    effects_table,
    half_way,
    is_critical,
    of_the_gap,
)
from algoscope.lenses.interventions.metrics import AnyMetric
from algoscope.lenses.interventions.patched_runs import PatchedRun, Patching
from algoscope.lenses.measures import RECOVERED
from algoscope.subjects.cache import ActivationCache
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts

Sweep = Literal[
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp", "head", "head_position",
    "q", "k", "v", "pattern", "neuron",
]  # fmt: skip
SWEEPS: dict[Sweep, tuple[str, tuple[str, ...]]] = {  # the kind of site, and the axes of single patches
    "resid_pre": ("resid_pre", ("position",)),
    "resid_mid": ("resid_mid", ("position",)),
    "resid_post": ("resid_post", ("position",)),
    "attn_out": ("attn_out", ("position",)),
    "mlp_out": ("mlp_out", ("position",)),
    "mlp": ("mlp_out", ("position",)),
    "head": ("z", ("head",)),
    "head_position": ("z", ("head", "position")),
    "q": ("q", ("head",)),
    "k": ("k", ("head",)),
    "v": ("v", ("head",)),
    "pattern": ("pattern", ("head",)),
    "neuron": ("post", ("unit",)),
}
USUAL: tuple[Sweep, ...] = ("resid_pre", "attn_out", "mlp_out", "head")
SHOWN = 20  # components in the table and the bars
ABOUT = (
    "Two inputs with different answers, clean and corrupt. Denoising runs the corrupt input and copies in one "
    "activation of the clean run at a time: an activation that restores the clean answer is sufficient for it. "
    "Noising does the reverse: an activation that breaks the answer is necessary. `recovered` = (patched - corrupt) / "
    "(clean - corrupt), where each "
    "is the metric of that run: 0 = as the corrupt run, 1 = as the clean run; values outside are possible. An "
    "activation that moves the metric by half of the gap or more is called critical."
)


@checked_arguments
@measurement
def patch(
    subject: AnyModel,
    clean: Texts,
    corrupt: Texts,
    *,
    sites: Sequence[Sweep] = USUAL,
    direction: Direction = "denoise",
    metric: AnyMetric = "logit_diff",
    target: Answers = None,
    rival: Answers = None,
    align: Alignment = None,
    runs_dir: Folder = None,
) -> Finding:
    """Copy one activation at a time from one run into the other, and measure the share of the gap recovered.

    `denoise` runs the corrupt input and copies clean activations in: activations that restore the answer are
    sufficient. `noise` runs the clean input and copies corrupt ones in: activations that break it are necessary. Both
    use one scale, `recovered` = (patched - corrupt) / (clean - corrupt): 0 = as the corrupt run, 1 = as the clean run;
    values outside are possible and are not clipped. With a task the metric is read at the first answer position at
    which the right answers of the two inputs differ (before it both runs contain the right answer, which is the same)
    and compares the two right tokens. Without a task it is read at the last position and compares the model's own
    predictions in the two runs.

    Args:
        subject: a causal model, by name or opened.
        clean: the inputs whose answers are to be restored, one or several.
        corrupt: as many inputs with other answers. A text of another length than its clean one is matched with it from
            the start as far as their tokens are equal, and the rest from the end; positions left over are missing.
        sites: sweeps: resid_pre, resid_mid, resid_post, attn_out, mlp_out by layer and position; head, q, k, v, pattern
            by layer and head (k and v by key/value head where they are grouped); head_position; neuron. Of the default
            ones those are made that the model has.
        direction: which run activations are copied into: the corrupt one (denoise) or the clean one (noise).
        metric: a function of the logits: the logit difference of target and rival, the target's probability, the KL
            divergence from the clean run in nats, or whether the target is the top token. Or a function of your own,
            as in TransformerLens: of the logits [batch pos d_vocab], to a number for each input; or where it stands,
            FILE.py:NAME.
        target: an answer in place of the clean input's, or several that count alike: the log-sum-exp of their logits,
            the sum of their probabilities. On free text it may have several tokens (` Paris France`): it is then
            teacher-forced, and its log probability, the sum over its tokens, stands for its logit. kl is summed over
            its tokens; for exact_match all must be most likely. Patches stay at the input's positions.
        rival: an answer, or several, in place of the corrupt input's; its number of tokens may differ. Where only one
            of the two is given and has several tokens, the other is the model's own prediction of as many.
        align: pairs (clean position, corrupt position) to match inputs by, in place of the rule above.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with one panel for each sweep [layer, position | head | ...], the share of the gap recovered, the mean
        over the pairs, and the panel `strongest`, the cells of largest effect. Facts: `baselines` {clean,
        corrupt} and `raw` (means of the metric itself), `target`, `rival`, `per_example` (the cells for every pair),
        `critical` (the cells that reach half of the gap: recovered at least 0.5 when denoising, at most 0.5 when
        noising), and `by_class`, the mean over the pairs of each class of a task's inputs.

    Raises:
        PairingError: if the inputs differ in number, have the same answer, or are not separated by the metric
            (a gap below 1e-4 would only amplify noise).
        SubjectError: for a model that is not causal, which would see the answer.
        ConfigError: for no sites.
        UnknownNameError: for another sweep, direction or metric.
        VocabularyError: for a target or rival that is no text of tokens, or with a task not one token.

    Source:
        Heimersheim and Nanda, How to use and interpret activation patching, arXiv 2404.15255.

    Example:
        >>> import algoscope as ag
        >>> ag.lenses.patch("planted:induction", "abcda", "cbada")["strongest"].axes[0].labels[0]
        'attn_out L1 a_4'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    sites = available(subject, sites)
    pair = Pair(subject, clean, corrupt, target, rival, metric, align)
    patching = Patching.of(pair, recorded(subject, sites), direction)
    return _finding(patching, *swept(patching, sites))


def _finding(
    patching: Patching,
    panels: Sequence[Panel],
    examples: dict[str, Float[np.ndarray, "_pair *_cell"]],
    raw: dict[str, list[Any]],
) -> Finding:
    pair, scale, direction = patching.pair, patching.scale, patching.direction
    cells = by_effect(((name_of_cell(panel, at), value) for panel in panels for at, value in panel.cells()), direction)
    return pair.subject.finding(
        "patch",
        _claim(cells[0], direction, scale.name, pair),
        {
            **pair.facts,
            "metric": scale.name,
            "direction": direction,
            "baselines": scale.baselines,
            "critical": [
                {"component": name, "recovered": value} for name, value in cells if is_critical(value, direction)
            ],
            "raw": raw,
            "per_example": {name: plain(values) for name, values in examples.items()},
            "by_class": _by_class(pair, examples),
        },
        [*panels, _strongest(cells[:SHOWN], direction)],
        about=ABOUT + pair.about,
        tables=[
            effects_table(
                cells[:SHOWN],
                direction,
                title="Largest effects",
                column="activation patched",
                caption="Share of the gap recovered when this activation alone is patched.",
            )
        ],
    )


def available(subject: Subject, sites: Sequence[Sweep]) -> Sequence[Sweep]:
    """The sweeps to make: those requested, or those of the default that the model has."""
    if not sites:
        raise ConfigError(f"patching at no sites: give one or more of {', '.join(SWEEPS)}")
    present = {site.kind for site in subject.sites}
    return [name for name in sites if tuple(sites) != USUAL or SWEEPS[name][0] in present]


def recorded(subject: Subject, sites: Sequence[Sweep]) -> list[tuple[str, int]]:
    kinds = {SWEEPS[name][0] for name in sites}
    return [(kind, layer) for kind in sorted(kinds) for layer in range(subject.cfg.n_layers)]


def swept(
    patching: Patching, sites: Sequence[Sweep]
) -> tuple[list[Panel], dict[str, Float[np.ndarray, "_pair *_cell"]], dict[str, list[Any]]]:
    """For each sweep: its panel, the share recovered for every pair, and the mean of the metric itself."""
    labels, missing = patching.labels, patching.missing
    panels = []
    examples: dict[str, Float[np.ndarray, "_pair *_cell"]] = {}
    raw: dict[str, list[Any]] = {}
    for name in sites:
        axes, _ = sweep_of(patching.subject, name, patching.runs[0].new, labels)
        shape = tuple(len(axis.labels) for axis in axes)
        patched = patching.each(partial(_edits, patching.subject, name, labels))
        recovered = patching.scale.recovered(patched)  # [cell batch]
        examples[name] = recovered.T.reshape(len(patching.pair.cleans), *shape).double().cpu().numpy()
        raw[name] = patched.mean(dim=1).reshape(shape).tolist()
        mask_missing(examples[name], axes, missing)
        panels.append(_panel(name, axes, examples[name].mean(axis=0)))
    return panels, examples, raw


def plain(values: Float[np.ndarray, "..."]) -> list[Any]:
    """As lists, with None where a value is missing."""
    cells = values.astype(object)
    cells[np.isnan(values)] = None
    listed: list[Any] = cells.tolist()
    return listed


def mask_missing(
    values: Float[np.ndarray, "_pair *_cell"], axes: Sequence[Axis], missing: Bool[np.ndarray, "_pair pos"] | None
) -> None:
    """NaN at positions that have no counterpart in the other input of a pair."""
    at = [i for i, axis in enumerate(axes) if axis.name == "position"]
    if missing is not None and at:
        np.moveaxis(values, at[0] + 1, 1)[missing] = np.nan


def _edits(subject: Subject, name: Sweep, labels: tuple[str, ...], run: PatchedRun) -> list[Patch]:
    return sweep_of(subject, name, run.new, labels)[1]


def sweep_of(
    subject: Subject, name: Sweep, values: ActivationCache, labels: tuple[str, ...]
) -> tuple[tuple[Axis, ...], list[Patch]]:
    """The axes of a sweep and one patch for each cell, in the order of the axes."""
    kind, along = SWEEPS[name]
    shape = dict(zip(KINDS[kind].axes, values[kind, 0].shape, strict=True))
    indexed: dict[str, Axis] = {}
    for part in along:
        if part == "position":
            indexed["pos"] = Axis("position", labels, "position patched")
        elif part == "head":
            n = shape.get("head", shape.get("kv_head", 0))
            indexed["head"] = Axis("head", tuple(range(n)), "head")
        else:
            indexed["unit"] = Axis("unit", tuple(range(shape["d_mlp"])), "neuron")
    axes = (Axis("layer", tuple(range(subject.cfg.n_layers)), "layer"), *indexed.values())
    edits = [
        Patch((kind, layer), value=values[kind, layer], **dict(zip(indexed, picks, strict=True)))
        for layer, *picks in product(*(range(len(axis.labels)) for axis in axes))
    ]
    return axes, edits


def _panel(name: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."]) -> Panel:
    return RECOVERED.panel(
        name,
        axes,
        values,
        caption="Share of the gap recovered when one activation is patched, for every layer and position, head or "
        "neuron. Rows are layers, layer 0 on top. Blue = towards the clean run (1 = all the way), white = as the "
        "corrupt run, orange = further away than the corrupt run.",
        site=name,
        shares="sweeps",
    )


def name_of_cell(panel: Panel, labels: Sequence[object]) -> str:
    """`head L0H1`, `resid_pre L1 =_7`, `neuron L0 unit 3`."""
    words = {"layer": "L{}", "head": "H{}", "position": " {}", "unit": " unit {}"}
    where = "".join(words[axis.name].format(label) for axis, label in zip(panel.axes, labels, strict=True))
    return f"{panel.name} {where}"


def _strongest(cells: Sequence[Cell], direction: Direction) -> Panel:
    """The bar view: the cells of largest effect, and the line at half of the gap."""
    names, values = zip(*cells, strict=True)
    return RECOVERED.panel(
        "strongest",
        [Axis("component", names, "activation patched")],
        np.array(values),
        caption="The activations of largest effect, each patched alone. Bars that reach the dashed line move the "
        "metric by at least half of the gap between the two runs.",
        title="patches that restore the answer most" if direction == "denoise" else "patches that break it most",
        view="bars",
        marks=(half_way(direction),),
        site="strongest",
    )


def _by_class(pair: Pair, examples: dict[str, Float[np.ndarray, "..."]]) -> dict[str, dict[str, object]]:
    """For each class of clean inputs: how many pairs, and the mean recovered in each panel."""
    if not pair.subject.has_task or len(pair.cleans) == 1:
        return {}
    task = pair.subject.task
    scheme = task.class_schemes[0]
    names = list(task.class_names(scheme))
    classes = task.class_of(pair.whole, scheme).cpu().numpy()
    return {
        names[number]: {
            "pairs": int((classes == number).sum()),
            **{name: values[classes == number].mean(axis=0).tolist() for name, values in examples.items()},
        }
        for number in sorted(set(classes.tolist()))
    }


def _claim(best: Cell, direction: Direction, metric: str, pair: Pair) -> str:
    verb = "restores" if direction == "denoise" else "leaves"
    return f"{pair.title}: patching {best[0]} {verb} {of_the_gap(best[1])} of the {metric} gap"


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: the clean prompt against the corrupt one."""
    if not prompts.corrupt or not subject.cfg.causal:
        return None
    return {"clean": prompts.clean, "corrupt": prompts.corrupt}
