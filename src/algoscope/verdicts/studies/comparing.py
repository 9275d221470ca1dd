"""Controlled comparisons: the same run with one thing changed, over seeds, beside what was expected of the change."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from algoscope.config import RunConfig, override
from algoscope.core.errors import ConfigError, RunFolderError
from algoscope.core.finding import Finding
from algoscope.recipes.table import RECIPES
from algoscope.runs.paths import runs_directory
from algoscope.runs.run_folder import Run
from algoscope.training.population import train_many
from algoscope.verdicts.certification.kept import kept_or_certified
from algoscope.verdicts.studies.plans import Study, Variant
from algoscope.verdicts.studies.predictions import Measured, compare, late
from algoscope.verdicts.studies.study_panels import answer_panels, step_panels
from algoscope.verdicts.studies.table import STUDIES

Value = TypeVar("Value")
REACHED = 0.99  # share of whole answers right at which a curve counts as having arrived


def study(
    name: str | Study,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Mapping[str, Any] | None = None,
    runs_dir: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Finding:
    """Train every variant of a study with every seed, certify each, and say whether what was expected came true.

    The study is a named one, or a plan of your own. Each member is an ordinary run, `STUDY-VARIANT-s<seed>`; one that
    is whole is not trained again, nor certified where its folder keeps the verdict. `settings` change all of them. A
    member has memorised at the first logged step from which training accuracy is 99 %, and generalised at the first
    evaluation that finds 99 % of the test inputs right; its answers are those of greedy decoding, over every input
    where there are at most 10^8 (else a sample). A member that diverged is named, is missing from all numbers, and
    counts as never having generalised.

    Facts: `measures` (`steps` or `answers`: what the study is about), and `rows`, one for each variant. By seed:
    `memorised` and `generalised` (steps; null: never), `wrong` (inputs, of `checked`), `accuracy`, `loss` (of the last
    training step, nats a position), `by_class` and `by_column` (the share wrong of the inputs of a class, and of all
    inputs in a column of the answer after a right beginning); null where the member diverged, which `diverged`
    explains. `median` (of `generalised`, never counted as later than all; null where that is never), `outcome` beside
    `against` (`sooner`: the median lies before every seed of it; `later`: after every one; `never`: no seed arrived;
    else no clear difference). `predictions` are the statements made before it was run, by the rules of
    `verdicts/studies/predictions.py`: true `by_seed`, with that seed's numbers, and in all (`came_true`), with the
    medians. The row's `came_true`: all of its statements, in all; null where none was made. Panels: `generalised` and
    `memorised` [variant seed] where steps are measured; else shares wrong: `class` [variant class], `column`
    [variant column] and `seed` [variant seed].

    Raises UnknownNameError for a study that there is not, ConfigError without seeds, RunFolderError where a member's
    folder holds another config, and what `train` raises, but for a divergence.
    """
    if not seeds:
        raise ConfigError("a study needs at least one seed, such as --seeds 0..2")
    plan: Study = STUDIES.load(name)() if isinstance(name, str) else name
    configs = _members(plan, seeds, settings or {})
    for member, config in configs.items():
        _refuse_another(runs_directory(runs_dir) / member, config)
    population = train_many(configs, runs_dir=runs_dir, resume=True, device=device, progress=progress)
    measured = {member: measure(run, progress) for member, run in population.runs.items()}
    of_variant = {
        variant.name: [measured.get(_name(plan, variant, seed)) for seed in seeds] for variant in plan.variants
    }
    rows = [_row(variant, of_variant) for variant in plan.variants]
    for variant, row in zip(plan.variants, rows, strict=True):
        named = {seed: _name(plan, variant, seed) for seed in seeds}
        row["diverged"] = {str(s): population.failed[name] for s, name in named.items() if name in population.failed}
    return Finding(
        kind="study",
        claim=_claim(plan, rows),
        facts={
            "study": plan.name,
            "question": plan.question,
            "recipe": plan.recipe,
            "measures": plan.measures,
            "seeds": list(seeds),
            "rows": rows,
        },
        panels=step_panels(rows, seeds) if plan.measures == "steps" else answer_panels(rows, seeds),
        provenance={"recipe": plan.recipe, "seeds": list(seeds)},
    )


def _name(plan: Study, variant: Variant, seed: int) -> str:
    return f"{plan.name}-{variant.name}-s{seed}"


def _members(plan: Study, seeds: Sequence[int], settings: Mapping[str, Any]) -> dict[str, RunConfig]:
    """The config of every member, by the name of its run."""
    recipe = RECIPES.load(plan.recipe)()
    return {
        _name(plan, variant, seed): override(recipe, {**plan.common, **variant.settings, **settings, "seed": seed})
        for seed in seeds
        for variant in plan.variants
    }


def _refuse_another(path: Path, config: RunConfig) -> None:
    if (path / "config.json").exists() and Run(path).config != config:
        raise RunFolderError(
            f"run {path} has another config than this study gives it; use another --runs-dir, or "
            f"`algoscope runs rm {path.name}`"
        )


# ---------------------------------------------------------------------- one member


def measure(run: Run, progress: bool = False) -> Measured:
    """What became of a whole run: when it arrived, and what it gets wrong, by a verdict that its folder then keeps."""
    verdict = kept_or_certified(run, by=run.config.task.class_schemes[0], progress=progress)
    checked = verdict["domain"]["checked"]
    return Measured(
        **_arrivals(run),
        loss=run.summary.loss,
        checked=checked,
        wrong=verdict["wrong"],
        accuracy=verdict["accuracy"],
        by_class={row["class"]: row["wrong"] / row["checked"] for row in verdict["by_class"] if row["checked"]},
        by_column={row["meaning"]: row["wrong"] / checked for row in verdict["by_position"]},
    )


def _arrivals(run: Run) -> dict[str, int | None]:
    """The steps at which training and test accuracy first reached 99 %."""
    found = {}
    for what, column in (("memorised", "train_accuracy"), ("generalised", "test_accuracy")):
        found[what] = next((row["step"] for row in run.metrics() if row.get(column, 0.0) >= REACHED), None)
    return found


# ---------------------------------------------------------------------- one variant


def _row(variant: Variant, members: Mapping[str, Sequence[Measured | None]]) -> dict[str, Any]:
    """What `study` says of a variant."""
    own, control = members[variant.name], members[variant.against]
    there, others = ([member for member in some if member is not None] for some in (own, control))
    arrived, against = (_arrived(members[name]) for name in (variant.name, variant.against))
    outcome = "no clear difference" if variant.name == variant.against else compare(arrived, against)
    predictions = [
        {
            "says": prediction.says,
            "by_seed": [None if member is None else prediction.holds([member], others) for member in own],
            "came_true": prediction.holds(there, others),
        }
        for prediction in variant.expected
    ]
    return {
        "variant": variant.name,
        "meaning": variant.meaning,
        "settings": dict(variant.settings),
        "memorised": [None if member is None else member.memorised for member in own],
        "generalised": arrived,
        "median": _finite(float(np.median([late(step) for step in arrived]))),
        "checked": max((member.checked for member in there), default=None),
        "wrong": _each(own, lambda member: member.wrong),
        "accuracy": _each(own, lambda member: member.accuracy),
        "loss": _each(own, lambda member: member.loss),
        "by_class": _by_name(_each(own, lambda member: member.by_class)),
        "by_column": _by_name(_each(own, lambda member: member.by_column)),
        "against": variant.against,
        "outcome": outcome,
        "expected": "; ".join(prediction.says for prediction in variant.expected) or None,
        "predictions": predictions,
        "came_true": all(prediction["came_true"] for prediction in predictions) if predictions else None,
    }


def _arrived(members: Sequence[Measured | None]) -> list[int | None]:
    return [None if member is None else member.generalised for member in members]


def _each(members: Sequence[Measured | None], read: Callable[[Measured], Value]) -> list[Value | None]:
    return [None if member is None else read(member) for member in members]


def _by_name(members: Sequence[Mapping[str, float] | None]) -> dict[str, list[float | None]]:
    """For each class or column that a member has, the shares by seed."""
    names = dict.fromkeys(name for member in members if member is not None for name in member)
    return {name: [None if member is None else member.get(name) for member in members] for name in names}


def _finite(step: float) -> float | None:
    return step if np.isfinite(step) else None


def _claim(plan: Study, rows: Sequence[Mapping[str, Any]]) -> str:
    if plan.measures == "steps":
        said = [(row["variant"], "never" if row["median"] is None else f"{row['median']:,.0f}") for row in rows]
        what = "Median steps"
    else:
        counts = {row["variant"]: [count for count in row["wrong"] if count is not None] for row in rows}
        said = [(name, f"{np.median(wrong):,.0f}" if wrong else "diverged") for name, wrong in counts.items()]
        what = f"Median wrong of {max(row['checked'] or 0 for row in rows):,}"
    judged = [row["came_true"] for row in rows if row["came_true"] is not None]
    said_in_words = ", ".join(" ".join(words) for words in said)
    return f"{plan.question} {what}: {said_in_words}; {sum(judged)} of {len(judged)} expectations came true"
