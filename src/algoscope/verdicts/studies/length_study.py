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
from algoscope.networks.evaluation import tokens_right
from algoscope.recipes.table import RECIPES
from algoscope.runs.run_folder import Run
from algoscope.subjects.subject import Subject
from algoscope.training.population import train_many
from algoscope.verdicts.studies.plans import Study
from algoscope.verdicts.studies.table import STUDIES

WIDTHS = (1, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100)
FRESH = 1_000  # sums of each width
FRESH_SEED = 2025
TOKENS = 2**13  # read at once
MEASURES = {"whole": slice(None), "digits": slice(0, -1), "rest": slice(1, None)}  # tokens of the answer
SHOWN = {
    "median": "sums answered right, median over seeds",
    "worst": "sums answered right, worst seed",
    "digits": "all digits right, wherever it ends, median",
    "rest": "right after the first digit, median",
}


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
    device: str = "cpu",
    progress: bool = True,
) -> Finding:
    """Train every variant of the study `length` with every seed; how many of `fresh` sums of each width come out right?

    Members are ordinary runs, `length-VARIANT-s<seed>`; one that is whole already is not trained again. `settings`
    change all of them. An answer is right where all its digits and the end-of-sequence are. Sums are uniform draws, the
    same for all members; of one digit there are only 100, all of them trained on. Facts: `widths`, `trained` (the
    shortest and the longest width), `failed` (members that diverged, and why), `rows`, one for each variant:
    `accuracy` [seed width], `median` and `worst` [width] over the seeds, `digits` [width] (the median share whose
    digits are right, wherever the model ends), `rest` [width] (that of answers right after the first digit, given it),
    `predictions` with `width`, `says`, `median` and `came_true`. Panels `median`, `worst`, `digits` and `rest`
    [variant width].

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
    population = train_many(configs, runs_dir=runs_dir, resume=True, device=device, progress=progress)
    shares: dict[str, dict[str, list[float]]] = {}
    with threads(1), Bar("length", "members") if progress else Watcher() as bar:
        for name, run in population.runs.items():
            shares[name] = shares_by_width(run, widths, fresh)
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
        panels=tuple(_panel(what, rows, widths, longest) for what in SHOWN),
        provenance={"recipe": plan.recipe, "seeds": list(seeds)},
    )


def shares_by_width(run: Run, widths: Sequence[int] = WIDTHS, fresh: int = FRESH) -> dict[str, list[float]]:
    """Of `fresh` sums, at each width: `whole`, the share answered right; `digits`, the share whose digits are right,
    wherever the model ends; `rest`, the share right after the first digit, given it. Kept in the run's folder.
    """
    asked = {"widths": list(widths), "fresh": fresh}
    sha = run.summary.weights_sha256
    kept = run.finding("widths", sha)
    if kept is not None and kept["asked"] == asked:
        found: dict[str, list[float]] = kept["shares"]
        return found
    measured = [shares_right(run, width, fresh) for width in widths]
    shares = {what: [at_width[what] for at_width in measured] for what in MEASURES}
    finding = Finding(
        kind="widths",
        claim=f"right at {widths[-1]} digits: {shares['whole'][-1]:.1%} of {fresh:,}",
        facts={"asked": asked, "shares": shares},
        provenance={"subject": f"run:{run.name}", "weights_sha256": sha},
    )
    run.keep(finding)
    return shares


def shares_right(run: Run, width: int, fresh: int) -> dict[str, float]:
    """What `shares_by_width` says, at one width."""
    task = run.config.task.of_width(width)
    subject = Subject(f"run:{run.name}?n_digits={width}", run.model(), task)
    tokens = task.sample(fresh, seeded(torch.device("cpu"), FRESH_SEED, width))
    n_right = dict.fromkeys(MEASURES, 0)
    with torch.no_grad():
        for part in tokens.split(max(1, TOKENS // task.n_ctx)):
            hit = tokens_right(subject.answer_logits(part), part[:, task.prompt_length :])
            for what, read in MEASURES.items():
                n_right[what] += int(hit[:, read].all(dim=1).sum())
    return {what: count / fresh for what, count in n_right.items()}


def _row(variant: str, meaning: str, members: list[dict[str, list[float]]], widths: Sequence[int]) -> dict[str, Any]:
    """One variant; where no member is whole, its shares are null."""
    nobody = dict.fromkeys(MEASURES, [np.nan] * len(widths))
    table = {what: np.array([member[what] for member in members or [nobody]]) for what in MEASURES}
    median, worst = np.median(table["whole"], axis=0), table["whole"].min(axis=0)
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
        "accuracy": [member["whole"] for member in members],
        "median": list(map(_number, median)),
        "worst": list(map(_number, worst)),
        "digits": list(map(_number, np.median(table["digits"], axis=0))),
        "rest": list(map(_number, np.median(table["rest"], axis=0))),
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
    return Panel(
        name=what,
        title=SHOWN[what],
        axes=(Axis("variant", tuple(row["variant"] for row in rows)), Axis("width", tuple(widths), "digits")),
        values=values,
        unit="share of sums right",
        zero="every sum wrong",
        one="every sum right",
        view="lines",
        scale="unit",
        beside="width",
        marks=(Mark(longest, "longest trained"),),
    )
