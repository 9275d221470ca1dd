"""Commands about runs: train them, list them, show one, remove one."""

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from algoscope.core.errors import AlgoscopeError, ConfigError, DivergedError
from algoscope.core.registry import Entry, Table
from algoscope.doors import public
from algoscope.doors.cli.common import common, complete_run, echo, names, show_json, show_table, task_option
from algoscope.recipes.table import RECIPES
from algoscope.runs.paths import address, runs_directory

CONFIGS = Table(
    "function",
    {
        "config": Entry("algoscope.recipes.named:config_of", "the config of a recipe or a file"),
        "task": Entry("algoscope.tasks.specs:find_task", "a task by name, or of one's own"),
        "address": Entry("algoscope.tasks.specs:typed_address", "the file and class of a task of one's own"),
    },
)


@click.command()
@click.argument("recipe", metavar="RECIPE|FILE.json", shell_complete=names(RECIPES))
@task_option
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a config field (lr=0.01).")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of weights and data.  [default: the recipe's, 0]")
@click.option("--seeds", metavar="A..B", help="Train every seed from A to B together, one run each (NAME-s<seed>).")
@click.option("--name", help="Name of the run.  [default: RECIPE-s<seed>]")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@click.option("--workers", type=click.IntRange(min=1), help="With --seeds: processes.  [default: the free cores]")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps.")
@common
def train(
    recipe: str,
    task: str | None,
    settings: tuple[str, ...],
    seed: int | None,
    seeds: str | None,
    name: str | None,
    resume: bool,
    workers: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Train RECIPE, or the config in FILE.json, into a run folder; with --task on another task.

    Ctrl-C finishes the step and saves a run that --resume can continue.
    """
    if seed is not None and seeds is not None:
        raise ConfigError("--seed and --seeds exclude each other: give one")
    if workers is not None and seeds is None:
        raise ConfigError("--workers divides many runs among processes: give --seeds A..B with it")
    changes = parse_settings(settings)
    where: dict[str, Any] = {"runs_dir": runs_dir, "resume": resume, "device": device, "progress": not quiet}
    if seeds is None:
        run = public.train(recipe, task=task, seed=seed, name=name, settings=changes, **where)
        _show_trained([run], as_json, alone=True)
        return
    config = public.override(CONFIGS.load("config")(recipe, task), changes)
    members = {f"{name or config.recipe}-s{s}": config.model_copy(update={"seed": s}) for s in parse_seeds(seeds)}
    population = public.train_many(members, workers=workers, **where)
    _show_trained(population.runs.values(), as_json, alone=False)
    if population.failed:
        why = "; ".join(f"{name}: {reason}" for name, reason in population.failed.items())
        raise DivergedError(f"{len(population.failed)} of {len(members)} runs failed: {why}")


def _show_trained(runs: Iterable[Any], as_json: bool, alone: bool) -> None:
    runs = list(runs)
    done = [ended(run) for run in runs]
    if as_json:
        show_json(done[0] if alone else done)
        return
    for run, row in zip(runs, done, strict=True):
        own = CONFIGS.load("address")(run.config.task)
        echo(
            f"{row['path']}: step {row['steps']:,}, loss {row['loss']:.4f}, test {row['test_accuracy']:.2%}, "
            f"{row['seconds']:.1f} s; next: {next_command(row['path'])}{f' --task {shlex.quote(own)}' if own else ''}"
        )


def next_command(path: str) -> str:
    """The command that certifies the run of a folder, as a shell takes it."""
    return f"algoscope certify run:{address(Path(path))}"


def ended(run: Any) -> dict[str, Any]:
    """A finished run for `--json`: its name, where it is, and its summary."""
    return {"run": run.name, "path": str(run.path), **run.summary.model_dump(mode="json")}


def parse_settings(settings: tuple[str, ...]) -> Mapping[str, str]:
    """`("lr=0.01",)` as a mapping. Raises ConfigError for one without an equals sign."""
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(f"--set {setting!r} has no value: write --set FIELD=VALUE")
    return dict(setting.split("=", 1) for setting in settings)


def parse_seeds(text: str) -> range:
    """`0..3` as 0, 1, 2, 3."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise ConfigError(f"--seeds {text!r}: write the first and the last, such as 0..19")
    return range(int(match[1]), int(match[2]) + 1)


@click.group(invoke_without_command=True)
@common
@click.pass_context
def runs(ctx: click.Context, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """List the runs; `show NAME` prints one, `rm NAME` removes one."""
    if ctx.invoked_subcommand is not None:
        return
    rows = [_listed(run) for run in public.Run.all(runs_directory(runs_dir))]
    if as_json:
        show_json(rows)
    elif not rows:
        echo(f"no runs in {runs_directory(runs_dir)}: train one with `algoscope train RECIPE`")
    else:
        columns = ["run", "recipe", "seed", "state", "steps", "test_accuracy", "wrong"]
        show_table("", columns, [["" if row[c] is None else row[c] for c in columns] for row in rows])
        for row in rows:
            if row["why"]:
                echo(f"{row['run']}: {row['why']}", err=True)


@runs.command()
@click.argument("name", shell_complete=complete_run)
@common
def show(name: str, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """Everything about one run: its state, config, checkpoints, curves and findings."""
    run = public.Run.find(name, runs_directory(runs_dir))
    rows = run.metrics()
    curves = public.curves(rows) if any("test_accuracy" in row for row in rows) else None
    facts = {
        **describe(run),
        "path": str(run.path),
        "checkpoints": run.steps,
        "curves": {"claim": curves.claim, **curves.facts} if curves else None,
        "findings": [finding.claim for finding in run.findings()],
        "summary": run.summary.model_dump(mode="json") if run.is_whole else {},
        "config": run.config.model_dump(),
    }
    if as_json:
        show_json(facts)
    else:
        show_table("", ["field", "value"], [(key, str(value)) for key, value in facts.items()])


@runs.command()
@click.argument("name", shell_complete=complete_run)
@common
def rm(name: str, as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """Remove a run folder."""
    run = public.Run.find(name, runs_directory(runs_dir))
    run.remove()
    if as_json:
        show_json({"removed": str(run.path)})
    else:
        echo(f"removed {run.path}")


def _listed(run: Any) -> dict[str, Any]:
    """`describe`; a damaged run is a row that says why."""
    try:
        return describe(run) | {"why": None}
    except AlgoscopeError as error:
        unknown = dict.fromkeys(("recipe", "seed", "steps", "test_accuracy", "wrong"))
        return {"run": run.name, "state": "damaged", "why": str(error), **unknown}


def describe(run: Any) -> dict[str, Any]:
    """One row about a run, finished or not."""
    summary = run.summary if run.is_whole else None
    verdict = run.finding("certify", summary.weights_sha256) if summary else None
    return {
        "run": run.name,
        "recipe": run.config.recipe,
        "seed": run.config.seed,
        "state": "finished" if summary else "training" if run.is_training else f"stopped at {run.newest_step or 0}",
        "steps": summary.steps if summary else run.newest_step or 0,
        "test_accuracy": summary.test_accuracy if summary else None,
        "wrong": verdict.facts.get("wrong") if verdict else None,
    }
