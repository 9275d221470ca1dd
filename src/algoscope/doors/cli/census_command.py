"""`algoscope census NAME...`: what many seeds of one recipe learned."""

from pathlib import Path

import click

from algoscope.doors import public
from algoscope.doors.cli.common import common, complete_run, echo, out_file, show_json, show_result, task_option
from algoscope.doors.cli.runs_commands import CONFIGS, parse_seeds


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_run)
@click.option("--seeds", metavar="A..B", help="Seeds of the recipe; missing runs are trained first.")
@click.option("--threshold", type=float, default=0.1, show_default=True, help="Largest distance within one solution.")
@click.option("--n-inputs", type=click.IntRange(min=2), default=256, show_default=True, help="Inputs to compare on.")
@click.option("--sample", type=int, help="Certify this many random inputs instead of all.")
@task_option
@out_file
@common
def census(
    names: tuple[str, ...],
    seeds: str | None,
    threshold: float,
    n_inputs: int,
    sample: int | None,
    task: str | None,
    out: Path | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> int:
    """Compare runs that differ in their seed: outcomes, heads matched across seeds, number of distinct solutions, and
    whether early features predict them. A recipe's name means all its runs."""
    if task is not None:
        CONFIGS.load("task")(task)  # the runs say of which code they are: now it is known
    finding = public.census(
        names,
        seeds=() if seeds is None else parse_seeds(seeds),
        threshold=threshold,
        n_inputs=n_inputs,
        sample=sample,
        runs_dir=runs_dir,
        progress=not quiet,
    )
    if out is not None:
        finding.save(out)
    if as_json:
        show_json(finding)
    else:
        for table in finding.tables:
            show_result(table)
        for outcome in ("jump", "solution"):
            echo(_prediction(outcome, finding["predicted"][outcome]))
        echo(finding.claim)
    return 0 if finding["holds"] else 1


def _prediction(outcome: str, result: dict[str, object]) -> str:
    if "strongest" not in result:
        return f"{outcome}: {result['verdict']}"
    return (
        f"{outcome}: {result['verdict']}; leave-one-out error {result['error']:.3g} (baseline "
        f"{result['trivial_error']:.3g}); {result['shuffled_claims']} of {result['shuffled_trials']} shuffled outcomes "
        "claimed"
    )
