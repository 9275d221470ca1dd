"""Attribution patching: activation patching at every site at once, approximated by gradients."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Count, Folder, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Panel
from algoscope.core.sites import KINDS
from algoscope.lenses.interventions.activation_patching import (
    SWEEPS,
    USUAL,
    Sweep,
    available,
    mask_missing,
    name_of_cell,
    plain,
    recorded,
    sweep_of,
    swept,
)
from algoscope.lenses.interventions.contrast_pairs import (
    Alignment,
    Answers,
    Direction,
    Pair,
    by_effect,
    of_the_gap,
)
from algoscope.lenses.interventions.metrics import AnyMetric
from algoscope.lenses.interventions.patched_runs import PatchedRun, Patching
from algoscope.lenses.measures import RECOVERED
from algoscope.subjects.edits import Patch
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.text import Texts

FEW = 2000  # cells up to which exact patching is made beside it, where nothing else is asked for
SHOWN = 20  # cells in the table
ABOUT = (
    "The effect of a patch, approximated: the gradient of the metric at an activation, times the change that the patch "
    "would make there, summed over the entries that it covers. One gradient serves every site at once, so this costs "
    "a few runs where activation patching makes one for each patch. It is exact where the metric is linear in the "
    "activation, and can be far off where it is not: behind a norm, a softmax, or a large change. Integrated gradients "
    "take the mean of the gradient at several points between the two activations. `recovered` = (patched - corrupt) / "
    "(clean - corrupt), as in activation patching, which is shown beside it where it was made."
)

Place = tuple[str, int]  # a kind of site, and a layer
Cells = Float[np.ndarray, "_pair *_cell"]


@checked_arguments
@measurement
def attribution_patching(
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
    n_steps: Count = 1,
    compare: bool | None = None,
    runs_dir: Folder = None,
) -> Finding:
    """Approximate activation patching at every site at once by gradients, and compare it with exact patching.

    The effect of a patch is approximated by the gradient of the metric in the run that is patched, times the change of
    the activation, summed over what the patch covers. It is exact where the metric is linear in the activation. With
    `n_steps` above 1 it is integrated: the gradients at so many points between the two activations of a site (the
    middles of equal parts of the straight line) are averaged, one run for each point, site and layer. Axes, scale and
    options are those of `patch`.

    Args:
        subject: a causal model, by name or opened.
        clean: the inputs whose answers are to be restored, one or several.
        corrupt: as many inputs with other answers, of any length, as for `patch`.
        sites: sweeps, as for `patch`. Of the default ones those are made that the model has.
        direction: which run activations are copied into: the corrupt one (denoise) or the clean one (noise).
        metric: as for `patch`, but with a gradient: not exact_match.
        target: an answer in place of the clean input's, of one token or of several, or several answers that count
            alike, as for `patch`.
        rival: the same in place of the corrupt input's answer.
        align: pairs (clean position, corrupt position) to match inputs by, as for `patch`.
        n_steps: points of the integrated gradients; 1: the gradient in the run that is patched.
        compare: whether exact patches are made too; None: where there are 2,000 or fewer.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with one panel for each sweep [layer, position | head | ...], the approximate share of the gap
        recovered, mean over the pairs, and beside it, where compared, `SWEEP, exact`. Facts: `baselines` {clean,
        corrupt}, `n_steps`, `per_example`, and `agreement`: for each sweep the `correlation` of approximate and exact
        shares over pairs and cells (None where either is constant) and the `largest_error`, in shares of the gap.

    Raises:
        ConfigError: for no sites, and for a metric without a gradient.
        PairingError: for inputs that cannot be compared, as for `patch`.
        SubjectError: for a model that is not causal.
        UnknownNameError: for another sweep, direction or metric.
        VocabularyError: for a target or rival that is no text of tokens, or with a task not one token.

    Source:
        Nanda, Attribution patching, 2023; Syed et al., arXiv 2310.10348; Hanna et al., arXiv 2403.17806 (integrated).

    Example:
        >>> import algoscope as ag
        >>> patching = ag.lenses.attribution_patching("planted:induction", "abcda", "cbada", n_steps=5)
        >>> sorted(patching["agreement"]["head"])
        ['correlation', 'largest_error']
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    sites = available(subject, sites)
    pair = Pair(subject, clean, corrupt, target, rival, metric, align)
    patching = Patching.of(pair, recorded(subject, sites), direction)
    new, labels = patching.runs[0].new, patching.labels
    axes: dict[str, tuple[Axis, ...]] = {name: sweep_of(subject, name, new, labels)[0] for name in sites}
    approximate = _approximate(patching, sites, n_steps)
    for name, values in approximate.items():
        mask_missing(values, axes[name], patching.missing)
    n_cells = sum(int(np.prod([len(axis.labels) for axis in of])) for of in axes.values())
    compare = n_cells <= FEW if compare is None else compare
    exact = swept(patching, sites)[1] if compare else {}
    return _finding(patching, n_steps, axes, approximate, exact)


