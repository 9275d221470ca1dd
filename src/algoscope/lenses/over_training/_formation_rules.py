"""When a series counts as formed: rule and threshold by kind, and the step relative to the jump of the curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from algoscope.core.finding import ResultTable
from algoscope.lenses.over_training.checkpoint_series import Series, Steps, formed_at
from algoscope.runs.learning_curves import beside, read_curves
from algoscope.runs.run_folder import Run

ACCURATE = 0.9  # threshold of accuracies
ROLE = {"uniform": 0.8, "sparse": 0.5}  # thresholds of the roles lens
OTHER_ROLES = 0.4
MOVED = 0.1  # least change, as a share of the larger end, for the half-way rule
NO_RULE = ("entropy rank", "stable rank", "norm")
WITH_THRESHOLD = ("accuracy", "class", "head")


def formation(steps: Steps, series: Series, curves: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A row for each series, by step: the rule, its threshold, the step from which it holds, the checkpoint before, and
    whether that step is before, during or after the jump of the curves. Series that never form come last.
    """
    rows = [_row(name, steps, values, curves) for name, values in series.items()]
    return sorted(rows, key=lambda row: (row["step"] is None, row["step"] or 0))


def _row(
    name: str, steps: Steps, values: Float[np.ndarray, "step"], curves: Mapping[str, Any] | None
) -> dict[str, Any]:
    rule, threshold, rises = rule_of(name, values)
    step = None
    if threshold is not None:
        step = formed_at(steps, values, threshold) if rises else formed_at(steps, -values, -threshold)
    at = None if step is None else int(np.searchsorted(steps, step))
    return {
        "series": name,
        "rule": rule,
        "threshold": threshold,
        "step": step,
        "after": int(steps[at - 1]) if at else None,
        "beside_jump": _beside(step, curves),
    }


def rule_of(name: str, values: Float[np.ndarray, "step"]) -> tuple[str | None, float | None, bool]:
    """The rule in words, its threshold, and whether values must stay at or above it (else at or below)."""
    kind, _, what = name.partition(": ")
    if kind in NO_RULE:
        return None, None, True
    if kind in WITH_THRESHOLD:
        level = ROLE.get(what.rpartition(" ")[2], OTHER_ROLES) if kind == "head" else ACCURATE
        return f"stays at {level:g} or above", level, True
    finite = values[np.isfinite(values)]
    if len(finite) < 2 or not np.ptp(finite):
        return None, None, True
    first, last = float(finite[0]), float(finite[-1])
    if abs(last - first) < MOVED * max(abs(first), abs(last)):
        return None, None, True
    middle, rises = (first + last) / 2, last > first
    side = "above" if rises else "below"
    return f"stays at {middle:.3g}, half-way to its last value, or {side}", middle, rises


def curves_of(run: Run, until: int) -> dict[str, Any] | None:
    """Plateau and jump of the logged curves up to a step; None if there are none."""
    rows = [row for row in run.metrics() if row["step"] <= until]
    if not any("test_accuracy" in row for row in rows):
        return None
    facts = read_curves(rows).facts
    return {"plateau": facts["plateau"], "jump": facts["jump"]}


def _beside(step: int | None, curves: Mapping[str, Any] | None) -> str | None:
    jump = curves and curves["jump"]
    if step is None or not jump:
        return None
    return beside(step, jump)


def table_of(formed: Sequence[Mapping[str, Any]], curves: Mapping[str, Any] | None) -> ResultTable:
    """All series with a rule, and the events of the logged curves, by step. Roles never reached are left out."""
    rows: list[tuple[str, str, int | None, str]] = [
        (row["series"], row["rule"], row["step"], row["beside_jump"] or "")
        for row in formed
        if row["rule"] is not None and (row["step"] is not None or not row["series"].startswith("head: "))
    ]
    plateau, jump = (curves["plateau"], curves["jump"]) if curves else (None, None)
    if plateau:
        rows.append(("curves: the plateau ends", "the logged loss starts to fall", plateau["to"], ""))
    if jump:
        rows.append(("curves: the jump", "logged test accuracy reaches 0.5", jump["step"], ""))
    rows.sort(key=lambda row: (row[2] is None, row[2] or 0))
    return ResultTable(
        title="Formation by step",
        columns=("series", "rule", "step", "relative to the jump"),
        rows=tuple((name, rule, "never" if step is None else step, beside) for name, rule, step, beside in rows),
        caption=(
            "The first checkpoint from which on each rule holds up to the last, and whether it is before, during or "
            "after the jump of the logged curves. Ranks and norms, which have no rule, are left out, and so are roles "
            "that a head never has."
        ),
    )
