"""The timeline lens: many measurements over all checkpoints of a run, and the step at which each forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.ambient import settled
from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import SubjectError, UnknownNameError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel, Scale
from algoscope.core.renaming import renamed_options
from algoscope.lenses.heads.head_roles import ROLES, roles
from algoscope.lenses.inputs.probe_set import ProbeSet, answer_numbers, probe_set_of
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.modular_arithmetic.operand_pairs import has_pairs
from algoscope.lenses.modular_arithmetic.progress_measures import progress_measures
from algoscope.lenses.over_training._fact_paths import (
    Measures,
    check,
    measure_of,
    numbers_of,
    numbers_or_none,
    split,
)
from algoscope.lenses.over_training._formation_rules import curves_of, formation, table_of
from algoscope.lenses.over_training.checkpoint_series import Measure, Series, Steps, over_checkpoints, recalled
from algoscope.networks.matrix_rank import entropy_rank, stable_rank
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import AnyModel, open_subject
from algoscope.subjects.subject import Subject

GROUPS = {
    "answers": "loss and accuracy of each answer token, accuracy of each class of input",
    "heads": "each head's scores for the roles of the roles lens",
    "frequencies": "the measures of the progress lens, where a task has frequencies",
    "weights": "effective ranks of every matrix, and the norm of all weights",
}
FREQUENCIES = {  # series of the progress lens, and their names here
    "restricted loss": "frequency loss: keys alone",
    "excluded loss, training pairs": "frequency loss: without keys, training",
    "excluded loss, all pairs": "frequency loss: without keys, all",
    "restricted accuracy": "frequency share: accuracy, keys alone",
    "share of the keys": "frequency share: variance of keys",
    "Gini W_E": "frequency share: Gini of W_E",
    "Gini W_L": "frequency share: Gini of W_L",
}
ABOUT = (
    "Every checkpoint of a run is measured in the same way, on one axis of training steps. A mechanism is formed at "
    "the first checkpoint from which its rule holds up to the last: accuracies stay at 0.9 or above, roles of heads "
    "at the thresholds of the roles lens, losses and tracked facts on the last value's side of half-way between their "
    "first and last. Ranks and norms have no rule."
)
CHECKPOINTS = 4  # fewest checkpoints for a report
SLIGHT = 0.2  # roles of lower score at all checkpoints are not drawn


@dataclass(frozen=True)
class Kind:
    """A kind of series: title, unit, scale, meaning of 0 and 1, decimals and caption of its heatmap."""

    title: str
    unit: str
    scale: Scale
    zero: str
    one: str
    decimals: int
    caption: str


KINDS = {
    "loss": Kind(
        "loss of each answer token", "nats", "log", "certain of the right token", "", 2,
        "Loss of each token of the answer, given the right ones before it. Mean cross-entropy in nats; colours are "
        "logarithmic.",
    ),
    "accuracy": Kind(
        "accuracy of each answer token", "share right", "unit", "none right", "all right", 2,
        "Share of inputs with the right token, given the right ones before it, and with the whole answer right.",
    ),
    "class": Kind(
        "accuracy by class of input", "share right", "unit", "none right", "all right", 2,
        "Share of inputs of each class with the whole answer right.",
    ),
    "head": Kind(
        "roles of the heads", "score", "signed", "as uniform attention", "all attention", 2,
        "Score of each head for each role of the roles lens. 0 = as much attention on the role's keys as uniform "
        "attention gives, 1 = all of it. Roles that never reach 0.2 are left out.",
    ),
    "frequency loss": Kind(
        "loss by frequencies", "nats", "log", "certain of the right answer", "", 2,
        "Loss with only the key frequencies of the last checkpoint in the logits, and without them. Mean "
        "cross-entropy in nats, as in the progress lens.",
    ),
    "frequency share": Kind(
        "frequencies", "share", "unit", "none", "all", 2,
        "Accuracy with only the key frequencies, the share of the logits' variance that they explain, and Gini "
        "coefficients of the weights. As in the progress lens.",
    ),
    "entropy rank": Kind(
        "effective rank by entropy", "directions", "free", "a zero matrix", "one direction", 1,
        "Effective rank of each matrix: the exponential of the entropy of its singular values.",
    ),
    "stable rank": Kind(
        "stable rank", "directions", "free", "a zero matrix", "one direction", 1,
        "Stable rank of each matrix: its squared Frobenius norm over its squared largest singular value.",
    ),
    "norm": Kind("Euclidean norm", "norm", "free", "no weights", "", 1, "Euclidean norm of all weights together."),
}  # fmt: skip


@renamed_options(role_inputs="n_inputs_roles")
@checked_arguments
@settled()
def timeline(
    subject: AnyModel,
    of: str | Sequence[str] | None = None,
    *,
    by: str | None = None,
    n_inputs: Count = 2000,
    per_class: Count = 200,
    n_inputs_roles: Count = 64,
    seed: Seed = 0,
    measures: Measures | None = None,
    runs_dir: Folder = None,
    progress: bool = False,
) -> Finding:
    """Measure every checkpoint of a run in the same way, and find the step at which each mechanism forms.

    Results are cached in the run folder, by measure and weights.

    Args:
        subject: a run with at least two checkpoints.
        of: what to track: groups (`answers`, `heads`, `frequencies`, `weights`) and facts, `LENS:FACT` for any number
            among the facts of a lens with its default options, or of a verdict (`certify:accuracy`,
            `roles:heads.0.scores.previous-token`); by default all groups that apply. A checkpoint that the lens rejects
            has no number.
        by: the class scheme of inputs; by default the task's first.
        n_inputs: how many random inputs answers are scored on, if there are more than 20,000 inputs.
        per_class: how many inputs of each class, if there are more than 20,000 inputs.
        n_inputs_roles: how many inputs the roles of heads are measured on.
        seed: seed of the random inputs.
        measures: other measures that can be tracked, by the name before the colon: functions from a model to a finding.
            Lenses need not be listed; `algoscope.lenses.timeline` adds `certify`.
        runs_dir: where `run:NAME` is looked up; by default as for every command.
        progress: show a bar.
    Returns:
        A finding with a panel [series step] for each kind of series: losses in nats; accuracies, 0 = none right, 1 =
        all; roles of heads, 0 = as uniform attention, 1 = all; effective ranks (1 = one direction); the norm of all
        weights; tracked facts. Facts: `steps`; `series`, one number a step by name (null where there is none);
        `formed`, a row for each series {series, rule, threshold, step, after, beside_jump}, by step: `step` is the
        first checkpoint from which the rule holds (null: it does not hold at the last), `after` the checkpoint before
        it; `curves`, plateau and jump of the logged curves (null where none were logged), and `beside_jump`, before,
        during or after the jump; `probe`, the inputs. The table states the rules.
    Raises:
        SubjectError: for a subject without at least two checkpoints.
        UnknownNameError: for an unknown group or lens.
        ConfigError: for a fact that is not a number, and for no inputs.

    Example:
        >>> import tempfile
        >>> import algoscope as ag
        >>> run = ag.train("reverse5", settings={"steps": 2}, runs_dir=tempfile.mkdtemp(), progress=False)
        >>> ag.lenses.timeline(run, "weights")["steps"]
        [0, 1, 2]
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    run = subject.origin
    if run is None or len(run.steps) < 2:
        raise SubjectError(f"{subject.name} has no checkpoints to compare: give a run that was trained, run:NAME")
    groups, facts = _asked(of, measures or {})
    probe = probe_set_of(subject.task, by, n_inputs=n_inputs, per_class=per_class, seed=seed)
    kept = _group_measures(groups, probe, n_inputs_roles, seed)
    followed = _fact_measure(run, facts, measures or {})
    steps, series = over_checkpoints(subject, lambda m: {**_numbers(m, kept), **followed(m)}, progress=progress)
    if "frequencies" in groups and has_pairs(subject):
        series |= _frequencies(subject)
    curves = curves_of(run, int(steps[-1]))
    formed = formation(steps, series, curves)
    return subject.finding(
        "timeline",
        _claim(subject, steps, formed, curves),
        {
            "steps": steps.tolist(),
            "series": {name: [None if np.isnan(x) else float(x) for x in row] for name, row in series.items()},
            "formed": formed,
            "curves": curves,
            "probe": dict(probe.coverage),
        },
        panels_of(steps, series, curves),
        about=ABOUT,
        tables=[table_of(formed, curves)],
        seed=seed,
    )


