"""The census: how many distinct solutions the seeds of one recipe have, their heads, and early predictors of them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from algoscope.core.ambient import settled
from algoscope.core.arguments import Count, Folder, Seed, checked_arguments
from algoscope.core.errors import ConfigError, DivergedError, RunFolderError
from algoscope.core.finding import Finding
from algoscope.core.progress import Bar, Watcher
from algoscope.data import seeded
from algoscope.lenses.heads.head_roles import roles
from algoscope.networks.head_permutations import permuted
from algoscope.recipes.table import RECIPES
from algoscope.runs.learning_curves import read_curves
from algoscope.runs.paths import new_folder, runs_directory
from algoscope.runs.reading import first_difference
from algoscope.runs.run_folder import Run
from algoscope.subjects.opening import open_subject
from algoscope.tasks.base import Tokens
from algoscope.training.population import train_many
from algoscope.verdicts.census.census_panels import census_panels, census_tables
from algoscope.verdicts.census.early_features import deciding, early_features
from algoscope.verdicts.census.head_matching import Profile, differences, distance, distances, matched, profile_of
from algoscope.verdicts.census.outcome_prediction import Question, predict_outcome
from algoscope.verdicts.census.solution_clusters import THRESHOLDS, count_by_threshold, medoid, solutions, steadiest
from algoscope.verdicts.certification.certify import certify
from algoscope.verdicts.certification.kept import kept_or_certified

EARLY = range(1, 65)  # the early steps
ENOUGH = 8  # fewest runs for a prediction
OF_A_KIND = 3  # fewest runs of a solution that is predicted
SAME = 0.01  # largest distance of a permuted copy: rounding
ABOUT = (
    "Heads have no common numbering across seeds, so they are matched by their behaviour on the same random inputs: "
    "their attention from the answer positions, weighted by its effect on the answer, and the answer tokens that "
    "change under mean ablation. The distance of two runs is the mean difference of their matched components: 0 = "
    "identical behaviour on every input, 1 = nothing in common. Runs whose pairwise distances are all at most the "
    "threshold form one solution. Three controls go with it: copies with permuted heads and "
    "neurons compute the same and must be at no distance, must not add a solution, and untrained models show how far "
    "apart models without a common task are. Whether numbers of the first 64 training steps predict the outcome is "
    "judged by p-values corrected for their number, and by the error on runs left out, beside a baseline that ignores "
    "them."
)


@checked_arguments
@settled()
def census(
    runs: Sequence[str | Path | Run],
    *,
    seeds: Sequence[Seed] = (),
    threshold: float = 0.1,
    n_inputs: Count = 256,
    sample: Count | None = None,
    runs_dir: Folder = None,
    progress: bool = False,
) -> Finding:
    """Compare runs of one config that differ in their seed: outcomes, heads matched across seeds, the number of
    distinct solutions, and whether early features predict them.

    The distance of two models compares their components on the same random inputs (`head_matching.distance`: 0 =
    identical on every input, 1 = nothing in common), with heads matched within their layers by optimal assignment. A
    solution is a group of runs whose pairwise distances are all at most `threshold`.

    Args:
        runs: runs or their names; the name of a recipe means all its runs `RECIPE-s<seed>`.
        seeds: seeds of one recipe; missing runs are trained first.
        threshold: the largest distance within one solution.
        n_inputs: how many random inputs the models are compared on.
        sample: certify this many random inputs of each run; by default as `certify` does, reusing stored verdicts.
        runs_dir: where the runs are; by default `$ALGOSCOPE_RUNS`, else `./runs`.
        progress: show a bar on standard error.
    Returns:
        A finding with `runs`, by solution, a row each {run, seed, wrong, jump, loss, solution, from_typical, heads}.
        `from_typical` is the distance from the typical run (the one with the smallest summed distance); `heads`, in the
        order of the typical run's heads, are {slot, name, role, score, effects, deciding, from_typical}: `effects` are
        the shares of answers that change under mean ablation of the head, `deciding` its mean attention to the prompt
        tokens that determine the answer token (in a sum, the digits of its column), both by answer token. `solutions`
        (how many), `by_threshold`, `steadiest` (the number that is constant over the widest range of thresholds),
        `in_any_layer` (how many where heads may be matched across layers). `controls`: `permuted`, the largest distance
        of a run from its own copy with permuted heads and neurons; `with_copies`, the number of solutions with those
        copies among the runs; `untrained`, the median distance from the models at step 0. `holds`: the copies have the
        same solutions as their originals. `predicted`: for the `jump` and the `solution` the result of
        `predict_outcome` on features of the checkpoints at steps 1 to 64, all before the first jump, or the reason for
        not testing.
    Raises:
        ConfigError: for fewer than two runs, for configs that differ in more than the seed, for seeds without a recipe.
        RunFolderError: for a missing or unfinished run, and for one that another process is training.
        DivergedError: for seeds whose runs failed.

    Example:
        >>> import algoscope as ag
        >>> from tempfile import mkdtemp
        >>> folder, tiny = mkdtemp(), {"n_digits": 1, "steps": 2, "data.n_test": 4}
        >>> for seed in (0, 1):
        ...     run = ag.train("add3", seed=seed, settings=tiny, runs_dir=folder, progress=False)
        >>> finding = ag.census(["add3"], n_inputs=8, runs_dir=folder)
        >>> [row["seed"] for row in finding["runs"]], finding["holds"]
        ([0, 1], True)
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold is {threshold}: distances lie between 0 and 1, so give a number between them")
    members = _members(runs, seeds, runs_directory(runs_dir), progress)
    return _compared(members, threshold, n_inputs, sample, progress)


