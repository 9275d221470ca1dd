"""What the timeline lens draws: one heatmap for each kind of series, all on the same axis of steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.panel import Axis, Mark, Panel, Scale
from algoscope.lenses.over_training.checkpoint_series import Series, Steps

DRAWN: dict[str, tuple[str, str, Scale, str, str, int]] = {  # title, unit, scale, what 0 and 1 mean, decimals
    "loss": ("loss of each answer token", "nats", "log", "certain of the right token", "", 2),
    "accuracy": ("accuracy of each answer token", "share right", "unit", "none right", "all right", 2),
    "class": ("accuracy by class of input", "share right", "unit", "none right", "all right", 2),
    "head": ("roles of the heads", "score", "signed", "as much attention as evenly spread", "all attention", 2),
    "frequency loss": ("loss by frequencies", "nats", "log", "certain of the right answer", "", 2),
    "frequency share": ("frequencies", "share", "unit", "none", "all", 2),
    "followed": ("facts of lenses and verdicts", "as the lens says", "free", "", "", 3),
    "entropy rank": ("effective rank by entropy", "directions", "free", "a zero matrix", "one direction", 1),
    "stable rank": ("stable rank", "directions", "free", "a zero matrix", "one direction", 1),
    "norm": ("Euclidean norm", "norm", "free", "no weights", "", 1),
}
SLIGHT = 0.2  # a role that a head never has to this degree is not drawn


def panels_of(steps: Steps, series: Series, curves: Mapping[str, Any] | None) -> tuple[Panel, ...]:
    """The panels, each [series step]; a dashed line where the logged curves jump. Followed facts have a panel each, as
    they share no unit.
    """
    kinds: dict[str, dict[str, Float[np.ndarray, "step"]]] = {}
    for name, values in series.items():
        kind, _, row = name.partition(": ")
        if kind != "head" or np.nanmax(values, initial=-1.0) >= SLIGHT:
            kinds.setdefault(row if kind == "followed" else kind, {})[row] = values
    order = [*DRAWN, *(kind for kind in kinds if kind not in DRAWN)]
    marks: tuple[Mark, ...] = ()
    at = Axis("step", tuple(steps.tolist()), "training step")
    jump = curves and curves["jump"]
    if jump:
        at = Axis("step", at.labels, f"training step; dashed: the jump of the curves, step {jump['step']:,}")
        marks = (Mark(float(np.interp(jump["step"], steps, np.arange(len(steps))))),)
    return tuple(_panel(kind, kinds[kind], at, marks) for kind in order if kind in kinds)


def _panel(kind: str, rows: Mapping[str, Float[np.ndarray, "step"]], at: Axis, marks: tuple[Mark, ...]) -> Panel:
    title, unit, scale, zero, one, places = DRAWN.get(kind, (kind, *DRAWN["followed"][1:]))
    values = np.stack(list(rows.values()))

    def word(value: float) -> str:
        if np.isnan(value):
            return ""
        return f"{round(value, places) + 0.0:.{places}f}" if abs(value) < 1000 else f"{value:.2g}"

    return Panel(
        name=kind,
        title=title,
        axes=(Axis("series", tuple(rows), "series"), at),
        values=values,
        unit=unit,
        zero=zero,
        one=one,
        view="heatmap",
        scale=scale,
        marks=marks,
        words=np.vectorize(word, otypes=[object])(values),
    )
