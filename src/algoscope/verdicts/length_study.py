"""The study of length: trained on short sums, asked longer ones, with one way of numbering positions beside another.

What is expected comes from the literature, with one layer or few: learned positions fail beyond the trained widths (Lee
et al., arXiv 2307.03381), positions by digit carry far (McLeish et al., 2405.17399; Cho et al., 2405.20671). Input
injection and looped layers, with which the second of these goes furthest, are not part of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algoscope.config import override
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding
from algoscope.core.panel import Axis, Mark, Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.core.threads import threads
from algoscope.data import seeded
from algoscope.subjects.native import NativeSubject
from algoscope.training.population import train_many
from algoscope.training.runs import Run
from algoscope.training.studies import Study
from algoscope.training.table import RECIPES, STUDIES
from algoscope.training.train import right

WIDTHS = (1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
FRESH = 1_000  # sums of each width
FRESH_SEED = 2025
TOKENS = 2**13  # read at once


@dataclass(frozen=True)
class Prediction:
    """The median accuracy at a width is said to be at least, or at most, a share."""

    width: int
    least: float = 0.0
    most: float = 1.0

    @property
    def text(self) -> str:
        return f"> {self.least}" if self.least else f"< {self.most}"

    def holds(self, accuracy: float) -> bool:
        return accuracy > self.least if self.least else accuracy < self.most


PREDICTIONS: Mapping[str, tuple[Prediction, ...]] = {
    "learned": (Prediction(30, most=0.05), Prediction(60, most=0.01), Prediction(100, most=0.01)),
    "coupled": (Prediction(30, least=0.99), Prediction(60, least=0.95), Prediction(100, least=0.9)),
    "abacus": (Prediction(30, least=0.99), Prediction(60, least=0.95), Prediction(100, least=0.9)),
}


def length_study(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Mapping[str, Any] | None = None,
    widths: Sequence[int] = WIDTHS,
    fresh: int = FRESH,
    runs_dir: str | Path | None = None,
    progress: bool = True,
) -> Finding:
    """Train every variant of the study `length` with every seed; how many of `fresh` sums of each width come out right?

    Members are ordinary runs, `length-VARIANT-s<seed>`; one that is whole already is not trained again. `settings`
    change all of them. An answer is right where all its digits and the end-of-sequence are. Sums are uniform draws, the
    same for all members; of one digit there are only 100, all of them trained on. Facts: `widths`, `trained` (the
    shortest and the longest width), `failed` (members that diverged, and why), `rows`, one for each variant:
    `accuracy` [seed width], `median` and `worst` [width] over the seeds, `predictions` with `width`, `says`, `median`
    and `came_true`. Panels `median` and `worst` [variant width].

    Raises ConfigError without seeds, for a width that a member's positions do not reach, and what `train_many` raises.
    """
    if not seeds:
        raise ConfigError("a study needs at least one seed, such as --seeds 0..2")
    plan: Study = STUDIES.load("length")()
    base = RECIPES.load(plan.recipe)()
    configs = {
        f"{plan.name}-{variant.name}-s{seed}": override(
            base, {**plan.common, **variant.settings, **(settings or {}), "seed": seed}
        )
        for seed in seeds
        for variant in plan.variants
    }
    population = train_many(configs, runs_dir=runs_dir, resume=True, progress=progress)
    shares: dict[str, list[float]] = {}
    with threads(1), Bar("length", "members") if progress else Watcher() as bar:
        for name, run in population.runs.items():
            shares[name] = accuracy_by_width(run, widths, fresh)
            bar.advance(len(shares), len(population.runs), name)
    members = {v.name: [f"{plan.name}-{v.name}-s{seed}" for seed in seeds] for v in plan.variants}
    rows = [
        _row(variant.name, variant.meaning, [shares[name] for name in members[variant.name] if name in shares], widths)
        for variant in plan.variants
    ]
    config = next(iter(configs.values()))
    longest = config.task.width or 0
    trained = [config.data.shortest or longest, longest]
    return Finding(
        kind="length",
        claim=_claim(plan, rows, trained),
        facts={
            "study": plan.name,
            "question": plan.question,
            "recipe": plan.recipe,
            "seeds": list(seeds),
            "widths": list(widths),
            "trained": trained,
            "fresh": fresh,
            "failed": dict(population.failed),
            "rows": rows,
        },
        panels=tuple(_panel(what, rows, widths, longest) for what in ("median", "worst")),
        provenance={"recipe": plan.recipe, "seeds": list(seeds)},
    )


def accuracy_by_width(run: Run, widths: Sequence[int] = WIDTHS, fresh: int = FRESH) -> list[float]:
    """The share of `fresh` sums that the run answers right, at each width. Kept in the run's folder."""
    asked = {"widths": list(widths), "fresh": fresh}
    sha = run.summary["weights_sha256"]
    kept = run.finding("widths", sha)
    if kept is not None and kept["asked"] == asked:
        found: list[float] = kept["accuracy"]
        return found
    shares = [share_right(run, width, fresh) for width in widths]
    finding = Finding(
        kind="widths",
        claim=f"right at {widths[-1]} digits: {shares[-1]:.1%} of {fresh:,}",
        facts={"asked": asked, "accuracy": shares},
        provenance={"subject": f"run:{run.name}", "weights_sha256": sha},
    )
    run.keep(finding)
    return shares


