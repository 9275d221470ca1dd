"""`algoscope selfcheck`: the lenses on models whose mechanism is known."""

import click

from algoscope.doors.cli.common import common, show_table
from algoscope.doors.table import PUBLIC


@click.command()
@click.option("--copies", type=click.IntRange(min=1), default=10, show_default=True, metavar="N")
@click.option("--out", metavar="FILE", help="Write .html, .png, .svg, .json or .csv, by the ending.")
@common
def selfcheck(copies: int, out: str | None, as_json: bool, quiet: bool, runs_dir: str | None) -> int:
    """Put every lens to planted models, where it must find what is there, and to N shuffled and N random ones, where it
    must not. Exit code 1 when something planted is missed, or more than one answer in twenty is a false alarm.
    """
    found = PUBLIC.load("selfcheck")(copies=copies, progress=not quiet)
    if out is not None:
        found.save(out)
    if as_json:
        click.echo(found.to_json())
    else:
        for table in found.tables:
            numeric = [column for column, is_number in zip(table.columns, table.numeric, strict=True) if is_number]
            show_table(table.title, table.columns, table.texts(), numeric)
        click.echo(f"{found.claim}; in the last three columns false alarms")
    return 0 if found["holds"] else 1