def _compared(members: Sequence[Run], threshold: float, n_inputs: int, sample: int | None, progress: bool) -> Finding:
    task = members[0].config.task
    tokens, decides = task.sample(n_inputs, seeded(torch.device("cpu"), 0)), deciding(task)
    rows, profiles, copies = _measured(members, tokens, sample, progress)
    apart = distances(profiles)
    labels = solutions(apart, threshold)
    typical = medoid(apart, np.arange(len(members)))
    for i, row in enumerate(rows):
        row |= {"solution": int(labels[i]), "from_typical": float(apart[i, typical])}
        row["heads"] = _heads(members[i], profiles[i], profiles[typical], decides)
    order = np.lexsort((apart[typical], labels))
    controls = _controls(members, profiles, copies, tokens, threshold)
    facts: dict[str, Any] = {
        "recipe": members[0].config.recipe,
        "runs": [rows[i] for i in order],
        "typical": members[typical].name,
        "solutions": int(labels.max()),
        "threshold": threshold,
        "by_threshold": count_by_threshold(apart),
        "steadiest": steadiest(apart),
        "in_any_layer": int(solutions(distances(profiles, within_layers=False), threshold).max()),
        "controls": controls,
        "holds": controls["permuted"] <= SAME and controls["with_copies"] == int(labels.max()),
        "predicted": _predicted(members, rows, decides),
        "inputs": n_inputs,
    }
    return Finding(
        kind="census",
        claim=_claim(facts),
        facts=facts,
        panels=census_panels(facts, apart[np.ix_(order, order)], [profiles[i] for i in order], task),
        provenance={"runs": [run.name for run in members], "weights_sha256": [row["weights_sha256"] for row in rows]},
        about=ABOUT,
        tables=census_tables(facts),
    )


def _measured(
    members: Sequence[Run], tokens: Tokens, sample: int | None, progress: bool
) -> tuple[list[dict[str, Any]], list[Profile], list[Profile]]:
    """For each run: its outcome, its profile, and that of its permuted copy."""
    rows, profiles, copies = [], [], []
    with Bar("census", "runs") if progress else Watcher() as bar:
        for done, run in enumerate(members):
            subject = open_subject(run)
            rows.append(_outcome(run, sample))
            profiles.append(profile_of(subject, tokens))
            copies.append(profile_of(subject.with_model(permuted(subject.model, done)), tokens))
            bar.advance(done + 1, len(members), f"{rows[-1]['wrong']:,} wrong")
    return rows, profiles, copies


# ---------------------------------------------------------------------- which runs


