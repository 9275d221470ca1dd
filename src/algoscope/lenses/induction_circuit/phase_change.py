"""The phase change of induction: when in training do induction heads form, and how fast does the loss fall?"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from algoscope.core.ambient import settled
from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError, SubjectError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.lenses.heads.head_panels import ATTENTION
from algoscope.lenses.induction_circuit.head_ablations import LEAST_GAIN, Losses, scores_and_nats
from algoscope.lenses.induction_circuit.head_scores import Rows, repeated_rows
from algoscope.lenses.inputs.prompts import Prompts
from algoscope.lenses.over_training.checkpoint_series import Series, Steps, formed_at, over_checkpoints
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import AnyModel, open_subject
from algoscope.subjects.subject import Subject
from algoscope.tasks.strings.copying import Copying

Curve = tuple[Int[np.ndarray, "row"], Float[np.ndarray, "row"]]
SCORES = ("induction", "previous-token", "duplicate-token")
ABOUT = (
    "Every checkpoint reads the same rows of repeated random tokens. The attention scores are those of the best head "
    "of each kind at that checkpoint, 0 = none, 1 = all of its attention; the losses say how well the model predicts "
    "tokens that earlier ones determine, and undetermined tokens. Induction heads form in a phase change: the score "
    "rises and the loss falls within few steps (Olsson et al., arXiv 2209.11895)."
)
GAIN = "gain of a previous occurrence, nats"
LOGGED = {"held out": "test_loss", "training": "loss"}  # in the rows of a run's metrics


@checked_arguments
@settled()
def induction_phase(
    subject: AnyModel,
    *,
    n_inputs: Count = 64,
    length: Count | None = None,
    threshold: float = 0.4,
    share: float = 0.8,
    seed: Seed = 0,
    runs_dir: Folder = None,
) -> Finding:
    """Measure when in training induction heads form: their scores at every checkpoint, over the same repeated tokens.

    Rows and scores are those of `induction`; a score's curve is that of the best head at each checkpoint.

    Args:
        subject: a run with at least two checkpoints, or any of its models.
        n_inputs: rows of repeated random tokens, 2 at least.
        length: tokens of a block; by default as for `induction`.
        threshold: the score from which heads of a kind count as formed.
        share: the share of the whole fall of the held-out loss, above 0 and at most 1, that the window encloses.
        seed: seed of the rows.
        runs_dir: where runs live.
    Returns:
        A finding with a panel [step] for each series and each logged loss. Facts: `steps`; `series`, by name
        `induction`, `previous-token`, `duplicate-token` (mean attention, 0 to 1), the losses `determined` (of
        predictions that a previous occurrence determines) and `undetermined`, and their difference `gain`, in nats;
        `counted_gain`, that below the loss of a uniform guess where undetermined predictions are worse than one;
        `gains_from`, the first checkpoint from which on it stays at 0.1 nats or above, whatever the heads attend to, or
        null; `formed`, for each score the first checkpoint from which on it stays at or above the threshold, or null;
        `curves`, the losses logged in training; `window`, the fewest steps `from` .. `to` in which the held-out loss
        falls by `share` of its whole `fall`, counted below that of a uniform guess among the tokens used, which is used
        as the loss at step 0: a model with large initial weights falls to it before it has learned anything. Null if
        the loss stays above it.
    Raises:
        SubjectError: for a subject without two checkpoints, or not causal, or without room for a block of two.
        ConfigError: for a share that is not between 0 and 1, or blocks that do not fit.

    Example:
        >>> import tempfile
        >>> import algoscope as ag
        >>> settings = {"steps": 2, "data.n_train": 64, "data.n_test": 64}
        >>> run = ag.train("copy8", settings=settings, runs_dir=tempfile.mkdtemp(), progress=False)
        >>> ag.lenses.induction_phase(run, n_inputs=8)["steps"]
        [0, 1, 2]
    """
    subject = open_subject(subject, runs_dir=runs_dir)
    run = subject.origin
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share}: give a share of the loss's fall above 0, and 1 at most")
    if run is None or len(run.steps) < 2:
        raise SubjectError(f"{subject.name} has no checkpoints to compare: give a run that was trained, run:NAME")
    if not subject.cfg.causal:
        raise SubjectError(f"{subject.name} is not causal: it would see the answer")
    rows = repeated_rows(subject, n_inputs, length, seed=seed)
    keep = f"phase n_inputs={n_inputs} length={length} seed={seed}"
    steps, series = over_checkpoints(subject, lambda model: measures(model, rows), keep=keep)
    formed = {name: formed_at(steps, series[name], threshold) for name in SCORES}
    counted = np.minimum(series["undetermined"], math.log(rows.n_tokens)) - series["determined"]
    gains_from = formed_at(steps, counted, LEAST_GAIN)
    curves = _curves(run, int(steps[-1]))
    window = _window(subject, curves["held out"], share)
    facts = {
        "steps": steps.tolist(),
        "series": {name: values.tolist() for name, values in series.items()},
        "curves": {name: {"steps": at.tolist(), "loss": loss.tolist()} for name, (at, loss) in curves.items()},
        "counted_gain": counted.tolist(),
        "gains_from": gains_from,
        "formed": formed,
        "threshold": threshold,
        "window": window,
        "inputs": {"n": len(rows.tokens), "meaning": rows.meaning, "seed": seed},
    }
    panels = _panels(steps, series, curves, formed, window, threshold)
    claim = _claim(formed, series, window, threshold)
    claim += f"; a previous occurrence gains {counted[-1]:.3g} nats a token at the end, " + (
        f"{LEAST_GAIN:g} or more " + ("at no checkpoint to the end" if gains_from is None else f"from {gains_from:,}")
    )
    tables = [_table(formed, series, window, threshold, gains_from, float(counted[-1]))]
    return subject.finding("induction_phase", claim, facts, panels, about=ABOUT, tables=tables, seed=seed)


def measures(subject: Subject, rows: Rows) -> dict[str, float]:
    """Every number of one checkpoint, by name."""
    scores, nats = scores_and_nats(subject, rows)
    losses = Losses.of(nats, rows)
    best = {name: float(scores[name].max()) for name in SCORES}
    return best | {"gain": losses.gain, "undetermined": losses.first, "determined": losses.later}


# ---------------------------------------------------------------------- the fall of the loss


def shortest_window(
    steps: Int[np.ndarray, "row"], loss: Float[np.ndarray, "row"], share: float
) -> tuple[int, int] | None:
    """The fewest steps between two rows, the later of which is lower by `share` of the distance between the largest and
    the smallest loss; None where the loss never falls so far.
    """
    least_fall = share * (loss.max() - loss.min())
    falls = (loss[:, None] - loss >= least_fall) & (steps[:, None] < steps)
    if not falls.any() or least_fall <= 0:
        return None
    lasts = np.where(falls, steps - steps[:, None], np.iinfo(np.int64).max)
    first, last = np.unravel_index(lasts.argmin(), lasts.shape)
    return int(steps[first]), int(steps[last])


def _curves(run: Run, until: int) -> dict[str, Curve]:
    """The losses that were logged up to a step, and at which steps."""
    rows = [row for row in run.metrics() if row["step"] <= until]
    curves = {}
    for name, key in LOGGED.items():
        those = [(row["step"], row[key]) for row in rows if key in row]
        curves[name] = (
            np.array([step for step, _ in those], dtype=int),
            np.array([loss for _, loss in those], dtype=float),
        )
    return curves


def _window(subject: Subject, curve: Curve, share: float) -> dict[str, Any] | None:
    """The window of a loss that was logged, below that of a uniform guess."""
    even = math.log(len(subject.task.used_tokens))
    steps, loss = np.concatenate([[0], curve[0]]), np.concatenate([[even], curve[1].clip(max=even)])
    window = shortest_window(steps, loss, share)
    if window is None:
        return None
    begin, end = window
    return {"from": begin, "to": end, "steps": end - begin, "share": share, "fall": float(loss.max() - loss.min())}


# ---------------------------------------------------------------------- claim and panels


def _claim(formed: Mapping[str, int | None], series: Series, window: Mapping[str, Any] | None, threshold: float) -> str:
    scores = []
    for name, step in formed.items():
        stays = "nowhere" if step is None else f"from step {step:,}"
        scores.append(f"{name} stays at {threshold:g} or above {stays} ({series[name][-1]:.2f} at the end)")
    if window is None:
        return f"{'; '.join(scores)}; the held-out loss does not fall below that of a uniform guess"
    fall = f"{window['share']:.0%} of the fall of the held-out loss lies within {window['steps']:,} steps"
    return f"{'; '.join(scores)}; {fall}, {window['from']:,} to {window['to']:,}"


def _panels(
    steps: Steps,
    series: Series,
    curves: Mapping[str, Curve],
    formed: Mapping[str, int | None],
    window: Mapping[str, Any] | None,
    threshold: float,
) -> tuple[Panel, ...]:
    """The scores side by side, and under them the losses."""
    at = Axis("step", tuple(steps.tolist()), "step")
    heads = (
        "Attention scores of the best head of each kind at every checkpoint. The dashed lines are the threshold and "
        "the checkpoint from which on it is kept."
    )
    both = (
        "Losses in nats, logarithmic. Above, on the rows of repeated tokens at every checkpoint: of undetermined "
        "tokens, and of those that earlier tokens determine. Below, as logged in training; the "
        "dashed lines enclose most of the fall of the held-out loss."
    )
    panels = []
    for name in SCORES:
        step = formed[name]
        marks = [Mark(threshold, f"{threshold:g}", "y")]
        marks += [] if step is None else [Mark(step, f"step {step:,}", "x")]
        panels.append(
            Panel(
                name=name,
                title=f"{name}: best head",
                axes=(at,),
                values=series[name],
                view="lines",
                marks=tuple(marks),
                beside="scores",
                caption=heads,
                **ATTENTION,
            )
        )
    edges = [] if window is None else [Mark(window["from"], "", "x"), Mark(window["to"], "most of the fall", "x")]
    losses = {name: (steps, series[name]) for name in ("undetermined", "determined")} | dict(curves)
    for name, (logged, values) in losses.items():
        panels.append(
            Panel(
                name=name,
                title=f"loss, {name}",
                axes=(Axis("step", tuple(logged.tolist()), "step"),),
                values=values,
                unit="nats",
                zero="certain of the right token",
                view="lines",
                scale="log",
                marks=tuple(edges if name == "held out" else []),
                beside="logged" if name in curves else "losses",
                caption=both,
            )
        )
    return tuple(panels)


def _table(
    formed: Mapping[str, int | None],
    series: Series,
    window: Mapping[str, Any] | None,
    threshold: float,
    gains_from: int | None,
    gain: float,
) -> ResultTable:
    ends = {name: float(series[name][-1]) for name in formed} | {GAIN: gain}
    steps = {**formed, GAIN: gains_from}
    rows = [(name, "never" if steps[name] is None else steps[name], "", round(end, 3)) for name, end in ends.items()]
    fall = (
        ()
        if window is None
        else ((f"{window['share']:.0%} of the fall of the loss", window["from"], window["to"], ""),)
    )
    return ResultTable(
        "Formation by step",
        ("series", "from step", "to step", "at the end"),
        (*rows, *fall),
        f"For each score, the first checkpoint from which on the best head stays at {threshold:g} or above, and its "
        "score at the last checkpoint; the same for what a previous occurrence gains below the loss of an "
        f"undetermined prediction or a uniform guess, from {LEAST_GAIN:g} nats on; for the held-out loss, the fewest "
        "steps that contain most of its fall.",
    )


def for_report(subject: Subject, prompts: Prompts) -> dict[str, Any] | None:
    """The options of a report: every checkpoint of a run on the copying task."""
    if not subject.has_task or not isinstance(subject.task, Copying) or not subject.cfg.causal:
        return None
    return {} if subject.origin is not None and len(subject.origin.steps) > 1 else None