def _asked(of: str | Sequence[str] | None, measures: Measures) -> tuple[list[str], list[tuple[str, str]]]:
    """The groups to measure, and the facts to track as (lens, path); all groups if `of` is empty."""
    names = [of] if isinstance(of, str) else list(of or ())
    groups = [name for name in names if ":" not in name]
    for name in groups:
        if name not in GROUPS:
            raise UnknownNameError("group of measurements (or LENS:FACT)", name, GROUPS)
    facts = [split(name, measures) for name in names if ":" in name]
    return groups or ([] if facts else list(GROUPS)), facts


# ---------------------------------------------------------------------- one checkpoint


def _group_measures(groups: Sequence[str], probe: ProbeSet, n_inputs: int, seed: int) -> dict[str, Measure]:
    """The measures of the groups, by their key in the run folder's cache."""
    known: dict[str, tuple[str, Measure]] = {
        "answers": (f"answers {dict(probe.coverage)}", lambda model: answer_numbers(model, probe)),
        "heads": (f"roles n_inputs={n_inputs} seed={seed}", lambda model: role_numbers(model, n_inputs, seed)),
        "weights": ("weights", weight_numbers),
    }
    return dict(known[group] for group in groups if group in known)


def _numbers(model: Subject, measures: Mapping[str, Measure]) -> dict[str, float]:
    return {name: x for keep, measure in measures.items() for name, x in recalled(model, keep, measure).items()}