def _members(runs: Sequence[str | Path | Run], seeds: Sequence[int], directory: Path, progress: bool) -> list[Run]:
    """The requested runs without repeats, by seed. All are finished and share one config."""
    by_path: dict[Path, Run] = {}
    if seeds:
        if len(runs) != 1 or not isinstance(runs[0], str) or runs[0] not in RECIPES:
            raise ConfigError(f"seeds belong to one recipe, and {runs[0] if runs else 'nothing'!r} is none: name one")
        config = RECIPES.load(runs[0])()
        configs = {f"{runs[0]}-s{seed}": config.model_copy(update={"seed": seed}) for seed in seeds}
        for member in configs:
            Run(new_folder(member, directory)).refuse_if_training()
        trained = train_many(configs, runs_dir=directory, resume=True, progress=progress)
        if trained.failed:
            why = "; ".join(f"{name}: {reason}" for name, reason in trained.failed.items())
            raise DivergedError(f"{len(trained.failed)} of {len(configs)} runs failed, leave out their seeds: {why}")
        by_path = {run.path: run for run in trained.runs.values()}
    else:
        for name in runs:
            several = [name] if isinstance(name, Run) else _named(str(name), directory)
            by_path |= {run.path: run for run in several}
    members = sorted(by_path.values(), key=lambda run: (run.config.seed, run.name))
    if len(members) < 2:
        raise ConfigError(f"a census compares runs, but got {len(members)}: train more, `algoscope train R --seeds`")
    first = members[0].config
    for run in members:
        if not run.is_whole:
            run.refuse_if_training()
            raise RunFolderError(f"run {run.name} stopped at step {run.newest_step or 0}: continue it with --resume")
        other = run.config.model_copy(update={"seed": first.seed})
        if different := first_difference(first, other):
            raise ConfigError(
                f"{run.name} differs from {members[0].name} in {different[0]}: a census compares runs that differ only "
                f"in their seed"
            )
    return members


def _named(name: str, directory: Path) -> list[Run]:
    members = [run for run in Run.all(directory) if re.fullmatch(re.escape(name) + r"-s\d+", run.name)]
    return members or [Run.find(name.removeprefix("run:"), directory)]


# ---------------------------------------------------------------------- outcomes


def _outcome(run: Run, sample: int | None) -> dict[str, Any]:
    """Seed, certified count, the step of the jump, and the last logged loss."""
    weights = run.summary.weights_sha256
    verdict = kept_or_certified(run) if sample is None else certify(run, sample=sample)
    logged = run.metrics()
    return {
        "run": run.name,
        "seed": run.config.seed,
        "wrong": verdict["wrong"],
        "checked": verdict["domain"]["checked"],
        "jump": jump_of(run),
        "loss": logged[-1]["loss"] if logged else None,
        "weights_sha256": weights,
    }


def jump_of(run: Run) -> int | None:
    """The step of the jump in accuracy: the first logged one with half of the answers right; None if there is none.

    Where every batch is freshly drawn, batch accuracy is a test accuracy, and is logged more often than the test set's.
    """
    rows = run.metrics()
    if run.config.data.source == "fresh":
        return next((row["step"] for row in rows if row.get("train_accuracy", 0.0) >= 0.5), None)
    if not any("test_accuracy" in row for row in rows):
        return None
    jump = read_curves(rows)["jump"]
    return None if jump is None else int(jump["step"])


def _heads(run: Run, profile: Profile, typical: Profile, decides: Bool[Tensor, "read key"]) -> list[dict[str, Any]]:
    """The heads, in the order of the typical run's heads that they match."""
    differing = differences(typical, profile)
    slots = matched(differing, profile.n_layers)
    scores = roles(run, n_inputs=64)["heads"]
    names = [f"L{i // profile.n_heads}H{i % profile.n_heads}" for i in range(len(slots))]
    where, decided = decides.numpy(), decides.any(dim=1).tolist()
    share = (profile.attention.mean(axis=1)[..., : where.shape[1]] * where).sum(axis=-1)
    return [
        {
            "slot": names[i],
            "name": scores[j]["name"],
            "role": scores[j]["role"],
            "score": scores[j]["score"],
            "effects": profile.effects[j].tolist(),
            "deciding": [float(x) if there else None for x, there in zip(share[j], decided, strict=True)],
            "from_typical": float(differing[i, j]),
        }
        for i, j in enumerate(slots)
    ]


