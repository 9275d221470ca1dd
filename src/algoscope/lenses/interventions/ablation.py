"""The ablation lens: the cost of ablating each head, MLP, attention, layer and embedding."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.numbers import in_cells
from algoscope.core.panel import Axis, Panel
from algoscope.core.renaming import renamed_options
from algoscope.core.sites import Key
from algoscope.lenses.inputs.prompts import LARGE, Prompts
from algoscope.lenses.interventions._ablation_trials import Trial, trial_of
from algoscope.lenses.interventions.replacements import EVERY_KIND, KINDS, Component, Kind, components, others
from algoscope.lenses.measures import ACCURACY, Measure
from algoscope.networks.parameters import count_parameters
from algoscope.subjects.edits import Edit
from algoscope.subjects.opening import AnyModel, measurement, open_subject
from algoscope.subjects.subject import Subject
from algoscope.subjects.text import Texts, texts_of
from algoscope.tasks.base import Tokens

PORTION = 2**24  # most logits of one run held in memory
MOST = 5  # components named in `most_needed`
PARTS = ("head", "feed-forward")  # compared in `most_needed`: other components consist of them, or are embeddings
LISTED = 40  # components in the table
LOSS = Measure("nats per token above the model without ablation", "as without ablation", scale="signed")
DIVERGENCE = Measure("nats from the model without ablation", "as without ablation")
ABOUT = (
    "One component at a time is ablated: its output is replaced, everything downstream is recomputed, and the answers "
    "are compared with those of the model without ablation. The replacements differ: zeros may be off the "
    "distribution of activations, the mean over the inputs keeps the part common to all inputs, and the output on "
    "another input (resample) removes only the part specific to this input. A component whose ablation costs nothing "
    "may be backed up by another."
)


@renamed_options(n_texts="n_inputs")
@checked_arguments
@measurement
def ablate(
    subject: AnyModel,
    *,
    kind: Kind | Sequence[Kind] = EVERY_KIND,
    by: str | None = None,
    n_inputs: Count | None = None,
    per_class: Count = 200,
    inputs: Texts = None,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Ablate one component at a time, with each replacement named in `kind`, and measure the cost.

    Components: each head (`L0H1`, its `z`), each MLP (`L0 MLP`), each attention (`L0 attention`, all heads and the
    output's bias), each layer with an MLP (`L0`, both together), and the embeddings (`embed`, `pos_embed`).
    Replacements: `zero`, zeros; `mean`, the mean over the reference inputs at each position; `resample`, the output on
    another of them. Zeros may be off the distribution of activations. Positions are the same for every input, so only
    `zero` ablates `pos_embed`.

    With a task, the reference is random inputs. An input is right where every answer position is, each given the right
    answer before it. `accuracy` is over those inputs, with its 95 % Clopper-Pearson interval, and `drop` the lost
    accuracy; `by_class` is over inputs of each class, from the whole domain or 100,000 draws.

    With free text, the reference is the texts, or rows of random tokens in a block that is repeated once.
    `loss_increase` (of the cross-entropy of the next token) and `kl` (from the prediction without ablation) are in
    nats, means over all predicted tokens, or over those of the second copy, which are predictable from the first;
    `by_class` also has the first copy, which is unpredictable.

    Args:
        subject: a causal model, by name or opened.
        kind: the replacement of a component's output, one or several of zero, mean and resample.
        by: the scheme that sorts a task's inputs into classes; by default the task's first.
        n_inputs: how many reference inputs are drawn; by default 2,000 inputs of a task, or 16 rows of random tokens.
        per_class: how many inputs of each class are used, at most.
        inputs: texts for a model of free text, two or more, all cut to the length of the shortest.
        seed: of the random inputs, and of the other input of `resample`.
        runs_dir: where run folders are looked for; by default the usual place.

    Returns:
        A finding with, for a task, the panels `overall` [component kind] and `KIND by class` [component class],
        accuracies, 0 = none right, 1 = all; with free text `loss` and `kl` [component kind] in nats. Facts: `baseline`
        without ablation, `components` (each with each replacement), `most_needed` (for each replacement, the five heads
        and MLPs that cost most), `reference`, `kinds`.

    Raises:
        UnknownNameError: for another kind or scheme.
        ConfigError: for fewer than two inputs or no kind, and for `inputs` to a model with a task.
        SubjectError: for a model that is not causal, which would see the answer.

    Example:
        >>> import algoscope as ag
        >>> ablation = ag.lenses.ablate("planted:induction", kind="mean", n_inputs=4)
        >>> ablation["most_needed"]["mean"][0]["component"]
        'L0H1'
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    kinds = (kind,) if isinstance(kind, str) else tuple(dict.fromkeys(kind))
    if not kinds:
        raise ConfigError(f"ablation of no kind: give one or more of {', '.join(KINDS)}")
    trial = trial_of(subject, by, n_inputs, per_class, texts_of(inputs), seed)
    parts = components(subject)
    facts = _facts(trial, parts, kinds, *_measured(subject, trial, parts, kinds, seed), seed)
    panels, tables = _panels(facts, trial), [_table(facts, trial.cost)]
    return subject.finding("ablate", _claim(facts, trial), facts, panels, about=ABOUT, tables=tables, seed=seed)


def _facts(
    trial: Trial,
    parts: Sequence[Component],
    kinds: Sequence[str],
    whole: Float[np.ndarray, "batch token measure"],
    without: Mapping[str, Float[np.ndarray, "component batch token measure"]],
    seed: int,
) -> dict[str, Any]:
    base, rows = trial.summary(whole), []
    for i, part in enumerate(parts):
        for kind in kinds:
            ablated = trial.summary(without[kind][i])
            row = {"component": part.name, "group": part.group, "kind": kind, **ablated}
            rows.append(row | {trial.cost: trial.lost(base, ablated)})
    return {
        "kinds": {kind: KINDS[kind] for kind in kinds},
        "reference": {"n": trial.n_reference, "meaning": trial.meaning, "seed": seed},
        "baseline": base,
        "components": rows,
        "most_needed": {kind: _most_needed(rows, kind, trial.cost) for kind in kinds},
    }


# ---------------------------------------------------------------------- runs


def _measured(
    subject: Subject, trial: Trial, parts: Sequence[Component], kinds: Sequence[str], seed: int
) -> tuple[Float[np.ndarray, "batch token measure"], dict[str, Float[np.ndarray, "component batch token measure"]]]:
    """The measures of every input without ablation, and for each kind under ablation of each component."""
    sites = sorted({site for part in parts for site in part.sites}, key=str)
    read, targets, cfg = trial.tokens[:, :-1], trial.targets, subject.cfg
    another = others(len(read), trial.n_reference, seed).to(read.device)
    size = max(1, PORTION // (read.shape[1] * max(cfg.d_vocab, 4 * cfg.n_layers * cfg.d_model)))
    means = _means(subject, read[: trial.n_reference], sites, size) if "mean" in kinds else None
    bases: list[Tensor] = []
    ablated: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for rows in torch.arange(len(read), device=read.device).split(size):
        logits = subject.run(read[rows], at=trial.at)[0]
        measure = partial(trial.read, targets=targets[rows], base=logits)
        bases.append(measure(logits[None])[0])
        for name in kinds:
            reference = means if name == "mean" else None
            if name == "resample":
                reference = _recorded(subject, read[another[rows]], sites)
            edits = [part.edits(reference) for part in parts]
            ablated[name].append(_without_each(subject, read[rows], edits, trial.at, measure))
    together = {name: torch.cat(values, dim=1).cpu().double().numpy() for name, values in ablated.items()}
    return torch.cat(bases).cpu().double().numpy(), together


def _without_each(
    subject: Subject, tokens: Tokens, edits: Sequence[list[Edit]], at: slice, measure: Callable[[Tensor], Tensor]
) -> Float[Tensor, "component batch token measure"]:
    """One run per component, with all edits of that component."""
    single = [i for i, members in enumerate(edits) if len(members) == 1]
    each = subject.run_each(tokens, [edits[i][0] for i in single], at=at, reduce=measure)
    measured = dict(zip(single, each, strict=True))
    for i, members in enumerate(edits):
        if i not in measured:
            measured[i] = measure(subject.run(tokens, edits=members, at=at)[0][None])[0]
    return torch.stack([measured[i] for i in range(len(edits))])


def _recorded(subject: Subject, tokens: Tokens, sites: Sequence[Key]) -> Mapping[Key, Tensor]:
    return subject.run(tokens, record=sites, at=slice(0, 0))[1]


def _means(subject: Subject, tokens: Tokens, sites: Sequence[Key], size: int) -> Mapping[Key, Tensor]:
    """The mean over all inputs at each position, [1 pos ...], from `size` inputs at a time."""
    total = dict[Key, Tensor]()
    for portion in tokens.split(size):
        values = _recorded(subject, portion, sites)
        for site in sites:
            total[site] = total.get(site, 0) + values[site].sum(dim=0, keepdim=True) / len(tokens)
    return total


# ---------------------------------------------------------------------- the finding


def _most_needed(rows: Sequence[Mapping[str, Any]], kind: str, cost: str) -> list[dict[str, Any]]:
    parts = [row for row in rows if row["kind"] == kind and row["group"] in PARTS]
    return [
        {"component": row["component"], cost: row[cost]} for row in sorted(parts, key=lambda row: -row[cost])[:MOST]
    ]


def needed_most(parts: Sequence[Mapping[str, Any]], kind: str, cost: str, base: Mapping[str, float]) -> str:
    """Which components cost most, from those of `most_needed`: all that are tied, and none where nothing is lost."""
    most = parts[0][cost] if parts else 0.0
    if most <= 0:
        return f"none ({kind}: none makes it worse)"
    tied = [part["component"] for part in parts if part[cost] == most]
    names = f"{tied[0]} and others alike" if len(tied) == MOST else " and ".join(tied)
    lost = f"{base['accuracy'] - most:.1%} right when ablated" if cost == "drop" else f"+{most:.3g} nats per token"
    return f"{names} ({kind}: {lost})"


def _claim(facts: Mapping[str, Any], trial: Trial) -> str:
    base = facts["baseline"]
    needed = [needed_most(parts, kind, trial.cost, base) for kind, parts in facts["most_needed"].items()]
    whole = f"{base['accuracy']:.1%} right" if trial.whole else f"loss {base['loss']:.3g} nats"
    which = "" if trial.whole else f" per token, {next(iter(trial.classes))}"
    setting = f"{', '.join(facts['kinds'])} ablation over {trial.meaning}; without ablation {whole}{which}"
    return f"{setting}; most needed head or MLP: {', '.join(needed)}"


def _table(facts: Mapping[str, Any], cost: str) -> ResultTable:
    """The components by the largest cost of their ablation, with a column for each replacement."""
    kinds, measure = tuple(facts["kinds"]), "accuracy" if cost == "drop" else "loss"
    by_component: dict[str, list[Mapping[str, Any]]] = {}
    for row in facts["components"]:
        by_component.setdefault(row["component"], []).append(row)
    ordered = sorted(by_component.items(), key=lambda item: -max(row[cost] for row in item[1]))[:LISTED]
    rows = [("nothing", *(facts["baseline"][measure] for _ in kinds))]
    rows += [(name, *(row[measure] for row in same)) for name, same in ordered]
    what = "Share of inputs answered right" if cost == "drop" else "Loss in nats per token"
    return ResultTable(
        title="Components by the cost of their ablation",
        columns=("ablated", *(f"{measure}, {kind}" for kind in kinds)),
        rows=tuple(rows),
        caption=f"{what} when one component is ablated, for each replacement, costliest first (up to {LISTED}).",
    )


def _panels(facts: Mapping[str, Any], trial: Trial) -> tuple[Panel, ...]:
    """With a task accuracies, without ablation in the first row; else the increase of the loss, and the KL
    divergence."""
    base, kinds = facts["baseline"], tuple(facts["kinds"])
    by_kind = [[row for row in facts["components"] if row["kind"] == kind] for kind in kinds]
    names = tuple(row["component"] for row in by_kind[0])
    replacement = Axis("kind", kinds, "replacement")
    if not trial.whole:
        loss, kl = ([[row[of] for row in same] for same in by_kind] for of in ("loss_increase", "kl"))
        which = next(iter(trial.classes))
        caption = f"when one component is ablated ({which}). Rows are ablated components, columns replacements."
        shown = (
            (LOSS, "loss", "increase of the loss", loss, f"Increase of the loss {caption}"),
            (
                DIVERGENCE,
                "kl",
                "KL(not ablated || ablated)",
                kl,
                f"KL divergence from the prediction without ablation {caption}",
            ),
        )
        return tuple(
            _panel(measure, name, f"{title}, {which}", names, replacement, values, text)
            for measure, name, title, values, text in shown
        )
    rows = ("nothing", *names)
    overall = [[row["accuracy"] for row in (base, *same)] for same in by_kind]
    title = f"accuracy over {trial.meaning}"
    caption = "Share of inputs answered right when one component is ablated. The first row is "
    caption += "without ablation, columns are replacements. 1 (dark) = every input right, 0 (white) = none."
    panels = [_panel(ACCURACY, "overall", title, rows, replacement, overall, caption)]
    classes = Axis("class", tuple(f"{one['class']} ({one['n']:,})" for one in base["by_class"]), "class (inputs)")
    for kind, same in zip(kinds, by_kind, strict=True):
        values = zip(*([one["accuracy"] for one in row["by_class"]] for row in (base, *same)), strict=True)
        title = f"accuracy by class, {kind} ablation"
        caption = "Share of inputs answered right in each class of inputs when one component is ablated. A "
        caption += "component needed by some classes only is a row that is dark in the others."
        panels.append(_panel(ACCURACY, f"{kind} by class", title, rows, classes, list(values), caption))
    return tuple(panels)


def _panel(
    measure: Measure, name: str, title: str, rows: tuple[str, ...], columns: Axis, values: Sequence[Sequence[float]],
    caption: str,
) -> Panel:  # fmt: skip
    """A heatmap of components and `columns`, from the values of each column."""
    cells = np.array(values, dtype=float).T
    words = in_cells(cells, 2 if measure is ACCURACY else 3)
    return measure.panel(name, [Axis("component", rows, "ablated"), columns], cells, caption, title=title, words=words)


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: every component of a model that is not large."""
    return {} if sum(count_parameters(subject.cfg).values()) < LARGE else None