def role_numbers(subject: Subject, n_inputs: int, seed: int) -> dict[str, float]:
    """Every head's score for every role that the inputs can test."""
    heads = roles(subject, n_inputs=n_inputs, seed=seed)["heads"]
    return {
        f"head: {head['name']} {role}": head["scores"][role]
        for head in heads
        for role in ROLES
        if head["scores"][role] is not None
    }


def weight_numbers(subject: Subject) -> dict[str, float]:
    """The entropy rank and the stable rank of every matrix, and the Euclidean norm of all weights together."""
    entropy, stable, squares = dict[str, float](), dict[str, float](), 0.0
    for name, weight in subject.model.named_parameters():
        exact = weight.detach().double()
        squares += float(exact.square().sum())
        if exact.ndim == 2:
            singular = exact.to("cpu").svd().S
            short = name.removeprefix("blocks.").removesuffix(".weight")
            short = f"L{short}" if short[0].isdecimal() else short
            entropy[f"entropy rank: {short}"] = float(entropy_rank(singular))
            stable[f"stable rank: {short}"] = float(stable_rank(singular))
    return entropy | stable | {"norm: all weights": squares**0.5}


def _fact_measure(run: Run, facts: Sequence[tuple[str, str]], measures: Measures) -> Measure:
    """The measure of the tracked facts of a checkpoint; each must be a number at the last checkpoint."""
    followed = {name: measure_of(name, measures) for name, _ in facts}
    last = open_subject(f"run:{run.path}")
    known = {name: recalled(last, f"lens {name}", partial(numbers_of, measure)) for name, measure in followed.items()}
    for name, path in facts:
        check(name, path, known[name])

    def numbers(model: Subject) -> dict[str, float]:
        kept = {name: recalled(model, f"lens {name}", partial(numbers_or_none, m)) for name, m in followed.items()}
        return {f"followed: {name}:{path}": kept[name].get(path, float("nan")) for name, path in facts}

    return numbers