def _approximate(patching: Patching, sites: Sequence[Sweep], n_steps: int) -> dict[str, Cells]:
    """The share of the gap that each patch of each sweep recovers."""
    effects = _effects(patching, recorded(patching.subject, sites), n_steps)
    scale = patching.scale
    start = scale.recovered(scale.bottom if patching.direction == "denoise" else scale.top)
    cells = {name: _cells(effects, name, patching.subject.cfg.n_layers) for name in sites}
    before = start.double().cpu().numpy()
    return {name: before.reshape(-1, *[1] * (values.ndim - 1)) + values for name, values in cells.items()}


def _effects(patching: Patching, keys: Sequence[Place], n_steps: int) -> dict[Place, Tensor]:
    """For every entry of every site, the change of the metric per patch, in shares of the gap: summed over the runs of
    all answers, at the positions of the input.
    """
    together = [keys] if n_steps == 1 else [[key] for key in keys]
    effects: dict[Place, Tensor] = {}
    for some in together:
        for step in range(n_steps):
            edits = [_points(run, some, (step + 0.5) / n_steps) if n_steps > 1 else [] for run in patching.runs]
            for run, gradients in zip(patching.runs, _gradients(patching, some, edits), strict=True):
                for key, gradient in zip(some, gradients, strict=True):
                    effect = (run.new[key] - run.old[key]) * gradient / n_steps
                    effects[key] = effects.get(key, 0) + _at_the_input(effect, key[0], patching.base.shape[1])
    return effects


def _points(run: PatchedRun, keys: Sequence[Place], share: float) -> list[Patch]:
    """Patches to a point between the two activations."""
    return [Patch(key, value=run.old[key] + (run.new[key] - run.old[key]) * share) for key in keys]


def _gradients(patching: Patching, keys: Sequence[Place], edits: Sequence[Sequence[Patch]]) -> list[list[Tensor]]:
    """For each run, edited so, the gradients of the metric, in shares of the gap, at these activations. Raises
    ConfigError for a metric that has none.
    """
    scale = patching.scale
    each = [
        patching.subject.run(run.tokens, record=keys, edits=of, at=run.read, grad=True)
        for run, of in zip(patching.runs, edits, strict=True)
    ]
    with torch.enable_grad():
        numbers = [scale.of(scale.chosen(logits)[None], number)[0] for number, (logits, _) in enumerate(each)]
        shares = scale.recovered(scale.combined(numbers)).sum()
        if not shares.requires_grad:
            raise ConfigError(
                f"{scale.name} has no gradient: take logit_diff, probability, kl or a function of logits that PyTorch "
                "can differentiate, or patch"
            )
        shares.backward()
    return [
        [torch.zeros_like(values[key]) if (slope := values[key].grad) is None else slope for key in keys]
        for _, values in each
    ]


def _at_the_input(effect: Tensor, kind: str, n_pos: int) -> Tensor:
    """Without the positions of an answer, where nothing is patched."""
    for axis, name in enumerate(KINDS[kind].axes):
        if name in ("pos", "query", "key"):
            effect = effect.narrow(axis, 0, n_pos)
    return effect


def _cells(effects: Mapping[Place, Tensor], name: Sweep, n_layers: int) -> Cells:
    """The effects of the single patches of a sweep, each the sum over the entries that it covers."""
    kind, along = SWEEPS[name]
    axes = KINDS[kind].axes
    kept = {"position": ("pos",), "head": ("head", "kv_head"), "unit": ("d_mlp",)}
    of = ["batch", *(axis for part in along for axis in axes if axis in kept[part])]
    summed = [axis for axis, label in enumerate(axes) if label not in of]
    left = [label for label in axes if label in of]
    layers = [
        effects[kind, layer].double().sum(dim=summed).permute([left.index(label) for label in of])
        for layer in range(n_layers)
    ]
    return torch.stack(layers, dim=1).cpu().numpy()


