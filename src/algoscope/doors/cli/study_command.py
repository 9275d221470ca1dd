"""`algoscope study NAME`: a controlled comparison."""

from pathlib import Path

import click

from algoscope.core.registry import Entry, Table
from algoscope.doors import public
from algoscope.doors.cli.common import common, echo, names, out_file, show_json, show_result
from algoscope.doors.cli.runs_commands import parse_seeds, parse_settings
from algoscope.verdicts.studies.table import STUDIES

PAGES = Table("page", {"study": Entry("algoscope.doors.report.study_page:write_page", "a study on one page")})


@click.command()
@click.argument("name", shell_complete=names(STUDIES))
@click.option("--seeds", default="0..2", show_default=True, metavar="A..B", help="Every variant with every seed.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a config field in all members.")
@out_file
@common
def study(
    name: str,
    seeds: str,
    settings: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Train the variants of the study NAME over seeds, measure them, and compare them with the control: tables, a
    figure, and which predictions came true.

    Its members are ordinary runs, NAME-VARIANT-s<seed>; those that are finished are not trained again.
    """
    finding = public.study(
        name, seeds=parse_seeds(seeds), settings=parse_settings(settings), runs_dir=runs_dir, progress=not quiet
    )
    if out is not None and out.suffix.lower() == ".html":
        PAGES.load("study")(finding, out)
    elif out is not None:
        finding.save(out)
    if as_json:
        show_json(finding)
        return
    for table in finding.tables:
        show_result(table)
    echo(finding.claim)