def _frequencies(subject: Subject) -> Series:
    """The series taken from the progress lens, renamed."""
    series = progress_measures(subject)["series"]
    chosen = FREQUENCIES
    if "excluded loss, training pairs" in series:
        chosen = {name: here for name, here in FREQUENCIES.items() if name != "excluded loss, all pairs"}
    return {here: np.array(series[name], dtype=float) for name, here in chosen.items() if name in series}


# ---------------------------------------------------------------------- claim and panels


def _claim(
    subject: Subject, steps: Steps, formed: Sequence[Mapping[str, Any]], curves: Mapping[str, Any] | None
) -> str:
    judged = [row for row in formed if row["rule"] is not None]
    risen = [row for row in judged if row["step"] is not None and row["step"] > steps[0]]
    claim = f"{len(steps)} checkpoints of {subject.name}, steps {steps[0]:,} to {steps[-1]:,}"
    if risen:
        ends = (risen[0],) if len(risen) == 1 else (risen[0], risen[-1])
        named = ", last ".join(f"{row['series']} at step {row['step']:,}" for row in ends)
        claim += f"; {len(risen)} of {len(judged)} series that have a rule form after the first: first {named}"
    else:
        claim += f"; none of the {len(judged)} series that have a rule forms after the first"
    jump = curves and curves["jump"]
    return f"{claim}; the curves jump at step {jump['step']:,}" if jump else claim


def panels_of(steps: Steps, series: Series, curves: Mapping[str, Any] | None) -> list[Panel]:
    """One heatmap [series step] for each kind; a dashed line at the jump of the logged curves. Tracked facts have a
    panel each, as their units differ.
    """
    kinds: dict[str, dict[str, Float[np.ndarray, "step"]]] = {}
    for name, values in series.items():
        kind, _, row = name.partition(": ")
        if kind != "head" or np.nanmax(values, initial=-1.0) >= SLIGHT:
            kinds.setdefault(row if kind == "followed" else kind, {})[row] = values
    order = [*KINDS, *(kind for kind in kinds if kind not in KINDS)]
    marks: tuple[Mark, ...] = ()
    step_axis = Axis("step", tuple(steps.tolist()), "training step")
    jump = curves and curves["jump"]
    if jump:
        title = f"training step; dashed: the jump of the curves, step {jump['step']:,}"
        step_axis = Axis("step", step_axis.labels, title)
        marks = (Mark(float(np.interp(jump["step"], steps, np.arange(len(steps))))),)
    return [_panel(kind, kinds[kind], step_axis, marks) for kind in order if kind in kinds]


def _panel(name: str, rows: Mapping[str, Float[np.ndarray, "step"]], step_axis: Axis, marks: tuple[Mark, ...]) -> Panel:
    followed = Kind(name, "unit of the lens", "free", "", "", 3, f"The fact {name}, with default options.")
    kind = KINDS.get(name, followed)
    values = np.stack(list(rows.values()))

    def word(value: float) -> str:
        if np.isnan(value):
            return ""
        return f"{round(value, kind.decimals) + 0.0:.{kind.decimals}f}" if abs(value) < 1000 else f"{value:.2g}"

    return Panel(
        name=name,
        title=kind.title,
        axes=(Axis("series", tuple(rows), "series"), step_axis),
        values=values,
        unit=kind.unit,
        zero=kind.zero,
        one=kind.one,
        view="heatmap",
        scale=kind.scale,
        marks=marks,
        words=np.vectorize(word, otypes=[object])(values),
        caption=f"{kind.caption} Columns are checkpoints, which are denser at the beginning of training.",
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: answers and heads over the checkpoints, if there are enough."""
    if not subject.has_task or subject.origin is None or len(subject.origin.steps) < CHECKPOINTS:
        return None
    return {"of": ["answers", "heads"], "n_inputs": 1000, "per_class": 100}