# ---------------------------------------------------------------------- the finding


def _finding(
    patching: Patching,
    n_steps: int,
    axes: Mapping[str, tuple[Axis, ...]],
    approximate: Mapping[str, Cells],
    exact: Mapping[str, Cells],
) -> Finding:
    shown = {name: _panel(name, axes[name], values.mean(axis=0), "approximate") for name, values in approximate.items()}
    measured = {name: _panel(name, axes[name], values.mean(axis=0), "exact") for name, values in exact.items()}
    agreement = {name: _agreement(values, exact[name]) for name, values in approximate.items() if exact}
    cells, true = (
        {name_of_cell(shown[name], at): value for name, panel in of.items() for at, value in panel.cells()}
        for of in (shown, measured)
    )
    pair, direction = patching.pair, patching.direction
    ordered = by_effect(cells.items(), direction)
    panels = [panel for name in shown for panel in (shown[name], *([measured[name]] if exact else []))]
    return patching.subject.finding(
        "attribution_patching",
        _claim(pair, ordered[0], direction, n_steps, agreement),
        {
            **pair.facts,
            "metric": patching.scale.name,
            "direction": direction,
            "n_steps": n_steps,
            "baselines": patching.scale.baselines,
            "agreement": agreement,
            "per_example": {name: plain(values) for name, values in approximate.items()},
        },
        panels,
        about=ABOUT + pair.about,
        tables=_tables(ordered[:SHOWN], true, agreement),
    )


def _agreement(approximate: Cells, exact: Cells) -> dict[str, float | None]:
    """The correlation over pairs and cells, and the largest difference."""
    there = ~np.isnan(exact)
    left, right = approximate[there], exact[there]
    varies = min(left.std(), right.std()) > 1e-12
    return {
        "correlation": float(np.corrcoef(left, right)[0, 1]) if varies else None,
        "largest_error": float(np.abs(left - right).max()),
    }


def _panel(sweep: str, axes: tuple[Axis, ...], values: Float[np.ndarray, "..."], how: str) -> Panel:
    return RECOVERED.panel(
        sweep if how == "approximate" else f"{sweep}, {how}",
        axes,
        values,
        caption="Share of the gap recovered when one activation is patched: approximated by gradients, and beside it, "
        "where it was measured, exact. Rows are layers, layer 0 on top. Blue = towards the clean run (1 = all the "
        "way), white = as the corrupt run, orange = further away.",
        title=f"{sweep}, {how}",
        shares="sweeps",
        beside=sweep,
    )


def _tables(
    cells: Sequence[tuple[str, float]], true: Mapping[str, float], agreement: Mapping[str, Mapping[str, float | None]]
) -> list[ResultTable]:
    columns, rows = ("activation patched", "approximate"), [(name, value) for name, value in cells]
    largest = ResultTable(
        title="Largest effects",
        columns=(*columns, "exact") if true else columns,
        rows=tuple((*row, true[row[0]]) if true else row for row in rows),
        caption=f"Share of the gap recovered when this activation alone is patched; the {len(rows)} with the largest "
        "approximate effect, means over the pairs of inputs.",
    )
    if not agreement:
        return [largest]
    return [
        largest,
        ResultTable(
            title="Approximate and exact",
            columns=("sweep", "correlation", "largest error"),
            rows=tuple((name, of["correlation"], of["largest_error"]) for name, of in agreement.items()),
            caption="Over all pairs and patches of a sweep: the correlation of approximate and exact shares of the "
            "gap, and their largest difference.",
        ),
    ]


def _claim(
    pair: Pair,
    best: tuple[str, float],
    direction: Direction,
    n_steps: int,
    agreement: Mapping[str, Mapping[str, float | None]],
) -> str:
    verb = "restores" if direction == "denoise" else "leaves"
    how = "the gradient" if n_steps == 1 else f"gradients at {n_steps} points"
    largest = max((of["largest_error"] or 0.0 for of in agreement.values()), default=None)
    error = "" if largest is None else f"; largest error against exact patching {largest:.2g} of the gap"
    return f"{pair.title}: by {how}, patching {best[0]} {verb} {of_the_gap(best[1])} of the gap{error}"
