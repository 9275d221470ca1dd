"""Controlled comparisons: a recipe with one change at a time, over seeds, judged against predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from algoscope.config import RunConfig, override
from algoscope.core.ambient import settled
from algoscope.core.arguments import Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError
from algoscope.core.finding import Finding, ResultTable
from algoscope.core.panel import Panel
from algoscope.core.progress import Bar, Watcher
from algoscope.recipes.table import RECIPES
from algoscope.runs.paths import new_folder
from algoscope.runs.run_folder import Run
from algoscope.training.population import train_many
from algoscope.verdicts.studies.certified import CertifiedAnswers, StepsToGeneralise
from algoscope.verdicts.studies.plans import Study, Variant
from algoscope.verdicts.studies.predictions import Prediction
from algoscope.verdicts.studies.table import STUDIES
from algoscope.verdicts.studies.widths import AccuracyByWidth

ABOUT = (
    "Every variant makes one change to the recipe and is trained with every seed; each member is an ordinary run. "
    "Predictions were written down before the study was run. They are judged by the medians over the seeds; the "
    "column `seeds` counts the seeds that agree individually."
)


@runtime_checkable
class Measuring(Protocol):
    """How the members of a study are measured and summarised. `None` is a member that diverged."""

    kind: str  # of the finding
    about: str

    def __init__(self, plan: Study) -> None: ...

    def measure(self, run: Run) -> Any:
        """The results of a finished run; costly ones are stored in its folder."""

    def covers(self, prediction: Prediction[Any]) -> bool:
        """Whether the prediction is about a measured quantity."""

    def row(self, members: Sequence[Any], control: Sequence[Any]) -> dict[str, Any]:
        """The facts of a variant, by seed and over the seeds."""

    def facts(self, config: RunConfig) -> dict[str, Any]:
        """Facts about the study as a whole; the config is that of one member."""

    def claim(self, facts: Mapping[str, Any]) -> str:
        """The claim, after the question."""

    def panels(self, facts: Mapping[str, Any]) -> tuple[Panel, ...]: ...

    def tables(self, facts: Mapping[str, Any]) -> tuple[ResultTable, ...]: ...


MEASURES: Mapping[str, type[Measuring]] = {
    "steps": StepsToGeneralise,
    "answers": CertifiedAnswers,
    "widths": AccuracyByWidth,
}


@checked_arguments
@settled()
def study(
    name: str | Study,
    *,
    seeds: Sequence[Seed] = (0, 1, 2),
    settings: Mapping[str, Any] | None = None,
    runs_dir: Folder = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Finding:
    """Train every variant of a study with every seed, measure the members, and judge the predictions.

    Each member is an ordinary run, `STUDY-VARIANT-s<seed>`; a finished one is not trained again, and stored
    measurements are reused. A diverged member is reported and left out of all numbers.

    Args:
        name: a study by name, or a `Study`.
        seeds: the seeds with which every variant is trained.
        settings: fields of the config that change in all members, by dotted name.
        runs_dir: where the runs are; by default `$ALGOSCOPE_RUNS`, else `./runs`.
        device: where members are trained.
        progress: show bars on standard error.
    Returns:
        A finding with `measures`, `failed` (members that diverged, and why) and `rows`, one for each variant:
        `variant`, `meaning`, `settings`, `diverged` (by seed), `predictions` {says, by_seed, came_true}, `came_true`
        (all of its predictions; null where there is none), and what the study measures. Lists are by seed; null is a
        member that diverged, or a step that never came.

        `steps` and `answers`: `memorised` and `generalised` (steps), their `median`, the `outcome` beside `against`
        (sooner, later, never, no clear difference, by `predictions.compare`), `wrong` of `checked`
        inputs, `accuracy`, the training `loss` (nats a position), `by_class` and `by_column` (shares wrong). Panels
        `generalised` and `memorised` [variant seed] (steps); or `class` [variant class], `column` [variant column] and
        `seed` [variant seed] (shares wrong: 0 none, 1 all).

        `widths` (the study `length`, of kind `length`): `widths`, `trained` (the shortest and the longest width),
        `accuracy` [seed width], `median` and `worst` over the seeds, `digits` (the median share with all digits right,
        with or without a right end), `rest` (the median share right after the first digit, given that digit). Panels of
        those four [variant width] (shares right: 0 none, 1 all).
    Raises:
        UnknownNameError: for an unknown study.
        ConfigError: without seeds, and for settings that the recipe does not have.
        RunFolderError: where a member's folder holds another config, or another process is training it.

    Example:
        >>> import algoscope as ag
        >>> from algoscope.verdicts.studies.plans import Study, Variant
        >>> plan = Study("small", "Does width help?", "add3", {"n_digits": 1, "steps": 2, "data.n_test": 4}, (
        ...     Variant("control", "width 32"), Variant("narrow", "width 8", {"d_model": 8})), "answers")
        >>> from tempfile import mkdtemp
        >>> finding = ag.study(plan, seeds=[0], runs_dir=mkdtemp(), progress=False)
        >>> [(row["variant"], row["checked"]) for row in finding["rows"]]
        [('control', 100), ('narrow', 100)]
    """
    if not seeds:
        raise ConfigError("a study needs at least one seed, such as --seeds 0..2")
    plan: Study = STUDIES.load(name)() if isinstance(name, str) else name
    measuring = MEASURES[plan.measures](plan)
    configs = _members(plan, seeds, settings or {})
    for member in configs:
        Run(new_folder(member, runs_dir)).refuse_if_training()
    population = train_many(configs, runs_dir=runs_dir, resume=True, device=device, progress=progress)
    measured: dict[str, Any] = {}
    with Bar(plan.name, "members") if progress else Watcher() as bar:
        for member, run in population.runs.items():
            measured[member] = measuring.measure(run)
            bar.advance(len(measured), len(population.runs), member)
    return _finding(plan, measuring, seeds, configs, measured, population.failed)


def _finding(
    plan: Study,
    measuring: Measuring,
    seeds: Sequence[int],
    configs: Mapping[str, RunConfig],
    measured: Mapping[str, Any],
    failed: Mapping[str, str],
) -> Finding:
    by_variant = {v.name: [measured.get(_name(plan, v, seed)) for seed in seeds] for v in plan.variants}
    diverged = {
        v.name: {str(seed): failed[name] for seed in seeds if (name := _name(plan, v, seed)) in failed}
        for v in plan.variants
    }
    facts: dict[str, Any] = {
        "study": plan.name,
        "question": plan.question,
        "recipe": plan.recipe,
        "measures": plan.measures,
        "seeds": list(seeds),
        **measuring.facts(next(iter(configs.values()))),
        "failed": dict(failed),
        "rows": [_row(v, measuring, by_variant) | {"diverged": diverged[v.name]} for v in plan.variants],
    }
    return Finding(
        kind=measuring.kind,
        claim=f"{plan.question} {measuring.claim(facts)}",
        facts=facts,
        panels=measuring.panels(facts),
        provenance={"recipe": plan.recipe, "seeds": list(seeds)},
        about=f"{ABOUT} {measuring.about}",
        tables=(*measuring.tables(facts), *_diverged(facts["rows"])),
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


def _row(variant: Variant, measuring: Measuring, by_variant: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """The facts of a variant, and its predictions."""
    members, control = by_variant[variant.name], by_variant[variant.against]
    whole, others = ([member for member in some if member is not None] for some in (members, control))
    predictions = [
        {
            "says": prediction.says,
            **prediction.numbers(whole),
            "by_seed": [None if member is None else prediction.holds([member], others) for member in members],
            "came_true": prediction.holds(whole, others),
        }
        for prediction in variant.expected
        if measuring.covers(prediction)
    ]
    return {
        "variant": variant.name,
        "meaning": variant.meaning,
        "settings": dict(variant.settings),
        **measuring.row(members, control),
        "against": variant.against,
        "expected": "; ".join(prediction["says"] for prediction in predictions) or None,
        "predictions": predictions,
        "came_true": all(prediction["came_true"] for prediction in predictions) if predictions else None,
    }


def _diverged(rows: Sequence[Mapping[str, Any]]) -> list[ResultTable]:
    cells = tuple((row["variant"], seed, message) for row in rows for seed, message in row["diverged"].items())
    return [ResultTable("diverged", ("variant", "seed", "why"), cells)] if cells else []