def share_right(run: Run, width: int, fresh: int) -> float:
    """The share of `fresh` uniform sums of one width that are answered right."""
    task = run.config.task.of_width(width)
    subject = NativeSubject(f"run:{run.name}?n_digits={width}", run.model(), task)
    tokens = task.sample(fresh, seeded(torch.device("cpu"), FRESH_SEED, width))
    portions = tokens.split(max(1, TOKENS // task.n_ctx))
    with torch.no_grad():
        n_right = sum(int(right(task, subject.answer_logits(part), part).sum()) for part in portions)
    return n_right / fresh


def _row(variant: str, meaning: str, accuracy: list[list[float]], widths: Sequence[int]) -> dict[str, Any]:
    """One variant; where no member is whole, its accuracies are null."""
    table = np.array(accuracy) if accuracy else np.full((1, len(widths)), np.nan)
    median, worst = np.median(table, axis=0), table.min(axis=0)
    predictions = [
        {
            "width": prediction.width,
            "says": prediction.text,
            "median": _number(median[list(widths).index(prediction.width)]),
            "came_true": prediction.holds(float(median[list(widths).index(prediction.width)])),
        }
        for prediction in PREDICTIONS.get(variant, ())
        if prediction.width in widths
    ]
    return {
        "variant": variant,
        "meaning": meaning,
        "accuracy": accuracy,
        "median": list(map(_number, median)),
        "worst": list(map(_number, worst)),
        "predictions": predictions,
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _claim(plan: Study, rows: Sequence[Mapping[str, Any]], trained: Sequence[int]) -> str:
    judged = [prediction["came_true"] for row in rows for prediction in row["predictions"]]
    return (
        f"{plan.question} Trained on {trained[0]} to {trained[1]} digits; "
        f"{sum(judged)} of {len(judged)} predictions came true"
    )


def _panel(what: str, rows: Sequence[Mapping[str, Any]], widths: Sequence[int], longest: int) -> Panel:
    values = np.array([[np.nan if share is None else share for share in row[what]] for row in rows], dtype=float)
    over = {"median": "median over seeds", "worst": "worst seed"}[what]
    return Panel(
        name=what,
        title=f"sums answered right, {over}",
        axes=(Axis("variant", tuple(row["variant"] for row in rows)), Axis("width", tuple(widths), "digits")),
        values=values,
        unit="share of sums right",
        zero="every sum wrong",
        one="every sum right",
        view="lines",
        scale="unit",
        beside=what,
        marks=(Mark(longest, "longest trained"),),
    )
