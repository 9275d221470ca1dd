"""Controlled comparisons: the same run with one thing changed, over seeds, beside what was expected of the change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Panel
from algoscope.training.runs import Run
from algoscope.training.studies import Outcome, Study
from algoscope.training.table import STUDIES
from algoscope.training.train import train

REACHED = 0.99  # share of whole answers right at which a curve counts as having arrived


def study(
    name: str,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    progress: bool = True,
) -> Finding:
    """Train every variant of a study with every seed: when did each arrive, and did what was expected come true?

    Each member is an ordinary run, `STUDY-VARIANT-s<seed>`; one that is whole already is not trained again. `settings`
    change all of them. A member has memorised at the first logged step from which training accuracy is 99 %, and
    generalised at the first evaluation that finds 99 % of the test inputs right. Facts: `rows`, one for each variant:
    `memorised` and `generalised` (steps by seed; null: never), `median` (of `generalised`, never counted as later than
    all; null where that is never), `outcome` beside `against` (`sooner`: the median lies before every seed of it;
    `later`: after every one; `never`: no seed arrived; else no clear difference), `expected`, `came_true`. Panels
    `generalised` and `memorised` [variant seed]; NaN: never.

    Raises UnknownNameError for a study that there is not, ConfigError without seeds, and what `train` raises.
    """
    if not seeds:
        raise ConfigError("a study needs at least one seed, such as --seeds 0..2")
    plan: Study = STUDIES.load(name)()
    runs = {
        variant.name: [
            train(
                plan.recipe,
                seed=seed,
                name=f"{plan.name}-{variant.name}-s{seed}",
                settings={**plan.common, **variant.settings, **(settings or {})},
                runs_dir=runs_dir,
                resume=True,
                progress=progress,
            )
            for seed in seeds
        ]
        for variant in plan.variants
    }
    rows = _rows(plan, {name: [_arrivals(run) for run in members] for name, members in runs.items()})
    return Finding(
        kind="study",
        claim=_claim(plan, rows),
        facts={
            "study": plan.name,
            "question": plan.question,
            "recipe": plan.recipe,
            "seeds": list(seeds),
            "rows": rows,
        },
        panels=tuple(_panel(what, rows, seeds) for what in ("generalised", "memorised")),
        provenance={"recipe": plan.recipe, "seeds": list(seeds)},
    )


def _arrivals(run: Run) -> dict[str, int | None]:
    """The steps at which training and test accuracy first reached 99 %."""
    found = {}
    for what, column in (("memorised", "train_accuracy"), ("generalised", "test_accuracy")):
        found[what] = next((row["step"] for row in run.metrics() if row.get(column, 0.0) >= REACHED), None)
    return found


def _rows(plan: Study, arrivals: Mapping[str, Sequence[Mapping[str, int | None]]]) -> list[dict[str, Any]]:
    rows = []
    for variant in plan.variants:
        arrived = [member["generalised"] for member in arrivals[variant.name]]
        outcome = compare(arrived, [member["generalised"] for member in arrivals[variant.against]])
        outcome = "no clear difference" if variant.name == variant.against else outcome
        rows.append(
            {
                "variant": variant.name,
                "meaning": variant.meaning,
                "settings": dict(variant.settings),
                "memorised": [member["memorised"] for member in arrivals[variant.name]],
                "generalised": arrived,
                "median": _finite(float(np.median([_late(step) for step in arrived]))),
                "against": variant.against,
                "outcome": outcome,
                "expected": variant.expected,
                "came_true": None if variant.expected is None else outcome == variant.expected,
            }
        )
    return rows


def compare(arrived: Sequence[int | None], control: Sequence[int | None]) -> Outcome:
    """How arrivals lie beside those of the control, by the rule that `study` states."""
    if all(step is None for step in arrived):
        return "never"
    middle, others = float(np.median([_late(step) for step in arrived])), [_late(step) for step in control]
    if middle < min(others):
        return "sooner"
    return "later" if middle > max(others) else "no clear difference"


def _late(step: int | None) -> float:
    return float("inf") if step is None else float(step)


def _finite(step: float) -> float | None:
    return step if np.isfinite(step) else None


def _claim(plan: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    said = [f"{row['variant']} {'never' if row['median'] is None else format(row['median'], ',.0f')}" for row in rows]
    judged = [row["came_true"] for row in rows if row["came_true"] is not None]
    return f"{plan.question} Median steps: {', '.join(said)}; {sum(judged)} of {len(judged)} expectations came true"


def _panel(what: str, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> Panel:
    values = np.array([[np.nan if step is None else step for step in row[what]] for row in rows], dtype=float)
    side = {"generalised": "test", "memorised": "training"}[what]
    return Panel(
        name=what,
        title=f"steps until {side} accuracy reaches 99 %",
        axes=(Axis("variant", tuple(row["variant"] for row in rows)), Axis("seed", tuple(seeds))),
        values=values,
        unit="steps",
        zero="at once",
        view="heatmap",
        scale="log",
        words=np.array([["never" if np.isnan(v) else f"{v:,.0f}" for v in row] for row in values], dtype=object),
    )
