"""Commands that check: this installation (doctor), and the lenses on models whose mechanism is known (selfcheck)."""

from pathlib import Path

import click

from algoscope.doors import public
from algoscope.doors.cli.common import common, echo, out_file, show_json, show_result, show_table


@click.command()
@common
def doctor(as_json: bool, quiet: bool, runs_dir: str | None) -> None:
    """Versions, devices, measured threads, and what is missing and how to get it."""
    rows = public.checkup(runs_dir)
    if as_json:
        show_json(rows)
    else:
        show_table("", ["what", "value", "how to fix it"], [(row["what"], row["here"], row["way_out"]) for row in rows])


@click.command()
@click.option(
    "--copies",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    metavar="N",
    help="Shuffled and random models for each planted one.",
)
@out_file
@common
def selfcheck(copies: int, out: Path | None, as_json: bool, quiet: bool, runs_dir: str | None) -> int:
    """Run every lens on planted models, where it must detect the mechanism, and on N shuffled and N random models,
    where it must not. Exit code 1 when a planted mechanism is missed, or more than one answer in twenty is a false
    alarm.
    """
    finding = public.selfcheck(copies=copies, progress=not quiet)
    if out is not None:
        finding.save(out)
    if as_json:
        show_json(finding)
    else:
        for table in finding.tables:
            show_result(table)
        echo(f"{finding.claim}; false alarms in the last three columns")
    return 0 if finding["holds"] else 1
