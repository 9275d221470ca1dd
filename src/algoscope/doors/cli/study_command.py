"""`algoscope study NAME`: a controlled comparison."""

from pathlib import Path
from typing import Any

import click

from algoscope.core.registry import Entry, Table
from algoscope.doors import public
from algoscope.doors.cli.common import common, names, show_table
from algoscope.doors.cli.runs_commands import parse_seeds, parse_settings
from algoscope.verdicts.studies.table import STUDIES
from algoscope.verdicts.studies.tables import WORDS, tables

PAGES = Table("page", {"study": Entry("algoscope.doors.report.study_page:write_page", "a study on one page")})


@click.command()
@click.argument("name", shell_complete=names(STUDIES))
@click.option("--seeds", default="0..2", show_default=True, metavar="A..B", help="Every variant with every seed.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a config field in all members.")
@click.option("--out", metavar="FILE", help="Write .html, .png, .svg, .json or .csv, by the ending.")
@common
def study(
    name: str,
    seeds: str,
    settings: tuple[str, ...],
    out: str | None,
    as_json: bool,
    quiet: bool,
    runs_dir: str | None,
) -> None:
    """Train the variants of the study NAME over seeds, certify them, and compare them with their control: a table, a
    figure, and which predictions came true.

    Its members are ordinary runs, NAME-VARIANT-s<seed>; those that are whole already are not trained again.
    """
    found = public.study(
        name, seeds=parse_seeds(seeds), settings=parse_settings(settings), runs_dir=runs_dir, progress=not quiet
    )
    if out is not None and Path(out).suffix == ".html" and found.kind == "study":
        PAGES.load("study")(found, out)
    elif out is not None:
        found.save(out)
    if as_json:
        click.echo(found.to_json())
        return
    if found.kind == "length":
        _lengths(found)
    else:
        _variants(found)
    click.echo(found.claim)


def _variants(found: Any) -> None:
    """What each variant came to, beside its control."""
    for title, (headings, *rows) in tables(found.facts):
        show_table(title, headings, rows, numeric=[heading for heading in headings if heading not in WORDS])
        click.echo()
    for row in found["rows"]:
        for seed, message in row["diverged"].items():
            click.echo(f"{row['variant']}, seed {seed}, diverged: {message}")


def _lengths(found: Any) -> None:
    """How much of each width each variant gets right, then what was predicted."""
    columns = ["variant", "over seeds", *map(str, found["widths"])]
    shares = [
        (row["variant"] if over == "median" else "", over, *("" if s is None else f"{s:.3f}" for s in row[over]))
        for row in found["rows"]
        for over in ("median", "worst", "digits", "rest")
    ]
    show_table(f"share of {found['fresh']:,} sums right, by digits", columns, shares, numeric=columns[2:])
    judged = [
        (row["variant"], said["width"], said["says"], f"{said['median']:.3f}", "yes" if said["came_true"] else "NO")
        for row in found["rows"]
        for said in row["predictions"]
    ]
    show_table("predicted", ["variant", "digits", "median", "found", "came true"], judged, numeric=["digits", "found"])