# ---------------------------------------------------------------------- controls


def _controls(
    members: Sequence[Run], profiles: list[Profile], copies: list[Profile], tokens: Tokens, threshold: float
) -> dict[str, Any]:
    starts = [open_subject(run).before_training() for run in members]
    away = [
        distance(profile, profile_of(start, tokens))
        for profile, start in zip(profiles, starts, strict=True)
        if start is not None
    ]
    return {
        "permuted": max(distance(profile, copy) for profile, copy in zip(profiles, copies, strict=True)),
        "with_copies": int(solutions(distances([*profiles, *copies]), threshold).max()),
        "untrained": float(np.median(away)) if away else None,
    }


# ---------------------------------------------------------------------- early predictors


def _predicted(
    members: Sequence[Run], rows: Sequence[Mapping[str, Any]], decides: Bool[Tensor, "read key"]
) -> dict[str, Any]:
    """For the jump and the solution: the result of the early predictors, or one line on why they were not tested."""
    jumped = [row["jump"] for row in rows]
    late = float(max(run.newest_step or 0 for run in members))
    steps = [
        step
        for step in members[0].steps
        if step in EARLY
        and all(step in run.steps for run in members)
        and step < min((jump for jump in jumped if jump is not None), default=late)
    ]
    if len(members) < ENOUGH or not steps:
        why = "no checkpoint of steps 1 to 64 before the first jump" if not steps else f"fewer than {ENOUGH} runs"
        return {"steps": steps, "jump": {"verdict": f"not asked: {why}"}, "solution": {"verdict": f"not asked: {why}"}}
    names, features = early_features(members, steps, decides)
    outcome = np.array([late if jump is None else jump for jump in jumped], dtype=float)
    predicted: dict[str, Any] = {"steps": steps, "jump": {"verdict": "not asked: all runs jumped at the same step"}}
    if np.ptp(outcome) > 0:
        predicted["jump"] = predict_outcome(Question(outcome, kinds=False), names, features)
    kind = np.array([row["solution"] for row in rows], dtype=float)
    often = [k for k, n in zip(*np.unique(kind, return_counts=True), strict=True) if n >= OF_A_KIND]
    some = np.isin(kind, often)
    predicted["solution"] = {"verdict": f"not asked: no two solutions have {OF_A_KIND} runs"}
    if len(often) > 1:
        predicted["solution"] = predict_outcome(Question(kind[some], kinds=True), names, features[some])
    return predicted


# ---------------------------------------------------------------------- claim


def _claim(facts: Mapping[str, Any]) -> str:
    rows = facts["runs"]
    right = sum(row["wrong"] == 0 for row in rows)
    most = sum(row["solution"] == 1 for row in rows)
    counts, steady = [row["solutions"] for row in facts["by_threshold"]], facts["steadiest"]
    parts = [
        f"{len(rows)} runs of {facts['recipe']}, {right} with 0 wrong of {rows[0]['checked']:,}",
        f"{facts['solutions']} distinct solutions at distance {facts['threshold']:g} ({most} runs share the first; "
        f"{counts[0]} to {counts[-1]} at {THRESHOLDS[0]:g} to {THRESHOLDS[-1]:g})",
    ]
    if steady:
        parts.append(
            f"most stable: {steady['solutions']} solutions, for thresholds {steady['low']:.3f} to {steady['high']:.3f}"
        )
    for outcome in ("jump", "solution"):
        result = facts["predicted"][outcome]
        if result["verdict"] == "predicted":
            best = result["strongest"][0]
            parts.append(f"{best['feature']} in the early steps predicts the {outcome} (corrected p {best['p']:.2g})")
        elif result["verdict"] == "not predicted":
            parts.append(f"no early feature predicts the {outcome}")
    return "; ".join(parts)
